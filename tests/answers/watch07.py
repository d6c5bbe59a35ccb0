"""Right and wrong answers to exercise 7.1. Every wrong one names the property that its check must report as missing."""

import asyncio
import contextlib
import gc
import math
import sys
import threading
import time

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub


@stub("7.1")
@contextlib.asynccontextmanager
async def watch_stub(report, threshold):
    raise NotImplementedError
    yield


@stub("7.1")
def watch_pass(report, threshold): ...


@right("7.1")
@contextlib.asynccontextmanager
async def watch(report, threshold):
    """The notebook's solution."""
    loop_thread, stop, lags = threading.get_ident(), threading.Event(), []
    beat, number, pause = time.perf_counter(), 0, math.inf  # pause: when the collector began, while it runs

    async def heart():
        nonlocal beat, number
        while True:
            due = time.perf_counter() + 0.01
            await asyncio.sleep(0.01)
            beat, number = time.perf_counter(), number + 1
            lags.append(beat - due)

    def collected(phase, info):  # a block that makes objects is full of collections: only the pause is taken off
        nonlocal beat, pause
        beat, pause = (
            (beat, time.perf_counter()) if phase == "start" else (beat + time.perf_counter() - pause, math.inf)
        )

    def look(told=-1):  # told: the number of the beat after which a block was reported
        while not stop.wait(0.01):
            if pause == math.inf and time.perf_counter() - beat > threshold and number != told:
                told = number
                report(sys._current_frames()[loop_thread].f_code.co_name)

    gc.callbacks.append(collected)
    pulse, thread = asyncio.create_task(heart()), threading.Thread(target=look)
    thread.start()
    try:
        yield lags
    finally:
        stop.set()
        pulse.cancel()
        gc.callbacks.remove(collected)
        thread.join()


@right("7.1")
class Watch:
    """Timers instead of a task, and pauses that are subtracted."""

    def __init__(self, report, threshold):
        self.report, self.threshold, self.lags, self.paused, self.pausing = report, threshold, [], 0.0, None

    async def __aenter__(self):
        self.loop, self.ident = asyncio.get_running_loop(), threading.get_ident()
        self.running = True
        self.expect()
        gc.callbacks.append(self.collected)
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self.lags

    def expect(self):
        self.due, self.paused = self.loop.time() + 0.015, 0.0
        self.timer = self.loop.call_at(self.due, self.beat)

    def beat(self):
        self.lags.append(max(0.0, self.loop.time() - self.due))
        self.expect()

    def collected(self, phase, info):
        if phase == "start":
            self.pausing = time.monotonic()
        else:
            self.paused += time.monotonic() - self.pausing
            self.pausing = None

    def look(self):
        told = None
        while self.running:
            time.sleep(0.01)
            due = self.due
            late = time.monotonic() - due - self.paused
            if self.pausing is None and late > self.threshold and told != due:
                told = due
                self.report(sys._current_frames()[self.ident].f_code.co_qualname)

    async def __aexit__(self, *error):
        self.running = False
        self.timer.cancel()
        self.thread.join()
        gc.callbacks.remove(self.collected)


@right("7.1")
@contextlib.asynccontextmanager
async def watch_that_asks(report, threshold):
    """The thread asks the loop for a sign of life; a heartbeat on a grid of absolute times is only for the lags."""
    loop, ident, lags, stop = asyncio.get_running_loop(), threading.get_ident(), [], threading.Event()
    began, paused = None, 0.0  # when the collector began, while it runs; seconds that it took so far

    async def heart():
        due = loop.time()
        while True:
            due = max(due + 0.02, loop.time())
            await asyncio.sleep(due - loop.time())
            lags.append(loop.time() - due)

    def collected(phase, info):
        nonlocal began, paused
        if phase == "start":
            began = time.perf_counter()
        else:
            paused, began = paused + time.perf_counter() - began, None

    def look():
        while not stop.wait(0.005):
            answered, asked, before, told = threading.Event(), time.perf_counter(), paused, False
            loop.call_soon_threadsafe(answered.set)
            while not stop.is_set() and not answered.wait(0.01):
                if not told and began is None and time.perf_counter() - asked - (paused - before) > threshold:
                    told = True
                    report(sys._current_frames()[ident].f_code.co_name)

    gc.callbacks.append(collected)
    thread = threading.Thread(target=look)
    thread.start()
    pulse = asyncio.create_task(heart())
    try:
        yield lags
    finally:
        pulse.cancel()
        stop.set()
        gc.callbacks.remove(collected)
        await asyncio.to_thread(thread.join)


