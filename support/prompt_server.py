"""uvicorn's server, made to end as soon as it can: `support.servers` and `support.programs` run it.

uvicorn looks ten times a second whether it is to end, and as often whether all have been answered. That is
0.2 s for each server, and a chapter starts twenty. Only processes that serve import this: uvicorn takes its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from types import FrameType

import uvicorn
from uvicorn.supervisors import multiprocess

LOOK_S = 0.005  # between two looks at what is in flight
LEAST_S = 0.1  # that who is in flight is given, however short the limit: uvicorn's first look comes that late
log = logging.getLogger("uvicorn.error")


class PromptServer(uvicorn.Server):
    """A uvicorn server that shuts down at once when it is told, and is over as soon as nothing is in flight."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop, self._told = asyncio.get_running_loop(), asyncio.Event()

    async def main_loop(self) -> None:
        ticking = asyncio.create_task(super().main_loop())
        told = asyncio.create_task(self._told.wait())
        await asyncio.wait([ticking, told], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not ticking.cancel():
            await ticking  # it ended by itself, or with an exception

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's: take nobody any more, give those in flight their time, cancel who is left, end the lifespan."""
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        limit = self.config.timeout_graceful_shutdown
        try:
            async with asyncio.timeout(limit if limit is None else max(limit, LEAST_S)):
                while (state.connections or state.tasks) and not self.force_exit:
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            log.error("Cancel %s running task(s), timeout graceful shutdown exceeded", len(state.tasks))
            for task in state.tasks:
                task.cancel("Task cancelled, timeout graceful shutdown exceeded")  # as uvicorn words it
        if not self.force_exit:
            await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.end()

    def end(self) -> None:
        """Shut down. May be called from another thread, and from a signal's handler; twice is no error."""
        self.should_exit = True
        with contextlib.suppress(AttributeError, RuntimeError):  # it has not started, or has ended
            self.loop.call_soon_threadsafe(self._told.set)


class PromptWorker(multiprocess.Process):
    """A worker process of uvicorn's supervisor, with a PromptServer in it."""

    @property
    def server(self) -> PromptServer:
        if self._server is None:
            self._server = PromptServer(config=self.config)
        return self._server
