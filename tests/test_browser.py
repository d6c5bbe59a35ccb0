"""A reader opens the lab in a real browser: runs a chapter, sees the figures, moves a
widget, solves an exercise by typing. What they saw is stored in tests/_screens."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

from tests.tools import rules
from tests.tools.isolation import NOTEBOOKS, chapters
from tests.tools.lab import BROWSER_FLAGS, Reader, find_browser, running_lab

CHAPTERS = [path.stem for path in chapters()]
SECONDS_TO_RUN = 150
SCREENS = Path(__file__).parent / "_screens"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = find_browser()
    if path is None and os.environ.get("CI") == "true":
        pytest.fail("CI needs a browser: install Debian's chromium, or set CHROMIUM to one.")
    if path is None:
        pytest.skip("no Chromium found: install one, or set CHROMIUM to its path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def lab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_lab(NOTEBOOKS, tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page()
    yield opened
    opened.close()


def positions(nb: NotebookNode, tag: str) -> list[int]:
    return [place for place, cell in enumerate(nb.cells) if tag in rules.tags(cell)]


def figures_in(nb: NotebookNode) -> int:
    return sum(len(rules.alts(cell)) for _, cell in rules.numbered(nb))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_reads_without_a_kernel(chapter: str, lab: str, page: Any) -> None:
    nb = nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", as_version=4)
    reader = Reader(page, lab, f"stored/{chapter}.ipynb")
    reader.wait_for_figures(figures_in(nb))
    reader.photograph(SCREENS, f"stored-{chapter}")
    assert [alt for alt, width in reader.figures() if not alt or not width] == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_reader_works_through_a_chapter(chapter: str, lab: str, page: Any) -> None:
    nb = nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", as_version=4)
    expected_errors = len(positions(nb, "raises-exception"))
    reader = Reader(page, lab, f"{chapter}.ipynb")
    try:
        reader.run_all(len(rules.numbered(nb)), expected_errors, SECONDS_TO_RUN)
        assert len(reader.errors()) == expected_errors, reader.errors()
        reader.wait_for_figures(figures_in(nb))
        assert [alt for alt, width in reader.figures() if not alt or not width] == []
        for place in positions(nb, "widget"):
            reader.move(place)
        for place in positions(nb, "cleanup"):
            assert reader.text(place).count("left: 0") == 4, reader.text(place)
        if positions(nb, "solution"):
            solve_by_typing(reader, nb)
    finally:
        reader.photograph(SCREENS, chapter)
    assert reader.outside == [], "the page asks for something that is not on this machine"


def solve_by_typing(reader: Reader, nb: NotebookNode) -> None:
    """Type the shortest stored solution into the stub of its exercise, run it, see it pass."""
    call = re.compile(r"""^check\(\s*["']([^"']+)["'],\s*(\w+)\)$""", re.MULTILINE)
    solution = min((nb.cells[place].source for place in positions(nb, "solution")), key=len)
    number, written_as = call.findall(solution)[0]
    check, wanted = next(
        (place, dict(call.findall(nb.cells[place].source))[number])
        for place in positions(nb, "check")
        if number in dict(call.findall(nb.cells[place].source))
    )
    answer = re.sub(rf"\b{written_as}\b", wanted, call.sub("", solution)).rstrip()
    # The stub stands in the cell of its check, or in one before it.
    stub = max(place for place in positions(nb, "exercise") if place <= check)
    if stub == check:
        answer += "\n\n" + call.search(nb.cells[check].source)[0]
    reader.run(positions(nb, "setup")[0])
    assert "passed" not in reader.text(check)
    reader.write(stub, answer)
    assert reader.source(stub) == answer
    reader.run(stub)
    reader.run(check)
    assert f"{number} " in reader.text(check) and ": passed." in reader.text(check)
