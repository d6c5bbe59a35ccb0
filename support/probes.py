"""Small measuring devices: a stopwatch, a heartbeat beside some work, a count of what a loop asks its selector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import math
import os
import selectors
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

READ_WITHIN = 1.0  # seconds: a process that does not wait until then is read while it computes

async def seconds(awaitable: Awaitable[Any]) -> float:
    """Real seconds until ``awaitable`` is done. Its exceptions pass."""
    start = time.perf_counter()
    await awaitable
    return time.perf_counter() - start


async def cost_us(action: Callable[[], Awaitable[Any]], count: int) -> float:
    """Microseconds for one ``await action()``, the mean of ``count`` in a row.

    Raises ValueError when ``count`` is not a positive whole number.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"cost_us() repeats an action a positive whole number of times, not {count!r}.")
    start = time.perf_counter()
    for _ in range(count):
        await action()
    return (time.perf_counter() - start) / count * 1e6


async def parked_bytes(count: int) -> float:
    """Bytes that one waiting task holds, the mean over ``count`` tasks that sleep on this loop; they are cancelled."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tasks = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(count)]
        await asyncio.sleep(0)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return held / count


async def lag_beside(work: Callable[[], Any], *, beat: float = 0.01, margin: float = 0.05) -> list[tuple[float, float]]:
    """How late a heartbeat is, on this loop, while ``work()`` runs.

    Args:
        work: a function without arguments; what it returns is awaited if it can be.
        beat: seconds between two beats.
        margin: seconds of heartbeat before and after the work.

    Returns:
        One pair a beat: when it was due since the start, and how late it came; both in milliseconds.
    """
    beats: list[tuple[float, float]] = []

    async def heart() -> None:
        start = due = time.perf_counter()
        while True:
            due = max(due + beat, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())
            beats.append((1000 * (due - start), 1000 * (time.perf_counter() - due)))

    pulse = asyncio.create_task(heart(), name="heartbeat")
    try:
        await asyncio.sleep(margin)
        started = work()
        if inspect.isawaitable(started):
            await started
        await asyncio.sleep(margin)
    finally:
        pulse.cancel()
        await asyncio.wait([pulse])
    return beats


async def lag_of(
    work: Callable[[], Awaitable[Any]], *, beat: float = 0.002, margin: float = 0.02
) -> tuple[float, float, float]:
    """What it costs this loop to await ``work()``, in milliseconds.

    Args:
        work: a function without arguments, whose result is awaited. Its exceptions pass.
        beat, margin: as for ``lag_beside``.

    Returns:
        The worst lag of a heartbeat; the wall time of the work; the CPU time of this process meanwhile, all its threads.
    """
    took: list[float] = []

    async def timed() -> None:
        start, cpu = time.perf_counter(), time.process_time()
        await work()
        took.extend((1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu)))

    beats = await lag_beside(timed, beat=beat, margin=margin)
    return max(late for _, late in beats), took[0], took[1]


@dataclass(frozen=True)
class Beside:
    """What was seen of a server from outside. Times are in seconds since the watch began.

    ``memory``: when, and bytes in memory (the resident set). ``waits``: when a request was due, and
    how long after that its answer was there.
    """

    memory: list[tuple[float, int]]
    waits: list[tuple[float, float]]

    @property
    def growth(self) -> int:
        """Bytes between the first look and the highest."""
        return max(size for _, size in self.memory) - self.memory[0][1]

    @property
    def stall(self) -> float:
        """The longest wait, in seconds."""
        return max(wait for _, wait in self.waits)


async def server_beside(
    server: Any, work: Callable[[], Any], *, path: str = "/ping", every: float = 0.02, margin: float = 0.1
) -> Beside:
    """Watch a server while ``work()`` runs here: its memory, and the waits of a neighbour who asks for ``path``.

    The neighbour asks at fixed times, whether earlier answers have come or not, and each wait counts
    from the time at which the request was due: a stall is seen by all that fall into it.

    Args:
        server: what ``serve`` returned; or any object with a ``url`` and the ``pid`` of a process of this machine.
        work: a function without arguments; what it returns is awaited if it can be. Its exceptions pass.
        every: seconds between two looks, and two requests. A peak of memory that is shorter can be missed.
        margin: seconds of looking before and after the work.

    Raises:
        ValueError: there is no process ``server.pid``.
        aiohttp.ClientError: the server does not answer, or with an error.
    """
    import aiohttp

    if not psutil.pid_exists(server.pid):
        raise ValueError(f"server_beside() needs a server that runs, and there is no process {server.pid!r}.")
    process, seen, over = psutil.Process(server.pid), Beside([], []), False
    start = time.perf_counter()

    async def ask(due: float) -> None:
        async with session.get(server.url + path, raise_for_status=True) as answer:
            await answer.read()
        seen.waits.append((due, time.perf_counter() - start - due))

    async def look() -> None:
        for number in itertools.count():
            await asyncio.sleep(start + number * every - time.perf_counter())
            if over:
                return
            seen.memory.append((time.perf_counter() - start, process.memory_info().rss))
            group.create_task(ask(number * every))

    without_limit = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=without_limit) as session, asyncio.TaskGroup() as group:
        group.create_task(look())
        await asyncio.sleep(margin)
        started = work()
        if inspect.isawaitable(started):
            await started
        await asyncio.sleep(margin)
        over = True
    seen.waits.sort()
    return seen


async def process_seconds(pids: Sequence[int], awaitable: Awaitable[Any]) -> tuple[Any, float]:
    """What ``awaitable`` returns, and the processor seconds that the processes ``pids`` of this machine used meanwhile.

    They do not grow when other programs keep the machine busy. Linux counts them exactly, other
    systems in steps of about 10 ms. Not a number (``math.nan``) when one of the processes is not
    here, as with a database on another machine. Exceptions of ``awaitable`` pass.

    A process is read when it waits: Linux adds up only then, or every few milliseconds. And a server is not
    done when its answer is there: what it does after the last byte belongs to it as well. One that computes
    all the time is read after READ_WITHIN seconds.
    """
    until = time.monotonic() + READ_WITHIN
    while _computes(pids) and time.monotonic() < until:
        time.sleep(0.0005)  # not asyncio.sleep: an awaitable that is a task already would begin meanwhile
    before = sum(_used_by(pid) for pid in pids)
    result = await awaitable
    until = time.monotonic() + READ_WITHIN
    while _computes(pids) and time.monotonic() < until:
        await asyncio.sleep(0.0005)
    return result, sum(_used_by(pid) for pid in pids) - before


def _computes(pids: Sequence[int]) -> bool:
    """Whether one of these processes runs, or could if it had a processor. False where there is no /proc."""
    with contextlib.suppress(OSError, IndexError):
        return any(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R" for pid in pids)
    return False


def _used_by(pid: int) -> float:
    try:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[0]) / 1e9  # of the first thread: a backend of Postgres has no other
        return sum(psutil.Process(pid).cpu_times()[:2])
    except (psutil.Error, ValueError):
        return math.nan


class _CountingSelector(selectors.DefaultSelector):
    calls = 0

    def select(self, timeout: float | None = None) -> Any:
        self.calls += 1
        return super().select(timeout)


async def count_selects(main: Callable[[], Any]) -> tuple[int, float]:
    """Run ``main()`` on a fresh real loop in a thread of its own.

    Returns how often that loop asked its selector for work, and the CPU seconds of its thread.
    """

    def run() -> tuple[int, float]:
        selector, start = _CountingSelector(), time.thread_time()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            runner.run(main())
        return selector.calls, time.thread_time() - start

    return await asyncio.to_thread(run)


def read_slow_file(wait: float) -> str:
    """Open a file, read it, and have to wait ``wait`` seconds for its content; returns the content.

    The file is a FIFO, whose reader waits for its writer, as one waits for a disk or a network
    mount. Where the system has no FIFO, an ordinary file is awaited by other means.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "slow")

        def write_late() -> None:
            time.sleep(wait)
            with open(path, "w", encoding="utf-8") as file:
                file.write("late")

        writer = threading.Thread(target=write_late)
        if hasattr(os, "mkfifo"):
            os.mkfifo(path)
            writer.start()
        else:
            writer.start()
            writer.join()
        with open(path, encoding="utf-8") as file:
            content = file.read()
        writer.join()
    return content


