"""Chapter 02, exercises 2.2 and 2.3: the checks of a rate limiter and of a limit per host."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import math
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from unittest import mock

from ..clock import occupy_loop
from .faults import CANCELS, Calls, cancel_sweep, error_sweep
from .harness import NO_ERROR, SEEDS, Failed, Prove, Run, observe, prove_clean, tell

SLACK = 1e-6  # simulated seconds or permits: rounding only
FAILURE_OUT = "lets a failure out"
IN_TURN = "first come, first served"


def ran(run: Run, doing: str) -> Any:
    """What a run returned, or Failed with what came out of it and when."""
    error = run.error
    while isinstance(error, BaseExceptionGroup):  # the checker's own group, mostly
        error = error.exceptions[0]
    if error is not None:
        raise Failed(NO_ERROR, f"While {doing}, it raised {tell(error)}.")
    return run.value


def overtaken_in(asked: list[int], when: dict[int, float]) -> str:
    """A sentence about the first who was served before somebody who had come earlier, or nothing."""
    for earlier, later in itertools.pairwise([n for n in asked if n in when]):
        if when[later] < when[earlier]:
            return f"number {later + 1} was served at {when[later]:g} s, and {earlier + 1}, who came before, at {when[earlier]:g} s."
    return ""


def tried(prove: Prove, doing: str, scenario: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run a scenario that must end well and cleanly, and return what it saw."""
    run = observe(functools.partial(scenario, *args))
    value = ran(run, doing)
    prove_clean(prove, run)
    return value


# --- 2.2 a rate limiter --------------------------------------------------------------------------

NEVER_OVER = "never over rate * W + burst in any window"
KEEPS_UP = "keeps up the rate"
GIVES_UP = "a cancelled waiter gives up its turn"
_TICK = 1 / 64
_BEAT = 1 / 16  # shorter than the time for a permit at the highest rate
_START = 1024 + 27 * _TICK  # as on a real machine: the loop's clock is not at 0, nor at a full second


def _let_the_clock_run() -> None:
    """Move the loop's clock on by a picosecond for each reading.

    A clock that stands still while code runs would turn ``while loop.time() < due: await
    asyncio.sleep(due - loop.time())`` into an endless loop, where the rest is a rounding error.
    """
    loop = asyncio.get_running_loop()
    simulated, last, readings = loop.time, math.nan, 0

    def reading() -> float:
        nonlocal last, readings
        now = simulated()
        last, readings = now, readings + 1 if now == last else 0
        return now + readings * 1e-12

    loop.time = reading


class _Door:
    """Tasks that come to a limiter, and when each was let in."""

    def __init__(self, limiter: Any, start: float = _START) -> None:
        self.limiter = limiter
        self.start = start
        self.asked: list[int] = []
        self.admitted: list[tuple[int, float]] = []
        self.longest_hold = 0.0
        self.not_cancelled = 0

    @property
    def times(self) -> list[float]:
        return [when for _, when in self.admitted]

    async def visit(self, number: int, at: float = 0.0, drive: Any = None) -> None:
        if at:
            await asyncio.sleep(at)
        self.asked.append(number)
        waiting = self.limiter.acquire()
        await (drive(waiting) if drive else waiting)
        self.admitted.append((number, round(asyncio.get_running_loop().time() - self.start, 9)))

    async def tick(self) -> None:
        """Measure how long the answer holds the loop."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _BEAT
            await asyncio.sleep(_BEAT)
            self.longest_hold = max(self.longest_hold, loop.time() - due)


async def _hold(holds: list[tuple[float, float]]) -> None:
    for wait, held in holds:
        await asyncio.sleep(wait)
        occupy_loop(held)


async def _let_in(
    answer: Any, rate: float, burst: int, arrivals: list[float], cancels: dict[int, float], holds: Any, start: float
) -> _Door:
    """Send visitors to a limiter; cancel some of them; hold the loop, or measure who holds it."""
    _let_the_clock_run()
    await asyncio.sleep(start)
    loop, door = asyncio.get_running_loop(), _Door(answer(rate, burst), start)
    patience = arrivals[-1] + 3 * len(arrivals) / rate + 3
    beside = asyncio.create_task(_hold(holds) if holds else door.tick())
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience), asyncio.TaskGroup() as group:
                tasks = [group.create_task(door.visit(number, at)) for number, at in enumerate(arrivals)]
                for number, when in cancels.items():
                    loop.call_later(when, tasks[number].cancel)
    finally:
        beside.cancel()
        await asyncio.wait([beside])
    door.not_cancelled = sum(not tasks[number].cancelled() for number in cancels)
    return door


def _due(rate: float, burst: int, arrivals: list[float]) -> list[float]:
    """When a token bucket lets each visitor in (as GCRA: the time at which the bucket is full again)."""
    full_at, due = 0.0, []
    for at in arrivals:
        due.append(max(at, full_at - (burst - 1) / rate))
        full_at = max(full_at, due[-1]) + 1 / rate
    return due


@contextlib.contextmanager
def _other_clocks() -> Iterator[set[str]]:
    """Which clocks but the loop's are read in simulated code."""
    read: set[str] = set()
    others = set(threading.enumerate())  # the simulated code gets a thread of its own

    def watched(name: str, clock: Callable[[], float]) -> Callable[[], float]:
        def reading() -> float:
            if threading.current_thread() not in others:
                read.add(name)
            return clock()

        return reading

    with contextlib.ExitStack() as stack:
        for name in ("time", "monotonic", "perf_counter"):
            stack.enter_context(mock.patch(f"time.{name}", watched(name, getattr(time, name))))
        yield read


