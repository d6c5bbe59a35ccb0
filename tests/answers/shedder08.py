"""Right and wrong answers to exercise 8.2, a shedder."""

from __future__ import annotations

import asyncio
import collections
import contextlib

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

PASSES_ON = "a call's value or error comes out unchanged"
EVERYBODY = "turns nobody away while there is a place"
HOUSE = "never more than places in the house"
NOW = "refuses at once, and before any work"
ONCE = "calls the work once, and waits for it"
WORKERS = "as many workers as stated, and no more"
IN_TURN = "first come, first served"
ERRORS = "an error gives the place back"
CANCELLED = "a cancellation gives the place back"
APART = "two shedders do not share their places"
GOODPUT = "under overload, at least 0.9 mu"
WAIT = "p99 at most K/mu + 2.33 sqrt(K)/mu"
LOSS = "loses what M/M/1/K loses"
CANCELS = "passes a cancellation on"
NO_ERROR = "runs without an error"
NO_TASKS = "leaves no task behind"
ENDS = "comes to an end"


@stub("8.2")
class ShedderStub:
    def __init__(self, workers, places):
        raise NotImplementedError

    async def run(self, work):
        raise NotImplementedError


@stub("8.2")
class ShedderPass:
    def __init__(self, workers, places):
        pass

    async def run(self, work):
        pass


@right("8.2")
class Shedder:
    def __init__(self, workers, places):
        self.turn, self.free = asyncio.Semaphore(workers), places

    async def run(self, work):
        if not self.free:
            raise asyncio.QueueFull("every place is taken")
        self.free -= 1
        try:
            async with self.turn:
                return await work()
        finally:
            self.free += 1


@right("8.2")
class ShedderWithQueue:
    """A queue of futures, handed on by whoever ends."""

    def __init__(self, workers, places):
        self.idle, self.places, self.waiting = workers, places, collections.deque()
        self.inside = 0

    async def run(self, work):
        if self.inside >= self.places:
            raise asyncio.QueueFull
        self.inside += 1
        try:
            if self.idle:
                self.idle -= 1
            else:
                mine = asyncio.get_running_loop().create_future()
                self.waiting.append(mine)
                try:
                    await mine
                except asyncio.CancelledError:
                    if mine.done() and not mine.cancelled():
                        self.next()
                    raise
            try:
                return await work()
            finally:
                self.next()
        finally:
            self.inside -= 1

    def next(self):
        while self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self.idle += 1


@right("8.2")
class ShedderOfTwoSemaphores:
    """locked() tells without waiting, and a semaphore that is not locked is taken without an await."""

    def __init__(self, workers, places):
        self.turn, self.door = asyncio.Semaphore(workers), asyncio.Semaphore(places)

    async def run(self, work):
        if self.door.locked():
            raise asyncio.QueueFull
        async with self.door, self.turn:
            return await work()


@right("8.2")
class ShedderInAList:
    """The places are the members of a set."""

    def __init__(self, workers, places):
        self.inside, self.places, self.turn = set(), places, asyncio.BoundedSemaphore(workers)

    async def run(self, work):
        if len(self.inside) == self.places:
            raise asyncio.QueueFull
        with contextlib.ExitStack() as leaving:
            self.inside.add(me := object())
            leaving.callback(self.inside.discard, me)
            async with self.turn:
                return await work()


class Base:
    """A right shedder in parts, each of which a wrong one does differently."""

    def __init__(self, workers, places):
        self.workers, self.places, self.inside = workers, places, 0
        self.turn = asyncio.Semaphore(workers)

    async def run(self, work):
        self.enter()
        try:
            async with self.turn:
                return await work()
        finally:
            self.leave()

    def enter(self):
        if self.inside >= self.places:
            raise asyncio.QueueFull
        self.inside += 1

    def leave(self):
        self.inside -= 1


@wrong("8.2", HOUSE)
class ShedderUnbounded(Base):
    """A semaphore, and everybody waits."""

    def enter(self):
        self.inside += 1


@wrong("8.2", HOUSE)
class ShedderOneTooMany(Base):
    def enter(self):
        if self.inside > self.places:
            raise asyncio.QueueFull
        self.inside += 1


@wrong("8.2", HOUSE)
class ShedderForgetsWhoWorks(Base):
    """Counts those who wait, and not those who work."""

    async def run(self, work):
        self.enter()
        try:
            await self.turn.acquire()
        finally:
            self.leave()
        try:
            return await work()
        finally:
            self.turn.release()


@wrong("8.2", EVERYBODY)
class ShedderWithoutQueue(Base):
    """Refuses whoever would have to wait: every gap between two requests is lost."""

    def enter(self):
        if self.inside >= self.workers:
            raise asyncio.QueueFull
        self.inside += 1


