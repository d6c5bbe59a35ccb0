"""One request to the gateway: what it asks for, who asks, and the answer."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl

from multidict import CIMultiDict

from support.gateway import proxy
from support.gateway.answer import Answer, Bad, ClientLeft, UnknownService
from support.gateway.client import Client
from support.gateway.headers import request_headers
from support.gateway.observe import Metrics, log_access
from support.gateway.pipeline import Gateway
from support.gateway.relay import Message, Receive, RelayBroken, Send
from support.gateway.settings import Settings

T = TypeVar("T")
logger = logging.getLogger("gateway")
MOST_FIELDS = 100  # parameters in a query
# Of the client's fields, these go with a fan-out: the others are about this one exchange.
_PASSED_ON = (b"authorization", b"traceparent")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_JSON = (b"content-type", b"application/json")


@dataclass(slots=True)
class Running:
    """What all requests share while the application runs."""

    settings: Settings
    client: Client
    metrics: Metrics
    gateway: Gateway
    draining: bool = False


class Exchange:
    """One request and its answer. ``outcome``, for the log: ``done``, or how it ended before it was."""

    def __init__(self, running: Running, scope: Message, receive: Receive, send: Send) -> None:
        self.running, self.scope, self.receive = running, scope, receive
        self._send = send
        self._listener: asyncio.Task[None] | None = None
        self.route, self.status, self.outcome = "unmatched", 0, "done"
        self.fields: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of each name
        given = self.fields.get(b"x-request-id", b"")
        # A client may name its request, so that its log and ours agree; it must not write our log.
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

    async def serve(self) -> None:
        """Answer, count, log. What goes wrong inside goes to the log, and never to the client."""
        began, running = time.perf_counter(), self.running
        running.metrics.in_flight.inc()
        try:
            await self._route()
        except Bad as bad:
            await self._answer(bad.status, {"error": bad.sentence})
        except ClientLeft:
            self.status, self.outcome = 499, "client_left"  # nobody reads it: for the log
        except RelayBroken:
            raise  # the server closes the connection: half an answer must not look like a whole one
        except Exception:
            logger.exception("request %s failed", self.request_id)
            self.outcome = "failed"
            if not self.status:
                await self._answer(500, {"error": "internal error"})
        finally:
            running.metrics.in_flight.dec()
            took = time.perf_counter() - began
            running.metrics.request(self.route, self.status, took)
            if running.settings.access_log:
                known = {"id": self.request_id, "method": self.scope["method"], "route": self.route}
                known |= {"path": self.scope["path"], "outcome": self.outcome}
                log_access(**known, status=self.status, ms=round(1000 * took, 1))

    async def _route(self) -> None:
        path, method = self.scope["path"], self.scope["method"]
        if path.startswith("/proxy/"):
            self.route = "/proxy/{name}/{path}"
            await proxy.serve(self)
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
        draining = self.running.draining
        await self._answer(503 if draining else 200, {"status": "draining" if draining else "ok"})

    async def _metrics(self) -> None:
        metrics = self.running.metrics
        for name, upstream in self.running.gateway.upstreams.items():
            if upstream.breaker:
                metrics.open.labels(name).set(upstream.breaker.state != "closed")
        await self._answer(200, metrics.text(), (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"))

    async def _aggregate(self) -> None:
        names, deadline = self._asked()
        tenant, settings = self.tenant(), self.running.settings
        seconds = min(deadline or settings.deadline or settings.upstream_timeout, settings.deadline_max)
        passed_on = [(name, self.fields[name]) for name in _PASSED_ON if name in self.fields]
        headers = self.headers(passed_on, seconds, tenant)
        work = self.running.gateway.aggregate(names, deadline, headers=headers, tenant=tenant)
        try:
            answer = await self.unless_client_leaves(work)
        except UnknownService as error:
            raise Bad(422, str(error)) from None
        await self.answer_with(answer)

    def _asked(self) -> tuple[list[str], float | None]:
        """Which services, and for how long: the shorter of the query's deadline and the header's."""
        try:
            text = self.scope["query_string"].decode("ascii")
            query = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            raise Bad(422, f"The query must be ASCII and have at most {MOST_FIELDS} parameters.") from None
        names = [value for key, value in query if key == "services"]
        given = [value for key, value in query if key == "deadline"]
        return names, self.deadline(given)

    def deadline(self, given: Iterable[str] = ()) -> float | None:
        """The shortest of these and of what is left to the client by its own header, in seconds; None: no word of it."""
        left = self.fields.get(b"x-deadline-ms", b"")
        try:
            deadlines = [float(value) for value in given] + ([int(left) / 1000] if left else [])
            if not all(0 < value < math.inf for value in deadlines):
                raise ValueError
        except (ValueError, OverflowError):
            raise Bad(422, "deadline must be a number of seconds above 0, x-deadline-ms one of milliseconds.") from None
        return min(deadlines, default=None)

    def tenant(self) -> str:
        """Who asks, by API key; nobody in particular where no keys are set. Raises Bad 401."""
        if not (keys := self.running.settings.keys):
            return ""
        key = self.fields.get(b"x-api-key", b"").decode("latin-1")
        found = [tenant for known, tenant in keys.items() if secrets.compare_digest(known.encode(), key.encode())]
        if not found:
            raise Bad(401, "Send a valid x-api-key.")
        return found[0]

    def headers(self, incoming: list[tuple[bytes, bytes]], seconds: float, tenant: str) -> CIMultiDict[str]:
        """What an upstream is sent."""
        client = (self.scope.get("client") or ("unknown",))[0]
        return request_headers(
            incoming, client=client, request_id=self.request_id, remaining_ms=int(1000 * seconds),
            scheme=self.scope.get("scheme", "http"), identity={"x-tenant-id": tenant} if tenant else None,
        )  # fmt: skip

    async def unless_client_leaves(self, work: Awaitable[T]) -> T:
        """What comes of it; when the client leaves first, the work is cancelled, and ClientLeft raised."""
        task, left = asyncio.current_task(), False
        assert task

        async def listen() -> None:
            nonlocal left
            while (await self.receive())["type"] != "http.disconnect":
                pass  # a body that nobody asked for
            left = True
            task.cancel()

        listener = self._listener = asyncio.create_task(listen())
        try:
            return await work
        except asyncio.CancelledError:
            if left and task.uncancel() == 0:
                raise ClientLeft from None
            raise
        finally:
            listener.cancel()

    def stop_listening(self) -> None:
        """For work that from now on listens itself whether the client leaves."""
        if self._listener:
            self._listener.cancel()

    async def answer_with(self, answer: Answer) -> None:
        later = [(b"retry-after", b"1")] if answer.status in (429, 503) else []
        await self._answer(answer.status, answer.json(), _JSON, *later)

    async def _answer(self, status: int, content: bytes | Mapping[str, str], *headers: tuple[bytes, bytes]) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        fields = [(b"content-length", b"%d" % len(body)), *(headers or (_JSON,))]
        fields.append((b"x-request-id", self.request_id.encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": fields})
        await self.send({"type": "http.response.body", "body": body})

    async def send(self, message: Message) -> None:
        """To the server, as ASGI has it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.running.draining:  # also in a relayed answer: a client that stays would hold the process
                others = [(name, value) for name, value in message["headers"] if name != b"connection"]
                message["headers"] = [*others, (b"connection", b"close")]
        await self._send(message)
