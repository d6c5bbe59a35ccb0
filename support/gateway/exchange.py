"""One request to the gateway: what it asks for, who asks, and the answer."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from support.gateway.answer import Answer, Part, UnknownService
from support.gateway.headers import request_headers
from support.gateway.observe import log_access
from support.gateway.protect import Full, loop_time
from support.gateway.relay import Limits, RelayBroken, relay

if TYPE_CHECKING:
    from support.gateway.app import Application, Message, Receive, Send

logger = logging.getLogger("gateway")
MOST_FIELDS = 100  # parameters in a query
# Of the client's fields, these go with a fan-out: the others are about this one exchange.
_PASSED_ON = (b"authorization", b"traceparent")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_JSON = (b"content-type", b"application/json")


class Bad(Exception):
    """The request cannot be served. The sentence is for the client."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class Exchange:
    """One request and its answer."""

    def __init__(self, app: Application, scope: Message, receive: Receive, send: Send) -> None:
        self.app, self.scope, self.receive, self.send = app, scope, receive, send
        self.route, self.status = "unmatched", 0
        self.fields: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of each name
        given = self.fields.get(b"x-request-id", b"")
        # A client may name its request, so that its log and ours agree; it must not write our log.
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

    async def serve(self) -> None:
        """Answer, count, log. What goes wrong inside goes to the log, and never to the client."""
        began, app = time.perf_counter(), self.app
        if app.gateway is None:
            await self._answer(503, {"error": "not started"})
            return
        app.metrics.in_flight.inc()
        try:
            await self._route()
        except Bad as bad:
            await self._answer(bad.status, {"error": bad.sentence})
        except ClientLeft:
            self.status = 499  # nobody reads it: for the log
        except RelayBroken:
            raise  # the server closes the connection: half an answer must not look like a whole one
        except Exception:
            logger.exception("request %s failed", self.request_id)
            if not self.status:
                await self._answer(500, {"error": "internal error"})
        finally:
            app.metrics.in_flight.dec()
            took = time.perf_counter() - began
            app.metrics.request(self.route, self.status, took)
            if app.settings.access_log:
                known = {"id": self.request_id, "method": self.scope["method"], "route": self.route}
                log_access(**known, path=self.scope["path"], status=self.status, ms=round(1000 * took, 1))

    async def _route(self) -> None:
        path, method = self.scope["path"], self.scope["method"]
        if path.startswith("/proxy/"):
            self.route = "/proxy/{name}/{path}"
            await self._proxy()
            return
        handler = {"/aggregate": self._aggregate, "/health": self._health, "/ready": self._ready,
                   "/metrics": self._metrics}.get(path)  # fmt: skip
        if handler is None:
            raise Bad(404, "There is no such path.")
        self.route = path
        if method != "GET" and (method != "HEAD" or path == "/aggregate"):  # balancers may ask with HEAD
            raise Bad(405, "Use GET.")
        await handler()

    async def _health(self) -> None:
        await self._answer(200, {"status": "ok"})

    async def _ready(self) -> None:
        await self._answer(503 if self.app.draining else 200, {"status": "draining" if self.app.draining else "ok"})

    async def _metrics(self) -> None:
        for name, upstream in self.app.gateway.upstreams.items():
            if upstream.breaker:
                self.app.metrics.open.labels(name).set(upstream.breaker.state != "closed")
        await self._answer(200, self.app.metrics.text(), (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"))

    async def _aggregate(self) -> None:
        names, deadline = self._asked()
        tenant, settings = self._tenant(), self.app.settings
        seconds = min(deadline or settings.deadline or settings.upstream_timeout, settings.deadline_max)
        passed_on = [(name, self.fields[name]) for name in _PASSED_ON if name in self.fields]
        headers = self._headers(passed_on, seconds, tenant)
        work = self.app.gateway.aggregate(names, deadline, headers=headers, tenant=tenant)
        try:
            answer = await self._unless_client_leaves(work)
        except UnknownService as error:
            raise Bad(422, str(error)) from None
        await self._answer_with(answer)

    def _asked(self) -> tuple[list[str], float | None]:
        """Which services, and for how long: the shorter of the query's deadline and the header's."""
        try:
            text = self.scope["query_string"].decode("ascii")
            query = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            raise Bad(422, f"The query must be ASCII and have at most {MOST_FIELDS} parameters.") from None
        names = [value for key, value in query if key == "services"]
        given = [value for key, value in query if key == "deadline"]
        return names, self._deadline(given)

    def _deadline(self, given: list[str]) -> float | None:
        """The shortest of these and of what is left to the client by its own header, in seconds; None: no word of it."""
        left = self.fields.get(b"x-deadline-ms", b"")
        try:
            deadlines = [float(value) for value in given] + ([int(left) / 1000] if left else [])
            if not all(0 < value < math.inf for value in deadlines):
                raise ValueError
        except (ValueError, OverflowError):
            raise Bad(422, "deadline must be a number of seconds above 0, x-deadline-ms one of milliseconds.") from None
        return min(deadlines, default=None)

    def _tenant(self) -> str:
        """Who asks, by API key; nobody in particular where no keys are set. Raises Bad 401."""
        if not (keys := self.app.settings.keys):
            return ""
        key = self.fields.get(b"x-api-key", b"").decode("latin-1")
        found = [tenant for known, tenant in keys.items() if secrets.compare_digest(known.encode(), key.encode())]
        if not found:
            raise Bad(401, "Send a valid x-api-key.")
        return found[0]

    def _headers(self, incoming: Any, seconds: float, tenant: str) -> Any:
        client = (self.scope.get("client") or ("unknown",))[0]
        return request_headers(
            incoming, client=client, request_id=self.request_id, remaining_ms=int(1000 * seconds),
            scheme=self.scope.get("scheme", "http"), identity={"x-tenant-id": tenant} if tenant else None,
        )  # fmt: skip

    async def _proxy(self) -> None:
        settings, gateway = self.app.settings, self.app.gateway
        name, _, rest = self.scope["path"].removeprefix("/proxy/").partition("/")
        if name not in gateway.upstreams:
            raise Bad(404, "Name a service of this gateway.")
        tenant = self._tenant()
        raw = self.scope.get("raw_path") or self.scope["path"].encode()
        rest = raw.decode("latin-1").partition("?")[0].removeprefix("/proxy/").partition("/")[2]
        try:
            url = self.app.client.url_for(name, rest, self.scope["query_string"].decode("latin-1"))
        except ValueError as error:
            raise Bad(422, str(error)) from None
        seconds = min(self._deadline([]) or settings.proxy_seconds, settings.proxy_seconds)
        if gateway.limit and not gateway.limit.admit(tenant):
            await self._answer_with(Answer(429, error="too many requests"))
            return
        limits = Limits(seconds=seconds, idle_seconds=settings.proxy_idle, connect_seconds=settings.connect,
                        request_bytes=settings.body_bytes, response_bytes=settings.body_bytes)  # fmt: skip
        passed_on = [(field, value) for field, value in self.scope["headers"] if field != b"x-api-key"]
        headers = self._headers(passed_on, seconds, tenant)
        broken: list[RelayBroken] = []

        async def work() -> Part | None:
            try:
                exchange = await relay(self.scope, self.receive, self._send, session=self.app.client.session, url=url,
                                       headers=headers, limits=limits)  # fmt: skip
            except RelayBroken as error:
                broken.append(error)
                exchange = error.exchange
            return _part_of(name, exchange)

        try:
            await gateway.enter()
        except Full:
            await self._answer_with(Answer(503, error="overloaded"))
            return
        try:
            # The relay has its own time limit; this one is for the line before it.
            part = await gateway.through(name, loop_time() + seconds + 1, work)
        finally:
            gateway.leave()
        if broken:
            raise broken[0]
        if not self.status and part:
            await self._answer_with(Answer(504 if part.status == "timeout" else 503, error=part.status))

    async def _unless_client_leaves(self, work: Awaitable[Answer]) -> Answer:
        """The answer; when the client leaves first, the work is cancelled, and ClientLeft raised."""
        task, left = asyncio.current_task(), False

        async def watch() -> None:
            nonlocal left
            while (await self.receive())["type"] != "http.disconnect":
                pass  # a body that nobody asked for
            left = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            return await work
        except asyncio.CancelledError:
            if left and task.uncancel() == 0:
                raise ClientLeft from None
            raise
        finally:
            watcher.cancel()

    async def _answer_with(self, answer: Answer) -> None:
        later = [(b"retry-after", b"1")] if answer.status in (429, 503) else []
        await self._answer(answer.status, answer.json(), _JSON, *later)

    async def _answer(self, status: int, content: Any, *headers: tuple[bytes, bytes]) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        fields = [(b"content-length", b"%d" % len(body)), *(headers or (_JSON,))]
        fields.append((b"x-request-id", self.request_id.encode()))
        if self.app.draining:
            fields.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": fields})
        await self._send({"type": "http.response.body", "body": body})

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self.send(message)


def _part_of(name: str, exchange: Any) -> Part | None:
    """What a relayed exchange says of the upstream. None: nothing, for the client broke it off."""
    if exchange.outcome == "done":
        return Part(name, "ok" if exchange.status < 400 else "upstream_error", exchange.status)
    if exchange.outcome.startswith("upstream_"):
        return Part(name, "timeout" if exchange.outcome == "upstream_timeout" else "unavailable")
    return None