def _check_door(
    answer: Any,
    prove: Prove,
    what: str,
    rate: float,
    burst: int,
    arrivals: list[float],
    *,
    cancels: dict[int, float] | None = None,
    holds: list[tuple[float, float]] | None = None,
    lacking: str = "wakes nobody late",
    start: float = _START,
) -> None:
    """Prove every property of one scenario; ``lacking`` is what a wrong moment breaks.

    ``start`` is what the loop's clock says when the limiter is made.
    """
    cancels, told = cancels or {}, f"With {what}, rate {rate:g} and burst {burst}, "
    with _other_clocks() as clocks:
        run = observe(functools.partial(_let_in, answer, rate, burst, arrivals, cancels, holds, start))
    names = ", ".join(f"time.{name}()" for name in sorted(clocks))
    prove("reads the loop's clock", not clocks, f"It read {names}: only loop.time() is the clock that sleep() obeys.")
    door = ran(run, f"letting in {what}")
    held = f"it held the loop for {door.longest_hold:g} s: await asyncio.sleep, not time.sleep."
    prove("does not hold the loop", door.longest_hold < SLACK, told + held)
    swallowed = f"{door.not_cancelled} of them went on: let CancelledError through."
    prove(CANCELS, not door.not_cancelled, told + swallowed)
    _prove_windows(prove, told, rate, burst, door.times)
    left = [n for n in range(len(arrivals)) if n not in cancels]
    missing = len(left) - len(door.times)
    overtaken = overtaken_in(door.asked, dict(door.admitted))
    prove(IN_TURN, not overtaken, told + overtaken)
    due = _due(rate, burst, [arrivals[n] for n in left])
    if cancels:
        late = max((when - at for when, at in zip(door.times, due, strict=False)), default=0.0)
        lost = f"{missing} were never let in." if missing else f"one was let in {late:g} s late."
        prove(GIVES_UP, not missing and late < SLACK, f"{told}{lost} Whose turn is it, when the first in line is gone?")
    prove(KEEPS_UP, not missing, f"{told}{missing} of {len(left)} were still not let in after three times the time.")
    # A bucket is full after burst - 1 permits of idle time: what the loop is held longer is lost.
    lost = sum(max(0.0, held - (burst - 1) / rate) for _, held in holds or ())
    took, needed = door.times[-1], due[-1] + lost
    slow = f"it let {len(left)} in by {took:g} s where {needed:g} s is enough: does a little get lost each time?"
    prove(KEEPS_UP, not needed or took <= needed / 0.95, told + slow)
    if not holds:
        late, number = max((when - at, n) for n, (when, at) in enumerate(zip(door.times, due, strict=True)))
        waited = (
            f"visitor {number + 1} was let in at {door.times[number]:g} s, and there was a permit at {due[number]:g} s."
        )
        prove(lacking, late < SLACK, told + waited)
    prove_clean(prove, run)


def _prove_windows(prove: Prove, told: str, rate: float, burst: int, times: list[float]) -> None:
    """Look at every window that begins and ends with an admission, and tell the narrowest that is too full."""
    over = []
    for first, last in itertools.combinations(range(len(times)), 2):
        width, count = times[last] - times[first], last - first + 1
        if count > rate * width + burst + SLACK:
            over.append((width, -count, times[first]))
    if over:
        width, count, start = min(over)
        told += (
            f"from {start:g} s on it let {-count} in within {width:g} s, where {rate * width + burst:g} is the most."
        )
    prove(NEVER_OVER, not over, told)


