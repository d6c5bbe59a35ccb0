"""Chapter 03, errors: retry, a retry budget, named deadlines, a circuit breaker, hedging."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import re
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .breaker03 import BreakerOpen, check_breaker
from .deadline03 import check_deadline
from .engine import Exercise, three_hints
from .faults import CANCELS, Calls, cancel_sweep, error_sweep, prove_cancelled
from .harness import NO_TASKS_LEFT, SEEDS, Failed, Prove, Run, observe, plain, prove_clean, tell

__all__ = ["BreakerOpen", "EXERCISES"]

CLEANUP = 0.05  # simulated seconds that a cancelled call needs to clean up


def _outcome(run: Run) -> str:
    return f"it raised {tell(run.error)}" if run.error else f"it returned {plain(run.value)}"


# --- 3.1 retry -----------------------------------------------------------------------------------

Uniform = Callable[[float, float], float]
LIMIT = "no wait above min(cap, base * 2**n)"
JITTER = "full jitter: every wait from 0 to its limit alike"
IN_TIME = "ends by the deadline"
NO_VAIN_WAIT = "begins no wait that the deadline would cut"


def _middle(low: float, high: float) -> float:
    return (low + high) / 2  # the same for uniform(0, limit), limit * uniform(0, 1) and their mirrors


class _Tries:
    """``call`` takes ``seconds``, fails its first ``failures`` times, and then returns ``value``."""

    def __init__(
        self, failures: float = 99, value: Any = "value", seconds: float = 0.1, calls: Calls | None = None
    ) -> None:
        self.calls = calls or Calls()
        self.failures, self.value, self.seconds = failures, value, seconds
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.errors: list[BaseException] = []

    def error(self, number: int) -> BaseException:
        return ConnectionResetError(f"try {number} failed")

    async def call(self) -> Any:
        loop = asyncio.get_running_loop()
        self.begun.append(loop.time())
        number = len(self.begun)
        await self.calls.job(f"try {number}", self.seconds, cleanup=CLEANUP)()
        self.ended.append(loop.time())
        if number > self.failures:
            return self.value
        self.errors.append(self.error(number))
        raise self.errors[-1]

    @property
    def last_end(self) -> float:
        return max(self.ended, default=0.0)

    @property
    def waits(self) -> list[float]:
        return [begin - end for begin, end in zip(self.begun[1:], self.ended, strict=False)]


class _Permanent(_Tries):
    """Its second try fails with what is not worth a third one."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.permanent = error

    def error(self, number: int) -> BaseException:
        return self.permanent if number == 2 else super().error(number)


class _OwnTimeouts(_Tries):
    def error(self, number: int) -> BaseException:
        return TimeoutError(f"try {number} was slow")


def _retry(
    answer: Any,
    tries: _Tries,
    attempts: int = 4,
    base: float = 0.1,
    cap: float = 1.0,
    deadline: float = 1000.0,
    transient: tuple[type[Exception], ...] = (ConnectionError,),
    uniform: Uniform = _middle,
) -> Awaitable[Any]:
    return answer(tries.call, attempts, base, cap, deadline, transient, uniform)


def _observe_retry(answer: Any, tries: _Tries, **settings: Any) -> Run:
    return observe(functools.partial(_retry, answer, tries, **settings))


def _check_retry(answer: Any, prove: Prove) -> None:
    for value in ("value", None, 0, "", False):
        for failures in (0, 1, 3):
            tries = _Tries(failures, value)
            run = _observe_retry(answer, tries)
            got = run.value if run.error in tries.errors else run.result()
            told = f"With attempts=4 and a call that fails {failures} times, it was called {len(tries.begun)} times."
            prove("retries until the call succeeds", len(tries.begun) == failures + 1, told)
            told = f"The call returned {value!r}, and retry {plain(repr(got))}."
            prove("returns what the call returns", got is value, told)
            told = f"There was nothing to wait for before the first try, and it waited {tries.begun[0]:g} s."
            prove("waits only between tries", tries.begun[0] == 0, told)
            prove("one try at a time", tries.calls.peak == 1, f"{tries.calls.peak} tries were in flight at once.")
            prove_clean(prove, run)
    for attempts in (1, 2, 3, 5):
        tries = _Tries()
        run = _observe_retry(answer, tries, attempts=attempts)
        told = f"With attempts={attempts} it tried {len(tries.begun)} times: attempts counts every try, the first too."
        prove("tries no more than attempts times", len(tries.begun) == attempts, told)
        _prove_last_error(prove, run, tries)
        late = run.elapsed - tries.last_end
        told = f"After the last try it waited {late:g} s more: nothing can follow, so raise at once."
        prove("waits only between tries", late < 1e-9, told)
    _check_what_is_retried(answer, prove)
    _check_jitter(answer, prove)
    _check_total_deadline(answer, prove)
    for run, calls, canceller in cancel_sweep(
        lambda calls, drive: drive(_retry(answer, _Tries(calls=calls), 3, deadline=9.0))
    ):
        told = f"Cancelled at {canceller}, {_outcome(run)}: let CancelledError through, or raise it again."
        if canceller.moment == "woken" and sys.version_info < (3, 12):
            told += " On this Python, asyncio.wait_for loses a cancel that comes with a result: use asyncio.timeout_at."
        prove(CANCELS, run.was_cancelled, told)
        prove_cancelled(prove, run, calls, canceller, CLEANUP)