class Memory:
    """What Python objects took: ``peak`` in bytes, above what there was when the watch began."""

    peak = 0


@contextlib.contextmanager
def traced_memory() -> Iterator[Memory]:
    """``with traced_memory() as memory:`` then ``memory.peak``. Slows what it watches about twofold.

    Raises RuntimeError when a trace is running already: the two would measure each other.
    """
    if tracemalloc.is_tracing():
        raise RuntimeError("traced_memory(): memory is being traced already; end that trace first.")
    memory = Memory()
    gc.freeze()  # the collector looks at new objects only: how many a notebook holds already is no part of the measurement
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield memory
        memory.peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        gc.unfreeze()


@contextlib.contextmanager
def stalled_reader(seconds: float) -> Iterator[IO[str]]:
    """A text file to write to, whose reader does not read for ``seconds``: a terminal that hangs, a full log pipe.

    Behind it is a pipe, as behind the output of a service. It holds some tens of kilobytes; then a writer waits.
    """
    reading, writing = os.pipe()
    gone = threading.Event()

    def read_late() -> None:
        gone.wait(seconds)
        with open(reading, "rb") as pipe:
            while pipe.read(1 << 16):
                pass

    reader = threading.Thread(target=read_late)
    reader.start()
    try:
        with open(writing, "w", 8192, encoding="utf-8") as file:  # from Python 3.14 on the default is 16 times as much
            yield file
            gone.set()
    finally:
        gone.set()
        reader.join()


async def read_slowly(
    url: str, pieces: int, sent: list[int], ended: list[Any], *, size: int = 2**16, pause: float = 0.002
) -> list[tuple[float, int, int]]:
    """Read the first ``pieces`` of an answer, a pause after each, and leave in the middle of it.

    Args:
        sent: the upstream appends to it how many bytes it sends. It is emptied first.
        ended: the gateway between the two appends to it when the exchange has ended. It is emptied first, and waited for.
        size: bytes of a piece, and of what is read ahead.
        pause: seconds after each piece.

    Returns a row for each piece: seconds since the start, bytes that were sent until then, bytes that were read.
    Raises asyncio.IncompleteReadError for an answer that is shorter, and aiohttp.ClientError when there is none.
    """
    import aiohttp

    sent.clear()
    ended.clear()
    rows, start = [], time.perf_counter()
    async with aiohttp.ClientSession(read_bufsize=size) as session, session.get(url) as answer:
        for number in range(1, pieces + 1):
            await answer.content.readexactly(size)
            rows.append((time.perf_counter() - start, sum(sent), number * size))
            await asyncio.sleep(pause)
    while not ended:
        await asyncio.sleep(0.01)  # the gateway has yet to hear that the client has left
    return rows
