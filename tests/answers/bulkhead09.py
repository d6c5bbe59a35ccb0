"""Right and wrong answers to exercise 9.3, bulkheads."""

from __future__ import annotations

import asyncio
import collections
import contextlib

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

PASSES_ON = "a call's value or error comes out unchanged"
ONCE = "calls the work once, and waits for it"
EVERYBODY = "refuses nobody whose own compartment has room"
LINE = "at most `line` calls of a name wait"
SIZE = "at most `size` calls of a name work at once"
NOW = "refuses at once, and before any work"
IN_TURN = "first come, first served, within a name"
NEIGHBOUR = "an upstream that hangs moves the other's p99 by 10 % at most"
APART = "names do not wait for each other"
ERRORS = "an error gives the slot back, once"
CANCELLED = "a cancellation gives the slot back, once"
GONE = "a cancelled call ends its work, or never begins it"
ALONE = "two objects share no slots"
CANCELS = "passes a cancellation on"
NO_TASKS = "leaves no task behind"
NO_ERROR = "runs without an error"


@stub("9.3")
class BulkheadsStub:
    def __init__(self, size, line):
        raise NotImplementedError

    async def run(self, name, work):
        raise NotImplementedError


@stub("9.3")
class BulkheadsPass:
    def __init__(self, size, line):
        pass

    async def run(self, name, work):
        pass


@right("9.3")
class Bulkheads:
    def __init__(self, size, line):
        self.room, self.inside = size + line, collections.Counter()
        self.slots = collections.defaultdict(lambda: asyncio.Semaphore(size))

    async def run(self, name, work):
        if self.inside[name] == self.room:
            raise asyncio.QueueFull(name)
        self.inside[name] += 1
        try:
            async with self.slots[name]:
                return await work()
        finally:
            self.inside[name] -= 1


class Compartment:
    """A line of futures: whoever ends hands its slot to the first who waits."""

    def __init__(self, size, line):
        self.free, self.line, self.waiting = size, line, collections.deque()

    async def __aenter__(self):
        if self.free:
            self.free -= 1
            return
        if len(self.waiting) == self.line:
            raise asyncio.QueueFull
        mine = asyncio.get_running_loop().create_future()
        self.waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine in self.waiting:
                self.waiting.remove(mine)
            if mine.done() and not mine.cancelled():
                self.hand_on()
            raise

    async def __aexit__(self, *_):
        self.hand_on()

    def hand_on(self):
        while self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self.free += 1


@right("9.3")
class BulkheadsByHand:
    def __init__(self, size, line):
        self.made, self.new = {}, lambda: Compartment(size, line)

    async def run(self, name, work):
        if name not in self.made:
            self.made[name] = self.new()
        async with self.made[name]:
            return await work()


@right("9.3")
class BulkheadsOfTwoSemaphores:
    """locked() tells without waiting, and a semaphore that is not locked is taken without an await."""

    def __init__(self, size, line):
        self.pairs = collections.defaultdict(lambda: (asyncio.Semaphore(size + line), asyncio.BoundedSemaphore(size)))

    async def run(self, name, work):
        door, slots = self.pairs[name]
        if door.locked():
            raise asyncio.QueueFull
        async with door, slots:
            return await work()


@right("9.3")
class BulkheadsThatForget:
    """A name that nobody uses takes no memory."""

    def __init__(self, size, line):
        self.size, self.room, self.used = size, size + line, {}

    async def run(self, name, work):
        slots, inside = self.used.setdefault(name, (asyncio.Semaphore(self.size), set()))
        if len(inside) >= self.room:
            raise asyncio.QueueFull
        inside.add(me := object())
        try:
            async with slots:
                return await work()
        finally:
            inside.discard(me)
            if not inside and self.used.get(name) == (slots, inside):
                del self.used[name]


class Base:
    """Right bulkheads in parts, each of which a wrong one does differently."""

    def __init__(self, size, line):
        self.size, self.line, self.inside = size, line, collections.Counter()
        self.made = {}

    def slots(self, name):
        return self.made.setdefault(name, asyncio.Semaphore(self.size))

    async def run(self, name, work):
        self.enter(name)
        try:
            async with self.slots(name):
                return await work()
        finally:
            self.leave(name)

    def enter(self, name):
        if self.inside[name] >= self.size + self.line:
            raise asyncio.QueueFull(name)
        self.inside[name] += 1

    def leave(self, name):
        self.inside[name] -= 1


@wrong("9.3", NEIGHBOUR)
class OneForAll(Base):
    """One semaphore and one line, whatever the name."""

    async def run(self, name, work):
        return await super().run("all", work)


@wrong("9.3", NEIGHBOUR)
class OneSemaphoreForAll(Base):
    """Counts by name, but the slots are of one pool."""

    def slots(self, name):
        return super().slots("all")


@wrong("9.3", NEIGHBOUR)
class OneLineForAll(Base):
    """Slots by name, but one line for all."""

    def enter(self, name):
        super().enter("all")

    def leave(self, name):
        super().leave("all")


