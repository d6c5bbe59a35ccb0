"""Right and wrong answers to exercise 8.1, a bounded pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import math

import anyio
from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

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
CANCELS = "passes a cancellation on"
NO_TASKS = "leaves no task behind"
ENDS = "comes to an end"
NO_ERROR = "runs without an error"
END = object()


@stub("8.1")
async def pipeline_stub(source, work, write, workers, bound):
    """Read, work, write."""
    raise NotImplementedError


@stub("8.1")
async def pipeline_pass(source, work, write, workers, bound):
    pass


@right("8.1")
async def pipeline(source, work, write, workers, bound):
    todo, done = asyncio.Queue(1), asyncio.Queue(bound - workers - 3)

    async def read():
        async for item in source:
            await todo.put(item)
        for _ in range(workers):
            await todo.put(END)

    async def worker():
        while (item := await todo.get()) is not END:
            await done.put(await work(item))
        await done.put(END)

    async def writer():
        left = workers
        while left:
            if (result := await done.get()) is END:
                left -= 1
            else:
                await write(result)

    async with asyncio.TaskGroup() as group:
        for stage in [read, writer] + [worker] * workers:
            group.create_task(stage())


@right("8.1")
async def pipeline_counts_items_in_a_semaphore(source, work, write, workers, bound):
    """The bound is the semaphore's: it is taken before the read, and given back after the write."""
    room, todo, done = asyncio.Semaphore(bound), asyncio.Queue(), asyncio.Queue()

    async def worker():
        while True:
            item = await todo.get()
            done.put_nowait(await work(item))

    async def writer():
        while True:
            await write(await done.get())
            room.release()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker()) for _ in range(workers)] + [group.create_task(writer())]
        await room.acquire()
        async for item in source:
            todo.put_nowait(item)
            await room.acquire()
        for _ in range(bound - 1):  # all places are free again: everything is written
            await room.acquire()
        for task in tasks:
            task.cancel()


@right("8.1")
async def pipeline_joins(source, work, write, workers, bound):
    """task_done after the next stage has the item, and join in the order of the stages."""
    todo, done = asyncio.Queue(1), asyncio.Queue(1)

    async def worker():
        while True:
            await done.put(await work(await todo.get()))
            todo.task_done()

    async def writer():
        while True:
            await write(await done.get())
            done.task_done()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker()) for _ in range(workers)] + [group.create_task(writer())]
        async for item in source:
            await todo.put(item)
        await todo.join()
        await done.join()
        for task in tasks:
            task.cancel()


@right("8.1")
async def pipeline_in_streams(source, work, write, workers, bound):
    """anyio's memory object streams: a receiver ends when the last clone of its sender is closed."""
    to_work, todo = anyio.create_memory_object_stream(1)
    to_write, done = anyio.create_memory_object_stream(1)

    async def read():
        async with to_work:
            async for item in source:
                await to_work.send(item)

    async def worker(todo, to_write):
        async with todo, to_write:
            async for item in todo:
                await to_write.send(await work(item))

    async def writer():
        async with done:
            async for result in done:
                await write(result)

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        group.start_soon(writer)
        with todo, to_write:
            for _ in range(workers):
                group.start_soon(worker, todo.clone(), to_write.clone())


@right("8.1")
async def pipeline_shuts_down(source, work, write, workers, bound):
    """Queue.shutdown where there is one (3.13), ends for each worker elsewhere."""
    if not hasattr(asyncio.Queue, "shutdown"):
        return await pipeline(source, work, write, workers, bound)
    todo, done = asyncio.Queue(1), asyncio.Queue(1)

    async def worker():
        with contextlib.suppress(asyncio.QueueShutDown):
            while True:
                await done.put(await work(await todo.get()))

    async def writer():
        with contextlib.suppress(asyncio.QueueShutDown):
            while True:
                await write(await done.get())

    async with asyncio.TaskGroup() as group:
        group.create_task(writer())
        async with asyncio.TaskGroup() as workshop:
            for _ in range(workers):
                workshop.create_task(worker())
            async for item in source:
                await todo.put(item)
            todo.shutdown()
        done.shutdown()


@right("8.1")
async def pipeline_in_two_groups(source, work, write, workers, bound):
    """When the group of the workers has ended, all that there is to write is in the queue."""
    todo, done = asyncio.Queue(1), asyncio.Queue(1)

    async def worker():
        while (item := await todo.get()) is not END:
            await done.put(await work(item))

    async def writer():
        while (result := await done.get()) is not END:
            await write(result)

    async with asyncio.TaskGroup() as group:
        group.create_task(writer())
        async with asyncio.TaskGroup() as workshop:
            for _ in range(workers):
                workshop.create_task(worker())
            async for item in source:
                await todo.put(item)
            for _ in range(workers):
                await todo.put(END)
        await done.put(END)


