"""Breaker, retry budget, places, rate limit, and the cache with single flight: exact, on the virtual clock."""

import asyncio

import pytest

from support import simulate
from support.gateway.flight import FlightCache
from support.gateway.protect import Breaker, Bulkhead, CircuitOpen, Full, RateLimit, RetryBudget, Shedder


class Hand:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.leave(breaker.enter(), False)


def test_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 1.0, Hand())
    fail(breaker, 2)
    breaker.leave(breaker.enter(), True)
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen):
        breaker.enter()


def test_half_open_lets_one_probe_through_and_its_outcome_decides() -> None:
    clock = Hand()
    breaker = Breaker(1, 1.0, clock)
    fail(breaker)
    clock.now = 1.0
    probe = breaker.enter()
    for _ in range(3):
        with pytest.raises(CircuitOpen):
            breaker.enter()
    breaker.leave(probe, False)
    clock.now = 1.9
    with pytest.raises(CircuitOpen):  # the rest begins again
        breaker.enter()
    clock.now = 2.0
    breaker.leave(breaker.enter(), True)
    assert breaker.state == "closed" and breaker.enter() is not None


def test_a_probe_that_is_given_up_lets_the_next_one_try() -> None:
    clock = Hand()
    breaker = Breaker(1, 1.0, clock)
    fail(breaker)
    clock.now = 1.0
    breaker.leave(breaker.enter(), None)
    breaker.leave(breaker.enter(), True)
    assert breaker.state == "closed"


def test_a_call_from_before_the_opening_has_no_say() -> None:
    clock = Hand()
    breaker = Breaker(2, 1.0, clock)
    early, late = breaker.enter(), breaker.enter()
    fail(breaker, 2)
    breaker.leave(early, True)
    assert breaker.state == "open"
    clock.now = 1.0
    probe = breaker.enter()
    breaker.leave(late, False)
    with pytest.raises(CircuitOpen):  # the probe is still under way
        breaker.enter()
    breaker.leave(probe, True)
    assert breaker.state == "closed"


def test_retry_budget_keeps_extra_attempts_to_its_share() -> None:
    budget, taken = RetryBudget(0.1, start=0), 0
    for _ in range(1000):
        budget.pay_in()
        taken += budget.take()
    assert 99 <= taken <= 100  # sums of tenths


def test_retry_budget_does_not_save_up_a_storm() -> None:
    budget = RetryBudget(0.1, most=10)
    for _ in range(10_000):
        budget.pay_in()
    assert sum(budget.take() for _ in range(100)) == 10


@pytest.mark.parametrize("kind", [Bulkhead, Shedder])
def test_places_are_bounded_first_come_first_served_and_the_rest_is_refused_at_once(kind: type) -> None:
    async def main() -> None:
        places, done, peak = kind(2, 3), [], 0

        async def work(number: int) -> None:
            nonlocal peak
            async with places:
                peak = max(peak, places.inside)
                await asyncio.sleep(1)
                done.append((number, asyncio.get_running_loop().time()))

        tasks = [asyncio.create_task(work(number)) for number in range(7)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results[5:]] == [Full, Full] and results[:5] == [None] * 5
        assert done == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 3.0)]
        assert (peak, places.inside, places.waiting) == (2, 0, 0)

    simulate(main)


