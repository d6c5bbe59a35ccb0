"""Right and wrong answers to the exercises of chapter 02.

Every wrong answer names the property that its check must report as missing.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import random
import time
import weakref

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub


def now():
    return asyncio.get_running_loop().time()


NO_ERROR = "runs without an error"
ENDS = "comes to an end"
NO_TASKS_LEFT = "leaves no task behind"
CANCELS = "passes a cancellation on"
FAILURE_OUT = "lets a failure out"
IN_TURN = "first come, first served"

# --- 2.1 a bounded map ---------------------------------------------------------------------------

AT_ONCE = "at most limit calls at once"
AHEAD = "pulls at most limit + 1 items ahead"
FILLS = "fills a free place at once"
ORDER = "results in the order of the input"
CLOSES = "closes the source"
SLOW_SOURCE = "a slow source holds no result back"


async def end(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@stub("2.1")
async def map_stub(fn, source, limit):
    raise NotImplementedError
    yield


@stub("2.1")
async def map_stub_without_yield(fn, source, limit):
    raise NotImplementedError


@stub("2.1")
async def map_pass(fn, source, limit):
    pass


@right("2.1")
async def map_bounded(fn, source, limit):
    """A feeder, a permit for each item between the source and the consumer, a queue of tasks."""
    slots, line, tasks = asyncio.Semaphore(limit), asyncio.Queue(), set()

    async def feed():
        try:
            await slots.acquire()
            async for item in source:
                tasks.add(task := asyncio.create_task(fn(item)))
                line.put_nowait(task)
                await slots.acquire()
        finally:
            line.put_nowait(None)

    feeder = asyncio.create_task(feed())
    try:
        while task := await line.get():
            yield await task
            tasks.discard(task)
            slots.release()
        await feeder
    finally:
        await end(feeder, *tasks)
        await source.aclose()


@right("2.1")
async def map_by_waiting(fn, source, limit):
    """One pull under way at most, waited for together with the head of the line."""
    line, pull, more = collections.deque(), None, True
    try:
        while True:
            if pull is None and more and len(line) < limit:
                pull = asyncio.ensure_future(anext(source))
            if pull is None and not line:
                return
            head = {line[0]} if line else set()
            await asyncio.wait(head | ({pull} if pull else set()), return_when=asyncio.FIRST_COMPLETED)
            if pull is not None and pull.done():
                done, pull = pull, None
                try:
                    line.append(asyncio.ensure_future(fn(done.result())))
                except StopAsyncIteration:
                    more = False
            if line and line[0].done():
                result = line[0].result()
                line.popleft()
                yield result
    finally:
        await end(*line, *([pull] if pull else []))
        await source.aclose()


@right("2.1")
async def map_with_a_group(fn, source, limit):
    """A TaskGroup in a task of its own; the generator only reads what it puts into the line."""
    slots, line = asyncio.Semaphore(limit), asyncio.Queue()

    async def call(item, outcome):
        result = await fn(item)
        if not outcome.done():
            outcome.set_result(result)

    async def feed():
        try:
            async with contextlib.aclosing(source), asyncio.TaskGroup() as group:
                await slots.acquire()
                async for item in source:
                    outcome = asyncio.get_running_loop().create_future()
                    group.create_task(call(item, outcome))
                    line.put_nowait(outcome)
                    await slots.acquire()
        finally:
            line.put_nowait(None)

    feeder = asyncio.create_task(feed())
    try:
        while outcome := await line.get():
            await asyncio.wait({outcome, feeder}, return_when=asyncio.FIRST_COMPLETED)
            if not outcome.done():
                break
            yield outcome.result()
            slots.release()
        await feeder
    finally:
        await end(feeder)


@right("2.1")
async def map_by_workers(fn, source, limit):
    """As many workers as calls may run; they pull under one lock, and stop ahead of the consumer."""
    turn, ahead, line, results = asyncio.Lock(), asyncio.Semaphore(limit), asyncio.Queue(), source.__aiter__()

    async def work():
        while True:
            async with turn:
                await ahead.acquire()
                try:
                    item = await results.__anext__()
                except StopAsyncIteration:
                    return
                outcome = asyncio.get_running_loop().create_future()
                line.put_nowait(outcome)
            outcome.set_result(await fn(item))

    workers = [asyncio.create_task(work()) for _ in range(limit)]
    everybody = asyncio.gather(*workers)
    everybody.add_done_callback(lambda _: line.put_nowait(None))
    try:
        while outcome := await line.get():
            await asyncio.wait({outcome, everybody}, return_when=asyncio.FIRST_COMPLETED)
            if not outcome.done():
                break
            yield outcome.result()
            ahead.release()
        await everybody
    finally:
        await end(*workers)
        await asyncio.gather(everybody, return_exceptions=True)
        await source.aclose()


@right("2.1")
class MapBounded:
    """The iterator protocol by hand: each __anext__ tops up the line while it waits."""

    def __init__(self, fn, source, limit):
        self.fn, self.source, self.limit = fn, source, limit
        self.line, self.pull, self.more = collections.deque(), None, True
        self.filler = None

    def __aiter__(self):
        return self

    async def _fill(self):
        while self.more and len(self.line) < self.limit:
            try:
                item = await anext(self.source)
            except StopAsyncIteration:
                self.more = False
            else:
                self.line.append(asyncio.create_task(self.fn(item)))
                if len(self.line) == 1:
                    return

    async def __anext__(self):
        try:
            while True:
                if self.filler is None or self.filler.done():
                    if self.filler:
                        self.filler.result()
                    self.filler = asyncio.create_task(self._fill())
                waits = {self.filler, self.line[0]} if self.line else {self.filler}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if self.line and self.line[0].done():
                    result = self.line[0].result()
                    self.line.popleft()
                    return result
                if self.filler.done() and not self.line:
                    self.filler.result()
                    if not self.more:
                        raise StopAsyncIteration
                elif self.filler.done():
                    await asyncio.wait({self.line[0]} if not self.more or len(self.line) == self.limit else waits)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self):
        await end(*self.line, *([self.filler] if self.filler else []))
        await self.source.aclose()


@wrong("2.1", AT_ONCE)
async def map_all_at_once(fn, source, limit):
    for result in await asyncio.gather(*[fn(item) async for item in source]):
        yield result


@wrong("2.1", AT_ONCE)
async def map_one_too_many(fn, source, limit):
    async for result in map_bounded(fn, source, limit + 1):
        yield result


@wrong("2.1", AHEAD)
async def map_gather_and_semaphore(fn, source, limit):
    slots = asyncio.Semaphore(limit)

    async def one(item):
        async with slots:
            return await fn(item)

    for result in await asyncio.gather(*[one(item) async for item in source]):
        yield result


@wrong("2.1", AHEAD)
async def map_list_first(fn, source, limit):
    items = [item async for item in source]

    async def again():
        for item in items:
            yield item

    async for result in map_bounded(fn, again(), limit):
        yield result


@wrong("2.1", AHEAD)
async def map_permit_back_when_called(fn, source, limit):
    """The permit comes back when the call ends: behind a slow first call, results pile up."""
    slots, line = asyncio.Semaphore(limit), asyncio.Queue()

    async def one(item):
        try:
            return await fn(item)
        finally:
            slots.release()

    async def feed():
        await slots.acquire()
        async for item in source:
            line.put_nowait(asyncio.create_task(one(item)))
            await slots.acquire()
        line.put_nowait(None)

    feeder = asyncio.create_task(feed())
    while task := await line.get():
        yield await task
    await feeder


@wrong("2.1", FILLS)
async def map_one_by_one(fn, source, limit):
    async with contextlib.aclosing(source):
        async for item in source:
            yield await fn(item)


@wrong("2.1", FILLS)
async def map_in_batches(fn, source, limit):
    async with contextlib.aclosing(source):
        more = True
        while more:
            tasks = []
            while more and len(tasks) < limit:
                try:
                    tasks.append(asyncio.create_task(fn(await anext(source))))
                except StopAsyncIteration:
                    more = False
            for result in await asyncio.gather(*tasks):
                yield result


@wrong("2.1", ORDER)
async def map_as_completed(fn, source, limit):
    tasks, more = [], True
    while more or tasks:
        while more and len(tasks) < limit:
            try:
                tasks.append(asyncio.create_task(fn(await anext(source))))
            except StopAsyncIteration:
                more = False
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                yield task.result()


@wrong("2.1", ORDER)
async def map_until_none(fn, source, limit):
    async for result in map_bounded(fn, source, limit):
        if result is None:
            return
        yield result


@wrong("2.1", "calls fn once for each item, in order")
async def map_tries_out_the_first(fn, source, limit):
    tried = []

    async def twice(item):
        if not tried:
            tried.append(await fn(item))
        return await fn(item)

    async for result in map_bounded(twice, source, limit):
        yield result


@wrong("2.1", "calls fn once for each item, in order")
async def map_skips_false_items(fn, source, limit):
    async def true_items():
        async with contextlib.aclosing(source):
            async for item in source:
                if item:
                    yield item

    async for result in map_bounded(fn, true_items(), limit):
        yield result


@wrong("2.1", SLOW_SOURCE)
async def map_by_a_deque(fn, source, limit):
    line = collections.deque()
    try:
        async for item in source:
            line.append(asyncio.create_task(fn(item)))
            if len(line) == limit:
                yield await line.popleft()
        while line:
            yield await line.popleft()
    finally:
        await end(*line)
        await source.aclose()


def from_pieces(
    *, keep=False, tidy=True, close=True, patient=False, wait_for_all=False, swallow=False, quiet=False, silent=False
):
    """map_bounded with one piece taken away or spoilt."""

    async def mapped(fn, source, limit):
        slots, line, tasks = asyncio.Semaphore(limit), asyncio.Queue(), set()

        async def feed():
            try:
                await slots.acquire()
                async for item in source:
                    tasks.add(task := asyncio.create_task(fn(item)))
                    line.put_nowait(task)
                    await slots.acquire()
            finally:
                line.put_nowait(None)

        feeder = asyncio.create_task(feed())
        try:
            while task := await line.get():
                try:
                    result = await task
                except Exception as error:
                    if wait_for_all:
                        slots.release()
                        await asyncio.sleep(3)
                    if not swallow:
                        raise
                    result = error
                yield result
                if not keep:
                    tasks.discard(task)
                slots.release()
            if not quiet:
                await feeder
        except asyncio.CancelledError:
            if not silent:
                raise
        finally:
            if patient:
                feeder.cancel()
                await asyncio.wait([feeder, *tasks])
            elif tidy:
                await end(feeder, *tasks)
            else:
                for task in (feeder, *tasks):
                    task.cancel()
            if close:
                await source.aclose()

    return mapped


def named(name, exercise_id, lacking, answer):
    answer.__name__ = answer.__qualname__ = name
    WRONG[exercise_id].append((answer, lacking))


named("map_cancels_and_leaves", "2.1", NO_TASKS_LEFT, from_pieces(tidy=False, close=False))
named("map_leaves_the_source_open", "2.1", CLOSES, from_pieces(close=False))
named("map_lets_calls_finish", "2.1", "closes at once", from_pieces(patient=True))
named("map_keeps_every_task", "2.1", "forgets what it has yielded", from_pieces(keep=True))
named("map_yields_errors", "2.1", FAILURE_OUT, from_pieces(swallow=True))
named("map_hides_the_source_error", "2.1", FAILURE_OUT, from_pieces(quiet=True))
named("map_hides_a_cancellation", "2.1", CANCELS, from_pieces(silent=True))
named("map_raises_late", "2.1", "a failure comes in its turn", from_pieces(wait_for_all=True))


@wrong("2.1", NO_TASKS_LEFT)
async def map_without_finally(fn, source, limit):
    slots, line = asyncio.Semaphore(limit), asyncio.Queue()

    async def feed():
        await slots.acquire()
        async for item in source:
            line.put_nowait(asyncio.create_task(fn(item)))
            await slots.acquire()
        line.put_nowait(None)

    feeder = asyncio.create_task(feed())
    while task := await line.get():
        yield await task
        slots.release()
    await feeder


@wrong("2.1", AHEAD)
async def map_without_back_pressure(fn, source, limit):
    """The permit comes back when the result is there, not when the consumer has it."""
    slots, line, results = asyncio.Semaphore(limit), asyncio.Queue(), asyncio.Queue()

    async def feed():
        await slots.acquire()
        async for item in source:
            line.put_nowait(asyncio.create_task(fn(item)))
            await slots.acquire()
        line.put_nowait(None)

    async def drain():
        while task := await line.get():
            results.put_nowait([await task])
            slots.release()
        results.put_nowait([])

    tasks = [asyncio.create_task(feed()), asyncio.create_task(drain())]
    while result := await results.get():
        yield result[0]
    await asyncio.gather(*tasks)


@wrong("2.1", "stops the rest when one fails")
async def map_tidies_only_when_closed(fn, source, limit):
    slots, line, tasks = asyncio.Semaphore(limit), asyncio.Queue(), set()

    async def feed():
        await slots.acquire()
        async for item in source:
            tasks.add(task := asyncio.create_task(fn(item)))
            line.put_nowait(task)
            await slots.acquire()
        line.put_nowait(None)

    feeder = asyncio.create_task(feed())
    try:
        while task := await line.get():
            yield await task
            tasks.discard(task)
            slots.release()
    except GeneratorExit:
        await end(feeder, *tasks)
        await source.aclose()
        raise
    await feeder


@wrong("2.1", "only results before the failure")
async def map_raises_at_the_end(fn, source, limit):
    errors = []

    async def safe(item):
        try:
            return await fn(item)
        except Exception as error:
            errors.append(error)

    async with contextlib.aclosing(map_bounded(safe, source, limit)) as results:
        async for result in results:
            yield result
    if errors:
        raise errors[0]


@wrong("2.1", NO_ERROR)
async def map_yields_inside_a_group(fn, source, limit):
    """GeneratorExit in the block of a TaskGroup comes out as an exception group."""
    slots, line = asyncio.Semaphore(limit), asyncio.Queue()

    async with contextlib.aclosing(source), asyncio.TaskGroup() as group:

        async def feed():
            await slots.acquire()
            async for item in source:
                line.put_nowait(group.create_task(fn(item)))
                await slots.acquire()
            line.put_nowait(None)

        group.create_task(feed())
        while task := await line.get():
            yield await task
            slots.release()


@wrong("2.1", ENDS)
async def map_loses_the_permit_of_a_failure(fn, source, limit):
    """The call that fails keeps its permit and never fills its place in the line."""
    slots, line, tasks = asyncio.Semaphore(limit), asyncio.Queue(), []

    async def one(item, outcome):
        outcome.set_result(await fn(item))

    async def feed():
        await slots.acquire()
        async for item in source:
            outcome = asyncio.get_running_loop().create_future()
            tasks.append(asyncio.create_task(one(item, outcome)))
            line.put_nowait(outcome)
            await slots.acquire()
        line.put_nowait(None)

    tasks.append(asyncio.create_task(feed()))
    try:
        while outcome := await line.get():
            yield await outcome
            slots.release()
    finally:
        await end(*tasks)
        await source.aclose()


@wrong("2.1", "is an async generator")
async def map_returns_a_list(fn, source, limit):
    return [await fn(item) async for item in source]


# --- 2.2 a rate limiter --------------------------------------------------------------------------

NEVER_OVER = "never over rate * W + burst in any window"
KEEPS_UP = "keeps up the rate"
LATE = "wakes nobody late"
BURST = "lets a burst through at once"
IDLE = "idle time is worth one burst"
GIVES_UP = "a cancelled waiter gives up its turn"


@stub("2.2")
class RateStub:
    def __init__(self, rate, burst):
        raise NotImplementedError

    async def acquire(self):
        raise NotImplementedError


@stub("2.2")
class RateHalfStub:
    def __init__(self, rate, burst):
        self.rate = rate

    async def acquire(self):
        raise NotImplementedError


@right("2.2")
class RateLimiter:
    def __init__(self, rate, burst):
        self.rate, self.burst = rate, burst
        self.line, self.next_free = asyncio.Lock(), -math.inf

    async def acquire(self):
        async with self.line:
            while (wait := self.next_free - now()) > 0:
                await asyncio.sleep(wait)
            self.next_free = max(self.next_free, now() - (self.burst - 1) / self.rate) + 1 / self.rate


class TokenBucket:
    def __init__(self, rate, burst):
        self.rate, self.burst, self.tokens, self.filled = rate, burst, burst, now()
        self.line = asyncio.Semaphore(1)

    def fill(self):
        self.tokens = min(self.burst, self.tokens + (now() - self.filled) * self.rate)
        self.filled = now()

    async def acquire(self):
        async with self.line:
            self.fill()
            while self.tokens < 1:
                await asyncio.sleep((1 - self.tokens) / self.rate)
                self.fill()
            self.tokens -= 1


right("2.2")(TokenBucket)


@right("2.2")
class RateByFutures:
    """No task waits for the time: one timer wakes the first in a deque of futures."""

    gives_back, newest_first, cap = True, False, True

    def __init__(self, rate, burst):
        self.rate, self.burst, self.tokens, self.filled = rate, burst, burst, now()
        self.waiters, self.timer = collections.deque(), None

    def wake(self):
        self.tokens += (now() - self.filled) * self.rate
        if self.cap:
            self.tokens = min(self.burst, self.tokens)
        self.filled = now()
        while self.waiters and self.tokens >= 1:
            waiter = self.waiters.pop() if self.newest_first else self.waiters.popleft()
            if not waiter.done():
                self.tokens -= 1
                waiter.set_result(None)
        if self.timer:
            self.timer.cancel()
        if self.waiters:
            self.timer = asyncio.get_running_loop().call_later((1 - self.tokens) / self.rate, self.wake)

    async def acquire(self):
        waiter = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        self.wake()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and self.gives_back:
                self.tokens += 1
                self.wake()
            raise


@right("2.2")
class RateByLog:
    """The exact rule, from the times of the past: nothing but the rule."""

    def __init__(self, rate, burst):
        self.rate, self.burst, self.line, self.past = rate, burst, asyncio.Lock(), []

    def due(self):
        count = len(self.past)
        return max((t + (count - i + 1 - self.burst) / self.rate for i, t in enumerate(self.past)), default=0.0)

    async def acquire(self):
        async with self.line:
            while now() < (due := self.due()):
                await asyncio.sleep(due - now())
            self.past.append(now())


@wrong("2.2", BURST)
class RateEachSleeps:
    def __init__(self, rate, burst):
        self.rate = rate

    async def acquire(self):
        await asyncio.sleep(1 / self.rate)


@wrong("2.2", NEVER_OVER)
class RateEachSleepsAfterBurst(RateEachSleeps):
    def __init__(self, rate, burst):
        self.rate, self.left = rate, burst

    async def acquire(self):
        if self.left:
            self.left -= 1
        else:
            await asyncio.sleep(1 / self.rate)


@wrong("2.2", NEVER_OVER)
class RateFixedWindow:
    def __init__(self, rate, burst):
        self.limit, self.window, self.count, self.line = burst, burst / rate, 0, asyncio.Lock()
        self.current = -1

    async def acquire(self):
        async with self.line:
            while True:
                window = now() // self.window
                if window != self.current:
                    self.current, self.count = window, 0
                if self.count < self.limit:
                    self.count += 1
                    return
                await asyncio.sleep((window + 1) * self.window - now())


@wrong("2.2", LATE)
class RateSlidingLog:
    """At most burst in burst/rate seconds: never over, but a permit that is free keeps waiting."""

    def __init__(self, rate, burst):
        self.slots, self.period = asyncio.Semaphore(burst), burst / rate

    async def acquire(self):
        await self.slots.acquire()
        asyncio.get_running_loop().call_later(self.period, self.slots.release)


@wrong("2.2", BURST)
class RateStartsAtZero(RateLimiter):
    """Takes 0 for a time long past: where the loop's clock begins at 0, it is now."""

    def __init__(self, rate, burst):
        super().__init__(rate, burst)
        self.next_free = 0.0


