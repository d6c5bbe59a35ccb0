"""A pool of connections on the virtual clock, for the checkers of chapter 05.

It has the contract of asyncpg's pool where it matters here: `acquire` waits for ever unless it has a
timeout, is awaited or used with `async with`, and loses nothing when it is cancelled; a connection
does one query at a time; a connection that was given back can no longer be used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

QUERY, RESET = 0.01, 0.001  # simulated seconds
LEVELS = ("read_uncommitted", "read_committed", "repeatable_read", "serializable")


class PoolBusy(Exception):
    """There was no connection within the budget: answer 503."""


def _misused(what: str) -> Exception:
    from asyncpg import InterfaceError  # not at the top: every chapter would load it

    return InterfaceError(what)


class Connection:
    """One session. `query(name, value)` takes a moment and returns the value."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.valid, self.busy, self.depth = pool, True, False, 0
        self.levels: list[str | None] = []  # the isolation of each transaction that was begun
        self.done: list[tuple[str, bool]] = []  # each query, and whether it ran in a transaction

    async def query(self, name: str, value: Any, seconds: float = QUERY) -> Any:
        """Raises asyncpg.InterfaceError, as asyncpg does, when it is misused."""
        if not self.valid:
            raise _misused("the connection has been released back to the pool")
        if self.busy:
            raise _misused("cannot perform operation: another operation is in progress")
        self.busy = True
        try:
            await asyncio.sleep(seconds)
        finally:
            self.busy = False
        self.done.append((name, self.depth > 0))
        return value

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """For `async with`. Raises ValueError for an isolation that asyncpg does not know."""
        if isolation not in (None, *LEVELS):
            raise ValueError(f"isolation is expected to be either of {', '.join(LEVELS)}, got {isolation!r}")
        return Transaction(self, isolation)


class Transaction:
    """BEGIN when it is entered; COMMIT, or ROLLBACK after an error, when it is left."""

    def __init__(self, connection: Connection, isolation: str | None) -> None:
        self.connection, self.isolation = connection, isolation

    async def __aenter__(self) -> None:
        await self.connection.query("BEGIN", None, RESET)
        self.connection.levels.append(self.isolation)
        self.connection.depth += 1

    async def __aexit__(self, *_: object) -> None:
        self.connection.depth -= 1
        await asyncio.shield(self.connection.query("END", None, RESET))


class Acquiring:
    """What `pool.acquire()` returns: await it, or use it with `async with`."""

    def __init__(self, pool: Pool, timeout: float | None) -> None:
        self.pool, self.timeout, self.connection = pool, timeout, None

    def __await__(self) -> Generator[Any, Any, Connection]:
        return self.pool._take(self.timeout).__await__()

    async def __aenter__(self) -> Connection:
        self.connection = await self.pool._take(self.timeout)
        return self.connection

    async def __aexit__(self, *_: object) -> None:
        await self.pool.release(self.connection)


class Pool:
    """`size` connections. `held` and `peak` count those that are out."""

    def __init__(self, size: int) -> None:
        self.size, self.held, self.peak, self.acquired = size, 0, 0, 0
        self.history: list[Connection] = []
        self._free: asyncio.LifoQueue[int] = asyncio.LifoQueue()
        for number in range(size):
            self._free.put_nowait(number)

    def acquire(self, *, timeout: float | None = None) -> Acquiring:
        """A connection, when there is one. Raises TimeoutError after `timeout` seconds."""
        return Acquiring(self, timeout)

    async def release(self, connection: Connection) -> None:
        """Give a connection back; twice is no error, as with asyncpg. A cancellation does not stop it."""
        if not isinstance(connection, Connection) or connection.pool is not self:
            raise _misused(f"release() received invalid connection: {connection!r}")
        if connection.valid:
            connection.valid = False
            await asyncio.shield(self._reset())

    async def _take(self, timeout: float | None) -> Connection:
        async with asyncio.timeout(timeout):
            await self._free.get()
        self.held += 1
        self.acquired += 1
        self.peak = max(self.peak, self.held)
        connection = Connection(self)
        self.history.append(connection)
        return connection

    async def _reset(self) -> None:
        await asyncio.sleep(RESET)
        self.held -= 1
        self._free.put_nowait(0)


async def settle() -> None:
    """Long enough for every connection that is on its way back."""
    await asyncio.sleep(10 * RESET)


async def occupy(pool: Pool, seconds: float, count: int) -> list[asyncio.Task[Any]]:
    """Let `count` other users hold a connection for `seconds` from now."""

    async def one() -> None:
        async with pool.acquire() as connection:
            await connection.query("other", None, seconds)

    tasks = [asyncio.create_task(one()) for _ in range(count)]
    while pool.held < min(count, pool.size):
        await asyncio.sleep(0)
    return tasks


def all_back(pool: Pool) -> bool:
    """Is every connection in the pool?"""
    return pool.held == 0 and pool._free.qsize() == pool.size
