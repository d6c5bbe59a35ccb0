"""The gateway as an ASGI application: ``uvicorn support.gateway.app:app``, with GATEWAY_UPSTREAMS in the environment.

    GET /aggregate?services=a&services=b&deadline=0.5   the named services, at the same time, in one JSON object
    ANY /proxy/{name}/{path}                            one service, streamed both ways
    GET /health  /ready  /metrics                       it lives; it wants traffic; what it has counted

It is bare ASGI: routing and validation of five paths cost less than a framework's share of a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from support.gateway.client import Client
from support.gateway.exchange import Exchange
from support.gateway.observe import Metrics
from support.gateway.pipeline import Gateway
from support.gateway.settings import Settings

Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]


class Application:
    """The ASGI application. Without settings it reads the environment when it starts."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._given = settings
        self.draining = False
        self.gateway: Gateway | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await Exchange(self, scope, receive, send).serve()
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self.settings = self._given or Settings.from_environment()
            stack = contextlib.AsyncExitStack()
            self.client = await stack.enter_async_context(Client(self.settings))
        except (ValueError, OSError) as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        async with stack:
            self.metrics = Metrics(self.settings.upstreams)
            self.gateway = Gateway(self.settings, self.client.fetch, observe=self.metrics.call)
            stack.push_async_callback(self.gateway.close)
            stack.callback(self._hear_sigterm())
            stack.callback(_settle_collector())
            self.draining = False
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.draining = True
        self.gateway = None
        await send({"type": "lifespan.shutdown.complete"})

    def drain(self) -> None:
        """Say no at /ready from now on. Whoever still comes is served, and told to close the connection."""
        self.draining = True

    def _hear_sigterm(self) -> Callable[[], None]:
        """Let SIGTERM drain first, and only then reach the server. Returns what undoes it."""
        if not self.settings.drain or threading.current_thread() is not threading.main_thread():
            return lambda: None
        before, loop = signal.getsignal(signal.SIGTERM), asyncio.get_running_loop()

        def begin() -> None:
            self.drain()
            loop.call_later(self.settings.drain, end)

        def end() -> None:
            if callable(before):
                before(signal.SIGTERM, None)

        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(begin))
        return lambda: signal.signal(signal.SIGTERM, before) and None


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
