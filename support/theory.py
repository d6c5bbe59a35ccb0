"""Closed forms to lay over measurements.

Pure functions of numbers. Times are in seconds, rates per second, sizes and counts plain numbers,
probabilities and fractions from 0 to 1. Each docstring names the source and what the formula
assumes. An input out of range raises a ValueError that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

EULER_GAMMA = 0.5772156649015329


def _need(ok: bool, name: str, value: object, what: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {what}, not {value!r}.")


def _positive(**values: float) -> None:
    for name, value in values.items():
        _need(0 < value < math.inf, name, value, "a finite number above 0")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        _need(0 <= value < math.inf, name, value, "a finite number from 0 up")


def _fraction(**values: float) -> None:
    for name, value in values.items():
        _need(0 <= value <= 1, name, value, "from 0 to 1")


def _count(least: int, **values: int) -> None:
    for name, value in values.items():
        _need(value == int(value) and value >= least, name, value, f"a whole number from {least} up")


def sequential_time(waits: Sequence[float], busy: Sequence[float] | float = 0.0) -> float:
    """Seconds for tasks awaited one after another: the sum of all waits and all work."""
    return sum(_busy(waits, busy)) + sum(waits)


def concurrent_time(waits: Sequence[float], busy: Sequence[float] | float = 0.0, *, first: str = "busy") -> float:
    """Seconds for tasks started together on one loop, each with one stretch of work, one wait.

    waits: seconds suspended, one per task, in starting order. busy: seconds that each holds the
    loop. first: "busy" when each task works and then waits, as a request is built before it is
    sent; "wait" when it waits and then works, as an answer is parsed after it came.

    Work first: max over i of (busy_1 + ... + busy_i + wait_i), for task i leaves the loop when
    all before it have. Work last: max over i of (wait_i + the work of i and of all that wake after
    it). One machine with delivery or release times (Pinedo, Scheduling, ch. 3).
    """
    work = _busy(waits, busy)
    _need(first in ("busy", "wait"), "first", first, '"busy" or "wait"')
    pairs = list(zip(waits, work, strict=True))
    if first == "wait":  # the same sum, read from the end
        pairs = sorted(pairs, key=lambda pair: pair[0], reverse=True)
    held = longest = 0.0
    for wait, own in pairs:
        held += own
        longest = max(longest, held + wait)
    return longest


def concurrent_time_floor(waits: Sequence[float], busy: Sequence[float] | float = 0.0) -> float:
    """Seconds below which no order of the tasks gets: max(all work, longest single task).

    The work that comes before the last task's wait is on top of it: see ``concurrent_time``.
    """
    work = _busy(waits, busy)
    alone = (own + wait for wait, own in zip(waits, work, strict=True))
    return max(sum(work), max(alone, default=0.0))


def _busy(waits: Sequence[float], busy: Sequence[float] | float) -> list[float]:
    for seconds in waits:
        _not_negative(waits=seconds)
    work = [float(busy)] * len(waits) if isinstance(busy, (int, float)) else list(busy)
    for seconds in work:
        _not_negative(busy=seconds)
    _need(len(work) == len(waits), "busy", busy, f"one number, or one per wait ({len(waits)})")
    return work


def blocked_latency(wait: float, block_start: float, block_end: float, start: float = 0.0) -> float:
    """Seconds that a task takes when somebody holds the loop while it waits.

    The task starts at ``start`` and its timer is due ``wait`` later. Due inside the block, it is
    served when the block ends: wait + (block_end - due). Due outside, it takes ``wait``.
    """
    _not_negative(wait=wait, block_start=block_start, start=start)
    _need(block_end >= block_start, "block_end", block_end, "at or after block_start")
    due = start + wait
    return wait + (block_end - due if block_start <= due < block_end else 0.0)


def little_concurrency(rate: float, time_in_system: float) -> float:
    """Mean number in a system: L = lambda W (Little, Operations Research 9, 1961)."""
    _not_negative(rate=rate, time_in_system=time_in_system)
    return rate * time_in_system


def little_rate(concurrency: float, time_in_system: float) -> float:
    """Completions per second that ``concurrency`` in flight can give: lambda = L / W."""
    _not_negative(concurrency=concurrency)
    _positive(time_in_system=time_in_system)
    return concurrency / time_in_system


def waves_time(jobs: int, limit: int, seconds: float) -> float:
    """Seconds for equal jobs, ``limit`` at once: ceil(jobs / limit) waves of ``seconds``."""
    _count(0, jobs=jobs)
    _count(1, limit=limit)
    _not_negative(seconds=seconds)
    return math.ceil(jobs / limit) * seconds


def throughput_bound(concurrency: float, service_time: float, capacity: float) -> float:
    """Most completions per second: min(N / S, capacity) (Denning and Buzen, 1978)."""
    _positive(capacity=capacity)
    return min(little_rate(concurrency, service_time), capacity)


def response_time_bound(concurrency: float, service_time: float, capacity: float) -> float:
    """Least seconds per request: max(S, N / capacity). The knee is at N = capacity * S."""
    _positive(service_time=service_time, capacity=capacity)
    _not_negative(concurrency=concurrency)
    return max(service_time, concurrency / capacity)


def usl_throughput(n: float, gain: float, contention: float, coherence: float) -> float:
    """Universal scalability law: gain n / (1 + a(n - 1) + b n(n - 1)) (Gunther, 2007)."""
    _positive(n=n, gain=gain)
    _not_negative(contention=contention, coherence=coherence)
    return gain * n / (1 + contention * (n - 1) + coherence * n * (n - 1))


def usl_peak(contention: float, coherence: float) -> float:
    """The n where the USL curve turns down: sqrt((1 - a) / b)."""
    _fraction(contention=contention)
    _positive(coherence=coherence)
    return math.sqrt((1 - contention) / coherence)


def _offered_load(rate: float, service_time: float, servers: int) -> float:
    _positive(rate=rate, service_time=service_time)
    _count(1, servers=servers)
    load = rate * service_time
    _need(load < servers, "rate * service_time", load, f"below servers ({servers}), or it piles up")
    return load


def erlang_c(rate: float, service_time: float, servers: int) -> float:
    """Probability that an arrival must wait for one of ``servers`` (Erlang, 1917; M/M/c).

    Poisson arrivals, exponential service. By Erlang B's recursion, which cannot overflow.
    """
    load = _offered_load(rate, service_time, servers)
    blocked = 1.0
    for busy in range(1, servers + 1):
        blocked = load * blocked / (busy + load * blocked)
    return blocked / (1 - (load / servers) * (1 - blocked))


def erlang_c_mean_wait(rate: float, service_time: float, servers: int) -> float:
    """Mean seconds in the queue of an M/M/c, service not counted: C / (c mu - lambda)."""
    return erlang_c(rate, service_time, servers) / (servers / service_time - rate)


def erlang_c_wait_quantile(q: float, rate: float, service_time: float, servers: int) -> float:
    """Seconds that a fraction ``q`` of the arrivals at an M/M/c waits at most.

    From P(W > t) = C exp(-(c mu - lambda) t).
    """
    _need(0 <= q < 1, "q", q, "from 0 to below 1")
    waiting = erlang_c(rate, service_time, servers)
    if waiting <= 1 - q:
        return 0.0
    return math.log(waiting / (1 - q)) / (servers / service_time - rate)


def mm1k_loss(utilisation: float, places: int) -> float:
    """Fraction turned away by one server with ``places`` (the one in service counts): M/M/1/K.

    (1 - rho) rho^K / (1 - rho^(K + 1)); 1 / (K + 1) at rho = 1 (Kleinrock, Queueing Systems 1).
    """
    _positive(utilisation=utilisation)
    _count(1, places=places)
    if utilisation == 1:
        return 1 / (places + 1)
    if utilisation > 1:  # the same fraction, written so that no power overflows
        return (1 - 1 / utilisation) / (1 - utilisation ** -(places + 1))
    return (1 - utilisation) * utilisation**places / (1 - utilisation ** (places + 1))


def mm1k_goodput(rate: float, service_rate: float, places: int, deadline: float) -> float:
    """Answers in time per second of one server with ``places`` that turns the rest away: M/M/1/K with a deadline.

    rate, service_rate: per second. deadline: seconds from arrival to answer. Who is let in finds n inside with a
    chance proportional to rho^n, n < K (arrivals see time averages), and is answered after n + 1 exponential works,
    which take at most d with the chance P(Poisson(mu d) > n) (Kleinrock, Queueing Systems 1).
    """
    _positive(rate=rate, service_rate=service_rate, deadline=deadline)
    _count(1, places=places)
    load, works = rate / service_rate, service_rate * deadline
    in_time, sums, total = 1.0, 0.0, 0.0
    for ahead in range(places):
        in_time -= math.exp(ahead * math.log(works) - works - math.lgamma(ahead + 1))
        weight = load ** (ahead - places if load > 1 else ahead)  # only ratios count, and none overflows
        sums, total = sums + weight * in_time, total + weight
    return rate * (1 - mm1k_loss(load, places)) * sums / total


def full_queue_wait(places: int, service_rate: float, z: float = 2.33) -> float:
    """Seconds behind a full queue: K / mu + z sqrt(K) / mu; z = 2.33 gives about the p99.

    The sum of K exponential services has mean K / mu and deviation sqrt(K) / mu; nearly normal.
    """
    _count(1, places=places)
    _positive(service_rate=service_rate)
    return (places + z * math.sqrt(places)) / service_rate


def hedged_tail(survival: Callable[[float], float], t: float, delay: float) -> float:
    """P(latency > t) when a second, independent call starts after ``delay``: S(t) S(t - d).

    ``survival(t)`` is P(one call takes longer than t) (Dean and Barroso, The Tail at Scale, 2013).
    """
    _not_negative(t=t, delay=delay)
    return survival(t) * (survival(t - delay) if t >= delay else 1.0)


def hedge_extra_load(survival: Callable[[float], float], delay: float) -> float:
    """Fraction of calls that a hedge after ``delay`` doubles: S(d)."""
    _not_negative(delay=delay)
    return survival(delay)


def retry_attempts(failure: float, retries: int, layers: int = 1) -> float:
    """Mean attempts at the bottom per request: (1 - p^n) / (1 - p) with n = (r + 1)^layers.

    failure: chance p that one attempt fails, independently. At p = 1 one request becomes n.
    """
    _fraction(failure=failure)
    _count(0, retries=retries)
    _count(1, layers=layers)
    most = (retries + 1) ** layers
    return float(most) if failure == 1 else (1 - failure**most) / (1 - failure)


def retry_success(failure: float, retries: int) -> float:
    """Chance that one of 1 + retries independent attempts succeeds: 1 - p^(r + 1)."""
    _fraction(failure=failure)
    _count(0, retries=retries)
    return 1 - failure ** (retries + 1)


def storm_boundary(capacity: float, retries: float) -> float:
    """The load above which a retry storm feeds itself: mu / (1 + r).

    Once every attempt times out, ``load`` requests per second become load (1 + r) attempts. The
    server is first come, first served, and does the work of clients that have left as well, so
    above ``capacity`` attempts the queue never gets shorter (Bronson and others, Metastable
    Failures in Distributed Systems, 2021).
    """
    _positive(capacity=capacity)
    _not_negative(retries=retries)
    return capacity / (1 + retries)


def storm_stays(load: float, capacity: float, retries: float) -> bool:
    """Whether a stall longer than 1 + r timeouts leaves the server down for good: lam (1 + r) > mu.

    Each timeout is followed by a retry at once. Whoever comes in the first r timeouts of such a
    stall gives up during it, so that afterwards attempts come at lam (1 + r), all of them too late
    for their clients. Above mu the queue grows on, and each answer stays too late; below, it must
    empty. After a shorter stall a server above the boundary may recover; see ``storm_boundary``.
    """
    _positive(load=load)
    return load > storm_boundary(capacity, retries)


def storm_recovery(load: float, capacity: float, stall: float, timeout: float, budget: float = 0.0) -> float:
    """Seconds from the end of a stall until answers come in time again.

    budget: retries allowed per request, from 0 for none; each follows its timeout at once.

    One server, first come first served, evenly loaded below ``capacity``. Attempts come at the
    rate lam, and at lam' = lam (1 + b) from ``timeout`` on, when the first ones give up. The work
    that is done u seconds after the stall arrived a seconds after its start, with mu u = lam a +
    (lam' - lam)(a - tau), and took D + u - a. That is tau at

        u = (lam' (D - tau) - (lam' - lam) tau) / (mu - lam'),

    and at lam (D - tau) / (mu - lam) if that work is older than the first retry: the later of the
    two. 0 if D <= tau, and infinite if lam' >= mu. The queue is short enough for a new request
    tau earlier; without retries that is at (lam D - mu tau) / (mu - lam).
    """
    _positive(load=load, capacity=capacity, timeout=timeout)
    _not_negative(stall=stall)
    _fraction(budget=budget)
    attempts, late = load * (1 + budget), stall - timeout
    if late <= 0:
        return 0.0
    if attempts >= capacity:
        return math.inf
    with_retries = (attempts * late - (attempts - load) * timeout) / (capacity - attempts)
    return max(load * late / (capacity - load), with_retries)


def jitter_level(clients: int, width: float, bin: float) -> float:
    """Mean retries in each ``bin`` seconds when ``clients`` retry within ``width``: n bin / width.

    Full jitter: each waits a time drawn evenly from 0 to ``width``. Without jitter all n meet.
    """
    _count(0, clients=clients)
    _positive(width=width, bin=bin)
    return clients * min(1.0, bin / width)


def jitter_peak(clients: int, width: float, bin: float) -> float:
    """Expected height of the fullest of the width / bin bins under full jitter.

    Above ``jitter_level`` by chance: sum over x of 1 - P(a bin has at most x)^bins. Bins are
    binomial, and taken as independent, which they nearly are when there are many.
    """
    level = jitter_level(clients, width, bin)
    bins, share = width / bin, min(1.0, bin / width)
    if share == 1 or not clients:
        return level
    odds, at_most, peak = share / (1 - share), 0.0, 0.0
    log_exactly = clients * math.log1p(-share)  # as a logarithm, which cannot underflow
    for x in range(clients):
        at_most = min(1.0, at_most + math.exp(log_exactly))
        peak += 1 - at_most**bins
        log_exactly += math.log(odds * (clients - x) / (x + 1))
    return peak


def fixed_window_bound(limit: int) -> int:
    """Most admissions in any stretch as long as the window of a fixed-window counter: 2 L.

    L just before the counter starts again, and L just after.
    """
    _count(1, limit=limit)
    return 2 * limit


def sliding_log_bound(limit: int) -> int:
    """Most admissions in any stretch as long as the window of a sliding log: L, by definition."""
    _count(1, limit=limit)
    return limit


def token_bucket_bound(rate: float, burst: float, window: float) -> float:
    """Most admissions by a token bucket in any ``window`` seconds: r W + B.

    The bucket is full, with B tokens, when the window begins, and r W more drop in during it.
    """
    _positive(rate=rate, burst=burst)
    _not_negative(window=window)
    return rate * window + burst


def leaky_bucket_bound(limit: float, period: float, window: float) -> float:
    """Most admissions in any ``window`` by a leaky bucket used as a meter: L + (L / T) W.

    As in aiolimiter's AsyncLimiter(limit, period): the bucket holds L and leaks L / T per second,
    a token bucket with the burst L. In one period that is 2 L. A leaky bucket used as a queue,
    which lets one through every T / L seconds, has no such burst.
    """
    _positive(limit=limit, period=period)
    return token_bucket_bound(limit / period, limit, window)


def xfetch_probability(time_left: float, delta: float, beta: float = 1.0) -> float:
    """Chance that a read with ``time_left`` to expiry refreshes early: exp(-t / (beta delta)).

    delta: seconds that a recomputation takes. Source: Vattani, Chierichetti, Lowenstein,
    Optimal Probabilistic Cache Stampede Prevention, 2015.
    """
    _not_negative(time_left=time_left)
    _positive(delta=delta, beta=beta)
    return math.exp(-time_left / (beta * delta))


def xfetch_recomputations(beta: float = 1.0) -> float:
    """Mean recomputations per expiry under XFetch, for Poisson reads: e^(1 / beta).

    In the delta seconds of the first refresh the chance of another grows by that factor. Needs
    many reads per recomputation: rate * beta * delta well above 1.
    """
    _positive(beta=beta)
    return math.exp(1 / beta)


def xfetch_mean_lead(rate: float, delta: float, beta: float = 1.0) -> float:
    """Mean seconds before expiry at which the first early refresh starts.

    beta delta (ln(rate beta delta) + 0.5772): the mean of the Gumbel law that the first of many
    ever more likely refreshes follows. Needs rate * beta * delta above 1.
    """
    _positive(rate=rate, delta=delta, beta=beta)
    reads = rate * beta * delta
    _need(reads > 1, "rate * beta * delta", reads, "above 1")
    return beta * delta * (math.log(reads) + EULER_GAMMA)


def hit_ratio(rate: float, ttl: float) -> float:
    """Fraction of Poisson reads of one key served by a cache: rate T / (1 + rate T).

    Per cycle one miss, then rate * ttl hits on average until the entry expires.
    """
    _not_negative(rate=rate, ttl=ttl)
    return rate * ttl / (1 + rate * ttl)


def stalled_quantile(q: float, stall: float, duration: float, utilisation: float) -> float:
    """The q-quantile latency that an open-loop client sees when the server stops once.

    stall - (1 - q) duration (1 - utilisation), at least 0: latencies fall evenly from ``stall`` to
    nothing while the backlog lasts; service time is neglected. A closed loop sends one request
    into the stall and misses the rest: coordinated omission (Tene, How NOT to Measure Latency).
    """
    _fraction(q=q)
    _positive(stall=stall, duration=duration)
    _need(0 <= utilisation < 1, "utilisation", utilisation, "from 0 to below 1")
    return max(0.0, stall - (1 - q) * duration * (1 - utilisation))


def most_in_one_bin(balls: int, choices: int = 1) -> float:
    """Expected most balls in one of as many bins, each ball put into the emptiest of ``choices`` random bins.

    E = sum over k of 1 - exp(-n s_k), where s_k is the share of bins with at least k balls: for one choice the tail of
    a Poisson distribution with mean 1, for more the solution of ds_k/dt = s_(k-1)^d - s_k^d at t = 1 (Mitzenmacher,
    2001). It grows as ln n / ln ln n for one choice, as ln ln n / ln d for d of them (Azar et al., 1994).
    """
    _count(1, balls=balls, choices=choices)
    levels, steps = 24, 400
    share = [1.0, *[0.0] * levels]
    for _ in range(steps):  # by the midpoint rule
        slope = [share[k - 1] ** choices - share[k] ** choices for k in range(1, levels + 1)]
        middle = [1.0, *[max(0.0, share[k + 1] + slope[k] / (2 * steps)) for k in range(levels)]]
        share = [
            1.0,
            *[share[k] + (middle[k - 1] ** choices - middle[k] ** choices) / steps for k in range(1, levels + 1)],
        ]
    return sum(-math.expm1(-balls * part) for part in share[1:])


def usl_contention(n: Sequence[float], throughput: Sequence[float]) -> float:
    """The contention a of Amdahl's law, which is the USL without coherence, fitted by least squares to X(n) / X(n[0] = 1).

    0: n times as much with n; 1: nothing gained. From n X(1) / X(n) - 1 = a (n - 1).
    """
    _positive(
        **{f"n[{i}]": value for i, value in enumerate(n)}, **{f"X[{i}]": value for i, value in enumerate(throughput)}
    )
    _need(len(n) == len(throughput) > 1 and n[0] == 1, "n", n, "as long as the throughputs, and begin with 1")
    pairs = [(one - 1, one * throughput[0] / x - 1) for one, x in zip(n, throughput, strict=True)]
    return sum(t * y for t, y in pairs) / sum(t * t for t, _ in pairs)
