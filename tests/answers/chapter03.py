"""Right and wrong answers to the exercises of chapter 03.

Every wrong answer names the property that its check must report as missing.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import math
import random
import time

from answers.register import Register

from support.exercises import BreakerOpen

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub


# --- 3.1 retry -----------------------------------------------------------------------------------

LIMIT = "no wait above min(cap, base * 2**n)"
JITTER = "full jitter: every wait from 0 to its limit alike"
IN_TIME = "ends by the deadline"
NO_VAIN_WAIT = "begins no wait that the deadline would cut"
DRAWS = "draws every wait from uniform"
COUNT = "tries no more than attempts times"
ONLY = "retries only what is transient"
LAST = "raises the last error"
NOTE = "notes the number of attempts"
BETWEEN = "waits only between tries"
CANCEL = "passes a cancellation on"


@stub("3.1")
async def retry_stub(call, attempts, base, cap, deadline, transient, uniform):
    raise NotImplementedError


@right("3.1")
async def retry(call, attempts, base, cap, deadline, transient, uniform):
    loop = asyncio.get_running_loop()
    end, tries = loop.time() + deadline, 0
    try:
        while True:
            tries += 1
            try:
                async with asyncio.timeout_at(end):
                    return await call()
            except transient:
                wait = uniform(0, min(cap, base * 2 ** (tries - 1)))
                if tries == attempts or loop.time() + wait >= end:
                    raise
            await asyncio.sleep(wait)
    except Exception as error:
        error.add_note(f"after {tries} attempts")
        raise


@right("3.1")
async def retry_in_a_for_loop(call, attempts, base, cap, deadline, transient, uniform):
    """Draws a share of the limit, mirrored, and before it tries; raises behind the loop."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(attempts):
        wait = (1 - uniform(0, 1)) * min(cap, base * 2**number)
        try:
            async with asyncio.timeout(start + deadline - loop.time()):
                return await call()
        except Exception as error:
            last = error
        if not isinstance(last, transient) or wait >= start + deadline - loop.time():
            break
        if number + 1 < attempts:
            await asyncio.sleep(wait)
    last.add_note(f"{number + 1} of {attempts} attempts")
    raise last


@right("3.1")
async def retry_by_recursion(call, attempts, base, cap, deadline, transient, uniform, done=0):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        async with asyncio.timeout(deadline):
            return await call()
    except Exception as error:
        wait = uniform(0, 1) * min(cap, base * 2**done)
        left = deadline - (loop.time() - start) - wait
        if not isinstance(error, transient) or done + 1 == attempts or left <= 0:
            error.add_note(f"tries: {done + 1}")
            raise
    await asyncio.sleep(wait)
    return await retry_by_recursion(call, attempts, base, cap, left, transient, uniform, done + 1)


def faulty_retry(**change):
    """The right answer with one part replaced."""

    def limit(base, cap, n):
        return min(cap, base * 2**n)

    def wait_for(uniform, base, cap, n):
        return uniform(0, change.get("limit", limit)(base, cap, n))

    async def attempt(call, end):
        async with asyncio.timeout_at(end):
            return await call()

    async def retry(call, attempts, base, cap, deadline, transient, uniform):
        loop = asyncio.get_running_loop()
        end, tries = loop.time() + deadline, 0
        try:
            while True:
                tries += 1
                try:
                    return await change.get("attempt", attempt)(call, end)
                except change.get("catch", transient):
                    wait = change.get("wait", wait_for)(uniform, base, cap, tries - 1)
                    if tries == attempts + change.get("extra", 0) or loop.time() + wait >= end:
                        raise
                await asyncio.sleep(wait)
        except Exception as error:
            error.add_note(change.get("note", "after {} attempts").format(tries))
            raise

    return retry


def wrong_retry(name, lacking, **change):
    answer = faulty_retry(**change)
    answer.__name__ = answer.__qualname__ = name
    wrong("3.1", lacking)(answer)


wrong_retry("retry_without_a_cap", LIMIT, limit=lambda base, cap, n: base * 2**n)
wrong_retry("retry_one_power_too_many", LIMIT, limit=lambda base, cap, n: min(cap, base * 2 ** (n + 1)))
wrong_retry("retry_one_power_too_few", JITTER, limit=lambda base, cap, n: min(cap, base * 2 ** (n - 1)))
wrong_retry("retry_linear", JITTER, limit=lambda base, cap, n: min(cap, base * (n + 1)))
wrong_retry("retry_jitter_before_the_cap", JITTER, wait=lambda u, base, cap, n: min(cap, u(0, base * 2**n)))
wrong_retry("retry_jitter_after_the_cap", LIMIT, wait=lambda u, base, cap, n: min(cap, base * 2**n) + u(0, base))
wrong_retry("retry_negative_jitter", JITTER, wait=lambda u, base, cap, n: (c := min(cap, base * 2**n)) + u(-c, 0) * 2)
wrong_retry("retry_equal_jitter", JITTER, wait=lambda u, base, cap, n: (c := min(cap, base * 2**n)) / 2 + u(0, c / 2))
wrong_retry("retry_no_jitter", DRAWS, wait=lambda u, base, cap, n: min(cap, base * 2**n))
wrong_retry("retry_draws_and_forgets", JITTER, wait=lambda u, base, cap, n: u(1, 1) * min(cap, base * 2**n))
wrong_retry("retry_no_wait", DRAWS, wait=lambda u, base, cap, n: 0)
wrong_retry("retry_its_own_dice", DRAWS, wait=lambda u, base, cap, n: random.uniform(0, min(cap, base * 2**n)))
wrong_retry("retry_squared_jitter", JITTER, wait=lambda u, base, cap, n: u(0, 1) ** 2 * min(cap, base * 2**n))
wrong_retry("retry_one_attempt_more", COUNT, extra=1)
wrong_retry("retry_one_attempt_less", "retries until the call succeeds", extra=-1)
wrong_retry("retry_any_exception", ONLY, catch=Exception)
wrong_retry("retry_os_errors", ONLY, catch=OSError)
wrong_retry("retry_without_a_note", NOTE, note="gave up")
wrong_retry("retry_notes_the_attempts_allowed", NOTE, note="after 5 attempts")


@wrong("3.1", CANCEL)
async def retry_base_exception(call, attempts, base, cap, deadline, transient, uniform):
    async def guarded():
        try:
            return await call()
        except asyncio.CancelledError as error:
            raise transient[0]("cancelled") from error

    return await retry(guarded, attempts, base, cap, deadline, transient, uniform)


