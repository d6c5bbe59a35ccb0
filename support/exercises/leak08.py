"""The checker of exercise 8.4, a leak fix: 10,000 jobs of all kinds, and nothing of them may be left."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

from .engine import Exercise, three_hints
from .faults import Calls
from .harness import Failed, Prove, observe, plain, prove_clean, tell

DELIVERS = "delivers every value and every error"
ONE_NUMBER = "a number stands for one job only"
STARTS = "starts every job at once"
LATEST = "keeps the jobs that ended last, and no others"
RUNNING = "never forgets a job that runs"
HOLDS = "holds its jobs, so that none is garbage-collected"
LEAVERS = "a caller that leaves does not stop the job"
STOPS = "cancel stops a job, and forgets it"
OBJECTS = "live objects are back at the baseline"
BYTES = "memory is back at the baseline"
NO_COLLECTOR = "does not call the garbage collector"
APART = "two services do not share their jobs"
WARM_UP, JOBS, BATCH = 1000, 10_000, 100  # jobs before the baseline; after it; started at once
NEAR = 50  # objects that the interpreter itself may have more or fewer
FEW_BLOCKS = 2000  # of memory, as pymalloc counts them: a number that is kept takes one
UNKNOWN = "raised KeyError"


class _Thing:
    """A body, or a result: something whose life can be followed."""


class _Service:
    """The answer at work. ``ask`` tells how ``result`` ended."""

    def __init__(self, answer: Any, prove: Prove, keep: int) -> None:
        self.prove, self.jobs, self.calls = prove, answer(keep), Calls()

    def start(self, work: Any) -> int:
        number = self.jobs.start(work)
        if number is Ellipsis:
            raise NotImplementedError
        told = "start must be a plain function, def, which returns the number of the job at once."
        self.prove(STARTS, isinstance(number, int), told)
        return number

    def job(self, seconds: float, outcome: Any = None, cleanup: float = 0.0) -> int:
        """Start a job that takes ``seconds``, and returns ``outcome``, or raises it if that is an error."""
        run = self.calls.job("job", seconds, outcome, cleanup=cleanup)

        async def work() -> Any:
            value = await run()
            if isinstance(value, Exception):
                raise value
            return value

        return self.start(work)

    async def ask(self, number: int) -> Any:
        """The value, the error of the job itself, or UNKNOWN."""
        try:
            return await self.jobs.result(number)
        except KeyError:
            return UNKNOWN
        except (NotImplementedError, Failed):
            raise
        except Exception as error:
            return error

    def cancel(self, number: int) -> None:
        told = "cancel must be a plain function, def, which returns None at once."
        self.prove(STOPS, self.jobs.cancel(number) is None, told)

    async def expect(self, lacking: str, number: int, value: Any, scene: str) -> None:
        got = await self.ask(number)
        told = tell(got) if isinstance(got, Exception) else plain(repr(got)) if got is not UNKNOWN else "KeyError"
        self.prove(lacking, got is value, f"{scene}, result({number}) gave {told}.")


def check_leak(answer: Any, prove: Prove) -> None:
    """Small scenes with exact outcomes, then 11,000 jobs: what lives then is compared with what lived after 1000."""
    for scene in (_delivers, _together, _running, _latest, _leavers, _stopped, _unreferenced, _apart, _drive):
        run = observe(functools.partial(_to_its_end, scene, answer, prove))
        run.result()
        run.loop_errors = run.loop_errors[:1]  # of many jobs that end in the same way
        prove_clean(prove, run)


async def _to_its_end(scene: Any, answer: Any, prove: Prove) -> None:
    await scene(answer, prove)
    await asyncio.sleep(1)  # what ended at the last moment is done with


async def _delivers(answer: Any, prove: Prove) -> None:
    service, value, error = _Service(answer, prove, 10), _Thing(), ValueError("the job failed")
    numbers = [service.job(1.0, value), service.job(1.0, error), service.job(1.0, None)]
    prove(ONE_NUMBER, len(set(numbers)) == 3, f"Three jobs got the numbers {numbers}.")
    await asyncio.sleep(0.5)
    told = f"Of three jobs that were started, {len(service.calls.started)} had begun half a second later."
    prove(STARTS, len(service.calls.started) == 3, told)
    for scene in ("While the job runs", "After its end", "Asked again"):
        asked = [service.expect(DELIVERS, *one, scene) for one in zip(numbers, (value, error, None), strict=True)]
        await asyncio.gather(*asked)
    await service.expect(DELIVERS, 10**6, UNKNOWN, "For a number that there never was")
    took = asyncio.get_running_loop().time()
    prove(STARTS, took == 1.0, f"Three jobs of 1 s, all started at 0 s, were done at {took:g} s.")


async def _latest(answer: Any, prove: Prove) -> None:
    """Started in one order, ended in the opposite one."""
    service, values = _Service(answer, prove, 5), [_Thing() for _ in range(20)]
    numbers = [service.job(20.0 - place, value) for place, value in enumerate(values)]
    await asyncio.sleep(30)
    gc.collect()  # what is held by weak references only is gone now
    for place, number in enumerate(numbers):
        kept = place < 5
        scene = f"20 jobs have ended, keep is 5, and this one was among the {'last 5' if kept else 'first 15'} to end"
        await service.expect(LATEST, number, values[place] if kept else UNKNOWN, scene)
    prove(ONE_NUMBER, service.job(0.0) not in numbers, "A new job got the number of an older one.")


async def _running(answer: Any, prove: Prove) -> None:
    service, slow, value = _Service(answer, prove, 3), _Thing(), _Thing()
    numbers = [service.job(1000.0, slow) for _ in range(10)]
    for number in range(60):
        service.job(1.0, ValueError("the job failed") if number % 3 else value)
        await asyncio.sleep(2)
    prove(RUNNING, not service.calls.cancelled, "Jobs that ran were cancelled, to make room.")
    scene = "keep is 3. 10 jobs run for 1000 s, and 60 have come and ended since"
    await asyncio.gather(*(service.expect(RUNNING, number, slow, scene) for number in numbers))


async def _together(answer: Any, prove: Prove) -> None:
    """More jobs end at once than are kept: who waits for them gets them all the same."""
    service, values = _Service(answer, prove, 1), [_Thing() for _ in range(5)]
    numbers = [service.job(1.0, value) for value in values]
    asked = [asyncio.create_task(service.ask(number)) for number in numbers * 2]
    got = await asyncio.gather(*asked)
    missed = sum(one is not value for one, value in zip(got, values * 2, strict=True))
    told = f"keep is 1. 5 jobs ended at once, two callers waited for each: {missed} of the 10 did not get the value."
    prove(DELIVERS, not missed, told)


async def _leavers(answer: Any, prove: Prove) -> None:
    service, value = _Service(answer, prove, 3), _Thing()
    number = service.job(10.0, value)
    callers = [asyncio.create_task(service.jobs.result(number)) for _ in range(3)]
    await asyncio.sleep(1)
    for caller in callers[:2]:
        caller.cancel()
    await asyncio.wait(callers[:2])
    told = "A cancelled call of result did not raise CancelledError."
    prove(LEAVERS, all(one.cancelled() for one in callers[:2]), told)
    got = await asyncio.gather(callers[2], return_exceptions=True)
    prove(LEAVERS, got[0] is value, "Two of three callers were cancelled, and the third did not get the value.")
    await service.expect(LEAVERS, number, value, "After two callers that were cancelled")


async def _stopped(answer: Any, prove: Prove) -> None:
    service, value = _Service(answer, prove, 10), _Thing()
    number, other, ended = service.job(100.0, cleanup=3.0), service.job(100.0, value), service.job(1.0, value)
    caller = asyncio.create_task(service.ask(number))
    await asyncio.sleep(2)
    service.cancel(number)
    service.cancel(ended)
    await service.expect(STOPS, ended, UNKNOWN, "After cancel of a job that had ended")
    await asyncio.sleep(5)
    told = f"cancel was called for one job of two, and {len(service.calls.cancelled)} were cancelled."
    prove(STOPS, len(service.calls.cancelled) == 1, told)
    right = caller.done() and not caller.cancelled() and caller.result() is UNKNOWN
    prove(STOPS, right, "A caller that waited for a job got no KeyError when that job was cancelled.")
    await service.expect(STOPS, number, UNKNOWN, "After cancel of a job that ran")
    await service.expect(STOPS, other, value, "After cancel of another job")
    just_come = service.job(1.0, value)
    service.cancel(just_come)
    await service.expect(STOPS, just_come, UNKNOWN, "After cancel of a job before its first step")


async def _unreferenced(answer: Any, prove: Prove) -> None:
    """Jobs that wait for something that only they themselves hold: nothing but the service keeps them alive."""
    service, waited_for, value = _Service(answer, prove, 2), [], _Thing()

    async def work() -> Any:
        future = asyncio.get_running_loop().create_future()
        waited_for.append(weakref.ref(future))
        return await future

    numbers = [service.start(work) for _ in range(5)]
    await asyncio.sleep(1)
    gc.collect()
    told = "A collection of the garbage collector took jobs away in the middle of their work."
    prove(HOLDS, len(waited_for) == 5 and all(one() is not None for one in waited_for), told)
    for one in waited_for:
        one().set_result(value)
    await service.expect(HOLDS, numbers[-1], value, "After a collection of the garbage collector")


async def _apart(answer: Any, prove: Prove) -> None:
    one, other, values = _Service(answer, prove, 2), _Service(answer, prove, 2), (_Thing(), _Thing())
    numbers = one.job(1.0, values[0]), other.job(1.0, values[1])
    await asyncio.sleep(2)
    _ = [other.job(0.0) for _ in range(5)], await asyncio.sleep(1)
    await one.expect(APART, numbers[0], values[0], "Beside another service, with jobs of its own")


async def _drive(answer: Any, prove: Prove) -> None:
    """Jobs that work, fail and are cancelled; callers that ask, leave, and never come. Then: what is left?"""
    service, alive = _Service(answer, prove, 10), weakref.WeakSet()

    async def work(kind: int) -> Any:
        body = _Thing()
        alive.add(body)
        await asyncio.sleep(2.0 if kind == 2 else 0)
        if kind == 1:
            raise ValueError("the job failed")
        return body

    async def rush(batches: int, long: int) -> None:
        for _ in range(batches):
            numbers = [service.start(functools.partial(work, number % 4)) for number in range(BATCH)]
            callers = [asyncio.create_task(service.jobs.result(number)) for number in numbers[::19]]
            callers += [asyncio.create_task(service.jobs.result(long)) for _ in range(5)]
            await asyncio.sleep(1)
            _ = [caller.cancel() for caller in callers], [service.jobs.cancel(number) for number in numbers[2::4]]
            await asyncio.gather(*callers, return_exceptions=True)
            prove(NO_COLLECTOR, not memory.collections, "It called gc.collect(): that looks at every object.")
        await asyncio.sleep(9)

    with _watched_memory() as memory:
        long = service.job(1e4)
        await rush(WARM_UP // BATCH, long)
        before = memory.now()
        await rush(JOBS // BATCH, long)
        objects, blocks = (now - then for now, then in zip(memory.now(), before, strict=True))
    prove(OBJECTS, len(alive) <= NEAR, f"keep is 10. After {JOBS:,} jobs more than {NEAR} bodies are alive.")
    told = f"{JOBS:,} jobs later there are over {NEAR} objects more: look at what ended, failed, or was cancelled."
    prove(OBJECTS, objects <= NEAR, told)
    prove(BYTES, blocks <= FEW_BLOCKS, f"{JOBS:,} jobs later it holds more, in things as small as numbers.")
    service.cancel(long)


class _Memory:
    """What is alive. ``collections``: how many of the garbage collector somebody else asked for."""

    def __init__(self) -> None:
        self.collections, self._mine = 0, False

    def heard(self, phase: str, _: Any) -> None:
        self.collections += phase == "start" and not self._mine

    def now(self) -> tuple[int, int]:
        """Objects that the collector knows, and blocks of memory, without what only waits to be collected."""
        self._mine = True
        gc.collect()
        self._mine = False
        seen = [(len(gc.get_objects()), sys.getallocatedblocks()) for _ in range(3)]
        return min(objects for objects, _ in seen), min(blocks for _, blocks in seen)  # other threads only add


@contextlib.contextmanager
def _watched_memory() -> Iterator[_Memory]:
    """No automatic collections meanwhile: those that happen were asked for."""
    memory, automatic = _Memory(), gc.isenabled()
    gc.callbacks.append(memory.heard)
    gc.disable()
    try:
        yield memory
    finally:
        gc.callbacks.remove(memory.heard)
        if automatic:
            gc.enable()


EXERCISES = [
    Exercise(
        "8.4",
        "a leak fix",
        "Jobs(keep)",
        ("keep",),
        three_hints("""
        Which jobs does somebody still need: those that run, those that ended, those that failed, those
        that were cancelled? Who tells the service that one of them has come to its end?

        Two dicts: running, number -> task, and ended, number -> task. task.add_done_callback is called in
        every case, also on an error or a cancellation. It moves the task from one dict to the other, or
        drops it. asyncio.wait([task]) waits, and cancels nothing.

        In the callback: self.running.pop(number, None); if not task.cancelled(): task.exception() and
        self.ended[number] = task; then del self.ended[next(iter(self.ended))] while there are more than keep.
        """),
        check_leak,
    )
]