def variant(todo_size=1, done_size=1, ends=None, queue=asyncio.Queue, writers=1, extra_workers=0, end=END, after=False):
    """The first right answer, with one thing made differently."""

    async def run(source, work, write, workers, bound):
        crew = workers + extra_workers
        todo, done = queue(todo_size), queue(done_size)

        async def read():
            async for item in source:
                await todo.put(item)
            for _ in range(crew if ends is None else ends):
                await todo.put(end)

        async def worker():
            while (item := await todo.get()) is not end:
                await done.put(await work(item))
            await done.put(end)

        async def writer(left):
            while left:
                if (result := await done.get()) is end:
                    left -= 1
                else:
                    await write(result)

        async with asyncio.TaskGroup() as group:
            for stage in [read] + [worker] * crew:
                group.create_task(stage())
            for _ in range(writers):
                group.create_task(writer(math.ceil(crew / writers)))

    return run


@wrong("8.1", BOUND)
async def pipeline_unbounded_queues(source, work, write, workers, bound):
    await variant(todo_size=0, done_size=0)(source, work, write, workers, bound)


@wrong("8.1", BOUND)
async def pipeline_second_queue_unbounded(source, work, write, workers, bound):
    await variant(done_size=0)(source, work, write, workers, bound)


@wrong("8.1", BOUND)
async def pipeline_bound_for_each_queue(source, work, write, workers, bound):
    await variant(bound, bound)(source, work, write, workers, bound)


@wrong("8.1", BOUND)
async def pipeline_forgets_the_hands(source, work, write, workers, bound):
    """The queues hold bound items, and each stage one more."""
    await variant(2, bound - 2)(source, work, write, workers, bound)


@wrong("8.1", BOUND)
async def pipeline_forgets_the_writer(source, work, write, workers, bound):
    """One too many: what the writer holds is in flight, too."""
    await variant(1, bound - workers - 2)(source, work, write, workers, bound)


@wrong("8.1", BOUND)
async def pipeline_reads_before_it_asks(source, work, write, workers, bound):
    """The item that waits for its place has been read."""
    room, todo, done = asyncio.Semaphore(bound), asyncio.Queue(), asyncio.Queue()

    async def worker():
        while True:
            done.put_nowait(await work(await todo.get()))

    async def writer():
        while True:
            await write(await done.get())
            room.release()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker()) for _ in range(workers)] + [group.create_task(writer())]
        async for item in source:
            await room.acquire()
            todo.put_nowait(item)
        for _ in range(bound):
            await room.acquire()
        for task in tasks:
            task.cancel()


@wrong("8.1", OVERLAP)
async def pipeline_one_item_at_a_time(source, work, write, workers, bound):
    async for item in source:
        await write(await work(item))


@wrong("8.1", OVERLAP)
async def pipeline_in_batches(source, work, write, workers, bound):
    """Reads a batch, works on it, writes it."""
    room = asyncio.Semaphore(workers)

    async def one(item):
        async with room:
            return await work(item)

    async def flush(batch):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in batch]
        for task in tasks:
            await write(task.result())

    batch = []
    async for item in source:
        batch.append(item)
        if len(batch) == bound:
            await flush(batch)
            batch = []
    await flush(batch)


@wrong("8.1", OVERLAP)
async def pipeline_reads_all_first(source, work, write, workers, bound):
    items = [item async for item in source]

    async def again():
        for item in items:
            yield item

    await pipeline(again(), work, write, workers, bound)


@wrong("8.1", ENDS)
async def pipeline_one_end_for_all_workers(source, work, write, workers, bound):
    """One worker takes it, the others wait for ever."""
    await variant(ends=1)(source, work, write, workers, bound)


@wrong("8.1", ANYTHING)
async def pipeline_ends_at_none(source, work, write, workers, bound):
    await variant(end=None)(source, work, write, workers, bound)


