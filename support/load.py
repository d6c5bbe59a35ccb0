"""Load for a server on this machine, made in a process of its own.

`closed_loop` keeps a number of requests in flight: each worker sends its next request when it has
its answer, so the load gives way when the server is slow. `open_loop` sends at its own times,
whatever the server does, as independent users do, and counts each latency from the time when the
request was due. The first call starts the process, which later calls use again; it ends with the
chapter, with the kernel, and when a run is cancelled.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from support import servers

NAME, APP = "load generator", "support.load_process:app"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_IN_FLIGHT = 900  # a process may often have 1,024 files open, and each connection is one
MOST_SECONDS, MOST_REQUESTS, MOST_PER_SECOND = 60, 200_000, 20_000


@dataclass(frozen=True, eq=False, repr=False)
class Load:
    """What one run measured. All times are in seconds.

    latencies: of the completed requests, those answered with a status below 400. A request that
        failed has no latency here, so look at `failed` before you trust a percentile.
    starts: when each of them was started, or in an open loop was due, since the start of the run.
    rate: completions per second. Closed loop: for each worker, its completions over the time that
        it spent on them, summed. Open loop: between the first and the last completion.
    sent: the requests sent, without those of the warm-up.
    failed: how many failed, by reason: a status such as "503", the name of an exception, or
        "max_in_flight" for those that an open loop did not send.
    late: the largest delay between the time when a request of an open loop was due and the time
        when the generator got to it. Large against the latencies: the generator did not keep up.
    busy: the share of one core that the generator used. Near 1: it was the bottleneck.
    """

    latencies: np.ndarray
    starts: np.ndarray
    rate: float
    sent: int
    failed: Counter[str]
    late: float
    busy: float

    @property
    def completed(self) -> int:
        """How many requests were answered with a status below 400."""
        return len(self.latencies)

    @property
    def mean(self) -> float:
        """The mean latency; nan when nothing completed."""
        return float(np.mean(self.latencies)) if self.completed else math.nan

    def percentile(self, q: float) -> float:
        """The latency that q percent of the completed requests did not exceed; nan when there are none.

        Raises ValueError unless q is 0 or from 1 to 100.
        """
        if not (q == 0 or 1 <= q <= 100):
            raise ValueError(f"percentile({q!r}): q is in percent, from 1 to 100, as in percentile(99).")
        return float(np.percentile(self.latencies, q)) if self.completed else math.nan

    def histogram(self, bins: Any = 50) -> tuple[np.ndarray, np.ndarray]:
        """The raw counts and the edges of the bins, as `numpy.histogram` returns them."""
        return np.histogram(self.latencies, bins)

    def __repr__(self) -> str:
        return f"<Load: {self.sent} sent, {self.completed} completed, {self.failed.total()} failed>"


async def closed_loop(
    url: str,
    *,
    concurrency: int,
    seconds: float | None = None,
    requests: int | None = None,
    warm_up: float = 0.0,
    timeout: float | None = None,
) -> Load:
    """Keep `concurrency` requests in flight for that many `seconds`, or until `requests` were sent.

    A request that was sent in time is waited for. The requests of the first `warm_up` seconds are
    not counted: in them the queues fill and the connections open. A request that takes longer than
    `timeout` fails; None waits as long as the server does.

    Raises ValueError for a URL that is not on this machine and for numbers out of range, and
    ConnectionError when nothing listens there.
    """
    if (seconds is None) == (requests is None):
        raise ValueError("closed_loop() takes either seconds= or requests=, and exactly one of them.")
    _whole("concurrency", concurrency, MOST_IN_FLIGHT)
    if requests is None:
        _above_zero("seconds", seconds, MOST_SECONDS)
    else:
        _whole("requests", requests, MOST_REQUESTS)
    if warm_up:
        _above_zero("warm_up", warm_up, MOST_SECONDS)
    how = {"concurrency": concurrency, "seconds": seconds, "requests": requests, "warm_up": warm_up}
    return await _run(url, timeout, how)


async def open_loop(
    url: str,
    *,
    rate: float,
    seconds: float,
    spacing: str = "poisson",
    timeout: float | None = None,
    seed: int = 1,
    max_in_flight: int = MOST_IN_FLIGHT,
) -> Load:
    """Send `rate` requests per second for that many `seconds`, whatever the server does.

    spacing: "poisson", as independent users arrive, the same for the same `seed`; or "even".
    max_in_flight: a request that is due while so many are unanswered is not sent, and is counted
        in `failed` as "max_in_flight".

    Every request is waited for; one that takes longer than `timeout`, from when it is sent, fails.
    Raises as `closed_loop` does.
    """
    _above_zero("rate", rate, MOST_PER_SECOND)
    _above_zero("seconds", seconds, MOST_SECONDS)
    _above_zero("rate * seconds", rate * seconds, MOST_REQUESTS)
    _whole("max_in_flight", max_in_flight, MOST_IN_FLIGHT)
    if spacing not in ("poisson", "even"):
        raise ValueError(f'spacing must be "poisson" or "even", not {spacing!r}.')
    if not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, not {seed!r}.")
    how = {"rate": rate, "seconds": seconds, "spacing": spacing, "seed": seed, "max_in_flight": max_in_flight}
    return await _run(url, timeout, how)


def start() -> None:
    """Start the generator's process now, and say so in one line. Safe to run again.

    The first run would start it too, and hold the loop meanwhile, for up to a second.
    """
    _generator()
    print(f"{NAME}: ready, in a process of its own")


def _generator() -> servers.Server:
    for server in servers.running():
        if server.name == NAME:
            return server
    return servers.serve(APP, name=NAME, loop="asyncio")  # the same loop on every system


async def _run(url: str, timeout: float | None, how: dict[str, Any]) -> Load:
    address = _on_this_machine(url)
    if timeout is not None:
        _above_zero("timeout", timeout, MOST_SECONDS)
    generator = _generator()
    whole_run = aiohttp.ClientTimeout(total=None)
    try:
        async with (
            aiohttp.ClientSession(timeout=whole_run) as session,
            session.post(generator.url, json={"url": url, "timeout": timeout, **how}) as answer,
        ):
            measured = await answer.json() if answer.ok else {}
    except aiohttp.ClientError:
        raise RuntimeError("The load generator was stopped during the run: run this again.") from None
    except BaseException:  # a cancellation and an interrupt must leave no load behind
        generator.stop()
        raise
    if answer.status == 502:
        raise ConnectionError(f"Nothing listens at {address}: start the server, then run this again.")
    if not answer.ok:
        raise RuntimeError(f"The load generator failed: {generator.log.strip().splitlines()[-1]}")
    for name in ("latencies", "starts"):
        measured[name] = np.array(measured[name], dtype=float)
    return Load(**measured | {"failed": Counter(measured["failed"])})


def _on_this_machine(url: Any) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it raises ValueError for a port that cannot be
        if parts.scheme == "http" and parts.hostname in LOOPBACK:
            return f"http://{parts.netloc}"
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"Load goes to this machine only, to http:// and one of {', '.join(LOOPBACK)}, not to {url!r}.")


def _above_zero(name: str, value: Any, most: float) -> None:
    if not (isinstance(value, (int, float)) and 0 < value <= most):
        raise ValueError(f"{name} must be a number above 0 and up to {most:,}, not {value!r}.")


def _whole(name: str, value: Any, most: int) -> None:
    if not (isinstance(value, int) and 1 <= value <= most):
        raise ValueError(f"{name} must be a whole number from 1 to {most:,}, not {value!r}.")
