"""A pytest plugin that makes nbval strict: `python -m pytest -p tests.tools.strict_nbval`.

It switches nbval on for every notebook that pytest is pointed at, in the running
interpreter, away from the user's own settings, and closes gaps that nbval 0.11 leaves:

- an error reply without an error message counts as an error;
- a cell that hangs is said to hang, and not only to raise CancelledError;
- what a cell prints after its end counts as an error of the cell that then runs;
- pictures inside HTML are compared by their alt text alone, like other pictures;
- a cell may take 60 s, not 2000 s;
- a kernel listens on files, and not on ports that another program may take first.

Load it with `-p` on the command line, not in a settings file: only then do the workers
of pytest-xdist load it before nbval, and save the 2.5 s that one of its imports costs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

# jsonschema imports this parser to check one kind of text that notebooks do not have.
# Building it takes over two seconds in each process; without it the check is left out.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

from tests.tools.isolation import listen_on_files, settings  # noqa: E402

CELL_SECONDS = 60.0
CANARIES = Path(__file__).resolve().parents[1] / "canaries"
SANITIZE = Path(__file__).with_name("strict_nbval.cfg")
LONG_FIRST = ("test_interrupts", "test_exercises", "test_notebooks", "test_browser", "test_killed", ".ipynb")
TIMEOUT = "Timeout"
SHOWN = {"stream", "display_data", "execute_result", "error"}
SILENT_ERROR = "The kernel replied with an error, but sent no error message"
LATE_OUTPUT = "An earlier cell printed after its end: await the tasks that it starts"

_folder = pytest.StashKey[Any]()
_environment = pytest.StashKey[dict]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    option.nbval = True
    option.nbval_current_env = True
    option.nbval_sanitize_with = str(SANITIZE)
    option.loadscopereorder = False  # pytest-xdist would begin with the files of most tests
    if option.nbval_cell_timeout == 2000:  # nobody chose one
        option.nbval_cell_timeout = CELL_SECONDS
    config.stash[_environment] = dict(os.environ)
    config.stash[_folder] = tempfile.TemporaryDirectory()
    os.environ.update(settings(Path(config.stash[_folder].name)))
    _close_gaps()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _folder in config.stash:
        os.environ.clear()
        os.environ.update(config.stash[_environment])
        config.stash[_folder].cleanup()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left alone with one at the end."""

    def rank(item: pytest.Item) -> int:
        found = (place for place, name in enumerate(LONG_FIRST) if name in item.nodeid)
        return next(found, len(LONG_FIRST))

    items.sort(key=rank)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Canaries must fail: they are collected only where they are asked for by name."""
    if collection_path == CANARIES and not any("canaries" in arg for arg in config.args):
        return True
    return None


def _close_gaps() -> None:
    from nbval import kernel as nbval_kernel
    from nbval.kernel import RunningKernel
    from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError

    if hasattr(IPyNbCell, "is_strict"):
        return
    get_message, get_kernel_message = RunningKernel.get_message, IPyNbFile.get_kernel_message
    execute, runtest = RunningKernel.execute_cell_input, IPyNbCell.runtest
    make_manager = nbval_kernel.KernelManager

    def make_manager_without_ports(**settings: Any) -> Any:
        manager = make_manager(**settings)
        listen_on_files(manager)
        return manager

    def remember_request(self: Any, *args: Any, **more: Any) -> str:
        self.current = execute(self, *args, **more)
        self.requests = {*getattr(self, "requests", ()), self.current}
        self.status, self.late = None, None
        return self.current

    def remember_reply(self: Any, stream: str, timeout: float | None = None) -> Any:
        message = get_message(self, stream, timeout)
        current = getattr(self, "current", None)
        if stream == "shell" and message["parent_header"].get("msg_id") == current:
            self.status = message["content"].get("status")
        return message

    def remember_late(self: Any, *args: Any, **more: Any) -> Any:
        message, kernel = get_kernel_message(self, *args, **more), self.kernel
        sender = message["parent_header"].get("msg_id")
        if sender != kernel.current and sender in kernel.requests and message["msg_type"] in SHOWN:
            kernel.late = str(message["content"].get("text") or message["msg_type"])
        return message

    def run_strictly(self: Any) -> None:
        kernel = self.parent.kernel
        try:
            runtest(self)
        except NbCellError as error:
            # An interrupted await raises CancelledError, which nbval takes for a plain error.
            if self.parent.timed_out and TIMEOUT not in str(error):
                seconds = self.config.option.nbval_cell_timeout
                self.raise_cell_error(f"{TIMEOUT} of {seconds:g} s", error.inner_traceback)
            raise
        errors = [out for out in self.test_outputs or [] if out["output_type"] == "error"]
        if getattr(kernel, "status", None) == "error" and not errors:
            self.raise_cell_error(SILENT_ERROR)
        if getattr(kernel, "late", None):
            self.raise_cell_error(LATE_OUTPUT, kernel.late)

    nbval_kernel.KernelManager = make_manager_without_ports
    RunningKernel.execute_cell_input = remember_request
    RunningKernel.get_message = remember_reply
    IPyNbFile.get_kernel_message = remember_late
    IPyNbCell.runtest = run_strictly
    IPyNbCell.is_strict = True