@wrong("9.3", APART)
class OnePoolTenTimesAsLarge(Base):
    """Slots by name, and a pool for all of them that is large enough, until many names come."""

    def __init__(self, size, line):
        super().__init__(size, line)
        self.pool = asyncio.Semaphore(5 * size)

    async def run(self, name, work):
        self.enter(name)
        try:
            async with self.slots(name), self.pool:
                return await work()
        finally:
            self.leave(name)


@wrong("9.3", APART)
class OneLockWhileItStarts(Base):
    """A lock around the table, held while the call waits for its slot."""

    def __init__(self, size, line):
        super().__init__(size, line)
        self.lock = asyncio.Lock()

    async def run(self, name, work):
        if name.startswith("name"):
            async with self.lock:
                return await super().run(name, work)
        return await super().run(name, work)


@wrong("9.3", NEIGHBOUR)
class LockAroundTheSlot(Base):
    """Waits for a slot with the table locked: whoever comes next waits too, whatever the name."""

    def __init__(self, size, line):
        super().__init__(size, line)
        self.lock = asyncio.Lock()

    async def run(self, name, work):
        self.enter(name)
        try:
            async with self.lock:
                slots = self.slots(name)
                await slots.acquire()
            try:
                return await work()
            finally:
                slots.release()
        finally:
            self.leave(name)


@wrong("9.3", LINE)
class UnboundedLine(Base):
    def enter(self, name):
        self.inside[name] += 1


@wrong("9.3", LINE)
class OneTooManyInLine(Base):
    def enter(self, name):
        if self.inside[name] > self.size + self.line:
            raise asyncio.QueueFull
        self.inside[name] += 1


@wrong("9.3", EVERYBODY)
class NoLine(Base):
    """Refuses whoever would have to wait."""

    def enter(self, name):
        if self.inside[name] >= self.size:
            raise asyncio.QueueFull
        self.inside[name] += 1


@wrong("9.3", NOW)
class WaitsAndRefuses(Base):
    """Waits for a place in line, with a timeout, where it must refuse."""

    async def run(self, name, work):
        for _ in range(10):
            with contextlib.suppress(asyncio.QueueFull):
                self.enter(name)
                break
            await asyncio.sleep(0.01)
        else:
            raise asyncio.QueueFull
        try:
            async with self.slots(name):
                return await work()
        finally:
            self.leave(name)


@wrong("9.3", LINE)
class BlocksInsteadOfRefusing(Base):
    """A second semaphore as the line: who finds it full waits for ever instead of being refused."""

    async def run(self, name, work):
        door = self.made.setdefault((name, "door"), asyncio.Semaphore(self.size + self.line))
        async with door, self.slots(name):
            return await work()


@wrong("9.3", NOW)
class WorksFirst(Base):
    """Starts the work of everybody, and cancels that of those who have no place."""

    async def run(self, name, work):
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        try:
            self.enter(name)
        except asyncio.QueueFull:
            task.cancel()
            await asyncio.wait([task])
            raise
        try:
            return await task
        finally:
            self.leave(name)


@wrong("9.3", SIZE)
class AllWorkAtOnce(Base):
    """Bounds who is inside, and lets all of them work."""

    async def run(self, name, work):
        self.enter(name)
        try:
            return await work()
        finally:
            self.leave(name)


@wrong("9.3", SIZE)
class OneAtATime(Base):
    def slots(self, name):
        return self.made.setdefault(name, asyncio.Semaphore(1))


@wrong("9.3", ERRORS)
class LeaksOnErrors(Base):
    """A slot is given back when the work ends well, or is cancelled."""

    async def run(self, name, work):
        self.enter(name)
        async with self.slots(name):
            try:
                value = await work()
            except asyncio.CancelledError:
                self.leave(name)
                raise
        self.leave(name)
        return value


@wrong("9.3", ERRORS)
class LeaksOnTimeouts(Base):
    """except TimeoutError comes first, and forgets the slot."""

    async def run(self, name, work):
        self.enter(name)
        try:
            async with self.slots(name):
                value = await work()
        except TimeoutError:
            raise
        except BaseException:
            self.leave(name)
            raise
        self.leave(name)
        return value


@wrong("9.3", ERRORS)
class LeavesTwiceOnErrors(Base):
    async def run(self, name, work):
        try:
            return await super().run(name, work)
        except asyncio.QueueFull:
            raise
        except Exception:
            self.slots(name).release()
            self.leave(name)
            raise


@wrong("9.3", ERRORS)
class TakesTheQueueFullOfTheWorkForItsOwn(Base):
    async def run(self, name, work):
        self.enter(name)
        try:
            async with self.slots(name):
                value = await work()
        except asyncio.QueueFull:
            raise
        except BaseException:
            self.leave(name)
            raise
        self.leave(name)
        return value


