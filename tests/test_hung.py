"""What each tool says of a service that hangs; and nothing of the service is left, however the diagnosis ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from support import modules
from support.hung import _named_by_pstree, _named_by_py_spy, diagnose

SOURCE = """
import asyncio, time
async def waits():
    async with lock():
        pass
def lock():
    held = asyncio.Semaphore(0)
    return held
async def holds():
    time.sleep(60)
async def returns():
    pass
async def fails():
    raise KeyError("lost")
def plain():
    pass
"""


@pytest.fixture(autouse=True)
def written() -> Iterator[None]:
    modules.write_module("stuck_of_this_test", SOURCE)
    yield
    modules.forget()


def services(of: psutil.Process) -> list[psutil.Process]:
    return [child for child in of.children() if any("hung_process" in part for part in child.cmdline())]


def test_each_fault_is_named_by_another_tool() -> None:
    async def both() -> list[dict[str, str]]:
        return await asyncio.gather(*[diagnose("stuck_of_this_test", fault) for fault in ("waits", "holds")])

    waits, holds = asyncio.run(both())
    tools = ["get_stack", "chain of awaits", "py-spy", "Watchdog", *["pstree"][: sys.version_info >= (3, 14)]]
    assert [*waits] == [*holds] == tools
    seen = [[view[tool] for tool in ("get_stack", "chain of awaits", "Watchdog")] for view in (waits, holds)]
    assert seen == [["serve", "waits", "silent"], ["no answer", "no answer", "holds"]]
    assert holds["py-spy"] in ("holds", "refused")
    assert waits["py-spy"] == ("refused" if holds["py-spy"] == "refused" else "select")
    assert not services(psutil.Process())


def test_a_tool_that_says_nothing_was_refused_and_the_innermost_of_the_module_counts() -> None:
    assert (_named_by_py_spy(""), _named_by_py_spy(None), _named_by_pstree("", "/a/stuck.py")) == (
        "refused", "missing", "refused")  # fmt: skip
    tree = "└── (T) Task-1\n    └──  serve /s/hung_process.py:60\n        └──  transfer /a/stuck.py:7\n            └──  Lock.acquire /lib/asyncio/locks.py:112\n"
    assert _named_by_pstree(tree, "/a/stuck.py") == "transfer"
    assert _named_by_pstree(tree, "/a/other.py") == "no answer"


@pytest.mark.parametrize(
    ("module", "function", "error", "sentence"),
    [
        ("stuck_of_this_test", "returns", RuntimeError, "stuck_of_this_test.returns does not hang, it returned"),
        ("stuck_of_this_test", "fails", RuntimeError, "stuck_of_this_test.fails does not hang, it raised KeyError"),
        ("stuck_of_this_test", "plain", ValueError, "has no coroutine function 'plain'"),
        ("stuck_of_this_test", "absent", ValueError, "has no coroutine function 'absent'"),
        ("no_such_module", "waits", ValueError, "no module 'no_such_module': run its %%module cell"),
    ],
)
def test_what_does_not_hang_is_told_in_a_sentence(module, function, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        asyncio.run(diagnose(module, function))


def test_cancelled_it_leaves_no_process_and_a_group_of_its_own_kept_it_from_interrupts() -> None:
    async def main() -> psutil.Process:
        diagnosis = asyncio.create_task(diagnose("stuck_of_this_test", "waits"))
        while not (found := services(psutil.Process())):
            await asyncio.sleep(0.01)
        if os.name == "posix":
            assert os.getpgid(found[0].pid) == found[0].pid != os.getpgid(0)
        diagnosis.cancel()
        await asyncio.wait([diagnosis])
        assert diagnosis.cancelled()
        return found[0]

    assert not asyncio.run(main()).is_running()


@pytest.mark.skipif(os.name != "posix", reason="there is no kill -9")
def test_after_kill_9_of_its_parent_the_service_ends() -> None:
    source = f"import sys, asyncio; sys.path[:] = {sys.path!r}; from support.hung import diagnose; import support.hung as hung\n"
    source += "async def never(command): print('hangs', flush=True); await asyncio.sleep(60)\nhung._output = never\n"
    source += "asyncio.run(diagnose('stuck_of_this_test', 'holds', timeout=90))"
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "hangs\n"
        (service,) = services(psutil.Process(parent.pid))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while service.is_running() and service.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not service.is_running() or service.status() == psutil.STATUS_ZOMBIE
