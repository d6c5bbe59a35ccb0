"""The checker of exercise 6.4: a cache in each of four processes, and a real Redis between them.

The four are four caches with a client each, in one process: they share nothing but Redis. Nothing
is judged by how long it takes: entries are made to expire, and a wait is only ever too long.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from .faults import Injected
from .harness import Failed, Prove, call, plain

PROCESSES = 4
TTL, LOCAL, FALLBACK = 30.0, 0.05, 5  # seconds, seconds, loads at once
LEASE, SHORT_LEASE = 5.0, 0.3  # seconds; the short one where a lease has to end
ONE = "one load for all four processes"
OTHERS_LOCK = "never removes another's lock"
OUTAGE = "Redis down: every get is served"
LIMIT = "Redis down: no more loads at once than fallback"
STALE = "no stale value longer than local_ttl after invalidate"
PREFIX = "every key in Redis begins with prefix"
EXPIRES = "every key in Redis expires"
LEFT = "leaves no task behind"


class _Origin:
    """Numbered values; counts the loads of each key and how many ran at once."""

    def __init__(self) -> None:
        self.loads: dict[str, int] = {}
        self.in_flight = self.peak = 0
        self.failing = False
        self.gates: dict[int, asyncio.Event] = {}  # the n-th load waits here
        self.begun: dict[int, asyncio.Event] = {}
        self.value: Any = None

    async def load(self, key: str) -> Any:
        self.loads[key] = self.loads.get(key, 0) + 1
        number = sum(self.loads.values())
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if number in self.begun:
            self.begun[number].set()
        try:
            await asyncio.sleep(0.05)
            if number in self.gates:
                await self.gates[number].wait()
            if self.failing:
                raise Injected("the origin is down")
            return {"key": key, "number": self.loads[key]} if self.value is None else self.value[0]
        finally:
            self.in_flight -= 1


class _Fleet:
    """Four caches of one answer, on the Redis at `url`."""

    def __init__(self, answer: Any, url: str, prefix: str, lease: float) -> None:
        import redis.asyncio

        self.prefix, self.origin, self.seen_tasks = prefix, _Origin(), asyncio.all_tasks()
        self.clients = [redis.asyncio.from_url(url, socket_connect_timeout=2) for _ in range(PROCESSES)]
        self.caches = [answer(client, self.origin.load, prefix, TTL, LOCAL, lease, FALLBACK) for client in self.clients]

    async def close(self) -> list[str]:
        """Close the clients; return the names of the coroutines that still run after a moment."""
        for _ in range(50):
            left = [task for task in asyncio.all_tasks() - self.seen_tasks if not task.done()]
            if not left:
                break
            await asyncio.sleep(0.02)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for client in self.clients:
            await client.aclose()
        return sorted(task.get_coro().__name__ for task in left)

    async def keys(self) -> list[str]:
        return [key.decode() async for key in self.clients[0].scan_iter(f"{self.prefix}*")]


def check_levels(answer: Any, prove: Prove) -> None:
    url, prefix = _redis(), f"exercise:{secrets.token_hex(4)}:"
    scenes = (_shared, _values, _invalidated, _second_round, _lock_of_another, _dead_owner, _errors, _outage)
    for number, scene in enumerate(scenes):
        run = call(
            lambda scene=scene, number=number: asyncio.run(_scene(scene, answer, prove, url, f"{prefix}{number}:"))
        )
        if isinstance(run.error, Failed):
            raise run.error
        left = run.result()
        prove(LEFT, not left, f"{', '.join(left)} was still running a second after the last get.")


def _redis() -> str:
    from .. import start_redis
    from ..service_base import services

    redis = services.get("redis")
    return (redis if redis and redis.alive else start_redis()).url


async def _scene(scene: Any, answer: Any, prove: Prove, url: str, prefix: str) -> list[str]:
    where = url if scene is not _outage else "redis://127.0.0.1:1/0"  # nobody listens there
    lease = SHORT_LEASE if scene in (_lock_of_another, _dead_owner) else LEASE
    fleet = _Fleet(answer, where, prefix, lease)
    left = ["get"]
    try:
        async with asyncio.timeout(9):
            await scene(fleet, prove)
    except TimeoutError:
        raise Failed("comes to an end", "A get did not end within 9 s.") from None
    finally:
        if scene is not _outage and (keys := await fleet.keys()):
            await fleet.clients[0].delete(*keys)
        left = await fleet.close()
    return left


async def _all(fleet: _Fleet, key: str, each: int = 1) -> list[Any]:
    got = await asyncio.gather(*(cache.get(key) for cache in fleet.caches for _ in range(each)), return_exceptions=True)
    for one in got:
        if isinstance(one, BaseException):
            raise one
    return got


async def _shared(fleet: _Fleet, prove: Prove) -> None:
    client = fleet.clients[0]
    await asyncio.gather(*(each.ping() for each in fleet.clients for _ in range(10)))  # all connections are open
    before = {key async for key in client.scan_iter("*")}
    got = await _all(fleet, "k", each=10)
    loads = fleet.origin.loads.get("k", 0)
    prove(ONE, loads == 1, "Four processes with ten readers each missed at once, and made more than one load.")
    prove(
        "returns what the load returned",
        all(one == {"key": "k", "number": 1} for one in got),
        f"One of them got {plain(got[0])}.",
    )
    made = {key async for key in client.scan_iter("*")} - before
    strange = sorted(key.decode() for key in made if not key.decode().startswith(fleet.prefix))
    prove(
        PREFIX, not strange, f"It wrote {len(strange)} keys into Redis that begin otherwise: other keys live there too."
    )
    forever = [key for key in made if await client.pttl(key) == -1]
    prove(EXPIRES, not forever, f"{len(forever)} of its keys in Redis have no time to live.")
    prove("keeps values in Redis", bool(made), "After a load there was no key in Redis.")
    longest = max([await client.pttl(key) for key in made])
    prove(EXPIRES, longest <= 1000 * TTL, "A key in Redis lives longer than ttl.")
    again = await fleet.caches[0].get("k")
    prove("keeps values", fleet.origin.loads["k"] == 1 and again == got[0], "A second get made a second load.")


async def _values(fleet: _Fleet, prove: Prove) -> None:
    for value in (None, 0, "", [], {"deep": [1, None]}):
        fleet.origin.value, key = (value,), f"value {value!r}"
        got = [await cache.get(key) for cache in fleet.caches for _ in range(2)]
        told = f"The load returned {value!r}, and four processes did not get it from one load."
        prove(
            "keeps every value, None and 0 too", all(one == value for one in got) and fleet.origin.loads[key] == 1, told
        )
    fleet.origin.value = None
    one = await fleet.caches[0].get("mine")
    one["number"] = "changed"
    again = [await cache.get("mine") for cache in fleet.caches]
    prove("hands out no value that the caller can spoil", all(each["number"] == 1 for each in again),
          "A caller changed the dict that it got, and the next reader saw the change.")  # fmt: skip


async def _second_round(fleet: _Fleet, prove: Prove) -> None:
    await _all(fleet, "k")
    await fleet.clients[0].delete(*await fleet.keys())  # their time in Redis is over
    await asyncio.sleep(2 * LOCAL)
    await _all(fleet, "k", each=5)
    loads = fleet.origin.loads["k"]
    told = "The value had expired in Redis and locally, and four processes did not make one load for the next."
    prove("one load for each time to live", loads == 2, told)


async def _invalidated(fleet: _Fleet, prove: Prove) -> None:
    await _all(fleet, "k")
    await fleet.caches[0].invalidate("k")
    got = await fleet.caches[0].get("k")
    prove(
        "the one that invalidates sees the new value",
        got["number"] == 2,
        "After invalidate, the same cache served the old value.",
    )
    await asyncio.sleep(2 * LOCAL)
    got = await _all(fleet, "k")
    old = sum(one["number"] == 1 for one in got)
    prove(STALE, old == 0, "Twice local_ttl after an invalidate, processes served the old value.")
    await fleet.caches[1].invalidate("never read")


async def _lock_of_another(fleet: _Fleet, prove: Prove) -> None:
    """The first load outlives its lease; another process loads meanwhile, and its lock must stay."""
    for number in range(5):  # again, if this machine was too slow to look before the second lease ended, too
        if await _outlived(fleet, prove, f"k{number}"):
            return
    raise Failed(OTHERS_LOCK, "While the second process loaded, no lock of it was in Redis.")


async def _outlived(fleet: _Fleet, prove: Prove, key: str) -> bool:
    """Whether it could be seen: the lock of the second process was there when we looked."""
    origin, client, before = fleet.origin, fleet.clients[0], set(await fleet.keys())
    one = sum(origin.loads.values()) + 1
    for number in (one, one + 1):
        origin.gates[number], origin.begun[number] = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(fleet.caches[0].get(key))]
    await origin.begun[one].wait()
    tasks.append(asyncio.create_task(fleet.caches[1].get(key)))
    try:
        async with asyncio.timeout(SHORT_LEASE + 2):
            await origin.begun[one + 1].wait()
    except TimeoutError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        told = "A process holds the lock and is slow, and after its lease no other one loads: give the lock a time to live."
        raise Failed("a lock is a lease", told) from None
    locks = {lock: await client.get(lock) for lock in await fleet.keys() if lock not in before}
    kept = [await client.pexpire(lock, 10_000) for lock in locks]  # it must not end by itself while we look
    origin.gates[one].set()
    await asyncio.wait(tasks[:1])
    await asyncio.sleep(0.02)
    gone = [lock for lock, token in locks.items() if await client.get(lock) != token]
    origin.gates[one + 1].set()
    await asyncio.wait(tasks)
    for task in tasks:
        task.result()
    if not (kept and all(kept)):
        return False
    told = "A load outlived its lease, and when it was done it deleted the lock that another process held by then."
    prove(OTHERS_LOCK, not gone, told)
    return True


async def _dead_owner(fleet: _Fleet, prove: Prove) -> None:
    """A process dies with the lock in its hand: its load hangs, and it never releases."""
    origin = fleet.origin
    for number in range(4):  # again, if this machine was so slow that the next owner's lease ended, too
        key, one = f"k{number}", sum(origin.loads.values()) + 1
        origin.gates[one], origin.begun[one] = asyncio.Event(), asyncio.Event()
        dead = asyncio.create_task(fleet.caches[0].get(key))
        await origin.begun[one].wait()
        got = await asyncio.gather(*(cache.get(key) for cache in fleet.caches[1:]))
        origin.gates[one].set()
        await dead
        if origin.loads[key] == 2:
            break
    told = "The owner of the lock hung; after its lease the three others did not make one load."
    prove("when the owner of a lock dies, one of the others loads", origin.loads[key] == 2 and len(got) == 3, told)


async def _errors(fleet: _Fleet, prove: Prove) -> None:
    fleet.origin.failing = True
    got = await asyncio.gather(*(cache.get("k") for cache in fleet.caches), return_exceptions=True)
    told = f"The origin failed, and a reader got {plain(repr(got[0]))}."
    prove("an error of the load comes out", all(isinstance(one, Injected) for one in got), told)
    fleet.origin.failing = False
    got = await asyncio.gather(*(cache.get("k") for cache in fleet.caches), return_exceptions=True)
    told = f"The origin was back, and a reader got {plain(repr(got[0]))}."
    prove("an error is not kept", all(isinstance(one, dict) for one in got), told)


async def _outage(fleet: _Fleet, prove: Prove) -> None:
    got = await asyncio.gather(*(fleet.caches[0].get(f"k{n}") for n in range(40)), return_exceptions=True)
    broken = [one for one in got if isinstance(one, BaseException)]
    told = f"Nobody listens at the address of Redis: gets raised {type(broken[0]).__name__}." if broken else ""
    prove(OUTAGE, not broken, told)
    peak = fleet.origin.peak
    prove(
        LIMIT,
        peak <= FALLBACK,
        f"With fallback={FALLBACK}, more loads ran at once: the outage of Redis becomes one of the origin.",
    )
    prove("Redis down: loads do not queue up one by one", peak > 1, "With fallback=5, it never ran two loads at once.")
    await fleet.caches[0].invalidate("k1")
    prove("Redis down: invalidate raises nothing", True, "")  # it would have raised in the line above
