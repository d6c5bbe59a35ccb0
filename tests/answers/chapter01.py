"""Right and wrong answers to the exercises of chapter 01.

Every wrong answer names the property that its check must report as missing.
"""

from __future__ import annotations

import asyncio
import bisect
import collections
import contextlib
import heapq
import itertools
import threading
import time
import weakref

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub


# --- 1.1 a loop of your own ----------------------------------------------------------------------

ORDER = "the order of asyncio"
EQUAL = "equal deadlines: first come, first served"


@stub("1.1")
def run_stub(coros):
    """Drive all coroutines to their end."""
    raise NotImplementedError


@stub("1.1")
def run_dots(coros):
    """Drive all coroutines to their end."""
    ...


@right("1.1")
def run(coros):
    now, number, results = 0.0, itertools.count(), [None] * len(coros)
    due = [(now, next(number), index, coro) for index, coro in enumerate(coros)]
    while due:
        now, _, index, coro = heapq.heappop(due)
        try:
            pause = coro.send(None)
        except StopIteration as stop:
            results[index] = stop.value
        else:
            heapq.heappush(due, (now + pause.seconds, next(number), index, coro))
    return results


@right("1.1")
def run_like_asyncio(coros):
    """A ready deque, a heap of timers, and jobs that are coroutines."""
    now, number, timers = 0.0, itertools.count(), []
    results, ready = {}, collections.deque(enumerate(coros))
    while ready or timers:
        if not ready:
            now = timers[0][0]
            while timers and timers[0][0] <= now:
                ready.append(heapq.heappop(timers)[2])
        index, coro = ready.popleft()
        try:
            pause = coro.send(None)
        except StopIteration as stop:
            results[index] = stop.value
            continue
        if pause.seconds <= 0:
            ready.append((index, coro))
        else:
            heapq.heappush(timers, (now + pause.seconds, next(number), (index, coro)))
    return [results[index] for index in range(len(coros))]


@right("1.1")
def run_with_a_sorted_list(coros):
    waiting, results = [(0.0, coro) for coro in coros], {}
    while waiting:
        now, coro = waiting.pop(0)
        try:
            pause = coro.send(None)
        except StopIteration as stop:
            results[id(coro)] = stop.value
        else:
            when = now + pause.seconds
            at = bisect.bisect_right(waiting, when, key=lambda entry: entry[0])
            waiting.insert(at, (when, coro))
    return tuple(results[id(coro)] for coro in coros)


@right("1.1")
class RunAsObject:
    """Any callable is fine."""

    def __new__(cls, coros):
        return run(coros)


@wrong("1.1", "takes turns")
def run_one_after_another(coros):
    results = []
    for coro in coros:
        try:
            while True:
                coro.send(None)
        except StopIteration as stop:
            results.append(stop.value)
    return results


@wrong("1.1", "wakes the earliest deadline first")
def run_round_robin(coros):
    ready, results = collections.deque(enumerate(coros)), {}
    while ready:
        index, coro = ready.popleft()
        try:
            coro.send(None)
            ready.append((index, coro))
        except StopIteration as stop:
            results[index] = stop.value
    return [results[index] for index in range(len(coros))]


@wrong("1.1", "takes turns")
def run_latest_of_equal(coros):
    """The place of a coroutine in the list decides, not when it asked."""
    waiting, results = [[0.0, coro] for coro in coros], {}
    while waiting:
        entry = min(waiting, key=lambda one: one[0])
        try:
            entry[0] += entry[1].send(None).seconds
        except StopIteration as stop:
            results[id(entry[1])] = stop.value
            waiting.remove(entry)
    return [results[id(coro)] for coro in coros]


@wrong("1.1", EQUAL)
def run_swap_with_the_last(coros):
    """Scans for the earliest and fills its gap with the last: reorders equal timers."""
    ready, timers, results, now = collections.deque(coros), [], {}, 0.0
    while ready or timers:
        if not ready:
            best = min(range(len(timers)), key=lambda i: timers[i][0])
            timers[best], timers[-1] = timers[-1], timers[best]
            now, coro = timers.pop()
            ready.append(coro)
        coro = ready.popleft()
        try:
            seconds = coro.send(None).seconds
            if seconds:
                timers.append((now + seconds, coro))
            else:
                ready.append(coro)
        except StopIteration as stop:
            results[id(coro)] = stop.value
    return [results[id(coro)] for coro in coros]


