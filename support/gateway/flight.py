"""A bounded cache with single flight: however many ask for a key at once, it is made once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from support.gateway.protect import Clock, loop_time

V = TypeVar("V")
ENTRY_BYTES = 512  # what an entry takes beside its value, roughly


@dataclass(slots=True)
class _Flight(Generic[V]):
    task: asyncio.Task[V]
    waiters: int = 0


class FlightCache(Generic[V]):
    """Values by key, each for a time of its own, with at most ``most_bytes`` in all: the longest unused go first.

    The age of a value counts from when its making began, so that none is served that is older than its
    time to live. A flight is a task of its own: a waiter that is cancelled leaves the others theirs, and
    the last one to leave ends the flight.

    Args:
        ttl_of: seconds that a value may be served; 0: not at all.
        size_of: its bytes.
    """

    def __init__(
        self, ttl_of: Callable[[V], float], size_of: Callable[[V], int], most_bytes: int, clock: Clock = loop_time
    ) -> None:
        self._ttl_of, self._size_of, self._most, self._clock = ttl_of, size_of, most_bytes, clock
        self._kept: OrderedDict[Any, tuple[V, float, int]] = OrderedDict()  # value, end, bytes
        self._flights: dict[Any, _Flight[V]] = {}
        self._ending: set[asyncio.Task[V]] = set()  # cancelled, but not done: the loop alone would not hold them
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def peek(self, key: Any) -> V | None:
        """The value, if there is one that may still be served."""
        found = self._kept.get(key)
        if found is None:
            return None
        if self._clock() >= found[1]:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[0]

    def flies(self, key: Any) -> bool:
        """Whether it is being made at this moment."""
        return key in self._flights

    async def get(self, key: Any, make: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """The value; made by ``make()`` when there is none and nobody makes it yet. Its exceptions go to all who wait."""
        if (value := self.peek(key)) is not None:
            return value
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(self._fly(key, make), name=f"flight {key}"))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._forget(key, flight)
                self._ending.add(flight.task)
                flight.task.add_done_callback(self._ending.discard)
                flight.task.cancel()

    async def close(self) -> None:
        """End all flights and wait until they have ended."""
        tasks = {flight.task for flight in self._flights.values()} | self._ending
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(self, key: Any, make: Callable[[], Coroutine[Any, Any, V]]) -> V:
        began, mine = self._clock(), self._flights.get(key)
        try:
            value = await make()
            self._keep(key, value, began)
            return value
        finally:
            self._forget(key, mine)

    def _forget(self, key: Any, flight: _Flight[V] | None) -> None:
        if self._flights.get(key) is flight:  # a newer flight of the same key is none of ours
            self._flights.pop(key, None)

    def _keep(self, key: Any, value: V, began: float) -> None:
        end, size = began + self._ttl_of(value), self._size_of(value) + ENTRY_BYTES
        if end <= self._clock() or size > self._most:
            return
        self._drop(key)
        self._kept[key] = value, end, size
        self.bytes += size
        while self.bytes > self._most:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Any) -> None:
        if (gone := self._kept.pop(key, None)) is not None:
            self.bytes -= gone[2]
