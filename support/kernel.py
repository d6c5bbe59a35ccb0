"""What the first and the last cell of a chapter load.

`open_chapter` prepares the kernel: figure style, a readable display of exception
groups, an interrupt button that works while a cell awaits, and a note of what was
already running. `close_chapter` stops what the chapter started, and reports what is
still there. A later chapter adds its own clean-up with `at_close`.

Both print the same lines on every machine: versions go into the corner of each figure.
"""

from __future__ import annotations

import asyncio
import gc
import linecache
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

import psutil

OLDEST_PYTHON = (3, 11)
TICK_SECONDS = 0.1
PATIENCE_SECONDS = 3.0

# A notebook kernel is built from these: their tasks and threads are not the reader's.
_MACHINERY = {"IPython", "ipykernel", "tornado", "zmq", "debugpy", "pydevd", "_pydevd_bundle"}
# Helpers of the standard library that live as long as the process that they help.
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")

_Things = dict[tuple[str, Any], str]  # (kind, identity) of what runs -> how to name it
chapter = ""  # the one that is open in this kernel
_before: _Things | None = None
_stoppers: dict[str, Callable[[], object]] = {}
_tickers: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}


def open_chapter(name: str) -> None:
    """Prepare this kernel for a chapter, and say so in one line. Safe to run again.

    `name` is the chapter's file name without its ending, such as "01_event_loop".
    Raises TypeError if it is not a text, RuntimeError if Python is too old.
    """
    global _before, chapter
    if not isinstance(name, str) or not name:
        raise TypeError(f"open_chapter() needs the name of a chapter, not {name!r}.")
    if sys.version_info < OLDEST_PYTHON:
        raise RuntimeError(
            f"This kernel runs Python {platform.python_version()}, and the course needs "
            f"{'.'.join(map(str, OLDEST_PYTHON))} or newer: run `make lab` to get a newer one."
        )
    from support.figures import use_style
    from support.imports import name_submodules

    name_submodules()  # the imports of an earlier run of the setup cell may have been interrupted
    use_style()
    _show_exception_groups()
    _let_interrupts_through()
    if shell := _shell():
        from support.modules import register

        register(shell)
    if _before is None:
        _before = _running_now()
    chapter = name
    print(f"Chapter {name} is open. Its last cell closes it, and reports what was left running.")


def close_chapter() -> None:
    """Stop what the chapter started, then print how many tasks, threads, child
    processes and sockets are left that were not there when the chapter was opened.

    Waits up to `PATIENCE_SECONDS` for threads and processes that are about to end.
    Raises RuntimeError if no chapter is open.
    """
    if _before is None:
        raise RuntimeError("No chapter is open: run the setup cell, then this one.")
    from support.servers import stop_all

    for stop in [*reversed(_stoppers.values()), stop_all]:
        stop()
    _stoppers.clear()
    _release_default_executor()
    gc.collect()  # a connection that nobody holds any more is closed when Python finds it: now, and not some time later
    left = _left_after_waiting()
    kinds = ("tasks", "threads", "child processes", "sockets")
    counts = {kind: sum(key[0] == kind for key in left) for kind in kinds}
    print(", ".join(f"{kind} left: {count}" for kind, count in counts.items()))
    for label in left.values():
        print(f"  still there: {label}")


def at_close(name: str, stop: Callable[[], object]) -> None:
    """Have `close_chapter` call `stop()`, newest first. The same name again replaces it.

    Raises TypeError if `stop` cannot be called.
    """
    if not callable(stop):
        raise TypeError(f"at_close({name!r}, ...) needs a function to call, not {stop!r}.")
    _stoppers.pop(name, None)
    _stoppers[name] = stop


# --- The interrupt button -------------------------------------------------------------


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _let_interrupts_through() -> None:
    """Wake the loop ten times a second.

    Python handles a signal between two steps of the main thread, and there are none
    while the loop waits for a far timer: without this, the interrupt button does
    nothing during `await asyncio.sleep(30)` (ipykernel#881).
    """
    loop = _running_loop()
    if loop is None or loop in _tickers:
        return

    def tick() -> None:
        _tickers[loop] = loop.call_later(TICK_SECONDS, tick)

    tick()


# --- Exception groups -----------------------------------------------------------------


