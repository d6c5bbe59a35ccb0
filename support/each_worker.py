"""One open connection to each worker of a service: workers share a port, and which one answers is chance.

A connection that is open stays with the worker that accepted it. So one is made to each, while those
that have one are suspended, and whoever asks over all of them asks each worker equally often.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import psutil

from support.programs import start_workers

SEARCH_SECONDS = 20.0
ANSWER_SECONDS = 2.0  # a worker that accepted and was suspended in that moment answers after this


@contextlib.asynccontextmanager
async def each_worker(url: str, pids: Collection[int]) -> AsyncIterator[list[aiohttp.ClientSession]]:
    """Yield one session for each worker, with one connection each, in the order of `pids`.

    url: where the service answers; a path that it does not know will do, since only the connection counts.
    pids: the workers' process numbers, such as `fleet.pids[1:]` of `start_workers`.
    Raises RuntimeError when one of them accepts no connection within 20 s.
    """
    found: dict[int, aiohttp.ClientSession] = {}
    deadline = time.monotonic() + SEARCH_SECONDS
    async with contextlib.AsyncExitStack() as stack:
        while len(found) < len(pids):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Of {len(pids)} workers, {len(pids) - len(found)} answered no connection in "
                                   f"{SEARCH_SECONDS:g} s: look at the service's log.")  # fmt: skip
            sockets: list[socket.socket] = []
            session = await stack.enter_async_context(_session(url, sockets))
            with _suspended(found), contextlib.suppress(TimeoutError):
                async with session.get("/", timeout=aiohttp.ClientTimeout(ANSWER_SECONDS)) as answer:
                    await answer.read()
                owner = _owner(sockets[0].getsockname()[1], pids)
                if owner is not None and owner not in found:
                    found[owner] = session
        yield [found[pid] for pid in pids]


@contextlib.contextmanager
def _suspended(pids: Iterable[int]) -> Iterator[None]:
    """Let only the others accept a connection meanwhile: the worker that was last awake is often first again."""
    workers = [psutil.Process(pid) for pid in pids]
    try:
        for worker in workers:
            worker.suspend()
        yield
    finally:
        for worker in workers:
            with contextlib.suppress(psutil.Error):
                worker.resume()


@contextlib.asynccontextmanager
async def workers_of(
    app: str, count: int, env: Mapping[str, str] | None = None
) -> AsyncIterator[list[aiohttp.ClientSession]]:
    """Serve "module:app" with `count` workers while the block runs; yield one session for each of them."""
    with start_workers(app, count, env=env) as fleet:
        async with each_worker(fleet.url, fleet.pids[count > 1 :]) as each:
            yield each


def _session(url: str, sockets: list[socket.socket]) -> aiohttp.ClientSession:
    def keep(address: tuple) -> socket.socket:
        sockets.append(socket.socket(*address[:3]))
        return sockets[-1]

    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=1, socket_factory=keep))


def _owner(port: int, pids: Collection[int]) -> int | None:
    """Which process holds the other end of the connection from our `port`."""
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            if any(each.raddr and each.raddr.port == port for each in psutil.Process(pid).net_connections("tcp")):
                return pid
    return None


async def ask_each(each: Sequence[aiohttp.ClientSession], path: str, times: int, method: str = "GET") -> list[Any]:
    """Send `times` requests, an equal share through each session, and return the JSON answers.

    The sessions ask at once, each of them one request after the other.
    Raises ValueError when the shares cannot be equal, aiohttp.ClientResponseError for an answer of 400 or more.
    """
    if not each or times % len(each):
        raise ValueError(f"{times} requests cannot be shared equally by {len(each)} sessions: take a multiple of it.")

    async def share(session: aiohttp.ClientSession) -> list[Any]:
        answers = []
        for _ in range(times // len(each)):
            async with session.request(method, path, raise_for_status=True) as answer:
                answers.append(await answer.json())
        return answers

    return [answer for answers in await asyncio.gather(*map(share, each)) for answer in answers]
