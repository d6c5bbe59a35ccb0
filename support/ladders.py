"""The protection ladder of chapter 09: one of three upstreams hangs, and the gateway's protections come one by one.

The gateway is the real pipeline, `support/gateway/pipeline.py`. Its upstreams are played, with a finite
capacity, on the virtual clock: exact and repeatable. The same outage on the reader's machine: `support.outages`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from support.gateway.answer import Reply
from support.gateway.pipeline import Gateway
from support.gateway.settings import Settings

MEANS = {"users": 0.01, "prices": 0.02, "stock": 0.04}  # seconds of an upstream's work: exponential
SLOW_SHARE, SLOW_S = 0.02, 0.4  # of the calls to a healthy upstream are slow for no reason of their own
WORKERS = 8  # calls that each upstream works on at once; the others wait there
CONNECT_S = 0.015  # a new connection, with TLS
REGISTRY = {name: f"http://{name}.internal" for name in MEANS}
AGGREGATE = "/aggregate?" + "&".join(f"services={name}" for name in MEANS)
OFF: dict[str, Any] = dict.fromkeys(("deadline", "bulkhead", "retry_budget", "breaker", "cache", "hedge", "shed"))
OFF |= {"shared_client": False, "partial": False}


@dataclass(frozen=True)
class Rung:
    """What was seen of the requests that came during the outage.

    Attributes:
        whole: share of them that were answered within the deadline, with all parts of the living upstreams.
        p99: seconds until an answer, whatever it says.
        dead, living: calls to an upstream that hangs, and to a living one, over what a request each would be.
        connections: new connections for each request.
        statuses: how many answers had which status.
    """

    whole: float
    p99: float
    dead: float
    living: float
    connections: float
    statuses: Mapping[int, int]


class Upstreams:
    """Three services with a finite capacity, of which some hang while ``hanging``. ``fetch`` is what a Gateway calls."""

    def __init__(self, settings: Settings, fails: str, seed: int) -> None:
        self.fails, self.state, self._shared = fails, "well", settings.shared_client
        self._gone = asyncio.Event()
        self.calls, self.connections = Counter[str](), 0
        self._dice = {name: random.Random(f"{seed} {name}") for name in MEANS}
        self._workers = {name: asyncio.Semaphore(WORKERS) for name in MEANS}
        self._pool = asyncio.Semaphore(sys.maxsize if settings.bulkhead else settings.connections)

    async def fetch(self, name: str, path: str, headers: Any, timeout: float | None) -> Reply:
        """One call: with a bulkhead over connections of its name, else over one pool for all, or a new connection."""
        async with self._connection():
            self.calls[name] += 1
            if name == self.fails and self.state != "well":
                await self._gone.wait()
                return Reply(503, {}, b"")
            dice = self._dice[name]
            seconds = dice.expovariate(1 / MEANS[name]) + SLOW_S * (dice.random() < SLOW_SHARE)
            async with self._workers[name]:
                await asyncio.sleep(seconds)
            return Reply(200, {}, b"{}")

    def hang(self) -> None:
        """From now on it takes calls, and answers none."""
        self.state = "hangs"

    def go(self) -> None:
        """From now on it is gone, and its balancer says so: 503 to who waits for an answer, and to who comes."""
        self._gone.set()

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[None]:
        if self._shared:
            async with self._pool:
                yield
        else:
            self.connections += 1
            await asyncio.sleep(CONNECT_S)
            yield


async def outage(
    settings: Settings,
    *,
    fails: str = "stock",
    rate: float = 50.0,
    seconds: float = 10.0,
    hangs: float = 5.0,
    deadline: float = 1.0,
    seed: int = 9,
) -> Rung:
    """Under `simulate`: requests at random. After a second ``fails`` hangs, then it is gone: 503. What came meanwhile counts.

    Args:
        rate: requests per second; each asks all three upstreams.
        seconds: of the outage; the first ``hangs`` of them it takes calls, and answers none.
        deadline: seconds after which an answer is of no use any more.
    """
    loop, dice, upstreams = asyncio.get_running_loop(), random.Random(seed), Upstreams(settings, fails, seed)
    gateway = Gateway(settings, upstreams.fetch, dice=random.Random(seed))
    living, took, whole, statuses = [name for name in MEANS if name != fails], list[float](), 0, Counter[int]()

    async def request(counts: bool) -> None:
        nonlocal whole
        came = loop.time()
        answer = await gateway.aggregate(MEANS)
        if counts:
            took.append(loop.time() - came)
            statuses[answer.status] += 1
            whole += took[-1] <= deadline and all(name in answer.parts and answer.parts[name].ok for name in living)

    async def requests(until: float, counts: bool) -> None:
        while (pause := dice.expovariate(rate)) < until - loop.time():
            await asyncio.sleep(pause)
            group.create_task(request(counts))
        await asyncio.sleep(until - loop.time())

    async with asyncio.TaskGroup() as group:
        await requests(1.0, counts=False)
        upstreams.hang()
        upstreams.calls.clear()
        upstreams.connections = 0
        loop.call_later(hangs, upstreams.go)
        await requests(1.0 + seconds, counts=True)
        calls, connections = upstreams.calls.copy(), upstreams.connections
    await gateway.close()
    share = {name: calls[name] / len(took) for name in MEANS}
    return Rung(
        whole / len(took),
        float(np.percentile(took, 99)),
        share[fails],
        sum(share[name] for name in living) / len(living),
        connections / len(took),
        statuses,
    )


def gateways(steps: Mapping[str, Mapping[str, Any]], **always: Any) -> dict[str, Settings]:
    """For each step the settings of a gateway with its protections and those of the steps before; the others are off."""
    chosen, settings = {**OFF, **always, "upstreams": REGISTRY}, {}
    for name, change in steps.items():
        chosen |= change
        settings[name] = Settings(**chosen)
    return settings


def dead_load(
    attempts: float,
    late: float,
    *,
    hangs: float = 5.0,
    seconds: float = 10.0,
    slots: float = math.inf,
    rate: float = 50.0,
    budget: float | None = None,
) -> float:
    """Calls to the upstream that hangs and is then gone, over one for each request, without a breaker.

    While it hangs, a call goes out with each request, or as often as one of ``slots`` is given back: slots / late,
    whichever is less. When it is gone each request makes all its attempts, or 1 + budget; so do those that were
    waiting when it went. By Little's law and by counting, for deterministic arrivals.

    Args:
        attempts: calls that one request makes when each of them fails at once.
        late: seconds until a call that hangs is given up.
        budget: extra attempts for each request; None: no bound.
    """
    each = attempts if budget is None else min(attempts, 1 + budget)
    if slots == math.inf:
        return (hangs - late + (seconds - hangs + late) * each) / seconds
    return (hangs * min(1.0, slots / (late * rate)) + (seconds - hangs) * each) / seconds
