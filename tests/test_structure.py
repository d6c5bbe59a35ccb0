"""Every notebook keeps the rules of a chapter; and each rule can tell a broken one."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from tests.tools import rules
from tests.tools.canaries import PIXEL, picture
from tests.tools.execute import normalise, write
from tests.tools.isolation import chapters


def test_there_are_chapters() -> None:
    assert {"00_start_here", "01_event_loop"} <= {path.stem for path in chapters()}


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_keeps_the_rules(path: Path) -> None:
    assert not (found := rules.violations(path)), "\n".join(found)


# --- Sections ---------------------------------------------------------------------------


def unknown_names(nb: NotebookNode, folder: Path) -> list[str]:
    """Names that a section uses, and that neither the setup cell nor the section itself makes."""
    setup, parts, files, bodies = "", {"": []}, {}, []
    for cell in nb.cells:
        heading = next(reversed(parts))
        if cell.cell_type == "markdown" and (found := re.match(r"## (.+)", cell.source)):
            parts[found[1]] = []
        elif cell.cell_type == "code" and "setup" in rules.tags(cell):
            setup = cell.source
        elif cell.cell_type == "code" and (module := rules.module_of(cell.source)):
            files[module] = heading
            bodies.append((heading, cell.source))
            own = cell.source.partition("\n")[2]  # a file of its own: it sees no name of the notebook
            (folder / f"{list(parts).index(heading)}_{module}.py").write_text(own, encoding="utf-8")
        elif cell.cell_type == "code":
            parts[heading].append(cell.source)
    elsewhere = [
        f"section {heading!r}: uses the module {module!r} of section {home!r}"
        for heading, source in bodies + [(heading, "\n".join(sources)) for heading, sources in parts.items()]
        for module, home in files.items()
        if heading != home and re.search(rf"\b(?:from|import) {module}\b|[\"']{module}:", source)
    ]
    for number, (heading, sources) in enumerate(parts.items()):
        body = textwrap.indent("\n".join([setup, *sources]), "    ")
        (folder / f"{number}.py").write_text(f"async def section():  # {heading}\n    ...\n{body}\n", encoding="utf-8")
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select", "F821", "--output-format", "concise", str(folder)],
        capture_output=True,
        text=True,
    )
    headings = list(parts)
    found = re.findall(r"(\d+)(?:_\w+)?\.py:\d+:\d+: (.+)", checked.stdout)
    assert bool(found) == bool(checked.stdout), checked.stdout
    return elsewhere + [f"section {headings[int(number)]!r}: {message}" for number, message in found]


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_section_needs_nothing_but_the_setup_cell(path: Path, tmp_path: Path) -> None:
    assert unknown_names(nbformat.read(path, as_version=4), tmp_path) == []


def test_a_section_that_leans_on_another_is_found(tmp_path: Path) -> None:
    cells = [
        code("setup", "import asyncio\n"),
        new_markdown_cell("## First"),
        new_code_cell("shared = 1\nasync def one(): return shared"),
        new_markdown_cell("## Second"),
        new_code_cell("own = 2\nawait asyncio.sleep(0)\nprint(await one() + own)"),
    ]
    assert unknown_names(NotebookNode(cells=cells), tmp_path) == ["section 'Second': F821 Undefined name `one`"]


def test_a_module_of_another_section_is_found(tmp_path: Path) -> None:
    cells = [
        code("setup", "from support import serve\n"),
        new_markdown_cell("## First"),
        new_code_cell("limit = 5"),
        new_code_cell("%%module shop\nopen = True\nprint(limit)"),
        new_code_cell("import shop\nprint(shop.open)"),
        new_markdown_cell("## Second"),
        new_code_cell("with serve('shop:open') as server:\n    print(server)"),
    ]
    assert unknown_names(NotebookNode(cells=cells), tmp_path) == [
        "section 'Second': uses the module 'shop' of section 'First'",
        "section 'First': F821 Undefined name `limit`",
    ]


# --- The rules themselves --------------------------------------------------------------


def code(tag: str, source: str = "first = 1\nsecond = 2", printed: str = "") -> NotebookNode:
    stored = [new_output("stream", name="stdout", text=printed)] if printed else []
    return new_code_cell(source, outputs=stored, metadata={"tags": tag.split()})


def figure(tag: str) -> NotebookNode:
    cell = code(tag)
    cell.outputs = picture("Three lanes")
    return cell


def exercise(number: str) -> list[NotebookNode]:
    solution = code("solution hide-cell", f"def answer(): ...\ncheck('{number}', answer)")
    solution.metadata["jupyter"] = {"source_hidden": True}
    hint = "<details><summary>A hint</summary>Ask what waits.</details>"
    return [
        new_markdown_cell("Write it." + 3 * hint),
        code("exercise"),
        code("check", f"check('{number}', answer)"),
        solution,
    ]


def chapter() -> NotebookNode:
    """The smallest notebook that keeps every rule."""
    script = '```python\nif __name__ == "__main__":\n    asyncio.run(main())\n```'
    cells = [new_markdown_cell("# What waits?\n\nA question."), code("setup"), code("predict")]
    cells += [new_markdown_cell(f"## {heading}\n\nWords.") for heading in rules.HEADINGS]
    cells += [new_markdown_cell(script), figure("figure"), figure("widget nbval-ignore-output")]
    cells += [code("spot"), code("spot")]
    cells += [cell for number in ("9.1", "9.2", "9.3", "9.4") for cell in exercise(number)]
    cells += [code("experiment", printed="about 3 waves\n") for _ in range(8)]
    cells += [new_markdown_cell("Words.")]
    cells += [code("cleanup", "close_chapter()", "tasks left: 0\n")]
    nb = NotebookNode(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
    for position, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{position}"
    normalise(nb)
    return nb


def cell_of(nb: NotebookNode, tag: str) -> NotebookNode:
    return rules.tagged(nb, tag)[0][1]


def prints(text: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        cell_of(nb, "experiment").outputs[0].text = text

    return change


def sets(tag: str, **values: object) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        cell_of(nb, tag).update(values)

    return change


def retags(tag: str, *wanted: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        cell_of(nb, tag).metadata["tags"] = list(wanted)

    return change


def writes(source: str) -> Callable[[NotebookNode], None]:
    """Replaces the text of the second cell of prose, under the heading "Try it"."""

    def change(nb: NotebookNode) -> None:
        rules.numbered(nb, "markdown")[1][1].source = source

    return change


def shows(**data: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        bundle = {kind.replace("_", "/"): text for kind, text in data.items()}
        cell_of(nb, "figure").outputs = [new_output("display_data", bundle)]

    return change


def stores(tag: str, **output: object) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        cell_of(nb, tag).outputs.append(new_output(**output))

    return change


def many(tag: str, times: int) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        for _, cell in rules.tagged(nb, "experiment")[:times]:
            cell.metadata["tags"] = [tag]

    return change


BROKEN: dict[str, tuple[Callable[[NotebookNode], None], str]] = {
    "format": (lambda nb: nb.update(nbformat_minor=4), "the format is 4.4"),
    "kernel": (lambda nb: nb.metadata.kernelspec.update(name="py"), "the kernel is not python3"),
    "notebook metadata": (lambda nb: nb.metadata.update(widgets={}), "'widgets' metadata"),
    "two titles": (writes("# Another\n\n## Try it"), "there are 2 H1"),
    "no title": (lambda nb: nb.cells[0].update(source="Words"), "there are 0 H1"),
    "cell metadata": (
        lambda nb: cell_of(nb, "setup").metadata.update(execution={"at": 1}),
        "'execution' metadata",
    ),
    "tag": (retags("experiment", "slow"), "has the tag 'slow'"),
    "comment": (sets("experiment", source="# NBVAL_SKIP\nx = 1"), "steers nbval"),
    "no count": (sets("experiment", execution_count=None), "execution count None"),
    "wrong count": (sets("experiment", execution_count=99), "execution count 99"),
    "long": (sets("experiment", source="x = 1\n" * 13), "has 13 lines of code"),
    "wide": (sets("experiment", source="x = 1\ny = " + "x + " * 34 + "x"), "has a line of 141 characters"),
    "wide beside a text": (sets("experiment", source=f"x = 1\ny = {'x' * 60!r} + f'{{x}} {'y' * 60}' + {'x + ' * 13}x"), "a line of 143"),
    "short": (sets("exercise", source="x = 1"), "has 1 lines of code"),
    "semicolon": (sets("experiment", source="x = 1\nx;"), "semicolon"),
    "prose": (writes("## Try it\n\n" + "word " * 81), "has 81 words of prose"),
    "stderr": (
        stores("experiment", output_type="stream", name="stderr", text="oh"),
        "writes to stderr",
    ),
    "pieces": (
        stores("experiment", output_type="stream", name="stdout", text="more"),
        "in pieces",
    ),
    "error": (
        stores("experiment", output_type="error", ename="KeyError", evalue="1", traceback=[]),
        "stores an error",
    ),
    "no error": (retags("experiment", "raises-exception"), "stores no error"),
    "large": (prints("word " * 50_000), "at most 200,000"),
    "seconds": (prints("took 0.103 s\n"), "a raw time, '0.103 s'"),
    "milliseconds": (prints("took 10.3 ms\n"), "a raw time, '10.3 ms'"),
    "float": (prints("0.10342817\n"), "a raw time, '0.10342817'"),
    "address": (prints("at 10.1.2.3\n"), "an address"),
    "url": (prints("at http://127.0.0.1:8043/status\n"), "a port, ':8043'"),
    "port": (prints("on port 8043\n"), "a port, 'port 8043'"),
    "pid": (prints("pid=4711\n"), "a process number"),
    "date": (prints("on 2026-11-22\n"), "a date"),
    "clock": (prints("at 10:11:12\n"), "a date"),
    "path": (prints("in /home/me/course\n"), "a path"),
    "windows path": (prints("in C:\\Users\\me\n"), "a path"),
    "address of an object": (prints("0x7fe2b0f1ad40\n"), "an object address"),
    "repr": (prints("<Task pending name='a'>\n"), "a bare object repr"),
    "time in HTML": (shows(text_html="<b>took</b> 0.103 s <img alt='a'>"), "a raw time"),
    "too many uncompared": (many("nbval-ignore-output", 6), "7 cells are tagged"),
    "alt in HTML": (shows(text_html="<img src='data:'>"), "image without alt text"),
    "no alt at all": (shows(image_png=PIXEL), "image without alt text"),
    "alt but no words": (sets("figure", outputs=picture("Three lanes")[:1]), "image without alt text"),
    "other words than the alt": (
        sets("figure", outputs=[picture("Three lanes")[0], picture("Two lanes")[1]]),
        "image without alt text",
    ),
    "no figure": (sets("figure", outputs=[]), "tagged figure, but stores no image"),
    "alt in prose": (writes("## Try it\n\n![](figure.png)"), "image without alt text"),
    "dead widget": (
        stores(
            "widget",
            output_type="display_data",
            data={"application/vnd.jupyter.widget-view+json": {}},
        ),
        "dead without a kernel",
    ),
    "empty widget": (sets("widget", outputs=[]), "is a widget: it needs a stored figure"),
    "compared widget": (retags("widget", "widget"), "is a widget: it needs a stored figure"),
    "few cells": (lambda nb: nb.cells.pop(-2), "there are 39 cells"),
    "no setup": (retags("setup", "experiment"), "must be tagged setup"),
    "late setup": (many("setup", 1), "and no other, must be tagged setup"),
    "no cleanup": (retags("cleanup", "experiment"), "must be tagged cleanup"),
    "no predict": (retags("predict", "experiment"), "0 cells are tagged predict"),
    "one bug": (retags("spot", "experiment"), "1 cells are tagged spot"),
    "three exercises": (retags("exercise", "experiment"), "3 cells are tagged exercise"),
    "heading": (writes("Words."), "no heading 'Try it'"),
    "script": (
        lambda nb: [cell.update(source="x") for cell in nb.cells if "__main__" in cell.source],
        "script form",
    ),
    "no solution": (sets("solution", source="x = 1\ny = 2"), "9.1 has no solution cell"),
    "no check": (sets("check", source="x = 1\ny = 2"), "9.1 has a solution, but no cell"),
    "shown solution": (
        lambda nb: cell_of(nb, "solution").metadata.pop("jupyter"),
        "shows its solution",
    ),
    "hidden cell": (retags("experiment", "hide-cell"), "is hidden, but is no solution"),
    "hints": (
        lambda nb: [cell.update(source="Write it.") for cell in nb.cells if "<d" in cell.source],
        "0 hints are folded away",
    ),
}


def test_the_smallest_chapter_keeps_every_rule(tmp_path: Path) -> None:
    write(chapter(), tmp_path / "99_smallest.ipynb")
    assert rules.violations(tmp_path / "99_smallest.ipynb") == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_told(name: str, tmp_path: Path) -> None:
    change, reason = BROKEN[name]
    nb = chapter()
    change(nb)
    (tmp_path / "99_broken.ipynb").write_text(rules.nbformat.writes(nb), encoding="utf-8")
    found = rules.violations(tmp_path / "99_broken.ipynb")
    assert any(re.search(re.escape(reason), sentence) for sentence in found), found
    assert len(found) == 1, found


def test_the_start_needs_no_anatomy(tmp_path: Path) -> None:
    nb = chapter()
    del nb.cells[-3:]
    write(nb, tmp_path / "00_start_here.ipynb")
    assert rules.violations(tmp_path / "00_start_here.ipynb") == []


def test_virtual_times_and_ratios_are_no_raw_times(tmp_path: Path) -> None:
    nb = chapter()
    prints("finished at 3.0 s, 0.25 s each, 12 waves, 2.96x, 30 ms, Little: 1.7\n")(nb)
    write(nb, tmp_path / "99_virtual.ipynb")
    assert rules.violations(tmp_path / "99_virtual.ipynb") == []