def check_rate(answer: Any, prove: Prove) -> None:
    """The check of exercise 2.2: burst, load, idle time, random arrivals, a held loop, cancellations."""
    check = functools.partial(_check_door, answer, prove)
    check("4 visitors", 8, 4, [0.0] * 4, lacking="lets a burst through at once")
    new = "4 visitors and the loop's clock at 0, where simulate starts it"
    check(new, 8, 4, [0.0] * 4, lacking="lets a burst through at once", start=0.0)
    check("60 visitors at once", 8, 4, [0.0] * 60)
    check("6 visitors at once", 0.5, 1, [0.0] * 6)
    after_idle = [0.0] * 6 + [20.0] * 12
    check("6 visitors, and 12 more after 20 s", 4, 3, after_idle, lacking="idle time is worth one burst")
    for seed in SEEDS:
        rng = random.Random(seed)
        arrivals = sorted(rng.randrange(0, 64 * 6) * _TICK for _ in range(40))
        check("40 visitors within 6 s", 8, 3, arrivals)
    beside = [(2 * _TICK, 4 * _TICK)] * 200
    check("another task that holds the loop now and then", 8, 4, [0.0] * 60, holds=beside)
    check("the loop held for 1 s by another task", 8, 4, [0.0] * 40, holds=[(2 + _TICK, 1.0)])
    cancels = {2: 23 * _TICK, 4: 24 * _TICK, 5: 24 * _TICK, 9: 8 * _TICK}
    check("10 visitors, of whom 4 are cancelled", 4, 1, [0.0] * 10, cancels=cancels)
    for place in (2, 3):
        _check_rate_cancels(answer, prove, place)


def _check_rate_cancels(answer: Any, prove: Prove, place: int) -> None:
    """Cancel the visitor in this place at every await: the others come as if it had not been there."""

    async def visited(calls: Calls, drive: Any) -> tuple[bool, _Door]:
        _let_the_clock_run()
        await asyncio.sleep(_START)
        door = _Door(answer(4, 2))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(9), asyncio.TaskGroup() as group:
                visits = [door.visit(n, drive=drive if n == place else None) for n in range(6)]
                tasks = [group.create_task(visit) for visit in visits]
        return tasks[place].cancelled(), door

    for run, _, canceller in cancel_sweep(visited):
        was_cancelled, door = ran(run, "letting in 6 visitors, one of whom is cancelled")
        told = f"acquire() was cancelled at {canceller}, and returned: let CancelledError through."
        prove(CANCELS, was_cancelled, told)
        _prove_windows(prove, f"Visitor {place + 1} was cancelled at {canceller}: ", 4, 2, door.times)
        due = _due(4, 2, [0.0] * 5)
        told = (
            f"Visitor {place + 1} was cancelled at {canceller}; the others were let in at "
            f"{', '.join(f'{when:g}' for when in door.times)} s, and could be at {', '.join(f'{at:g}' for at in due)} s."
        )
        late = any(when > at + SLACK for when, at in zip(door.times, due, strict=False))
        prove(GIVES_UP, len(door.times) == len(due) and not late, told)
        prove_clean(prove, run)


# --- 2.3 a limit per key -------------------------------------------------------------------------

PER_KEY = "at most per_key at one host"
TOTAL = "at most total in all"
GIVES_BACK = "gives every permit back"


class _Host(str):
    """A key that tells whether somebody still keeps it: a str has no weak references, this has."""


class _Traffic:
    """Jobs that pass a limiter, counted per host and in all."""

    def __init__(self, limiter: Any) -> None:
        self.limiter = limiter
        self.running: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()
        self.peak = 0
        self.started: list[tuple[str, str, float]] = []  # job, host, time

    async def job(self, name: str, host: str, work: Any, at: float = 0.0) -> None:
        """Come at ``at`` seconds, wait for a slot, run ``work()`` (or sleep, given a number) in it."""
        if at:
            await asyncio.sleep(at)
        self.waiting[host] += 1
        waits = True
        try:
            async with self.limiter.slot(host):
                self.waiting[host] -= 1
                waits = False
                self.started.append((name, host, asyncio.get_running_loop().time()))
                self.running[host] += 1
                self.peaks[host] = max(self.peaks[host], self.running[host])
                self.peak = max(self.peak, self.running.total())
                try:
                    await (work() if callable(work) else asyncio.sleep(work))
                finally:
                    self.running[host] -= 1
        finally:
            self.waiting[host] -= waits

    def could_run(self, per_key: int, total: int) -> str:
        """A host where a job waits though it has a free place and so has the whole."""
        if self.running.total() >= total:
            return ""
        return min((h for h, n in self.waiting.items() if n and self.running[h] < per_key), default="")

    def prove_limits(self, prove: Prove, told: str, per_key: int = 2, total: int = 5) -> None:
        host, peak = max(self.peaks.items(), key=lambda pair: pair[1], default=("", 0))
        prove(PER_KEY, peak <= per_key, f"{told}{peak} jobs were at {host} at once, with per_key={per_key}.")
        prove(TOTAL, self.peak <= total, f"{told}{self.peak} jobs were in flight at once, with total={total}.")


