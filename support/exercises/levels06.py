"""The checker of exercise 6.4: a cache in each of four processes, and a real Redis between them.

The four are four caches with a client each, in one process: they share nothing but Redis. Nothing
is judged by how long it takes: entries and locks are made to expire, and a wait is only ever too
long. So every scene counts, at once and on a slow machine: none is repeated until it succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from typing import Any

from .faults import Injected
from .harness import Failed, Prove, Run, call, plain

PROCESSES = 4
TTL, LOCAL, FALLBACK = 30.0, 0.05, 5  # seconds, seconds, loads at once
LEASE = 5.0  # seconds, so that it never ends by itself while a load of 0.05 s runs
BRIEF = 0.2  # seconds that values live in Redis where copies must not outlive them
ROUNDS = 4  # of what happens to a lock: an answer may be wrong in some of them only
ONE = "one load for all four processes"
OTHERS_LOCK = "never removes another's lock"
OUTAGE = "Redis down: every get is served"
LIMIT = "Redis down: no more loads at once than fallback"
STALE = "no stale value longer than local_ttl after invalidate"
ENDS = "no copy outlives the value in Redis"
PREFIX = "every key in Redis begins with prefix"
EXPIRES = "every key in Redis expires"
IS_A_LEASE = "a lock is a lease"
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
        self.meeting: asyncio.Event | None = None  # loads wait for each other here

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
            if self.meeting:
                await self._meet()
            if self.failing:
                raise Injected("the origin is down")
            return {"key": key, "number": self.loads[key]} if self.value is None else self.value[0]
        finally:
            self.in_flight -= 1

    async def _meet(self) -> None:
        """Hold the loads until there is one too many, or no other one comes: a slow machine must not hide how
        many would run at once."""
        if self.in_flight > FALLBACK:
            self.meeting.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self.meeting.wait()
        self.meeting.set()


class _Fleet:
    """Four caches of one answer, each with a client of its own."""

    def __init__(self, answer: Any, clients: list[Any], prefix: str, ttl: float, local: float) -> None:
        self.prefix, self.origin, self.seen_tasks = prefix, _Origin(), asyncio.all_tasks()
        self.clients = clients
        self.caches = [answer(client, self.origin.load, prefix, ttl, local, LEASE, FALLBACK) for client in self.clients]

    async def settle(self) -> list[str]:
        """End what still runs after a moment; return the names of its coroutines."""
        for _ in range(50):
            left = [task for task in asyncio.all_tasks() - self.seen_tasks if not task.done()]
            if not left:
                break
            await asyncio.sleep(0.02)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return sorted(task.get_coro().__name__ for task in left)

    async def keys(self) -> list[str]:
        return [key.decode() async for key in self.clients[0].scan_iter(f"{self.prefix}*")]


def check_levels(answer: Any, prove: Prove) -> None:
    url, prefix = _redis(), f"exercise:{secrets.token_hex(4)}:"
    scenes = (
        _shared,
        _values,
        _copies,
        _invalidated,
        _second_round,
        _lock_of_another,
        _dead_owner,
        _errors,
        _ends,
        _outage,
    )
    for number, scene in enumerate(scenes):
        run = _run(scene, answer, prove, url, f"{prefix}{number}:")
        if isinstance(run.error, Failed):
            raise run.error
        left = run.result()
        prove(LEFT, not left, f"{', '.join(left)} was still running a second after the last get.")


def _run(scene: Any, answer: Any, prove: Prove, url: str, prefix: str) -> Run:
    """Run a scene on a loop of its own. An interrupt may come at any point of it, and again while it cleans up:
    the connections are therefore closed afterwards, in a thread that no interrupt reaches."""
    import redis.asyncio

    where = url if scene is not _outage else "redis://127.0.0.1:1/0"  # nobody listens there
    clients = [redis.asyncio.from_url(where, socket_connect_timeout=2) for _ in range(PROCESSES)]
    loop, stage = asyncio.new_event_loop(), []  # stage: what tasks wait for lives until they are cancelled
    try:
        return call(lambda: loop.run_until_complete(_scene(scene, answer, prove, clients, prefix, stage)))
    finally:
        closing = threading.Thread(target=_end, args=(loop, clients, prefix if where == url else ""))
        closing.start()
        closing.join()


def _end(loop: asyncio.AbstractEventLoop, clients: list[Any], prefix: str) -> None:
    """End what runs on the loop, close the connections, remove the keys."""

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        for client in clients:
            await client.aclose(close_connection_pool=True)
        if prefix:
            async with clients[0] as fresh:
                if keys := [key async for key in fresh.scan_iter(f"{prefix}*")]:
                    await fresh.delete(*keys)
        for _ in range(3):  # a transport that was told to close does so one step later
            await asyncio.sleep(0)

    if loop.is_running():  # its thread could not be stopped, and nothing here can be either
        return
    loop.set_exception_handler(lambda *_: None)  # what was cut off in the middle has nothing more to tell
    ending = loop.create_task(end())
    while not ending.done():
        # Redis may be gone, and a task may pass on the interrupt that it got.
        with contextlib.suppress(Exception, KeyboardInterrupt):
            loop.run_until_complete(ending)
    loop.close()


def _redis() -> str:
    from .. import start_redis
    from ..service_base import services

    redis = services.get("redis")
    return (redis if redis and redis.alive else start_redis()).url


async def _scene(scene: Any, answer: Any, prove: Prove, clients: list[Any], prefix: str, stage: list[Any]) -> list[str]:
    ttl, local = BRIEF if scene is _ends else TTL, TTL if scene in (_copies, _ends) else LOCAL
    fleet = _Fleet(answer, clients, prefix, ttl, local)
    stage.append(fleet)
    try:
        async with asyncio.timeout(9):
            await scene(fleet, prove)
    except TimeoutError:
        raise Failed("comes to an end", "A get did not end within 9 s.") from None
    return await fleet.settle()


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


async def _copies(fleet: _Fleet, prove: Prove) -> None:
    """Here local_ttl is long, so that no copy ends on a slow machine, either."""
    got = await _all(fleet, "k")
    await fleet.clients[0].delete(*await fleet.keys())
    again = await _all(fleet, "k")
    told = "Each process had just read a value, it was deleted in Redis, and within local_ttl they loaded it again."
    prove("keeps a copy in each process", again == got and fleet.origin.loads["k"] == 1, told)


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


async def _hangs(fleet: _Fleet, key: str, who: int) -> tuple[asyncio.Task[Any], int]:
    """A get whose load waits at its gate, and the number of that load."""
    origin = fleet.origin
    one = sum(origin.loads.values()) + 1
    for number in (one, one + 1):
        origin.gates[number], origin.begun[number] = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(fleet.caches[who].get(key))
    await origin.begun[one].wait()
    return task, one


async def _end_the_lease(fleet: _Fleet, prove: Prove, before: set[str]) -> None:
    """End the lock that is there now, as its time to live would, and see that it has one."""
    client = fleet.clients[0]
    locks = {lock: await client.pttl(lock) for lock in set(await fleet.keys()) - before}
    told = "A process loads, and there is no lock with its own time to live in Redis"
    prove(IS_A_LEASE, bool(locks), f"{told}: the others cannot know when to go on without it.")
    told = f"The lock of a process that hangs ends in {max(locks.values()) / 1000:.0f} s, with lease={LEASE:g}."
    prove(IS_A_LEASE, all(500 * LEASE < left <= 1000 * LEASE for left in locks.values()), told)
    for lock in locks:
        await client.pexpire(lock, 1)


async def _lock_of_another(fleet: _Fleet, prove: Prove) -> None:
    """The first load outlives its lease; another process loads meanwhile, and its lock must stay."""
    for number in range(ROUNDS):
        await _outlived(fleet, prove, f"k{number}", number)


async def _outlived(fleet: _Fleet, prove: Prove, key: str, who: int) -> None:
    origin, client, before = fleet.origin, fleet.clients[0], set(await fleet.keys())
    first, one = await _hangs(fleet, key, who)
    await _end_the_lease(fleet, prove, before)
    second = asyncio.create_task(fleet.caches[(who + 1) % PROCESSES].get(key))
    await origin.begun[one + 1].wait()
    locks = {lock: await client.get(lock) for lock in await fleet.keys() if lock not in before}
    prove(OTHERS_LOCK, bool(locks), "While the second process loaded, no lock of it was in Redis.")
    for lock in locks:
        await client.pexpire(lock, 60_000)  # it must not end by itself while we look
    origin.gates[one].set()
    await asyncio.wait([first])
    await asyncio.sleep(0.02)
    gone = [lock for lock, token in locks.items() if await client.get(lock) != token]
    origin.gates[one + 1].set()
    await asyncio.wait([first, second])
    first.result(), second.result()
    told = "A load outlived its lease, and when it was done it deleted the lock that another process held by then."
    prove(OTHERS_LOCK, not gone, told)


async def _dead_owner(fleet: _Fleet, prove: Prove) -> None:
    """A process dies with the lock in its hand: its load hangs, and it never releases."""
    origin = fleet.origin
    for number in range(ROUNDS):
        key, before = f"dead{number}", set(await fleet.keys())
        dead, one = await _hangs(fleet, key, number)
        origin.gates[one + 1].set()  # only the first one hangs
        others = [cache for cache in fleet.caches if cache is not fleet.caches[number]]
        waiting = asyncio.gather(*(cache.get(key) for cache in others))
        await asyncio.sleep(0.05)  # they find the lock
        await _end_the_lease(fleet, prove, before)
        await waiting
        loads = origin.loads[key] - 1
        origin.gates[one].set()
        await dead
        told = f"The owner of the lock hung; after its lease the three others made {loads} loads."
        prove("when the owner of a lock dies, one of the others loads", loads == 1, told)


async def _errors(fleet: _Fleet, prove: Prove) -> None:
    fleet.origin.failing = True
    got = await asyncio.gather(*(cache.get("k") for cache in fleet.caches), return_exceptions=True)
    told = f"The origin failed, and a reader got {plain(repr(got[0]))}."
    prove("an error of the load comes out", all(isinstance(one, Injected) for one in got), told)
    fleet.origin.failing = False
    got = await asyncio.gather(*(cache.get("k") for cache in fleet.caches), return_exceptions=True)
    told = f"The origin was back, and a reader got {plain(repr(got[0]))}."
    prove("an error is not kept", all(isinstance(one, dict) for one in got), told)


async def _ends(fleet: _Fleet, prove: Prove) -> None:
    """Here values live for a moment only, and local_ttl is long. A slow machine makes the wait longer, not shorter."""
    before = await _all(fleet, "k")
    for _ in range(60):
        await asyncio.sleep(BRIEF / 4)
        got = await _all(fleet, "k")
        if renewed := all(new["number"] > old["number"] for new, old in zip(got, before, strict=True)):
            break
    told = "With a ttl shorter than local_ttl, a process served its copy long after the value had ended in Redis."
    prove(ENDS, renewed, told)


async def _outage(fleet: _Fleet, prove: Prove) -> None:
    fleet.origin.meeting = asyncio.Event()
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
