"""The virtual clock: asyncio code whose waiting takes no time.

``simulate(main)`` runs a coroutine function on a fresh event loop. When nothing is ready, the
loop does not wait for the next timer: it moves its clock to it. A simulated hour costs
milliseconds, the numbers are exact, and a second run gives the same numbers.

``loop.time()`` is the simulated time in seconds, from 0.0. Timers due at the same instant fire in
the order in which they were set. Code that holds the loop takes no simulated time, unless it says
so with ``occupy_loop(seconds)``. ``time.sleep(seconds)`` says so too: it would hold a real loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import math
import re
import sys
import time
from asyncio import base_events, events
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from .guard import SimulationError, call_in_thread, occupied_virtually, virtual_time_sleep
from .waits import reader_frame, wait_of

T = TypeVar("T")

# Loop turns without the clock moving, after which a program is taken to repeat sleep(0) for ever.
STANDSTILL = 1_000_000
_TURNS_TO_TIDY_UP = 10_000
# Turns at one instant in which only timers were due, after which the clock moves on by its resolution.
# A remainder of rounding, such as 1e-17 s, is no time at all: "sleep until it is gone" would never end.
_TURNS_FOR_A_REMAINDER = 100
_RESOLUTION = 1e-9
_NEEDS_THE_REAL_WORLD = (
    "run_in_executor", "getaddrinfo", "getnameinfo", "subprocess_exec", "subprocess_shell",
    "connect_read_pipe", "connect_write_pipe", "add_signal_handler", "remove_signal_handler",
    "create_connection", "create_server", "create_unix_connection", "create_unix_server",
    "create_datagram_endpoint", "connect_accepted_socket", "start_tls", "sendfile",
    "sock_sendfile", "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into",
    "sock_sendall", "sock_sendto", "sock_connect", "sock_accept", "add_reader", "remove_reader",
    "add_writer", "remove_writer",
)  # fmt: skip


def _on_grid(seconds: float) -> float:
    """Put a sum that misses its decimal by rounding only back on it: 0.1 + 0.1 + 0.1 is 0.3."""
    if not math.isfinite(seconds):
        return seconds
    nearest = round(seconds, 9)
    return nearest if abs(nearest - seconds) <= 4 * math.ulp(seconds) else seconds


class _Instant(float):
    """A time that knows its place, because a heap alone would mix up timers with equal times."""

    __slots__ = ("place",)

    def __lt__(self, other: float) -> bool:
        return self.place < other.place if type(other) is _Instant else float(self) < other


class _JumpingSelector:
    """Stands where a selector stands, and moves the clock instead of waiting."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop._pass_time(timeout)
        return []


class VirtualLoop(base_events.BaseEventLoop):
    """An asyncio event loop with a clock of its own, and no way to the real world.

    name: the simulated program, for messages. limit: in simulated seconds. standstill: turns of
    the loop without the clock moving. ``on_occupied``, when set, is called with
    (start, end, frame) whenever simulated code holds the loop.
    """

    is_virtual = True

    def __init__(self, name: str = "main", limit: float = math.inf, standstill: int = STANDSTILL):
        super().__init__()
        self.failure: SimulationError | None = None
        self.on_occupied: Callable[[float, float, FrameType], None] | None = None
        self._name, self._limit, self._standstill = name, limit, standstill
        self._now, self._turns_at_this_instant, self._remainders = 0.0, 0, 0
        self._clock_resolution = _RESOLUTION
        self._places = itertools.count()
        self._selector = _JumpingSelector(self)

    def time(self) -> float:
        """Simulated seconds since the start."""
        return self._now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        if when is None or math.isnan(when):
            raise TypeError(f"a timer needs a time in seconds, not {when!r}")
        instant = _Instant(_on_grid(when))
        instant.place = (round(when, 9), next(self._places))
        return super().call_at(instant, callback, *args, context=context)

    def move_to(self, when: float) -> None:
        """Set the clock to ``when`` without running anything; it never goes back."""
        self._now = max(self._now, _on_grid(float(when)))
        self._turns_at_this_instant = self._remainders = 0
        # After a simulated year the steps of a float are wider than a nanosecond.
        self._clock_resolution = max(_RESOLUTION, 2 * math.ulp(self._now))

    def _pass_time(self, timeout: float | None) -> None:
        """A turn of the loop begins: go to the next timer, or see that there is none."""
        self._turns_at_this_instant += 1
        if self._ready or timeout == 0:
            if self._turns_at_this_instant > self._standstill:
                self._fail(
                    f"stopped at {self._now:g} s: the loop turned {self._standstill} times while "
                    f"the clock stood still, so something repeats sleep(0) for ever; let it sleep."
                )
            elif not self._ready:
                self._remainders += 1
                if self._remainders > _TURNS_FOR_A_REMAINDER:
                    self._now, self._remainders = self._now + self._clock_resolution, 0
        elif timeout is None or self._scheduled[0]._when == math.inf:
            self._fail(
                f"is stuck at {self._now:g} s: no task is ready and no timer is set, so nobody "
                f"can wake {self._waiting_tasks()}."
            )
        elif self._scheduled[0]._when > self._limit:
            self._fail(
                f"has not ended after {self._limit:g} simulated seconds; still waiting: "
                f"{self._waiting_tasks()}."
            )
        else:
            self.move_to(self._scheduled[0]._when)

    def _fail(self, what_happened: str) -> SimulationError:
        """Remember the first failure, which the program may swallow, and stop the loop."""
        if self.failure is None:
            self.failure = SimulationError(f"simulate({self._name}) {what_happened}")
            self._standstill = min(self._standstill, _TURNS_TO_TIDY_UP)
        self.stop()
        return self.failure

    def _waiting_tasks(self) -> str:
        """The tasks that wait and what they wait in, equal ones counted."""
        counted = Counter(sorted(map(_where_task_waits, asyncio.all_tasks(self))))
        texts = [f"{n} x {text}" if n > 1 else text for text, n in counted.items()]
        more = [f"{len(texts) - 5} others"] if len(texts) > 5 else []
        return ", ".join(texts[:5] + more) or "the program"

    def _write_to_self(self) -> None:
        pass  # select() never waits, so there is nobody to wake

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def tidy_up(self) -> None:
        """Do what asyncio.run does at the end: cancel the tasks left, close async generators."""
        left = asyncio.all_tasks(self)
        for task in left:
            task.cancel()
        try:
            if left:
                self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.run_until_complete(self.shutdown_asyncgens())
        except RuntimeError:
            if self.failure is None:
                raise
        for task in left:
            task._log_destroy_pending = False  # the failure says it already
            if task.done() and not task.cancelled() and (error := task.exception()):
                message = "unhandled exception during simulate() shutdown"
                context = {"message": message, "exception": error, "task": task}
                self.call_exception_handler(context)


