"""Every closed form against an independent computation: a simulation, a sum, or a table."""

from __future__ import annotations

import asyncio
import collections
import heapq
import inspect
import math
import random

import aiolimiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import theory
from support.clock import occupy_loop, simulate

milliseconds = st.integers(0, 50).map(lambda n: n / 1000)
tasks = st.lists(st.tuples(milliseconds, milliseconds), max_size=8)


async def _work_then_wait(wait, busy):
    occupy_loop(busy)
    await asyncio.sleep(wait)


async def _wait_then_work(wait, busy):
    await asyncio.sleep(wait)
    occupy_loop(busy)


def _makespan(job, pairs, together=True):
    async def main():
        if together:
            await asyncio.gather(*(job(*pair) for pair in pairs))
        else:
            for pair in pairs:
                await job(*pair)
        return asyncio.get_running_loop().time()

    return simulate(main)


@given(tasks)
def test_concurrent_time_is_what_the_loop_takes(pairs):
    waits, busy = [wait for wait, _ in pairs], [own for _, own in pairs]
    work_first = theory.concurrent_time(waits, busy)
    work_last = theory.concurrent_time(waits, busy, first="wait")
    assert work_first == pytest.approx(_makespan(_work_then_wait, pairs), abs=1e-9)
    assert work_last == pytest.approx(_makespan(_wait_then_work, pairs), abs=1e-9)
    floor = theory.concurrent_time_floor(waits, busy)
    assert floor <= min(work_first, work_last) + 1e-9
    sequential = theory.sequential_time(waits, busy)
    assert sequential == pytest.approx(_makespan(_work_then_wait, pairs, together=False), abs=1e-9)
    assert sequential >= max(work_first, work_last) - 1e-9


def test_the_simple_formula_is_a_floor_and_not_the_time():
    # ten tasks that work 10 ms and wait 50 ms: the last one starts to wait at 100 ms
    assert theory.concurrent_time_floor([0.05] * 10, 0.01) == pytest.approx(0.1)
    assert theory.concurrent_time([0.05] * 10, 0.01) == pytest.approx(0.15)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 400))
def test_blocked_latency_is_what_a_neighbour_suffers(wait, block_start, length):
    wait, start, length = wait / 1000, block_start / 1000, length / 1000

    async def main():
        async def blocker():
            await asyncio.sleep(start)
            occupy_loop(length)

        async def sleeper():
            await asyncio.sleep(wait)
            return asyncio.get_running_loop().time()

        _, latency = await asyncio.gather(blocker(), sleeper())
        return latency

    expected = theory.blocked_latency(wait, start, start + length)
    assert simulate(main) == pytest.approx(expected, abs=1e-9)


def test_one_bad_neighbour():
    assert theory.blocked_latency(0.01, 0.0, 0.2) == pytest.approx(0.2)
    assert theory.blocked_latency(0.01, 0.0, 0.2, start=0.195) == pytest.approx(0.01)
    assert theory.blocked_latency(0.3, 0.0, 0.2) == pytest.approx(0.3)


@given(st.integers(0, 60), st.integers(1, 12))
def test_waves_are_what_a_semaphore_takes(jobs, limit):
    async def main():
        permits = asyncio.Semaphore(limit)

        async def job():
            async with permits:
                await asyncio.sleep(0.25)

        await asyncio.gather(*(job() for _ in range(jobs)))
        return asyncio.get_running_loop().time()

    assert simulate(main) == theory.waves_time(jobs, limit, 0.25)


def test_little_and_the_bounds_meet_at_the_knee():
    capacity, service = 200.0, 0.05
    knee = theory.little_concurrency(capacity, service)
    assert knee == 10
    assert theory.little_rate(knee, service) == pytest.approx(capacity)
    for n in (1, 5, 10, 40, 200):
        x = theory.throughput_bound(n, service, capacity)
        r = theory.response_time_bound(n, service, capacity)
        assert x * r == pytest.approx(n)  # Little's law holds along both lines
    assert theory.throughput_bound(5, service, capacity) == pytest.approx(100)
    assert theory.throughput_bound(40, service, capacity) == 200
    assert theory.response_time_bound(40, service, capacity) == pytest.approx(0.2)


