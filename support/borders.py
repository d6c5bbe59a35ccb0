"""What passes a gateway of chapter 09, seen from behind it: an upstream that notes what it is sent.

    mirror = Mirror({"X-User-Id": "admin"}, {"Connection": "X-Hop"})
    await two_users(mirror, gateway)  # A logs in through the gateway, B sends those fields: what became of each
    await knock(mirror, gateway, ["naive"], {"good": token})  # which tokens come in, and as whom

A gateway here is a FastAPI or Starlette application. Before the first request, its `state.mirror` gets the url of the
upstream that it stands before.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from support.servers import serve

PACKED = {"Content-Encoding": "gzip", "Connection": "X-Debug", "X-Debug": "db7.internal"}
COOKIE = {"Set-Cookie": "session=A-SECRET"}
Row = dict[str, str | None]


class Mirror:
    """An upstream that keeps the fields of each request in `seen`, their names in lower case.

    Its answer is packed with gzip, and has a field X-Debug that belongs to the connection. `/login` sets a cookie too.

    sent: fields that a client will send. named: more of them, which are about its connection, so nobody asks for them.
    """

    def __init__(self, sent: Mapping[str, str], named: Mapping[str, str]) -> None:
        self.sent, self.named = dict(sent), dict(named)
        self.seen: list[dict[str, str]] = []
        self.app = Starlette(routes=[Route("/{path:path}", self._look)])

    def became(self) -> Row:
        """What became of each field on its way to the last request: as sent, replaced by the gateway's own, or gone."""
        got = self.seen[-1]
        row: Row = {}
        for name, value in self.sent.items():
            arrived = got.get(name.lower())
            row[name] = "as sent" if arrived == value else "its own" if arrived is not None else None
        return row | {"Cookie of user A": "SENT FOR B" if "cookie" in got else None}

    async def _look(self, request: Request) -> Response:
        self.seen.append(dict(request.headers))
        cookie = COOKIE if request.url.path == "/login" else {}
        return Response(gzip.compress(b"hello"), headers=PACKED | cookie)


async def two_users(mirror: Mirror, gateway: Any, way: str = "") -> Row:
    """User A logs in at `way`/login of the gateway; then B, without a cookie, sends the mirror's fields to `way`/items.

    Returns what became of each of B's fields, and of the answer. Raises aiohttp.ClientError when nobody answers.
    """
    with serve(mirror.app, in_process=True, name="mirror") as behind, serve(gateway, in_process=True, name="gateway") as front:  # fmt: skip
        # A jar takes no cookies from a bare address.
        gateway.state.mirror = behind.url.replace("127.0.0.1", "localhost")
        async with aiohttp.ClientSession(front.url) as user_a, user_a.get(way + "/login"):
            pass
        fields = mirror.sent | mirror.named
        async with aiohttp.ClientSession(front.url) as user_b, user_b.get(way + "/items", headers=fields) as answer:
            [body] = await asyncio.gather(answer.read(), return_exceptions=True)
    if isinstance(body, BaseException):
        text = "an error"
    else:
        text = "packed" if body[:2] == b"\x1f\x8b" else body.decode()
    debug = "as sent" if "x-debug" in answer.headers else None
    return mirror.became() | {"answer: X-Debug": debug, "answer: body": text}


async def knock(
    mirror: Mirror, gateway: Any, ways: Iterable[str], tokens: Mapping[str, str], liar: str = "root"
) -> dict[str, Row]:
    """Send each token to each way of the gateway, as a bearer's; then the last one again, with an X-User-Id of the client's.

    Returns by way: for each token the X-User-Id that the upstream saw, None when it saw no request; how many calls it
    got for all of them, how many answers were 401, whether the token went on to it; and whom it saw when the client
    said that it is `liar`. Raises ValueError for an answer that is neither 200 nor 401, aiohttp.ClientError when nobody
    answers.
    """
    with serve(mirror.app, in_process=True, name="mirror") as behind, serve(gateway, in_process=True, name="gateway") as front:  # fmt: skip
        gateway.state.mirror = behind.url
        async with aiohttp.ClientSession(front.url) as client:
            return {way: await _knock_at(mirror, client, f"/{way}", tokens, liar) for way in ways}


async def _knock_at(
    mirror: Mirror, client: aiohttp.ClientSession, path: str, tokens: Mapping[str, str], liar: str
) -> Row:
    statuses: list[int] = []
    mirror.seen.clear()

    async def seen_as(name: str, **lie: str) -> str | None:
        before, fields = len(mirror.seen), {"Authorization": f"Bearer {tokens[name]}"} | lie
        async with client.get(path, headers=fields) as answer:
            await answer.read()
        if answer.status not in (200, 401):
            raise ValueError(f"knock(): {name!r} got {answer.status}, which is neither 200 nor 401.")
        statuses.append(answer.status)
        return mirror.seen[-1].get("x-user-id", "nobody") if len(mirror.seen) > before else None

    row = {name: await seen_as(name) for name in tokens}
    row |= {"calls upstream": str(len(mirror.seen)), "401": str(statuses.count(401))}
    row["token goes on"] = "yes" if any("authorization" in fields for fields in mirror.seen) else "no"
    last = [*tokens][-1]
    return row | {f"{last}, says {liar}": await seen_as(last, **{"X-User-Id": liar})}


def compare(**columns: Mapping[str, str | None]) -> None:
    """Print rows that have the same names, a column for each."""
    print(f"{'':18s}", *(f"{name:12s}" for name in columns))
    for row in next(iter(columns.values())):
        print(f"{row:18s}", *(f"{column[row] or '-':12s}" for column in columns.values()))