def _prove_last_error(prove: Prove, run: Run, tries: _Tries) -> None:
    last = tries.errors[-1]
    told = f"The last try raised {tell(last)}, and out came something else: {_outcome(run)}."
    prove("raises the last error", run.error is last, told)
    _prove_count_told(prove, last, len(tries.begun))


def _prove_count_told(prove: Prove, error: BaseException, count: int) -> None:
    notes = "; ".join(getattr(error, "__notes__", []))
    told = f"After {count} {'try' if count == 1 else 'tries'} the error had " + (
        f"the note {notes!r}" if notes else "no note"
    )
    told += ': error.add_note(f"after {n} attempts") gives it one.'
    prove("notes the number of attempts", re.findall(r"\d+", notes)[:1] == [str(count)], told)


def _check_what_is_retried(answer: Any, prove: Prove) -> None:
    for error in (ValueError("bad input"), OSError("disk full"), TimeoutError("of its own")):
        tries = _Permanent(error)
        run = _observe_retry(answer, tries)
        told = f"{type(error).__name__} is not in transient, and it tried {len(tries.begun) - 2} times more after it."
        prove("retries only what is transient", len(tries.begun) == 2, told)
        told = f"The call raised {tell(error)}, and then: {_outcome(run)}."
        prove("lets any other error out", run.error is error, told)
        prove("lets any other error out", run.elapsed - tries.last_end < 1e-9, "It waited before it let the error out.")
    tries = _Permanent(asyncio.CancelledError())
    run = _observe_retry(answer, tries)
    told = f"A try raised CancelledError, and it tried {len(tries.begun) - 2} times more; in the end {_outcome(run)}."
    prove(CANCELS, len(tries.begun) == 2 and run.was_cancelled, told)
    tries = _OwnTimeouts(failures=2)
    got = _observe_retry(answer, tries, transient=(ConnectionError, TimeoutError)).result()
    told = f"With TimeoutError in transient and two slow tries it tried {len(tries.begun)} times."
    prove("retries until the call succeeds", (got, len(tries.begun)) == ("value", 3), told)
    for run, calls in error_sweep(lambda calls: _retry(answer, _Tries(calls=calls))):
        told = f"{calls.injected}, which is not transient, and then: {_outcome(run)}."
        prove("lets any other error out", run.error is calls.injected, told)


def _check_jitter(answer: Any, prove: Prove) -> None:
    base, cap, attempts, clients = 0.1, 1.0, 9, 100
    waits: list[list[float]] = [[] for _ in range(attempts - 1)]
    for seed in SEEDS:
        draws: list[float] = []
        herd = [_Tries() for _ in range(clients)]
        run = observe(_one_after_another, answer, herd, attempts, base, cap, _counted(seed, draws))
        run.result()
        told = "It never called uniform: take the randomness from the argument, so that a test can repeat it."
        prove("draws every wait from uniform", bool(draws), told)
        told = f"It waited {clients * (attempts - 1)} times and drew {len(draws)} times: draw anew for every wait."
        prove("draws every wait from uniform", len(draws) >= clients * (attempts - 1), told)
        tried = {len(tries.begun) for tries in herd}
        told = f"With attempts={attempts} and time enough it gave up after {min(tried)} tries."
        prove("retries while there is time", tried == {attempts}, told)
        for tries in herd:
            for n, wait in enumerate(tries.waits):
                waits[n].append(wait / min(cap, base * 2**n))
    for n, shares in enumerate(waits):
        limit = min(cap, base * 2**n)
        told = f"Before retry {n} (from 0) it waited {max(shares) * limit:.3g} s, and the limit is {limit:g} s: "
        told += "cap the limit first, and draw below it." if limit == cap else "retry 0 waits at most base."
        prove(LIMIT, max(shares) <= 1 + 1e-6, told)
    for n, shares in enumerate(waits):
        distance = _distance_from_uniform(shares)
        told = f"{_guess(shares)} Before retry {n} (from 0) the waits are {distance:.2f} from uniform (KS distance)."
        # About one in 10 000 samples of a uniform is further away (Kolmogorov's limit law).
        prove(JITTER, distance <= 2.23 / len(shares) ** 0.5, told)