def test_usl_is_linear_then_amdahl_then_retrograde():
    assert theory.usl_throughput(8, 3, 0, 0) == 24
    amdahl = 1 / (0.1 + 0.9 / 16)
    assert theory.usl_throughput(16, 1, 0.1, 0) == pytest.approx(amdahl)
    peak = theory.usl_peak(0.05, 0.001)
    top = theory.usl_throughput(peak, 1, 0.05, 0.001)
    assert top > theory.usl_throughput(peak - 1, 1, 0.05, 0.001)
    assert top > theory.usl_throughput(peak + 1, 1, 0.05, 0.001)


@pytest.mark.parametrize("servers", [1, 2, 7, 20])
@pytest.mark.parametrize("utilisation", [0.1, 0.5, 0.9, 0.99])
def test_erlang_c_equals_its_sum(servers, utilisation):
    load = utilisation * servers
    tail = load**servers / math.factorial(servers) / (1 - utilisation)
    expected = tail / (sum(load**k / math.factorial(k) for k in range(servers)) + tail)
    assert theory.erlang_c(load / 0.25, 0.25, servers) == pytest.approx(expected, rel=1e-12)


def test_erlang_c_of_one_server_is_its_utilisation_and_of_many_does_not_overflow():
    assert theory.erlang_c(8, 0.1, 1) == pytest.approx(0.8)
    assert theory.erlang_c_mean_wait(8, 0.1, 1) == pytest.approx(0.4)  # rho S / (1 - rho)
    assert 0 < theory.erlang_c(1990, 1.0, 2000) < 1


@pytest.mark.parametrize(("connections", "p99"), [(6, 0.0149), (7, 0.0076), (8, 0.0034)])
def test_erlang_c_sizes_a_pool(connections, p99):
    wait = theory.erlang_c_wait_quantile(0.99, 300, 0.012, connections)
    assert wait == pytest.approx(p99, abs=0.00005)


def test_erlang_c_against_a_simulated_queue():
    rng = random.Random(5)
    rate, service, servers = 35.0, 0.1, 5
    clock, free, waits = 0.0, [0.0] * servers, []
    for _ in range(200_000):
        clock += rng.expovariate(rate)
        start = max(clock, heapq.heappop(free))
        heapq.heappush(free, start + rng.expovariate(1 / service))
        waits.append(start - clock)
    waited = sum(wait > 0 for wait in waits) / len(waits)
    assert waited == pytest.approx(theory.erlang_c(rate, service, servers), rel=0.03)
    mean = sum(waits) / len(waits)
    assert mean == pytest.approx(theory.erlang_c_mean_wait(rate, service, servers), rel=0.05)
    p95 = sorted(waits)[int(0.95 * len(waits))]
    expected = theory.erlang_c_wait_quantile(0.95, rate, service, servers)
    assert p95 == pytest.approx(expected, rel=0.05)
    assert theory.erlang_c_wait_quantile(0.3, rate, service, servers) == 0


@pytest.mark.parametrize("rho", [0.2, 0.9, 1.0, 1.2, 3.0])
@pytest.mark.parametrize("places", [1, 4, 40])
def test_mm1k_loss_solves_the_balance_equations(rho, places):
    weights = [rho**n for n in range(places + 1)]
    expected = weights[-1] / sum(weights)
    assert theory.mm1k_loss(rho, places) == pytest.approx(expected, rel=1e-9)


def test_mm1k_loss_of_an_overload_is_the_excess_and_does_not_overflow():
    assert theory.mm1k_loss(4.0, 5000) == pytest.approx(0.75)
    assert theory.mm1k_loss(0.5, 5000) == 0


