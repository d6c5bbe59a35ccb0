"""Chapter 01, the event loop: a loop of your own, gather, find the blocker, fire and forget."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator
from types import CoroutineType
from typing import Any

from ..clock import occupy_loop, simulate
from .engine import Exercise, three_hints
from .faults import Calls, cancel_sweep, error_sweep, prove_cancelled
from .harness import (
    NO_ERROR,
    NO_TASKS_LEFT,
    SEEDS,
    Failed,
    Prove,
    Run,
    call,
    observe,
    plain,
    prove_clean,
    tell,
)


def _names(names: list[str]) -> str:
    return ", ".join(sorted(names))  # sets of tasks have another order in every run


# --- 1.1 a loop of your own ----------------------------------------------------------------------


class Pause:
    """``await Pause(seconds)`` hands the Pause itself to whoever drives the coroutine."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __await__(self) -> Generator[Pause, None, None]:
        yield self

    def __repr__(self) -> str:
        return f"Pause({self.seconds})"


EQUAL = "equal deadlines: first come, first served"
Program = Callable[[Callable[[float], Any], Callable[[str], None]], list[Any]]


def _turns(pause: Any, log: Any) -> list[Any]:
    async def part(name: str) -> None:
        for _ in range(3):
            log(name)
            await pause(0)

    return [part(name) for name in "ABC"]


def _deadlines(pause: Any, log: Any) -> list[Any]:
    async def task(name: str, delay: float) -> str:
        log(f"{name} starts")
        await pause(delay)
        log(f"{name} ends")
        return name

    return [task("A", 2), task("B", 1), task("C", 3_000_000)]


def _ticks(pause: Any, log: Any) -> list[Any]:
    async def ticks(name: str, delay: float, times: int) -> None:
        for _ in range(times):
            await pause(delay)
            log(name)

    return [ticks("A", 1, 4), ticks("B", 2.5, 2)]


def _nested(pause: Any, log: Any) -> list[Any]:
    async def helper(name: str, delay: float | None) -> int:
        if delay is not None:
            await pause(delay)
        log(f"helper of {name}")
        return len(name)

    async def part(name: str, delay: float | None) -> int:
        total = await helper(name, None) + await helper(name, delay)
        log(name)
        return total

    return [part("A", None), part("BB", 0), part("CCC", 1), part("DDDD", None)]


def _equal(pause: Any, log: Any) -> list[Any]:
    async def part(name: str, pauses: list[float]) -> None:
        for seconds in pauses:
            await pause(seconds)
            log(name)

    return [part(str(n), [1, 0.5, 0.5] if n % 3 else [0.5, 0.5, 1]) for n in range(9)]


def _mixture(seed: int) -> Program:
    def program(pause: Any, log: Any) -> list[Any]:
        rng = random.Random(seed)

        async def part(number: int, pauses: list[float]) -> int | None:
            for step, seconds in enumerate(pauses):
                await pause(seconds)
                log(f"{number}.{step}")
            return number if number % 2 else None

        choices = [0, 0, 0.25, 0.5, 0.75, 1]
        return [part(n, rng.choices(choices, k=rng.randrange(6))) for n in range(20)]

    return program


_PROGRAMS: list[tuple[str, Program, str]] = [
    (
        "takes turns",
        _turns,
        "After a Pause(0) the others come first: send() once, then go on to the next.",
    ),
    (
        "wakes the earliest deadline first",
        _deadlines,
        "Run whoever is due next, not whoever is next in the list.",
    ),
    (
        "counts a pause from now",
        _ticks,
        "The deadline is your clock's time now + seconds, and the clock moves on.",
    ),
    (
        "a plain await is no turn",
        _nested,
        "send() returns only where a Pause is awaited, however deep.",
    ),
    (EQUAL, _equal, "Number the pauses: the heap key is (when, number)."),
    *(("the order of asyncio", _mixture(seed), "Mind who is due first.") for seed in SEEDS),
]


def _check_mini_loop(run: Callable[[list[Any]], Any], prove: Prove) -> None:
    for lacking, program, guess in _PROGRAMS:
        expected: list[str] = []

        async def reference(program: Program = program, log: Any = expected.append) -> list[Any]:
            return await asyncio.gather(*program(asyncio.sleep, log))

        results = simulate(reference)
        value, seen = _drive(run, program, prove)
        prove(lacking, seen == expected, f"{guess} {_first_difference(seen, expected)}")
        got = list(value) if isinstance(value, (list, tuple)) else plain(value)
        told = (
            f"run() returned {plain(got)} where the coroutines returned {results}, in this order."
        )
        prove("keeps the results in order", got == results, told)
    _check_exception(run, prove)
    nothing, _ = _drive(run, lambda *_: [], prove)
    prove(
        "keeps the results in order",
        nothing in ([], ()),
        f"run([]) is [], and it gave {plain(nothing)}.",
    )