@wrong("8.2", EVERYBODY)
class ShedderOnePlaceTooFew(Base):
    def enter(self):
        if self.inside >= max(1, self.places - 1):
            raise asyncio.QueueFull
        self.inside += 1


@wrong("8.2", NOW)
class ShedderByTimeoutOnly:
    """Waits as long as a full house would take, and refuses then."""

    def __init__(self, workers, places):
        self.turn, self.patience = asyncio.Semaphore(workers), (places - 0.5) / workers

    async def run(self, work):
        try:
            await asyncio.wait_for(self.turn.acquire(), self.patience)
        except TimeoutError:
            raise asyncio.QueueFull from None
        try:
            return await work()
        finally:
            self.turn.release()


@wrong("8.2", NO_ERROR)
class ShedderThatTimesOut(Base):
    """The timeout comes out as it is, and the queue has no bound."""

    def enter(self):
        self.inside += 1

    async def run(self, work):
        self.enter()
        try:
            async with asyncio.timeout(0.4):
                await self.turn.acquire()
            try:
                return await work()
            finally:
                self.turn.release()
        finally:
            self.leave()


@wrong("8.2", NOW)
class ShedderAfterTheWork(Base):
    """Does the work, and finds then that there was no place."""

    async def run(self, work):
        async with self.turn:
            value = await work()
        self.enter()
        self.leave()
        if self.inside >= self.places:
            raise asyncio.QueueFull
        return value

    def enter(self):
        self.turns = getattr(self, "turns", 0) + 1
        self.inside = len(self.turn._waiters or ())


@wrong("8.2", NOW)
class ShedderBeginsAndStops(Base):
    """Starts the work of everybody, and cancels that of those who have no place."""

    async def run(self, work):
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        if self.inside >= self.places:
            task.cancel()
            await asyncio.wait([task])
            raise asyncio.QueueFull
        self.inside += 1
        try:
            return await task
        finally:
            self.inside -= 1


@wrong("8.2", NOW)
class ShedderThinksFirst(Base):
    """A last try: perhaps somebody leaves."""

    async def run(self, work):
        if self.inside >= self.places:
            await asyncio.sleep(0.1)
        return await super().run(work)


@wrong("8.2", NOW)
class ShedderDropsTheOldest(Base):
    """Refuses those who wait longest, in favour of those who come."""

    def __init__(self, workers, places):
        super().__init__(workers, places)
        self.waiting = collections.deque()

    async def run(self, work):
        if self.inside >= self.places:
            if not self.waiting:
                raise asyncio.QueueFull
            self.waiting.popleft().cancel()
        self.inside += 1
        mine = asyncio.ensure_future(self.turn.acquire())
        self.waiting.append(mine)
        try:
            try:
                await mine
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():
                    raise
                raise asyncio.QueueFull from None
            finally:
                if mine in self.waiting:
                    self.waiting.remove(mine)
            try:
                return await work()
            finally:
                self.turn.release()
        finally:
            self.inside -= 1


@wrong("8.2", IN_TURN)
class ShedderLastInFirstOut(Base):
    def __init__(self, workers, places):
        super().__init__(workers, places)
        self.idle, self.stack = workers, []

    async def run(self, work):
        self.enter()
        try:
            if self.idle:
                self.idle -= 1
            else:
                mine = asyncio.get_running_loop().create_future()
                self.stack.append(mine)
                try:
                    await mine
                except asyncio.CancelledError:
                    if mine in self.stack:
                        self.stack.remove(mine)
                    elif not mine.cancelled():
                        self.next()
                    raise
            try:
                return await work()
            finally:
                self.next()
        finally:
            self.leave()

    def next(self):
        while self.stack:
            future = self.stack.pop()
            if not future.done():
                future.set_result(None)
                return
        self.idle += 1


@wrong("8.2", ERRORS)
class ShedderLeaksOnErrors(Base):
    async def run(self, work):
        self.enter()
        async with self.turn:
            try:
                value = await work()
            except asyncio.CancelledError:
                self.leave()
                raise
        self.leave()
        return value


@wrong("8.2", ERRORS)
class ShedderLeaksOnQueueFull(Base):
    """Takes the QueueFull of the work for its own."""

    async def run(self, work):
        self.enter()
        try:
            async with self.turn:
                value = await work()
        except asyncio.QueueFull:
            raise
        except BaseException:
            self.leave()
            raise
        self.leave()
        return value


@wrong("8.2", CANCELLED)
class ShedderLeaksOnCancel(Base):
    """except Exception does not see a cancellation."""

    async def run(self, work):
        self.enter()
        try:
            async with self.turn:
                value = await work()
        except Exception:
            self.leave()
            raise
        self.leave()
        return value


