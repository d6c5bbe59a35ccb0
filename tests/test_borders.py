"""The mirror behind a gateway: it tells what a gateway let through, and counts what reached it."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from support import borders

SENT = {"Authorization": "Bearer B", "X-User-Id": "admin", "X-Request-ID": "r-1"}


def gateway(**written: str) -> Starlette:
    """Lets the token "good" in, breaks at "bad"; passes all that came, or, with `written`, only that."""

    async def enter(request: Request) -> Response:
        token = request.headers["authorization"].removeprefix("Bearer ")
        if token not in ("good", "B"):
            return Response(status_code=500 if token == "bad" else 401)
        url = f"{request.app.state.mirror}/{request.path_params['path']}"
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            async with session.get(url, headers=written or dict(request.headers)) as answer:
                return Response(await answer.read(), headers=answer.headers)

    async def login(request: Request) -> Response:
        return Response("welcome")

    return Starlette(routes=[Route("/login", login), Route("/{path:path}", enter)])


def test_it_tells_what_became_of_each_field():
    mirror = borders.Mirror(SENT, {"Connection": "X-Hop"})
    every = asyncio.run(borders.two_users(mirror, gateway()))
    assert every == {name: "as sent" for name in SENT} | {
        "Cookie of user A": None, "answer: X-Debug": "as sent", "answer: body": "hello"}  # fmt: skip
    own = asyncio.run(borders.two_users(mirror, gateway(**{"x-request-id": "g-1", "cookie": "session=A-SECRET"})))
    assert [*own.values()][:4] == [None, None, "its own", "SENT FOR B"]


def test_it_counts_who_comes_in_and_as_whom(capsys):
    mirror = borders.Mirror(SENT, {})
    tokens = {"two": "worse", "one": "good"}
    every = asyncio.run(borders.knock(mirror, gateway(), ["first", "second"], tokens))["second"]
    assert every == {"two": None, "one": "nobody", "calls upstream": "1", "401": "1", "token goes on": "yes",
                     "one, says root": "root"}  # fmt: skip
    own = asyncio.run(borders.knock(mirror, gateway(**{"x-user-id": "ann"}), ["any"], tokens))["any"]
    assert [*own.values()] == [None, "ann", "1", "1", "no", "ann"]
    with pytest.raises(ValueError, match="'three' got 500"):
        asyncio.run(borders.knock(mirror, gateway(), ["any"], {"three": "bad"}))
    borders.compare(naive=every, own=own)
    assert capsys.readouterr().out.splitlines()[2].split() == ["one", "nobody", "ann"]
