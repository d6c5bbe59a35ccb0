"""The first and the last cell of a chapter, in a real kernel and outside of one."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator

import matplotlib
import pytest

from support import kernel as room
from tests.tools.live import LiveKernel

ALL_ZERO = "tasks left: 0, threads left: 0, child processes left: 0, sockets left: 0\n"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveKernel]:
    """A kernel with an open chapter, and little patience."""
    with LiveKernel(tmp_path_factory.mktemp("kernel")) as live:
        answer = live.run(
            "import asyncio, socket, subprocess, sys, threading, time\n"
            "from support import kernel\n"
            "kernel.open_chapter('99_test')\n"
            "kernel.PATIENCE_SECONDS = 0.3"
        )
        assert answer.status == "ok", answer.traceback
        yield live


# --- Opening ---------------------------------------------------------------------------


def test_opening_again_says_the_same_and_ticks_once(kernel: LiveKernel) -> None:
    first = kernel.run("kernel.open_chapter('99_test')")
    second = kernel.run("kernel.open_chapter('99_test'); print(len(kernel._tickers))")
    assert first.status == second.status == "ok"
    assert first.printed.count("\n") == 1
    assert second.printed == first.printed + "1\n"


def test_the_ticker_is_no_task(kernel: LiveKernel) -> None:
    answer = kernel.run("print(sum('tick' in repr(one) for one in asyncio.all_tasks()))")
    assert answer.printed == "0\n"


def test_interrupt_ends_an_await_and_the_next_cell_runs(kernel: LiveKernel) -> None:
    waits = []
    for _ in range(3):
        request = kernel.send("print('asleep', flush=True)\nawait asyncio.sleep(3600)")
        kernel.wait_until(request, "stream")
        started = time.monotonic()
        kernel.interrupt()
        answer = kernel.wait(request, seconds=10)
        waits.append(time.monotonic() - started)
        assert answer.status == "error"
        assert kernel.run("print('still here')").printed == "still here\n"
    assert min(waits) < 1.0, waits


@pytest.mark.parametrize("name", [3, "", None])
def test_opening_without_a_name(name: object) -> None:
    with pytest.raises(TypeError, match=re.escape(f"name of a chapter, not {name!r}")):
        room.open_chapter(name)  # type: ignore[arg-type]


def test_an_old_python_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "OLDEST_PYTHON", (99, 1))
    with pytest.raises(RuntimeError, match=r"the course needs 99\.1 or newer: run `make lab`"):
        room.open_chapter("99_test")


def test_an_escaped_group_is_an_error_with_a_digest(kernel: LiveKernel) -> None:
    answer = kernel.run(
        "async def fetch(url):\n"
        "    await asyncio.sleep(0)\n"
        "    raise ValueError(f'bad {url}')\n"
        "async with asyncio.TaskGroup() as group:\n"
        "    group.create_task(fetch('a'))\n"
        "    group.create_task(fetch('b'))"
    )
    assert answer.status == "error"
    assert answer.printed == ""
    assert [error["ename"] for error in answer.errors] == ["ExceptionGroup"]
    assert answer.errors[0]["evalue"] == "unhandled errors in a TaskGroup (2 sub-exceptions)"
    lines = re.sub(r"In\[\d+\]", "In[9]", answer.traceback).splitlines()
    assert lines == [
        "ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)",
        "│    Cell In[9], line 4: async with asyncio.TaskGroup() as group:",
        "├─ ValueError: bad a",
        "│    Cell In[9], line 3: raise ValueError(f'bad {url}')",
        "└─ ValueError: bad b",
        "     Cell In[9], line 3: raise ValueError(f'bad {url}')",
    ]


@pytest.mark.parametrize("tail", ["", " from None", " from group.exceptions[0]"])
def test_an_error_raised_while_handling_a_group_is_an_error(kernel: LiveKernel, tail: str) -> None:
    answer = kernel.run(
        "try:\n"
        "    raise ExceptionGroup('two', [ValueError('one')])\n"
        "except ExceptionGroup as group:\n"
        f"    raise KeyError('three'){tail}"
    )
    assert (answer.status, answer.printed) == ("error", "")
    assert [error["ename"] for error in answer.errors] == ["KeyError"]
    assert ("ExceptionGroup: two" in answer.traceback) == (tail == "")
    assert ("caused by" in answer.traceback) == (tail == " from group.exceptions[0]")


def test_library_frames_are_told_without_paths(kernel: LiveKernel) -> None:
    answer = kernel.run(
        "import json\ntry:\n    json.loads('{')\nexcept ValueError as error:\n    raise ExceptionGroup('two', [error])"
    )
    assert re.search(r"in raw_decode of json.decoder \(decoder.py, line \d+\)", answer.traceback)
    assert "/" not in answer.traceback


def test_a_group_whose_text_raises_does_not_hang_the_kernel(kernel: LiveKernel) -> None:
    answer = kernel.run(
        "class Mute(ExceptionGroup):\n"
        "    def __str__(self): raise RuntimeError('no text')\n"
        "raise Mute('x', [ValueError('one')])",
        seconds=10,
    )
    assert answer.status == "error"
    assert answer.errors[0]["ename"] == "Mute"
    assert kernel.run("raise ExceptionGroup('y', [ValueError()])").errors[0]["evalue"].startswith("y")


@pytest.mark.parametrize(
    ("code", "name"),
    [("1 / 0", "ZeroDivisionError"), ("a =", "SyntaxError"), ("raise KeyboardInterrupt", None)],
)
def test_other_errors_look_as_always(kernel: LiveKernel, code: str, name: str | None) -> None:
    answer = kernel.run(code)
    assert (answer.status, answer.printed) == ("error", "")
    assert [error["ename"] for error in answer.errors] == [name or "KeyboardInterrupt"]
    assert code.split()[0] in answer.traceback


# --- The leak report -------------------------------------------------------------------


def test_a_clean_chapter_leaves_nothing(kernel: LiveKernel) -> None:
    kernel.run("await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.01) for _ in range(3)))")
    names = "print(any(one.name.startswith('asyncio') for one in threading.enumerate()))"
    assert kernel.run(names).printed == "True\n"
    assert kernel.run("kernel.close_chapter()").printed == ALL_ZERO
    assert kernel.run(names).printed == "False\n"
    assert kernel.run("print(await asyncio.to_thread(lambda: 'again'))").printed == "again\n"
    assert kernel.run("kernel.close_chapter()").printed == ALL_ZERO


@pytest.mark.parametrize(
    ("start", "stop", "count", "told"),
    [
        (
            "async def nap(): await asyncio.sleep(3600)\nleft = asyncio.create_task(nap(), name='napper')",
            "left.cancel()",
            "tasks left: 1",
            'task "napper" in nap',
        ),
        (
            "left = threading.Event()\nthreading.Thread(target=left.wait, name='waiter', daemon=True).start()",
            "left.set()",
            "threads left: 1",
            'thread "waiter"',
        ),
        (
            "left = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)",
            "left.stdin.close(); left.wait()",
            "child processes left: 1",
            "child process python",
        ),
        (
            "left = socket.create_server(('127.0.0.1', 0))",
            "left.close()",
            "sockets left: 1",
            "socket on port",
        ),
    ],
    ids=["task", "thread", "process", "socket"],
)
def test_each_leak_is_counted_and_named(kernel: LiveKernel, start: str, stop: str, count: str, told: str) -> None:
    assert kernel.run(start).status == "ok"
    report = kernel.run("kernel.close_chapter()").printed
    kernel.run(stop)
    assert count in report
    assert report.count(": 0") == 3
    assert f"still there: {told}" in report
    assert kernel.run("kernel.close_chapter()").printed == ALL_ZERO


def test_what_is_about_to_end_is_waited_for(kernel: LiveKernel) -> None:
    kernel.run("kernel.PATIENCE_SECONDS = 30")
    kernel.run("threading.Thread(target=time.sleep, args=[0.3]).start()")
    kernel.run("left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(0.3)'])")
    assert kernel.run("kernel.close_chapter()").printed == ALL_ZERO
    kernel.run("kernel.PATIENCE_SECONDS = 0.3")


def test_reopening_does_not_hide_a_leak(kernel: LiveKernel) -> None:
    kernel.run("left = socket.create_server(('127.0.0.1', 0)); kernel.open_chapter('99_test')")
    assert "sockets left: 1" in kernel.run("kernel.close_chapter()").printed
    kernel.run("left.close()")


def test_stoppers_run_once_newest_first(kernel: LiveKernel) -> None:
    kernel.run(
        "for name in ('first', 'second', 'first'):\n    kernel.at_close(name, lambda name=name: print('stop', name))"
    )
    assert kernel.run("kernel.close_chapter()").printed == "stop first\nstop second\n" + ALL_ZERO
    assert kernel.run("kernel.close_chapter()").printed == ALL_ZERO


def test_a_stopper_that_cannot_be_called() -> None:
    with pytest.raises(TypeError, match=r"at_close\('pool', ...\) needs a function to call, not 3"):
        room.at_close("pool", 3)  # type: ignore[arg-type]


def test_without_a_kernel_a_script_can_do_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "_before", None)
    with pytest.raises(RuntimeError, match="No chapter is open: run the setup cell"):
        room.close_chapter()

    async def chapter() -> None:
        room.open_chapter("99_test")
        await asyncio.to_thread(time.sleep, 0.01)
        room.close_chapter()

    with matplotlib.rc_context():
        asyncio.run(chapter())
    assert capsys.readouterr().out.endswith(ALL_ZERO)