def _variant(
    *,
    name=lambda thread: getattr(getattr(sys._current_frames().get(thread), "f_code", None), "co_name", "gone"),
    period=0.01,
    look_every=0.01,
    extra=0.0,
    with_gc=True,
    leave=(),
    lag=lambda now, due, period, start, count: now - due,
    once=True,
    is_held=lambda age, threshold: age > threshold,
    swallow=False,
    moved=lambda beat, pause, now: beat + now - pause,
    key=lambda beat, number: number,
):
    """The solution with one thing done differently."""

    @contextlib.asynccontextmanager
    async def watch(report, threshold):
        loop_thread, stop, lags = threading.get_ident(), threading.Event(), []
        beat, number, pause = time.perf_counter(), 0, math.inf

        async def heart():
            nonlocal beat, number
            start = time.perf_counter()
            while True:
                due = time.perf_counter() + period
                await asyncio.sleep(period)
                beat, number = time.perf_counter(), number + 1
                lags.append(lag(beat, due, period, start, number))

        def collected(phase, info):
            nonlocal beat, pause
            now = time.perf_counter()
            beat, pause = (beat, now) if phase == "start" else (moved(beat, pause, now), math.inf)

        def look():
            told = None
            until = time.monotonic() + 3  # a forgotten thread must not outlive the tests
            while not stop.wait(look_every) and time.monotonic() < until:
                last, is_first = beat, key(beat, number) != told or not once
                if pause == math.inf and is_held(time.perf_counter() - last, threshold + extra) and is_first:
                    told = key(beat, number)
                    report(name(loop_thread))

        if with_gc:
            gc.callbacks.append(collected)
        pulse, thread = asyncio.create_task(heart()), threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield lags
        except ValueError:
            if not swallow:
                raise
        finally:
            if "thread" not in leave:
                stop.set(), thread.join()
            if "task" not in leave:
                pulse.cancel()
            if with_gc and "callback" not in leave:
                gc.callbacks.remove(collected)

    return watch


def _outermost(thread):
    frame = sys._current_frames()[thread]
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_name


def _named(answer, name):
    answer.__name__ = name
    return answer


REPORTS = "reports a held loop while it is held"
COLLECTS = "a collection within a block hides nothing, and tells nothing twice"
for _lacking, _name, _options in (
    ("names the innermost function", "watch_outermost", {"name": _outermost}),
    ("names the innermost function", "watch_task_name", {"name": lambda thread: "the loop is held"}),
    ("names the innermost function", "watch_own_frame", {"name": lambda thread: sys._getframe().f_code.co_name}),
    (
        "names the innermost function",
        "watch_main_thread",
        {"name": lambda thread: sys._current_frames()[threading.main_thread().ident].f_code.co_name},
    ),
    (
        "names the innermost function",
        "watch_caller",
        {"name": lambda thread: sys._current_frames()[thread].f_back.f_code.co_name},
    ),
    (REPORTS, "watch_looks_rarely", {"look_every": 2.0}),
    (REPORTS, "watch_unknown_thread", {"name": lambda thread: sys._current_frames()[0].f_code.co_name}),
    ("reports within 0.1 s of the threshold", "watch_late", {"extra": 0.2}),
    ("one report for each block", "watch_every_look", {"once": False}),
    ("silent on a pause of the garbage collector", "watch_no_gc", {"with_gc": False}),
    (COLLECTS, "watch_begins_anew", {"moved": lambda beat, pause, now: now, "key": lambda beat, number: beat}),
    (COLLECTS, "watch_by_time", {"key": lambda beat, number: beat}),
    ("silent below the threshold", "watch_any_late_beat", {"is_held": lambda age, threshold: age > 0.03}),
    ("at least 50 beats a second", "watch_slow_beat", {"period": 0.035}),
    (
        "an idle loop reads no lag",
        "watch_lag_with_period",
        {"lag": lambda now, due, period, start, count: now - due + period},
    ),
    (
        "one late beat does not make the later ones late",
        "watch_own_drift",
        {"lag": lambda now, due, period, start, count: now - start - count * period},
    ),
    (
        "the heartbeat reads how long the loop was held",
        "watch_capped",
        {"lag": lambda now, due, period, start, count: min(now - due, period)},
    ),
    ("leaves no thread behind", "watch_thread_left", {"leave": ("thread",)}),
    ("leaves no task behind", "watch_task_left", {"leave": ("task",)}),
    ("takes its gc callback away", "watch_callback_left", {"leave": ("callback",)}),
    ("an error of the block comes out", "watch_swallows", {"swallow": True}),
):
    wrong("7.1", _lacking)(_named(_variant(**_options), _name))