def _shell() -> Any:
    """The running IPython shell, or None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def _show_exception_groups() -> None:
    """Show a group that escapes a cell as a digest, and as an error.

    On its own, the kernel prints the traceback of a group, and of an error raised
    while one was handled, to stderr: it sends no error message, so that whoever reads
    only messages, nbval among them, takes the cell for a success.
    """
    shell = _shell()
    if shell is None or not hasattr(shell, "_showtraceback"):  # not a notebook
        return

    def show(shell: Any, kind: type, error: BaseException, tb: Any, tb_offset: Any = None) -> None:
        if not any(isinstance(link, BaseExceptionGroup) for link in _chain(error)):
            shell.showtraceback(running_compiled_code=not isinstance(error, SyntaxError))
            return
        try:
            shown, text = "\n".join(digest(error)), str(error)
        except Exception:  # an error whose text raises must not be swallowed
            shown, text = "".join(traceback.format_exception(kind, error, tb)), kind.__name__
        shell._showtraceback(kind, text, [shown])

    shell.set_custom_exc((BaseException,), show)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what was being handled when it was raised, and so on: the chain that
    decides whether IPython's own display gives up."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__context__


def digest(error: BaseException) -> list[str]:
    """An exception group as lines of a tree: each error, where it was raised, and what
    it came from. It holds no paths and no addresses of its own."""
    return list(_tree(error, "", "", set()))


def _tree(error: BaseException, first: str, rest: str, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    text = str(error)
    yield f"{first}{type(error).__name__}{': ' if text else ''}{text}"
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    stem = f"{rest}│    " if parts else f"{rest}  "
    yield from (stem + line for line in _place(error))
    for position, part in enumerate(parts, start=1):
        branch, below = ("└─ ", "   ") if position == len(parts) else ("├─ ", "│  ")
        yield from _tree(part, rest + branch, rest + below, seen)
    origin = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if origin is not None and id(origin) not in seen:
        yield f"{rest}  {'caused by' if error.__cause__ else 'raised while handling'}:"
        yield from _tree(origin, f"{rest}  ", f"{rest}  ", seen)


def _place(error: BaseException) -> Iterator[str]:
    """Where an error was raised: the last line of a cell, and the library below it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return
    name_of = getattr(getattr(_shell(), "compile", None), "format_code_name", lambda _: None)
    in_cells = [(frame, line) for frame, line in frames if name_of(frame.f_code.co_filename)]
    if in_cells:
        frame, line = in_cells[-1]
        file = frame.f_code.co_filename
        yield f"{' '.join(name_of(file))}, line {line}: {linecache.getline(file, line).strip()}"
    frame, line = frames[-1]
    if not in_cells or (frames[-1] != in_cells[-1] and not isinstance(error, BaseExceptionGroup)):
        module, file = frame.f_globals.get("__name__", "?"), PurePath(frame.f_code.co_filename).name
        yield f"in {frame.f_code.co_name} of {module} ({file}, line {line})"


# --- The leak report ------------------------------------------------------------------


def _running_now() -> _Things:
    process = psutil.Process()
    return dict([*_tasks(), *_threads(), *_processes(process), *_sockets(process)])


def _tasks() -> Iterator[tuple[tuple[str, Any], str]]:
    loop = _running_loop()
    for task in asyncio.all_tasks(loop) - {asyncio.current_task(loop)} if loop else ():
        coroutine = task.get_coro()
        code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None)
        if not (code and _MACHINERY & set(PurePath(code.co_filename).parts)):
            name = getattr(coroutine, "__qualname__", type(coroutine).__name__)
            yield ("tasks", task), f'task "{task.get_name()}" in {name}'


def _threads() -> Iterator[tuple[tuple[str, Any], str]]:
    for thread in threading.enumerate():
        target = getattr(thread, "_target", None)
        origins = [type(thread).__module__, getattr(target, "__module__", None) or ""]
        if thread is not threading.main_thread() and not (_MACHINERY & {origin.split(".")[0] for origin in origins}):
            yield ("threads", thread), f'thread "{thread.name}"'


def _processes(process: psutil.Process) -> Iterator[tuple[tuple[str, Any], str]]:
    for child in process.children(recursive=True):
        try:
            command, name = " ".join(child.cmdline()), child.name()
        except psutil.NoSuchProcess:  # it ended meanwhile
            continue
        if not any(helper in command for helper in _HELPERS):
            yield ("child processes", child), f"child process {name}, number {child.pid}"


def _sockets(process: psutil.Process) -> Iterator[tuple[tuple[str, Any], str]]:
    """Internet sockets of this process, without those that the kernel speaks over."""
    app = getattr(getattr(_shell(), "kernel", None), "parent", None)
    names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
    kernel_ports = {getattr(app, name, None) for name in names}
    for link in process.net_connections(kind="inet"):
        ports = [end.port for end in (link.laddr, link.raddr) if end]
        if not kernel_ports.intersection(ports):
            identity = (link.fd, link.laddr, link.raddr)
            yield ("sockets", identity), f"socket on port {' to port '.join(map(str, ports))}"


def _release_default_executor() -> None:
    """Let the threads behind `asyncio.to_thread` end, and give the loop a new executor.

    They wait for more work as long as the loop lives. Closing the executor through the
    loop would refuse `to_thread` for good.
    """
    loop = _running_loop()
    executor = getattr(loop, "_default_executor", None)
    if executor is not None:
        loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))
        executor.shutdown(wait=False, cancel_futures=True)


def _left_after_waiting() -> _Things:
    """What was not there before, and did not end in time either."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    new = [key for key in _running_now() if key not in _before]
    for kind, thread in new:
        if kind == "threads":
            thread.join(max(0.0, deadline - time.monotonic()))
    children = [child for kind, child in new if kind == "child processes"]
    psutil.wait_procs(children, timeout=max(0.0, deadline - time.monotonic()))
    return {key: label for key, label in _running_now().items() if key not in _before}