@wrong("8.1", ANYTHING)
async def pipeline_compares_by_value(source, work, write, workers, bound):
    """Something that is equal to its sentinel ends it."""
    todo, done = asyncio.Queue(1), asyncio.Queue(1)

    async def read():
        async for item in source:
            await todo.put(item)
        for _ in range(workers):
            await todo.put(END)

    async def worker():
        while (item := await todo.get()) != END:
            await done.put(await work(item))
        await done.put(END)

    async def writer():
        for _ in range(workers):
            while (result := await done.get()) is not END:
                await write(result)

    async with asyncio.TaskGroup() as group:
        for stage in [read, writer] + [worker] * workers:
            group.create_task(stage())


@wrong("8.1", ANYTHING)
async def pipeline_drops_what_is_false(source, work, write, workers, bound):
    async def only_true(result):
        if result:
            await write(result)

    await pipeline(source, work, only_true, workers, bound)


@wrong("8.1", ALL)
async def pipeline_writer_stops_at_the_first_end(source, work, write, workers, bound):
    """The other workers still have something."""
    todo, done = asyncio.Queue(1), asyncio.Queue(workers + 1)

    async def read():
        async for item in source:
            await todo.put(item)
        for _ in range(workers):
            await todo.put(END)

    async def worker():
        while (item := await todo.get()) is not END:
            await done.put(await work(item))
        await done.put(END)

    async def writer():
        while (result := await done.get()) is not END:
            await write(result)

    async with asyncio.TaskGroup() as group:
        for stage in [read, writer] + [worker] * workers:
            group.create_task(stage())


async def joined(source, work, write, workers, after_the_write, both=True, twice=False):
    todo, done = asyncio.Queue(1), asyncio.Queue(1)

    async def worker():
        while True:
            await done.put(await work(await todo.get()))
            todo.task_done()
            if twice:
                todo.task_done()

    async def writer():
        while True:
            result = await done.get()
            if not after_the_write:
                done.task_done()
            await write(result)
            if after_the_write:
                done.task_done()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker()) for _ in range(workers)] + [group.create_task(writer())]
        async for item in source:
            await todo.put(item)
        await todo.join()
        if both:
            await done.join()
        for task in tasks:
            task.cancel()


@wrong("8.1", ALL)
async def pipeline_done_before_the_write(source, work, write, workers, bound):
    """task_done says: finished. It was said too early, and the last write is cancelled."""
    await joined(source, work, write, workers, after_the_write=False)


@wrong("8.1", ALL)
async def pipeline_joins_the_first_queue_only(source, work, write, workers, bound):
    await joined(source, work, write, workers, after_the_write=True, both=False)


@wrong("8.1", NO_ERROR)
async def pipeline_task_done_twice(source, work, write, workers, bound):
    await joined(source, work, write, workers, after_the_write=True, twice=True)


@wrong("8.1", ENDS)
async def pipeline_without_task_done(source, work, write, workers, bound):
    """join waits for as many task_done as there were put."""
    todo, done = asyncio.Queue(1), asyncio.Queue(1)

    async def worker():
        while True:
            await done.put(await work(await todo.get()))

    async def writer():
        while True:
            await write(await done.get())

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker()) for _ in range(workers)] + [group.create_task(writer())]
        async for item in source:
            await todo.put(item)
        await todo.join()
        for task in tasks:
            task.cancel()


@wrong("8.1", ALL)
async def pipeline_ends_when_the_queues_are_empty(source, work, write, workers, bound):
    """Empty queues, and items in the hands of workers."""
    todo, done = asyncio.Queue(1), asyncio.Queue(1)

    async def worker():
        while True:
            await done.put(await work(await todo.get()))

    async def writer():
        while True:
            await write(await done.get())

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker()) for _ in range(workers)] + [group.create_task(writer())]
        async for item in source:
            await todo.put(item)
        while not (todo.empty() and done.empty()):
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()


@wrong("8.1", ORDER)
async def pipeline_in_a_stack(source, work, write, workers, bound):
    await variant(bound - workers - 3, queue=Reversed)(source, work, write, workers, bound)


class Reversed(asyncio.LifoQueue):
    """The newest first; the ends last."""

    def _get(self):
        for place in range(len(self._queue) - 1, -1, -1):
            if self._queue[place] is not END:
                return self._queue.pop(place)
        return self._queue.pop()


@wrong("8.1", READY)
async def pipeline_keeps_the_order(source, work, write, workers, bound):
    """Tasks in a queue: the writer waits for the oldest, and the bound does the rest."""
    tasks, busy = asyncio.Queue(bound - 2), asyncio.Semaphore(workers)

    async def one(item):
        async with busy:
            return await work(item)

    async def writer():
        while (task := await tasks.get()) is not END:
            await write(await task)

    async with asyncio.TaskGroup() as group:
        group.create_task(writer())
        async for item in source:
            await tasks.put(group.create_task(one(item)))
        await tasks.put(END)