@wrong("2.2", BURST)
class RateWithoutBurst(RateLimiter):
    def __init__(self, rate, burst):
        super().__init__(rate, 1)


@wrong("2.2", NEVER_OVER)
class RateBurstTooLarge(RateLimiter):
    def __init__(self, rate, burst):
        super().__init__(rate, burst + 1)


@wrong("2.2", NEVER_OVER)
class RateTooFast(RateLimiter):
    def __init__(self, rate, burst):
        super().__init__(rate * 1.02, burst)


@wrong("2.2", KEEPS_UP)
class RateTooSlow(RateLimiter):
    def __init__(self, rate, burst):
        super().__init__(rate * 0.9, burst)


@wrong("2.2", KEEPS_UP)
class RateDrifting(TokenBucket):
    """One permit after each sleep: what the sleep takes longer is lost each time."""

    async def acquire(self):
        async with self.line:
            self.fill()
            if self.tokens < 1:
                await asyncio.sleep((1 - self.tokens) / self.rate)
                self.tokens, self.filled = 1, now()
            self.tokens -= 1


@wrong("2.2", IDLE)
class RateForgetsIdleTime(TokenBucket):
    def fill(self):
        if self.tokens < 1:
            super().fill()
            self.tokens = min(self.tokens, 1)


@wrong("2.2", NEVER_OVER)
class RateHoardsIdleTime(RateByFutures):
    cap = False


