"""Chapter 02, how much at once: a bounded map, a rate limiter, a limit per host, a fair pool."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import itertools
import math
import random
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from .engine import Exercise, three_hints
from .faults import CANCELS, Calls, cancel_sweep, error_sweep, prove_cancelled
from .harness import NO_TASKS_LEFT, SEEDS, Failed, Prove, Run, observe, plain, prove_clean, tell
from .limiters02 import FAILURE_OUT, IN_TURN, SLACK, check_keyed, check_rate, overtaken_in, ran, tried

_CLEANUP = 0.05  # simulated seconds that a cancelled call needs to clean up

# --- 2.1 a bounded map ---------------------------------------------------------------------------

AT_ONCE = "at most limit calls at once"
AHEAD = "pulls at most limit + 1 items ahead"
CLOSES = "closes the source"


class _Feed:
    """A source that counts what is pulled from it, and what of that the consumer has got."""

    def __init__(self, items: list[Any], every: float = 0.0, error: Exception | None = None) -> None:
        self.pulled, self.ahead = 0, 0
        self.open = self.left_open = False  # left_open: when the answer had returned
        self.results: list[Any] = []
        self.times: list[float] = []
        self.stream = self._items(items, every, error)

    async def _items(self, items: list[Any], every: float, error: Exception | None) -> AsyncIterator[Any]:
        self.open = True
        try:
            for item in items:
                if every:
                    await asyncio.sleep(every)
                self.pulled += 1
                self.ahead = max(self.ahead, self.pulled - len(self.results))
                yield item
            if error is not None:
                raise error
        finally:
            self.open = False

    async def consume(self, answer: Any, fn: Any, limit: int, *, take: int = -1, pause: float = 0.0) -> None:
        """Take ``take`` results, or all of them, ``pause`` seconds for each, and close the answer."""
        stream = answer(fn, self.stream, limit)
        if inspect.isawaitable(stream):
            stream = await stream
        if not hasattr(stream, "__aiter__") or not hasattr(stream, "aclose"):
            told = f"It gave {plain(stream)}: yield each result, and nothing else is needed."
            raise Failed("is an async generator", told)
        try:
            async with contextlib.aclosing(stream):
                async for result in stream:
                    self.results.append(result)
                    self.times.append(asyncio.get_running_loop().time())
                    if len(self.results) == take:
                        return
                    if pause:
                        await asyncio.sleep(pause)
        finally:
            self.left_open = self.open


def _fn(calls: Calls, seconds: list[float], results: list[Any], given: list[Any]) -> Any:
    """A coroutine function that takes seconds[n] in its n-th call, and returns results[n]."""

    async def fn(item: Any) -> Any:
        number = len(given)
        given.append(item)
        n = number % len(seconds)
        return await calls.job(f"call {number + 1}", seconds[n], results[n], cleanup=_CLEANUP)()

    return fn


def _ends(seconds: list[float], limit: int) -> list[float]:
    """When each result can be out, if at most ``limit`` items are between source and consumer."""
    ends: list[float] = []
    for number, duration in enumerate(seconds):
        start = ends[number - limit] if number >= limit else 0.0
        ends.append(max(start + duration, ends[-1] if ends else 0.0))
    return ends


def _check_map(answer: Any, prove: Prove) -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        seconds = [n / 10 for n in rng.choices(range(1, 30), k=12)]
        values = [0, None, "", [], "same", "same", (1, 2), ValueError("a value"), {3}, False, "x", 7]
        items, results = rng.sample(values, 12), rng.sample(values, 12)
        _check_map_once(answer, prove, rng.choice([2, 3, 5]), seconds, items, results)
    _check_map_once(answer, prove, 4, [1.0] * 20, list(range(20)), list(range(20)))
    _check_map_once(answer, prove, 1, [0.3, 0.1, 0.2], [1, 2, 3], [4, 5, 6])
    _check_map_once(answer, prove, 9, [0.3, 0.1, 0.2], [1, 2, 3], [4, 5, 6])
    _check_map_once(answer, prove, 3, [], [], [])
    _check_map_pace(answer, prove)
    _check_map_close(answer, prove)
    alive = tried(prove, "mapping 60 items", _pages_kept, answer)
    told = f"60 results had been yielded and dropped, and {alive} of them were still kept: forget a task that is done."
    prove("forgets what it has yielded", alive <= 10, told)
    _check_map_errors(answer, prove)
    _check_map_cancels(answer, prove)


def _check_map_once(
    answer: Any, prove: Prove, limit: int, seconds: list[float], items: list[Any], results: list[Any]
) -> None:
    calls, given, feed = Calls(), [], _Feed(items)
    run = observe(functools.partial(feed.consume, answer, _fn(calls, seconds, results, given), limit))
    ran(run, f"mapping {len(items)} items with limit {limit}")
    known = len(given) <= len(items) and all(a is b for a, b in zip(given, items, strict=False))
    told = f"The items were {plain(items)}, and the calls got {plain(given)}."
    prove("calls fn once for each item, in order", known, told)
    told = f"{calls.peak} calls were in flight at once, with limit {limit}."
    prove(AT_ONCE, calls.peak <= limit, told)
    told = f"With limit {limit} it had pulled {feed.ahead} items more than it had yielded: wait for a place, then pull."
    prove(AHEAD, feed.ahead <= limit + 1, told)
    told = f"It yielded {plain(feed.results)} where the calls returned {plain(results)}."
    prove("results in the order of the input", feed.results == results, told)
    best = _ends(seconds, limit)[-1] if seconds else 0.0
    guess = "one after another?" if abs(run.elapsed - sum(seconds)) < SLACK else "what did a free place wait for?"
    told = f"{len(items)} items with limit {limit} took {run.elapsed:g} s where {best:g} s is enough: {guess}"
    prove("fills a free place at once", run.elapsed <= best + SLACK, told)
    prove_clean(prove, run)
    prove(CLOSES, not feed.left_open, "At the end it had not run the source to its end.")


def _check_map_pace(answer: Any, prove: Prove) -> None:
    feed, calls = _Feed(list(range(12))), Calls()
    fn = _fn(calls, [1.0] * 12, list(range(12)), [])
    run = observe(functools.partial(feed.consume, answer, fn, 3, pause=1.0))
    ran(run, "waiting for a slow consumer")
    told = f"The consumer was slow, and with limit 3 it pulled {feed.ahead} items ahead of it."
    prove(AHEAD, feed.ahead <= 4, told)
    feed, calls = _Feed(list(range(6)), every=1.0), Calls()
    fn = _fn(calls, [1.5] * 6, list(range(6)), [])
    ran(observe(functools.partial(feed.consume, answer, fn, 4)), "waiting for a slow source")
    late = [got - due for got, due in zip(feed.times, itertools.count(2.5), strict=False)]
    told = (
        f"The source gave an item each second and a call took 1.5 s; a result came {max(late, default=0):g} s after "
        f"its call had ended: do not wait for the next item first."
    )
    prove("a slow source holds no result back", max(late, default=0) < SLACK, told)


def _check_map_close(answer: Any, prove: Prove) -> None:
    for take, limit in ((1, 3), (4, 3), (2, 1)):
        feed, calls, seconds = _Feed(list(range(500)), every=0.01), Calls(), [0.1, 0.5, 0.2, 0.4, 0.3]
        fn = _fn(calls, seconds, seconds, [])
        run = observe(functools.partial(feed.consume, answer, fn, limit, take=take))
        ran(run, f"being closed after result number {take}")
        told = f"Closed after {take} results, it had pulled {feed.pulled} items."
        prove(AHEAD, feed.pulled <= take + limit + 1, told)
        dropped = ", ".join(sorted(calls.abandoned))
        prove(NO_TASKS_LEFT, not dropped, f"Closed early, it dropped {dropped} without cancelling it.")
        left = ", ".join(run.left_over)
        told = f"Closed early, it left {left} running: cancel and await what is in flight."
        prove(NO_TASKS_LEFT, not left, told)
        prove(CLOSES, not feed.left_open, "Closed early, it left the source open: aclose() it too.")
        late = run.elapsed - max(feed.times, default=0)
        told = f"aclose() took {late:g} s: cancel the calls in flight, do not let them finish."
        prove("closes at once", late <= _CLEANUP + SLACK, told)
        prove_clean(prove, run)


class _Page:
    """A result that tells whether somebody still keeps it."""


async def _pages_kept(answer: Any) -> int:
    """How many of 60 results are kept, in the middle of a long source, by nobody but the answer."""
    known: list[weakref.ref[_Page]] = []

    async def fn(item: int) -> _Page:
        await asyncio.sleep(0.1)
        page = _Page()
        known.append(weakref.ref(page))
        return page

    async with contextlib.aclosing(answer(fn, _Feed(list(range(500))).stream, 3)) as stream:
        for _ in range(60):
            await anext(stream)
        gc.collect()
        return sum(page() is not None for page in known)


def _check_map_errors(answer: Any, prove: Prove) -> None:
    seconds = [0.3, 0.1, 0.4, 0.2, 0.1, 0.3]
    feeds: list[_Feed] = []

    def mapped(calls: Calls) -> Awaitable[None]:
        feeds.append(_Feed(list(range(6))))
        return feeds[-1].consume(answer, _fn(calls, seconds, list("abcdef"), []), 3)

    for failing, (run, calls) in enumerate(error_sweep(mapped)):
        feed, out = feeds[failing], _told(run)
        prove(FAILURE_OUT, run.raised(calls.injected), f"{calls.injected}, and out came: {out}.")
        left = ", ".join(run.left_over)
        prove("stops the rest when one fails", not left, f"When {calls.failed[0]} failed, {left} went on.")
        before = feed.results == list("abcdef")[: min(failing, len(feed.results))]
        told = f"Call {failing + 1} failed, and before the failure it yielded {plain(feed.results)}."
        prove("only results before the failure", before, told)
        late = run.elapsed - _ends(seconds, 3)[failing]
        told = f"{calls.failed[0]} failed, and the failure came {late:g} s after its turn."
        prove("a failure comes in its turn", late <= _CLEANUP + SLACK, told)
        prove(CLOSES, not feed.left_open, "After a failed call it left the source open: aclose() it.")
        prove_clean(prove, run)
    error = OSError("the source broke")
    feed, calls = _Feed([1, 2, 3], error=error), Calls()
    run = observe(functools.partial(feed.consume, answer, _fn(calls, [0.5] * 3, [4, 5, 6], []), 2))
    prove(FAILURE_OUT, run.raised(error), f"The source raised {tell(error)}, and out came: {_told(run)}.")
    prove_clean(prove, run)


def _told(run: Run) -> str:
    return tell(run.error) if run.error else "no error"


def _check_map_cancels(answer: Any, prove: Prove) -> None:
    feeds: list[_Feed] = []

    async def mapped(calls: Calls, drive: Any) -> None:
        feeds.append(_Feed(list(range(5)), every=0.1))
        fn = _fn(calls, [0.35, 0.1, 0.25, 0.3, 0.15], list("abcde"), [])
        await drive(feeds[-1].consume(answer, fn, 2))

    for run, calls, canceller in cancel_sweep(mapped):
        prove_cancelled(prove, run, calls, canceller, _CLEANUP)
        told = f"Cancelled at {canceller}, it left the source open: aclose() it."
        prove(CLOSES, not feeds[-1].left_open, told)


# --- 2.4 a fair pool -----------------------------------------------------------------------------

ONE_HOLDER = "never hands one resource to two"
FAIR = "serves all alike"
KEEPS_ALL = "a cancelled waiter loses no resource"
REFUSES = "refuses what is not on loan"


class _Loans:
    """Tasks that borrow from a pool, and who got what."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.held: Counter[Any] = Counter()
        self.double: Any = None
        self.served: list[tuple[int, float]] = []

    async def borrow(self, number: int, seconds: float, at: float = 0.0) -> None:
        """Hold a resource for some seconds, and give it back, also when cancelled."""
        if at:
            await asyncio.sleep(at)
        resource = await self.pool.acquire()
        try:
            self.served.append((number, asyncio.get_running_loop().time()))
            self.held[resource] += 1
            if self.held[resource] > 1:
                self.double = resource
            await asyncio.sleep(seconds)
        finally:
            self.held[resource] -= 1
            self.pool.release(resource)

    async def take_all(self, most: int) -> list[Any]:
        """What can be had within a second, up to ``most``. Raises Failed for who cannot be cancelled."""
        got: list[Any] = []
        while len(got) < most:
            task = asyncio.ensure_future(self.pool.acquire())
            if not (await asyncio.wait([task], timeout=1))[0]:
                task.cancel()
                await asyncio.wait([task], timeout=1)
                if not task.cancelled():
                    raise Failed(CANCELS, "A cancelled acquire() went on: let CancelledError through.")
                break
            got.append(task.result())
        return got

    def prove_one_holder(self, prove: Prove, told: str) -> None:
        prove(ONE_HOLDER, self.double is None, f"{told}, two tasks held {self.double} at the same time.")