@wrong("9.3", CANCELLED)
class LeaksOnCancel(Base):
    """except Exception does not see a cancellation."""

    async def run(self, name, work):
        self.enter(name)
        try:
            async with self.slots(name):
                value = await work()
        except Exception:
            self.leave(name)
            raise
        self.leave(name)
        return value


@wrong("9.3", CANCELLED)
class LeaksWhenCancelledInLine(Base):
    """try begins one line too late."""

    async def run(self, name, work):
        self.enter(name)
        async with self.slots(name):
            try:
                return await work()
            finally:
                self.leave(name)


@wrong("9.3", CANCELLED)
class ReleasesASlotItNeverHad(Base):
    """acquire() inside the try: cancelled while it waits, it releases all the same."""

    async def run(self, name, work):
        self.enter(name)
        slots = self.slots(name)
        try:
            await slots.acquire()
            return await work()
        finally:
            slots.release()
            self.leave(name)


@wrong("9.3", GONE)
class ShieldsTheWork(Base):
    """The caller has left, and the work goes on in its slot."""

    async def run(self, name, work):
        self.enter(name)
        return await asyncio.shield(asyncio.ensure_future(self.go_on(name, work)))

    async def go_on(self, name, work):
        try:
            async with self.slots(name):
                return await work()
        finally:
            self.leave(name)


@wrong("9.3", CANCELS)
class SwallowsCancel(Base):
    async def run(self, name, work):
        with contextlib.suppress(asyncio.CancelledError):
            return await super().run(name, work)


@wrong("9.3", IN_TURN)
class LastInFirstOut(Base):
    def __init__(self, size, line):
        super().__init__(size, line)
        self.stacks = collections.defaultdict(list)
        self.idle = collections.defaultdict(lambda: size)

    async def run(self, name, work):
        self.enter(name)
        try:
            await self.take(name)
            try:
                return await work()
            finally:
                self.give(name)
        finally:
            self.leave(name)

    async def take(self, name):
        if self.idle[name]:
            self.idle[name] -= 1
            return
        mine = asyncio.get_running_loop().create_future()
        self.stacks[name].append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine in self.stacks[name]:
                self.stacks[name].remove(mine)
            elif not mine.cancelled():
                self.give(name)
            raise

    def give(self, name):
        while self.stacks[name]:
            future = self.stacks[name].pop()
            if not future.done():
                future.set_result(None)
                return
        self.idle[name] += 1


@wrong("9.3", ALONE)
class SharedByTheClass(Base):
    """The table stands on the class: a mutable default that all objects share."""

    everybody = collections.defaultdict(collections.Counter)

    def __init__(self, size, line):
        super().__init__(size, line)
        self.inside = self.everybody[size, line]


@wrong("9.3", PASSES_ON)
class DropsTheValue(Base):
    async def run(self, name, work):
        await super().run(name, work)


@wrong("9.3", PASSES_ON)
class NoneForFull(Base):
    """None stands for a refusal, and who looks?"""

    async def run(self, name, work):
        with contextlib.suppress(asyncio.QueueFull):
            return await super().run(name, work)


@wrong("9.3", PASSES_ON)
class WrapsErrors(Base):
    async def run(self, name, work):
        try:
            return await super().run(name, work)
        except ValueError as error:
            raise RuntimeError("upstream failed") from error


@wrong("9.3", PASSES_ON)
class AddsATimeout(Base):
    """A time limit of its own, which nobody asked for."""

    async def run(self, name, work):
        return await asyncio.wait_for(super().run(name, work), 0.5)


@wrong("9.3", ONCE)
class TriesAgain(Base):
    async def run(self, name, work):
        await super().run(name, work)
        return await super().run(name, work)


@wrong("9.3", NO_TASKS)
class LeavesAWatcher(Base):
    def __init__(self, size, line):
        super().__init__(size, line)
        self.watch = asyncio.create_task(asyncio.sleep(1e4))


@wrong("9.3", NEIGHBOUR)
class CompartmentsByHash(Base):
    """Two compartments for all names: whoever shares one with a sick upstream is sick, too."""

    async def run(self, name, work):
        return await super().run(len(name) % 2, work)


@wrong("9.3", GONE)
class WorksOnInTheBackground(Base):
    """The slot comes back when the caller leaves, but the call goes on: more are at work than slots."""

    async def run(self, name, work):
        self.enter(name)
        try:
            async with self.slots(name):
                return await asyncio.shield(asyncio.ensure_future(work()))
        finally:
            self.leave(name)


@wrong("9.3", SIZE)
class ForgetsTooEarly(Base):
    """Whoever is cancelled takes the compartment of its name along, with all who are still in it."""

    async def run(self, name, work):
        try:
            return await super().run(name, work)
        except asyncio.CancelledError:
            self.made.pop(name, None)
            raise


@wrong("9.3", EVERYBODY)
class ShedsAtHalf(Base):
    """Keeps places in reserve, for better times."""

    def enter(self, name):
        if self.inside[name] >= max(1, (self.size + self.line) // 2):
            raise asyncio.QueueFull
        self.inside[name] += 1