def _counted(seed: int, draws: list[float]) -> Uniform:
    rng = random.Random(seed)

    def uniform(low: float, high: float) -> float:
        draws.append(rng.uniform(low, high))
        return draws[-1]

    return uniform


async def _one_after_another(
    answer: Any, herd: list[_Tries], attempts: int, base: float, cap: float, uniform: Uniform
) -> None:
    for tries in herd:
        try:
            await _retry(answer, tries, attempts, base, cap, uniform=uniform)
        except ConnectionError:
            pass


def _distance_from_uniform(shares: list[float]) -> float:
    """Kolmogorov and Smirnov: the largest gap between the two distribution functions."""
    n = len(shares)
    return max(max((i + 1) / n - share, share - i / n) for i, share in enumerate(sorted(shares)))


def _guess(shares: list[float]) -> str:
    if max(shares) < 1e-6:
        return "It does not wait."
    if max(shares) - min(shares) < 1e-6:
        return "All clients wait alike: without jitter they come back together."
    if sum(share > 1 - 1e-6 for share in shares) > len(shares) / 20:
        return "Many waits are exactly the cap: take min(cap, ...) first, and draw below it."
    if min(shares) > 0.2:
        return "No wait is short: full jitter draws from 0."
    return "Too short: the limit of retry n is base * 2**n." if max(shares) < 0.8 else "Some are likelier than others."


def _check_total_deadline(answer: Any, prove: Prove) -> None:
    for transient in ((ConnectionError,), (ConnectionError, TimeoutError)):
        for seconds, base, begun in ((1000.0, 0.1, 1), (0.8, 0.02, 3)):
            tries = _Tries(seconds=seconds)
            run = _observe_retry(answer, tries, attempts=5, base=base, cap=base, deadline=2.0, transient=transient)
            told = f"With deadline=2 and tries of {seconds:g} s it ended at {run.elapsed:g} s: "
            told += "one deadline bounds all tries, also one that hangs."
            prove(IN_TIME, run.elapsed <= 2 + CLEANUP + 1e-9, told)
            told = f"The deadline cut try {begun}, and then: {_outcome(run)}. A TimeoutError tells it."
            prove("a try that the deadline cuts is a TimeoutError", isinstance(run.error, TimeoutError), told)
            told = f"With deadline=2 and tries of {seconds:g} s it tried {len(tries.begun)} times, {begun} fit."
            prove(IN_TIME, len(tries.begun) == begun, told)
            told = f"The last try was cut at {run.elapsed:g} s, with deadline=2: let each try have all that remains."
            prove("retries while there is time", run.elapsed >= 2 - 1e-9, told)
            told = "The try that the deadline cut had not ended when it raised: cancel it, and wait for its cleanup."
            prove(NO_TASKS_LEFT, tries.calls.cancelled == [f"try {begun}"] and not run.left_over, told)
            _prove_count_told(prove, run.error, begun)
            prove_clean(prove, run)
    tries = _Tries()  # the tries begin at 0, 0.2, 0.5 and 1.0 s; the next wait would end at 1.6 s
    run = _observe_retry(answer, tries, attempts=9, base=0.2, deadline=1.2)
    told = f"At {tries.last_end:g} s the next wait would have passed the deadline of 1.2 s, and it ended at "
    told += f"{run.elapsed:g} s: compare the wait with what remains, and raise at once."
    prove(NO_VAIN_WAIT, run.elapsed - tries.last_end < 1e-9, told)
    told = f"Four tries fit in the deadline of 1.2 s, and it made {len(tries.begun)}: compare the wait that you drew."
    prove("retries while there is time", len(tries.begun) == 4, told)
    _prove_last_error(prove, run, tries)
    for seed in SEEDS:
        tries, deadline = _Tries(seconds=0.3), 1.0 + seed
        run = _observe_retry(
            answer, tries, attempts=50, base=0.2, cap=2.0, deadline=deadline, uniform=random.Random(seed).uniform
        )
        told = f"With deadline={deadline:g} it ended at {run.elapsed:g} s."
        prove(IN_TIME, run.elapsed <= deadline + CLEANUP + 1e-9, told)
        told = f"It waited from {tries.last_end:g} s to {run.elapsed:g} s, and then there was no time for a try."
        vain = len(tries.ended) == len(tries.begun) and run.elapsed > tries.last_end + 1e-9
        prove(NO_VAIN_WAIT, not vain, told)


