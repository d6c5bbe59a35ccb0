"""The checker of exercise 7.1: a lag probe, and a watchdog that names the function that holds the loop."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import random
import statistics
import string
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .engine import Exercise, three_hints
from .harness import NO_TASKS_LEFT, Prove
from .web04 import alive_after, observe_real, turns

THRESHOLD = 0.06  # seconds
ALLOWED = 0.1  # seconds from the threshold to the report
BEAT = 0.02  # seconds: the longest period allowed
PATIENCE = 0.4  # seconds that a planted block waits to be reported
COMPARED = 10  # beats
LINGER = 0.05  # seconds that it stays when it was
RETRIES = 3  # other programs can keep a loop from its turn, and a report of that is no mistake
KEPT = 10_000  # objects that a block keeps, before it lets go of them

GIVES_LAGS = "gives the list of lags"
SEES = "the heartbeat reads how long the loop was held"
ON_TIME = "an idle loop reads no lag"
NO_DRIFT = "one late beat does not make the later ones late"
OFTEN = "at least 50 beats a second"
REPORTS = "reports a held loop while it is held"
IN_TIME = "reports within 0.1 s of the threshold"
NAMES = "names the innermost function"
ONCE = "one report for each block"
ONLY_LONG = "silent below the threshold"
IDLE = "silent on an idle loop"
STEPS = "silent on many short steps"
GC = "silent on a pause of the garbage collector"
COLLECTS = "a collection within a block hides nothing, and tells nothing twice"
ERRORS_PASS = "an error of the block comes out"
NO_THREAD = "leaves no thread behind"
NO_CALLBACK = "takes its gc callback away"


class Reports:
    """What was reported, and when."""

    def __init__(self) -> None:
        self.made: list[tuple[float, Any]] = []

    def __call__(self, function: Any) -> None:
        self.made.append((time.perf_counter(), function))

    def between(self, start: float, end: float) -> list[tuple[float, Any]]:
        """The reports of that time: another one can be the machine's fault."""
        return [report for report in self.made if start <= report[0] <= end]


def _named(block: Callable[[], tuple[float, float]]) -> str:
    """Give this function a name of its own, and return it."""
    name = "hold_" + "".join(random.choices(string.ascii_lowercase, k=8))
    block.__code__ = block.__code__.replace(co_name=name, co_qualname=name)
    return name


def _planted(reports: Reports) -> tuple[Callable[[], tuple[float, float]], str]:
    """A function with a name of its own that holds the loop until somebody reports it; it returns when it did."""
    made = reports.made

    def block() -> tuple[float, float]:
        before, began = len(made), time.perf_counter()
        while len(made) == before and time.perf_counter() < began + PATIENCE:
            time.sleep(0.002)
        time.sleep(LINGER)
        return began, time.perf_counter()

    return block, _named(block)


def _makes_objects(reports: Reports) -> tuple[Callable[[], tuple[float, float]], str]:
    """As `_planted`, and it makes objects all that time: the collector runs again and again, for no time to speak of."""
    made = reports.made

    def block() -> tuple[float, float]:
        before, began, rows = len(made), time.perf_counter(), []
        until = began + PATIENCE
        while time.perf_counter() < until:
            rows.append({"a": [1]})
            if len(rows) > KEPT:
                rows.clear()
            if len(made) > before:
                until = made[before][0] + LINGER
        return began, time.perf_counter()

    return block, _named(block)


def _collects_once(reports: Reports) -> tuple[Callable[[], tuple[float, float]], str]:
    """As `_planted`, and when it has been reported, the collector runs once, shortly, and the block goes on."""
    made = reports.made

    def block() -> tuple[float, float]:
        before, began = len(made), time.perf_counter()
        while len(made) == before and time.perf_counter() < began + PATIENCE:
            time.sleep(0.002)
        gc.collect(0)
        collected = time.perf_counter()
        while len(made) < before + 2 and time.perf_counter() < collected + 3 * THRESHOLD:
            time.sleep(0.002)
        return began, time.perf_counter()

    return block, _named(block)