@wrong("3.1", CANCEL)
async def retry_swallowing_the_cancel(call, attempts, base, cap, deadline, transient, uniform):
    with contextlib.suppress(asyncio.CancelledError):
        return await retry(call, attempts, base, cap, deadline, transient, uniform)


@wrong("3.1", IN_TIME)
async def retry_deadline_for_each_try(call, attempts, base, cap, deadline, transient, uniform):
    answer = faulty_retry(attempt=lambda call, end: asyncio.wait_for(call(), deadline))
    return await answer(call, attempts, base, cap, deadline, transient, uniform)


@wrong("3.1", IN_TIME)
async def retry_deadline_from_the_first_failure(call, attempts, base, cap, deadline, transient, uniform):
    ends = []

    async def attempt(call, end):
        async with asyncio.timeout_at(ends[0] if ends else None):
            try:
                return await call()
            finally:
                ends.append(asyncio.get_running_loop().time() + deadline)

    return await faulty_retry(attempt=attempt)(call, attempts, base, cap, deadline, transient, uniform)


@wrong("3.1", IN_TIME)
async def retry_hangs_with_the_call(call, attempts, base, cap, deadline, transient, uniform):
    """Looks at the clock between the tries only."""
    answer = faulty_retry(attempt=lambda call, end: call())
    return await answer(call, attempts, base, cap, deadline, transient, uniform)


@wrong("3.1", NO_VAIN_WAIT)
async def retry_timeout_around_all(call, attempts, base, cap, deadline, transient, uniform):
    """The wait runs into the deadline, and the last error is lost."""
    tries = 0
    try:
        async with asyncio.timeout(deadline):
            while True:
                tries += 1
                try:
                    return await call()
                except transient:
                    if tries == attempts:
                        raise
                await asyncio.sleep(uniform(0, min(cap, base * 2 ** (tries - 1))))
    except Exception as error:
        error.add_note(f"after {tries} attempts")
        raise


@wrong("3.1", NO_VAIN_WAIT)
async def retry_sleeps_until_the_deadline(call, attempts, base, cap, deadline, transient, uniform):
    loop = asyncio.get_running_loop()
    end, tries, last = loop.time() + deadline, 0, None
    try:
        while True:
            tries += 1
            try:
                async with asyncio.timeout_at(end):
                    return await call()
            except transient as error:
                last = error
                if tries == attempts or loop.time() >= end:
                    raise
            await asyncio.sleep(min(uniform(0, min(cap, base * 2 ** (tries - 1))), end - loop.time()))
            if loop.time() >= end:
                raise last
    except Exception as error:
        error.add_note(f"after {tries} attempts")
        raise


@wrong("3.1", "retries while there is time")
async def retry_compares_the_limit(call, attempts, base, cap, deadline, transient, uniform):
    loop = asyncio.get_running_loop()
    end, tries = loop.time() + deadline, 0
    try:
        while True:
            tries += 1
            limit = min(cap, base * 2 ** (tries - 1))
            try:
                async with asyncio.timeout_at(end):
                    return await call()
            except transient:
                if tries == attempts or loop.time() + limit >= end:
                    raise
            await asyncio.sleep(uniform(0, limit))
    except Exception as error:
        error.add_note(f"after {tries} attempts")
        raise


@wrong("3.1", IN_TIME)
async def retry_by_the_real_clock(call, attempts, base, cap, deadline, transient, uniform):
    end, real_end, tries = asyncio.get_running_loop().time() + deadline, time.monotonic() + deadline, 0
    try:
        while True:
            tries += 1
            try:
                async with asyncio.timeout_at(end):
                    return await call()
            except transient:
                wait = uniform(0, min(cap, base * 2 ** (tries - 1)))
                if tries == attempts or time.monotonic() + wait >= real_end:
                    raise
            await asyncio.sleep(wait)
    except Exception as error:
        error.add_note(f"after {tries} attempts")
        raise


@wrong("3.1", "leaves no task behind")
async def retry_drops_the_last_try(call, attempts, base, cap, deadline, transient, uniform):
    async def attempt(call, end):
        task = asyncio.ensure_future(call())
        try:
            async with asyncio.timeout_at(end):
                return await asyncio.shield(task)
        finally:
            task.cancel()

    return await faulty_retry(attempt=attempt)(call, attempts, base, cap, deadline, transient, uniform)


@wrong("3.1", LAST)
async def retry_returns_none(call, attempts, base, cap, deadline, transient, uniform):
    for number in range(attempts):
        with contextlib.suppress(*transient):
            return await call()
        if number + 1 < attempts:
            await asyncio.sleep(uniform(0, min(cap, base * 2**number)))


@wrong("3.1", LAST)
async def retry_raises_the_first_error(call, attempts, base, cap, deadline, transient, uniform):
    first = []

    async def noted():
        try:
            return await call()
        except transient as error:
            first.append(error)
            raise

    try:
        return await retry(noted, attempts, base, cap, deadline, transient, uniform)
    except transient as error:
        first[0].add_note(error.__notes__[0])
        raise first[0] from None


@wrong("3.1", LAST)
async def retry_wraps_the_error(call, attempts, base, cap, deadline, transient, uniform):
    try:
        return await retry(call, attempts, base, cap, deadline, transient, uniform)
    except transient as error:
        raise RuntimeError(f"after {attempts} attempts") from error


@wrong("3.1", BETWEEN)
async def retry_waits_after_the_last(call, attempts, base, cap, deadline, transient, uniform):
    for number in range(attempts):
        try:
            return await asyncio.wait_for(call(), deadline)
        except transient as error:
            last = error
        await asyncio.sleep(uniform(0, min(cap, base * 2**number)))
    last.add_note(f"after {attempts} attempts")
    raise last


@wrong("3.1", BETWEEN)
async def retry_waits_first(call, attempts, base, cap, deadline, transient, uniform):
    await asyncio.sleep(uniform(0, base))
    return await retry(call, attempts, base, cap, deadline, transient, uniform)


@wrong("3.1", "retries until the call succeeds")
async def retry_what_is_false(call, attempts, base, cap, deadline, transient, uniform):
    for number in range(attempts):
        with contextlib.suppress(*transient):
            if value := await call():
                return value
        await asyncio.sleep(uniform(0, min(cap, base * 2**number)))


@wrong("3.1", DRAWS)
async def retry_draws_once(call, attempts, base, cap, deadline, transient, uniform):
    share = uniform(0, 1)
    return await retry(call, attempts, base, cap, deadline, transient, lambda low, high: low + share * (high - low))


@wrong("3.1", "retries until the call succeeds")
async def retry_never(call, attempts, base, cap, deadline, transient, uniform):
    return await call()


# --- 3.2 a retry budget --------------------------------------------------------------------------

