"""The checker of exercise 8.2: a shedder, at three times its load and beside work that fails or is cancelled."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from .. import theory
from .door import NOW, ONCE, PASSES_ON, through
from .engine import Exercise, three_hints
from .faults import CANCELS, Calls, cancel_sweep
from .harness import SEEDS, Prove, observe, plain, prove_clean, tell

EVERYBODY = "turns nobody away while there is a place"
HOUSE = "never more than places in the house"
WORKERS = "as many workers as stated, and no more"
IN_TURN = "first come, first served"
ERRORS = "an error gives the place back"
CANCELLED = "a cancellation gives the place back"
APART = "two shedders do not share their places"
GOODPUT = "under overload, at least 0.9 mu"
WAIT = "p99 at most K/mu + 2.33 sqrt(K)/mu"
LOSS = "loses what M/M/1/K loses"
MU, PLACES = 100.0, 40  # answers per second of the one worker; K
FIRST, ARRIVALS = 400, 2400  # requests that fill the house, and are not counted; requests of a run
AT_ONCE = 0.005  # seconds for a refusal
NEAR = 0.02  # how far the loss may be from the formula


class _House:
    """A shedder at work: ``call`` sends one piece of work through it and tells how that ended."""

    def __init__(self, answer: Any, prove: Prove, workers: int, places: int, calls: Calls | None = None) -> None:
        self.prove, self.calls, self.shedder = prove, calls or Calls(), answer(workers, places)
        self.began: list[Any] = []  # the names of works, in the order in which they began

    async def call(self, name: Any, seconds: float, error: Exception | None = None, drive: Any = None) -> str:
        """ "ok", "failed" or "refused"; a CancelledError passes."""
        mine: list[Any] = []

        async def work() -> Any:
            mine.append(name)
            self.began.append(name)
            await self.calls.job(f"call {name}", seconds)()
            if error is not None:
                raise error
            return value

        value = object()
        late = "It raised QueueFull while there was time to wait: a refusal that comes late is as bad as a timeout."
        return await through(
            self.prove, lambda: self.shedder.run(work), mine, value, error,
            at_once=AT_ONCE, late=late, refused="who has no place must get QueueFull", drive=drive,
        )  # fmt: skip

    def send(self, name: Any, seconds: float, error: Exception | None = None) -> asyncio.Task[str]:
        return asyncio.create_task(self.call(name, seconds, error))

    async def fits(self, lacking: str, scene: str, places: int, seconds: float = 1.0) -> None:
        """Exactly ``places`` of a crowd get in, and all of them are answered."""
        crowd = [self.send(f"{scene} {number}", seconds) for number in range(places + 3)]
        ends = await asyncio.gather(*crowd)
        let_in = ends.count("ok")
        told = f"{scene}, there is room for {places}. {places + 3} calls came at once, and {let_in} got in."
        self.prove(lacking if let_in < places else HOUSE, let_in == places, told)


def check_shedder(answer: Any, prove: Prove) -> None:
    """Small scenes with exact counts, a cancellation at every await, then Poisson load against the closed forms."""
    loads = [functools.partial(_load, seed, 3.0) for seed in SEEDS]
    for scene in (_alone, _crowd, _turns, _failing, _leavers, _churn, _apart, *loads, functools.partial(_load, 1, 1.2)):
        run = observe(functools.partial(scene, answer, prove))
        run.result()
        prove_clean(prove, run)
    for run, _, canceller in cancel_sweep(functools.partial(_sweep, answer, prove)):
        told = f"it raised {tell(run.error)}." if run.error else "CancelledError did not come out."
        prove(CANCELS, run.error is None and run.value, f"A call, cancelled at {canceller}: {told}")
        prove_clean(prove, run)


async def _alone(answer: Any, prove: Prove) -> None:
    house = _House(answer, prove, 1, 1)
    for number in range(3):
        end = await house.call(number, 1.0)
        prove(EVERYBODY, end == "ok", "With one place and nobody in the house, a call was refused.")
    took = asyncio.get_running_loop().time()
    prove(ONCE, took == 3.0, f"Three works of 1 s, one after the other, took {took:g} s.")
    end = await house.call("error", 1.0, ValueError("the work failed"))
    prove(PASSES_ON, end == "failed", "The work raised, and the call did not.")


async def _crowd(answer: Any, prove: Prove) -> None:
    for workers, places in ((1, 1), (1, 4), (3, 3), (3, 8)):
        house = _House(answer, prove, workers, places)
        name = f"With workers={workers} and places={places}"
        for _ in range(2):
            await house.fits(EVERYBODY, name, places)
        told = f"{name}, {house.calls.peak} works ran at once."
        prove(WORKERS, house.calls.peak == workers, told)


async def _turns(answer: Any, prove: Prove) -> None:
    house = _House(answer, prove, 2, 8)
    tasks = []
    for number in range(30):  # one every 0.5 s, each of 2 s: twice what two workers can do
        tasks.append(house.send(number, 2.0))
        await asyncio.sleep(0.5)
    ends = await asyncio.gather(*tasks)
    begun = house.began
    prove(IN_TURN, begun == sorted(begun), f"The works began in the order {plain(begun)}.")
    lost = [number for number, end in enumerate(ends) if end == "ok" and number not in begun]
    prove(ONCE, not lost, f"Calls {lost} were answered without their work.")


async def _failing(answer: Any, prove: Prove) -> None:
    for error in (ValueError("the work failed"), asyncio.QueueFull("a queue inside the work is full")):
        house = _House(answer, prove, 2, 5)
        for _ in range(4):
            ends = await asyncio.gather(*(house.send(number, 0.5, error) for number in range(5)))
            told = (
                f"5 works, each of which raises {tell(error)}, fit into 5 places, and {ends.count('failed')} were done."
            )
            prove(ERRORS, ends.count("failed") == 5, told)
        await house.fits(ERRORS, f"After 20 works that raised {type(error).__name__}", 5)


async def _leavers(answer: Any, prove: Prove) -> None:
    house = _House(answer, prove, 2, 6)
    tasks = [house.send(number, 10.0) for number in range(6)]
    await asyncio.sleep(1)
    for number in (0, 3, 5):  # one that runs, two that wait
        tasks[number].cancel()
    await asyncio.wait([tasks[number] for number in (0, 3, 5)])
    prove(CANCELS, all(tasks[number].cancelled() for number in (0, 3, 5)), "A cancelled call ended as if nothing were.")
    prove(NOW, not {3, 5} & set(house.began), "The work of a call began after that call was cancelled.")
    await house.fits(CANCELLED, "3 of 6 calls have been cancelled. With places=6", 3)
    await asyncio.gather(*(task for task in tasks if not task.cancelled()))
    prove(NOW, not {3, 5} & set(house.began), "The work of a call began after that call was cancelled.")
    await house.fits(CANCELLED, "After calls that were cancelled", 6)
    just_come = house.send("cancelled before its first step", 1.0)
    just_come.cancel()
    await asyncio.wait([just_come])
    await house.fits(CANCELLED, "After a call that was cancelled before its first step", 6)


async def _churn(answer: Any, prove: Prove) -> None:
    """200 calls that work, fail and leave, by chance; then the house is as empty as it was."""
    dice, house = random.Random(8), _House(answer, prove, 3, 9)
    tasks, inside, most = [], 0, 0
    for number in range(200):
        error = ValueError("by chance") if dice.random() < 0.3 else None
        tasks.append(house.send(number, dice.random(), error))
        if dice.random() < 0.3:
            asyncio.get_running_loop().call_later(dice.random(), tasks[-1].cancel)
        await asyncio.sleep(0.15 * dice.random())
        inside = sum(not task.done() for task in tasks)
        most = max(most, inside)
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
    prove(HOUSE, most <= 9, f"With places=9, {most} calls were in the house at once.")
    prove(WORKERS, house.calls.peak == 3, f"With workers=3, {house.calls.peak} works ran at once.")
    await house.fits(CANCELLED, "After 200 calls that worked, failed or were cancelled", 9)


async def _apart(answer: Any, prove: Prove) -> None:
    one, other = _House(answer, prove, 1, 2), _House(answer, prove, 1, 2)
    tasks = [one.send(number, 5.0) for number in range(2)]
    await asyncio.sleep(0.1)
    await other.fits(APART, "Another shedder is full. In this one", 2)
    await asyncio.gather(*tasks)


async def _load(seed: int, load: float, answer: Any, prove: Prove) -> None:
    """Poisson arrivals at ``load`` times MU, exponential works, one worker."""
    dice, loop = random.Random(seed), asyncio.get_running_loop()
    gaps = [dice.expovariate(load * MU) for _ in range(ARRIVALS)]
    works = iter([dice.expovariate(MU) for _ in range(ARRIVALS)])  # the n-th work that begins takes the n-th time
    house, times, refused, latest = answer(1, PLACES), [], [], 0.0

    async def work() -> None:
        await asyncio.sleep(next(works))

    async def user(number: int) -> None:
        nonlocal latest
        came = loop.time()
        try:
            await house.run(work)
        except asyncio.QueueFull:
            refused.append(number)
            latest = max(latest, loop.time() - came)
        else:
            times.append((loop.time(), loop.time() - came))

    async with asyncio.TaskGroup() as group:
        for number, gap in enumerate(gaps):
            await asyncio.sleep(gap)
            group.create_task(user(number))
        end = loop.time()
    prove(NOW, latest < AT_ONCE, "Under load, a refusal came 5 ms late or more.")
    expected, share = theory.mm1k_loss(load, PLACES), sum(n >= FIRST for n in refused) / (ARRIVALS - FIRST)
    rate = sum(when <= end for when, _ in times) / end
    prove(GOODPUT, rate >= 0.9 * MU, f"At {load:g} times the load, {rate:.0f} answers a second, and mu is {MU:g}.")
    limit, p99 = theory.full_queue_wait(PLACES, MU), float(np.percentile([took for _, took in times], 99))
    told = f"At {load:g} times the load, p99 was {p99:.2f} s, and {PLACES} places make it {limit:.2f} s at most."
    prove(WAIT, p99 <= 1.05 * limit, told)
    told = f"At {load:g} times the load it lost {share:.3f} of the requests; M/M/1/{PLACES} says {expected:.3f}."
    prove(LOSS, abs(share - expected) <= NEAR, told)


async def _sweep(answer: Any, prove: Prove, calls: Calls, drive: Callable[[Any], Awaitable[Any]]) -> bool:
    """One call waits behind another; cancelled at any moment, it must leave two places."""
    house = _House(answer, prove, 1, 2, calls)
    first = house.send("first", 1.0)
    await asyncio.sleep(0.5)
    cancelled = False
    try:
        await house.call("second", 1.0, drive=drive)
    except asyncio.CancelledError:
        cancelled = True
    await first
    await house.fits(CANCELLED, "After a call that was cancelled at one of its awaits", 2)
    return cancelled


EXERCISES = [
    Exercise(
        "8.2",
        "a shedder",
        "Shedder(workers, places)",
        ("workers", "places"),
        three_hints("""
        When does the service know that it will be too late: when the request comes, or when its turn
        comes? How many are in the house at that moment, and who counts them?

        A number of free places, taken without an await between the question and the deed, and given
        back in finally. A semaphore lets `workers` of those inside work, in the order in which they
        came.

        if not self.free: raise asyncio.QueueFull; self.free -= 1; then try: async with self.turn:
        return await work(), and finally: self.free += 1.
        """),
        check_shedder,
    )
]
