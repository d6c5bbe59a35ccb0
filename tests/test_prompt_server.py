"""A server that is told to end: at once, unless somebody is in flight, and then as uvicorn does."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
import pytest
import uvicorn

from support.prompt_server import LEAST_S, PromptServer
from support.server_process import listen


async def slow(scope, receive, send) -> None:
    """Answers after as many seconds as its path says."""
    await asyncio.sleep(float(scope["path"].strip("/")))
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@contextlib.asynccontextmanager
async def serving(limit: float | None):
    """A PromptServer in this loop with that graceful timeout, and a client of it; the block tells it to end."""
    config = uvicorn.Config(slow, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=limit)
    with listen() as listener:
        server = PromptServer(config)
        running = asyncio.create_task(server._serve([listener]))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=9) as client:
                assert (await client.get("/0")).status_code == 204
                yield server, client, running
        finally:
            server.end()
            await running


async def told_to_end(limit: float | None, takes_s: float) -> tuple[str, float]:
    """What a client who is in flight gets, and the seconds from the word until the server is over."""
    async with serving(limit) as (server, client, running):
        visit = asyncio.create_task(client.get(f"/{takes_s}"))
        while not server.server_state.tasks:
            await asyncio.sleep(0.001)
        began = time.monotonic()
        server.end()
        await running
        took = time.monotonic() - began
        try:
            return str((await visit).status_code), took
        except httpx.RemoteProtocolError:
            return "cut off", took


async def idle() -> float:
    async with serving(None) as (server, _, running):
        began = time.monotonic()
        server.end()
        await running
        return time.monotonic() - began


def test_a_server_with_nobody_in_flight_is_over_before_uvicorn_would_look() -> None:
    assert min(asyncio.run(idle()) for _ in range(5)) < 0.1  # s; an idle connection is open all the time


@pytest.mark.parametrize("limit, takes_s", [(None, 0.3), (1, 0.3), (0, LEAST_S / 4)])
def test_who_is_in_flight_is_answered_within_the_limit(limit: float | None, takes_s: float) -> None:
    answers = [asyncio.run(told_to_end(limit, takes_s))[0] for _ in range(3)]
    assert "204" in answers, answers  # of three: a busy machine may be late for a limit


def test_who_takes_longer_than_the_limit_is_cut_off() -> None:
    answer, took = asyncio.run(told_to_end(0, 30))
    assert answer in ("cut off", "500") and LEAST_S <= took < 5, (answer, took)


def test_a_server_that_is_told_twice_or_before_it_starts_ends() -> None:
    server = PromptServer(uvicorn.Config(slow, log_config=None, lifespan="off"))
    server.end()
    server.end()
    with listen() as listener:
        asyncio.run(asyncio.wait_for(server._serve([listener]), 5))