def _drive(run: Any, program: Program, prove: Prove) -> tuple[Any, list[str]]:
    seen: list[str] = []
    threads: set[threading.Thread] = set()

    def log(entry: str) -> None:
        seen.append(entry)
        threads.add(threading.current_thread())

    outcome = _call_with(run, program(Pause, log))
    prove(
        "one thread",
        len(threads) < 2,
        "The coroutines ran in several threads: one loop drives them all.",
    )
    waited = (
        f"It called time.sleep for {outcome.slept:,.0f} s in all: move a clock variable instead."
    )
    prove("does not wait for real", not outcome.slept, waited)
    if inspect.iscoroutine(outcome.value):
        outcome.value.close()
        raise Failed("is a plain function", "run() is the loop itself: write def, not async def.")
    if "'<' not supported" in str(outcome.error):
        told = f"The heap had to compare two coroutines ({tell(outcome.error)}): number them."
        raise Failed(EQUAL, told)
    if "got bad yield" in str(outcome.error):
        told = "asyncio does not know a Pause: your own loop must call send() and read .seconds."
        raise Failed("drives the coroutines itself", told)
    return outcome.result(), seen


def _call_with(run: Any, coroutines: list[Any]) -> Run:
    try:
        return call(run, list(coroutines))
    finally:
        for coroutine in coroutines:
            with contextlib.suppress(RuntimeError, ValueError):  # still running, or refuses to end
                coroutine.close()


def _first_difference(seen: list[str], expected: list[str]) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(seen, expected, strict=False)) if a != b), len(seen)
    )
    if at == len(expected):
        return f"Yours went on after the end: {', '.join(seen[at : at + 3])}."
    before = f"after {', '.join(expected[max(0, at - 3) : at])}" if at else "at the start"
    came = f"{seen[at]} came" if at < len(seen) else "nothing came"
    return f"In the log, {before}, {came} where asyncio has {expected[at]}."


def _check_exception(run: Any, prove: Prove) -> None:
    seen: list[str] = []
    error = ValueError("B fails at 1 s")

    async def part(name: str, delay: float) -> str:
        try:
            await Pause(delay)
            if name == "B":
                raise error
        except GeneratorExit:
            return name
        seen.append(name)
        return name

    outcome = _call_with(run, [part("A", 2), part("B", 1), part("C", 0.5)])
    ran = ", ".join(seen[1:])
    told = tell(outcome.error) if outcome.error else f"run() returned {plain(outcome.value)}"
    lacking = "raises what a coroutine raises"
    prove(
        lacking, outcome.raised(error), f"A coroutine raised {tell(error)}, and out came: {told}."
    )
    prove(lacking, not ran, f"After the exception it still ran {ran}: raise it at once.")


# --- 1.2 gather in order -------------------------------------------------------------------------

_CLEANUP = 0.05  # simulated seconds that a cancelled function needs to clean up


def _jobs(calls: Calls, seconds: list[float], values: list[Any]) -> list[Any]:
    named = zip(seconds, values, strict=True)
    return [calls.job(f"f{n}", s, value, cleanup=_CLEANUP) for n, (s, value) in enumerate(named)]


def _check_gather(answer: Any, prove: Prove) -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        seconds = [n / 10 for n in rng.sample(range(1, 40), 10)]
        values = rng.sample(
            [0, None, "", [], {}, "same", "same", (1, 2), ValueError("a value"), {3}], 10
        )
        _check_gather_once(answer, prove, seconds, values)
    _check_gather_once(answer, prove, [], [])
    shuffled = random.Random(0).sample([0.2, 0.4, 0.6, 0.8, 1.0], 5)
    for run, calls in error_sweep(lambda calls: answer(_jobs(calls, shuffled, list(range(5))))):
        out = tell(run.error) if run.error else f"it returned {plain(run.value)}"
        prove(
            "lets a failure out",
            run.raised(calls.injected),
            f"{calls.injected}, and out came: {out}.",
        )
        went_on = ", ".join(run.left_over)
        told = f"When {calls.failed[0]} failed, {went_on} went on: cancel and await what is left."
        prove("stops the others when one fails", not run.left_over, told)
        late = run.elapsed - calls.injected_at
        told = f"The failure at {calls.injected_at:g} s came {late:g} s late: wait for all at once."
        prove("notices a failure at once", late <= _CLEANUP + 1e-9, told)
        dropped = _names(calls.abandoned)
        prove(
            NO_TASKS_LEFT, not dropped, f"On a failure it dropped {dropped} without cancelling it."
        )
    for run, calls, canceller in cancel_sweep(
        lambda calls, drive: drive(answer(_jobs(calls, shuffled, shuffled)))
    ):
        prove_cancelled(prove, run, calls, canceller, _CLEANUP)


