"""A request to /proxy/{name}/{path}: its turn in the lines, and then a stream in both directions."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yarl import URL

from support.gateway.answer import ABANDONED, Answer, Bad, ClientLeft, Part
from support.gateway.protect import Full, loop_time
from support.gateway.relay import Exchange, Limits, Message, RelayBroken, has_body, relay

if TYPE_CHECKING:
    from support.gateway import exchange

_ADDRESSES = (b"location", b"content-location")  # fields of an answer that name one


async def serve(request: exchange.Exchange) -> None:
    """Answer it. Raises Bad, ClientLeft, or RelayBroken for an answer that ended halfway."""
    settings, gateway = request.running.settings, request.running.gateway
    name, url, tenant = _asked(request)
    seconds = min(request.deadline() or settings.proxy_seconds, settings.proxy_seconds)
    if gateway.limit and not gateway.limit.admit(tenant):
        await request.answer_with(Answer(429, error="too many requests"))
        return
    due = loop_time() + seconds - min(settings.reserve, seconds / 10)
    proxied = _Proxied(request, name, url, tenant, due)
    # To hear the client leave is to read its body. So a request with one stands in line to the end.
    answer = await (proxied.pass_on() if has_body(request.scope) else request.unless_client_leaves(proxied.pass_on()))
    if answer:
        await request.answer_with(answer)


def _asked(request: exchange.Exchange) -> tuple[str, URL, str]:
    """The upstream, the address there, and the tenant. Raises Bad."""
    scope = request.scope
    name = scope["path"].removeprefix("/proxy/").partition("/")[0]
    if name not in request.running.gateway.upstreams:
        raise Bad(404, "Name a service of this gateway.")
    tenant = request.tenant()
    raw = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    rest = raw.partition("?")[0].removeprefix("/proxy/").partition("/")[2]
    try:
        return name, request.running.client.url_for(name, rest, scope["query_string"].decode("latin-1")), tenant
    except ValueError as error:
        raise Bad(422, str(error)) from None


@dataclass(slots=True)
class _Proxied:
    """One such request. ``due``: when its time is over, in the loop's time, the lines included."""

    request: exchange.Exchange
    name: str
    url: URL
    tenant: str
    due: float
    broken: RelayBroken | None = None

    async def pass_on(self) -> Answer | None:
        """Through the lines, and to the upstream. None: the answer has been sent."""
        request, gateway = self.request, self.request.running.gateway
        try:
            async with asyncio.timeout_at(self.due):
                await gateway.enter()
        except (Full, TimeoutError):
            return Answer(503, error="overloaded")
        try:
            part = await gateway.through(self.name, self.due, self._relayed, line_only=True)
        finally:
            gateway.leave()
        if self.broken:
            raise self.broken
        if request.status:
            return None
        if part.status == ABANDONED:
            raise ClientLeft
        return Answer(504 if part.status == "timeout" else 503, error=part.status)

    async def _relayed(self) -> Part:
        """From here on the relay hears the client leave, and keeps the time that is left."""
        request, settings = self.request, self.request.running.settings
        request.stop_listening()
        left = max(0.001, self.due - loop_time())
        limits = Limits(seconds=left, idle_seconds=settings.proxy_idle, connect_seconds=settings.connect,
                        request_bytes=settings.body_bytes, response_bytes=settings.body_bytes)  # fmt: skip
        passed_on = [(field, value) for field, value in request.scope["headers"] if field != b"x-api-key"]
        headers = request.headers(passed_on, left, self.tenant)
        try:
            seen = await relay(request.scope, request.receive, self._send, session=request.running.client.session,
                               url=self.url, headers=headers, limits=limits)  # fmt: skip
        except RelayBroken as error:
            self.broken, seen = error, error.exchange
        request.outcome = seen.outcome
        return _part_of(self.name, seen)

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            told = [(field, self._told(value) if field in _ADDRESSES else value) for field, value in message["headers"]]
            message["headers"] = [(field, value) for field, value in told if value is not None]
        await self.request.send(message)

    def _told(self, address: bytes) -> bytes | None:
        told = self.request.running.client.told(self.name, self.url, address.decode("utf-8", "surrogateescape"))
        return None if told is None else told.encode("utf-8", "surrogateescape")


def _part_of(name: str, seen: Exchange) -> Part:
    """What a relayed exchange says of the upstream."""
    if seen.outcome == "done":
        return Part(name, "ok" if seen.status < 400 else "upstream_error", seen.status)
    if seen.outcome.startswith("upstream_"):
        return Part(name, "timeout" if seen.outcome == "upstream_timeout" else "unavailable")
    if seen.outcome == "response_too_large":
        return Part(name, "too_large", 200)  # it answered, and the client had chosen what to ask for
    return Part(name, ABANDONED)