@wrong("1.1", EQUAL)
def run_compares_coroutines(coros):
    due, results = [], {}
    for coro in coros:
        due.append((0.0, id(coro), coro))
    due = [(when, coro) for when, _, coro in due]
    while due:
        now, coro = heapq.heappop(due)
        try:
            heapq.heappush(due, (now + coro.send(None).seconds, coro))
        except StopIteration as stop:
            results[id(coro)] = stop.value
    return [results[id(coro)] for coro in coros]


@wrong("1.1", "counts a pause from now")
def run_from_the_start(coros):
    number, results = itertools.count(), {}
    due = [(0.0, next(number), coro) for coro in coros]
    while due:
        _, _, coro = heapq.heappop(due)
        try:
            heapq.heappush(due, (coro.send(None).seconds, next(number), coro))
        except StopIteration as stop:
            results[id(coro)] = stop.value
    return [results[id(coro)] for coro in coros]


@wrong("1.1", "keeps the results in order")
def run_in_order_of_finishing(coros):
    number, results = itertools.count(), []
    due = [(0.0, next(number), coro) for coro in coros]
    while due:
        now, _, coro = heapq.heappop(due)
        try:
            heapq.heappush(due, (now + coro.send(None).seconds, next(number), coro))
        except StopIteration as stop:
            results.append(stop.value)
    return results


@wrong("1.1", "keeps the results in order")
def run_without_results(coros):
    run(coros)


@wrong("1.1", "raises what a coroutine raises")
def run_swallowing(coros):
    async def safe(coro):
        with contextlib.suppress(Exception):
            return await coro

    return run([safe(coro) for coro in coros])


@wrong("1.1", "raises what a coroutine raises")
def run_returning_exceptions(coros):
    async def safe(coro):
        try:
            return await coro
        except Exception as error:
            return error

    return run([safe(coro) for coro in coros])


@wrong("1.1", "raises what a coroutine raises")
def run_raising_at_the_end(coros):
    for value in (values := run_returning_exceptions(coros)):
        if isinstance(value, Exception):
            raise value
    return values


@wrong("1.1", "does not wait for real")
def run_sleeping(coros):
    now, number, results = 0.0, itertools.count(), {}
    due = [(0.0, next(number), coro) for coro in coros]
    while due:
        when, _, coro = heapq.heappop(due)
        time.sleep(when - now)
        now = when
        try:
            heapq.heappush(due, (now + coro.send(None).seconds, next(number), coro))
        except StopIteration as stop:
            results[id(coro)] = stop.value
    return [results[id(coro)] for coro in coros]


@wrong("1.1", "one thread")
def run_in_threads(coros):
    results = {}

    def drive(coro):
        results[id(coro)] = run([coro])[0]

    threads = [threading.Thread(target=drive, args=(coro,)) for coro in coros]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[id(coro)] for coro in coros]


@wrong("1.1", "drives the coroutines itself")
def run_with_asyncio(coros):
    async def main():
        return await asyncio.gather(*coros)

    return asyncio.run(main())


@wrong("1.1", "is a plain function")
async def run_as_coroutine(coros):
    return run(coros)


@wrong("1.1", "runs without an error")
def run_forgetting_stop_iteration(coros):
    while coros:
        for coro in coros:
            coro.send(None)


# --- 1.2 gather in order -------------------------------------------------------------------------

INPUT_ORDER = "results in the order of the input"
SLOWEST = "takes as long as the slowest"
STOPS = "stops the others when one fails"
FAILS = "lets a failure out"


@stub("1.2")
async def gather_stub(fns):
    raise NotImplementedError


@stub("1.2")
async def gather_pass(fns):
    pass


@right("1.2")
async def gather_in_order(fns):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(fn()) for fn in fns]
    return [task.result() for task in tasks]


@right("1.2")
async def gather_cancelling(fns):
    tasks = [asyncio.ensure_future(fn()) for fn in fns]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


@right("1.2")
async def gather_with_slots(fns):
    results = [None] * len(fns)

    async def fill(index, fn):
        results[index] = await fn()

    async with asyncio.TaskGroup() as group:
        for index, fn in enumerate(fns):
            group.create_task(fill(index, fn))
    return tuple(results)