def _gini(counts: list[int]) -> float:
    """How unequal shares are: 0 when all are the same, towards 1 when one has everything.

    The mean difference of two shares over twice the mean (Gini 1912).
    """
    total = sum(counts) * len(counts)
    return sum(abs(a - b) for a in counts for b in counts) / (2 * total) if total else 0.0


def _check_pool(answer: Any, prove: Prove) -> None:
    got, said = tried(prove, "taking and giving back", _one_user, answer)
    prove(
        "hands out every resource", sorted(map(str, got)) == ["r1", "r2", "r3"], f"It gave {plain(got)} of r1, r2, r3."
    )
    for k in (2, 3):
        loans = tried(prove, f"serving 20 tasks from {k}", _loopers, answer, k)
        loans.prove_one_holder(prove, f"With 20 tasks and {k} resources")
        shares = Counter(number for number, _ in loans.served)
        counts = [shares[n] for n in range(20)]
        told = (
            f"20 tasks borrowed in a loop: one was served {max(counts)} times, one {min(counts)} times, and "
            f"{counts.count(0)} never (Gini {_gini(counts):.2f}): who releases and asks again must queue."
        )
        prove(FAIR, _gini(counts) <= 0.05, told)
        told = f"{k} resources could serve {200 * k} times, 20 tasks always asked, and {len(loans.served)} were served."
        prove("leaves no resource idle", len(loans.served) >= 200 * k, told)
    for seed in SEEDS:
        loans, asked = tried(prove, "serving 30 tasks", _arrivals, answer, seed)
        loans.prove_one_holder(prove, "With 30 tasks and 3 resources")
        overtaken = overtaken_in(asked, dict(loans.served))
        prove(IN_TURN, not overtaken, f"30 tasks came for 3 resources: {overtaken}")
    for what, happened in said.items():
        told = f"{what}: it {happened}, and should raise ValueError and change nothing."
        prove(REFUSES, happened == "raised ValueError", told)
    for place in (2, 3):
        for run, _, canceller in cancel_sweep(functools.partial(_loan_cancelled, answer, place)):
            told = f"A task in line was cancelled at {canceller}"
            was_cancelled, loans, left = ran(run, "cancelling a task in line")
            prove(CANCELS, was_cancelled, f"{told}, and went on: let CancelledError through.")
            loans.prove_one_holder(prove, told)
            text = f"{told}; of r1 and r2 it could give {plain(left)} afterwards: hand back what the task was given."
            prove(KEEPS_ALL, sorted(map(str, left)) == ["r1", "r2"], text)
            served, due = dict(loans.served), max(1.0, canceller.time)
            late = [n for n in range(5) if n != place and served.get(n, math.inf) > due]
            text = f"{told}; number {', '.join(str(n + 1) for n in late)} could be served at {due:g} s, and was not."
            prove("a cancelled waiter holds up nobody", not late, text)
            overtaken = overtaken_in([n for n in range(5) if n != place], served)
            prove(IN_TURN, not overtaken, f"{told}: {overtaken}")
            prove_clean(prove, run)


