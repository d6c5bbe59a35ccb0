"""Random asyncio programs, each a pure function of its seed, that write down everything that they can see."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import random
from typing import Any

STEP: contextvars.ContextVar[int] = contextvars.ContextVar("STEP", default=0)


class NumberedTask(asyncio.Task):  # type: ignore[type-arg]
    """A task whose hash is its number: asyncio keeps tasks in sets, whose order is else a matter of addresses."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class Program:
    """A tree of tasks that sleep, lock, queue, fail, time out, cancel each other, and log what they see."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seen: list[Any] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.budget = 60  # actions, so that every program ends

    async def run(self, recorder: Any) -> list[Any]:
        """Run under ``recorder``, a context manager; returns the log, in which times are virtual."""
        asyncio.current_task().set_name("main")  # asyncio counts its own names on from run to run
        count = itertools.count(1)

        def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> NumberedTask:
            task = NumberedTask(coro, loop=loop, **options)
            task.number = next(count)
            if options.get("name") is None:
                task.set_name(f"nameless {task.number}")
            return task

        asyncio.get_running_loop().set_task_factory(factory)
        messages: list[str] = []  # kept apart: when the garbage collector runs is no business of the program's
        asyncio.get_running_loop().set_exception_handler(lambda _, context: messages.append(context["message"]))
        self.lock, self.semaphore, self.event = asyncio.Lock(), asyncio.Semaphore(2), asyncio.Event()
        self.queue: asyncio.Queue[int] = asyncio.Queue(2)
        with recorder:
            try:
                async with asyncio.timeout(50):
                    self.note("result", await self.body(0))
            except BaseException as error:
                self.note("raised", type(error).__name__, str(error), len(getattr(error, "exceptions", ())))
            for task in self.tasks:
                self.note(task.get_name(), task.done(), task.cancelled(), task.cancelling())
        left = sorted(task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()})
        task = None
        self.tasks.clear()
        gc.collect()
        return [*self.seen, left, sorted(messages)]

    def note(self, *facts: Any) -> None:
        task = asyncio.current_task()
        self.seen.append(
            (round(asyncio.get_running_loop().time(), 6), task.get_name() if task else None, STEP.get(), *facts)
        )

    def spawn(self, depth: int, group: asyncio.TaskGroup | None = None) -> asyncio.Task[Any]:
        create = asyncio.create_task if group is None else group.create_task
        task = create(self.body(depth + 1), name=f"t{len(self.tasks)}")
        self.tasks.append(task)
        return task

    async def body(self, depth: int) -> int:
        STEP.set(STEP.get() + 1)
        total = 0
        try:
            for _ in range(self.random.randint(1, 4)):
                self.budget -= 1
                if self.budget < 0:
                    break
                total += await self.action(depth)
        except Exception as error:
            self.note("caught", type(error).__name__)
            if self.random.random() < 0.6:
                raise
        finally:
            self.note("leaves", total)
            if self.random.random() < 0.1:
                await asyncio.sleep(0.1)
        return total

    async def action(self, depth: int) -> int:
        choices = [self.sleep, self.yields, self.locks, self.limited, self.puts, self.gets, self.sets, self.waits, self.fails, self.cancels,
                   self.times_out, self.streams, self.calls_soon]  # fmt: skip
        if depth < 3:
            choices += [self.groups, self.gathers, self.shields, self.waits_first, self.forgets] * 2
        chosen = self.random.choice(choices)
        self.note(chosen.__name__)
        return await chosen(depth)

    async def sleep(self, depth: int) -> int:
        return await asyncio.sleep(self.random.choice([0.1, 0.2, 0.5]), 1)

    async def yields(self, depth: int) -> int:
        return await asyncio.sleep(0, 2)

    async def locks(self, depth: int) -> int:
        async with self.lock:
            await asyncio.sleep(0.1)
        return 3

    async def limited(self, depth: int) -> int:
        async with self.semaphore:
            return await self.sleep(depth)

    async def puts(self, depth: int) -> int:
        async with asyncio.timeout(0.3):
            await self.queue.put(depth)
        return 4

    async def gets(self, depth: int) -> int:
        return await asyncio.wait_for(self.queue.get(), 0.3)

    async def sets(self, depth: int) -> int:
        self.event.set()
        return 5

    async def waits(self, depth: int) -> int:
        try:
            await asyncio.wait_for(self.event.wait(), 0.25)
        except TimeoutError:
            self.note("timed out")
        return 6

    async def fails(self, depth: int) -> int:
        raise ValueError(depth)

    async def cancels(self, depth: int) -> int:
        if self.tasks:
            self.note("cancel", self.random.choice(self.tasks).cancel("asked"))
        return 7

    async def times_out(self, depth: int) -> int:
        async with asyncio.timeout(0.15):
            await asyncio.sleep(1)
        return 0

    async def streams(self, depth: int) -> int:
        async def numbers():
            for number in range(3):
                await asyncio.sleep(0.05)
                yield number

        return sum([number async for number in numbers()])

    async def calls_soon(self, depth: int) -> int:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(self.note, "called soon")
        loop.call_later(0.1, lambda: future.done() or future.set_result(8))
        if self.tasks and self.random.random() < 0.3:
            loop.call_soon(self.random.choice(self.tasks).cancel)
        return await future

    async def groups(self, depth: int) -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [self.spawn(depth, group) for _ in range(self.random.randint(1, 3))]
        return sum(task.result() for task in tasks)

    async def gathers(self, depth: int) -> int:
        tasks = [self.spawn(depth) for _ in range(self.random.randint(1, 3))]
        results = await asyncio.gather(*tasks, return_exceptions=self.random.random() < 0.5)
        return len(results)

    async def shields(self, depth: int) -> int:
        async with asyncio.timeout(0.2):
            return await asyncio.shield(self.spawn(depth))

    async def waits_first(self, depth: int) -> int:
        done, pending = await asyncio.wait([self.spawn(depth), self.spawn(depth)], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return len(done)

    async def forgets(self, depth: int) -> int:
        self.spawn(depth)
        return 9