def test_mm1k_goodput_is_what_a_simulation_answers_in_time():
    rng, now, ends, in_time = random.Random(8), 0.0, [], 0
    for _ in range(200_000):
        now += rng.expovariate(120)
        ends = [end for end in ends if end > now]
        if len(ends) < 5:
            ends.append((ends[-1] if ends else now) + rng.expovariate(100))
            in_time += ends[-1] - now <= 0.04
    assert theory.mm1k_goodput(120, 100, 5, 0.04) == pytest.approx(in_time / now, rel=0.02)


def test_mm1k_goodput_at_its_limits():
    served = 1 - math.exp(-100 * 0.05)  # with one place nobody waits: one work, within the deadline
    assert theory.mm1k_goodput(300, 100, 1, 0.05) == pytest.approx(300 * (1 - 0.75) * served)
    assert theory.mm1k_goodput(90, 100, 2000, 0.5) == pytest.approx(90 * (1 - math.exp(-(100 - 90) * 0.5)))  # M/M/1
    assert theory.mm1k_goodput(300, 100, 1000, 0.5) == pytest.approx(0, abs=1e-6)  # all who are let in come too late


def test_full_queue_wait_is_near_the_exact_quantile():
    rng = random.Random(1)
    sums = sorted(rng.gammavariate(40, 1 / 100) for _ in range(50_000))
    assert theory.full_queue_wait(40, 100) == pytest.approx(sums[int(0.99 * len(sums))], rel=0.05)


def test_hedge_against_draws():
    rng = random.Random(3)

    def survival(t):
        return 0.05 if 0 <= t < 1 else (1.0 if t < 0 else 0.0)

    # 95 % take no time and 5 % take 1 s; the hedge starts at 0.2 s
    draws = [min(_draw(rng), 0.2 + _draw(rng)) for _ in range(100_000)]
    measured = sum(latency > 0.5 for latency in draws) / len(draws)
    assert measured == pytest.approx(theory.hedged_tail(survival, 0.5, 0.2), rel=0.15)
    assert theory.hedged_tail(survival, 0.5, 0.2) == pytest.approx(0.0025)
    assert theory.hedged_tail(survival, 0.1, 0.2) == 0.05
    assert theory.hedge_extra_load(survival, 0.2) == 0.05


def _draw(rng):
    return 1.0 if rng.random() < 0.05 else 0.0


def test_retries_against_every_outcome():
    p, retries = 0.3, 3
    mean = sum(n * p ** (n - 1) * (1 - p) for n in range(1, retries + 1)) + (retries + 1) * p**retries
    assert theory.retry_attempts(p, retries) == pytest.approx(mean)
    assert theory.retry_success(p, retries) == pytest.approx(1 - 0.3**4)
    assert theory.retry_attempts(1, 3, layers=3) == 64
    assert theory.retry_attempts(0, 3, layers=3) == 1


def test_layers_of_retries_against_draws():
    rng = random.Random(11)
    attempts = 0

    def call(layer):
        nonlocal attempts
        if layer == 0:
            attempts += 1
            return rng.random() >= 0.7
        return any(call(layer - 1) for _ in range(3))

    runs = 20_000
    for _ in range(runs):
        call(2)
    assert attempts / runs == pytest.approx(theory.retry_attempts(0.7, 2, layers=2), rel=0.03)


def _storm(load, *, retries=0, budget=math.inf, stall=5.0, capacity=100, timeout=1.0, until=100.0):
    """When, after a stall, the last answer came that was too late: in seconds from its end.

    One server, first come first served, which works for clients that have left as well.
    """
    attempts = [(number / load, 0) for number in range(int(load * until))]
    free, tokens, last_late = stall, 0.0, 0.0
    while attempts:
        now, tried = heapq.heappop(attempts)
        if tried == 0:
            tokens = tokens + budget if tokens < 1 else tokens
        elif tokens < 1 - 1e-9:
            continue
        else:
            tokens -= 1
        free = max(free, now) + 1 / capacity
        if free > now + timeout:
            last_late = max(last_late, free - stall)
            if tried < retries:
                heapq.heappush(attempts, (now + timeout, tried + 1))
    return last_late