# --- 3.2 a retry budget --------------------------------------------------------------------------

SPAN, FREE, RATIO = 10.0, 10, 0.1  # any 10 s: 10 retries, and one more for ten requests
BOUND = "any 10 s: at most 10 retries + 1 for ten requests"
RARE = "rare failures get their retries"
EDGE = 0.01  # seconds: an event exactly 10 s old may count or not


class _Meter:
    """Asks a budget, and holds every retry that it grants against the bound."""

    def __init__(self, answer: Any, prove: Prove, lacking: str = BOUND) -> None:
        self.budget, self.prove, self.lacking = answer(), prove, lacking
        self.requests: deque[float] = deque()
        self.retries: deque[float] = deque()
        self.total_requests = self.total_retries = 0

    def request(self) -> None:
        _no_coroutine(self.budget.request())
        self.requests.append(asyncio.get_running_loop().time())
        self.total_requests += 1

    def take(self) -> bool:
        granted = self.budget.take()
        _no_coroutine(granted)
        self.prove("take() says True or False", isinstance(granted, bool), f"take() returned {plain(granted)}.")
        if granted:
            now = asyncio.get_running_loop().time()
            self.retries.append(now)
            self.total_retries += 1
            while self.retries[0] <= now - SPAN + EDGE:
                self.retries.popleft()
            while self.requests and self.requests[0] < now - SPAN - EDGE:
                self.requests.popleft()
            told = f"At {now:g} s, the last 10 s held {len(self.requests)} requests and {len(self.retries)} retries."
            self.prove(self.lacking, len(self.retries) <= FREE + RATIO * len(self.requests) + 1e-9, told)
        return granted

    async def traffic(self, seconds: float, per_second: float, asks: int, persistent: bool = False) -> None:
        """Requests that each ask for up to ``asks`` retries; a persistent one goes on after a no."""
        for _ in range(round(seconds * per_second)):
            self.request()
            for _ in range(asks):
                if not self.take() and not persistent:
                    break
            await asyncio.sleep(1 / per_second)


def _no_coroutine(value: Any) -> None:
    if inspect.iscoroutine(value):
        value.close()
        raise Failed("request() and take() are plain methods", "They only count, and never wait: write def.")


def _check_budget(answer: Any, prove: Prove) -> None:
    for scenario in (_first, _rare, _storms, _quiet_past, _busy_past, _mixed, _forgets, _independent):
        run = observe(functools.partial(scenario, answer, prove))
        run.result()
        prove_clean(prove, run)


async def _first(answer: Any, prove: Prove) -> None:
    meter = _Meter(answer, prove)
    meter.request()
    told = "The very first request failed, and got no two retries: nothing has been spent yet, so begin with some."
    prove(RARE, meter.take() and meter.take(), told)


async def _rare(answer: Any, prove: Prove) -> None:
    for seed in SEEDS:
        rng, meter = random.Random(seed), _Meter(answer, prove)
        for _ in range(6):
            unlucky = rng.randrange(100)
            for number in range(100):
                meter.request()
                if number == unlucky:
                    now = asyncio.get_running_loop().time()
                    told = f"One request in a hundred failed, and the one at {now:g} s did not get its two retries."
                    prove(RARE, meter.take() and meter.take(), told)
                await asyncio.sleep(0.1)


async def _storms(answer: Any, prove: Prove) -> None:
    for per_second, asks, persistent in ((5, 2, False), (20, 2, False), (100, 2, False), (20, 5, True)):
        meter = _Meter(answer, prove)
        await asyncio.sleep(7.3)
        await meter.traffic(30, per_second, asks, persistent)
        least = round(0.9 * RATIO * meter.total_requests)
        told = f"{meter.total_requests} requests in 30 s all failed, and it allowed {meter.total_retries} retries: "
        told += "a refused retry costs nothing, and ten requests pay for one."
        prove("spends what the requests pay for", meter.total_retries >= least, told)


