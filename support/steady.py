"""A steady load that goes on while a cell does something else: `with steady_load(url, rate=150) as seen:`.

The requests are sent from a thread with a loop of its own, each when it is due, whatever the cell
and the server do. `support.load` measures latencies, from a process of its own; this counts failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import aiohttp
import numpy as np

from support import figures
from support.load import _above_zero, _on_this_machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PER_SECOND = 500  # a thread beside the kernel keeps no more


class Steady:
    """What came of the requests so far. Times are seconds since the load began.

    answered: when each request was due that was answered with a status below 400.
    failed: when each of the others was due, when it failed, and why: a status such as "503", or the name of an exception.
    marks: what `mark` noted, and when.
    """

    def __init__(self) -> None:
        self.answered: list[float] = []
        self.failed: list[tuple[float, float, str]] = []
        self.marks: list[tuple[float, str]] = []
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._began

    @property
    def reasons(self) -> Counter[str]:
        """How many failed, by reason."""
        return Counter(reason for *_, reason in self.failed)

    def mark(self, label: str) -> None:
        """Note that something happens now, for the figure."""
        self.marks.append((self.now, label))

    def failed_after(self, mark: int) -> Counter[str]:
        """How many failed, by reason, from that mark on, counted from 0, until the next one."""
        ends = [at for at, _ in self.marks[mark + 1 : mark + 2]] or [float("inf")]
        return Counter(reason for _, at, reason in self.failed if self.marks[mark][0] <= at < ends[0])

    def plot(self, axes: Axes, title: str, *, bin: float = 0.1, top: float | None = None) -> None:
        """Draw the requests that were due in each `bin` seconds, answered or failed, and the marks.

        top: the end of the y axis. A request that was in flight at a mark was due before it.
        """
        failed = [due for due, *_ in self.failed]
        end = max([*self.answered, *failed, *(at for at, _ in self.marks), bin])
        axes.hist(
            [self.answered, failed], np.arange(0, end + bin, bin), stacked=True,
            color=[figures.NETWORK, figures.BLOCKED], hatch=["", "///"], label=["answered", "failed"])  # fmt: skip
        top = top or 2 * axes.get_ylim()[1]
        for at, label in self.marks:
            axes.plot([at, at], [0, 0.8 * top], color=figures.RUNNING, linestyle=":")
            axes.annotate(f" {label}", (at, 0.75 * top), fontsize=9)
        axes.set(title=title, xlim=(0, end), ylim=(0, top))
        axes.set(xlabel="when the request was due (s)", ylabel=f"requests in {bin:g} s")
        axes.legend(loc="upper left", ncols=2)


@contextlib.contextmanager
def steady_load(url: str, *, rate: float, timeout: float = 5.0) -> Iterator[Steady]:
    """Send `rate` requests per second, evenly spaced, until the block is left; wait for those that are under way.

    The first answer has come when the block begins. A request that takes longer than `timeout` seconds fails.
    Raises ValueError for a url that is not on this machine, and for numbers out of range.
    """
    _on_this_machine(url)
    _above_zero("rate", rate, MOST_PER_SECOND)
    _above_zero("timeout", timeout, 60)
    seen, first, over = Steady(), threading.Event(), threading.Event()
    thread = threading.Thread(
        target=lambda: asyncio.run(_send(url, rate, timeout, seen, first, over)), name="steady load", daemon=True
    )
    thread.start()
    try:
        first.wait()
        yield seen
    finally:
        over.set()
        thread.join()


async def _send(
    url: str, rate: float, timeout: float, seen: Steady, first: threading.Event, over: threading.Event
) -> None:
    async def ask(due: float) -> None:
        try:
            async with session.get(url) as answer:
                await answer.read()
            reason = str(answer.status) if answer.status >= 400 else ""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = type(error).__name__
        seen.failed.append((due, seen.now, reason)) if reason else seen.answered.append(due)
        first.set()

    connector = aiohttp.TCPConnector(limit=0)
    limits = aiohttp.ClientTimeout(total=timeout)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=limits) as session, asyncio.TaskGroup() as group:
            number, seen._began = 0, time.monotonic()
            while not over.is_set():
                group.create_task(ask(number / rate))
                number += 1
                await asyncio.sleep(max(0.0, number / rate - seen.now))
    finally:
        first.set()
