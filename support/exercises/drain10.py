"""The checker of exercise 10.4: a replica drains, behind a balancer that notices late and beside a queue of jobs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections import Counter
from typing import Any

from .engine import Exercise, three_hints
from .harness import SEEDS, Prove, observe, prove_clean

NOTICED = "refuses nobody: it closes when the balancer has noticed"
IN_FLIGHT = "what is in flight is answered"
LET_IN = "who was let in is answered, also when the balancer never notices"
PROMPT = "waits no longer than it must"
BOUND = "is over after the grace, whatever hangs"
ENDED = "what it cancels has ended before it returns"
ERRORS = "a request that fails does not disturb it"
NO_NEW_JOB = "takes no new job"
NOT_LOST = "no job is lost: each is finished or given back"
ONCE = "no job is done twice"
FINISHES = "a job that can be finished within the grace is finished"
NOTICE, GRACE = 0.25, 5.0  # seconds
CHECK, FALL = 0.1, 2  # the balancer asks /ready that often, and believes the second refusal
RATE, REPLICAS, START = 200.0, 3, 0.4  # requests per second; seconds until a new replica is ready
CLEANUP = 0.05  # seconds that a cancelled request or job takes to clean up
LATE = 0.1  # seconds that the checker forgives


class Replica:
    """What the answer gets: ready, taking, requests, jobs, close(), give_back(job)."""

    def __init__(self, queue: list[str] | None = None) -> None:
        self.ready = self.taking = True
        self.requests: set[asyncio.Task[str]] = set()
        self.jobs: dict[str, asyncio.Task[None]] = {}
        self._accepting, self._queue = True, queue if queue is not None else []
        self._effects: list[str] = []
        self._taken: list[float] = []
        self._working: set[asyncio.Task[None]] = set()
        self._given_away: list[str] = []  # jobs that were given back while they were being done

    def close(self) -> None:
        """Refuse new connections. Those that are open stay."""
        self._accepting = False

    def give_back(self, job: str) -> None:
        """Put a job back into the queue, for another worker. Raises KeyError for one that it does not hold."""
        if not self.jobs.pop(job).done():
            self._given_away.append(job)
        self._queue.append(job)

    def _ask(self, seconds: float, error: Exception | None = None) -> asyncio.Task[str] | None:
        """A request, or None when it is refused."""
        if not self._accepting:
            return None
        task = asyncio.create_task(_serve(seconds, error))
        self.requests.add(task)
        task.add_done_callback(self.requests.discard)
        return task

    async def _work(self, seconds: dict[str, float]) -> None:
        """Take jobs, three at a time. Each stays in `jobs` until it is finished."""
        while True:
            if self.taking and self._queue and len(self.jobs) < 3:
                job = self._queue.pop(0)
                self._taken.append(asyncio.get_running_loop().time())
                self.jobs[job] = task = asyncio.create_task(self._do(job, seconds[job]))
                self._working.add(task)
                task.add_done_callback(self._working.discard)
            await asyncio.sleep(0.05)

    async def _do(self, job: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(CLEANUP)
            if job != "commits in its cleanup":
                raise
        self._effects.append(job)
        self.jobs.pop(job, None)

    def _exit(self) -> list[asyncio.Task[Any]]:
        """As the end of the process: whatever runs is cut. Returns what still ran."""
        running = [task for task in (*self.requests, *self._working) if not task.done()]
        for task in running:
            task.cancel()
        return running


async def _serve(seconds: float, error: Exception | None) -> str:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        await asyncio.sleep(CLEANUP)
        raise
    if error:
        raise error
    return "ok"


class _Balancer:
    """Asks each replica for its readiness, and sends a request to the one with the least to do."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas, self.fails, self.outcomes = replicas, Counter[int](), Counter[str]()

    async def check(self) -> None:
        while True:
            for number, replica in enumerate(self.replicas):
                well = replica.ready and replica._accepting
                self.fails[number] = 0 if well else self.fails[number] + 1
            await asyncio.sleep(CHECK)

    async def send(self, seconds: float) -> None:
        up = [replica for number, replica in enumerate(self.replicas) if self.fails[number] < FALL]
        task = min(up, key=lambda replica: len(replica.requests))._ask(seconds) if up else None
        if task is None:
            self.outcomes["refused"] += 1
            return
        await asyncio.wait([task])
        self.outcomes["cut" if task.cancelled() else "ok"] += 1