async def _quiet_past(answer: Any, prove: Prove) -> None:
    for offset in (0.0, 2.5, 5.0, 7.5):
        meter = _Meter(answer, prove, "a quiet past pays for nothing")
        await asyncio.sleep(1000 + offset)
        await meter.traffic(15, 10, 5, persistent=True)


async def _busy_past(answer: Any, prove: Prove) -> None:
    meter = _Meter(answer, prove, "a busy past pays for nothing")
    await meter.traffic(60, 50, 0)
    await asyncio.sleep(12)
    await meter.traffic(20, 2, 60, persistent=True)


async def _mixed(answer: Any, prove: Prove) -> None:
    for seed in SEEDS:
        rng, meter = random.Random(seed), _Meter(answer, prove)
        for _ in range(60):
            seconds = rng.choice([0.5, 1, 3])
            await meter.traffic(seconds, rng.choice([2, 10, 40]), rng.choice([0, 0, 1, 3]), rng.random() < 0.5)
            await asyncio.sleep(rng.choice([0, 0, 1, 8]))


async def _forgets(answer: Any, prove: Prove) -> None:
    meter = _Meter(answer, prove)
    await meter.traffic(20, 20, 2)
    for _ in range(5):
        await asyncio.sleep(12)
        meter.request()
        told = "All was spent, and 12 s went by without a retry; then one request failed and did not get its two "
        told += "retries: what is older than 10 s, by loop.time(), counts no more."
        prove("forgets after 10 s", meter.take() and meter.take(), told)


async def _independent(answer: Any, prove: Prove) -> None:
    one, other = _Meter(answer, prove), _Meter(answer, prove)
    while one.take():
        pass
    told = "One budget was spent, and another one refused too: keep the counts on self."
    prove("each budget has its own counts", other.take(), told)


# --- 3.5 hedge -----------------------------------------------------------------------------------

DELAY = 1.0
SECOND = "the second call starts after delay"
NO_NEED = "no second call without need"
WINS = "the first success wins"
OTHER = "waits for the other when one fails"
AT_ONCE = "an early failure comes out at once"
FIRST_ERROR = "both fail: raises the error of the first call"
LOSER = "cancels the loser and awaits it"


@dataclass
class _Plan:
    """How a call goes: after ``seconds`` it returns ``value`` or raises it."""

    seconds: float
    value: Any
    cleanup_error: Exception | None = None


class _Pair:
    """``call`` follows the plans, one after another, and counts."""

    def __init__(self, *plans: _Plan, calls: Calls | None = None) -> None:
        self.plans, self.calls, self.begun = plans, calls or Calls(), []

    async def call(self) -> Any:
        number = len(self.begun)
        self.begun.append(asyncio.get_running_loop().time())
        plan = self.plans[min(number, len(self.plans) - 1)]
        try:
            await self.calls.job(("first", "second", "third")[min(number, 2)], plan.seconds, cleanup=CLEANUP)()
        except asyncio.CancelledError:
            if plan.cleanup_error:
                raise plan.cleanup_error from None
            raise
        if isinstance(plan.value, Exception):
            raise plan.value
        return plan.value