def _check_gather_once(answer: Any, prove: Prove, seconds: list[float], values: list[Any]) -> None:
    calls = Calls()
    run = observe(answer, _jobs(calls, seconds, values))
    result, counted = run.result(), Counter(calls.started)
    wrong = [f"f{n} {counted[f'f{n}']} times" for n in range(len(seconds)) if counted[f"f{n}"] != 1]
    prove("calls each function once", not wrong, f"It called {', '.join(wrong)}.")
    got = list(result) if isinstance(result, (list, tuple)) else plain(result)
    finished = [values[int(name[1:])] for name in calls.finished]
    guess = "They are in the order of finishing. " if got == finished else ""
    told = f"{guess}It returned {plain(got)} where the functions returned {plain(values)}."
    prove("results in the order of the input", got == values, told)
    slowest = max(seconds, default=0.0)
    guess = (
        "were they awaited one after another?"
        if run.elapsed > 1.5 * slowest
        else "what did it wait for?"
    )
    told = f"It took {run.elapsed:g} s where the slowest function takes {slowest:g} s: {guess}"
    prove("takes as long as the slowest", abs(run.elapsed - slowest) < 1e-6, told)
    prove_clean(prove, run)


# --- 1.3 find the blocker ------------------------------------------------------------------------

THROWS = "throws into a handler what is thrown at it"
# What a handler does, in milliseconds: h30 holds the loop, w20 waits in an await.
_INNOCENT = ["w300", "h30 w20 " * 6, "h20", "", "w200 h30 w200", "w60", "h30 w50 h30"]
_BLOCKERS = ["h{} w10", "w100 h{} w100", "w50 h{}", "h{}", "h20 w10 h{} w20 h20"]
_NAMES = (
    "async_export blocking_report fast_ping fetch_orders health load_user parse_feed render_page "
    "safe_login slow_query sync_stock wait_for_mail"
).split()


def _handler(steps: str, started: list[str], name: str) -> Callable[[], Any]:
    async def handler() -> None:
        started.append(name)
        for step in steps.split():
            seconds = int(step[1:]) / 1000
            if step[0] == "h":
                occupy_loop(seconds)
            else:
                await asyncio.sleep(seconds)

    return handler


def _impatient(gave_up: list[str], name: str) -> Callable[[], Any]:
    async def handler() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.sleep(5)
        gave_up.append(name)
        if name == "health":
            occupy_loop(0.08)

    return handler


def _check_timeouts(answer: Any, prove: Prove) -> None:
    """What is thrown in at an await, as a timeout does, is for the handler to deal with."""
    gave_up: list[str] = []
    names = ("fast_ping", "health", "load_user")
    run = observe(answer, {name: _impatient(gave_up, name) for name in names})
    told = (
        "A handler with a timeout of its own never saw it: what is thrown in at your yield "
        "goes on to the handler, with coro.throw(error)."
    )
    deaf = run.was_cancelled or (run.error is None and sorted(gave_up) != sorted(names))
    prove(THROWS, not deaf, told)
    found = set(run.result())
    told = "health gives up a wait by a timeout, then holds the loop for 80 ms: it was missed."
    prove("finds every blocker", "health" in found, told)
    told = "fast_ping gives up a wait by a timeout, and holds nobody up: it was accused."
    prove("accuses nobody else", found == {"health"}, told)
    prove_clean(prove, run)


def _check_blockers(answer: Any, prove: Prove) -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        holding = [steps.format(rng.randrange(80, 300, 10)) for steps in _BLOCKERS]
        names, all_steps = rng.sample(_NAMES, 12), rng.sample([*holding, *_INNOCENT], 12)
        does, started = dict(zip(names, all_steps, strict=True)), []
        run = observe(
            answer, {name: _handler(steps, started, name) for name, steps in does.items()}
        )
        value = run.result()
        good = isinstance(value, (set, frozenset, list, tuple)) and all(
            isinstance(n, str) for n in value
        )
        prove("returns a set of names", good, f"It returned {plain(value)}.")
        unrun = ", ".join(name for name in names if name not in started)
        prove("runs every handler", not unrun, f"It never ran {unrun}.")
        blockers = {name for name in names if does[name] in holding}
        missed, accused = sorted(blockers - set(value)), sorted(set(value) - blockers)
        told = f"It missed {missed[0]}, which {_tell_steps(does[missed[0]])}." if missed else ""
        if not value:
            told = "It found none: real clocks stand still in a simulation, loop.time() does not."
        prove("finds every blocker", not missed, told)
        told = f"It accused {accused[0]}, which {_tell_steps(does[accused[0]])}." if accused else ""
        prove("accuses nobody else", not accused, told)
        prove_clean(prove, run)
    _check_timeouts(answer, prove)
    prove(
        "returns a set of names",
        not observe(answer, {}).result(),
        "Without handlers there is no name.",
    )