@wrong("8.2", CANCELLED)
class ShedderLeaksWhenCancelledInTheQueue(Base):
    """try begins one line too late."""

    async def run(self, work):
        self.enter()
        async with self.turn:
            try:
                return await work()
            finally:
                self.leave()


@wrong("8.2", ENDS)
class ShedderLeaksTheTurn(Base):
    """A worker that is cancelled while it is woken takes its turn along."""

    async def run(self, work):
        self.enter()
        try:
            waiting = asyncio.ensure_future(self.turn.acquire())
            await asyncio.shield(waiting)
            try:
                return await work()
            finally:
                self.turn.release()
        finally:
            self.leave()


@wrong("8.2", CANCELLED)
class ShedderGivesBackTwice(Base):
    """A call that is cancelled leaves once for itself and once for the one who cancelled."""

    async def run(self, work):
        try:
            return await super().run(work)
        except asyncio.CancelledError:
            self.inside = max(0, self.inside) + 1
            raise


@wrong("8.2", HOUSE)
class ShedderLeavesTwice(Base):
    async def run(self, work):
        try:
            return await super().run(work)
        except asyncio.CancelledError:
            self.leave()
            raise


@wrong("8.2", CANCELLED)
class ShedderShieldsTheWork(Base):
    """The caller has left, and the work goes on, in its place."""

    async def run(self, work):
        self.enter()
        task = asyncio.ensure_future(self.go_on(work))
        return await asyncio.shield(task)

    async def go_on(self, work):
        try:
            async with self.turn:
                return await work()
        finally:
            self.leave()


@wrong("8.2", CANCELS)
class ShedderSwallowsCancel(Base):
    async def run(self, work):
        with contextlib.suppress(asyncio.CancelledError):
            return await super().run(work)


@wrong("8.2", APART)
class ShedderSharesPlaces(Base):
    """A count on the class, not on the object."""

    everybody = collections.Counter()

    def __init__(self, workers, places):
        super().__init__(workers, places)
        self.key = workers, places

    def enter(self):
        if self.everybody[self.key] >= self.places:
            raise asyncio.QueueFull
        self.everybody[self.key] += 1

    def leave(self):
        self.everybody[self.key] -= 1


@wrong("8.2", WORKERS)
class ShedderWithoutWorkers(Base):
    """All who are in the house work at once."""

    async def run(self, work):
        self.enter()
        try:
            return await work()
        finally:
            self.leave()


@wrong("8.2", WORKERS)
class ShedderOneAtATime(Base):
    def __init__(self, workers, places):
        super().__init__(workers, places)
        self.turn = asyncio.Lock()


@wrong("8.2", PASSES_ON)
class ShedderDropsTheValue(Base):
    async def run(self, work):
        await super().run(work)


@wrong("8.2", PASSES_ON)
class ShedderWrapsErrors(Base):
    async def run(self, work):
        try:
            return await super().run(work)
        except ValueError as error:
            raise RuntimeError("overloaded") from error


@wrong("8.2", PASSES_ON)
class ShedderReturnsNone(Base):
    """None stands for a refusal, and who looks?"""

    async def run(self, work):
        with contextlib.suppress(asyncio.QueueFull):
            return await super().run(work)


@wrong("8.2", ONCE)
class ShedderTriesAgain(Base):
    async def run(self, work):
        await super().run(work)
        return await super().run(work)


@wrong("8.2", NO_TASKS)
class ShedderInTheBackground(Base):
    """The caller gets an answer; a task that nobody ends is left."""

    def __init__(self, workers, places):
        super().__init__(workers, places)
        self.watch = asyncio.create_task(asyncio.sleep(1e4))


@wrong("8.2", EVERYBODY)
class ShedderByRate(Base):
    """So many a second, whether the house is empty or full."""

    def __init__(self, workers, places):
        super().__init__(workers, places)
        self.came = collections.deque()

    def enter(self):
        now = asyncio.get_running_loop().time()
        while self.came and self.came[0] <= now - 2:
            self.came.popleft()
        super().enter()
        if len(self.came) >= self.places:
            self.leave()
            raise asyncio.QueueFull
        self.came.append(now)


@wrong("8.2", GOODPUT)
class ShedderThatRests(Base):
    """Two milliseconds of sleep before each work: a fifth of what the worker can do."""

    async def run(self, work):
        async def rested():
            if self.places == 40:
                await asyncio.sleep(0.002)
            return await work()

        return await super().run(rested)


@wrong("8.2", LOSS)
class ShedderWithFewPlaces(Base):
    """A quarter of a large house: small tests do not see it."""

    def __init__(self, workers, places):
        super().__init__(workers, places if places < 10 else places // 4)


@wrong("8.2", WAIT)
class ShedderWithRoomForAll(Base):
    """Doubles a large house."""

    def __init__(self, workers, places):
        super().__init__(workers, places if places < 10 else 2 * places)
