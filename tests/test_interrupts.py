"""The stop button: any cell of any chapter can be interrupted, and run again, and nothing is left."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
import pytest

from tests.tools.isolation import NOTEBOOKS, chapters
from tests.tools.live import LiveKernel
from tests.tools.rules import numbered, tags

SECONDS_TO_STOP = 10


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows kernels are interrupted by other means")
@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_any_cell_can_be_interrupted_and_run_again(path: Path, tmp_path: Path) -> None:
    with LiveKernel(tmp_path, cwd=NOTEBOOKS) as kernel:
        for name, cell in numbered(nbformat.read(path, as_version=4)):
            request = kernel.send(cell.source)
            kernel.wait_until(request, "execute_input")
            time.sleep(0.1)  # somewhere in the middle, if the cell takes that long
            kernel.interrupt()
            try:
                kernel.wait(request, SECONDS_TO_STOP)
            except TimeoutError:
                # The kernel can lose the reply when the interrupt comes just as the cell ends. A cell
                # that still runs holds up the next one too.
                kernel.wait(kernel.send("pass"), SECONDS_TO_STOP)
            answer = kernel.run(cell.source)
            assert answer.status == "ok" or "raises-exception" in tags(cell), f"{name}\n{answer.traceback}"
    assert answer.printed.count("left: 0") == 4, answer.printed