@right("1.2")
async def gather_by_waiting(fns):
    tasks = [asyncio.create_task(fn()) for fn in fns]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
    return [task.result() for task in tasks]


@right("1.2")
def gather_from_a_plain_function(fns):
    return gather_in_order(list(fns))


@wrong("1.2", SLOWEST)
async def gather_one_after_another(fns):
    return [await fn() for fn in fns]


@wrong("1.2", SLOWEST)
async def gather_in_pairs(fns):
    results = []
    for at in range(0, len(fns), 5):
        results += await gather_in_order(fns[at : at + 5])
    return results


@wrong("1.2", INPUT_ORDER)
async def gather_as_completed(fns):
    return [await task for task in asyncio.as_completed([fn() for fn in fns])]


@wrong("1.2", INPUT_ORDER)
async def gather_keyed_by_value(fns):
    values = await gather_in_order(fns)
    return list({str(value): value for value in values}.values())


@wrong("1.2", INPUT_ORDER)
async def gather_dropping_none(fns):
    return [value for value in await gather_in_order(fns) if value]


@wrong("1.2", STOPS)
async def gather_plain(fns):
    return await asyncio.gather(*(fn() for fn in fns))


@wrong("1.2", STOPS)
async def gather_cancel_without_waiting(fns):
    tasks = [asyncio.create_task(fn()) for fn in fns]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


@wrong("1.2", "notices a failure at once")
async def gather_awaiting_in_turn(fns):
    tasks = [asyncio.create_task(fn()) for fn in fns]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@wrong("1.2", FAILS)
async def gather_returning_exceptions(fns):
    return await asyncio.gather(*(fn() for fn in fns), return_exceptions=True)


@wrong("1.2", FAILS)
async def gather_ignoring_failures(fns):
    with contextlib.suppress(Exception):
        return await gather_in_order(fns)


@wrong("1.2", FAILS)
async def gather_raising_another(fns):
    try:
        return await gather_in_order(fns)
    except ExceptionGroup:
        raise RuntimeError("something failed") from None


@wrong("1.2", "passes a cancellation on")
async def gather_swallowing_cancellation(fns):
    try:
        return await gather_in_order(fns)
    except asyncio.CancelledError:
        return []


@wrong("1.2", "leaves no task behind")
async def gather_shielded(fns):
    return await asyncio.shield(asyncio.ensure_future(gather_in_order(fns)))


@wrong("1.2", "passes a cancellation on")
async def gather_finishing_first(fns):
    inner = asyncio.ensure_future(gather_in_order(fns))
    try:
        return await asyncio.shield(inner)
    except asyncio.CancelledError:
        await inner
        raise


@wrong("1.2", "calls each function once")
async def gather_probing(fns):
    for fn in fns[:1]:
        await fn()
    return await gather_in_order(fns)


@wrong("1.2", "awaits every coroutine")
async def gather_extra_coroutine(fns):
    asyncio.sleep(1)
    return await gather_in_order(fns)


@wrong("1.2", "runs without an error")
async def gather_functions_for_coroutines(fns):
    return await asyncio.gather(*fns)


@wrong("1.2", "is a coroutine function")
def gather_not_async(fns):
    return [fn for fn in fns]


@wrong("1.2", "comes to an end")
async def gather_stuck(fns):
    await asyncio.Event().wait()


@wrong("1.2", "comes to an end")
async def gather_in_real_threads(fns):
    return await asyncio.gather(*(asyncio.to_thread(asyncio.run, fn()) for fn in fns))


# --- 1.3 find the blocker ------------------------------------------------------------------------

EVERY = "finds every blocker"
NOBODY = "accuses nobody else"


class Steps:
    """Awaits a coroutine and keeps its longest step."""

    def __init__(self, coro):
        self.coro, self.longest = coro, 0.0

    def __await__(self):
        loop, resume, value = asyncio.get_running_loop(), self.coro.send, None
        while True:
            start = loop.time()
            try:
                waiting_for = resume(value)
            except StopIteration:
                return
            finally:
                self.longest = max(self.longest, loop.time() - start)
            try:
                resume, value = self.coro.send, (yield waiting_for)
            except BaseException as error:
                resume, value = self.coro.throw, error


