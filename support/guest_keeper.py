"""What `support.service_process` does for a server of the reader's own, which DATABASE_URL or REDIS_URL names.

It starts nothing, and only removes at the end what the course made there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import Any

from support.service_process import CLAIM, GRACE, NEWEST_REDIS_DATABASE, say


class GuestKeeper:
    """Keeps nothing alive: removes at the end what the course made in a server of the reader's own."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._lock = threading.Lock()

    def run(self) -> None:
        say({"pid": 0, "port": 0})
        threading.Event().wait()

    def end(self) -> None:
        self._lock.acquire()
        with contextlib.suppress(Exception):  # the reader's server may be gone, and nobody listens
            remove = _drop_databases if self._options["kind"] == "postgres" else _empty_database
            asyncio.run(asyncio.wait_for(remove(self._options["guest_of"], self._options["token"]), GRACE * 5))
        os._exit(0)


async def _drop_databases(url: str, prefix: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    for row in await connection.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", prefix):
        await connection.execute(f'DROP DATABASE IF EXISTS "{row[0]}" WITH (FORCE)')
    await connection.close()


async def _empty_database(url: str, token: str) -> None:
    """Empty the database of which the token is the owner. Others hold no such claim, so they stay as they are."""
    import redis.asyncio as redis

    async with redis.Redis.from_url(url, single_connection_client=True) as client:
        for number in range(1, NEWEST_REDIS_DATABASE + 1):
            await client.execute_command("SELECT", number)
            if await client.get(CLAIM) == token.encode():
                await client.flushdb()