BOUND = "any 10 s: at most 10 retries + 1 for ten requests"
RARE = "rare failures get their retries"
SPENDS = "spends what the requests pay for"
FORGETS = "forgets after 10 s"


@stub("3.2")
class RetryBudgetStub:
    def __init__(self):
        raise NotImplementedError

    def request(self):
        raise NotImplementedError

    def take(self):
        raise NotImplementedError


@right("3.2")
class RetryBudget:
    """A balance that is never over 10, and full again after 10 s without a retry."""

    def __init__(self):
        self.tokens, self.last = 10.0, -math.inf

    def request(self):
        self.tokens = min(10.0, self.tokens + 0.1)

    def take(self):
        now = asyncio.get_running_loop().time()
        if now - self.last >= 10:
            self.tokens = 10.0
        if self.tokens < 1:
            return False
        self.tokens -= 1
        self.last = now
        return True


@right("3.2")
class RetryBudgetOfWindows:
    """Counts requests and retries of the last 10 s."""

    def __init__(self):
        self.requests, self.retries = collections.deque(), collections.deque()

    def request(self):
        self.requests.append(asyncio.get_running_loop().time())

    def take(self):
        now = asyncio.get_running_loop().time()
        for times in (self.requests, self.retries):
            while times and times[0] <= now - 10:
                times.popleft()
        allowed = len(self.retries) < 10 + len(self.requests) // 10
        if allowed:
            self.retries.append(now)
        return allowed


@right("3.2")
class RetryBudgetWithIncome:
    """Half of the allowance is saved up, the other half comes in by the second."""

    def __init__(self):
        self.tenths, self.at = 50, None

    def _now(self):
        now = asyncio.get_running_loop().time()
        self.tenths = min(50, self.tenths + 5 * (now - (now if self.at is None else self.at)))
        self.at = now

    def request(self):
        self._now()
        self.tenths = min(50, self.tenths + 1)

    def take(self):
        self._now()
        if self.tenths < 10:
            return False
        self.tenths -= 10
        return True


@wrong("3.2", BOUND)
class RetryBudgetPerCall:
    """Two retries for every request, however many fail."""

    def __init__(self):
        self.left = 0

    def request(self):
        self.left = 2

    def take(self):
        self.left -= 1
        return self.left >= 0


@wrong("3.2", BOUND)
class RetryBudgetAlways(RetryBudget):
    def take(self):
        return super().take() or True


@wrong("3.2", RARE)
class RetryBudgetNever(RetryBudget):
    def take(self):
        return super().take() and False


@wrong("3.2", RARE)
class RetryBudgetEmptyAtFirst(RetryBudgetOfWindows):
    """Ten per cent, and not one more: the first failures get nothing."""

    def take(self):
        allowed = 10 * (len(self.retries) + 1) <= len(self.requests)
        if allowed:
            self.retries.append(0)
        return allowed


@wrong("3.2", RARE)
class RetryBudgetOneRetry(RetryBudget):
    """One retry per request, so two attempts."""

    def request(self):
        super().request()
        self.tried = False

    def take(self):
        if self.tried:
            return False
        self.tried = True
        return super().take()


class Savings:
    """A balance without an upper bound; ``income`` tokens per second, one tenth per request."""

    income, most = 0.0, math.inf

    def __init__(self):
        self.tokens, self.at, self.last = 5.0, asyncio.get_running_loop().time(), -math.inf

    def request(self):
        self.tokens = min(self.most, self.tokens + 0.1)

    def take(self):
        now = asyncio.get_running_loop().time()
        self.tokens = min(self.most, self.tokens + self.income * (now - self.at))
        self.at = now
        if now - self.last >= 10:
            self.tokens = max(self.tokens, 5.0)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        self.last = now
        return True


@wrong("3.2", "a busy past pays for nothing")
class RetryBudgetUnlimited(Savings):
    def request(self):
        self.tokens += 0.1


@wrong("3.2", "a quiet past pays for nothing")
class RetryBudgetSavesTime(Savings):
    def __init__(self):
        super().__init__()
        self.income = 0.2


@wrong("3.2", BOUND)
class RetryBudgetPaidByFailures(RetryBudget):
    """The failure pays, not the request."""

    def request(self):
        pass

    def take(self):
        self.tokens = min(10, self.tokens + 0.5)
        return super().take()


@wrong("3.2", BOUND)
class RetryBudgetOfFixedWindows:
    """Counts from 0 again at 10, 20, 30 s."""

    def __init__(self):
        self.window = -1

    def _turn(self):
        window = asyncio.get_running_loop().time() // 10
        if window != self.window:
            self.window, self.requests, self.retries = window, 0, 0

    def request(self):
        self._turn()
        self.requests += 1

    def take(self):
        self._turn()
        if self.retries >= 10 + self.requests // 10:
            return False
        self.retries += 1
        return True


@wrong("3.2", BOUND)
class RetryBudgetTwenty(RetryBudget):
    def request(self):
        self.tokens = min(10.0, self.tokens + 0.2)


@wrong("3.2", BOUND)
class RetryBudgetBigBurst(Savings):
    def __init__(self):
        super().__init__()
        self.tokens = self.most = 100


@wrong("3.2", BOUND)
class RetryBudgetHalfPrice(RetryBudget):
    def take(self):
        if allowed := super().take():
            self.tokens += 0.5
        return allowed


@wrong("3.2", SPENDS)
class RetryBudgetCountsRefusals(RetryBudgetOfWindows):
    def take(self):
        if not (allowed := super().take()):
            self.retries.append(asyncio.get_running_loop().time())
        return allowed


@wrong("3.2", SPENDS)
class RetryBudgetOneBurst(RetryBudget):
    """Requests pay for nothing."""

    def request(self):
        self.tokens += 0


@wrong("3.2", FORGETS)
class RetryBudgetWithoutClock(RetryBudget):
    """After a storm it stays empty until many requests have come."""

    def take(self):
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@wrong("3.2", FORGETS)
class RetryBudgetByTheRealClock(RetryBudget):
    def take(self):
        if time.monotonic() - self.last >= 10:
            self.tokens = 10.0
        if self.tokens < 1:
            return False
        self.tokens -= 1
        self.last = time.monotonic()
        return True


@wrong("3.2", "each budget has its own counts")
class RetryBudgetShared(RetryBudget):
    def __init__(self):
        pass

    tokens, last = 10.0, -math.inf

    def request(self):
        RetryBudgetShared.tokens = min(10.0, self.tokens + 0.1)

    def take(self):
        now = asyncio.get_running_loop().time()
        if now < RetryBudgetShared.last or now - self.last >= 10:  # a new loop begins at 0
            RetryBudgetShared.tokens = 10.0
        if self.tokens < 1:
            return False
        RetryBudgetShared.tokens -= 1
        RetryBudgetShared.last = now
        return True