async def _stress(answer: Any, seed: int, per_key: int, total: int) -> tuple[_Traffic, str]:
    rng, idle = random.Random(seed), ""
    traffic = _Traffic(answer(per_key, total))
    async with asyncio.TaskGroup() as group:
        jobs = []
        for number in range(50):
            host = f"host-{min(rng.randrange(7), rng.randrange(7))}"
            seconds, at = rng.randrange(1, 6) / 2, rng.randrange(0, 20) / 2
            jobs.append(group.create_task(traffic.job(f"job {number}", host, seconds, at)))
        await asyncio.sleep(0.25)
        while not all(task.done() for task in jobs):
            idle = idle or traffic.could_run(per_key, total)
            await asyncio.sleep(0.5)
    return traffic, idle


async def _jobs(answer: Any, jobs: list[tuple[str, float, float]]) -> _Traffic:
    """Run jobs given as (host, seconds, at) with per_key 2 and total 5."""
    traffic = _Traffic(answer(2, 5))
    async with asyncio.TaskGroup() as group:
        for number, (host, seconds, at) in enumerate(jobs):
            group.create_task(traffic.job(f"job {number}", host, seconds, at))
    return traffic


def check_keyed(answer: Any, prove: Prove) -> None:
    """The check of exercise 2.3: a busy host, random load, order, memory, failures, cancellations."""
    busy = [("busy", 10.0, 0.0)] * 12 + [(f"idle-{n}", 0.5, 1.0) for n in range(3)]
    traffic = tried(prove, "running 12 jobs at a busy host, and one at each of three idle ones", _jobs, answer, busy)
    traffic.prove_limits(prove, "With 12 jobs at one host, ")
    late = max(when for _, host, when in traffic.started if host != "busy")
    told = (
        f"12 jobs were at one host, two of them running; a job for an idle host came at 1 s and ran at {late:g} s: "
        f"who waits for its host must not sit on a permit of the total."
    )
    prove("a busy host blocks no other", late <= 1.0 + SLACK, told)
    for seed, (per_key, total) in zip((*SEEDS, 4), ((2, 5), (2, 5), (2, 5), (1, 3)), strict=True):
        told = f"50 jobs at 7 hosts, per_key={per_key}, total={total}"
        traffic, idle = tried(prove, f"running {told}", _stress, answer, seed, per_key, total)
        traffic.prove_limits(prove, f"{told}: ", per_key, total)
        waited = f"{told}: a job waited for {idle}, where a place was free, and another in the total."
        prove("keeps nobody waiting for nothing", not idle, waited)
    queue = [("one", 1.0, n / 10) for n in range(9)]
    traffic = tried(prove, "running 9 jobs at one host", _jobs, answer, queue)
    order = [name for name, _, _ in traffic.started]
    expected = [f"job {n}" for n in range(9)]
    prove(IN_TURN, order == expected, f"The jobs of one host came as job 0, 1, 2, and ran as {', '.join(order)}.")
    together = [("one", 1.0, 0.0)] * 4 + [("one", 1.0, at) for at in (1.0, 1.0, 1.25, 1.25)]
    traffic = tried(prove, "running 8 jobs at one host", _jobs, answer, together)
    told = "Two jobs ended at once while two more waited, and newcomers were let in beside those: "
    traffic.prove_limits(prove, told)
    _check_forgets(answer, prove)
    for run, calls in error_sweep(lambda calls: _fails_inside(answer, calls)):
        traffic, errors = ran(run, "running jobs, one of which fails")
        out = ", ".join(tell(error) for error in errors) or "nothing"
        prove(FAILURE_OUT, errors == [calls.injected], f"{calls.injected}, and out came: {out}.")
        _prove_given_back(prove, f"After {calls.failed[0]} had failed inside the block, ", traffic)
        prove_clean(prove, run)
    for run, _, canceller in cancel_sweep(lambda calls, drive: _cancelled_in_line(answer, drive)):
        traffic, was_cancelled = ran(run, "cancelling a job")
        told = f"Cancelled at {canceller}, the job went on: let CancelledError through."
        prove(CANCELS, was_cancelled, told)
        _prove_given_back(prove, f"After a job was cancelled at {canceller}, ", traffic)
        prove_clean(prove, run)


