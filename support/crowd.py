"""Visitors with cookies of their own, who ask together, and may each hold a WebSocket open."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

PATIENCE_S = 10


class Crowd:
    """What `crowd()` gives. Each visitor sends ?who=<name> with each request; no other crowd has these names."""

    def __init__(self, people: list[aiohttp.ClientSession], stack: contextlib.AsyncExitStack) -> None:
        self._people, self._stack, self._name = people, stack, secrets.token_hex(4)
        self._sockets: list[aiohttp.ClientWebSocketResponse] = []
        self._heard: list[asyncio.Queue[str | None]] = []

    async def ask(self, path: str) -> list[Any]:
        """The JSON that each visitor gets, all asking at once. Raises aiohttp.ClientError for an error status."""

        async def one(number: int, person: aiohttp.ClientSession) -> Any:
            async with person.get(path, params={"who": f"{self._name}-{number}"}, raise_for_status=True) as answer:
                return await answer.json()

        return await asyncio.gather(*[one(*numbered) for numbered in enumerate(self._people)])

    async def join(self, path: str) -> None:
        """Each visitor opens a WebSocket there, and reads what comes."""
        self._sockets = await asyncio.gather(*[person.ws_connect(path) for person in self._people])
        self._heard = [asyncio.Queue() for _ in self._sockets]
        for socket, heard in zip(self._sockets, self._heard, strict=True):
            reader = asyncio.create_task(self._read(socket, heard))
            self._stack.push_async_callback(self._leave, socket, reader)

    async def say(self, *texts: str) -> None:
        """The first visitor sends these texts, one after the other, through his WebSocket."""
        for text in texts:
            await self._sockets[0].send_str(text)

    async def hear(self, last: str) -> list[list[str | None]]:
        """What each visitor has heard since the last time, up to and with `last`, or None: the WebSocket has closed.

        Raises TimeoutError when one hears neither within ten seconds.
        """

        async def one(heard: asyncio.Queue[str | None]) -> list[str | None]:
            texts: list[str | None] = []
            while not texts or texts[-1] not in (last, None):
                texts.append(await heard.get())
            return texts

        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.gather(*[one(heard) for heard in self._heard])

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, heard: asyncio.Queue[str | None]) -> None:
        async for message in socket:  # also answers the server's close, for which it waits when it drains
            heard.put_nowait(message.data)
        heard.put_nowait(None)

    async def _leave(self, socket: aiohttp.ClientWebSocketResponse, reader: asyncio.Task[None]) -> None:
        reader.cancel()
        await asyncio.wait([reader])
        await socket.close()


@contextlib.asynccontextmanager
async def crowd(url: str, people: int) -> AsyncIterator[Crowd]:
    """So many visitors of the server at `url`, until the block is left. Raises ValueError for fewer than one."""
    if type(people) is not int or people < 1:
        raise ValueError(f"crowd(): it takes at least one visitor, not {people!r}.")
    async with contextlib.AsyncExitStack() as stack:
        limits = aiohttp.ClientTimeout(total=PATIENCE_S)
        sessions = [
            # unsafe: a jar takes no cookies from a bare address such as 127.0.0.1 otherwise
            aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True), timeout=limits)
            for _ in range(people)
        ]
        for session in sessions:
            await stack.enter_async_context(session)
        yield Crowd(sessions, stack)