async def _in_a_callback(block: Callable[[], Any]) -> Any:
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: done.set_result(block()))
    return await done


async def _in_a_task(block: Callable[[], Any]) -> Any:
    async def work() -> Any:
        await asyncio.sleep(0)
        return block()

    return await asyncio.create_task(work())


async def _at_once(block: Callable[[], Any]) -> Any:
    return block()


async def _blocks(answer: Any, prove: Prove) -> None:
    reports, delays, blind = Reports(), [], False
    async with answer(reports, THRESHOLD) as lags:
        prove(GIVES_LAGS, isinstance(lags, list), "async with watch(...) as lags: yield the list of lags.")
        await asyncio.sleep(3 * BEAT)
        for way in (_in_a_task, _in_a_callback, _at_once):
            await turns()  # beats that the machine kept from their turn have it first
            block, name = _planted(reports)
            beats = len(lags)
            began, ended = await way(block)
            await asyncio.sleep(2 * BEAT)
            told = reports.between(began, ended)
            sentence = "A function held the loop for a long time, and nothing was reported meanwhile: a report has to "
            sentence += "come from a thread, which runs while the loop does not. The loop may run in any thread."
            prove(REPORTS, bool(told), sentence)
            sentence = "It reported something else than the function that held the loop: its thread's stack begins, at "
            sentence += "the innermost end, with the frame in sys._current_frames()."
            prove(NAMES, told[0][1] == name, sentence)
            prove(ONCE, len(told) == 1, "It reported one block several times: note for which beat the alarm was given.")
            delays.append(told[0][0] - began)
            blind = blind or max(lags[beats:], default=0) < ended - began - 1.5 * BEAT
        before = len(lags)
        for _ in range(COMPARED):  # a heartbeat as slow as this machine: with it the answer's is compared
            await asyncio.sleep(BEAT)
        after = lags[before:]
        sentence = "In the time of 10 beats of 20 ms there were fewer lags: make the period 20 ms or less."
        prove(OFTEN, len(after) > 0.7 * COMPARED, sentence)
        sentence = "A block was over, and no beat read as much: how late is it against the moment when it was due?"
        prove(SEES, not blind, sentence)
        sentence = "Long after a block the beats still read late: the next due time follows from now, not from a sum."
        prove(NO_DRIFT, statistics.median(after[-5:]) < LINGER, sentence)
        sentence = "Nothing held the loop, and each beat read late: the lag counts from when the beat was due."
        prove(ON_TIME, min(after) < 0.003, sentence)
    sentence = "The reports came later than 0.1 s after the threshold: look more often."
    prove(IN_TIME, statistics.median(delays) < THRESHOLD + ALLOWED, sentence)


async def _collected_within(answer: Any, prove: Prove) -> None:
    reports, told = Reports(), []
    async with answer(reports, THRESHOLD):
        for plant in (_makes_objects, _collects_once):
            for _ in range(RETRIES):  # a look can fall into the callback of the collector, and name that
                await asyncio.sleep(2 * BEAT)
                await turns()
                block, name = plant(reports)
                began, ended = block()
                await asyncio.sleep(2 * BEAT)
                told = [function for _, function in reports.between(began, ended)]
                if told == [name]:
                    break
            sentence = "A block that makes objects was not reported: the collector runs many times in it, for a moment "
            sentence += "each. Take off what it took; the block did not begin anew with it."
            prove(COLLECTS, bool(told), sentence)
            sentence = "A block in which the collector ran was reported twice: note the number of the beat for which "
            sentence += "the alarm was given, because the collector moves its time."
            prove(COLLECTS, len(told) == 1, sentence)
            sentence = "Of a block in which the collector ran, something else was named than its function."
            prove(COLLECTS, told == [name], sentence)


async def _idle() -> None:
    await asyncio.sleep(0.2)