@wrong("2.2", IN_TURN)
class RateNewestFirst(RateByFutures):
    newest_first = True


@wrong("2.2", GIVES_UP)
class RateLosesWokenPermit(RateByFutures):
    gives_back = False


@wrong("2.2", NEVER_OVER)
class RateGainsWokenPermit(RateByFutures):
    """Gives back what it was given, and forgets that it has not passed: one permit too many."""

    async def acquire(self):
        try:
            await super().acquire()
        except asyncio.CancelledError:
            self.tokens += 1
            self.wake()
            raise


@wrong("2.2", LATE)
class RatePolling(TokenBucket):
    async def acquire(self):
        async with self.line:
            self.fill()
            while self.tokens < 1:
                await asyncio.sleep(0.05)
                self.fill()
            self.tokens -= 1


@wrong("2.2", IN_TURN)
class RatePollingWithoutLine(TokenBucket):
    async def acquire(self):
        self.fill()
        self.dice = getattr(self, "dice", random.Random(1))
        while self.tokens < 1:
            await asyncio.sleep(self.dice.choice([1, 2, 3]) / 64)
            self.fill()
        self.tokens -= 1


@wrong("2.2", NEVER_OVER)
class RateForgivesItsOwnDelay(RateLimiter):
    """Looks at the idle time before the sleep: a late wake-up then is not counted."""

    async def acquire(self):
        async with self.line:
            self.next_free = max(self.next_free, now() - (self.burst - 1) / self.rate)
            if (wait := self.next_free - now()) > 0:
                await asyncio.sleep(wait)
            self.next_free += 1 / self.rate


