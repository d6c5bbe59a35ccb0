"""The checker of exercise 3.3, a deadline with a name: scopes that nest, expire and are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .faults import Calls, cancel_sweep, error_sweep, prove_cancelled
from .harness import Failed, Prove, observe, plain, prove_clean, tell

CLEANUP = 0.05  # simulated seconds that a cancelled call needs to clean up
EXPIRES = "raises TimeoutError at the deadline"
NAMES = "names the scope that expired"
UNTOUCHED = "leaves a body alone that ends in time"
BALANCED = "leaves cancelling() as it was"
OUTER_CANCEL = "an outer cancel is no timeout"
ONLY_ITS_OWN = "only the scope that expired raises TimeoutError"
NOT_FIRST = "works in a task that was cancelled before"

Deadline = Callable[[float, str], Any]


@dataclass
class _Outcome:
    """How a body ended, when, and what task.cancelling() said then."""

    value: Any
    error: BaseException | None
    at: float
    cancelling: int

    def __str__(self) -> str:
        return f"it raised {tell(self.error)}" if self.error else f"it returned {plain(self.value)}"


async def _outcome(body: Awaitable[Any]) -> _Outcome:
    value = error = None
    try:
        value = await body
    except (Failed, NotImplementedError, KeyboardInterrupt):
        raise
    except BaseException as caught:
        error = caught
    return _Outcome(value, error, asyncio.get_running_loop().time(), asyncio.current_task().cancelling())


async def _inside(deadline: Deadline, scopes: list[tuple[float, str]], work: Callable[[], Awaitable[Any]]) -> Any:
    """Await ``work()`` in the scopes, the first one outermost."""
    if not scopes:
        return await work()
    async with deadline(*scopes[0]):
        return await _inside(deadline, scopes[1:], work)


def check_deadline(answer: Any, prove: Prove) -> None:
    """The scenarios in order, and then an error and a cancellation in every place."""
    for scenario in (
        _is_manager, _in_time, _expires, _nested, _a_loop_inside, _cancelled_from_outside, _same_instant,
        _already_expired, _after_expiry, _cancelled_before, _task_groups, _side_by_side,
    ):  # fmt: skip
        run = observe(functools.partial(scenario, answer, prove))
        run.result()
        prove_clean(prove, run)
    for run, calls in error_sweep(_two_steps, answer):
        told = f"{calls.injected} in the body, and then: " + (tell(run.error) if run.error else "no error") + "."
        prove("lets an error of the body out", run.error is calls.injected, told)
    for run, calls, canceller in cancel_sweep(lambda calls, drive: drive(_two_steps(calls, answer))):
        prove_cancelled(prove, run, calls, canceller, CLEANUP)


async def _two_steps(calls: Calls, deadline: Deadline) -> None:
    async with deadline(9, "order"), deadline(5, "payment"):
        await calls.job("step 1", 1.0, cleanup=CLEANUP)()
        await calls.job("step 2", 1.0, cleanup=CLEANUP)()


async def _is_manager(deadline: Deadline, prove: Prove) -> None:
    manager = deadline(1, "order")
    if inspect.iscoroutine(manager):
        manager.close()
    good = hasattr(type(manager), "__aenter__") and hasattr(type(manager), "__aexit__")
    told = f"deadline(1, 'order') gave {plain(manager)}: decorate it with contextlib.asynccontextmanager."
    prove("is an async context manager", good, told)


async def _in_time(deadline: Deadline, prove: Prove) -> None:
    errors = [ValueError("in the body"), TimeoutError("of the body itself"), asyncio.CancelledError()]
    for value in (None, "value"):
        got = await _outcome(_inside(deadline, [(1, "order")], functools.partial(asyncio.sleep, 0.5, value)))
        prove(UNTOUCHED, got.error is None and got.value is value, f"The body took 0.5 s of 1 s, and {got}.")
        await _goes_on(prove, "After a body that ended in time")
    for error in errors:

        async def failing(error: BaseException = error) -> None:
            await asyncio.sleep(0.5)
            raise error

        got = await _outcome(_inside(deadline, [(3, "order"), (1, "payment")], failing))
        told = f"The body raised {tell(error)} after 0.5 s of 1 s, and out came something else: {got}."
        prove("lets an error of the body out", got.error is error, told)
        await _goes_on(prove, "After a body that failed in time")
    for _ in range(5):
        async with deadline(1, "again"):
            await asyncio.sleep(0.9)


async def _expires(deadline: Deadline, prove: Prove) -> None:
    start, calls = asyncio.get_running_loop().time(), Calls()
    work = calls.job("the body", 10, cleanup=CLEANUP)
    got = await _outcome(_inside(deadline, [(1, "payment")], work))
    told = f"The body sleeps for 10 s in deadline(1, 'payment'), and at {got.at - start:g} s {got}."
    prove(EXPIRES, isinstance(got.error, TimeoutError) and got.at - start <= 1 + CLEANUP + 1e-9, told)
    told = f"The body cleans up for {CLEANUP} s when it is cancelled, and was cut after {got.at - start - 1:g} s."
    whole = abs(got.at - start - 1 - CLEANUP) < 1e-9 and calls.cancelled == ["the body"]
    prove("lets the body clean up", whole, told)
    prove(
        NAMES,
        "payment" in str(got.error),
        f"deadline(1, 'payment') expired, and its error says {str(got.error)!r:.80}.",
    )
    _prove_balanced(prove, got, 0, "After a TimeoutError")
    await _goes_on(prove, "After a TimeoutError")


async def _goes_on(prove: Prove, when: str) -> None:
    got = await _outcome(asyncio.sleep(20))
    told = f"{when} the task slept, and was cancelled: stop your timer when the block ends, and cancel only once."
    prove("cancels nothing after the block", got.error is None, told)


def _prove_balanced(prove: Prove, got: _Outcome, expected: int, when: str) -> None:
    told = f"{when}, task.cancelling() is {got.cancelling} and should be {expected}: "
    told += "a cancel() of your own wants one uncancel(), and nobody else's wants any."
    prove(BALANCED, got.cancelling == expected, told)


async def _nested(deadline: Deadline, prove: Prove) -> None:
    names = ("order", "payment", "lookup")
    for seconds in itertools.permutations((1, 2, 3)):
        seen: list[_Outcome] = []

        async def level(number: int, seconds: tuple[int, ...] = seconds, seen: list[_Outcome] = seen) -> None:
            if number == len(names):
                return await asyncio.sleep(10)
            async with deadline(seconds[number], names[number]):
                got = await _outcome(level(number + 1))
                seen.append(got)
                if got.error:
                    raise got.error

        start = asyncio.get_running_loop().time()
        seen.append(await _outcome(level(0)))
        first, scene = (
            names[seconds.index(1)],
            ", in it ".join(f"{n} {s} s" for n, s in zip(names, seconds, strict=True)),
        )
        end = seen[-1]
        told = f"The nested deadlines are {scene}: at {end.at - start:g} s {end}."
        on_time = isinstance(end.error, TimeoutError) and abs(end.at - start - 1) < 1e-9
        prove("nested deadlines: the earliest counts", on_time, told)
        others = [name for name in names if name != first and name in str(end.error)]
        prove(NAMES, first in str(end.error) and not others, told)
        below = seen[: len(names) - seconds.index(1)]  # what the scope that expired saw, and those in it
        told = f"The nested deadlines are {scene}; a scope inside {first} raised TimeoutError too. The outer one "
        told += "cancels, and only its own block turns that into a TimeoutError."
        prove(ONLY_ITS_OWN, all(isinstance(got.error, asyncio.CancelledError) for got in below), told)
        _prove_balanced(prove, end, 0, "After nested deadlines")
        await _goes_on(prove, "After nested deadlines")


async def _a_loop_inside(deadline: Deadline, prove: Prove) -> None:
    tries: list[float] = []

    async def try_again() -> None:
        for _ in range(9):
            tries.append(asyncio.get_running_loop().time())
            with contextlib.suppress(TimeoutError):
                async with deadline(1, "attempt"):
                    await asyncio.sleep(10)

    got = await _outcome(_inside(deadline, [(2.5, "total")], try_again))
    told = "In deadline(2.5, 'total'), a loop that suppresses the TimeoutError of deadline(1, 'attempt') began "
    told += f"{len(tries)} attempts, and at {got.at:g} s {got}."
    ended = isinstance(got.error, TimeoutError) and "total" in str(got.error) and "attempt" not in str(got.error)
    prove(ONLY_ITS_OWN, ended and len(tries) == 3 and abs(got.at - 2.5) < 1e-9, told)


async def _cancelled_from_outside(deadline: Deadline, prove: Prove) -> None:
    for when, scene in ((0.5, "in time"), (1.02, "while the body cleaned up after the deadline")):
        calls = Calls()
        work = calls.job("the body", 10, cleanup=CLEANUP)
        got = await _cancel_at(when, _inside(deadline, [(9, "order"), (1, "payment")], work))
        told = f"The task was cancelled from outside, {scene}, and {got}."
        prove(OUTER_CANCEL, isinstance(got.error, asyncio.CancelledError), told)
        _prove_balanced(prove, got, 1, "After a cancel from outside")


async def _cancel_at(when: float, body: Awaitable[Any]) -> _Outcome:
    task = asyncio.create_task(_outcome(body))
    asyncio.get_running_loop().call_later(when, task.cancel)
    return await task


async def _same_instant(deadline: Deadline, prove: Prove) -> None:
    work = functools.partial(asyncio.sleep, 10)
    for first in ("the deadline", "the cancel"):
        # The timer that is set first fires first.
        body = _inside(deadline, [(1, "payment")], work)
        task = asyncio.create_task(_outcome(body))
        loop = asyncio.get_running_loop()
        end = loop.time() + 1
        if first == "the deadline":
            loop.call_soon(lambda end=end, task=task: asyncio.get_running_loop().call_at(end, task.cancel))
        else:
            loop.call_at(end, task.cancel)
        got = await task
        told = f"A cancel from outside came at the instant of the deadline, {first} first, and {got}: the "
        told += "canceller waits for a CancelledError."
        prove(OUTER_CANCEL, isinstance(got.error, asyncio.CancelledError), told)
        _prove_balanced(prove, got, 1, "After a cancel from outside")


async def _already_expired(deadline: Deadline, prove: Prove) -> None:
    for seconds in (0, -1):
        start = asyncio.get_running_loop().time()
        got = await _outcome(_inside(deadline, [(seconds, "late")], functools.partial(asyncio.sleep, 10)))
        told = f"deadline({seconds}, 'late') has expired before it begins, and {got.at - start:g} s later {got}."
        prove("a deadline in the past expires at once", isinstance(got.error, TimeoutError) and got.at == start, told)
        prove(NAMES, "late" in str(got.error), f"deadline({seconds}, 'late') expired, and {got}.")
        _prove_balanced(prove, got, 0, "After a TimeoutError")


async def _after_expiry(deadline: Deadline, prove: Prove) -> None:
    broken = ValueError("the cleanup failed")

    async def cleanup_fails() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise broken

    async def swallows() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10)

    got = await _outcome(_inside(deadline, [(1, "order")], cleanup_fails))
    told = f"The deadline passed, the body's cleanup raised {tell(broken)}, and out came something else: {got}."
    prove("lets an error of the body out", got.error is broken, told)
    _prove_balanced(prove, got, 0, "After a cleanup that failed")
    got = await _outcome(_inside(deadline, [(1, "order")], swallows))
    _prove_balanced(prove, got, 0, "After a body that swallowed the cancel of its deadline")
    await _goes_on(prove, "After a body that swallowed the cancel of its deadline")


async def _cancelled_before(deadline: Deadline, prove: Prove) -> None:
    async def twice() -> _Outcome:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.current_task().cancel()
            await asyncio.sleep(1)
        return await _outcome(_inside(deadline, [(1, "payment")], functools.partial(asyncio.sleep, 10)))

    got = await asyncio.create_task(twice())
    told = "The task had handled an earlier cancel, so cancelling() was 1 before the block; its deadline passed, and "
    told += f"{got}: compare with the count on entry."
    prove(NOT_FIRST, isinstance(got.error, TimeoutError) and "payment" in str(got.error), told)
    _prove_balanced(prove, got, 1, "After a timeout in a task that was cancelled once before")


async def _task_groups(deadline: Deadline, prove: Prove) -> None:
    """The same program under asyncio.timeout says what TaskGroup itself leaves, which differs by version."""
    for seconds, fails in ((1, False), (3, True), (1, True)):
        results = []
        for scope in (lambda seconds, name: asyncio.timeout(seconds), deadline):
            calls = Calls()
            got = await asyncio.create_task(_outcome(_in_group(scope, seconds, calls, fails)))
            results.append((got, sorted(calls.cancelled)))
        (bare, bare_cut), (got, cut) = results
        told = f"A TaskGroup in deadline({seconds}, 'group'), {'with a child that failed' if fails else 'all well'}: "
        told += f"{got}; with asyncio.timeout, {bare}."
        prove("works with TaskGroup", type(got.error) is type(bare.error) and cut == bare_cut, told)
        _prove_balanced(prove, got, bare.cancelling, "After a TaskGroup in the block")
    for name in ("first", "second"):  # on some versions the group leaves cancelling() at 1

        async def group_then_deadline(name: str = name) -> None:
            with contextlib.suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(Calls(fail_at=1).job("child", 0.2)())
            await _inside(deadline, [(1, name)], functools.partial(asyncio.sleep, 10))

        got = await asyncio.create_task(_outcome(group_then_deadline()))
        told = f"After a TaskGroup whose child had failed, a deadline passed in the same task, and {got}."
        prove("works with TaskGroup", isinstance(got.error, TimeoutError) and name in str(got.error), told)


async def _in_group(scope: Deadline, seconds: float, calls: Calls, fails: bool) -> None:
    async with scope(seconds, "group"):
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(calls.job(f"child {number}", 10, cleanup=CLEANUP)())
            if fails:
                await asyncio.sleep(2)
                group.create_task(Calls(fail_at=1).job("child", 0.5)())


async def _side_by_side(deadline: Deadline, prove: Prove) -> None:
    async def one(seconds: float, name: str) -> _Outcome:
        await asyncio.sleep(seconds / 10)
        return await _outcome(_inside(deadline, [(9, "all"), (seconds, name)], functools.partial(asyncio.sleep, 5)))

    plans = {"first": 3, "second": 1, "third": 2, "fourth": 7}
    outcomes = await asyncio.gather(*(one(seconds, name) for name, seconds in plans.items()))
    for (name, seconds), got in zip(plans.items(), outcomes, strict=True):
        good = name in str(got.error) and isinstance(got.error, TimeoutError) if seconds < 5 else not got.error
        told = f"Four tasks had deadlines of their own; in the one with deadline({seconds}, '{name}') {got}."
        prove("tasks side by side keep apart", good, told)
