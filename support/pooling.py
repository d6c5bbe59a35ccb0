"""What the chapter on connection pools does to a pool: requests that come at random, and that block each other; readings."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

STUCK_SECONDS = 0.3  # so long none of the requests has finished: they wait for each other


async def lend(pool: Any, requests: Iterable[tuple[float, float]], seconds: float) -> list[tuple[float, float, float]]:
    """Send requests to an asyncpg pool when they are due, for so many seconds. Returns when each asked, got and gave back.

    requests: in order, when each is due and how long Postgres sleeps for it (s). Those that are due later are not sent.
    The times are of `time.perf_counter`; a hold ends with the reset of the connection. Errors come out as a group.
    """
    seen, start = [], time.perf_counter()

    async def request(asked: float, hold: float) -> None:
        async with pool.acquire() as connection:
            got = time.perf_counter()
            await connection.execute("SELECT pg_sleep($1)", hold)
        seen.append((asked, got, time.perf_counter()))

    async with asyncio.TaskGroup() as group:
        for due, hold in itertools.takewhile(lambda each: each[0] < seconds, requests):
            await asyncio.sleep(start + due - time.perf_counter())
            group.create_task(request(time.perf_counter(), hold))
    return sorted(seen)


async def succeed(request: Callable[[asyncio.Barrier], Awaitable[None]], count: int, pool_size: int, raised: set[str]) -> int:  # fmt: skip
    """Run so many requests at once until all have ended or are stuck. Returns how many succeeded.

    request: gets a barrier at which it waits with its first connection: the worst case is that each has one.
    raised: gets the names of the errors. What is stuck is cancelled all together, for the first to give up would free
        the others.
    """
    all_here, finished = asyncio.Barrier(min(count, pool_size)), True
    running = every = {asyncio.ensure_future(request(all_here)) for _ in range(count)}
    try:
        while running and finished:
            finished, running = await asyncio.wait(running, timeout=STUCK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in running:
            task.cancel()
        results = await asyncio.gather(*every, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    raised.update(type(error).__name__ for error in errors if not isinstance(error, asyncio.CancelledError))
    return results.count(None)


def watch(statements: list[str]) -> Callable[[Any], Awaitable[None]]:
    """An `init` for an asyncpg pool: adds the text of whatever it sends to that list."""

    async def init(connection: Any) -> None:
        await connection.fetch("SELECT $1::int[]", [])  # a connection's first array costs a look into the catalogue
        connection.add_query_logger(lambda sent: statements.append(sent.query))

    return init


async def ten_readings(read: Callable[[Any], Awaitable[int]], pool: Any, statements: list[str],
                       right: int) -> tuple[int, int, float]:  # fmt: skip
    """Run `await read(pool)` ten times, and print what was counted. `statements` is the list of `watch`.

    Returns how many results were not `right`, the statements of one reading, and the seconds of the quickest.
    """
    statements.clear()
    wrong, times = 0, []
    for _ in range(10):
        start = time.perf_counter()
        wrong += await read(pool) != right
        times.append(time.perf_counter() - start)
    sent = len(statements) // 10
    shown = "over half" if wrong > 5 else wrong
    print(f"{read.__name__:12s} statements sent: {sent:3d}; of 10 totals wrong: {shown}")
    return wrong, sent, min(times)


async def query_ends(url: str, clients: int, queries: int = 10, **options: Any) -> Counter[str]:
    """Open so many client connections, let all send a query of 3 ms at once, again and again, and count how these end.

    options: of the asyncpg pool that the clients are of, such as statement_cache_size=0.
    Returns how many were answered, under "answered", and how many had which error of Postgres, under its name.
    """
    import asyncpg

    ends: Counter[str] = Counter(answered=0)
    async with asyncpg.create_pool(url, min_size=clients, max_size=clients, **options) as pool:

        async def client(all_here: asyncio.Barrier) -> None:
            async with pool.acquire() as connection:
                for number in range(queries):
                    await all_here.wait()
                    try:
                        await connection.fetchval("SELECT $1::int FROM pg_sleep(0.003)", number)
                        ends["answered"] += 1
                    except asyncpg.PostgresError as error:
                        ends[type(error).__name__] += 1

        all_here = asyncio.Barrier(clients)
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client(all_here))
    return ends