@wrong("2.2", NEVER_OVER)
class RateReserving(RateLimiter):
    """Each takes a time in the future and sleeps on its own: late ones come all together."""

    async def acquire(self):
        self.next_free = max(self.next_free, now() - (self.burst - 1) / self.rate) + 1 / self.rate
        await asyncio.sleep(self.next_free - 1 / self.rate - now())


@wrong("2.2", GIVES_UP)
class RateCountsBeforeTheSleep(RateLimiter):
    async def acquire(self):
        async with self.line:
            mine = max(self.next_free, now() - (self.burst - 1) / self.rate)
            self.next_free = mine + 1 / self.rate
            while (wait := mine - now()) > 0:
                await asyncio.sleep(wait)
            self.next_free = max(self.next_free, now() - (self.burst - 1) / self.rate + 1 / self.rate)


@wrong("2.2", NEVER_OVER)
class RateGivesTwoBack(RateLimiter):
    async def acquire(self):
        try:
            await super().acquire()
        except asyncio.CancelledError:
            self.next_free -= 1 / self.rate
            raise


@wrong("2.2", "reads the loop's clock")
class RateByTheWall(TokenBucket):
    def fill(self):
        self.seen = getattr(self, "seen", time.time())
        self.tokens = min(self.burst, self.tokens + (time.time() - self.seen) * self.rate)
        self.seen = time.time()