async def _one_user(answer: Any) -> tuple[list[Any], dict[str, str]]:
    """Take and give back in order, then release what is not on loan."""
    loans, said = _Loans(answer(["r1", "r2", "r3"])), {}
    got = await loans.take_all(3)
    for resource in got:
        if inspect.iscoroutine(returned := loans.pool.release(resource)):
            returned.close()
            raise Failed("release() is a plain function", "It must work in a finally, without await: write def.")

    def refuse(what: str, resource: Any) -> None:
        try:
            loans.pool.release(resource)
            said[what] = "raised nothing"
        except ValueError:
            said[what] = "raised ValueError"
        except Exception as error:
            said[what] = f"raised {tell(error)}"

    refuse("A resource that nobody held was released", "r1")
    refuse("A resource of another pool was released", "r9")
    left = len(await loans.take_all(6))
    if left != 3:
        said[f"After that the pool of 3 gave {left}"] = "kept what it had refused, or lost something"
    return got, said


async def _loopers(answer: Any, k: int) -> _Loans:
    """20 tasks that borrow for 1/8 s, give back and ask again at once, for 25 s."""
    loans, loop = _Loans(answer([f"r{n}" for n in range(1, k + 1)])), asyncio.get_running_loop()

    async def looper(number: int) -> None:
        while loop.time() < 25:
            await loans.borrow(number, 0.125)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(looper(number))
    return loans