_FAST, _SLOW = ConnectionError("the first call failed"), ConnectionError("the second call failed")
_MESSY = _Plan(5, "late", ValueError("while cleaning up"))
# property, first call, second call, who decides, when, calls made, calls cancelled
_DUELS: list[tuple[str, _Plan, _Plan, list[Any], float, int, int]] = [
    (NO_NEED, _Plan(0.5, "A"), _Plan(0.1, "B"), ["A"], 0.5, 1, 0),
    (NO_NEED, _Plan(0.5, None), _Plan(0.1, "B"), [None], 0.5, 1, 0),
    (AT_ONCE, _Plan(0.5, _FAST), _Plan(0.1, "B"), [_FAST], 0.5, 1, 0),
    (WINS, _Plan(5, "A"), _Plan(0.5, "B"), ["B"], 1.5, 2, 1),
    (WINS, _Plan(5, "A"), _Plan(0.5, None), [None], 1.5, 2, 1),
    (WINS, _Plan(1.2, "A"), _Plan(5, "B"), ["A"], 1.2, 2, 1),
    (WINS, _Plan(1.2, 0), _Plan(5, "B"), [0], 1.2, 2, 1),
    (OTHER, _Plan(1.2, _FAST), _Plan(0.5, "B"), ["B"], 1.5, 2, 0),
    (OTHER, _Plan(2.0, "A"), _Plan(0.5, _SLOW), ["A"], 2.0, 2, 0),
    (OTHER, _Plan(1.5, "A"), _Plan(0.5, _SLOW), ["A"], 1.5, 2, 0),
    (OTHER, _Plan(1.5, _FAST), _Plan(0.5, "B"), ["B"], 1.5, 2, 0),
    (WINS, _Plan(1.5, "A"), _Plan(0.5, "B"), ["A", "B"], 1.5, 2, 0),
    (FIRST_ERROR, _Plan(1.2, _FAST), _Plan(0.7, _SLOW), [_FAST], 1.7, 2, 0),
    (FIRST_ERROR, _Plan(2.0, _FAST), _Plan(0.5, _SLOW), [_FAST], 2.0, 2, 0),
    (FIRST_ERROR, _Plan(1.5, _FAST), _Plan(0.5, _SLOW), [_FAST], 1.5, 2, 0),
    (LOSER, _MESSY, _Plan(0.5, "B"), ["B"], 1.5, 2, 1),
]


def _check_hedge(answer: Any, prove: Prove) -> None:
    for duel in _DUELS:
        _check_duel(answer, prove, *duel)
    for run, calls, canceller in cancel_sweep(
        lambda calls, drive: drive(answer(_Pair(_Plan(5, "A"), _Plan(5, "B"), calls=calls).call, DELAY))
    ):
        prove_cancelled(prove, run, calls, canceller, 2 * CLEANUP)
        told = f"Cancelled at {canceller}, it returned before {', '.join(calls.started)} had ended: await them."
        prove(NO_TASKS_LEFT, not calls.in_flight, told)
    _check_draws(answer, prove)


def _check_duel(
    answer: Any, prove: Prove, lacking: str, first: _Plan, second: _Plan, decided: list[Any], when: float,
    count: int, cancelled: int,
) -> None:  # fmt: skip
    pair = _Pair(first, second)
    run = observe(answer, pair.call, DELAY)
    if not any(isinstance(plan.value, Exception) and run.raised(plan.value) for plan in (first, second)):
        run.result()
    scene = f"With delay=1, {_tell_plan('the first call', first)}" + (
        f", {_tell_plan('the second', second)}" if len(pair.begun) > 1 else ""
    )
    told = f"With delay=1, the first call started {f'at {pair.begun[0]:g} s' if pair.begun else 'never'}."
    prove("the first call starts at once", pair.begun[:1] == [0], told)
    told = f"{scene}: it made {len(pair.begun)} calls."
    prove(NO_NEED if len(pair.begun) > count else SECOND, len(pair.begun) == count, told)
    if count == 2:
        prove(SECOND, pair.begun[1] == DELAY, f"{scene}: the second call started at {pair.begun[1]:g} s.")
    got = run.value if run.error is None else run.error
    prove(lacking, any(got is each for each in decided), f"{scene}: {_outcome(run)}.")
    left = ", ".join(run.left_over)
    prove(LOSER, not left, f"{scene}: it returned while {left} was still running.")
    stopped = len(pair.calls.cancelled)
    told = f"{scene}: {stopped or 'none'} was cancelled; cancel the one that is no longer needed."
    tie = first.seconds == DELAY + second.seconds  # one of the two may or may not be cancelled in its last step
    prove(LOSER, stopped == cancelled or (tie and stopped == 1), told)
    done = when + (CLEANUP if stopped else 0)
    told = f"{scene}: it ended at {run.elapsed:g} s and not at {done:g} s, the loser's cleanup included."
    prove(lacking, abs(run.elapsed - done) < 1e-9, told)
    prove_clean(prove, run)


def _tell_plan(name: str, plan: _Plan) -> str:
    return f"{name} {'fails' if isinstance(plan.value, Exception) else 'answers'} after {plan.seconds:g} s"