@wrong("3.2", "request() and take() are plain methods")
class RetryBudgetAsync(RetryBudget):
    async def take(self):
        return super().take()


@wrong("3.2", "take() says True or False")
class RetryBudgetTellsTheRest(RetryBudget):
    def take(self):
        return self.tokens if super().take() else 0


@wrong("3.2", "runs without an error")
class RetryBudgetRaises(RetryBudget):
    def take(self):
        if not super().take():
            raise RuntimeError("no budget")
        return True


# --- 3.3 a deadline with a name ------------------------------------------------------------------

EXPIRES = "raises TimeoutError at the deadline"
NAMES = "names the scope that expired"
UNTOUCHED = "leaves a body alone that ends in time"
BALANCED = "leaves cancelling() as it was"
OUTER_CANCEL = "an outer cancel is no timeout"
ONLY_ITS_OWN = "only the scope that expired raises TimeoutError"
BODY_ERROR = "lets an error of the body out"
NESTED = "nested deadlines: the earliest counts"


@stub("3.3")
@contextlib.asynccontextmanager
async def deadline_stub(seconds, name):
    raise NotImplementedError
    yield


@stub("3.3")
class DeadlineStub:
    def __init__(self, seconds, name):
        raise NotImplementedError


@right("3.3")
@contextlib.asynccontextmanager
async def deadline(seconds, name):
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise TimeoutError(f"{name}: not done within {seconds} s") from error


@right("3.3")
class DeadlineOfTwoParts:
    """asyncio.timeout inside a class."""

    def __init__(self, seconds, name):
        self.scope, self.name = asyncio.timeout(seconds), name

    async def __aenter__(self):
        return await self.scope.__aenter__()

    async def __aexit__(self, kind, error, traceback):
        try:
            return await self.scope.__aexit__(kind, error, traceback)
        except TimeoutError as timeout:
            timeout.args = (f"the deadline of {self.name} has passed",)
            raise


@right("3.3")
class DeadlineByHand:
    """A timer, one cancel and one uncancel."""

    def __init__(self, seconds, name):
        self.seconds, self.name, self.expired = seconds, name, False

    async def __aenter__(self):
        self.task, loop = asyncio.current_task(), asyncio.get_running_loop()
        self.before = self.task.cancelling()
        set_timer = loop.call_later if self.seconds > 0 else lambda _, fire: loop.call_soon(fire)
        self.timer = set_timer(self.seconds, self._fire)
        return self

    def _fire(self):
        self.expired = True
        self.task.cancel()

    async def __aexit__(self, kind, error, traceback):
        self.timer.cancel()
        if self.expired and self.task.uncancel() <= self.before and kind is asyncio.CancelledError:
            raise TimeoutError(self.name) from error


@right("3.3")
@contextlib.asynccontextmanager
async def deadline_not_later_than_the_outer(seconds, name, current=contextvars.ContextVar("end", default=math.inf)):  # noqa: B008
    """Sets no timer that an outer one comes before."""
    end = asyncio.get_running_loop().time() + seconds
    own = end < current.get()
    token = current.set(min(end, current.get()))
    try:
        async with asyncio.timeout_at(end if own else None) as scope:
            yield end
    except TimeoutError as error:
        raise (TimeoutError(name) if scope.expired() else error) from None
    finally:
        current.reset(token)


@wrong("3.3", BODY_ERROR)
@contextlib.asynccontextmanager
async def deadline_any_cancel(seconds, name):
    try:
        async with asyncio.timeout(seconds):
            yield
    except asyncio.CancelledError:
        raise TimeoutError(name) from None


class Faulty(DeadlineByHand):
    """The base of what is wrong with timers and counts."""


@wrong("3.3", OUTER_CANCEL)
class DeadlineAnyCancelAfterExpiry(Faulty):
    """Expired, and a CancelledError came: somebody else may have sent it."""

    async def __aexit__(self, kind, error, traceback):
        self.timer.cancel()
        if self.expired:
            self.task.uncancel()
            if kind is asyncio.CancelledError:
                raise TimeoutError(self.name)


@wrong("3.3", OUTER_CANCEL)
class DeadlineClearsAllCancels(Faulty):
    async def __aexit__(self, kind, error, traceback):
        self.timer.cancel()
        if self.expired:
            while self.task.uncancel():
                pass
            if kind is asyncio.CancelledError:
                raise TimeoutError(self.name)


@wrong("3.3", BODY_ERROR)
@contextlib.asynccontextmanager
async def deadline_relabels(seconds, name):
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(name) from None


@wrong("3.3", NAMES)
def deadline_without_a_name(seconds, name):
    return asyncio.timeout(seconds)


@wrong("3.3", NAMES)
@contextlib.asynccontextmanager
async def deadline_names_the_innermost(seconds, name, names=[]):  # noqa: B006
    names.append(name)
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
        names.pop()
    except TimeoutError as error:
        raise (TimeoutError(names[-1]) if scope.expired() else error) from None
    finally:
        if scope.expired():
            names.clear()


@wrong("3.3", NAMES)
@contextlib.asynccontextmanager
async def deadline_names_all(seconds, name, path=contextvars.ContextVar("path", default="")):  # noqa: B008
    token = path.set(path.get() + "/" + name)
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError as error:
        raise (TimeoutError(path.get()) if scope.expired() else error) from None
    finally:
        path.reset(token)


@wrong("3.3", BALANCED)
class DeadlineWithoutUncancel(Faulty):
    async def __aexit__(self, kind, error, traceback):
        self.timer.cancel()
        if self.expired and kind is asyncio.CancelledError and self.task.cancelling() == self.before + 1:
            raise TimeoutError(self.name)


@wrong("3.3", BALANCED)
class DeadlineUncancelsOnTimeoutOnly(Faulty):
    """What if the body's cleanup failed?"""

    async def __aexit__(self, kind, error, traceback):
        self.timer.cancel()
        if self.expired and kind is asyncio.CancelledError and self.task.uncancel() <= self.before:
            raise TimeoutError(self.name)


@wrong("3.3", "works in a task that was cancelled before")
class DeadlineExpectsZero(Faulty):
    async def __aexit__(self, kind, error, traceback):
        self.timer.cancel()
        if self.expired and self.task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError(self.name)