def test_a_stall_of_the_curriculum_without_retries():
    assert theory.storm_recovery(70, 100, 5, 1) == pytest.approx(70 * 4 / 30)
    new_requests_in_time = (70 * 5 - 100 * 1) / (100 - 70)
    assert theory.storm_recovery(70, 100, 5, 1) == pytest.approx(new_requests_in_time + 1)
    assert theory.storm_recovery(70, 100, 1, 1) == theory.storm_recovery(120, 100, 0.5, 1) == 0
    assert theory.storm_recovery(100, 100, 5, 1) == theory.storm_recovery(95, 100, 5, 1, 0.1) == math.inf


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("load", "stall"), [(70, 5.0), (50, 5.0), (30, 1.5), (60, 1.2)])
def test_storm_recovery_against_a_simulated_queue(load, stall, budget):
    measured = _storm(load, retries=3, budget=budget, stall=stall)
    expected = theory.storm_recovery(load, 100, stall, timeout=1.0, budget=budget)
    assert measured == pytest.approx(expected, rel=0.01, abs=0.03)  # a few requests


@pytest.mark.parametrize("retries", [1, 2, 3])
def test_the_boundary_of_a_storm_against_a_simulated_queue(retries):
    boundary, stall = theory.storm_boundary(100, retries), 1.1 + retries
    assert boundary == pytest.approx(100 / (1 + retries))
    for load in (0.95 * boundary, 1.05 * boundary):
        stays = _storm(load, retries=retries, stall=stall) > 90
        assert theory.storm_stays(load, 100, retries) == stays == (load > boundary)
    assert _storm(1.05 * boundary, retries=retries, stall=0.9) == 0  # nobody timed out
    assert not theory.storm_stays(boundary, 100, retries)


def test_a_stall_of_less_than_all_timeouts_may_pass_above_the_boundary():
    load = 1.05 * theory.storm_boundary(100, 3)
    assert _storm(load, retries=3, stall=2.0) < 1 < 90 < _storm(load, retries=3, stall=4.1)


@pytest.mark.parametrize(("clients", "width", "bin"), [(200, 1.0, 0.05), (1000, 8.0, 0.1), (60, 3.0, 0.05)])
def test_jitter_against_draws(clients, width, bin):
    rng, runs, bins = random.Random(4), 400, round(width / bin)
    peaks = []
    for _ in range(runs):
        counts = [0] * bins
        for _ in range(clients):
            counts[int(rng.uniform(0, width) / bin)] += 1
        peaks.append(max(counts))
    assert theory.jitter_level(clients, width, bin) == pytest.approx(clients / bins)
    assert sum(peaks) / runs == pytest.approx(theory.jitter_peak(clients, width, bin), rel=0.02)


def test_without_jitter_all_meet():
    assert theory.jitter_level(200, 0.05, 0.05) == theory.jitter_peak(200, 0.05, 0.05) == 200
    assert theory.jitter_level(200, 0.01, 0.05) == theory.jitter_peak(200, 0.01, 0.05) == 200
    assert theory.jitter_peak(0, 1, 0.05) == 0


def _most_admitted(limiter, window=1.0, step=1 / 64):
    """Most admissions in any window, when a flood meets the limiter after each of many rests."""
    most = 0
    for rest in range(128):
        admit, times = limiter(), []
        for now in (tick * step for tick in range(rest, rest + 192)):
            while admit(now):
                times.append(now)
        most = max(most, *(sum(0 <= t - start <= window for t in times) for start in times))
    return most


def _fixed_window(limit):
    counts = collections.Counter()

    def admit(now):
        counts[int(now)] += counts[int(now)] < limit + 1
        return counts[int(now)] <= limit

    return admit


def _token_bucket(rate, burst):
    tokens, before = burst, 0.0

    def admit(now):
        nonlocal tokens, before
        tokens, before = min(burst, tokens + rate * (now - before)), now
        tokens -= (enough := tokens >= 1)
        return enough

    return admit


