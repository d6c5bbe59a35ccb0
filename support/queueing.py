"""Queues simulated in plain Python: what the closed forms of `support.theory` are held against."""

from __future__ import annotations

import heapq
import math
import random


def simulated_wait(
    q: float, rate: float, service_time: float, servers: int, *, arrivals: int = 20_000, seed: int = 1
) -> float:
    """Seconds that a fraction `q` of the arrivals at `servers` waits at most: M/M/c, first come, first served.

    rate: arrivals per second, by chance. service_time: mean seconds, exponential. The queue starts empty, and the
    first tenth of the arrivals is not counted. The same seed gives the same answer.
    Raises ValueError for bad input, and where the servers cannot keep up.
    """
    for name, value, right in (
        ("q", q, 0 <= q < 1),
        ("rate", rate, 0 < rate < math.inf),
        ("service_time", service_time, 0 < service_time < math.inf),
        ("servers", servers, type(servers) is int and servers > rate * service_time),
        ("arrivals", arrivals, type(arrivals) is int and arrivals >= 100),
    ):
        if not right:
            raise ValueError(f"simulated_wait: {name} cannot be {value!r}; servers must outnumber rate x service_time.")
    dice, now, free, waits = random.Random(seed), 0.0, [0.0] * servers, []
    for _ in range(arrivals):
        now += dice.expovariate(rate)
        start = max(now, free[0])
        waits.append(start - now)
        heapq.heapreplace(free, start + dice.expovariate(1 / service_time))
    counted = sorted(waits[arrivals // 10 :])
    return counted[int(q * len(counted))]
