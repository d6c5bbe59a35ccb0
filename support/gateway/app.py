"""The gateway as an ASGI application: ``uvicorn support.gateway.app:app``, with GATEWAY_UPSTREAMS in the environment.

    GET /aggregate?services=a&services=b&deadline=0.5   the named services, at the same time, in one JSON object
    ANY /proxy/{name}/{path}                            one service, streamed both ways
    GET /health  /ready  /metrics                       it lives; it wants traffic; what it has counted

Of a client's fields, Authorization and traceparent go with an aggregate; X-API-Key stays here, and answers to requests
with an Authorization are neither kept nor shared. /proxy passes what is end-to-end. Cookies do not pass, in either
direction: an upstream that needs them cannot stand behind this gateway. An address in an answer's Location becomes one
of /proxy, and one inside this network is left out. `support.gateway.settings` has what can be set.

It is bare ASGI: routing and validation of five paths cost less than a framework's share of a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
from collections.abc import Callable

from support.gateway.client import Client
from support.gateway.exchange import Exchange, Running
from support.gateway.observe import Metrics, open_access_log
from support.gateway.pipeline import Gateway
from support.gateway.relay import Message, Receive, Send
from support.gateway.settings import Settings


class Application:
    """The ASGI application. Without settings it reads the environment when it starts."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._given = settings
        self.running: Running | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and self.running:
            await Exchange(self.running, scope, receive, send).serve()
        elif scope["type"] == "http":
            await send(
                {"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"application/json")]}
            )
            await send({"type": "http.response.body", "body": b'{"error": "not started"}'})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            settings = self._given or Settings.from_environment()
            stack = contextlib.AsyncExitStack()
            client = await stack.enter_async_context(Client(settings))
        except (ValueError, OSError) as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        async with stack:
            metrics = Metrics(settings.upstreams)
            gateway = Gateway(settings, client.fetch, observe=metrics.call)
            stack.push_async_callback(gateway.close)
            stack.callback(self._hear_sigterm(settings.drain))
            stack.callback(_settle_collector())
            if settings.access_log:
                stack.callback(open_access_log())
            self.running = Running(settings, client, metrics, gateway)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.drain()
        self.running = None
        await send({"type": "lifespan.shutdown.complete"})

    def drain(self) -> None:
        """Say no at /ready from now on. Whoever still comes is served, and told to close the connection."""
        if self.running:
            self.running.draining = True

    def _hear_sigterm(self, seconds: float) -> Callable[[], None]:
        """Let SIGTERM drain for so long, and only then reach the server. Returns what undoes it."""
        if not seconds or threading.current_thread() is not threading.main_thread():
            return lambda: None
        before, loop = signal.getsignal(signal.SIGTERM), asyncio.get_running_loop()

        def begin() -> None:
            self.drain()
            loop.call_later(seconds, end)

        def end() -> None:
            if callable(before):
                before(signal.SIGTERM, None)

        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(begin))

        def undo() -> None:
            signal.signal(signal.SIGTERM, before)

        return undo


def _settle_collector() -> Callable[[], None]:
    """Let the garbage collector leave alone what was there at the start. Returns what undoes it.

    A fan-out makes many short-lived objects, and so the collector looks often, each time also at all of the
    imported modules. Not in a thread of somebody else's process.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, *thresholds[1:])

    def undo() -> None:
        gc.unfreeze()
        gc.set_threshold(*thresholds)

    return undo


def create_app(settings: Settings | None = None) -> Application:
    """The application with these settings; None: with those of the environment, when it starts."""
    return Application(settings)


app = create_app()