@stub("1.3")
async def blockers_stub(handlers):
    raise NotImplementedError("write me")


@right("1.3")
async def find_blockers(handlers):
    found = set()
    for name, handler in handlers.items():
        steps = Steps(handler())
        await steps
        if steps.longest > 0.05:
            found.add(name)
    return found


@right("1.3")
async def blockers_all_at_once(handlers):
    watched = {name: Steps(handler()) for name, handler in handlers.items()}

    async def wait_for(steps):
        await steps

    async with asyncio.TaskGroup() as group:
        for steps in watched.values():
            group.create_task(wait_for(steps))
    return [name for name, steps in watched.items() if steps.longest > 0.05]


@right("1.3")
async def blockers_by_lag(handlers):
    """A ticker beside one handler at a time: a late tick means that somebody held the loop."""
    loop, found = asyncio.get_running_loop(), set()
    for name, handler in handlers.items():
        task, last, worst = asyncio.create_task(handler()), loop.time(), 0.0
        while not task.done():
            await asyncio.sleep(0.005)
            worst, last = max(worst, loop.time() - last), loop.time()
        if worst > 0.05:
            found.add(name)
    return found


@right("1.3")
async def blockers_with_timed_factory(handlers):
    """Steps timed from outside, by a generator that types.coroutine makes awaitable."""
    import types

    @types.coroutine
    def timed(coro, steps):
        clock, thrown = asyncio.get_running_loop().time, None
        while True:
            start = clock()
            try:
                waiting_for = coro.throw(thrown) if thrown else coro.send(None)
            except StopIteration:
                steps.append(clock() - start)
                return
            steps.append(clock() - start)
            try:
                thrown = yield waiting_for
            except BaseException as error:
                thrown = error

    found = set()
    for name, handler in handlers.items():
        await timed(handler(), steps := [])
        if any(step > 0.05 for step in steps):
            found.add(name)
    return found


@wrong("1.3", EVERY)
async def blockers_by_name(handlers):
    for handler in handlers.values():
        await handler()
    return {name for name in handlers if "block" in name or "slow" in name or "sync" in name}


@wrong("1.3", NOBODY)
async def blockers_by_whole_time(handlers):
    found, loop = set(), asyncio.get_running_loop()
    for name, handler in handlers.items():
        start = loop.time()
        await handler()
        if loop.time() - start > 0.05:
            found.add(name)
    return found


@wrong("1.3", NOBODY)
async def blockers_by_sum(handlers):
    found = set()
    for name, handler in handlers.items():
        loop, held, coro = asyncio.get_running_loop(), 0.0, handler()
        with contextlib.suppress(StopIteration):
            while True:
                start = loop.time()
                try:
                    waiting_for = coro.send(None)
                finally:
                    held += loop.time() - start
                if waiting_for is not None:
                    waiting_for._asyncio_future_blocking = False
                    await waiting_for
        if held > 0.05:
            found.add(name)
    return found


@wrong("1.3", EVERY)
async def blockers_first_step_only(handlers):
    found, loop = set(), asyncio.get_running_loop()
    for name, handler in handlers.items():
        task = asyncio.create_task(handler())
        start = loop.time()
        await asyncio.sleep(0)
        if loop.time() - start > 0.05:
            found.add(name)
        await task
    return found


@wrong("1.3", EVERY)
async def blockers_without_the_last_step(handlers):
    class Careless(Steps):
        def __await__(self):
            loop = asyncio.get_running_loop()
            with contextlib.suppress(StopIteration):
                while True:
                    start = loop.time()
                    waiting_for = self.coro.send(None)
                    self.longest = max(self.longest, loop.time() - start)
                    yield waiting_for

    found = set()
    for name, handler in handlers.items():
        await (steps := Careless(handler()))
        if steps.longest > 0.05:
            found.add(name)
    return found


