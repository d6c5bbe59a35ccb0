"""The gateway itself, without a network: who may ask, who waits, who is asked, and what the answer is.

A request goes through, in this order: limit, shed, cache, single flight, breaker, bulkhead, hedge and retry,
upstream. The upstream is a function, ``fetch``, so that the same pipeline runs live and, with a fake one,
under the virtual clock. Every wait of a request ends at its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from support.gateway.answer import ABANDONED, RETRIABLE, Answer, Part, Reply, UnknownService, UpstreamFailed, checked
from support.gateway.flight import FlightCache
from support.gateway.protect import Breaker, Bulkhead, CircuitOpen, Full, RateLimit, RetryBudget, Shedder, loop_time
from support.gateway.settings import Settings

logger = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class Ask:
    """What all parts of one request share. ``due`` in the loop's time; None: no end."""

    due: float | None
    headers: Mapping[str, str] | None
    tenant: str

    @property
    def personal(self) -> bool:
        """Whether the answer may be for this user alone: then it is neither kept nor shared."""
        return self.headers is not None and "authorization" in self.headers


Fetch = Callable[[str, str, "Mapping[str, str] | None", "float | None"], Awaitable[Reply]]


class Upstream:
    """What the gateway knows of one upstream, and what protects it."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.breaker = Breaker(settings.breaker, settings.breaker_rest) if settings.breaker else None
        self.bulkhead = Bulkhead(settings.bulkhead, settings.bulkhead_queue) if settings.bulkhead else None
        self.budget = RetryBudget(settings.retry_budget) if settings.retry_budget else None

    def may_repeat(self) -> bool:
        """Whether one more attempt is in the budget, and the breaker still closed."""
        if self.breaker and self.breaker.state != "closed":
            return False
        return self.budget is None or self.budget.take()


class Gateway:
    """The pipeline over one registry of upstreams.

    Args:
        fetch: ``await fetch(name, path, headers, timeout)`` calls an upstream with GET and returns a Reply. It
            raises UpstreamFailed, TimeoutError or OSError. ``timeout``: seconds that are left; None: no end.
        dice: for the jitter of retries.
        observe: told (name, status word, seconds) of each call to an upstream, its retries included.
    """

    def __init__(
        self,
        settings: Settings,
        fetch: Fetch,
        *,
        dice: random.Random | None = None,
        observe: Callable[[str, str, float], None] | None = None,
    ) -> None:
        self.settings, self._fetch, self._observe = settings, fetch, observe or (lambda *_: None)
        self._dice = dice or random.Random(9)
        # Who has waited that long has seen that the upstream is slow.
        self._patience = settings.attempt or (settings.deadline or settings.upstream_timeout) / 2
        self.upstreams = {name: Upstream(name, settings) for name in settings.upstreams}
        self.shedder = Shedder(settings.shed, settings.shed_queue) if settings.shed else None
        self.limit = RateLimit(settings.rate) if settings.rate else None
        self.cache: FlightCache[Part] | None = None
        if settings.cache:
            self.cache = FlightCache(self._time_to_live, lambda part: len(part.body), settings.cache_bytes)

    def _time_to_live(self, part: Part) -> float:
        if not part.shared:
            return 0.0
        if part.ok:
            return self.settings.cache or 0.0
        return 0.0 if part.status in ("timeout", "busy", "circuit_open") else self.settings.cache_negative

    async def close(self) -> None:
        """End what is still in flight."""
        if self.cache:
            await self.cache.close()

    async def aggregate(
        self,
        names: Iterable[str],
        deadline: float | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        tenant: str = "",
    ) -> Answer:
        """Ask each of the named services once, at the same time, and answer with what came in time.

        Args:
            deadline: seconds for all of it; None takes the setting. Never more than ``deadline_max``.
            headers: sent to each upstream. With ``authorization`` among them nothing is cached or shared.

        Raises:
            UnknownService: a name is not in the registry, or there are none, or too many.
        """
        wanted = list(dict.fromkeys(names))
        if not 1 <= len(wanted) <= self.settings.services:
            raise UnknownService(f"Name 1 to {self.settings.services} services, not {len(wanted)}.")
        if not all(name in self.upstreams for name in wanted):
            raise UnknownService("Name only services of this gateway.")
        if self.limit and not self.limit.admit(tenant):
            return Answer(429, error="too many requests")
        due = self._due(deadline)
        try:
            async with asyncio.timeout_at(due):  # in line only: each part has its own
                await self.enter()
        except (Full, TimeoutError):
            return Answer(503, error="overloaded")
        try:
            return self._answer(await self._fan_out(wanted, Ask(due, headers, tenant)))
        finally:
            self.leave()

    async def enter(self) -> None:
        """Through the door, after a wait in line if need be; then ``leave()``. Raises Full."""
        if self.shedder:
            await self.shedder.enter()

    def leave(self) -> None:
        """Out again."""
        if self.shedder:
            self.shedder.leave()

    def _due(self, deadline: float | None) -> float | None:
        """When the parts must be there, in the loop's time."""
        if self.settings.deadline is None:
            return None
        seconds = min(self.settings.deadline if deadline is None else deadline, self.settings.deadline_max)
        return loop_time() + seconds - min(self.settings.reserve, seconds / 10)

    def _answer(self, parts: dict[str, Part]) -> Answer:
        good = sum(part.ok for part in parts.values())
        if good == len(parts):
            return Answer(200, parts)
        if good and self.settings.partial:
            return Answer(207, parts)
        failed = {name: part for name, part in parts.items() if not part.ok}
        return Answer(504 if all(part.status == "timeout" for part in failed.values()) else 502, failed)

    async def _fan_out(self, names: list[str], ask: Ask) -> dict[str, Part]:
        cache = None if ask.personal else self.cache
        found = {name: part for name in names if (part := cache.peek((name, ask.tenant)))} if cache else {}
        missing = [name for name in names if name not in found]
        if missing:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._part(name, ask, cache)) for name in missing]
            found.update(zip(missing, [task.result() for task in tasks], strict=True))
        return {name: found[name] for name in names}

    async def _part(self, name: str, ask: Ask, cache: FlightCache[Part] | None) -> Part:
        """One part of an answer: never an exception, unless this task is cancelled from outside."""
        try:
            return await (self._guarded(name, ask) if cache is None else self._shared(name, ask, cache))
        except TimeoutError:
            return Part(name, "timeout")
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            return Part(name, "failed")  # something inside was cancelled, and nobody asked us to stop
        except Exception:
            logger.exception("a call to upstream %s failed in an unforeseen way", name)
            return Part(name, "failed")

    async def _shared(self, name: str, ask: Ask, cache: FlightCache[Part]) -> Part:
        """Through cache and single flight. Raises TimeoutError at the deadline of this request."""
        key = name, ask.tenant
        while True:
            leads = not cache.flies(key)  # then the flight has this request's deadline, and ends by itself
            async with asyncio.timeout_at(None if leads else ask.due):
                part = await cache.get(key, lambda: self._guarded(name, ask))
            if not leads and not part.shared:
                return await self._guarded(name, ask)  # it was for whoever began the flight
            if leads or part.status != "timeout" or part.again:
                return part
            # The flight ended at the earlier deadline of the request that began it, and there is time left.

    def _guarded(self, name: str, ask: Ask) -> Coroutine[Any, Any, Part]:
        return self.through(name, ask.due, lambda: self._attempts(self.upstreams[name], ask))

    async def through(
        self, name: str, due: float | None, work: Callable[[], Awaitable[Part]], *, line_only: bool = False
    ) -> Part:
        """``await work()`` behind the upstream's breaker and bulkhead, until ``due``; what came of it, or why it did not run.

        With ``line_only`` the wait for a place ends at ``due``, and ``work`` when it will. The breaker hears
        of it, however it ends. Exceptions of ``work`` pass, but for TimeoutError.
        """
        upstream, began = self.upstreams[name], loop_time()
        inside: float | None = None
        part: Part | None = None
        try:
            ticket = upstream.breaker.enter() if upstream.breaker else 0
        except CircuitOpen:
            self._observe(name, CircuitOpen.reason, 0.0)
            return Part(name, CircuitOpen.reason)
        try:
            async with asyncio.timeout_at(began + self.settings.upstream_timeout if due is None else due) as limit:
                async with upstream.bulkhead or contextlib.nullcontext():
                    inside = loop_time()
                    if line_only:
                        limit.reschedule(None)
                    part = await work()
        except Full:
            part = Part(name, Full.reason)
        except TimeoutError:
            part = Part(name, "timeout")
        finally:
            now = loop_time()
            healthy = part.healthy if part else None
            if part and part.status == "timeout" and (inside is None or now - inside < self._patience):
                healthy = None  # a client in a hurry, or a line of our own, says nothing of the upstream
            if upstream.breaker:
                upstream.breaker.leave(ticket, healthy)
            self._observe(name, part.status if part else ABANDONED, now - began)
        return part

    async def _attempts(self, upstream: Upstream, ask: Ask) -> Part:
        """The first attempt, and retries of those that failed before the first byte, as far as time and budget go."""
        if upstream.budget:
            upstream.budget.pay_in()
        wait = self.settings.retry_wait
        for left in range(self.settings.retries, -1, -1):
            if self.settings.hedge:
                part = await self._hedged(upstream, ask)
            else:
                part = await self._attempt(upstream, ask)
            if not left or not part.again:
                break
            pause = self._dice.uniform(0, wait)
            if (ask.due is not None and loop_time() + pause >= ask.due) or not upstream.may_repeat():
                break
            await asyncio.sleep(pause)
            wait *= 2
        return part

    async def _hedged(self, upstream: Upstream, ask: Ask) -> Part:
        """An attempt, and a second one when the first takes long: the first good answer wins."""
        tasks = [asyncio.create_task(self._attempt(upstream, ask))]
        try:
            done, _ = await asyncio.wait(tasks, timeout=self.settings.hedge)
            if not done and upstream.may_repeat():
                tasks.append(asyncio.create_task(self._attempt(upstream, ask)))
            pending = set(tasks)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if good := [task.result() for task in done if task.result().ok]:
                    return good[0]
            return tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _attempt(self, upstream: Upstream, ask: Ask) -> Part:
        name, most = upstream.name, self.settings.attempt
        left = None if ask.due is None else max(0.0, ask.due - loop_time())
        try:
            if most:
                async with asyncio.timeout(most):
                    reply = await self._fetch(name, "", ask.headers, most if left is None else min(left, most))
            else:
                reply = await self._fetch(name, "", ask.headers, left)
        except UpstreamFailed as failed:
            return Part(name, failed.reason, again=failed.reason == "unavailable" and not failed.started)
        except TimeoutError:
            return Part(name, "timeout", again=True)
        except OSError:
            return Part(name, "unavailable", again=True)
        if not 200 <= reply.status < 300:  # a redirect, too: whoever answers decides no address here
            again = reply.status in RETRIABLE
            return Part(name, "upstream_error", reply.status, again=again, shared=reply.shared)
        return checked(name, reply)
