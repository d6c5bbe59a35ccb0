"""Passing bodies on: read whole up to a limit, or streamed both ways at the pace of the slower side."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp
from yarl import URL

from .headers import request_headers, response_headers

__all__ = "Exchange Limits RelayBroken TooLarge read_capped relay request_headers response_headers".split()

CHUNK = 1 << 16  # bytes, of one read, and of aiohttp's low-water mark
ADDED_BY_AIOHTTP = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # the client's, or none
Message = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class TooLarge(Exception):
    """A body is longer than its limit."""


class RelayBroken(Exception):
    """The answer had begun, and cannot be completed. Raised to the server, which closes the connection."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(f"the answer ended after {exchange.to_client} bytes: {exchange.outcome}")
        self.exchange = exchange


@dataclass(frozen=True)
class Limits:
    """What one relayed exchange may take. Times in seconds, sizes in bytes as they travel."""

    seconds: float = 30.0  # all of it: a timeout for each read never ends a body that drips
    idle_seconds: float = 5.0  # without a byte, in either direction of a body
    connect_seconds: float = 1.0
    request_bytes: int = 10_000_000
    response_bytes: int = 100_000_000


@dataclass
class Exchange:
    """One relayed exchange, for the access log: bytes of both bodies, and how it ended.

    ``outcome``: "done", "client_left", "client_idle", "request_too_large", "response_too_large",
    "upstream_unreachable", "upstream_timeout", "upstream_broke" or "refused_method". ``status`` is
    what the client saw, 0 for nothing.
    """

    status: int = 0
    from_client: int = 0
    to_client: int = 0
    outcome: str = ""


# What the client is told when the answer has not begun. Errors of libraries stay inside: they name addresses.
ANSWERS = {
    "client_idle": 408,
    "refused_method": 405,
    "request_too_large": 413,
    "response_too_large": 502,
    "upstream_broke": 502,
    "upstream_unreachable": 502,
    "upstream_timeout": 504,
}