def _sliding_log(limit):
    log = collections.deque(maxlen=limit)

    def admit(now):
        if len(log) == limit and now - log[0] <= 1:
            return False
        log.append(now)
        return True

    return admit


def test_the_most_that_a_limiter_admits_in_any_second():
    assert _most_admitted(lambda: _fixed_window(8)) == theory.fixed_window_bound(8) == 16
    assert _most_admitted(lambda: _sliding_log(8)) == theory.sliding_log_bound(8) == 8
    assert _most_admitted(lambda: _token_bucket(8, 8)) == theory.token_bucket_bound(8, 8, 1) == 16
    assert _most_admitted(lambda: _token_bucket(8, 2)) == theory.token_bucket_bound(8, 2, 1) == 10
    assert theory.token_bucket_bound(8, 2, 0) == 2


def test_the_most_that_aiolimiter_admits_in_any_second():
    async def main():
        limiter, times = aiolimiter.AsyncLimiter(8, 2.0), []
        for _ in range(40):
            async with limiter:
                times.append(asyncio.get_running_loop().time())
        return max(sum(0 <= t - start < 1.0 + 1e-6 for t in times) for start in times)

    assert simulate(main) == theory.leaky_bucket_bound(8, 2.0, 1.0) == 12
    assert theory.leaky_bucket_bound(8, 2.0, 2.0) == 16


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_xfetch_against_a_simulated_cache(beta):
    rng = random.Random(8)
    rate, delta, cycles = 400.0, 0.2, 1000
    recomputed, leads = 0, []
    for _ in range(cycles):
        left, first = 15 * beta * delta, None  # hardly anything happens earlier
        while left > 0:
            left -= rng.expovariate(rate)
            if first is not None and left <= first - delta:
                break  # the new value is in the cache
            # the published rule: refresh when delta * beta * -ln(u) reaches the expiry
            if left > 0 and -beta * delta * math.log(1 - rng.random()) >= left:
                recomputed += 1
                first = left if first is None else first
        leads.append(first or 0.0)
    assert recomputed / cycles == pytest.approx(theory.xfetch_recomputations(beta), rel=0.1)
    expected = theory.xfetch_mean_lead(rate, delta, beta)
    assert sum(leads) / cycles == pytest.approx(expected, rel=0.05)


def test_xfetch_probability():
    assert theory.xfetch_probability(0, 0.2) == 1
    assert theory.xfetch_probability(1.0, 0.2) == pytest.approx(0.0067, abs=5e-5)  # at 5 delta
    assert theory.xfetch_probability(0.2, 0.2) == pytest.approx(0.368, abs=5e-4)


def test_hit_ratio_against_a_simulated_cache():
    rng = random.Random(2)
    rate, ttl, clock, expires, hits, reads = 2.0, 3.0, 0.0, 0.0, 0, 100_000
    for _ in range(reads):
        clock += rng.expovariate(rate)
        if clock < expires:
            hits += 1
        else:
            expires = clock + ttl
    assert hits / reads == pytest.approx(theory.hit_ratio(rate, ttl), rel=0.01)