@wrong("3.3", "cancels nothing after the block")
class DeadlineForgetsItsTimer(Faulty):
    async def __aexit__(self, kind, error, traceback):
        if self.expired and self.task.uncancel() <= self.before and kind is asyncio.CancelledError:
            raise TimeoutError(self.name)


@wrong("3.3", "lets the body clean up")
class DeadlineImpatient(Faulty):
    """Cancels again and again, until the body has gone."""

    def _fire(self):
        if self.task.cancelling() == self.before:
            super()._fire()
        else:
            self.task.cancel()
            self.task.uncancel()
        self.timer = asyncio.get_running_loop().call_later(0.01, self._fire)


@wrong("3.3", EXPIRES)
@contextlib.asynccontextmanager
async def deadline_looks_at_the_end(seconds, name):
    end = asyncio.get_running_loop().time() + seconds
    yield
    if asyncio.get_running_loop().time() > end:
        raise TimeoutError(name)


@wrong("3.3", EXPIRES)
@contextlib.asynccontextmanager
async def deadline_silent(seconds, name):
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise


@wrong("3.3", EXPIRES)
@contextlib.asynccontextmanager
async def deadline_raises_its_own_kind(seconds, name):
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError as error:
        raise (RuntimeError(name) if scope.expired() else error) from None


@wrong("3.3", BODY_ERROR)
@contextlib.asynccontextmanager
async def deadline_suppresses(seconds, name):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds) as scope:
            yield
    if scope.expired():
        raise TimeoutError(name)


@wrong("3.3", EXPIRES)
@contextlib.asynccontextmanager
async def deadline_by_the_real_clock(seconds, name):
    async with asyncio.timeout_at(time.monotonic() + 1e6 + seconds):
        yield


@wrong("3.3", NESTED)
@contextlib.asynccontextmanager
async def deadline_extended_by_the_inner(seconds, name, current=contextvars.ContextVar("scope", default=None)):  # noqa: B008
    """One timer for all: the inner deadline moves it."""
    outer, end = current.get(), asyncio.get_running_loop().time() + seconds
    if outer is not None:
        before = outer.when()
        outer.reschedule(end)
        try:
            yield
        finally:
            if not outer.expired():
                outer.reschedule(before)
        return
    try:
        async with asyncio.timeout_at(end) as scope:
            token = current.set(scope)
            try:
                yield
            finally:
                current.reset(token)
    except TimeoutError as error:
        raise (TimeoutError(name) if scope.expired() else error) from None


@wrong("3.3", NESTED)
@contextlib.asynccontextmanager
async def deadline_replaces_the_outer(seconds, name, current=contextvars.ContextVar("scope", default=None)):  # noqa: B008
    """The inner deadline counts, and no other."""
    outer = current.get()
    try:
        async with asyncio.timeout(seconds) as scope:
            if outer is not None:
                outer.reschedule(None)
            token = current.set(scope)
            try:
                yield
            finally:
                current.reset(token)
    except TimeoutError as error:
        raise (TimeoutError(name) if scope.expired() else error) from None


@wrong("3.3", ONLY_ITS_OWN)
@contextlib.asynccontextmanager
async def deadline_takes_the_minimum(seconds, name, current=contextvars.ContextVar("end", default=(math.inf, ""))):  # noqa: B008
    """The inner scope expires for the outer one, and its caller takes it for its own timeout."""
    own = (asyncio.get_running_loop().time() + seconds, name)
    token = current.set(min(own, current.get()))
    try:
        async with asyncio.timeout_at(current.get()[0]) as scope:
            yield
    except asyncio.CancelledError:
        if asyncio.get_running_loop().time() < current.get()[0] or asyncio.current_task().cancelling() > 1:
            raise
        raise TimeoutError(current.get()[1]) from None
    except TimeoutError as error:
        raise (TimeoutError(current.get()[1]) if scope.expired() else error) from None
    finally:
        current.reset(token)


@wrong("3.3", "leaves no task behind")
@contextlib.asynccontextmanager
async def deadline_watchdog(seconds, name):
    async def watch():
        await asyncio.sleep(max(0, seconds))
        expired.append(task.cancel())

    task, expired = asyncio.current_task(), []
    before, watcher = task.cancelling(), asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not expired or task.uncancel() > before:
            raise
        raise TimeoutError(name) from None
    finally:
        watcher.cancel()


@wrong("3.3", "a deadline in the past expires at once")
@contextlib.asynccontextmanager
async def deadline_zero_is_none(seconds, name):
    async with deadline(seconds if seconds > 0 else 1e6, name):
        yield


@wrong("3.3", "tasks side by side keep apart")
@contextlib.asynccontextmanager
async def deadline_one_at_a_time(seconds, name, names={}):  # noqa: B006
    """Remembers the name by the seconds, for all tasks."""
    names["last" if seconds != 1 else 1] = name
    try:
        async with deadline(seconds, name):
            yield
    except TimeoutError as error:
        if str(error).startswith(name) and seconds in (3, 2) and len(asyncio.all_tasks()) > 3:
            raise TimeoutError(names["last"]) from None
        raise


@wrong("3.3", "is an async context manager")
@contextlib.contextmanager
def deadline_not_async(seconds, name):
    yield


@wrong("3.3", "is an async context manager")
async def deadline_without_the_decorator(seconds, name):
    async with asyncio.timeout(seconds):
        return


# --- 3.4 a circuit breaker -----------------------------------------------------------------------

OPENS = "opens at the last failure allowed, and not before"
FAST = "an open breaker refuses at once, without a call"
WINDOW = "forgets failures older than the window"
ONE_PROBE = "one probe at a time"
SLOW_PROBE = "refuses the others while a slow probe runs"
REOPENS = "a probe that fails opens it for a fresh cooldown"
CANCELLED = "a cancelled call is no failure"
STUCK = "a cancelled probe leaves the next call to probe"
OLD = "a call counts only in the state in which it began"


@stub("3.4")
class BreakerStub:
    def __init__(self, failures, window, cooldown):
        raise NotImplementedError

    async def call(self, fn):
        raise NotImplementedError


@right("3.4")
class Breaker:
    def __init__(self, failures, window, cooldown):
        self.failures, self.window, self.cooldown = failures, window, cooldown
        self.failed, self.opened, self.probing, self.period = collections.deque(), None, False, 0

    def _change(self, opened):
        self.opened, self.probing = opened, False
        self.period += 1
        self.failed.clear()

    def _now(self):
        return asyncio.get_running_loop().time()

    def _refuses(self):
        return self.opened is not None and (self.probing or self._now() - self.opened < self.cooldown)

    def _failure(self):
        now = self._now()
        self.failed.append(now)
        while self.failed[0] <= now - self.window:
            self.failed.popleft()
        if self.opened is not None or len(self.failed) >= self.failures:
            self._change(now)

    async def call(self, fn):
        if self._refuses():
            raise BreakerOpen("open")
        period, probe = self.period, self.opened is not None
        self.probing = probe
        try:
            value = await fn()
        except Exception:
            if period == self.period:
                self._failure()
            raise
        else:
            if probe:
                self._change(None)
            return value
        finally:
            if probe and period == self.period:
                self.probing = False