def check_drain(answer: Any, prove: Prove) -> None:
    """Scenes for one replica, then a rolling restart of three at 200 requests a second."""
    rolls = [functools.partial(_rolling, seed) for seed in SEEDS]
    for scene in (_idle, _arriving, *rolls, _unnoticed, _hanging, _failing, _jobs):
        run = observe(scene, answer, prove)
        run.result()
        prove_clean(prove, run)


@contextlib.asynccontextmanager
async def _beside(*coroutines: Any) -> Any:
    """Run them until the block is left."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drained(answer: Any, replica: Replica) -> tuple[float, list[asyncio.Task[Any]]]:
    """Seconds that the answer took, and what was still running when it returned. The process ends with it."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    if await answer(replica, NOTICE, GRACE) is Ellipsis:
        raise NotImplementedError
    took, running = loop.time() - start, replica._exit()
    replica._accepting = replica.taking = False
    return took, running


async def _idle(answer: Any, prove: Prove) -> None:
    took, _ = await _drained(answer, Replica())
    told = "A replica with nothing to do was not over soon after the balancer had noticed."
    prove(PROMPT, took <= NOTICE + LATE, told)


async def _arriving(answer: Any, prove: Prove) -> None:
    """Two requests are there; until the balancer notices two more come, and one is the longest of them."""
    replica = Replica()
    asked = [replica._ask(0.1), replica._ask(1.0)]

    async def late() -> None:
        for _ in range(2):
            await asyncio.sleep(NOTICE * 0.45)
            asked.append(replica._ask(1.5))

    async with _beside(late()):
        took, running = await _drained(answer, replica)
        if running:
            await asyncio.wait(running)
    prove(
        NOTICED, None not in asked and len(asked) == 4, "The balancer had not noticed yet, and a request was refused."
    )
    cut = [task for task in asked if task in running or task.cancelled()]
    told = "A request of 1.5 s, that came before the balancer had noticed, was not answered, with 5 s to do it."
    prove(IN_FLIGHT, not cut, told)
    prove(PROMPT, took <= NOTICE * 0.9 + 1.5 + LATE, "All requests were answered, and it went on waiting.")


async def _rolling(seed: int, answer: Any, prove: Prove) -> None:
    draw = random.Random(seed)
    balancer = _Balancer([Replica() for _ in range(REPLICAS)])

    async def load() -> None:
        async with asyncio.TaskGroup() as group:
            while not over.is_set():
                group.create_task(balancer.send(draw.uniform(0.02, 0.4)))
                await asyncio.sleep(draw.expovariate(RATE))

    over = asyncio.Event()
    async with _beside(balancer.check(), load()) as (_, sender):
        for number in range(REPLICAS):
            await asyncio.sleep(0.3)
            await _drained(answer, balancer.replicas[number])
            await asyncio.sleep(START)
            balancer.replicas[number] = Replica()
        over.set()
        await sender
    told = "In a rolling restart at 200 requests a second, requests were sent to a replica that refused them."
    prove(NOTICED, not balancer.outcomes["refused"], told)
    told = "In a rolling restart at 200 requests a second, requests were cut off by the replica that ended."
    prove(IN_FLIGHT, not balancer.outcomes["cut"], told)


