"""Replicas of a service, each a server of its own, that are restarted in turn behind a balancer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.balancer import Balancer, start_balancer
from support.program_base import Program, expect
from support.programs import start_workers
from support.steady import Steady, steady_load

PAUSE_S = 0.15  # of steady load, before each restart


class Replicas:
    """Several servers of one app, by name, each of one worker: `replicas["first"]` is what start_workers returned.

    app: such as "shop:app". env: environment variables for all. Then the names, each with its graceful timeout: the
        seconds that uvicorn gives to what is in flight when it is told to end.
    Raises ValueError for bad input, RuntimeError with the reason when one does not start.
    """

    def __init__(self, app: str, env: Mapping[str, str] | None = None, **graceful: int) -> None:
        expect(bool(graceful), "Replicas() needs at least one name with its graceful timeout, as in first=5.")
        self._app, self._env = app, env
        self._running: dict[str, Program] = dict.fromkeys(graceful)  # in this order
        with ThreadPoolExecutor(len(graceful)) as pool:  # side by side; the first failure is raised
            list(pool.map(self.start, graceful, graceful.values()))

    def __getitem__(self, name: str) -> Program:
        return self._running[name]

    def start(self, name: str, graceful_timeout: int) -> None:
        """Start the replica of that name, at the port that it had before where that is possible."""
        self._running[name] = start_workers(self._app, 1, name=name, graceful_timeout=graceful_timeout, env=self._env)

    def balancer(self, **options: Any) -> Balancer | None:
        """A balancer in front of all replicas: `start_balancer`, with its options. None where there is no HAProxy."""
        return start_balancer([replica.url for replica in self._running.values()], must_check=True, **options)

    async def rollout(
        self, restart: Callable[[str, Balancer], Awaitable[None]], path: str, *, rate: float
    ) -> Steady | None:
        """Restart one replica after the other, under a steady load behind a balancer; return what the load has seen.

        restart: called with a name and the balancer; it returns when that replica's turn is over. Each is a mark.
        path: what is asked for. rate: requests per second.
        Returns None, after a sentence that says why, where there is no HAProxy.
        """
        if (balancer := self.balancer()) is None:
            return None
        with balancer, steady_load(f"{balancer.url}{path}", rate=rate) as seen:
            for name in self._running:
                await asyncio.sleep(PAUSE_S)
                seen.mark(name)
                await restart(name, balancer)
        return seen
