"""The checker of exercise 8.1: a pipeline of three stages with a bound, that ends whole or stops at once."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from .engine import Exercise, three_hints
from .faults import CANCELS, Calls, Injected, cancel_sweep, error_sweep, prove_cancelled
from .harness import SEEDS, Prove, Run, observe, plain, prove_clean, tell

ALL = "writes every item once"
ANYTHING = "items and results may be anything"
ONE_WRITE = "one write at a time"
WORKERS = "as many workers as stated, and no more"
BOUND = "at most bound items in flight"
OVERLAP = "the stages work at the same time"
ORDER = "with one worker, the order of the source"
READY = "a slow item holds up no other"
ERROR_OUT = "an error in any stage comes out"
STOPS = "an error stops all the others at once"
CLEANUP = 0.05  # seconds that cancelled work and a cancelled write need to end
GRACE = 3 * CLEANUP  # groups may stop one after the other


class _Equal:
    """Equal to everything, as some objects are that compare in a way of their own."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "an object that is equal to all others"


class _Plant:
    """What stands around a pipeline: a source, the work and the writing. All times are in simulated seconds."""

    def __init__(
        self,
        items: Sequence[Any],
        pace: float,
        work: float | Callable[[int], float],
        write: float | Callable[[int], float],
        calls: Calls | None = None,
        source_fails_at: int | None = None,
    ) -> None:
        self.items, self.pace, self.calls, self.source_fails_at = items, pace, calls or Calls(), source_fails_at
        self.work_takes = work if callable(work) else lambda _: work
        self.write_takes = write if callable(write) else lambda _: write
        self.taken = self.peak = self.works = self.writes = 0
        self.busy = {"work": 0, "write": 0}
        self.most = {"work": 0, "write": 0}
        self.written: list[tuple[Any, float]] = []
        self.begun: list[tuple[str, float]] = []  # what the pipeline asked for, and when
        self.injected: Injected | None = None
        self.injected_at = 0.0

    async def source(self) -> AsyncIterator[Any]:
        for number, item in enumerate([*self.items, None]):
            self.begin("the source")
            if self.pace:
                await asyncio.sleep(self.pace)
            if number == self.source_fails_at:
                self.injected = Injected("failure injected into the source")
                self.injected_at = asyncio.get_running_loop().time()
                raise self.injected
            if number == len(self.items):
                return
            self.taken += 1
            self.peak = max(self.peak, self.taken - len(self.written))
            yield item

    def begin(self, what: str) -> None:
        self.begun.append((what, asyncio.get_running_loop().time()))

    async def _do(self, what: str, seconds: float, thing: Any) -> Any:
        self.begin(what)
        self.busy[what] += 1
        self.most[what] = max(self.most[what], self.busy[what])
        try:
            return await self.calls.job(what, seconds, thing, cleanup=CLEANUP)()
        finally:
            self.busy[what] -= 1

    async def work(self, item: Any) -> Any:
        self.works += 1
        return await self._do("work", self.work_takes(self.works - 1), item)

    async def write(self, result: Any) -> None:
        self.writes += 1
        await self._do("write", self.write_takes(self.writes - 1), result)
        self.written.append((result, asyncio.get_running_loop().time()))

    def run(self, answer: Any, workers: int, bound: int) -> Any:
        return answer(self.source(), self.work, self.write, workers, bound)

    @property
    def results(self) -> list[Any]:
        return [result for result, _ in self.written]


def check_pipeline(answer: Any, prove: Prove) -> None:
    """Clean ends in several shapes, then an error in every call, and a cancellation at every moment."""
    for scene in (_few, _speed, _width, _anything, _ready, *(functools.partial(_random, seed) for seed in SEEDS)):
        run = observe(functools.partial(scene, answer, prove))
        run.result()
        prove_clean(prove, run)
    for slow in ("work", "write"):
        _errors(answer, prove, slow)
        _cancellations(answer, prove, slow)


def _names(count: int) -> list[str]:
    return [f"item {number}" for number in range(1, count + 1)]


def _whole(prove: Prove, plant: _Plant, scene: str) -> None:
    missing = len(plant.items) - len(plant.results)
    told = f"{scene}: it ended, and {missing} of {len(plant.items)} were never written."
    prove(ALL, missing <= 0, told)
    same = sorted(map(repr, plant.results)) == sorted(map(repr, plant.items))
    prove(ALL, same, f"{scene}: it wrote {plain(repr(plant.results))}.")


