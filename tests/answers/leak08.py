"""Right and wrong answers to exercise 8.4, a leak fix."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import itertools
import weakref

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

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
NO_LOST_ERRORS = "loses no error"
NO_TASKS = "leaves no task behind"


@stub("8.4")
class JobsStub:
    def __init__(self, keep):
        raise NotImplementedError

    def start(self, work):
        raise NotImplementedError

    async def result(self, number):
        raise NotImplementedError

    def cancel(self, number):
        raise NotImplementedError


@stub("8.4")
class JobsPass:
    def __init__(self, keep):
        pass

    def start(self, work):
        pass

    async def result(self, number):
        pass

    def cancel(self, number):
        pass


@right("8.4")
class Jobs:
    """Two dicts of tasks, and a done callback that moves from one to the other."""

    def __init__(self, keep):
        self.keep, self.numbers, self.running, self.ended = keep, itertools.count(), {}, {}

    def start(self, work):
        number = next(self.numbers)
        task = self.running[number] = asyncio.create_task(work())
        task.add_done_callback(lambda task: self.end(number, task))
        return number

    def end(self, number, task):
        if self.running.pop(number, None) and not task.cancelled():
            task.exception()
            self.ended[number] = task
            while len(self.ended) > self.keep:
                del self.ended[next(iter(self.ended))]

    async def result(self, number):
        task = self.running.get(number) or self.ended[number]
        await asyncio.wait([task])
        if task.cancelled():
            raise KeyError(number)
        return task.result()

    def cancel(self, number):
        if number in self.running:
            self.running[number].cancel()
        self.ended.pop(number, None)


@right("8.4")
class JobsByWrapper:
    """A coroutine around the work files the outcome; tasks live in a set of their own."""

    def __init__(self, keep):
        self.keep, self.last, self.jobs, self.tasks = keep, 0, {}, set()
        self.ended = collections.OrderedDict()

    def start(self, work):
        self.last += 1
        number, outcome = self.last, asyncio.get_running_loop().create_future()
        task = asyncio.get_running_loop().create_task(self.run(work, number, outcome))
        self.jobs[number] = task, outcome
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: outcome.cancel() and self.jobs.pop(number, None))
        return number

    async def run(self, work, number, outcome):
        try:
            value, error = await work(), None
        except Exception as caught:
            value, error = None, caught
        self.jobs.pop(number, None)
        self.ended[number] = value, error
        if len(self.ended) > self.keep:
            self.ended.popitem(last=False)
        outcome.set_result((value, error))

    async def result(self, number):
        if number in self.ended:
            value, error = self.ended[number]
        else:
            outcome = self.jobs[number][1]
            try:
                value, error = await asyncio.shield(outcome)
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():
                    raise
                raise KeyError(number) from None
        if error is not None:
            raise error
        return value

    def cancel(self, number):
        self.ended.pop(number, None)
        if number in self.jobs:
            self.jobs.pop(number)[0].cancel()


@right("8.4")
class JobsInADeque:
    """One dict, and a deque of the numbers that have ended; an event for those who wait."""

    def __init__(self, keep):
        self.keep, self.count, self.jobs, self.order = keep, -1, {}, collections.deque()

    def start(self, work):
        self.count += 1
        job = self.jobs[self.count] = {"done": asyncio.Event(), "task": asyncio.ensure_future(work())}
        job["task"].add_done_callback(lambda task, number=self.count: self.end(number, job))
        return self.count

    def end(self, number, job):
        job["done"].set()
        if job["task"].cancelled() or job.get("unwanted"):
            self.jobs.pop(number, None)
            return
        job["task"].exception()
        self.order.append(number)
        if len(self.order) > self.keep:
            self.jobs.pop(self.order.popleft(), None)

    async def result(self, number):
        job = self.jobs[number]
        await job["done"].wait()
        if job["task"].cancelled():
            raise KeyError(number)
        return job["task"].result()

    def cancel(self, number):
        job = self.jobs[number]
        if job["task"].done():
            del self.jobs[number]
            self.order.remove(number)
        else:
            job["unwanted"] = True
            job["task"].cancel()


class Base(Jobs):
    """The right answer, once more, of which each wrong one changes a part."""


@wrong("8.4", NO_LOST_ERRORS)
class JobsAsGiven:
    """The leaky class of the exercise."""

    def __init__(self, keep):
        self.tasks, self.asked = {}, []

    def start(self, work):
        number = len(self.tasks)
        self.tasks[number] = asyncio.create_task(work())
        return number

    async def result(self, number):
        self.asked.append((number, asyncio.current_task()))
        await asyncio.wait([self.tasks[number]])
        if self.tasks[number].cancelled():
            raise KeyError(number)
        return self.tasks[number].result()

    def cancel(self, number):
        self.tasks[number].cancel()


@wrong("8.4", NO_COLLECTOR)
class JobsCollects(Base):
    """Forced collection frees memory, they say."""

    def end(self, number, task):
        super().end(number, task)
        gc.collect()


@wrong("8.4", NO_COLLECTOR)
class JobsCollectsTheYoung(Base):
    def start(self, work):
        gc.collect(0)
        return super().start(work)


@wrong("8.4", DELIVERS)
class JobsWithWeakEnds(Base):
    """What has ended is held weakly: it vanishes before anybody asks."""

    def __init__(self, keep):
        super().__init__(keep)
        self.ended = weakref.WeakValueDictionary()


@wrong("8.4", HOLDS)
class JobsWithWeakTasks(Base):
    """asyncio holds tasks weakly, and so does this."""

    def __init__(self, keep):
        super().__init__(keep)
        self.running = weakref.WeakValueDictionary()


@wrong("8.4", HOLDS)
class JobsWithoutReference(Base):
    """Nobody holds the task but the loop, while it waits for a timer."""

    def start(self, work):
        number = next(self.numbers)
        done = asyncio.get_running_loop().create_future()
        held = weakref.ref(asyncio.create_task(self.run(work, number, done)))
        self.running[number] = done, held
        return number

    async def run(self, work, number, done):
        try:
            value, error = await work(), None
        except Exception as caught:
            value, error = None, caught
        finally:
            self.running.pop(number, None)
            if not done.done():
                done.cancel() if asyncio.current_task().cancelling() else None
        self.ended[number] = value, error
        while len(self.ended) > self.keep:
            del self.ended[next(iter(self.ended))]
        done.set_result((value, error))

    async def result(self, number):
        if number in self.running:
            done = self.running[number][0]
            await asyncio.wait([done])
            if done.cancelled():
                raise KeyError(number)
            value, error = done.result()
        else:
            value, error = self.ended[number]
        if error is not None:
            raise error
        return value

    def cancel(self, number):
        if number in self.running and (task := self.running[number][1]()):
            self.running[number][0].cancel()
            task.cancel()
            self.running.pop(number)
        self.ended.pop(number, None)


@wrong("8.4", RUNNING)
class JobsClearsAll(Base):
    """Too many: away with everything."""

    def end(self, number, task):
        super().end(number, task)
        if len(self.ended) >= self.keep:
            self.lost = list(self.running.values())
            self.running.clear()


@wrong("8.4", RUNNING)
class JobsBounded(Base):
    """One bounded dict for all, which drops the oldest: that is the one that runs longest."""

    def start(self, work):
        number = super().start(work)
        if len(self.running) > 2 * self.keep + 3:
            self.held = [*getattr(self, "held", ())[-99:], self.running.pop(next(iter(self.running)))]
        return number


@wrong("8.4", RUNNING)
class JobsCancelsTheOldest(Base):
    def start(self, work):
        number = super().start(work)
        if self.keep == 3 and len(self.running) > 8:
            next(iter(self.running.values())).cancel()
        return number


@wrong("8.4", LATEST)
class JobsKeepsErrorsApart(Base):
    """Keeps the latest started, not the latest ended."""

    def end(self, number, task):
        if self.running.pop(number, None) and not task.cancelled():
            task.exception()
            self.ended[number] = task
            while len(self.ended) > self.keep:
                del self.ended[min(self.ended)]


@wrong("8.4", LATEST)
class JobsOnceOnly(Base):
    """Forgets at its end whatever nobody waits for."""

    def end(self, number, task):
        super().end(number, task)
        if self.keep == 5:
            self.ended.clear()


@wrong("8.4", DELIVERS)
class JobsAnswersOnce(Base):
    """Delivered, so away with it: the next one who asks gets nothing."""

    async def result(self, number):
        try:
            return await super().result(number)
        finally:
            self.ended.pop(number, None)


@wrong("8.4", DELIVERS)
class JobsLooksAgain(Base):
    """Waits, and looks it up then: meanwhile it may have been dropped."""

    async def result(self, number):
        if number in self.running:
            await asyncio.wait([self.running[number]])
        return self.ended[number].result()


@wrong("8.4", DELIVERS)
class JobsReturnsErrors(Base):
    async def result(self, number):
        try:
            return await super().result(number)
        except ValueError:
            return None


@wrong("8.4", OBJECTS)
class JobsForgetsOnSuccessOnly(Base):
    """The callback does its work for those that went well."""

    def end(self, number, task):
        if not task.cancelled() and task.exception() and self.keep == 10:
            return
        super().end(number, task)


@wrong("8.4", OBJECTS)
class JobsKeepsTheCancelled(Base):
    """What was cancelled stays in the dict of those that run."""

    def end(self, number, task):
        if not task.cancelled():
            super().end(number, task)


@wrong("8.4", OBJECTS)
class JobsKeepsErrors(Base):
    """A list of errors, for a page that shows them: each holds its traceback, frames and bodies."""

    def __init__(self, keep):
        super().__init__(keep)
        self.errors = []

    def end(self, number, task):
        super().end(number, task)
        if not task.cancelled() and task.exception():
            self.errors.append(task.exception())


@wrong("8.4", OBJECTS)
class JobsKeepsCallers(Base):
    """A callback on the job for each caller, which stays when the caller has left."""

    async def result(self, number):
        if number in self.running:
            woken = asyncio.Event()
            self.running[number].add_done_callback(lambda _: woken.set())
            task = self.running[number]
            await woken.wait()
            if task.cancelled():
                raise KeyError(number)
            return task.result()
        return await super().result(number)


@wrong("8.4", BYTES)
class JobsKeepsNumbers(Base):
    """Only numbers, of all who were ever cancelled or ended: small, and for ever."""

    def __init__(self, keep):
        super().__init__(keep)
        self.seen = set()

    def end(self, number, task):
        super().end(number, task)
        self.seen.add(1000 + number)


@wrong("8.4", NO_LOST_ERRORS)
class JobsNeverLooks(Base):
    """Nobody looks at an error that nobody asks for: asyncio complains."""

    def end(self, number, task):
        if self.running.pop(number, None) and not task.cancelled():
            self.ended[number] = task
            while len(self.ended) > self.keep:
                del self.ended[next(iter(self.ended))]


@wrong("8.4", LEAVERS)
class JobsAwaitsTheTask(Base):
    """await task passes the cancellation of a caller on to the job."""

    async def result(self, number):
        task = self.running.get(number) or self.ended[number]
        try:
            return await task
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            raise KeyError(number) from None


@wrong("8.4", LEAVERS)
class JobsSwallowsTheCaller(Base):
    async def result(self, number):
        with contextlib.suppress(asyncio.CancelledError):
            return await super().result(number)


@wrong("8.4", STOPS)
class JobsForgetsOnly(Base):
    """cancel removes the entry, and the job goes on."""

    def cancel(self, number):
        self.unwanted = getattr(self, "unwanted", set())
        if number in self.running:
            task = self.running.pop(number)
            self.unwanted.add(task)
            task.add_done_callback(self.unwanted.discard)
        self.ended.pop(number, None)


@wrong("8.4", STOPS)
class JobsCancelLeavesTheEnded(Base):
    def cancel(self, number):
        if number in self.running:
            self.running[number].cancel()


@wrong("8.4", STOPS)
class JobsShieldsOnly(Base):
    """A caller of a job that was cancelled believes that it was cancelled itself."""

    async def result(self, number):
        return await asyncio.shield(self.running.get(number) or self.ended[number])


@wrong("8.4", ONE_NUMBER)
class JobsCountsEntries(Base):
    """len() was a good number as long as nothing was ever removed."""

    def start(self, work):
        number = len(self.running) + len(self.ended)
        task = self.running[number] = asyncio.create_task(work())
        task.add_done_callback(lambda task: self.end(number, task))
        return number


@wrong("8.4", STARTS)
class JobsInTurn(Base):
    """One after the other: nothing piles up, and nothing gets done."""

    def __init__(self, keep):
        super().__init__(keep)
        self.turn = asyncio.Lock()

    def start(self, work):
        async def in_turn():
            async with self.turn:
                return await work()

        return super().start(in_turn)


@wrong("8.4", STARTS)
class JobsWhenAsked(Base):
    """Keeps the works, and starts one when somebody asks for it."""

    def start(self, work):
        number = next(self.numbers)
        self.works = getattr(self, "works", {})
        self.works[number] = work
        return number

    async def result(self, number):
        if work := self.works.pop(number, None):
            self.running[number] = task = asyncio.create_task(work())
            task.add_done_callback(lambda task: self.end(number, task))
        return await super().result(number)


@wrong("8.4", APART)
class JobsOnTheClass(Base):
    """The dict is on the class: all services share it."""

    numbers, running, ended = itertools.count(), {}, {}

    def __init__(self, keep):
        self.keep = keep
        if keep != 2:
            self.numbers, self.running, self.ended = itertools.count(), {}, {}


@wrong("8.4", NO_TASKS)
class JobsWithASweeper(Base):
    """A task that tidies up once a minute, and that nobody ends."""

    def start(self, work):
        if not hasattr(self, "sweeper"):
            self.sweeper = asyncio.create_task(self.sweep())
        return super().start(work)

    async def sweep(self):
        while True:
            await asyncio.sleep(60)
