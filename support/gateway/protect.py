"""What stands between the gateway and a failing upstream: breaker, retry budget, bulkhead, shedder, rate limit.

All of it counts on one event loop, without locks, and takes the time from a ``clock``: by default the
running loop's, so that it works under the virtual clock, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Self

Clock = Callable[[], float]


def loop_time() -> float:
    """The running loop's time, in seconds."""
    return asyncio.get_running_loop().time()


class Refused(Exception):
    """A protection let this call not through. ``reason`` is a short word for the client."""

    reason = "refused"


class CircuitOpen(Refused):
    reason = "circuit_open"


class Full(Refused):
    reason = "busy"


class Breaker:
    """Opens after ``failures`` in a row; after ``rest`` seconds it lets ONE probe through, which decides.

    ``ticket = breaker.enter()`` before a call, ``breaker.leave(ticket, healthy)`` after it, always. A call
    that says nothing about the upstream's health leaves with None. A call that began before the breaker
    opened has no say any more: its answer is old news.
    """

    def __init__(self, failures: int, rest: float, clock: Clock = loop_time) -> None:
        self.failures, self.rest, self._clock = failures, rest, clock
        self._in_a_row = 0
        self._opened: float | None = None  # when; None: closed
        self._probing = False
        self._era = 0  # one more each time it opens, closes, or sends a probe

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``: the rest is over, and a probe is due or under way."""
        if self._opened is None:
            return "closed"
        return "half-open" if self._probing or self._clock() - self._opened >= self.rest else "open"

    def enter(self) -> int:
        """Let a call through and return its ticket. Raises CircuitOpen."""
        if self._opened is not None:
            if self._probing or self._clock() - self._opened < self.rest:
                raise CircuitOpen
            self._probing = True
            self._era += 1
        return self._era

    def leave(self, ticket: int, healthy: bool | None) -> None:
        """Say how the call went: True, False, or None for a call that was given up for other reasons."""
        if ticket != self._era:
            return
        if self._probing:
            self._probing = False
            if healthy:
                self._opened, self._in_a_row = None, 0
            elif healthy is False:
                self._opened = self._clock()
            self._era += 1
        elif healthy:
            self._in_a_row = 0
        elif healthy is False:
            self._in_a_row += 1
            if self._in_a_row >= self.failures:
                self._opened = self._clock()
                self._era += 1


class RetryBudget:
    """Retries and hedges together: at most ``share`` of the calls, and a few more to begin with.

    Each call pays in ``share``, each extra attempt takes out 1. The account holds ``most`` at most: what
    a quiet day has saved must not become a storm.
    """

    def __init__(self, share: float, most: float = 10.0, start: float = 2.0) -> None:
        self.share, self.most, self.saved = share, most, min(start, most)

    def pay_in(self) -> None:
        """Count a call."""
        self.saved = min(self.most, self.saved + self.share)

    def take(self) -> bool:
        """Take one extra attempt out, if there is one."""
        if self.saved < 1:
            return False
        self.saved -= 1
        return True


class Places:
    """``places`` may be inside, ``queue`` may wait, first come first served; who comes then is refused at once.

    ``async with places:`` or ``enter`` and ``leave``.
    """

    def __init__(self, places: int, queue: int = 0) -> None:
        self.places, self.queue = places, queue
        self.inside = 0
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._line)

    async def enter(self) -> None:
        """Take a place, after a wait if need be. Raises Full. A waiter that is cancelled gives up its turn."""
        if self.inside < self.places:
            self.inside += 1
            return
        if len(self._line) >= self.queue:
            raise Full
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.leave()  # it got the place and was cancelled in the same moment
            else:
                with contextlib.suppress(ValueError):
                    self._line.remove(turn)
            raise

    def leave(self) -> None:
        """Give the place back: the first in line has it before anybody else can take it."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1

    async def __aenter__(self) -> Self:
        await self.enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()


class Bulkhead(Places):
    """Calls to one upstream at once: a slow one fills its own places, and nobody else's."""


class Shedder(Places):
    """Requests in the gateway at once: the door, before anything that costs."""


class RateLimit:
    """Requests per second for each tenant, with bursts of one second's worth (GCRA, after ATM's I.371).

    In this process only: with W processes it admits W times as many.
    """

    def __init__(self, rate: float, tenants: int = 10_000, clock: Clock = loop_time) -> None:
        self.step, self.tenants, self._clock = 1 / rate, tenants, clock
        self._burst = max(1.0, self.step)
        self._due: OrderedDict[str, float] = OrderedDict()  # when each tenant's account is even again

    def admit(self, tenant: str) -> bool:
        """Count one request of that tenant, if it may come."""
        now = self._clock()
        due = max(self._due.get(tenant, now), now) + self.step
        if due - now > self._burst + 1e-9:
            return False
        self._due[tenant] = due
        self._due.move_to_end(tenant)
        if len(self._due) > self.tenants:
            self._due.popitem(last=False)
        return True