async def _few(answer: Any, prove: Prove) -> None:
    for count in (0, 1, 2, 5):
        plant = _Plant(_names(count), 0.1, 0.1, 0.1)
        await plant.run(answer, 3, 7)
        _whole(prove, plant, f"With {count} item{'' if count == 1 else 's'} and 3 workers")


async def _anything(answer: Any, prove: Prove) -> None:
    items = ["first", None, 0, False, "", (), Ellipsis, StopAsyncIteration, _Equal(), "last"]
    plant = _Plant(items, 0.0, lambda n: (n * 7 % 4) / 10, 0.1)
    run = asyncio.ensure_future(plant.run(answer, 1, 9))
    ended, _ = await asyncio.wait([run], timeout=100)  # a worker that is gone may hold up the rest for ever
    if ended:
        run.result()
    written = {id(result) for result in plant.results}
    missing = [item for item in items if id(item) not in written]
    told = f"The items were {plain(repr(items))}. Not written: {plain(repr(missing))}. Give no value a second meaning."
    prove(ANYTHING, bool(ended) and not missing and len(plant.results) == len(items), told)
    in_turn = list(map(id, plant.results)) == list(map(id, items))
    prove(ORDER, in_turn, f"The items were {plain(repr(items))}, and it wrote {plain(repr(plant.results))}.")


async def _speed(answer: Any, prove: Prove) -> None:
    items, step = 60, 0.1  # seconds for an item in each stage
    plant = _Plant(_names(items), step, 3 * step, step)
    await plant.run(answer, 3, 12)
    took = asyncio.get_running_loop().time()
    _whole(prove, plant, "With three stages of equal speed")
    prove(ONE_WRITE, plant.most["write"] == 1, f"It wrote {plant.most['write']} results at once.")
    limit = (items + 10) * step
    told = f"{items} items, {step:g} s for one in each stage, took {took:g} s; side by side, the stages need {limit:g} s at most."
    prove(OVERLAP, took <= limit + 1e-6, told)


async def _width(answer: Any, prove: Prove) -> None:
    for workers in (1, 2, 5):
        plant, bound = _Plant(_names(40), 0.0, 1.0, 0.01), workers + 4
        await plant.run(answer, workers, bound)
        told = f"With workers={workers}, it worked on {plant.most['work']} items at once."
        prove(WORKERS, plant.most["work"] == workers, told)
        prove(ONE_WRITE, plant.most["write"] == 1, f"It wrote {plant.most['write']} results at once.")
        _within(prove, plant, bound, "a source that waits for nobody, and slow work")
        plant = _Plant(_names(40), 0.0, 0.01, 1.0)
        await plant.run(answer, workers, bound)
        prove(ONE_WRITE, plant.most["write"] == 1, f"It wrote {plant.most['write']} results at once.")
        _within(prove, plant, bound, "a source that waits for nobody, and a slow write")


def _within(prove: Prove, plant: _Plant, bound: int, scene: str) -> None:
    told = f"With bound={bound}, {scene}, {plant.peak} items were read and not yet written."
    prove(BOUND, plant.peak <= bound, told)


async def _ready(answer: Any, prove: Prove) -> None:
    items, slow = 40, 3  # the item that is slow
    plant = _Plant(_names(items), 0.0, lambda number: 100.0 if number == slow else 0.2, 0.1)
    await plant.run(answer, 3, 8)
    _whole(prove, plant, "With one slow item")
    early = sum(when < 50 for _, when in plant.written)
    told = f"One item of {items} took 100 s, and {items - 1 - early} others waited for it: write what is ready."
    prove(READY, early == items - 1, told)


async def _random(seed: int, answer: Any, prove: Prove) -> None:
    dice = random.Random(seed)
    durations = [[dice.expovariate(1 / mean) for _ in range(150)] for mean in (0.4, 0.1)]
    plant = _Plant(_names(150), 0.0 if seed % 2 else 0.08, durations[0].__getitem__, durations[1].__getitem__)
    await plant.run(answer, 4, 8)
    _whole(prove, plant, "With 150 items, 4 workers and durations by chance")
    _within(prove, plant, 8, "with 4 workers and durations by chance")
    told = f"With workers=4, it worked on {plant.most['work']} items at once."
    prove(WORKERS, plant.most["work"] == 4, told)
    prove(ONE_WRITE, plant.most["write"] == 1, f"It wrote {plant.most['write']} results at once.")