@wrong("1.3", "throws into a handler what is thrown at it")
async def blockers_that_only_send(handlers):
    """A cancellation, such as a timeout's, goes past the handler."""

    class SendsOnly(Steps):
        def __await__(self):
            loop = asyncio.get_running_loop()
            while True:
                start = loop.time()
                try:
                    waiting_for = self.coro.send(None)
                except StopIteration:
                    return
                finally:
                    self.longest = max(self.longest, loop.time() - start)
                yield waiting_for

    found = set()
    for name, handler in handlers.items():
        await (steps := SendsOnly(handler()))
        if steps.longest > 0.05:
            found.add(name)
    return found


@wrong("1.3", NOBODY)
async def blockers_by_lag_all_at_once(handlers):
    loop, worst = asyncio.get_running_loop(), {}

    async def watch(name, handler):
        task, last = asyncio.create_task(handler()), loop.time()
        while not task.done():
            await asyncio.sleep(0.005)
            worst[name], last = max(worst.get(name, 0), loop.time() - last), loop.time()

    await asyncio.gather(*(watch(*item) for item in handlers.items()))
    return {name for name, lag in worst.items() if lag > 0.05}


@wrong("1.3", EVERY)
async def blockers_by_real_clock(handlers):
    found = set()
    for name, handler in handlers.items():
        start = time.perf_counter()
        await handler()
        if time.perf_counter() - start > 5:
            found.add(name)
    return found


@wrong("1.3", NOBODY)
async def blockers_everybody(handlers):
    for handler in handlers.values():
        await handler()
    return set(handlers)


@wrong("1.3", NOBODY)
async def blockers_low_threshold(handlers):
    found = set()
    for name, handler in handlers.items():
        await (steps := Steps(handler()))
        if steps.longest > 0.01:
            found.add(name)
    return found


@wrong("1.3", "returns a set of names")
async def blockers_counted(handlers):
    return len(await find_blockers(handlers))


@wrong("1.3", "returns a set of names")
async def blockers_as_functions(handlers):
    return {handlers[name] for name in await find_blockers(handlers)}


@wrong("1.3", "runs every handler")
async def blockers_never_run(handlers):
    return set()


@wrong("1.3", "runs without an error")
async def blockers_cancelled_by_timeout(handlers):
    for handler in handlers.values():
        await asyncio.wait_for(handler(), 0.05)


# --- 1.4 fire and forget, safely -----------------------------------------------------------------

KEEPS = "keeps a reference to its tasks"
WAITS = "close() waits for the work"
LATE = "close() waits for late work"
AT_ONCE = "reports a failure at once"
ONCE = "reports each failure once"
CANCELLED = "a cancelled task is cancelled"
GROWS = "does not grow"


@stub("1.4")
class BackgroundStub:
    def __init__(self, report):
        raise NotImplementedError

    def spawn(self, coro):
        raise NotImplementedError

    async def close(self):
        raise NotImplementedError


@stub("1.4")
class BackgroundHalfStub:
    def __init__(self, report):
        self.report = report

    def spawn(self, coro):
        raise NotImplementedError

    async def close(self):
        raise NotImplementedError


@stub("1.4")
class BackgroundDots:
    def __init__(self, report): ...

    def spawn(self, coro): ...

    async def close(self): ...


@right("1.4")
class Background:
    def __init__(self, report):
        self.report, self.tasks = report, set()

    def spawn(self, coro):
        task = asyncio.create_task(coro)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and task.exception():
            self.report(task.exception())

    async def close(self):
        while self.tasks:
            await asyncio.wait(self.tasks)


@right("1.4")
class BackgroundWithWrapper:
    """The wrapper reports; close gathers what is left, again and again."""

    def __init__(self, report):
        self.report, self.tasks = report, {}

    async def _guarded(self, coro):
        try:
            await coro
        except Exception as error:
            self.report(error)

    def spawn(self, coro):
        task = asyncio.ensure_future(self._guarded(coro))
        self.tasks[id(task)] = task
        task.add_done_callback(lambda task: self.tasks.pop(id(task)))
        return task

    async def close(self):
        while self.tasks:
            await asyncio.gather(*self.tasks.values(), return_exceptions=True)


@right("1.4")
def background_factory(report):
    """A factory is as good as a class."""
    background = Background(report)

    async def close():
        done = asyncio.Event()
        while background.tasks:
            for task in list(background.tasks):
                task.add_done_callback(lambda _: done.set())
            done.clear()
            await done.wait()

    background.close = close
    return background


