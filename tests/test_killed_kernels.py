"""kill -9 of a kernel in the middle of a chapter: no process of it stays."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from tests.tools.isolation import NOTEBOOKS, chapters
from tests.tools.live import LiveKernel
from tests.tools.rules import WITHOUT_ANATOMY, numbered, tagged, tags

KILLED = [path.stem for path in chapters() if path.stem not in WITHOUT_ANATOMY]
# How far into the chapter's code cells the kernel is killed: 0 is the setup cell.
MOMENTS = [0.0, 0.2, 0.4, 0.6, 0.8]
SECONDS_TO_VANISH = 10


def way_to(nb: NotebookNode, moment: float) -> list[NotebookNode]:
    """The setup cell, and what comes before a moment in its section, and the cell there."""
    code = [cell for _, cell in numbered(nb)]
    target = code[int(moment * len(code))]
    section: list[NotebookNode] = []
    for cell in nb.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            section = []
        elif cell.cell_type == "code" and "setup" not in tags(cell):
            section.append(cell)
        if cell is target:
            break
    return [*(cell for _, cell in tagged(nb, "setup")), *section]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals: its jobs end children")
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("chapter", KILLED)
def test_a_killed_kernel_leaves_no_process(chapter: str, moment: float, tmp_path: Path) -> None:
    cells = way_to(nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", as_version=4), moment)
    with LiveKernel(tmp_path, cwd=NOTEBOOKS) as kernel:
        for cell in cells[:-1] or cells:
            answer = kernel.run(cell.source)
            assert answer.status == "ok" or "raises-exception" in tags(cell), answer.traceback
        assert len(kernel.family()) >= 2, "the chapter started no process: this shows nothing"
        kernel.wait_until(kernel.send(cells[-1].source), "execute_input")
        kernel.kill()
        left = kernel.family_after(SECONDS_TO_VANISH)
        assert not left, [process.cmdline() for process in left]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no sessions")
def test_an_orphan_would_be_seen(tmp_path: Path) -> None:
    with LiveKernel(tmp_path) as kernel:
        kernel.run("import subprocess\nsubprocess.Popen(['sleep', '60'], start_new_session=True)")
        kernel.kill()
        assert [one.name() for one in kernel.family_after(0.5)] == ["sleep"]