async def _short() -> None:
    for _ in range(2):
        await asyncio.sleep(0.02)
        time.sleep(0.08)
    await asyncio.sleep(0.02)


async def _steps() -> None:
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end:
        time.sleep(0.004)
        await asyncio.sleep(0)


class _Slow:
    """What a collection of millions of objects does: it takes time."""

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        time.sleep(3 * THRESHOLD)


async def _collection() -> None:
    await asyncio.sleep(0.03)
    _Slow()
    gc.collect()
    await asyncio.sleep(0.03)


QUIET = [
    (IDLE, _idle, 0.12, "The loop had nothing to do, and was reported as held: is a beat overdue?"),
    (ONLY_LONG, _short, 0.2, "It reported a block that was shorter than the threshold."),
    (STEPS, _steps, 0.12, "Many short steps, none near the threshold, were reported: the beats came all the time."),
    (
        GC,
        _collection,
        THRESHOLD,
        "It reported a pause of the garbage collector: gc.callbacks tells when one begins and ends.",
    ),
]


async def _quiet(answer: Any, work: Callable[[], Awaitable[None]], threshold: float) -> bool:
    reports = Reports()
    async with answer(reports, threshold):
        await work()
    return not reports.made


async def _error(answer: Any, error: Exception) -> None:
    async with answer(Reports(), THRESHOLD):
        await asyncio.sleep(0.01)
        raise error


def check_watch(answer: Any, prove: Prove) -> None:
    """Checks watch(report, threshold) of exercise 7.1."""
    threads, callbacks = set(threading.enumerate()), list(gc.callbacks)
    try:
        _prove_all(answer, prove)
        new = [thread for thread in threading.enumerate() if thread not in threads]
        end = time.monotonic() + PATIENCE
        for thread in new:
            thread.join(max(0.0, end - time.monotonic()))
        sentence = "When the block was left, the thread was still running: tell it to stop, also after an error."
        prove(NO_THREAD, not any(thread.is_alive() for thread in new), sentence)
        prove(NO_CALLBACK, gc.callbacks == callbacks, "When the block was left, something was still in gc.callbacks.")
    finally:
        gc.callbacks[:] = callbacks
        left = set(threading.enumerate()) - threads
        for thread in left:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        alive_after(left)


def _prove_all(answer: Any, prove: Prove) -> None:
    run = observe_real(lambda: _blocks(answer, prove))
    run.result()
    for lacking, work, threshold, sentence in QUIET:
        quiet = False
        for _ in range(RETRIES):
            run = observe_real(lambda work=work, threshold=threshold: _quiet(answer, work, threshold))  # type: ignore[misc]
            if quiet := run.result():
                break
        prove(lacking, quiet, sentence)
    run = observe_real(lambda: _collected_within(answer, prove))
    run.result()
    error = ValueError("from the block")
    run = observe_real(lambda: _error(answer, error))
    prove(ERRORS_PASS, run.raised(error), "The block raised an error, and it did not come out of async with.")
    prove(NO_TASKS_LEFT, not run.left_over, f"It returned while {', '.join(run.left_over)} was still running.")


EXERCISES = [
    Exercise(
        "7.1",
        "a watchdog",
        "watch(report, threshold)",
        ("report", "threshold"),
        three_hints("""
            A heartbeat on the loop knows how late the loop is, but only afterwards. Who can look at the loop while it
            is held?

            A thread looks every 10 ms whether the last beat is older than the threshold; then
            sys._current_frames()[ident] is the frame that the loop's thread is in. Take the ident on the loop. A
            function in gc.callbacks is called with "start" and "stop".

            The heart notes the time of its beat, and counts beats. The gc callback notes when a collection begins; at
            "stop" it moves the beat on by the pause, and by no more. The thread, while not stop.wait(0.01): if nothing
            is collected just now, now - beat > threshold and number != told, then told = number;
            report(frame.f_code.co_name). In a finally: stop.set(), thread.join(), heart.cancel(),
            gc.callbacks.remove(...).
        """),
        check_watch,
    )
]