@wrong("1.4", KEEPS)
class BackgroundBare(Background):
    def spawn(self, coro):
        return asyncio.create_task(coro)


@wrong("1.4", KEEPS)
class BackgroundWeak(Background):
    def __init__(self, report):
        super().__init__(report)
        self.tasks = weakref.WeakSet()


@wrong("1.4", WAITS)
class BackgroundCancelling(Background):
    async def close(self):
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)


@wrong("1.4", WAITS)
class BackgroundHasty(Background):
    async def close(self):
        await asyncio.sleep(0)


@wrong("1.4", WAITS)
class BackgroundFirstOnly(Background):
    async def close(self):
        if self.tasks:
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)


@wrong("1.4", LATE)
class BackgroundSnapshot(Background):
    async def close(self):
        if self.tasks:
            await asyncio.wait(self.tasks)


@wrong("1.4", AT_ONCE)
class BackgroundReportsAtClose:
    def __init__(self, report):
        self.report, self.tasks = report, []

    def spawn(self, coro):
        self.tasks.append(asyncio.create_task(coro))
        return self.tasks[-1]

    async def close(self):
        while any(not task.done() for task in self.tasks):
            await asyncio.wait(self.tasks)
        for task in self.tasks:
            if not task.cancelled() and task.exception():
                self.report(task.exception())


@wrong("1.4", AT_ONCE)
class BackgroundNeverReports(Background):
    def _done(self, task):
        self.tasks.discard(task)


@wrong("1.4", ONCE)
class BackgroundReportsTwice(Background):
    def __init__(self, report):
        super().__init__(report)
        self.errors = []

    def _done(self, task):
        super()._done(task)
        if not task.cancelled() and task.exception():
            self.errors.append(task.exception())

    async def close(self):
        await super().close()
        for error in self.errors:
            self.report(error)


@wrong("1.4", ONCE)
class BackgroundReportsEqualOnce(Background):
    def __init__(self, report):
        seen = set()

        def once(error):
            if str(error) not in seen:
                seen.add(str(error))
                report(error)

        super().__init__(once)


@wrong("1.4", "runs without an error")
class BackgroundRaisesAtClose(Background):
    async def close(self):
        while self.tasks:
            await asyncio.gather(*self.tasks)


@wrong("1.4", "one failure stops nobody else")
class BackgroundGroup(Background):
    def _done(self, task):
        super()._done(task)
        if not task.cancelled() and task.exception():
            for other in self.tasks:
                other.cancel()


@wrong("1.4", CANCELLED)
class BackgroundSwallowing(Background):
    def spawn(self, coro):
        async def guarded():
            with contextlib.suppress(asyncio.CancelledError):
                await coro

        return super().spawn(guarded())


@wrong("1.4", "loses no error")
class BackgroundAsksCancelled(Background):
    """task.exception() raises CancelledError in the callback: the loop logs it."""

    def _done(self, task):
        self.tasks.discard(task)
        if task.exception():
            self.report(task.exception())


@wrong("1.4", "a cancelled task is no failure")
class BackgroundReportsCancelled(Background):
    def _done(self, task):
        self.tasks.discard(task)
        if task.cancelled():
            self.report(asyncio.CancelledError())
        elif task.exception():
            self.report(task.exception())


@wrong("1.4", GROWS)
class BackgroundKeepsAll(Background):
    def _done(self, task):
        if not task.cancelled() and task.exception():
            self.report(task.exception())

    async def close(self):
        while any(not task.done() for task in self.tasks):
            await asyncio.wait(self.tasks)


@wrong("1.4", "close() can be cancelled")
class BackgroundCannotBeCancelled(Background):
    async def close(self):
        while self.tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(self.tasks)


@wrong("1.4", "spawn() returns the task")
class BackgroundReturnsNothing(Background):
    def spawn(self, coro):
        super().spawn(coro)


@wrong("1.4", "spawn() is a plain function")
class BackgroundAsyncSpawn(Background):
    async def spawn(self, coro):
        return super().spawn(coro)


@wrong("1.4", "runs without an error")
class BackgroundWithoutClose:
    def __init__(self, report):
        self.tasks = set()

    def spawn(self, coro):
        self.tasks.add(task := asyncio.create_task(coro))
        return task