async def _arrivals(answer: Any, seed: int) -> tuple[_Loans, list[int]]:
    """30 tasks; some come at the very instant at which a resource is given back."""
    rng, loans = random.Random(seed), _Loans(answer(["r1", "r2", "r3"]))
    times = [rng.randrange(0, 16) / 4 for _ in range(30)]
    async with asyncio.TaskGroup() as group:
        for number, at in enumerate(times):
            group.create_task(loans.borrow(number, rng.randrange(1, 5) / 4, at))
    return loans, sorted(range(30), key=lambda n: times[n])


async def _loan_cancelled(answer: Any, place: int, calls: Calls, drive: Any) -> tuple[bool, _Loans, list[Any]]:
    """Two of five hold until 1 s, three wait; the one in this place is driven and cancelled."""
    loans = _Loans(answer(["r1", "r2"]))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(9), asyncio.TaskGroup() as group:
            borrowing = [loans.borrow(number, 1.0) for number in range(5)]
            borrowing[place] = drive(borrowing[place])
            tasks = [group.create_task(each) for each in borrowing]
    return tasks[place].cancelled(), loans, await loans.take_all(3)


EXERCISES = [
    Exercise(
        "2.1",
        "a bounded map",
        "async def map_bounded(fn, source, limit)",
        ("fn", "source", "limit"),
        three_hints("""
        A semaphore inside each call bounds the calls, but then all items have been pulled already.
        What must be free before the next item is pulled?

        A feeder task takes a permit, pulls an item, starts a task for it, and puts the task into a
        queue. The generator gets the tasks in order, awaits and yields, and then gives the permit back.

        In the feeder: await slots.acquire(); item = await anext(source); line.put_nowait(create_task(
        fn(item))). In the generator: try: the loop; finally: cancel the feeder and every task, await
        asyncio.gather(*all_of_them, return_exceptions=True), await source.aclose().
        """),
        _check_map,
    ),
    Exercise(
        "2.2",
        "a rate limiter",
        "RateLimiter(rate, burst)",
        ("rate", "burst"),
        three_hints("""
        Each permit has a time at which it is free. Who needs to know that time, if the others stand in
        line behind one?

        An asyncio.Lock is the line: first come, first served, and who is cancelled in it just leaves.
        Its holder sleeps until next_free, and moves next_free on after it has slept, not before.

        async with self.lock: while (wait := self.next_free - loop.time()) > 0: await asyncio.sleep(wait).
        Then self.next_free = max(self.next_free, loop.time() - (burst - 1) / rate) + 1 / rate: idle time is worth
        no more than burst - 1 permits in the past. At first next_free is -math.inf: a new limiter is full.
        """),
        check_rate,
    ),
    Exercise(
        "2.3",
        "a limit per host",
        "KeyedLimiter(per_key, total)",
        ("per_key", "total"),
        three_hints("""
        A job waits for its host while it already has a permit of the total. Whom does it keep waiting?

        The permit of the host first, then the one of the total. Count who uses or awaits each host,
        from before the wait: at 0 the host's entry can go.

        self.users[key] += 1; try: async with self.hosts.setdefault(key, asyncio.Semaphore(per_key)),
        self.all: yield; finally: subtract 1 from self.users[key], and at 0 delete key from both.
        """),
        check_keyed,
    ),
    Exercise(
        "2.4",
        "a fair pool",
        "FairPool(resources)",
        ("resources",),
        three_hints("""
        release() makes a resource free, and wakes the first in line. Who may take it before that task
        has run?

        Do not make it free: give it to the first waiter. A waiter is a future in a deque, and
        release() calls set_result(resource) on the first that is not done.

        In acquire(): try: return await waiter; except asyncio.CancelledError: if the waiter is done and not cancelled
        then self.release(waiter.result()), which goes to the next; then raise.
        """),
        _check_pool,
    ),
]