@wrong("2.2", "does not hold the loop")
class RateBlocking(RateLimiter):
    async def acquire(self):
        while (wait := self.next_free - now()) > 0:
            time.sleep(wait)
        self.next_free = max(self.next_free, now() - (self.burst - 1) / self.rate) + 1 / self.rate


@wrong("2.2", NO_TASKS_LEFT)
class RateByATask:
    def __init__(self, rate, burst):
        self.slots, self.rate, self.burst = asyncio.Semaphore(burst), rate, burst
        self.filler = asyncio.create_task(self.fill())

    async def fill(self):
        while True:
            await asyncio.sleep(1 / self.rate)
            if self.slots._value < self.burst:
                self.slots.release()

    async def acquire(self):
        await self.slots.acquire()


@wrong("2.2", CANCELS)
class RateUncancellable(RateLimiter):
    async def acquire(self):
        with contextlib.suppress(asyncio.CancelledError):
            await super().acquire()


@wrong("2.2", NO_ERROR)
class RateAsContext(RateLimiter):
    acquire = None


# --- 2.3 a limit per host ------------------------------------------------------------------------

PER_KEY = "at most per_key at one host"
TOTAL = "at most total in all"
NOTHING = "keeps nobody waiting for nothing"
IDLE_HOST = "a busy host blocks no other"
FORGETS = "forgets idle hosts"
GIVES_BACK = "gives every permit back"


@stub("2.3")
class KeyedStub:
    def __init__(self, per_key, total):
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def slot(self, key):
        raise NotImplementedError
        yield


@stub("2.3")
class KeyedHalfStub:
    def __init__(self, per_key, total):
        self.all = asyncio.Semaphore(total)

    @contextlib.asynccontextmanager
    async def slot(self, key):
        raise NotImplementedError
        yield


@right("2.3")
class KeyedLimiter:
    def __init__(self, per_key, total):
        self.per_key, self.all = per_key, asyncio.Semaphore(total)
        self.hosts, self.users = {}, collections.Counter()

    @contextlib.asynccontextmanager
    async def slot(self, key):
        host = self.hosts.setdefault(key, asyncio.Semaphore(self.per_key))
        self.users[key] += 1
        try:
            async with host, self.all:
                yield
        finally:
            self.users[key] -= 1
            if not self.users[key]:
                del self.users[key], self.hosts[key]


@right("2.3")
class KeyedWeak:
    """A semaphore lives as long as somebody uses or awaits it."""

    def __init__(self, per_key, total):
        self.per_key, self.all, self.hosts = per_key, asyncio.Semaphore(total), weakref.WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def slot(self, key):
        host = self.hosts.get(key)
        if host is None:
            host = self.hosts[key] = asyncio.Semaphore(self.per_key)
        async with host, self.all:
            yield


@right("2.3")
class KeyedByEvents:
    """Counters, and an event for the next change: all look again, in the order in which they came."""

    def __init__(self, per_key, total):
        self.per_key, self.total, self.running = per_key, total, collections.Counter()
        self.change = asyncio.Event()

    @contextlib.asynccontextmanager
    async def slot(self, key):
        while self.running[key] >= self.per_key or self.running.total() >= self.total:
            await self.change.wait()
        self.running[key] += 1
        try:
            yield
        finally:
            self.running[key] -= 1
            self.running += collections.Counter()  # drops the zeros
            self.change.set()
            self.change = asyncio.Event()


@right("2.3")
class KeyedByHand:
    """One line for all; who is released looks for the first in line that may run."""

    lifo = False

    def __init__(self, per_key, total):
        self.per_key, self.total, self.running, self.line = per_key, total, collections.Counter(), []

    def slot(self, key):
        return KeyedSlot(self, key)

    def free(self, key):
        return self.running[key] < self.per_key and self.running.total() < self.total

    def leave(self, key):
        self.running[key] -= 1
        if not self.running[key]:
            del self.running[key]
        for entry in list(reversed(self.line) if self.lifo else self.line):
            waiter, waiting_key = entry
            if not waiter.done() and self.free(waiting_key):
                self.running[waiting_key] += 1
                waiter.set_result(None)


