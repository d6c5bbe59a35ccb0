"""The outage of the protection ladder on the reader's machine: real servers, of which one dies. See `support.ladders`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import aiohttp
import numpy as np

from support.gateway.settings import Settings
from support.ladders import AGGREGATE, Rung
from support.servers import Upstream, serve

GATEWAY = "support.gateway.app:app"


class Dying:
    """A service for `serve(app, in_process=True)`: ``state`` is "well", "hangs" (it answers nobody) or "gone" (503).

    ``calls`` counts by path.
    """

    def __init__(self) -> None:
        self.state, self.calls = "well", Counter[str]()

    def hang(self) -> None:
        """From now on it takes calls, and answers none. The count begins anew."""
        self.state = "hangs"
        self.calls.clear()

    def go(self) -> None:
        """From now on it answers 503, also those who wait."""
        self.state = "gone"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.calls[scope["path"]] += 1
        while self.state == "hangs":
            await asyncio.sleep(0.01)
        status, body = (200, b"{}") if self.state == "well" else (503, b"")
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def as_environment(settings: Settings) -> dict[str, str]:
    """The GATEWAY_* variables of a process with these settings: ``serve("support.gateway.app:app", env=...)``."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return {
        f"GATEWAY_{name.upper()}": "off" if value is None else json.dumps(dict(value) if isinstance(value, Mapping) else value)
        for name, value in values.items()
        if name != "ca_file"
    }  # fmt: skip


async def crowd(
    session: aiohttp.ClientSession, url: str, living: Collection[str], rate: float, seconds: float
) -> list[tuple[float, bool]]:
    """For ``seconds``, ``rate`` requests a second, whatever becomes of them: (seconds until the answer, all living parts in it)."""
    loop, visits = asyncio.get_running_loop(), []
    start = loop.time()

    async def visit() -> tuple[float, bool]:
        came = loop.time()
        try:
            async with session.get(url) as answer:
                parts = (await answer.json()).get("parts", {})
        except (aiohttp.ClientError, TimeoutError):
            parts = {}
        return loop.time() - came, all(parts.get(name, {}).get("status") == "ok" for name in living)

    try:
        for number in range(round(rate * seconds)):
            await asyncio.sleep(start + number / rate - loop.time())
            visits.append(asyncio.create_task(visit()))
        return await asyncio.gather(*visits)
    finally:
        for one in visits:
            one.cancel()


def seen_by(crowd: Sequence[tuple[float, bool]], calls: int, deadline: float) -> Rung:
    """What a `crowd` saw, and the upstream that died, as a Rung; the rest is not known."""
    took = [seconds for seconds, _ in crowd]
    whole = sum(good and seconds <= deadline for seconds, good in crowd) / len(crowd)
    return Rung(whole, float(np.percentile(took, 99)), calls / len(crowd), math.nan, math.nan, {})


async def really(
    gateways: Mapping[str, Settings],
    upstream: Upstream,
    *,
    half_s: float = 0.7,
    rate: float = 100.0,
    deadline: float = 1.0,
) -> dict[str, Rung]:
    """Send the same load to each of `gateways`, each in a process of its own, while users hangs and then answers 503.

    Args:
        gateways: name -> settings; prices and stock are played by the practice `upstream`, users by a server here.
        half_s: seconds that users hangs, and again seconds in which it answers 503.
        rate: requests per second to each gateway.
        deadline: seconds after which an answer is of no use any more.
    """
    living = {"prices": upstream.url_for("delay/0.02"), "stock": upstream.url_for("delay/0.04")}
    users = Dying()
    async with contextlib.AsyncExitStack() as stack:
        address = stack.enter_context(serve(users, in_process=True, name="users")).url

        def start(name: str) -> str:
            own = dataclasses.replace(gateways[name], upstreams=living | {"users": f"{address}/{name}"})
            return stack.enter_context(serve(GATEWAY, name=name, env=as_environment(own))).url + AGGREGATE

        started = await asyncio.gather(*[asyncio.to_thread(start, name) for name in gateways])  # side by side
        urls = dict(zip(gateways, started, strict=True))
        users.hang()
        asyncio.get_running_loop().call_later(half_s, users.go)
        stack.callback(users.go)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        crowds = await asyncio.gather(*[crowd(session, url, living, rate, 2 * half_s) for url in urls.values()])
    return {name: seen_by(one, users.calls[f"/{name}"], deadline) for name, one in zip(urls, crowds, strict=True)}