@right("3.4")
class BreakerOfStates:
    """Every state is an object of its own, and a call reports to the one in which it began."""

    class State:
        def __init__(self, kind, failures=()):
            self.kind, self.failures = kind, list(failures)

    def __init__(self, failures, window, cooldown):
        self.limit, self.window, self.cooldown = failures, window, cooldown
        self.state = self.State("closed")

    def _open(self):
        opened = self.state = self.State("open")
        asyncio.get_running_loop().call_later(self.cooldown, self._half_open, opened)

    def _half_open(self, opened):
        if self.state is opened:
            self.state = self.State("half-open")

    async def call(self, fn):
        state = self.state
        if state.kind in ("open", "probing"):
            raise BreakerOpen
        if state.kind == "half-open":
            state.kind = "probing"
        try:
            result = await fn()
        except asyncio.CancelledError:
            if state.kind == "probing":
                state.kind = "half-open"
            raise
        except Exception:
            now = asyncio.get_running_loop().time()
            state.failures = [at for at in state.failures if at > now - self.window] + [now]
            if self.state is state and (state.kind == "probing" or len(state.failures) >= self.limit):
                self._open()
            raise
        if self.state is state and state.kind == "probing":
            self.state = self.State("closed")
        return result


@right("3.4")
class BreakerWithProbeTask:
    """The probe is a task that is kept; who began before the last change has no vote."""

    def __init__(self, failures, window, cooldown):
        self.recent = collections.deque(maxlen=failures)
        self.window, self.cooldown = window, cooldown
        self.until, self.changed, self.probe = None, -1, None
        self.clock = 0

    async def call(self, fn):
        loop, self.clock = asyncio.get_running_loop(), self.clock + 1
        begun, is_probe = self.clock, self.until is not None
        if is_probe:
            if loop.time() < self.until or (self.probe and not self.probe.done()):
                raise BreakerOpen(f"until {self.until}")
            self.probe = asyncio.ensure_future(fn())
        try:
            if not is_probe:
                result = await fn()
            else:
                try:
                    result = await self.probe
                finally:
                    self.probe.cancel()
                    await asyncio.wait([self.probe])
        except Exception:
            if begun > self.changed:
                self._failed(loop.time(), is_probe)
            raise
        if is_probe and begun > self.changed:
            self.until, self.changed = None, self.clock
        return result

    def _failed(self, now, is_probe):
        self.recent.append(now)
        full = len(self.recent) == self.recent.maxlen and self.recent[0] > now - self.window
        if is_probe or full:
            self.until, self.changed = now + self.cooldown, self.clock
            self.recent.clear()


@wrong("3.4", ONE_PROBE)
class BreakerManyProbes(Breaker):
    def _refuses(self):
        self.probing = False
        return super()._refuses()


@wrong("3.4", SLOW_PROBE)
class BreakerProbeEachCooldown(Breaker):
    """Another probe whenever a cooldown has passed, whatever the last one does."""

    def _refuses(self):
        now = self._now()
        if self.opened is None or now - self.opened < self.cooldown:
            return self.opened is not None
        if now - getattr(self, "probed", -1e9) < self.cooldown:
            return True
        self.probed = now
        return False


@wrong("3.4", ONE_PROBE)
class BreakerWaitsForTheProbe(Breaker):
    """The others stand in line behind the probe."""

    async def call(self, fn):
        while self.probing:
            await asyncio.sleep(0.3)
        return await super().call(fn)


@wrong("3.4", CANCELLED)
class BreakerCountsCancelled(Breaker):
    async def call(self, fn):
        try:
            return await super().call(fn)
        except asyncio.CancelledError:
            self._failure()
            raise


@wrong("3.4", STUCK)
class BreakerStuckProbe(Breaker):
    async def call(self, fn):
        if self._refuses():
            raise BreakerOpen
        period, probe = self.period, self.opened is not None
        self.probing = probe
        try:
            value = await fn()
        except Exception:
            if period == self.period:
                self._failure()
            raise
        if probe:
            self._change(None)
        return value


@wrong("3.4", STUCK)
class BreakerCancelledProbeReopens(Breaker):
    async def call(self, fn):
        try:
            return await super().call(fn)
        except asyncio.CancelledError:
            if self.opened is not None:
                self._change(self._now())
            raise


@wrong("3.4", "passes a cancellation on")
class BreakerSwallowsCancel(Breaker):
    async def call(self, fn):
        with contextlib.suppress(asyncio.CancelledError):
            return await super().call(fn)


@wrong("3.4", WINDOW)
class BreakerRealClock(Breaker):
    def _now(self):
        return time.monotonic()


@wrong("3.4", WINDOW)
class BreakerWithoutWindow(Breaker):
    def __init__(self, failures, window, cooldown):
        super().__init__(failures, math.inf, cooldown)


@wrong("3.4", OPENS)
class BreakerConsecutive(Breaker):
    """A success forgives all failures."""

    async def call(self, fn):
        value = await super().call(fn)
        self.failed.clear()
        return value


@wrong("3.4", OPENS)
class BreakerOneTooLate(Breaker):
    def __init__(self, failures, window, cooldown):
        super().__init__(failures + 1, window, cooldown)


@wrong("3.4", OPENS)
class BreakerTooEager(Breaker):
    def __init__(self, failures, window, cooldown):
        super().__init__(max(1, failures - 1), window, cooldown)


@wrong("3.4", OPENS)
class BreakerNeverOpens(Breaker):
    async def call(self, fn):
        return await fn()


@wrong("3.4", FAST)
class BreakerCallsAnyway(Breaker):
    async def call(self, fn):
        if self._refuses():
            with contextlib.suppress(Exception):
                await fn()
        return await super().call(fn)


@wrong("3.4", FAST)
class BreakerSlowRefusal(Breaker):
    async def call(self, fn):
        if self._refuses():
            await asyncio.sleep(0.1)
        return await super().call(fn)


@wrong("3.4", "probes after the cooldown")
class BreakerNeverProbes(Breaker):
    def _refuses(self):
        return self.opened is not None


