"""Queues simulated in plain Python: what the closed forms of `support.theory` are held against."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable

import numpy as np


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


def oldest_job_ages(
    too_much: Callable[[float, float], bool], *, rate: int = 30, cpu_s: float = 0.005,
    start_s: float = 5, seconds: int = 60
) -> list[float]:  # fmt: skip
    """How old the oldest job in a queue is, in seconds, ten times a second, where a signal starts the workers.

    A model: `rate` jobs a second come evenly, in threes at 30; a worker takes 0.1 s for each job and computes for `cpu_s`
    of that. There is one worker. too_much(age, cpu) is asked each time with the age of the oldest job and the fraction
    of a core that a worker uses; where it answers True one more worker is started, one at a time, in `start_s` seconds.
    Raises ValueError for a rate that is not a multiple of 10.
    """
    if type(rate) is not int or rate % 10 or rate <= 0:
        raise ValueError(f"oldest_job_ages: the model steps by 0.1 s, so rate must be 10, 20, ..., not {rate!r}.")
    each, done, ready_at, ages = rate // 10, 0, [0.0], []
    came = np.arange(rate * seconds) // each / 10
    for now in np.arange(10 * seconds) / 10:
        waits = int((came <= now).sum()) - done
        busy = min(waits, sum(at <= now for at in ready_at))  # workers
        done += busy
        ages.append(max(0.0, float(now - came[min(done, len(came) - 1)])))
        if now >= ready_at[-1] and too_much(ages[-1], busy / len(ready_at) * cpu_s / 0.1):
            ready_at.append(now + start_s)
    return ages