@wrong("8.1", WORKERS)
async def pipeline_one_worker(source, work, write, workers, bound):
    """Fast enough is not what was asked."""

    async def three_at_once(item):
        return await work(item)

    await pipeline(source, three_at_once, write, 1 if workers != 3 else 3, bound)


@wrong("8.1", WORKERS)
async def pipeline_one_worker_more(source, work, write, workers, bound):
    await variant(extra_workers=1)(source, work, write, workers, bound)


@wrong("8.1", ONE_WRITE)
async def pipeline_workers_write(source, work, write, workers, bound):
    """No third stage: each worker writes what it made."""

    async def both(item):
        await write(await work(item))

    async def nothing(_):
        pass

    await pipeline(source, both, nothing, workers, bound)


@wrong("8.1", ERROR_OUT)
async def pipeline_swallows_errors(source, work, write, workers, bound):
    with contextlib.suppress(Exception, BaseExceptionGroup):
        await pipeline(source, work, write, workers, bound)


@wrong("8.1", ERROR_OUT)
async def pipeline_skips_what_fails(source, work, write, workers, bound):
    """The item is lost, and nobody hears of it."""
    failed = object()

    async def careful(item):
        try:
            return await work(item)
        except Exception:
            return failed

    async def good(result):
        if result is not failed:
            await write(result)

    await pipeline(source, careful, good, workers, bound)


@wrong("8.1", ERROR_OUT)
async def pipeline_swallows_errors_of_the_source(source, work, write, workers, bound):
    async def read():
        with contextlib.suppress(Exception):
            async for item in source:
                yield item

    await pipeline(read(), work, write, workers, bound)


@wrong("8.1", ERROR_OUT)
async def pipeline_raises_another_error(source, work, write, workers, bound):
    try:
        await pipeline(source, work, write, workers, bound)
    except BaseExceptionGroup:
        raise RuntimeError("the pipeline failed") from None


async def gathered(source, work, write, workers, bound, return_exceptions=False):
    todo, done = asyncio.Queue(1), asyncio.Queue(1)

    async def read():
        async for item in source:
            await todo.put(item)
        for _ in range(workers):
            await todo.put(END)

    async def worker():
        while (item := await todo.get()) is not END:
            await done.put(await work(item))
        await done.put(END)

    async def writer():
        left = workers
        while left:
            if (result := await done.get()) is END:
                left -= 1
            else:
                await write(result)

    stages = read(), writer(), *(worker() for _ in range(workers))
    for result in await asyncio.gather(*stages, return_exceptions=return_exceptions):
        if isinstance(result, Exception):
            raise result


@wrong("8.1", NO_TASKS)
async def pipeline_in_a_gather(source, work, write, workers, bound):
    """gather lets the first error out, and the others run on."""
    await gathered(source, work, write, workers, bound)


@wrong("8.1", ENDS)
async def pipeline_hangs_on_an_error(source, work, write, workers, bound):
    """The worker that failed sends no end, so the writer waits for ever."""
    await gathered(source, work, write, workers, bound, return_exceptions=True)


@wrong("8.1", STOPS)
async def pipeline_raises_at_the_end(source, work, write, workers, bound):
    """The first error comes out, when all the rest has been done."""
    failed, errors = object(), []

    async def careful(call, *args):
        try:
            return await call(*args)
        except Exception as error:
            errors.append(error)
            return failed

    async def good(result):
        if result is not failed:
            await careful(write, result)

    async def read():
        try:
            async for item in source:
                yield item
        except Exception as error:
            errors.append(error)

    await pipeline(read(), lambda item: careful(work, item), good, workers, bound)
    if errors:
        raise errors[0]


@wrong("8.1", STOPS)
async def pipeline_shields_the_write(source, work, write, workers, bound):
    """A write that has begun goes on, whatever happens."""

    async def to_the_end(result):
        task = asyncio.ensure_future(write(result))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    await pipeline(source, work, to_the_end, workers, bound)


@wrong("8.1", CANCELS)
async def pipeline_swallows_cancel(source, work, write, workers, bound):
    with contextlib.suppress(asyncio.CancelledError):
        await pipeline(source, work, write, workers, bound)


@wrong("8.1", ALL)
async def pipeline_writes_twice(source, work, write, workers, bound):
    async def twice(result):
        await write(result)
        await write(result)

    await pipeline(source, work, twice, workers, bound)
