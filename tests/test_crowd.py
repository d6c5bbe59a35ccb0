"""Visitors who ask together: each with cookies of his own, and a WebSocket whose end he notes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from support import servers
from support.crowd import crowd

here: list = []


def in_a_loop(test: Callable) -> Callable:
    @functools.wraps(test)
    def run(*arguments: object, **fixtures: object) -> None:
        asyncio.run(test(*arguments, **fixtures))

    return run


async def visit(request) -> JSONResponse:
    seen = [request.query_params["who"], request.cookies.get("mine")]
    answer = JSONResponse(seen)
    answer.set_cookie("mine", request.query_params["who"])
    return answer


async def room(socket) -> None:
    await socket.accept()
    here.append(socket)
    async for text in socket.iter_text():
        for one in here:
            await (one.close() if text == "odd ones leave" and here.index(one) % 2 else one.send_text(text))


async def broken(request) -> JSONResponse:
    return JSONResponse(None, status_code=500)


@pytest.fixture(scope="module")
def url():
    routes = [Route("/visit", visit), Route("/broken", broken), WebSocketRoute("/room", room)]
    with servers.serve(Starlette(routes=routes), in_process=True) as server:
        yield server.url


@in_a_loop
async def test_each_visitor_has_cookies_of_his_own(url: str) -> None:
    async with crowd(url, 3) as people:
        first, cookies = zip(*await people.ask("/visit"), strict=True)
        assert len({*first}) == 3 and cookies == (None,) * 3
        assert await people.ask("/visit") == [[who, who] for who in first]
    async with crowd(url, 1) as others:
        assert (await others.ask("/visit"))[0][0] not in first
        with pytest.raises(aiohttp.ClientResponseError, match="500"):
            await others.ask("/broken")


@in_a_loop
async def test_all_hear_what_is_said_and_who_is_sent_away_hears_none(url: str) -> None:
    here.clear()
    async with crowd(url, 4) as people:
        await people.join("/room")
        await people.say("first", "second")
        assert await people.hear("second") == [["first", "second"]] * 4
        await people.say("odd ones leave")
        assert sorted(map(str, await people.hear("odd ones leave"))) == ["['odd ones leave']"] * 2 + ["[None]"] * 2
    assert len(asyncio.all_tasks()) == 1


@in_a_loop
async def test_who_hears_nothing_does_not_wait_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.crowd.PATIENCE_S", 0.1)
    async with crowd(url, 1) as people:
        await people.join("/room")
        with pytest.raises(TimeoutError):
            await people.hear("never said")


@in_a_loop
async def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one visitor, not 0"):
        async with crowd("http://127.0.0.1:1", 0):
            pass