def test_places_survive_a_cancellation_at_any_moment() -> None:
    async def main(step: int) -> None:
        places = Bulkhead(1, 5)

        async def work(seconds: float) -> None:
            async with places:
                await asyncio.sleep(seconds)

        tasks = [asyncio.create_task(work(0.2)) for _ in range(4)]
        for _ in range(step):  # also in the turn in which a place was handed over, but not yet taken
            await asyncio.sleep(0.2 if _ % 3 == 0 else 0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (places.inside, places.waiting) == (0, 0)
        assert [task.cancelled() for task in tasks] in ([False, True, False, False], [False] * 4)
        await asyncio.wait_for(work(0), 1)

    for step in range(12):
        simulate(main, step)


def test_a_place_that_is_handed_over_cannot_be_taken_by_another() -> None:
    async def main() -> None:
        places = Bulkhead(1, 5)
        await places.enter()
        first = asyncio.create_task(places.enter())
        await asyncio.sleep(0)
        places.leave()
        second = asyncio.create_task(places.enter())  # comes before the first in line has run again
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert first.done() and not second.done() and places.inside == 1
        second.cancel()
        await asyncio.wait([second])

    simulate(main)


def test_rate_limit_counts_each_tenant_and_forgets_the_longest_unseen() -> None:
    clock = Hand()
    limit = RateLimit(10, tenants=2, clock=clock)
    assert [limit.admit("a") for _ in range(11)] == [True] * 10 + [False]
    assert limit.admit("b")
    clock.now = 0.1
    assert [limit.admit("a") for _ in range(2)] == [True, False]
    assert limit.admit("c") and len(limit._due) == 2
    admitted = 0
    for tick in range(1000):
        clock.now = 10 + tick / 100
        admitted += limit.admit("d")
    assert 105 <= admitted <= 110  # 10 s at 10 a second, and the burst


def cache(ttl: float = 1.0, most: int = 1 << 20) -> FlightCache[str]:
    return FlightCache(lambda value: 0.1 if value == "bad" else ttl, len, most)


def test_cache_makes_a_value_once_and_serves_none_that_is_too_old() -> None:
    async def main() -> None:
        kept, made = cache(), []

        async def make() -> str:
            await asyncio.sleep(0.25)
            made.append(asyncio.get_running_loop().time())
            return f"value {len(made)}"

        assert set(await asyncio.gather(*[kept.get("k", make) for _ in range(50)])) == {"value 1"}
        await asyncio.sleep(0.7)  # its age counts from when its making began: it is 0.95 s old
        assert await kept.get("k", make) == "value 1" and len(made) == 1
        await asyncio.sleep(0.05)
        assert await kept.get("k", make) == "value 2" and made == [0.25, 1.25]

    simulate(main)


def test_cache_keeps_failures_shorter_and_never_an_exception() -> None:
    async def main() -> None:
        kept, calls = cache(), 0

        async def bad() -> str:
            nonlocal calls
            calls += 1
            return "bad"

        await kept.get("k", bad)
        await kept.get("k", bad)
        await asyncio.sleep(0.1)
        await kept.get("k", bad)
        assert calls == 2

        async def raises() -> str:
            await asyncio.sleep(0.1)
            raise LookupError("planted")

        for result in await asyncio.gather(*[kept.get("x", raises) for _ in range(3)], return_exceptions=True):
            assert isinstance(result, LookupError)
        assert await kept.get("x", lambda: asyncio.sleep(0, "good")) == "good"

    simulate(main)


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_a_waiter_that_is_cancelled_leaves_the_others_theirs(leaver: int) -> None:
    async def main() -> None:
        kept, made = cache(), []

        async def make() -> str:
            await asyncio.sleep(1)
            made.append(1)
            return "value"

        waiters = [asyncio.create_task(kept.get("k", make)) for _ in range(3)]
        await asyncio.sleep(0.5)
        waiters[leaver].cancel()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert isinstance(results.pop(leaver), asyncio.CancelledError) and results == ["value"] * 2 and made == [1]

    simulate(main)


def test_the_last_waiter_ends_the_flight_and_the_next_one_starts_anew() -> None:
    async def main() -> None:
        kept, ended = cache(), []

        async def make() -> str:
            try:
                await asyncio.sleep(1)
                return "value"
            except asyncio.CancelledError:
                await asyncio.sleep(0.3)  # its clean-up takes a while
                ended.append(asyncio.get_running_loop().time())
                raise

        waiters = [asyncio.create_task(kept.get("k", make)) for _ in range(2)]
        await asyncio.sleep(0.5)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
        assert await kept.get("k", make) == "value"
        assert ended == [0.8] and asyncio.get_running_loop().time() == 1.5
        await kept.close()
        assert len(asyncio.all_tasks()) == 1

    simulate(main)


def test_cache_holds_its_bytes_and_drops_the_longest_unused() -> None:
    async def main() -> None:
        kept = cache(most=10_000)

        async def put(key: int, size: int = 1500) -> str:
            return await kept.get(key, lambda: asyncio.sleep(0, "x" * size))

        for key in range(100):
            await put(key)
            kept.peek(0)
        assert kept.bytes <= 10_000 and kept.peek(0) and kept.peek(99) and not kept.peek(1) and len(kept) == 4
        await put(1000, 20_000)
        assert kept.peek(1000) is None and len(kept) == 4

    simulate(main)