def test_coordinated_omission_against_a_simulated_stall():
    rate, service, stall, duration = 500, 0.001, 1.0, 20.0
    free, latencies = 0.0, []
    for number in range(int(rate * duration)):
        due = number / rate
        begin = max(due, free)
        if free < 5.0 <= begin:
            begin += stall
        free = begin + service
        latencies.append(free - due)
    p99 = sorted(latencies)[int(0.99 * len(latencies))]
    expected = theory.stalled_quantile(0.99, stall, duration, utilisation=0.5)
    assert expected == pytest.approx(0.9)
    assert p99 == pytest.approx(expected, rel=0.01)
    assert theory.stalled_quantile(0.5, stall, duration, utilisation=0.5) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: theory.concurrent_time([1, -1]),
            "waits must be a finite number from 0 up, not -1.",
        ),
        (
            lambda: theory.concurrent_time([1, 1], [1]),
            "busy must be one number, or one per wait (2), not [1].",
        ),
        (
            lambda: theory.concurrent_time([1], first="last"),
            'first must be "busy" or "wait", not \'last\'.',
        ),
        (
            lambda: theory.sequential_time([math.nan]),
            "waits must be a finite number from 0 up, not nan.",
        ),
        (
            lambda: theory.blocked_latency(1, 2, 1),
            "block_end must be at or after block_start, not 1.",
        ),
        (lambda: theory.waves_time(5, 0, 1), "limit must be a whole number from 1 up, not 0."),
        (lambda: theory.waves_time(2.5, 1, 1), "jobs must be a whole number from 0 up, not 2.5."),
        (
            lambda: theory.little_rate(1, 0),
            "time_in_system must be a finite number above 0, not 0.",
        ),
        (
            lambda: theory.erlang_c(10, 0.5, 5),
            "rate * service_time must be below servers (5), or it piles up, not 5.0.",
        ),
        (
            lambda: theory.erlang_c_wait_quantile(1, 1, 0.1, 1),
            "q must be from 0 to below 1, not 1.",
        ),
        (lambda: theory.retry_attempts(1.5, 2), "failure must be from 0 to 1, not 1.5."),
        (lambda: theory.xfetch_mean_lead(1, 0.1), "rate * beta * delta must be above 1, not 0.1."),
        (
            lambda: theory.storm_boundary(100, -1),
            "retries must be a finite number from 0 up, not -1.",
        ),
        (
            lambda: theory.storm_recovery(70, 100, 5, 1, budget=1.5),
            "budget must be from 0 to 1, not 1.5.",
        ),
        (lambda: theory.jitter_peak(9, 0, 1), "width must be a finite number above 0, not 0."),
        (lambda: theory.fixed_window_bound(0), "limit must be a whole number from 1 up, not 0."),
        (
            lambda: theory.leaky_bucket_bound(8, 1, -1),
            "window must be a finite number from 0 up, not -1.",
        ),
        (
            lambda: theory.stalled_quantile(0.99, 1, 20, 1.0),
            "utilisation must be from 0 to below 1, not 1.0.",
        ),
    ],
)
def test_input_out_of_range_is_named(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == words


def test_every_function_says_its_units_or_source():
    for name, function in inspect.getmembers(theory, inspect.isfunction):
        if not name.startswith("_") and function.__module__ == theory.__name__:
            assert function.__doc__ and function.__annotations__["return"], name


@pytest.mark.parametrize(("choices", "expected"), [(1, 4.4), (2, 2.6)])
def test_the_fullest_of_a_hundred_bins(choices: int, expected: float) -> None:
    dice = random.Random(10)

    def fullest() -> int:
        bins = [0] * 100
        for _ in bins:
            bins[min(dice.choices(range(100), k=choices), key=bins.__getitem__)] += 1
        return max(bins)

    seen = sum(fullest() for _ in range(400)) / 400
    assert theory.most_in_one_bin(100, choices) == pytest.approx(seen, rel=0.05)
    assert seen == pytest.approx(expected, rel=0.15)


def test_with_two_choices_the_fullest_bin_hardly_grows() -> None:
    one, two = ([theory.most_in_one_bin(n, d) for n in (10, 10_000)] for d in (1, 2))
    assert one[1] - one[0] > 3 > 2 > two[1] - two[0]
    with pytest.raises(ValueError, match="balls"):
        theory.most_in_one_bin(0)


@pytest.mark.parametrize("contention", [0.0, 0.1, 1.0])
def test_the_contention_of_a_curve_is_found_again(contention: float) -> None:
    curve = [theory.usl_throughput(n, 50.0, contention, 0.0) for n in (1, 2, 4)]
    assert theory.usl_contention((1, 2, 4), curve) == pytest.approx(contention, abs=1e-12)
    with pytest.raises(ValueError, match="n must be"):
        theory.usl_contention((2, 4), (1.0, 2.0))
