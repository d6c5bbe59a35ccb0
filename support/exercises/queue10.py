"""The servers of exercise 10.2: a queue that hands out again, a database with transactions, and a process that dies."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from typing import Any

TIMEOUT_S, LATENCY_S = 30.0, 0.01  # seconds after which an idle job comes again; of a message's way, there or back


@dataclass(frozen=True)
class Job:
    """What the queue hands out. ``number`` is the queue's own, ``key`` is what the client asked for."""

    number: int
    key: str
    deliveries: int


class World:
    """The servers: a queue that hands out again what nobody acknowledged, and a database with transactions."""

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.waiting = dict(enumerate(keys)), collections.deque(range(len(keys)))
        self.deliveries: collections.Counter[int] = collections.Counter()
        self.given: dict[int, float] = {}  # number of a job: when it comes again
        self.acked: list[int] = []
        self.dead: list[int] = []
        self.committed: set[str] = set()  # keys
        self.effects: collections.Counter[str] = collections.Counter()
        self.open: dict[str, Transaction] = {}  # keys that a transaction has added, and not committed
        self.calls: collections.Counter[int] = collections.Counter()  # how often a job was handled

    @property
    def settled(self) -> bool:
        return len(self.acked) + len(self.dead) == len(self.keys)

    def give(self) -> Job | None:
        now = asyncio.get_running_loop().time()
        due = [number for number, when in self.given.items() if when <= now]
        number = due[0] if due else self.waiting.popleft() if self.waiting else None
        if number is None:
            return None
        self.deliveries[number] += 1
        self.given[number] = now + TIMEOUT_S
        return Job(number, self.keys[number], self.deliveries[number])

    def pause(self) -> float:
        """Seconds until the next job is due, at most half an idle time."""
        now = asyncio.get_running_loop().time()
        return max(LATENCY_S, min([when - now for when in self.given.values()] + [TIMEOUT_S / 2]))

    def remove(self, job: Job, into: list[int]) -> None:
        if job.number not in self.acked + self.dead:
            into.append(job.number)
        self.given.pop(job.number, None)


class Line:
    """The connections of one worker. When the worker is killed, they are cut: nothing passes any more."""

    def __init__(self, world: World) -> None:
        self.world, self.cut = world, False
        self.transactions: set[Transaction] = set()

    async def call(self, action: Callable[[], Any]) -> Any:
        """A request on its way, what the server does, and the answer on its way: a kill can come between."""
        await self.way()
        done = action()
        await self.way()
        return done

    async def way(self) -> None:
        await asyncio.sleep(LATENCY_S)
        if self.cut:  # a dead process does not go on
            await asyncio.get_running_loop().create_future()

    def break_off(self) -> None:
        self.cut = True
        for transaction in list(self.transactions):
            transaction.end(commit=False)


class Queue:
    """The reader's end of the queue."""

    def __init__(self, line: Line) -> None:
        self.line = line

    async def take(self) -> Job:
        """Wait for a job: one that nobody acknowledged in time, or a new one."""
        world = self.line.world
        while (job := await self.line.call(world.give)) is None:
            await asyncio.sleep(world.pause())
        return job

    async def ack(self, job: Job) -> None:
        """The job is done: it does not come again."""
        world = self.line.world
        await self.line.call(lambda: world.remove(job, world.acked))

    async def dead_letter(self, job: Job) -> None:
        """Move the job to the dead letters, in one step: it does not come again."""
        world = self.line.world
        await self.line.call(lambda: world.remove(job, world.dead))


class Statements:
    """What can be asked of the database, in a transaction or, each for itself, outside of one."""

    line: Line
    own: Transaction | None = None

    async def has_key(self, key: str) -> bool:
        return await self.line.call(
            lambda: key in self.line.world.committed or self.own is not None and key in self.own.keys
        )

    async def add_key(self, key: str) -> bool:
        """False when it is there. It waits for another transaction that has added it, and not yet ended."""
        world = self.line.world
        await self.line.way()
        while (other := world.open.get(key)) is not None and other is not self.own:
            await other.ended.wait()
        if new := key not in world.committed and (self.own is None or key not in self.own.keys):
            if self.own is None:
                world.committed.add(key)
            else:
                self.own.keys.add(key)
                world.open[key] = self.own
        await self.line.way()
        return new

    async def effect(self, key: str) -> None:
        await self.line.call(lambda: (self.line.world.effects if self.own is None else self.own.effects).update([key]))


class Store(Statements):
    """The reader's end of the database."""

    def __init__(self, line: Line) -> None:
        self.line = line

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Both or none: commits at the end of the block, and rolls back for an error, a cancellation or a kill."""
        transaction = Transaction(self.line)
        await self.line.call(lambda: self.line.transactions.add(transaction))
        try:
            yield transaction
            await self.line.call(lambda: transaction.end(commit=True))
        finally:
            transaction.end(commit=False)  # when it has not ended


class Transaction(Statements):
    def __init__(self, line: Line) -> None:
        self.line, self.own = line, self
        self.keys: set[str] = set()
        self.effects: collections.Counter[str] = collections.Counter()
        self.ended = asyncio.Event()

    def end(self, commit: bool) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        world = self.line.world
        if commit:
            world.committed |= self.keys
            world.effects.update(self.effects)
        world.open = {key: owner for key, owner in world.open.items() if owner is not self}
        self.line.transactions.discard(self)


class Killed:
    """Drives a coroutine, and stops for good at one of its suspensions: no finally, no except runs, as with SIGKILL."""

    def __init__(self, awaitable: Any, line: Line, at: int) -> None:
        self.awaitable, self.line, self.at, self.seen, self.died = awaitable, line, at, 0, False

    def now(self) -> None:
        """The next suspension is the last."""
        self.at = self.seen + 1

    def __await__(self) -> Generator[Any, Any, Any]:
        steps, error = self.awaitable.__await__(), None
        while True:
            try:
                waiting_for = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as stop:
                return stop.value
            self.seen += 1
            if self.seen == self.at:
                self.died = True
                self.line.break_off()
                self.rest = steps  # kept as it is: a dead process runs no clean-up
                return None
            try:
                error = None
                yield waiting_for
            except BaseException as thrown:
                error = thrown

    def bury(self) -> None:
        """Close what is left of the coroutine, when it can do no harm."""
        if self.died:
            with contextlib.suppress(BaseException):
                self.awaitable.close()
