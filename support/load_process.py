"""The load generator itself: an application that `support.load` runs in a process of its own.

A POST brings one run as JSON and is answered with what the run measured. A client that leaves ends
its run. As an application beside a notebook it ends, like every server, with its notebook.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

clock = time.perf_counter


class NobodyListens(Exception):
    """The first connection was refused: there is no server to measure."""


class Run:
    """One run against one URL: its requests, and what is known of them."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url
        self.began = self.late = 0.0
        self.sent = 0
        self.answered = False
        self.failed: Counter[str] = Counter()
        self.starts: list[float] = []
        self.latencies: list[float] = []

    async def request(self, due: float, *, counted: bool = True) -> bool:
        """Send one request that was due at that time. Returns whether it was answered well."""
        self.sent += counted
        reason = ""
        try:
            async with self.session.get(self.url, allow_redirects=False) as answer:
                await answer.read()
            end = clock()
            self.answered = True
            if answer.status >= 400:
                reason = str(answer.status)
        except aiohttp.ClientConnectorError as error:
            if not self.answered and isinstance(error.os_error, ConnectionRefusedError):
                raise NobodyListens from None
            reason = type(error).__name__
        except TimeoutError:
            reason = "TimeoutError"  # aiohttp has several names for it
        except (aiohttp.ClientError, OSError) as error:
            reason = type(error).__name__
        if not counted:
            return not reason
        if reason:
            self.failed[reason] += 1
        else:
            self.starts.append(due - self.began)
            self.latencies.append(end - due)
        return not reason

    async def closed_loop(self, concurrency: int, seconds: float | None, requests: int | None, warm_up: float) -> float:
        """Keep that many requests in flight. Returns the completions per second."""
        self.began = clock() + warm_up
        end = math.inf if seconds is None else self.began + seconds
        left = math.inf if requests is None else requests

        async def worker() -> float:
            nonlocal left
            while clock() < self.began:
                await self.request(clock(), counted=False)
            first, completed = clock(), 0
            last = first
            while last < end and left > 0:
                left -= 1
                completed += await self.request(last)
                last = clock()
            return completed / (last - first) if completed else 0.0

        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(worker()) for _ in range(concurrency)]
        return sum(task.result() for task in workers)

    async def open_loop(self, offsets: list[float], max_in_flight: int) -> float:
        """Send at each offset, whatever is still in flight. Returns the completions per second."""
        ends: list[float] = []
        in_flight = 0

        async def one(due: float) -> None:
            nonlocal in_flight
            self.late = max(self.late, clock() - due)
            if await self.request(due):
                ends.append(clock())
            in_flight -= 1

        self.began = clock()
        async with asyncio.TaskGroup() as group:
            for offset in offsets:
                due = self.began + offset
                # At least one step of the loop, so that the requests get on when this one is late.
                await asyncio.sleep(max(0.0, due - clock()))
                while clock() < due:  # where the loop's clock is coarse, its timers end early
                    await asyncio.sleep(0)
                if in_flight >= max_in_flight:
                    self.failed["max_in_flight"] += 1
                    continue
                in_flight += 1
                group.create_task(one(due))
        return (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else 0.0


def schedule(rate: float, seconds: float, spacing: str, seed: int) -> list[float]:
    """Return when each request of an open loop is due, in seconds from the start."""
    if spacing == "even":
        return [number / rate for number in range(max(1, round(rate * seconds)))]
    dice, offsets, due = random.Random(seed), [], 0.0
    while (due := due + dice.expovariate(rate)) < seconds:
        offsets.append(due)
    return offsets


async def carry_out(job: dict[str, Any]) -> dict[str, Any]:
    """Do one run and return what it measured. Raises NobodyListens."""
    # The library's own limit of 100 connections would measure the client.
    connector = aiohttp.TCPConnector(limit=0)
    patience = aiohttp.ClientTimeout(total=job["timeout"])
    async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:
        run = Run(session, job["url"])
        wall, cpu = clock(), time.process_time()
        try:
            if "rate" in job:
                offsets = schedule(job["rate"], job["seconds"], job["spacing"], job["seed"])
                rate = await run.open_loop(offsets, job["max_in_flight"])
            else:
                rate = await run.closed_loop(job["concurrency"], job["seconds"], job["requests"], job["warm_up"])
        except BaseExceptionGroup as group:
            if group.subgroup(NobodyListens):
                raise NobodyListens from None
            raise
        busy = (time.process_time() - cpu) / (clock() - wall)
    return {
        "starts": [round(start, 7) for start in run.starts],
        "latencies": [round(latency, 7) for latency in run.latencies],
        "rate": rate,
        "sent": run.sent,
        "failed": run.failed,
        "late": run.late,
        "busy": busy,
    }


async def app(scope: dict, receive: Callable[[], Awaitable[dict]], send: Callable) -> None:
    """The ASGI application: one run a request."""
    if scope["type"] != "http":
        raise NotImplementedError(f"The load generator speaks HTTP only, not {scope['type']}.")
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    run = asyncio.create_task(carry_out(json.loads(body)))
    client = asyncio.create_task(receive())  # it has no more to say than that it leaves
    try:
        await asyncio.wait({run, client}, return_when=asyncio.FIRST_COMPLETED)
        if not run.done():
            return
        try:
            status, content = 200, run.result()
        except NobodyListens:
            status, content = 502, {}
        answer = json.dumps(content).encode()
        length = [(b"content-length", b"%d" % len(answer)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": length})
        await send({"type": "http.response.body", "body": answer})
    finally:
        client.cancel()
        run.cancel()
        await asyncio.wait({run, client})
