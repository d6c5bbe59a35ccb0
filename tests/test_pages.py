"""README and what else a visitor reads: true links, a real picture, and no word about anybody's machine."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.tools import pictures
from tests.tools.isolation import NOTEBOOKS, ROOT

PRIVATE = re.compile(r"/(?:home|Users)/[a-z]\w*/|(?<![\w.])/(?:root|work)/\w|https?://[^\s/]+/[^\s]*simple/", re.I)
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_the_one_that_the_chapter_has_stored(name):
    assert (NOTEBOOKS / name).read_bytes() == pictures.stored(*pictures.PICTURES[name]), (
        "run python -m tests.tools.pictures"
    )


def test_a_picture_of_a_cell_that_is_not_there_is_an_error():
    with pytest.raises(LookupError, match="01_event_loop has no cell that begins with 'no such'"):
        pictures.stored("01_event_loop", "no such")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_has_its_commands_its_picture_and_every_chapter():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("lab", "test", "notebook", "bench"):
        assert f"make {target}" in README and f"\n{target}:" in makefile
    assert any(f"](notebooks/{name})" in README for name in pictures.PICTURES)
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in README, f"{path.stem} is missing in README's table"


def test_only_what_the_layout_lists_is_at_the_top():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert top <= {
        "README.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "environment.yml", "pyproject.toml", "requirements.lock",
        ".ci", ".github", ".gitignore", ".gitattributes", "notebooks", "support", "tests",
    }  # fmt: skip


def test_no_file_speaks_of_a_machine():
    """No path of a home or a workplace, and no address of a package index."""
    found = []
    for pattern in (
        "*.md",
        "*.toml",
        "*.lock",
        "*.yml",
        "Makefile",
        ".ci/*",
        ".github/**/*.yml",
        "support/**/*.py",
        "notebooks/*.ipynb",
    ):
        for path in ROOT.glob(pattern):
            if path.is_file() and (match := PRIVATE.search(path.read_text(encoding="utf-8"))):
                found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert found == []


@pytest.mark.parametrize("text", ["open /home/somebody/notes.txt", "in /root/x.py", "https://a.example/pypi/simple/"])
def test_the_search_for_machines_finds_one(text):
    assert PRIVATE.search(text)


def test_ruff_has_nothing_to_say():
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format", "concise", "support", "tests", "notebooks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.stdout == ""