async def read_capped(response: aiohttp.ClientResponse, limit: int, *, seconds: float | None = None) -> bytes:
    """The whole body, unpacked, when it has at most ``limit`` bytes.

    A gzip bomb costs the limit and one step: unpacking stops with reading. ``seconds`` is for all
    of the body. The connection is closed on every error: the rest of the body is still on it.

    Raises:
        TooLarge: the body is longer, or says that it is.
        TimeoutError: it took longer than ``seconds``.
        aiohttp.ClientError: the upstream broke it off, or packed it wrongly.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        packed = "Content-Encoding" in response.headers
        if not packed and (response.content_length or 0) > limit:
            raise TooLarge(f"the body says that it has {response.content_length} bytes, over {limit}")
        async with asyncio.timeout(seconds):
            async for chunk in response.content.iter_any():  # never read(): that unpacks without a bound
                size += len(chunk)
                if size > limit:
                    raise TooLarge(f"the body has over {limit} bytes")
                chunks.append(chunk)
    except BaseException:
        response.close()
        raise
    return b"".join(chunks)


async def relay(
    scope: Mapping[str, Any],
    receive: Receive,
    send: Send,
    *,
    session: aiohttp.ClientSession,
    url: str | URL,
    headers: Mapping[str, str] | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    cookies: Collection[str] = (),
) -> Exchange:
    """Pass an ASGI request on to ``url``, and its answer back, both as they come.

    A side that does not read stops the other: at most some chunks are held here. A client that
    leaves ends the call to the upstream. Nothing is sent twice: not even a GET, once its answer has
    begun; and no redirect is followed.

    Args:
        scope, receive, send: of the ASGI request. The body must not have been read.
        session: made with ``cookie_jar=aiohttp.DummyCookieJar()``, or users share their cookies.
        url: from the operator's registry, never from the client.
        headers: what ``request_headers`` returned; by default it is called with what the scope has.
        limits: of time and size.
        cookies: names of cookies that the upstream may set.

    Raises:
        RelayBroken: the answer had begun and cannot be completed. Let it pass: the server then closes
            the connection, and the client sees that its answer is not whole.
    """
    if headers is None:
        client, remaining = (scope.get("client") or ["unknown"])[0], round(1000 * limits.seconds)
        known = {"client": client, "request_id": secrets.token_hex(8), "remaining_ms": remaining}
        headers = request_headers(scope["headers"], **known, scheme=scope.get("scheme", "http"))
    exchange = Exchange()
    upload = _Upload(receive, limits, exchange, has_body(scope))
    call = _Call(scope["method"], session, url, headers, upload, send, limits, cookies, exchange)
    try:
        async with asyncio.timeout(limits.seconds), asyncio.TaskGroup() as group:
            watch = group.create_task(upload.client_leaves())
            await call.make()
            watch.cancel()
    except* _ClientLeft:
        exchange.outcome = exchange.outcome or "client_left"
    except* TimeoutError:
        exchange.outcome = exchange.outcome or call.waits_for
    if exchange.outcome in ("done", "client_left"):
        return exchange
    if exchange.status:
        raise RelayBroken(exchange)
    exchange.status = ANSWERS[exchange.outcome]
    body = json.dumps({"error": exchange.outcome}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    await send({"type": "http.response.start", "status": exchange.status, "headers": _encoded(fields)})
    await send({"type": "http.response.body", "body": body})
    return exchange


@dataclass
class _Call:
    """The call to the upstream. ``waits_for``: the outcome, if time were up now."""

    method: str
    session: aiohttp.ClientSession
    url: str | URL
    headers: Mapping[str, str]
    upload: _Upload
    send: Send
    limits: Limits
    cookies: Collection[str]
    exchange: Exchange
    waits_for: str = "upstream_timeout"

    async def make(self) -> None:
        """Fill in the exchange. Raises nothing but a cancellation."""
        if self.method in ("CONNECT", "TRACE"):  # a tunnel; and an echo of what the gateway has added
            self.exchange.outcome = "refused_method"
            return
        try:
            async with self.session.request(
                self.method, self.url, headers=self.headers, data=self.upload if self.upload.expected else None,
                allow_redirects=False, auto_decompress=False, read_bufsize=CHUNK, skip_auto_headers=ADDED_BY_AIOHTTP,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.limits.connect_seconds),
            ) as response:  # fmt: skip
                await self._pass_back(response)
        except (TooLarge, aiohttp.ClientError, OSError, ValueError) as error:
            self.exchange.outcome = self.exchange.outcome or self._why(error)

    def _why(self, error: Exception) -> str:
        if isinstance(error, TooLarge):
            return "response_too_large"
        if isinstance(error, (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError)):
            return "upstream_unreachable"
        if isinstance(error, TimeoutError):
            return self.waits_for
        return self.upload.failed or "upstream_broke"  # aiohttp makes its own error of one of the upload

    async def _pass_back(self, response: aiohttp.ClientResponse) -> None:
        bodiless = self.method == "HEAD" or response.status in (204, 304)
        if not 200 <= response.status <= 599:
            raise aiohttp.ClientError("an interim or unknown status is no answer")
        if not bodiless and (response.content_length or 0) > self.limits.response_bytes:
            raise TooLarge
        passing = response_headers(response.headers, cookies=self.cookies)
        if response.status in (204, 304):  # RFC 9110, 8.6: none with 204, and 304 may go without
            passing.popall("content-length", None)
        self.exchange.status = response.status
        await self.send({"type": "http.response.start", "status": response.status, "headers": _encoded(passing)})
        clock, pause = asyncio.get_running_loop().time, self.limits.idle_seconds
        async with asyncio.timeout(pause) as idle:  # one timer, moved on with each chunk
            async for chunk in response.content.iter_chunked(CHUNK):
                if self.exchange.to_client + len(chunk) > self.limits.response_bytes:
                    raise TooLarge
                idle.reschedule(clock() + pause)
                self.waits_for = "client_idle"
                await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
                self.waits_for = "upstream_timeout"
                self.exchange.to_client += len(chunk)
                idle.reschedule(clock() + pause)
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})
        self.exchange.outcome = "done"  # at once: now the server tells the watch that the client may leave


class _ClientLeft(Exception):
    """The client has closed its connection."""


class _Upload:
    """The body of a request, taken from the server as the upstream takes it. After it, the client's leaving."""

    def __init__(self, receive: Receive, limits: Limits, exchange: Exchange, expected: bool) -> None:
        self._receive, self._limits, self._exchange = receive, limits, exchange
        self.expected, self.failed = expected, ""
        self._over = asyncio.Event()
        if not expected:
            self._over.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            try:
                async with asyncio.timeout(self._limits.idle_seconds):
                    message = await self._receive()
            except TimeoutError:
                self._fail("client_idle")
            if message["type"] == "http.disconnect":
                self._over.set()  # the server says so again, to client_leaves()
                self._fail("client_left")
            self._exchange.from_client += len(message.get("body", b""))
            if self._exchange.from_client > self._limits.request_bytes:
                self._fail("request_too_large")
            if message.get("body"):
                yield message["body"]
            more = message.get("more_body", False)
        self._over.set()

    def _fail(self, outcome: str) -> None:
        self.failed = outcome
        raise _ClientLeft(outcome)

    async def client_leaves(self) -> None:
        """Wait until the client leaves. Only one may wait for the server's messages: the body comes first."""
        await self._over.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise _ClientLeft


def has_body(scope: Mapping[str, Any]) -> bool:
    """RFC 9112, 6: a request has a body when it says so."""
    fields = {name.lower(): value for name, value in scope["headers"]}
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0").strip() != b"0"


def _encoded(fields: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """As ASGI wants them: names in lower case. aiohttp decodes what it receives in this way."""
    return [(name.lower().encode(), value.encode("utf-8", "surrogateescape")) for name, value in fields.items()]
