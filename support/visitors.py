"""Clients who visit pages of a server, each with its patience, and note what they saw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp

LEFT = 499  # noted by a client whose patience has ended


async def visit_all(
    url: str, visits: Mapping[str, tuple[Sequence[str | float], float]]
) -> dict[str, list[tuple[int, float]]]:
    """Visit pages of the server at `url`, one group after the other; the clients of a group come at once, or after a pause.

    Args:
        visits: by name, the paths of a group, in the order in which they are asked for, and how long
            its clients wait, in seconds. A number among the paths is a pause: who follows comes so many
            seconds later.

    Returns:
        By name and in the same order, the status, 499 for who gave up, and the seconds to the last byte.

    Raises:
        aiohttp.ClientError: the server does not answer. ValueError: a patience is not positive.
    """
    return {name: await _visit_together(url, name, paths, patience) for name, (paths, patience) in visits.items()}


async def _visit_together(
    url: str, name: str, paths: Sequence[str | float], patience: float
) -> list[tuple[int, float]]:
    if not patience > 0:
        raise ValueError(f"The clients of {name!r} wait {patience!r} s: give a positive number of seconds.")

    async def visit(path: str) -> tuple[int, float]:
        start = time.perf_counter()
        try:
            async with asyncio.timeout(patience), session.get(path) as answer:
                await answer.read()
                status = answer.status
        except TimeoutError:
            status = LEFT
        return status, time.perf_counter() - start

    # A session for each group: a crash closes its connection, and the next group must not meet that.
    async with (
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        tasks = []
        for path in paths:
            if isinstance(path, str):
                tasks.append(group.create_task(visit(path)))
            else:
                await asyncio.sleep(path)
    return [task.result() for task in tasks]


async def report(url: str, ready: Callable[[Any], bool] = lambda _: True, *, within: float = 9.0) -> Any:
    """The JSON that is at `url`, asked for again until `ready(it)`.

    A client can have its answer before the server is through with the request; this waits for the server.
    Raises TimeoutError when it is not ready within that many seconds, aiohttp.ClientError when there is no answer.
    """
    async with asyncio.timeout(within), aiohttp.ClientSession() as session:
        while True:
            async with session.get(url, raise_for_status=True) as answer:
                if ready(found := await answer.json()):
                    return found
            await asyncio.sleep(0.01)