@wrong("3.4", "probes after the cooldown")
class BreakerRefusalsExtend(Breaker):
    """Every refusal begins the cooldown again."""

    def _refuses(self):
        if refused := super()._refuses():
            self.opened = self._now()
        return refused


@wrong("3.4", "a probe that succeeds closes it")
class BreakerStaysHalfOpen(Breaker):
    def _change(self, opened):
        super()._change(self._now() if opened is None else opened)


@wrong("3.4", "closed again, it counts from 0")
class BreakerKeepsTheCount(Breaker):
    def _change(self, opened):
        self.opened, self.probing = opened, False
        self.period += 1


@wrong("3.4", REOPENS)
class BreakerOldCooldown(Breaker):
    """A probe that fails changes nothing: the old cooldown is over, so the next call goes too."""

    def _failure(self):
        if self.opened is None:
            super()._failure()


@wrong("3.4", REOPENS)
class BreakerProbeCountsToTheLimit(Breaker):
    """Closes to probe: half-open is only closed with another name."""

    def _refuses(self):
        if self.opened is not None and not super()._refuses() and len(asyncio.all_tasks()) < 30:
            self._change(None)
        return super()._refuses()


@wrong("3.4", OLD)
class BreakerOldCallsVote(Breaker):
    """Any success closes, any failure opens anew."""

    async def call(self, fn):
        if self._refuses():
            raise BreakerOpen
        self.probing = probe = self.opened is not None
        try:
            value = await fn()
        except Exception:
            self._failure()
            raise
        else:
            if self.opened is not None:
                self._change(None)
            return value
        finally:
            if probe:
                self.probing = False


@wrong("3.4", OLD)
class BreakerOldFailuresExtend(Breaker):
    """Failures of calls from before the opening begin the cooldown again."""

    async def call(self, fn):
        try:
            return await super().call(fn)
        except ConnectionError:
            if self.opened is not None:
                self.opened = self._now()
            raise


@wrong("3.4", OLD)
class BreakerOldCallUnmarksTheProbe(Breaker):
    async def call(self, fn):
        try:
            return await super().call(fn)
        except BreakerOpen:
            raise
        except BaseException:
            self.probing = False
            raise


@wrong("3.4", OLD)
class BreakerOldFailuresAfterClosing(Breaker):
    """Looks whether it is open, and not whether it is the same period."""

    async def call(self, fn):
        if self._refuses():
            raise BreakerOpen
        probe = self.opened is not None
        self.probing = probe
        try:
            value = await fn()
        except Exception:
            if probe or self.opened is None:
                self._failure()
            raise
        else:
            if probe:
                self._change(None)
            return value
        finally:
            if probe:
                self.probing = False


@wrong("3.4", "closed, it holds nobody up")
class BreakerWithALock(Breaker):
    def __init__(self, failures, window, cooldown):
        super().__init__(failures, window, cooldown)
        self.lock = asyncio.Lock()

    async def call(self, fn):
        async with self.lock:
            return await super().call(fn)


@wrong("3.4", "each breaker has its own state")
class BreakerShared(Breaker):
    shared = {}

    def __init__(self, failures, window, cooldown):
        super().__init__(failures, window, cooldown)
        loop = id(asyncio.get_running_loop())
        if BreakerShared.shared.get("loop") is not asyncio.get_running_loop() or loop is None:
            BreakerShared.shared = {"loop": asyncio.get_running_loop()}
        others = BreakerShared.shared.setdefault(failures, self)
        if others.opened is None and not others.period:
            self.__dict__ = others.__dict__


@wrong("3.4", "a call's value or error comes out unchanged")
class BreakerWrapsErrors(Breaker):
    async def call(self, fn):
        try:
            return await super().call(fn)
        except ConnectionError as error:
            raise RuntimeError("failed") from error


@wrong("3.4", "a call's value or error comes out unchanged")
class BreakerDropsTheValue(Breaker):
    async def call(self, fn):
        await super().call(fn)


@wrong("3.4", "a call's value or error comes out unchanged")
class BreakerHidesErrors(Breaker):
    async def call(self, fn):
        with contextlib.suppress(ConnectionError):
            return await super().call(fn)


@wrong("3.4", "runs without an error")
class BreakerOtherError(Breaker):
    async def call(self, fn):
        try:
            return await super().call(fn)
        except BreakerOpen:
            raise RuntimeError("open") from None


# --- 3.5 hedge -----------------------------------------------------------------------------------

SECOND = "the second call starts after delay"
NO_NEED = "no second call without need"
WINS = "the first success wins"
OTHER = "waits for the other when one fails"
AT_ONCE = "an early failure comes out at once"
FIRST_ERROR = "both fail: raises the error of the first call"
LOSER = "cancels the loser and awaits it"


@stub("3.5")
async def hedge_stub(call, delay):
    raise NotImplementedError


def succeeded(task):
    return task.done() and not task.cancelled() and not task.exception()


@right("3.5")
async def hedge(call, delay):
    tasks = [asyncio.create_task(call())]
    try:
        done, pending = await asyncio.wait(tasks, timeout=delay)
        if pending:
            tasks.append(asyncio.create_task(call()))
            pending = tasks
        while pending and not any(map(succeeded, tasks)):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        return next(filter(succeeded, tasks), tasks[0]).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@right("3.5")
async def hedge_in_a_group(call, delay):
    """The winner cancels the other from inside a TaskGroup."""
    tasks, errors, answers, early = [], {}, [], asyncio.Event()

    async def attempt(number):
        try:
            if number:
                try:
                    async with asyncio.timeout(delay):
                        await early.wait()
                    return
                except TimeoutError:
                    pass
            answers.append(await call())
        except Exception as error:
            errors[number] = error
            if number or not answers:
                return
        finally:
            early.set()
            if answers:
                tasks[1 - number].cancel()

    async with asyncio.TaskGroup() as group:
        for number in range(2):
            tasks.append(group.create_task(attempt(number)))
    if answers:
        return answers[0]
    raise errors[0]


@right("3.5")
async def hedge_step_by_step(call, delay):
    first = asyncio.ensure_future(call())
    second = None
    try:
        try:
            async with asyncio.timeout(delay):
                return await asyncio.shield(first)
        except TimeoutError:
            if first.done():
                raise
        second = asyncio.ensure_future(call())
        await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        one, other = (first, second) if first.done() else (second, first)
        if one.exception():
            await asyncio.wait([other])
            one = first if other.exception() else other
        return one.result()
    finally:
        losers = [task for task in (first, second) if task and not task.done()]
        for task in losers:
            task.cancel()
        await asyncio.gather(*losers, return_exceptions=True)
        if second and second.done() and not second.cancelled():
            second.exception()


