"""The checker of exercise 9.3, bulkheads: one upstream hangs, and the others must not notice."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from .door import ONCE, PASSES_ON, through
from .engine import Exercise, three_hints
from .faults import CANCELS, Calls, cancel_sweep
from .harness import SEEDS, Prove, observe, plain, prove_clean, tell

EVERYBODY = "refuses nobody whose own compartment has room"
LINE = "at most `line` calls of a name wait"
SIZE = "at most `size` calls of a name work at once"
IN_TURN = "first come, first served, within a name"
NEIGHBOUR = "an upstream that hangs moves the other's p99 by 10 % at most"
APART = "names do not wait for each other"
ERRORS = "an error gives the slot back, once"
CANCELLED = "a cancellation gives the slot back, once"
GONE = "a cancelled call ends its work, or never begins it"
ALONE = "two objects share no slots"
RATE, WORK_S, HANG_S = 60.0, 0.02, 1.0  # calls a second for each upstream; seconds of a healthy call; of a timeout
COUNT = 500  # calls of the healthy upstream in the scene of the two


class _Bench:
    """Bulkheads at work: ``call`` sends one piece of work through them and tells how that ended."""

    def __init__(self, answer: Any, prove: Prove, size: int, line: int) -> None:
        self.prove, self.bulkheads = prove, answer(size, line)
        self.began: list[tuple[str, Any]] = []  # (name, label) of works, in the order in which they began
        self.at_work: set[Any] = set()  # labels
        self.working, self.peak = Counter[str](), Counter[str]()

    async def call(self, name: str, label: Any, seconds: float, error: BaseException | None = None,
                   value: Any = "value", drive: Any = None) -> str:  # fmt: skip
        """ "ok", "failed" or "refused"; a CancelledError passes."""
        mine: list[Any] = []

        async def work() -> Any:
            mine.append(label)
            self.began.append((name, label))
            self.at_work.add(label)
            self.working[name] += 1
            self.peak[name] = max(self.peak[name], self.working[name])
            try:
                await asyncio.sleep(seconds)
            finally:
                self.working[name] -= 1
                self.at_work.discard(label)
            if error is not None:
                raise error
            return value

        late = "It raised QueueFull, but first it waited: a full compartment refuses at once."
        return await through(
            self.prove, lambda: self.bulkheads.run(name, work), mine, value, error,
            at_once=0.0, late=late, refused="a full compartment raises QueueFull", drive=drive,
        )  # fmt: skip

    def send(self, name: str, label: Any, seconds: float, error: BaseException | None = None) -> asyncio.Task[str]:
        return asyncio.create_task(self.call(name, label, seconds, error))

    async def fits(self, lacking: str, scene: str, name: str, size: int, line: int) -> None:
        """Of a crowd for ``name``, exactly ``size`` work at once, ``line`` wait, and all others are refused."""
        self.peak[name], room = 0, size + line
        ends = await asyncio.gather(*(self.send(name, f"{scene} {number}", 1.0) for number in range(room + 3)))
        let_in, peak = ends.count("ok"), self.peak[name]
        told = f"{scene}, there is room for {room} calls of one name. {room + 3} came, and {let_in} got in."
        self.prove(lacking if let_in < room else LINE if lacking == EVERYBODY else lacking, let_in == room, told)
        told = f"{scene}, {peak} calls of one name worked at once, with {size} slots free."
        self.prove(SIZE if lacking == EVERYBODY else lacking, peak == size, told)


def check_bulkhead(answer: Any, prove: Prove) -> None:
    """Small scenes with exact counts, the two upstreams, then a cancellation at every await."""
    both = [functools.partial(_two_upstreams, seed) for seed in SEEDS]
    for scene in (_alone, _crowd, _turns, _failing, _leavers, *both, _names, _churn, _two_objects):
        run = observe(functools.partial(scene, answer, prove))
        run.result()
        prove_clean(prove, run)
    for run, _, canceller in cancel_sweep(functools.partial(_sweep, answer, prove)):
        told = f"it raised {tell(run.error)}." if run.error else "CancelledError did not come out."
        prove(CANCELS, run.error is None and run.value, f"A call, cancelled at {canceller}: {told}")
        prove_clean(prove, run)


async def _alone(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove, 1, 0)
    for value in ("value", None, 0, [], False):
        end = await bench.call("users", "one", 1.0, value=value)
        prove(EVERYBODY, end == "ok", "With one slot and nobody there, a call was refused.")
    took = asyncio.get_running_loop().time()
    prove(ONCE, took == 5.0, f"Five works of 1 s, one after the other, took {took:g} s.")
    end = await bench.call("users", "error", 1.0, ValueError("the work failed"))
    prove(PASSES_ON, end == "failed", "The work raised, and the call did not.")


async def _crowd(answer: Any, prove: Prove) -> None:
    for size, line in ((1, 0), (1, 3), (3, 0), (4, 2)):
        bench = _Bench(answer, prove, size, line)
        for _ in range(2):
            await bench.fits(EVERYBODY, f"With size={size} and line={line}", "users", size, line)


async def _turns(answer: Any, prove: Prove) -> None:
    bench, tasks = _Bench(answer, prove, 2, 6), []
    for number in range(30):  # one every 0.5 s, each of 2 s: twice what two slots can do
        tasks.append(bench.send("users", number, 2.0))
        await asyncio.sleep(0.5)
    await asyncio.gather(*tasks)
    begun = [label for _, label in bench.began]
    prove(IN_TURN, begun == sorted(begun), f"The works of one name began in the order {plain(begun)}.")


async def _two_upstreams(seed: int, answer: Any, prove: Prove) -> None:
    """The same calls of a healthy upstream, once alone and once beside one that hangs until its timeout."""
    alone, refused_alone, _ = await _healthy(seed, answer, prove, hanging=False)
    beside, refused, peak = await _healthy(seed, answer, prove, hanging=True)
    told = f"{RATE:g} calls a second for an upstream that hangs, and of {COUNT} calls for the other one "
    prove(NEIGHBOUR, refused <= refused_alone, told + "some were refused, which alone were not.")
    before, after = float(np.percentile(alone, 99)), float(np.percentile(beside, 99))
    told += f"p99 went from {1000 * before:.0f} ms to {1000 * after:.0f} ms."
    prove(NEIGHBOUR, after <= 1.1 * before, told)
    prove(SIZE, peak <= 10, f"With size=10, {peak} calls of the upstream that hangs worked at once.")


async def _healthy(seed: int, answer: Any, prove: Prove, hanging: bool) -> tuple[list[float], int, int]:
    """How long the calls of the healthy one took, how many were refused, and the peak of the one that hangs."""
    dice, loop, bulkheads = random.Random(seed), asyncio.get_running_loop(), answer(10, 5)
    took: list[float] = []
    refused, working, peak = 0, 0, 0

    async def fine(seconds: float) -> None:
        nonlocal refused
        came = loop.time()
        try:
            await bulkheads.run("fine", lambda: asyncio.sleep(seconds))
        except asyncio.QueueFull:
            refused += 1
        else:
            took.append(loop.time() - came)

    async def hang() -> None:
        nonlocal working, peak
        working += 1
        peak = max(peak, working)
        try:
            async with asyncio.timeout(HANG_S):
                await asyncio.Event().wait()
        finally:
            working -= 1

    async def hung() -> None:
        try:
            await bulkheads.run("hung", hang)
        except (asyncio.QueueFull, TimeoutError):
            pass

    async with asyncio.TaskGroup() as group:
        for _ in range(COUNT):
            await asyncio.sleep(dice.expovariate(RATE))
            group.create_task(fine(dice.expovariate(1 / WORK_S)))
            if hanging:
                group.create_task(hung())
    return took, refused, peak


async def _names(answer: Any, prove: Prove) -> None:
    """Full compartments on all sides; in each of the others, every slot is free."""
    bench = _Bench(answer, prove, 2, 1)
    full = [bench.send(name, number, 50.0) for name in ("a", "b") for number in range(3)]
    await asyncio.sleep(0.1)
    for name in ("c", "a, too", ""):
        await bench.fits(EVERYBODY, "Two others are full", name, 2, 1)
    start = asyncio.get_running_loop().time()
    ends = await asyncio.gather(*(bench.send(f"name {number}", number, 1.0) for number in range(20)))
    took = asyncio.get_running_loop().time() - start
    told = f"20 names, one call of 1 s each: {ends.count('ok')} answered, after {took:g} s."
    prove(APART, ends.count("ok") == 20 and took < 1 + 1e-6, told)
    ends = await asyncio.gather(*full)
    prove(EVERYBODY, set(ends) == {"ok"}, "Calls that had a slot or a place in line were not answered.")


async def _failing(answer: Any, prove: Prove) -> None:
    errors = ValueError("the work failed"), TimeoutError(), asyncio.QueueFull("a queue inside the work is full")
    for error in errors:
        bench = _Bench(answer, prove, 2, 3)
        for _ in range(4):
            ends = await asyncio.gather(*(bench.send("users", number, 0.5, error) for number in range(5)))
            told = f"There is room for 5 works that raise {tell(error)}, and {ends.count('failed')} were done."
            prove(ERRORS, ends.count("failed") == 5, told)
        await bench.fits(ERRORS, f"After 20 works that raised {type(error).__name__}", "users", 2, 3)


async def _leavers(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove, 2, 4)
    tasks = [bench.send("users", number, 10.0) for number in range(6)]
    await asyncio.sleep(1)
    for number in (0, 3, 5):  # one that works, two that wait
        tasks[number].cancel()
    await asyncio.wait([tasks[number] for number in (0, 3, 5)])
    told = "A cancelled call ended as if nothing were."
    prove(CANCELS, all(tasks[number].cancelled() for number in (0, 3, 5)), told)
    prove(GONE, 0 not in bench.at_work, "A call was cancelled, and its work went on.")
    await asyncio.wait([task for task in tasks if not task.done()])
    told = "The work of a call began after that call was cancelled."
    prove(GONE, not {3, 5} & {label for _, label in bench.began}, told)
    await bench.fits(CANCELLED, "After calls that were cancelled", "users", 2, 4)
    just_come = bench.send("users", "cancelled before its first step", 1.0)
    just_come.cancel()
    await bench.fits(CANCELLED, "After a call that was cancelled before its first step", "users", 2, 4)


async def _churn(answer: Any, prove: Prove) -> None:
    """300 calls of three names that work, fail and leave, by chance; then all is as empty as it was."""
    dice, bench = random.Random(9), _Bench(answer, prove, 3, 6)
    tasks: list[asyncio.Task[str]] = []
    for number in range(300):
        error = ValueError("by chance") if dice.random() < 0.3 else None
        tasks.append(bench.send(dice.choice("abc"), number, dice.random(), error))
        if dice.random() < 0.3:
            asyncio.get_running_loop().call_later(dice.random(), tasks[-1].cancel)
        await asyncio.sleep(0.06 * dice.random())
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
    for name in "abc":
        prove(SIZE, bench.peak[name] <= 3, f"With size=3, {bench.peak[name]} calls of one name worked at once.")
        await bench.fits(CANCELLED, "After 300 calls that worked, failed or were cancelled", name, 3, 6)


async def _two_objects(answer: Any, prove: Prove) -> None:
    one, other = _Bench(answer, prove, 1, 1), _Bench(answer, prove, 1, 1)
    tasks = [one.send("users", number, 5.0) for number in range(2)]
    await asyncio.sleep(0.1)
    await other.fits(ALONE, "Another object is full for this name. In this one", "users", 1, 1)
    await asyncio.gather(*tasks)


async def _sweep(answer: Any, prove: Prove, calls: Calls, drive: Callable[[Any], Awaitable[Any]]) -> bool:
    """One call waits behind another; cancelled at any moment, it must leave its place."""
    bench = _Bench(answer, prove, 1, 1)
    first = bench.send("users", "first", 1.0)
    await asyncio.sleep(0.5)
    cancelled = False
    try:
        await bench.call("users", "second", 1.0, drive=drive)
    except asyncio.CancelledError:
        cancelled = True
    await first
    await bench.fits(CANCELLED, "After a call that was cancelled at one of its awaits", "users", 1, 1)
    return cancelled


EXERCISES = [
    Exercise(
        "9.3",
        "bulkheads",
        "Bulkheads(size, line)",
        ("size", "line"),
        three_hints("""
        An upstream hangs. How many calls stand before it after ten seconds, and what do they hold that
        a call for another upstream needs?

        A dict from name to what that name has alone: a semaphore of `size`, and a count of who is
        there, at work or in line. Count before the first await, and give back in finally.

        If self.inside[name] == self.size + self.line: raise asyncio.QueueFull; self.inside[name] += 1;
        then try: async with self.slots[name]: return await work(), and finally: self.inside[name] -= 1.
        """),
        check_bulkhead,
    )
]