@contextlib.asynccontextmanager
async def _kept_busy(traffic: _Traffic) -> AsyncIterator[None]:
    """Run one job at host a all the time, so that its entry is not dropped, and what it lost with it.

    At the end run more jobs than may run, for 1 s, and look in the middle which have started.
    """
    staying = asyncio.create_task(traffic.job("staying", "a", 99.0))
    await asyncio.sleep(0)
    yield
    traffic.started.clear()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5), asyncio.TaskGroup() as group:
            for host in "aaabbbccc":
                group.create_task(traffic.job("load", host, 1.0))
    staying.cancel()
    await asyncio.wait([staying])


def _prove_given_back(prove: Prove, told: str, traffic: _Traffic) -> None:
    traffic.prove_limits(prove, told)
    counts = Counter(host for _, host, _ in traffic.started)
    text = ", ".join(f"{counts[host]} at {host}" for host in "abc")
    told += f"one job stayed at a, 9 came, and at once ran {text}, where 1, 2, 1 may: a permit was lost."
    prove(GIVES_BACK, [counts[host] for host in "abc"] == [1, 2, 1], told)


async def _fails_inside(answer: Any, calls: Calls) -> tuple[_Traffic, list[BaseException]]:
    traffic = _Traffic(answer(2, 5))
    async with _kept_busy(traffic):
        jobs = [traffic.job(f"job {n}", host, calls.job(f"job {n}", 0.5)) for n, host in enumerate("aaabc")]
        done = await asyncio.gather(*jobs, return_exceptions=True)
    return traffic, [error for error in done if error is not None]


async def _cancelled_in_line(answer: Any, drive: Any) -> tuple[_Traffic, bool]:
    """The victim waits for its host until 1 s, then for the total until 2 s, then works."""
    traffic = _Traffic(answer(2, 5))
    async with _kept_busy(traffic):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(9), asyncio.TaskGroup() as group:
                for host, seconds in (("a", 1.0), ("b", 2.0), ("b", 2.0), ("c", 2.0)):
                    group.create_task(traffic.job("first", host, seconds))
                await asyncio.sleep(0)
                group.create_task(traffic.job("next in the total", "c", 1.0))
                victim = group.create_task(drive(traffic.job("victim", "a", 0.5)))
                group.create_task(traffic.job("behind", "a", 0.5))
    return traffic, victim.cancelled()


async def _passes_one(limiter: Any, host: _Host) -> None:
    """Use a host in every way there is: run at it, be cancelled there, be cancelled in line."""
    traffic = _Traffic(limiter)
    tasks = [asyncio.create_task(traffic.job("x", host, 0.5)) for _ in range(4)]
    await asyncio.sleep(0.25)
    tasks[3].cancel()  # it waits
    tasks[0].cancel()  # it works
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _passes_hosts(answer: Any, count: int) -> int:
    """Use ``count`` hosts, one after another; return how many of them are still kept."""
    limiter, known = answer(2, 5), []
    for number in range(count):
        host = _Host(f"host-{number}")
        known.append(weakref.ref(host))
        await _passes_one(limiter, host)
    del host
    gc.collect()
    return sum(reference() is not None for reference in known)


async def _objects_after(answer: Any, count: int) -> int:
    limiter = answer(2, 5)
    for number in range(count):
        async with limiter.slot(f"host-{number}"):
            pass
    gc.collect()
    return len(gc.get_objects())


def _check_forgets(answer: Any, prove: Prove) -> None:
    kept = tried(prove, "passing 50 hosts, one after another", _passes_hosts, answer, 50)
    few = tried(prove, "passing 10 hosts", _objects_after, answer, 10)
    many = tried(prove, "passing 310 hosts", _objects_after, answer, 310)
    told = f"50 hosts were used once and left, and {kept} are still in its memory: drop a host that nobody uses."
    prove("forgets idle hosts", kept < 5, told)
    each = round((many - few) / 300)  # whole: other things come and go meanwhile
    told = f"300 more hosts were used once, and {each} objects are kept for each: drop what nobody uses."
    prove("forgets idle hosts", many - few < 150, told)