class KeyedSlot:
    def __init__(self, limiter, key):
        self.limiter, self.key = limiter, key

    async def __aenter__(self):
        limiter = self.limiter
        if limiter.free(self.key):
            limiter.running[self.key] += 1
            return
        entry = asyncio.get_running_loop().create_future(), self.key
        limiter.line.append(entry)
        try:
            await entry[0]
        except asyncio.CancelledError:
            if not entry[0].cancelled():
                limiter.leave(self.key)
            raise
        finally:
            limiter.line.remove(entry)

    async def __aexit__(self, *_):
        self.limiter.leave(self.key)


@wrong("2.3", IDLE_HOST)
class KeyedAllFirst(KeyedLimiter):
    @contextlib.asynccontextmanager
    async def slot(self, key):
        async with self.all, KeyedLimiterOneHost(self, key):
            yield


class KeyedLimiterOneHost:
    """The host's permit alone, counted as in KeyedLimiter."""

    def __init__(self, limiter, key):
        self.limiter, self.key = limiter, key

    async def __aenter__(self):
        self.limiter.users[self.key] += 1
        self.host = self.limiter.hosts.setdefault(self.key, asyncio.Semaphore(self.limiter.per_key))
        try:
            await self.host.acquire()
        except BaseException:
            self.leave()
            raise

    async def __aexit__(self, *_):
        self.host.release()
        self.leave()

    def leave(self):
        self.limiter.users[self.key] -= 1
        if not self.limiter.users[self.key]:
            del self.limiter.users[self.key], self.limiter.hosts[self.key]


@wrong("2.3", IDLE_HOST)
class KeyedMixedOrder(KeyedLimiter):
    """Two orders: here a deadlock, when a host is full of jobs that came by the other way."""

    turns = 0

    @contextlib.asynccontextmanager
    async def slot(self, key):
        self.turns += 1
        pair = [KeyedLimiterOneHost(self, key), self.all]
        if self.turns % 2:
            pair.reverse()
        async with pair[0], pair[1]:
            yield


@wrong("2.3", TOTAL)
class KeyedWithoutTotal(KeyedLimiter):
    @contextlib.asynccontextmanager
    async def slot(self, key):
        async with KeyedLimiterOneHost(self, key):
            yield


@wrong("2.3", PER_KEY)
class KeyedTotalOnly(KeyedLimiter):
    @contextlib.asynccontextmanager
    async def slot(self, key):
        async with self.all:
            yield


@wrong("2.3", NOTHING)
class KeyedOneAtATime(KeyedLimiter):
    def __init__(self, per_key, total):
        super().__init__(1, total)


@wrong("2.3", IDLE_HOST)
class KeyedOneLine(KeyedLimiter):
    """One line for all hosts: the first in it blocks everybody behind."""

    def __init__(self, per_key, total):
        super().__init__(per_key, total)
        self.line = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def slot(self, key):
        host = KeyedLimiterOneHost(self, key)
        async with self.line:
            await host.__aenter__()
            try:
                await self.all.acquire()
            except BaseException:
                await host.__aexit__()
                raise
        try:
            yield
        finally:
            self.all.release()
            await host.__aexit__()


@wrong("2.3", IN_TURN)
class KeyedNewestFirst(KeyedByHand):
    lifo = True


@wrong("2.3", FORGETS)
class KeyedNeverShrinks(KeyedLimiter):
    def __init__(self, per_key, total):
        super().__init__(per_key, total)
        self.hosts = collections.defaultdict(lambda: asyncio.Semaphore(per_key))

    @contextlib.asynccontextmanager
    async def slot(self, key):
        async with self.hosts[key], self.all:
            yield


@wrong("2.3", FORGETS)
class KeyedByHash(KeyedNeverShrinks):
    """Keeps no key, and a semaphore for each."""

    @contextlib.asynccontextmanager
    async def slot(self, key):
        async with self.hosts[hash(key)], self.all:
            yield


@wrong("2.3", FORGETS)
class KeyedLeavesCancelled(KeyedLimiter):
    """Drops the entry at the end of the block, which a cancelled waiter never reaches."""

    @contextlib.asynccontextmanager
    async def slot(self, key):
        self.users[key] += 1
        async with self.hosts.setdefault(key, asyncio.Semaphore(self.per_key)), self.all:
            try:
                yield
            finally:
                self.users[key] -= 1
                if not self.users[key]:
                    del self.users[key], self.hosts[key]


@wrong("2.3", PER_KEY)
class KeyedDropsAtOnce(KeyedLimiter):
    """Drops the entry while others hold it or wait for it."""

    @contextlib.asynccontextmanager
    async def slot(self, key):
        async with self.hosts.setdefault(key, asyncio.Semaphore(self.per_key)), self.all:
            try:
                yield
            finally:
                self.hosts.pop(key, None)


@wrong("2.3", PER_KEY)
class KeyedDropsUnderWaiters(KeyedLimiter):
    """Counts who runs, and forgets who waits."""

    @contextlib.asynccontextmanager
    async def slot(self, key):
        async with self.hosts.setdefault(key, asyncio.Semaphore(self.per_key)), self.all:
            self.users[key] += 1
            try:
                yield
            finally:
                self.users[key] -= 1
                if not self.users[key]:
                    self.hosts.pop(key, None)
                    del self.users[key]


class KeyedManual(KeyedLimiter):
    """Acquires and releases by hand."""

    kept_after_failure = host_kept = twice = False

    @contextlib.asynccontextmanager
    async def slot(self, key):
        host = self.hosts.setdefault(key, asyncio.Semaphore(self.per_key))
        self.users[key] += 1
        try:
            await host.acquire()
            try:
                await self.all.acquire()
            except BaseException:
                if not self.host_kept:
                    host.release()
                raise
            try:
                yield
            except Exception:
                if self.kept_after_failure:
                    self.all._value -= 1
                raise
            except asyncio.CancelledError:
                if self.twice:
                    self.all.release()
                raise
            finally:
                self.all.release()
                host.release()
        finally:
            self.users[key] -= 1
            if not self.users[key]:
                del self.users[key], self.hosts[key]