async def _unnoticed(answer: Any, prove: Prove) -> None:
    """Somebody keeps sending, past any balancer: to be refused is all right for him, to be cut off is not."""
    replica, asked = Replica(), []

    async def stubborn() -> None:
        while True:
            asked.append(replica._ask(0.3))
            await asyncio.sleep(0.1)

    async with _beside(stubborn()):
        took, running = await _drained(answer, replica)
    if running:
        await asyncio.wait(running)
    cut = [task for task in asked if task and (task in running or task.cancelled())]
    told = "A client kept sending, past the balancer. It was let in to the end, and its last requests were cut off."
    prove(LET_IN, not cut, told)
    told = "A client kept sending, past the balancer, and it waited for him to stop."
    prove(PROMPT, took <= NOTICE + 0.3 + LATE, told)


async def _hanging(answer: Any, prove: Prove) -> None:
    replica = Replica()
    hanging, slow = replica._ask(3600.0), replica._ask(GRACE - 0.2)
    took, running = await _drained(answer, replica)
    if running:
        await asyncio.wait(running)
    told = f"A request hung. With a grace of {GRACE:g} s, it was not over {GRACE + CLEANUP + LATE:g} s after its start."
    prove(BOUND, took <= GRACE + CLEANUP + LATE, told)
    prove(IN_FLIGHT, not slow.cancelled(), "A request that would have been answered within the grace was cut off.")
    told = (
        "A request hung. It returned, and so ended the process, while that request, or its cleanup, was still running."
    )
    prove(ENDED, hanging not in running, told)


async def _failing(answer: Any, prove: Prove) -> None:
    replica = Replica()
    broken, good = replica._ask(0.4, ValueError("the handler failed")), replica._ask(1.0)
    _, running = await _drained(answer, replica)
    if running:
        await asyncio.wait(running)
    await asyncio.wait([broken, good])
    prove(ERRORS, not good.cancelled(), "One request raised ValueError, and another was cut off.")
    broken.exception()


async def _jobs(answer: Any, prove: Prove) -> None:
    seconds = {"short": 2.0, "long": 3600.0, "commits in its cleanup": 3600.0} | {f"later {n}": 1.0 for n in range(20)}
    queue = list(seconds)
    replica = Replica(queue)
    async with _beside(replica._work(seconds)):
        await asyncio.sleep(0.5)
        began = asyncio.get_running_loop().time()
        took, running = await _drained(answer, replica)
    held = list(replica.jobs)
    if running:
        await asyncio.wait(running)
    told = "It went on taking jobs from the queue."
    prove(NO_NEW_JOB, replica._taken[-1] - began <= NOTICE + LATE, told)
    told = f"A job was too long. With a grace of {GRACE:g} s, it was not over {GRACE + CLEANUP + LATE:g} s after its start."
    prove(BOUND, took <= GRACE + CLEANUP + LATE, told)
    told = "A job that was still running was given back: it may finish here, and another worker does it again."
    prove(ONCE, not replica._given_away and not set(queue) & set(replica._effects), told)
    prove(FINISHES, "short" in replica._effects, "A job of 2 s was not finished, with a grace of 5 s.")
    told = "It returned with a job that was neither finished nor given back: nobody knows of it any more."
    prove(NOT_LOST, not held and not running and {*replica._effects, *queue} == set(seconds), told)


EXERCISES = [
    Exercise(
        "10.4",
        "Graceful drain",
        "async def drain(replica, notice_s, grace_s)",
        ("replica", "notice_s", "grace_s"),
        three_hints(
            """Who sends requests to this replica after it has begun to end, and when does he stop? What must
            still be true at that moment?

            First ready = False and taking = False, then sleep(notice_s), then close(). From there nothing new
            comes: asyncio.wait() on what is in requests and in jobs, with what is left of the grace as its timeout.

            end = loop.time() + grace_s; after the close: work = {*replica.requests, *replica.jobs.values()}; if work:
            _, late = await asyncio.wait(work, timeout=end - loop.time()). Cancel those that are late, gather them with
            return_exceptions=True, and only then give back the jobs that replica.jobs still holds."""
        ),
        check_drain,
    )
]