def _tell_steps(steps: str) -> str:
    words = {"h": "holds the loop for", "w": "awaits for"}
    parts = [f"{words[step[0]]} {step[1:]} ms" for step in steps.split()]
    return ", then ".join(parts[:4]) + (", and so on" if len(parts) > 4 else "") or "does nothing"


# --- 1.4 fire and forget, safely -----------------------------------------------------------------


def _check_background(answer: Any, prove: Prove) -> None:
    for scenario in (_keeps, _drains, _reports, _cancels, _forgets):
        run = observe(functools.partial(scenario, answer, prove))
        if run.error is not None:
            raise Failed(NO_ERROR, f"While {scenario.__doc__}, it raised {tell(run.error)}.")
        prove_clean(prove, run)
    for run, _, canceller in cancel_sweep(
        lambda calls, drive: _close_cancelled(answer, calls, drive)
    ):
        told = f"When close() was cancelled at {canceller}, "
        told += (
            f"it raised {tell(run.error)}."
            if run.error
            else "it returned as if nothing had happened."
        )
        prove("close() can be cancelled", run.was_cancelled, told)


def _spawn(background: Any, coroutine: Any) -> asyncio.Task[Any]:
    task = background.spawn(coroutine)
    if inspect.iscoroutine(task):
        task.close()
        raise Failed(
            "spawn() is a plain function", "It must start work without being awaited: write def."
        )
    if not isinstance(task, asyncio.Future):
        raise Failed("spawn() returns the task", f"It returned {plain(task)}.")
    return task


async def _keeps(answer: Any, prove: Prove) -> None:
    """collecting garbage around a task that nobody else knows"""
    background, known = answer(lambda error: None), []

    async def forgotten() -> None:
        future = asyncio.get_running_loop().create_future()
        known.append(weakref.ref(future))
        await future

    _spawn(background, forgotten())
    await asyncio.sleep(0.1)
    gc.collect()
    future = known[0]()
    told = "Its task was garbage before it was done: a loop refers to tasks weakly, so keep them."
    prove("keeps a reference to its tasks", future is not None, told)
    future.set_result(None)
    del future
    await background.close()


async def _drains(answer: Any, prove: Prove) -> None:
    """closing with work of 0.1, 0.5 and 0.3 s under way, and a late piece of 0.4 s"""
    background, calls = answer(lambda error: None), Calls()

    async def spawns_more() -> None:
        await asyncio.sleep(0.3)
        _spawn(background, calls.job("late work", 0.4)())

    for number, seconds in enumerate((0.1, 0.5)):
        _spawn(background, calls.job(f"work {number}", seconds)())
    prove(
        "spawn() starts at once",
        not calls.started,
        "It ran the coroutine itself: let the loop run it.",
    )
    await asyncio.sleep(0)
    prove(
        "spawn() starts at once",
        len(calls.started) == 2,
        "One turn of the loop later it had not started.",
    )
    _spawn(background, spawns_more())
    await background.close()
    cut = _names(calls.cancelled + calls.abandoned)
    prove("close() waits for the work", not cut, f"close() cancelled {cut}: let it finish.")
    unfinished = [name for name in ("work 0", "work 1") if name not in calls.finished]
    told = f"close() returned while {', '.join(unfinished)} was running."
    prove("close() waits for the work", not unfinished, told)
    late = "Work that a task spawned while close() waited was dropped: look until none is left."
    prove("close() waits for late work", "late work" in calls.finished, late)