def _check_draws(answer: Any, prove: Prove) -> None:
    delay, mean, draws = 0.3, 0.1, 200  # S(delay) = exp(-3): 5 % of the first calls are slower
    for seed in SEEDS:
        rng = random.Random(seed)
        pairs = [_Pair(*(_Plan(rng.expovariate(1 / mean), "A") for _ in range(2))) for _ in range(draws)]
        best = [min(a.seconds, delay + b.seconds) for a, b in (pair.plans for pair in pairs)]
        took: list[float] = []
        run = observe(_one_by_one, answer, pairs, delay, took)
        run.result()
        slow = sum(pair.plans[0].seconds > delay for pair in pairs)
        made = sum(len(pair.begun) for pair in pairs) - draws
        told = f"{slow} of {draws} calls took longer than delay, and it made {made} second calls."
        prove("extra load: only the share that is slower than delay", made <= slow + 0.02 * draws, told)
        late = sum(seconds > quickest + CLEANUP + 1e-9 for seconds, quickest in zip(took, best, strict=True))
        told = f"{late} of {draws} answers came later than min(first, delay + second)."
        prove("cuts the tail", not late, told)
        prove_clean(prove, run)


async def _one_by_one(answer: Any, pairs: list[_Pair], delay: float, took: list[float]) -> None:
    loop = asyncio.get_running_loop()
    for pair in pairs:
        start = loop.time()
        await answer(pair.call, delay)
        took.append(loop.time() - start)


EXERCISES = [
    Exercise(
        "3.1",
        "retry",
        "async def retry(call, attempts, base, cap, deadline, transient, uniform)",
        ("call", "attempts", "base", "cap", "deadline", "transient", "uniform"),
        three_hints("""
        When a try has failed, three things can forbid another one. Which, and which of them can be
        known only after the wait is drawn?

        Compute end = loop.time() + deadline once. Put each try into asyncio.timeout_at(end): before
        Python 3.12, wait_for can lose a cancellation. Before a wait, compare loop.time() + wait with
        end. Notes go on in one place, around it all.

        except transient: wait = uniform(0, min(cap, base * 2 ** (tries - 1))); if tries == attempts
        or loop.time() + wait >= end: raise. Then await asyncio.sleep(wait).
        """),
        _check_retry,
    ),
    Exercise(
        "3.2",
        "a retry budget",
        "RetryBudget()",
        (),
        three_hints("""
        Who pays for a retry, if at 100 % failure there may be one for ten requests? And how much
        may be saved up?

        Keep a balance that is never over 10: a request adds 0.1, a retry takes 1. Remember, by
        loop.time(), when the last retry was granted.

        take(): after 10 s without a retry, self.tokens = 10. Then, if self.tokens < 1, return
        False; otherwise take one off, keep the time, return True.
        """),
        _check_budget,
    ),
    Exercise(
        "3.3",
        "a deadline with a name",
        "deadline(seconds, name)",
        ("seconds", "name"),
        three_hints("""
        A TimeoutError comes out of your block. Which three things can have raised it, and how do
        you know that it was your own deadline?

        asyncio.timeout does the cancelling and the counting. The object that it gives you has
        expired(): ask it before you change the error.

        async with asyncio.timeout(seconds) as scope: yield. Around it, except TimeoutError: if not
        scope.expired(): raise. Otherwise raise TimeoutError with the name.
        """),
        check_deadline,
    ),
    Exercise(
        "3.4",
        "a circuit breaker",
        "Breaker(failures, window, cooldown)",
        ("failures", "window", "cooldown"),
        three_hints("""
        A call can end long after it began. Does what it says still belong to the state that the
        breaker is in now?

        Keep: a deque of failure times, the time of opening or None, whether a probe is under way,
        and a number that grows with every change of state. A call remembers the number.

        Before the call: if open, raise BreakerOpen unless the cooldown is over and nobody probes;
        else mark the probe. After it, try/except/else, and a finally that unmarks it.
        """),
        check_breaker,
    ),
    Exercise(
        "3.5",
        "hedge",
        "async def hedge(call, delay)",
        ("call", "delay"),
        three_hints("""
        Which calls are under way after delay, and in which cases is one that ended not the answer?

        asyncio.wait(tasks, timeout=delay) leaves the tasks alone. Then wait with FIRST_COMPLETED
        until one has succeeded or none is left. A finally cancels all and awaits them with gather:
        a cancelled gather still waits for its tasks, a cancelled asyncio.wait does not.

        tasks = [create_task(call())]; await asyncio.wait(tasks, timeout=delay); if it is not done,
        append a second. finally: cancel all, await asyncio.gather(*tasks, return_exceptions=True).
        """),
        _check_hedge,
    ),
]
