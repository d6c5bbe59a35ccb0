"""The checker of exercise 10.2: a worker that is killed at every await in turn, and started again."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
from typing import Any

from .engine import Exercise, three_hints
from .faults import CANCELS, Canceller
from .harness import NO_TASKS_LEFT, SEEDS, Failed, Prove, observe, prove_clean, tell
from .queue10 import Job, Killed, Line, Queue, Statements, Store, World

DONE = "every job is done, and acknowledged"
ONE_KEY = "one key, one effect"
RETRIES = "what failed is tried again"
TRIES = "a failing job is tried as often as stated, then it is a dead letter"
DEADLY = "a job that kills its worker becomes a dead letter too"
LOST = "killed at any step, it loses no job"
DOUBLED = "killed at any step, it doubles no effect"
TWO = "two workers with the same job, one effect"
WORK_S = 0.5  # seconds of a job's work
LIMIT_S = 2000.0  # seconds in which all must be done: dozens of deliveries


class WorkFailed(Exception):
    """What a job raises that fails."""


class _Factory:
    """Starts workers of the reader, and lets jobs fail, hang or kill."""

    def __init__(self, answer: Any, prove: Prove, keys: list[str], tries: int = 3) -> None:
        self.answer, self.prove, self.tries, self.world = answer, prove, tries, World(keys)
        self.workers: list[Killed] = []
        self.fails: dict[str, float] = {}  # key: how many of its first calls fail
        self.kills: set[str] = set()  # keys of jobs that kill their worker
        self.stalls: dict[str, float] = {}  # key: seconds that its first call takes more

    def start(self, kill_at: int = 0) -> tuple[asyncio.Task[Any], Killed]:
        line = Line(self.world)
        worker: Killed

        async def handle(job: Job, db: Statements) -> None:
            self.world.calls[job.number] += 1
            call = self.world.calls[job.number]
            if job.key in self.kills:
                worker.now()
            await asyncio.sleep(WORK_S + (self.stalls.get(job.key, 0) if call == 1 else 0))
            if call <= self.fails.get(job.key, 0):
                raise WorkFailed(job.key)
            await db.effect(job.key)

        coroutine = self.answer(Queue(line), Store(line), handle, self.tries)
        if not asyncio.iscoroutine(coroutine):
            raise Failed("is a coroutine function", "It cannot be awaited: write async def.")
        worker = Killed(coroutine, line, kill_at)
        self.workers.append(worker)

        async def process() -> Any:
            return await worker

        process.__name__ = "work"
        return asyncio.create_task(process()), worker

    async def run(self, kill_at: Any = ()) -> bool:
        """Workers one after the other until each job has come to its end. Returns whether the first kill came."""
        kills, loop = iter(kill_at), asyncio.get_running_loop()
        first = True
        came = False
        try:
            while not self.world.settled and loop.time() < LIMIT_S:
                task, worker = self.start(next(kills, 0))
                while not task.done() and not self.world.settled and loop.time() < LIMIT_S:
                    await asyncio.wait([task], timeout=1.0)
                if not task.done():
                    await self._stop(task)
                elif not worker.died:
                    self._ended(task)
                came |= worker.died and first
                first = False
        finally:
            for worker in self.workers:
                worker.bury()
        return came

    async def _stop(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        await asyncio.wait([task], timeout=60)
        told = "A cancelled worker went on, or ended as if nothing were: let CancelledError through."
        self.prove(CANCELS, task.done() and task.cancelled(), told)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        error = task.exception() if not task.cancelled() else None
        if task.cancelled() or error is None:
            if not task.cancelled() and task.result() is Ellipsis:
                raise NotImplementedError
            self.prove(DONE, False, "The worker ended while there were jobs: it works until it is cancelled.")
        if isinstance(error, NotImplementedError | Failed):
            raise error
        told = f"The worker ended with {tell(error)}: a job that fails must not stop the others."
        self.prove(RETRIES if isinstance(error, WorkFailed) else DONE, False, told)

    def expect(self, when: str, poison: tuple[int, ...] = (), lost: str = DONE, doubled: str = ONE_KEY) -> None:
        """Each key has its effect once, but those of poison, which are the dead letters."""
        world = self.world
        bad = {world.keys[number] for number in poison}
        for key in dict.fromkeys(world.keys.values()):
            count = world.effects[key]
            self.prove(doubled, count <= 1, f"{when}, the effect of one job was there more than once.")
            if key not in bad:
                dead = any(world.keys[number] == key for number in world.dead)
                told = "it became a dead letter" if dead else "it is gone, or it comes again for ever"
                lacking = RETRIES if dead and self.fails.get(key) else lost
                self.prove(lacking, count == 1 and not dead, f"{when}, a job had no end as it should: {told}.")
        missing = [number for number in poison if number not in world.dead]
        lacking = DEADLY if any(world.keys[number] in self.kills for number in missing) else TRIES
        self.prove(lacking, not missing, f"{when}, a job that never succeeds did not get to the dead letters.")
        told = f"{when}, a job that was done was not acknowledged: it comes again and again."
        self.prove(lost, world.settled, told)


def check_worker(answer: Any, prove: Prove) -> None:
    """Plain runs with exact counts, then a kill and a cancellation at each await, then kills by chance."""
    for scene in (_plain, _twice, _flaky, _poison, _stopped):
        run = observe(functools.partial(scene, answer, prove))
        run.result()
        prove_clean(prove, run)
    for number in itertools.count(1):
        if not observe(functools.partial(_kill, number, answer, prove)).result():
            break
    for scene in (_deadly, _two_workers):
        observe(functools.partial(scene, answer, prove)).result()
    for moment in ("suspended", "woken"):
        for number in itertools.count(1):
            canceller = Canceller(number, moment)
            run = observe(functools.partial(_cancel, canceller, answer, prove))
            run.result()
            if not canceller.fired:
                break
            prove(NO_TASKS_LEFT, not run.left_over, f"Cancelled at {canceller}, it left a task running.")
    for seed in SEEDS:
        observe(functools.partial(_chaos, seed, answer, prove)).result()


async def _plain(answer: Any, prove: Prove) -> None:
    factory = _Factory(answer, prove, ["a", "b", "c"])
    await factory.run()
    factory.expect("With three jobs and no failure")
    told = "A job that was done came again: acknowledge it."
    prove(DONE, max(factory.world.deliveries.values()) == 1, told)
    prove(DONE, not factory.world.dead, "A job that was done is among the dead letters.")


async def _twice(answer: Any, prove: Prove) -> None:
    factory = _Factory(answer, prove, ["a", "b", "a"])  # a client asked twice, with one idempotency key
    await factory.run()
    factory.expect("When a client sends the same key twice")


async def _flaky(answer: Any, prove: Prove) -> None:
    factory = _Factory(answer, prove, ["a", "b", "c"])
    factory.fails = {"a": 1, "c": 1}
    await factory.run()
    factory.expect("When two of three jobs fail once, and tries=3", lost=RETRIES)


async def _poison(answer: Any, prove: Prove) -> None:
    for tries in (1, 4):
        factory = _Factory(answer, prove, ["good", "poison", "other"], tries)
        factory.fails = {"poison": float("inf")}
        await factory.run()
        told = f"With tries={tries}, a job that always fails was not tried {tries} times."
        prove(TRIES, factory.world.calls[1] == tries, told)
        factory.expect(f"With one job that always fails, and tries={tries}", (1,))


async def _deadly(answer: Any, prove: Prove) -> None:
    factory = _Factory(answer, prove, ["good", "deadly", "other"])
    factory.kills = {"deadly"}
    await factory.run()
    factory.expect("With one job that kills each worker", (1,))
    prove(DEADLY, factory.world.calls[1] == 3, "With tries=3, a job that kills its worker was not tried 3 times.")


async def _stopped(answer: Any, prove: Prove) -> None:
    """Cancelled while it waits for a job, and while it works: it ends at once, and the job is for another."""
    factory = _Factory(answer, prove, ["a"])
    for pause in (0.3, 0.0):
        task, _ = factory.start()
        await asyncio.sleep(pause or 40.0)
        if not pause:
            prove(LOST, factory.world.effects["a"] == 1, "A worker was stopped in mid-work, and its job was lost.")
        before = asyncio.get_running_loop().time()
        await factory._stop(task)
        told = "A cancelled worker took seconds to end: what it has not acknowledged comes again anyway."
        prove(CANCELS, asyncio.get_running_loop().time() - before < WORK_S, told)
    factory.expect("After a worker that was stopped in mid-work", lost=LOST, doubled=DOUBLED)


async def _two_workers(answer: Any, prove: Prove) -> None:
    """The first is slow, not dead: its job goes to the second, and both finish."""
    for stall in (29.0, 29.45, 29.49, 29.6, 31.0):
        factory = _Factory(answer, prove, ["slow"], tries=5)
        factory.stalls = {"slow": stall}
        tasks = [factory.start()[0] for _ in range(2)]
        await asyncio.sleep(120)
        for task in tasks:
            if task.done():
                factory._ended(task)
            await factory._stop(task)
        factory.expect("When a slow job is given to a second worker", lost=TWO, doubled=TWO)


async def _kill(number: int, answer: Any, prove: Prove) -> bool:
    factory = _Factory(answer, prove, ["good", "flaky", "poison"])
    factory.fails = {"poison": float("inf"), "flaky": 1}
    came = await factory.run([number])
    factory.expect(f"Killed at await number {number}", (2,), LOST, DOUBLED)
    return came


async def _cancel(canceller: Canceller, answer: Any, prove: Prove) -> None:
    factory = _Factory(answer, prove, ["good", "other"])
    line = Line(factory.world)

    async def handle(job: Job, db: Statements) -> None:
        await asyncio.sleep(WORK_S)
        await db.effect(job.key)

    async def first() -> None:
        await canceller.drive(answer(Queue(line), Store(line), handle, 3))

    task = asyncio.create_task(first())
    await asyncio.wait([task], timeout=20)
    if not task.done():
        await factory._stop(task)
    elif canceller.fired:
        told = f"A worker, cancelled at {canceller}, ended as if nothing were, or with another error."
        prove(CANCELS, task.cancelled(), told)
    else:
        factory._ended(task)
    await factory.run()
    factory.expect(f"Cancelled at {canceller}", lost=LOST, doubled=DOUBLED)


async def _chaos(seed: int, answer: Any, prove: Prove) -> None:
    """A dozen jobs, of which some fail and some come twice, and twenty workers that die by chance."""
    dice = random.Random(seed)
    keys = [f"key {dice.randrange(9)}" for _ in range(12)]
    factory = _Factory(answer, prove, keys, tries=50)
    factory.fails = {key: dice.randrange(3) for key in sorted(set(keys))}
    await factory.run([dice.randrange(1, 40) for _ in range(20)])
    factory.expect("After twenty kills by chance", lost=LOST, doubled=DOUBLED)


EXERCISES = [
    Exercise(
        "10.2",
        "an idempotent worker",
        "work(queue, store, handle, tries)",
        ("queue", "store", "handle", "tries"),
        three_hints("""
        After which step may the queue forget a job? And a worker that comes second: what in the store
        tells it that the effect is there, whatever the moment at which the first one died?

        Key, effect and nothing else in one transaction: add_key says whether the key is new. The ack
        comes after the commit. An error of the job: leave it, and it comes again. The number of its
        deliveries counts errors and dead workers alike: look at it before the work.

        job = await queue.take(); if job.deliveries > tries: await queue.dead_letter(job); continue.
        Then try: async with store.transaction() as db: if await db.add_key(job.key): await handle(job,
        db). except Exception: continue. And last await queue.ack(job).
        """),
        check_worker,
    )
]