async def _reports(answer: Any, prove: Prove) -> None:
    """three of six tasks failed"""
    reported: list[BaseException] = []
    background, calls = answer(reported.append), Calls()
    errors = [ValueError("first"), KeyError("second"), ValueError("first")]

    async def failing(seconds: float, error: Exception) -> None:
        await asyncio.sleep(seconds)
        raise error

    for number, error in enumerate(errors):
        _spawn(background, failing(0.1 * number + 0.1, error))
        _spawn(background, calls.job(f"work {number}", 0.5)())
    await asyncio.sleep(0.15)
    told = f"At 0.1 s a task failed; at 0.15 s report() had been called {len(reported)} times."
    prove("reports a failure at once", len(reported) == 1, told)
    stopped = _names(calls.cancelled)
    prove("one failure stops nobody else", not stopped, f"The failure cancelled {stopped}.")
    await background.close()
    stopped = _names(calls.cancelled) or f"{3 - len(calls.finished)} of them"
    prove(
        "one failure stops nobody else", len(calls.finished) == 3, f"The failure stopped {stopped}."
    )
    told = (
        f"Three tasks failed, and report() got {len(reported)}: {', '.join(map(tell, reported))}."
    )
    prove("reports each failure once", [id(e) for e in reported] == [id(e) for e in errors], told)


async def _cancels(answer: Any, prove: Prove) -> None:
    """cancelling a spawned task"""
    reported: list[BaseException] = []
    background = answer(reported.append)
    task = _spawn(background, asyncio.sleep(10))
    await asyncio.sleep(0.1)
    task.cancel()
    await background.close()
    told = "The cancelled task ended as if it had finished: do not swallow CancelledError."
    prove("a cancelled task is cancelled", task.cancelled(), told)
    prove("a cancelled task is no failure", not reported, "report() got a CancelledError.")


async def _forgets(answer: Any, prove: Prove) -> None:
    """spawning 300 tasks"""
    background = answer(lambda error: None)
    for _ in range(300):
        _spawn(background, asyncio.sleep(0.1))
    await asyncio.sleep(1)
    gc.collect()
    kept = sum(isinstance(thing, (asyncio.Task, CoroutineType)) for thing in gc.get_objects())
    told = "300 tasks were done, and about as many are still kept: drop each when it is done."
    prove("does not grow", kept < 100, told)
    await background.close()


async def _close_cancelled(answer: Any, calls: Calls, drive: Any) -> None:
    background = answer(lambda error: None)
    for number, seconds in enumerate((0.1, 0.3)):
        _spawn(background, calls.job(f"work {number}", seconds)())
    await drive(background.close())


EXERCISES = [
    Exercise(
        "1.1",
        "a loop of your own",
        "def run(coros)",
        ("coros",),
        three_hints("""
        A coroutine stops only where a Pause is awaited. What does coro.send(None) return there, and
        what does it raise when the coroutine returns?

        Keep a heap of (when, number, index, coro). heapq gives the smallest first; number, from
        itertools.count(), decides between equal times, so that coroutines are never compared.

        while due: now, _, index, coro = heapq.heappop(due); then try pause = coro.send(None). On
        StopIteration as stop: results[index] = stop.value. Otherwise push it again, with
        now + pause.seconds.
        """),
        _check_mini_loop,
    ),
    Exercise(
        "1.2",
        "gather in order",
        "async def gather_in_order(fns)",
        ("fns",),
        three_hints("""
        All functions must have started before the first is awaited. What starts a coroutine without
        waiting for it?

        asyncio.TaskGroup starts tasks, waits for all of them, and cancels the rest when one fails.
        Keep the tasks in a list: the list remembers the order.

        async with asyncio.TaskGroup() as group: tasks = [group.create_task(fn()) for fn in fns].
        After the block every task is done, and task.result() has its value.
        """),
        _check_gather,
    ),
    Exercise(
        "1.3",
        "find the blocker",
        "async def find_blockers(handlers)",
        ("handlers",),
        three_hints("""
        A handler that awaits for 300 ms does no harm, one that computes for 80 ms does. Where does
        the time between two awaits show?

        Measure between steps, not around them: drive the handler's coroutine yourself, and read
        asyncio.get_running_loop().time() before and after each send(None).

        An object with __await__ can do it: while True: start = loop.time(); waiting_for =
        coro.send(None); note loop.time() - start; then yield waiting_for. StopIteration ends the
        last step, which counts too. What is thrown in at your yield goes on with coro.throw.
        """),
        _check_blockers,
    ),
    Exercise(
        "1.4",
        "fire and forget, safely",
        "Background(report)",
        ("report",),
        three_hints("""
        Who holds a task that nobody awaits? The loop refers to it weakly. And who will look at its
        exception?

        Keep the tasks in a set. task.add_done_callback(f) calls f(task) when it is done: drop it
        from the set there, and look at task.exception() unless task.cancelled().

        In close(): while self.tasks: await asyncio.wait(self.tasks). wait() raises nothing and
        cancels nothing, and the loop looks again for what was spawned meanwhile.
        """),
        _check_background,
    ),
]