right("2.3")(KeyedManual)


@wrong("2.3", GIVES_BACK)
class KeyedKeepsTheHost(KeyedManual):
    """Cancelled while it waits for the total: the host's permit does not come back."""

    host_kept = True


@wrong("2.3", GIVES_BACK)
class KeyedLosesAfterFailure(KeyedManual):
    kept_after_failure = True


@wrong("2.3", TOTAL)
class KeyedReleasesTwice(KeyedManual):
    twice = True


@wrong("2.3", GIVES_BACK)
class KeyedLosesBetween(KeyedByHand):
    """Woken and cancelled: the permit is lost."""

    def slot(self, key):
        return KeyedCarelessSlot(self, key)


class KeyedCarelessSlot(KeyedSlot):
    async def __aenter__(self):
        limiter = self.limiter
        if limiter.free(self.key):
            limiter.running[self.key] += 1
            return
        entry = asyncio.get_running_loop().create_future(), self.key
        limiter.line.append(entry)
        try:
            await entry[0]
        finally:
            limiter.line.remove(entry)


@wrong("2.3", FAILURE_OUT)
class KeyedSwallowing(KeyedLimiter):
    @contextlib.asynccontextmanager
    async def slot(self, key):
        async with super().slot(key):
            with contextlib.suppress(Exception):
                yield


@wrong("2.3", NO_ERROR)
class KeyedUncancellable(KeyedLimiter):
    """Swallows the cancellation of a waiter, and then never yields."""

    @contextlib.asynccontextmanager
    async def slot(self, key):
        with contextlib.suppress(asyncio.CancelledError):
            async with super().slot(key):
                yield


@wrong("2.3", CANCELS)
class KeyedGoesOnWhenCancelled(KeyedLimiter):
    @contextlib.asynccontextmanager
    async def slot(self, key):
        async with super().slot(key):
            with contextlib.suppress(asyncio.CancelledError):
                yield


@wrong("2.3", NO_ERROR)
class KeyedNotAContext(KeyedLimiter):
    async def slot(self, key):
        await self.all.acquire()


# --- 2.4 a fair pool -----------------------------------------------------------------------------

ONE_HOLDER = "never hands one resource to two"
EVERY = "hands out every resource"
FAIR = "serves all alike"
BUSY = "leaves no resource idle"
KEEPS_ALL = "a cancelled waiter loses no resource"
HOLDS_UP = "a cancelled waiter holds up nobody"
REFUSES = "refuses what is not on loan"


@stub("2.4")
class PoolStub:
    def __init__(self, resources):
        raise NotImplementedError

    async def acquire(self):
        raise NotImplementedError

    def release(self, resource):
        raise NotImplementedError


@stub("2.4")
class PoolHalfStub:
    def __init__(self, resources):
        self.free = list(resources)

    async def acquire(self):
        return self.free.pop()

    def release(self, resource):
        raise NotImplementedError


@right("2.4")
class FairPool:
    def __init__(self, resources):
        self.free, self.line, self.loans = collections.deque(resources), collections.deque(), set()

    async def acquire(self):
        if self.free:
            resource = self.free.popleft()
            self.loans.add(resource)
            return resource
        self.line.append(waiter := asyncio.get_running_loop().create_future())
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self.release(waiter.result())
            raise

    def release(self, resource):
        if resource not in self.loans:
            raise ValueError(f"{resource!r} is not on loan from this pool.")
        while self.line:
            if not (waiter := self.line.popleft()).done():
                return waiter.set_result(resource)
        self.loans.remove(resource)
        self.free.append(resource)


@right("2.4")
class PoolBySemaphore:
    """A semaphore is a fair line already; what is free can wait in any order."""

    def __init__(self, resources):
        self.free, self.loans = list(resources), []
        self.slots = asyncio.Semaphore(len(self.free))

    async def acquire(self):
        await self.slots.acquire()
        self.loans.append(resource := self.free.pop())
        return resource

    def release(self, resource):
        self.loans.remove(resource)  # raises ValueError
        self.free.append(resource)
        self.slots.release()


@right("2.4")
class PoolByQueueAndLock:
    """A queue of what is free, behind a lock that lets only the first in line wait for it."""

    def __init__(self, resources):
        self.line, self.free, self.loans = asyncio.Lock(), asyncio.Queue(), set()
        for resource in resources:
            self.free.put_nowait(resource)

    async def acquire(self):
        async with self.line:
            resource = await self.free.get()
        self.loans.add(resource)
        return resource

    def release(self, resource):
        if resource not in self.loans:
            raise ValueError("not on loan")
        self.loans.remove(resource)
        self.free.put_nowait(resource)


@right("2.4")
class PoolByTickets:
    """Everybody draws a ticket; a call serves the lowest one that still waits."""

    def __init__(self, resources):
        self.free, self.tickets, self.number, self.loans = set(resources), {}, 0, set()

    async def acquire(self):
        self.number += 1
        mine, waiter = self.number, asyncio.get_running_loop().create_future()
        self.tickets[mine] = waiter
        self.serve()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release(waiter.result())
            raise
        finally:
            self.tickets.pop(mine, None)

    def serve(self):
        waiting = sorted(ticket for ticket, waiter in self.tickets.items() if not waiter.done())
        for ticket in waiting[: len(self.free)]:
            self.loans.add(resource := self.free.pop())
            self.tickets[ticket].set_result(resource)

    def release(self, resource):
        if resource not in self.loans:
            raise ValueError("not on loan")
        self.loans.remove(resource)
        self.free.add(resource)
        self.serve()


@wrong("2.4", FAIR)
class PoolByQueue:
    """The pool of most tutorials: who releases and asks again is served before all who wait."""

    def __init__(self, resources):
        self.free = asyncio.Queue()
        for resource in resources:
            self.free.put_nowait(resource)

    async def acquire(self):
        return await self.free.get()

    def release(self, resource):
        self.free.put_nowait(resource)