def _forbid(call: str) -> None:
    def method(self: VirtualLoop, *args: Any, **kwargs: Any) -> Any:
        frame = reader_frame(sys._getframe(1))
        where = f", called in {frame.f_code.co_name} (line {frame.f_lineno})" if frame else ""
        raise self._fail(
            f"cannot run loop.{call}(){where}: a virtual clock has no network, files, threads or "
            f"processes; run {self._name} on the real loop, with await."
        )

    method.__name__ = call
    setattr(VirtualLoop, call, method)


for _call in _NEEDS_THE_REAL_WORLD:
    _forbid(_call)


def _where_task_waits(task: asyncio.Task[Any]) -> str:
    wait = wait_of(task)
    # A number that asyncio gave differs from run to run.
    label = re.sub(r"^task Task-\d+$", "another task", wait.label)
    place = f"{wait.function.rpartition('.')[2]} (line {wait.line})"
    return f"{place if wait.line else task.get_coro().__name__}, which waits for: {label}"


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """How far a simulated program may go. The limits are there for code that never ends.

    limit: simulated seconds. standstill: turns of the loop without the clock moving.
    real_limit: real seconds; the program then runs in a helper thread.
    """

    limit: float = math.inf
    standstill: int = STANDSTILL
    real_limit: float | None = None

    def run(self, main: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> T:
        """Run ``main(*args, **kwargs)`` as ``simulate`` does, within these limits."""
        if inspect.iscoroutine(main):
            main.close()  # or Python warns that it was never awaited
            name = main.__name__
            raise TypeError(
                f"simulate() needs the function {name}, and got the coroutine {name}(...): "
                f"write simulate({name}, ...) and let simulate make the call."
            )
        if not callable(main):
            raise TypeError(f"simulate() needs a coroutine function (async def), not {main!r}.")
        job = functools.partial(self._run_here, main, args, kwargs)
        if self.real_limit is None and events._get_running_loop() is None:
            return job()
        return call_in_thread(job, real_limit=self.real_limit)

    def _run_here(self, main: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = getattr(getattr(main, "func", main), "__name__", type(main).__name__)
        coroutine = main(*args, **kwargs)
        if not inspect.iscoroutine(coroutine):
            raise TypeError(
                f"simulate() needs a coroutine function, and {name} returned "
                f"{coroutine!r}: write it with async def."
            )
        loop = VirtualLoop(name, self.limit, self.standstill)
        with contextlib.closing(loop), virtual_time_sleep():
            try:
                try:
                    result = loop.run_until_complete(coroutine)
                finally:
                    loop.tidy_up()
            except Exception as error:
                if loop.failure in (None, error):
                    raise
                stopped = type(error) is RuntimeError  # what run_until_complete says after stop()
                raise loop.failure from (None if stopped else error)
            if loop.failure is not None:
                raise loop.failure
            return result


def simulate(main: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> T:
    """Run ``main(*args, **kwargs)`` under a virtual clock and return its result.

    ``main`` is a coroutine function. Its exceptions come out unchanged. Tasks that it leaves
    behind are cancelled, as asyncio.run does. Where a loop already runs (a notebook cell,
    simulated code) it works in a helper thread with the same context variables, and that loop
    waits.

    Raises SimulationError when the program needs the real world, when all its tasks wait for
    each other, or when it spins without the clock moving; TypeError when ``main`` is not a
    coroutine function.
    """
    return Simulation().run(main, *args, **kwargs)


def occupy_loop(seconds: float) -> None:
    """Hold the event loop for ``seconds`` without awaiting, as a blocking call would.

    Under the virtual clock the clock moves; on a real loop the processor is kept busy.
    Raises ValueError for negative or non-finite seconds.
    """
    if not 0 <= seconds < math.inf:
        raise ValueError(f"occupy_loop() needs seconds from 0 up, not {seconds!r}.")
    if not occupied_virtually(seconds, sys._getframe(1)):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