@wrong("3.5", NO_NEED)
async def hedge_always(call, delay):
    return await hedge(call, 0)


@wrong("3.5", SECOND)
async def hedge_never(call, delay):
    return await call()


@wrong("3.5", SECOND)
async def hedge_late(call, delay):
    return await hedge(call, 1.1 * delay)


@wrong("3.5", NO_NEED)
async def hedge_a_fast_failure(call, delay):
    try:
        async with asyncio.timeout(delay):
            return await call()
    except Exception:
        return await call()


@wrong("3.5", SECOND)
async def hedge_starts_over(call, delay):
    """Cancels the first call instead of keeping both."""
    try:
        async with asyncio.timeout(delay):
            return await call()
    except TimeoutError:
        return await call()


async def raced(call, delay, *, when=asyncio.FIRST_COMPLETED):
    tasks = [asyncio.create_task(call())]
    _, pending = await asyncio.wait(tasks, timeout=delay)
    if pending:
        tasks.append(asyncio.create_task(call()))
        await asyncio.wait(tasks, return_when=when)
    return tasks


@wrong("3.5", LOSER)
async def hedge_without_cancel(call, delay):
    tasks = await raced(call, delay)
    return next(task for task in tasks if task.done()).result()


@wrong("3.5", LOSER)
async def hedge_cancel_without_await(call, delay):
    tasks = await raced(call, delay)
    for task in tasks:
        task.cancel()
    return next(task for task in tasks if task.done()).result()


@wrong("3.5", WINS)
async def hedge_awaits_the_loser(call, delay):
    """Lets the loser run to its end."""
    tasks = await raced(call, delay, when=asyncio.ALL_COMPLETED)
    return min(tasks, key=lambda task: task.exception() is not None).result()


@wrong("3.5", OTHER)
async def hedge_first_completed(call, delay):
    """The first to end wins, be it with an error."""
    tasks = []
    try:
        tasks += await raced(call, delay)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@wrong("3.5", FIRST_ERROR)
async def hedge_last_error(call, delay):
    errors = []

    async def noted():
        try:
            return await call()
        except Exception as error:
            errors.append(error)
            raise

    try:
        return await hedge(noted, delay)
    except Exception:
        raise errors[-1] from None


@wrong("3.5", FIRST_ERROR)
async def hedge_error_in_time(call, delay):
    """The error that came first, not that of the first call."""
    errors = []

    async def noted():
        try:
            return await call()
        except Exception as error:
            errors.append(error)
            raise

    try:
        return await hedge(noted, delay)
    except Exception:
        raise errors[0] from None


@wrong("3.5", AT_ONCE)
async def hedge_wraps_the_error(call, delay):
    try:
        return await hedge(call, delay)
    except Exception as error:
        raise ExceptionGroup("both failed", [error]) from None


@wrong("3.5", AT_ONCE)
async def hedge_returns_the_error(call, delay):
    try:
        return await hedge(call, delay)
    except Exception as error:
        return str(error)


@wrong("3.5", AT_ONCE)
async def hedge_failure_waits_for_delay(call, delay):
    start = asyncio.get_running_loop().time()
    try:
        return await hedge(call, delay)
    except Exception:
        await asyncio.sleep(max(0, start + delay - asyncio.get_running_loop().time()))
        raise


@wrong("3.5", WINS)
async def hedge_what_is_none(call, delay):
    """None from one call is taken for no answer yet."""
    tasks = [asyncio.create_task(call())]
    try:
        await asyncio.wait(tasks, timeout=delay)
        if tasks[0].done():
            return tasks[0].result()
        tasks.append(asyncio.create_task(call()))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done() and not task.exception() and task.result() is not None:
                return task.result()
        await asyncio.wait(tasks)
        return next(filter(succeeded, tasks), tasks[0]).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@wrong("3.5", "loses no error")
async def hedge_loses_the_error(call, delay):
    """Waits for the loser, and never looks at what it raised."""
    tasks = [asyncio.create_task(call())]
    try:
        _, pending = await asyncio.wait(tasks, timeout=delay)
        if pending:
            tasks.append(asyncio.create_task(call()))
        while pending and not any(map(succeeded, tasks)):
            pending = [task for task in tasks if not task.done()]
            if pending:
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        return next(filter(succeeded, tasks), tasks[0]).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@wrong("3.5", "runs without an error")
async def hedge_fails_with_the_loser(call, delay):
    """The loser's cleanup fails, and the answer is lost."""
    tasks = [asyncio.create_task(call())]
    try:
        _, pending = await asyncio.wait(tasks, timeout=delay)
        if pending:
            tasks.append(asyncio.create_task(call()))
            pending = tasks
        while pending and not any(map(succeeded, tasks)):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        return next(filter(succeeded, tasks), tasks[0]).result()
    finally:
        for task in tasks:
            if task.cancel():
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            elif not task.cancelled():
                task.exception()


@wrong("3.5", "leaves no task behind")
async def hedge_cancelled_alone(call, delay):
    """Tidies up after a success, not after a cancellation."""
    tasks = []
    try:
        tasks.append(asyncio.create_task(call()))
        _, pending = await asyncio.wait(tasks, timeout=delay)
        if pending:
            tasks.append(asyncio.create_task(call()))
            pending = tasks
        while pending and not any(map(succeeded, tasks)):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        raise
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return next(filter(succeeded, tasks), tasks[0]).result()


@wrong("3.5", "leaves no task behind")
async def hedge_cancelled_while_it_tidies_up(call, delay):
    """asyncio.wait leaves its tasks alone when it is cancelled itself."""
    tasks = [asyncio.create_task(call())]
    try:
        _, pending = await asyncio.wait(tasks, timeout=delay)
        if pending:
            tasks.append(asyncio.create_task(call()))
            pending = tasks
        while pending and not any(map(succeeded, tasks)):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        return next(filter(succeeded, tasks), tasks[0]).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        [task.cancelled() or task.exception() for task in tasks]


@wrong("3.5", "passes a cancellation on")
async def hedge_swallows_cancel(call, delay):
    with contextlib.suppress(asyncio.CancelledError):
        return await hedge(call, delay)


@wrong("3.5", "no second call without need")
async def hedge_three_times(call, delay):
    return await hedge(lambda: hedge(call, delay / 2), delay)


@wrong("3.5", "awaits every coroutine")
async def hedge_prepares_the_second(call, delay):
    coroutines = [call(), call()]
    return await hedge(lambda: coroutines.pop(0), delay)


@wrong("3.5", "the first call starts at once")
async def hedge_sleeps_first(call, delay):
    await asyncio.sleep(0.1)
    return await hedge(call, delay)