def _shape(slow: str, calls: Calls | None = None, source_fails_at: int | None = None) -> _Plant:
    """Nine items through 2 workers. The slow stage fills all that is before it."""
    work, write = (1.0, 0.1) if slow == "work" else (0.1, 1.0)
    return _Plant(_names(9), 0.05, work, write, calls, source_fails_at)


def _errors(answer: Any, prove: Prove, slow: str) -> None:
    plants: list[_Plant] = []

    async def scenario(calls: Calls, source_fails_at: int | None = None) -> Any:
        plants.append(_shape(slow, calls, source_fails_at))
        return await plants[-1].run(answer, 2, 6)

    for run, calls in error_sweep(scenario):
        name = calls.failed[0] if calls.failed else "work"
        _stopped(prove, run, plants[-1], calls.injected, calls.injected_at, f"a {name}, with a slow {slow}")
    for number in (0, 1, 5, 9):
        run = observe(scenario, calls := Calls(), number)
        plant = plants[-1]
        _stopped(prove, run, plant, plant.injected, plant.injected_at, f"the source, with a slow {slow}")


def _stopped(prove: Prove, run: Run, plant: _Plant, error: Injected | None, at: float, where: str) -> None:
    where = f"After an error in {where},"
    told = f"it raised {tell(run.error)}" if run.error else "it returned as if all were well"
    prove(ERROR_OUT, error is not None and run.raised(error), f"{where} {told}.")
    later = [what for what, when in plant.begun if when > at + GRACE + 1e-9]
    told = f"{where} it went on with {later[0] if later else ''}: cancel the other stages."
    prove(STOPS, not later, told)
    late = run.elapsed - at
    prove(STOPS, late <= GRACE + 1e-9, f"{where} it took {late:g} s more to end.")
    abandoned = ", ".join(plant.calls.abandoned)
    prove(STOPS, not abandoned, f"{where} it dropped {abandoned} in the middle, without cancelling it.")
    prove_clean(prove, run)


def _cancellations(answer: Any, prove: Prove, slow: str) -> None:
    async def scenario(calls: Calls, drive: Any) -> Any:
        return await drive(_shape(slow, calls).run(answer, 2, 6))

    for run, calls, canceller in cancel_sweep(scenario):
        prove_cancelled(prove, run, calls, canceller, GRACE)
        prove_clean(prove, run)

    async def at(seconds: float) -> tuple[bool, float]:
        pipeline = asyncio.ensure_future(_shape(slow).run(answer, 2, 6))
        await asyncio.sleep(seconds)
        pipeline.cancel()
        await asyncio.wait([pipeline])
        return pipeline.cancelled(), asyncio.get_running_loop().time() - seconds

    for seconds in (0.0, 0.07, 0.5, 1.5, 3.0):
        run = observe(at, seconds)
        cancelled, late = run.result()
        prove(CANCELS, cancelled, f"Cancelled after {seconds:g} s, it ended as if nothing had happened.")
        prove(CANCELS, late <= GRACE + 1e-9, f"Cancelled after {seconds:g} s, it took {late:g} s more: stop at once.")
        prove_clean(prove, run)


EXERCISES = [
    Exercise(
        "8.1",
        "a bounded pipeline",
        "async def pipeline(source, work, write, workers, bound)",
        ("source", "work", "write", "workers", "bound"),
        three_hints("""
        Where can an item be? In the reader's hand, in the first queue, with a worker, in the second
        queue, with the writer. How large may the two queues be, so that the sum is never above bound?

        One task reads, one writes, `workers` work, all in a TaskGroup: that is what an error stops.
        At the end of the source each worker needs a word to stop, and the last of them tells the
        writer. The word is an object of your own, end = object(), compared with `is`.

        The reader: async for item in source: await todo.put(item); then for _ in range(workers):
        await todo.put(end). A worker: while (item := await todo.get()) is not end: await
        done.put(await work(item)); then await done.put(end). The writer counts the ends.
        """),
        check_pipeline,
    )
]