class Checked:
    """What is on loan, around another pool."""

    def __init__(self, resources):
        super().__init__(resources)
        self.lent = collections.Counter()

    async def acquire(self):
        resource = await super().acquire()
        self.lent[resource] += 1
        return resource

    def release(self, resource):
        if not self.lent[resource]:
            raise ValueError("not on loan")
        self.lent[resource] -= 1
        super().release(resource)


@wrong("2.4", ONE_HOLDER)
class PoolTwoHolders(Checked, PoolByQueue):
    """Gives away what it keeps, now and then."""

    async def acquire(self):
        resource = await super().acquire()
        if len(self.lent) == 2 and not hasattr(self, "given_twice"):
            self.given_twice = self.free.put_nowait(resource)
        return resource


@wrong("2.4", FAIR)
class PoolByCheckedQueue(Checked, PoolByQueue):
    """As unfair, and careful about what is given back."""


@wrong("2.4", FAIR)
class PoolBarging(FairPool):
    """Wakes the first in line, and lets a newcomer take what it was woken for."""

    async def acquire(self):
        while not self.free:
            self.line.append(waiter := asyncio.get_running_loop().create_future())
            await waiter
        self.loans.add(resource := self.free.popleft())
        return resource

    def release(self, resource):
        if resource not in self.loans:
            raise ValueError("not on loan")
        self.loans.remove(resource)
        self.free.append(resource)
        while self.line:
            if not (waiter := self.line.popleft()).done():
                return waiter.set_result(None)


@wrong("2.4", FAIR)
class PoolNewestFirst(FairPool):
    def release(self, resource):
        self.line.reverse()
        try:
            super().release(resource)
        finally:
            self.line.reverse()


@wrong("2.4", IN_TURN)
class PoolAnyOrder(FairPool):
    """By lot: all get as much in the end, but not in turn."""

    dice = random.Random(1)

    def release(self, resource):
        if len(self.line) < 12:
            self.dice.shuffle(self.line)
        super().release(resource)


@wrong("2.4", BUSY)
class PoolPolling(FairPool):
    """A fair line whose first looks every 50 ms."""

    def __init__(self, resources):
        super().__init__(resources)
        self.turn = asyncio.Lock()

    async def acquire(self):
        async with self.turn:
            while not self.free:
                await asyncio.sleep(0.05)
            self.loans.add(resource := self.free.popleft())
            return resource


@wrong("2.4", EVERY)
class PoolOfOne(FairPool):
    def __init__(self, resources):
        super().__init__(list(resources)[:1])


@wrong("2.4", EVERY)
class PoolSharing:
    """A limit only: everybody gets the first resource."""

    def __init__(self, resources):
        self.resources, self.slots = list(resources), asyncio.Semaphore(len(resources))

    async def acquire(self):
        await self.slots.acquire()
        return self.resources[0]

    def release(self, resource):
        self.slots.release()


@wrong("2.4", KEEPS_ALL)
class PoolLosesWoken(FairPool):
    """Cancelled when the resource had been given to it: the resource is gone."""

    async def acquire(self):
        if self.free:
            return await super().acquire()
        self.line.append(waiter := asyncio.get_running_loop().create_future())
        return await waiter


@wrong("2.4", HOLDS_UP)
class PoolFreesWoken(FairPool):
    """Hands a resource of a cancelled waiter back to the free ones, past those in line."""

    async def acquire(self):
        if self.free:
            return await super().acquire()
        self.line.append(waiter := asyncio.get_running_loop().create_future())
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self.loans.discard(waiter.result())
                self.free.append(waiter.result())
            raise


@wrong("2.4", KEEPS_ALL)
class PoolGivesToTheGone(FairPool):
    """Gives to the first in line, even to one that has been cancelled."""

    def release(self, resource):
        if resource not in self.loans:
            raise ValueError("not on loan")
        if self.line:
            waiter = self.line.popleft()
            if not waiter.done():
                waiter.set_result(resource)
            return
        self.loans.remove(resource)
        self.free.append(resource)


@wrong("2.4", REFUSES)
class PoolTrusting(FairPool):
    def release(self, resource):
        self.loans.add(resource)
        super().release(resource)


@wrong("2.4", REFUSES)
class PoolKnowsItsOwn(FairPool):
    """Refuses foreign resources, and takes its own twice."""

    def __init__(self, resources):
        super().__init__(resources)
        self.own = set(resources)

    def release(self, resource):
        if resource not in self.own:
            raise ValueError("not mine")
        self.loans.add(resource)
        super().release(resource)


@wrong("2.4", REFUSES)
class PoolKeyError(FairPool):
    def release(self, resource):
        if resource not in self.loans:
            raise KeyError(resource)
        super().release(resource)


@wrong("2.4", REFUSES)
class PoolKeepsWhatItRefuses(FairPool):
    def release(self, resource):
        if resource not in self.loans:
            self.free.append(resource)
        super().release(resource)


@wrong("2.4", ENDS)
class PoolAsksAgain(FairPool):
    async def acquire(self):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                return await super().acquire()


@wrong("2.4", CANCELS)
class PoolReturnsNothing(FairPool):
    async def acquire(self):
        with contextlib.suppress(asyncio.CancelledError):
            return await super().acquire()


@wrong("2.4", "release() is a plain function")
class PoolAsyncRelease(FairPool):
    async def release(self, resource):
        super().release(resource)


@wrong("2.4", "loses no error")
class PoolReleasesInATask(PoolBySemaphore):
    def release(self, resource):
        if resource not in self.loans:
            raise ValueError("not on loan")

        async def later():
            await asyncio.sleep(0)
            PoolBySemaphore.release(self, resource)

        self.task = asyncio.create_task(later())