@wrong("7.1", REPORTS)
@contextlib.asynccontextmanager
async def watch_only_probe(report, threshold):
    """Reports on the loop, so afterwards, and cannot know who it was."""
    lags = []

    async def heart():
        while True:
            due = time.perf_counter() + 0.01
            await asyncio.sleep(0.01)
            lags.append(time.perf_counter() - due)
            if lags[-1] > threshold:
                report("somebody")

    pulse = asyncio.create_task(heart())
    try:
        yield lags
    finally:
        pulse.cancel()


@wrong("7.1", "gives the list of lags")
@contextlib.asynccontextmanager
async def watch_no_list(report, threshold):
    async with watch(report, threshold):
        yield


@wrong("7.1", "silent on many short steps")
@contextlib.asynccontextmanager
async def watch_busy_is_held(report, threshold):
    """Takes a loop that never waits for one that is held."""
    loop_thread, stop, lags = threading.get_ident(), threading.Event(), []
    idle = [time.perf_counter()]  # when the loop last waited; endless while it does
    selector = asyncio.get_running_loop()._selector
    plain = selector.select

    def select(timeout=None):
        if timeout == 0:
            return plain(timeout)
        idle[0] = math.inf
        events = plain(timeout)
        idle[0] = time.perf_counter()
        return events

    def look():
        told = None
        while not stop.wait(0.01):
            last = idle[0]
            if time.perf_counter() - last > threshold and last != told:
                told = last
                report(sys._current_frames()[loop_thread].f_code.co_name)

    async def heart():
        while True:
            due = time.perf_counter() + 0.01
            await asyncio.sleep(0.01)
            lags.append(time.perf_counter() - due)

    thread, pulse = threading.Thread(target=look), asyncio.create_task(heart())
    selector.select = select
    thread.start()
    try:
        yield lags
    finally:
        del selector.select
        stop.set(), thread.join(), pulse.cancel()


@wrong("7.1", "silent on an idle loop")
@contextlib.asynccontextmanager
async def watch_same_frame(report, threshold):
    """Takes a thread that stands at one place for one that is held."""
    loop_thread, stop, lags = threading.get_ident(), threading.Event(), []

    def look():
        last, since, told = None, 0.0, False
        while not stop.wait(0.01):
            name = sys._current_frames()[loop_thread].f_code.co_name
            if name != last:
                last, since, told = name, time.perf_counter(), False
            elif not told and time.perf_counter() - since > threshold:
                told = True
                report(name)

    async def heart():
        while True:
            due = time.perf_counter() + 0.02
            await asyncio.sleep(0.02)
            lags.append(time.perf_counter() - due)

    thread = threading.Thread(target=look)
    thread.start()
    pulse = asyncio.create_task(heart())
    try:
        yield lags
    finally:
        stop.set(), thread.join(), pulse.cancel()
