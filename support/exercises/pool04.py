"""The checker of 4.2: a dependency in front of a blocking pool, with 200 requests at once."""

from __future__ import annotations

import threading
from typing import Any

from . import harness
from .harness import Prove, call
from .threads04 import THREADS, Blocking, busy_threads, judge
from .web04 import Client, Exchange, made, prove_all_gone, prove_answered, release, settled, turns

POOL, CROWD = 10, 200
ROWS = "answers what the query returns"
NOT_FOUND = "a LookupError is a 404"
NEVER_BLOCKS = "never blocks the event loop"
NO_DEADLOCK = "no deadlock"
NOBODY_WAITS = "no thread waits in pool.get()"
ALL_TEN = "uses all 10 connections"
OTHERS_PASS = "what needs no connection waits for none"
ALL_ANSWERED = "200 requests, 200 answers"
ALL_BACK = "gives every connection back"
BACK_ONCE = "gives a connection back once, after its last query"
ALONE = "no two requests share a connection"
USABLE = "goes on after errors and clients that leave"


class _Connection:
    def __init__(self, pool: _Pool) -> None:
        self._pool, self.out, self.busy = pool, False, False

    def query(self, table: str, number: int) -> str:
        """Blocks its thread, as a driver does. Raises LookupError for a row that there is not."""
        if not self.out:
            self._pool.misuse = "query() was called on a connection that was back in the pool."
        if self.busy:
            self._pool.shared = True
        self.busy = True
        try:
            self._pool.held()
        finally:
            self.busy = False
        if number == 404:
            raise LookupError(f"{table} has no row 404")
        if number == 500:
            raise ValueError("broken row")
        return f"{table} {number}"


class _Pool(Blocking):
    """A blocking pool, like those of most drivers. ``ping`` can hold a get() that got one."""

    def __init__(self) -> None:
        super().__init__()
        self.size = POOL
        self.ping = threading.Event()
        self.ping.set()
        self.misuse = ""
        self.shared = self.broken = False
        self.waiting = self.most_waiting = self.taken = self.pinging = 0
        self._free = [_Connection(self) for _ in range(POOL)]

    @property
    def out(self) -> int:
        return POOL - len(self._free)

    def get(self) -> _Connection:
        """A free connection; blocks the thread until there is one."""
        with self.lock:
            thread = threading.current_thread()
            if thread is not self.loop_thread:
                self.threads.add(thread)
            elif not self._free:
                self.blocked_loop = True
                raise TimeoutError("pool.get() waited in the thread of the event loop")
            if not self._free:
                self.waiting += 1
                self.most_waiting = max(self.most_waiting, self.waiting)
                self.lock.wait_for(lambda: self._free or self.broken, harness.REAL_LIMIT)
                self.waiting -= 1
            if not self._free:
                raise TimeoutError("no connection became free")
            connection = self._free.pop(0)
            connection.out = True
            self.taken += 1
            self.pinging += 1
        if threading.current_thread() is not self.loop_thread:
            self.ping.wait(harness.REAL_LIMIT)
        with self.lock:
            self.pinging -= 1
        return connection

    def put(self, connection: _Connection) -> None:
        """Give it back. Does not block."""
        with self.lock:
            self.threads.add(threading.current_thread())
            if not connection.out:
                self.misuse = "pool.put() got a connection that was back already."
                return
            if connection.busy:
                self.misuse = "pool.put() got a connection whose query was still running."
            connection.out = False
            self._free.append(connection)
            self.lock.notify_all()

    def at_rest(self) -> bool:
        """Every busy thread sits in a query or in get(), and nobody with a connection will get any further."""
        known = self.threads | self.before
        sitting, busy = len(self.inside) + self.waiting, busy_threads()
        if not sitting or self.pinging or busy > sitting or not set(threading.enumerate()) <= known:
            return False
        return self.out <= len(self.inside) or busy >= THREADS

    def let_go(self) -> None:
        super().let_go()
        self.ping.set()
        self.give_up()

    def give_up(self) -> None:
        """End a deadlock: whoever waits, and whoever would, gets a TimeoutError."""
        with self.lock:
            self.broken = True
            self.lock.notify_all()


def check_dependency(answer: Any, prove: Prove) -> None:
    """Checks pool_app(pool) of exercise 4.2."""
    pool, seen = _Pool(), {}
    app = made(prove, call(answer, pool), "pool_app(pool)")
    run, left = judge(app, pool, lambda client: _crowd(client, pool, seen))
    del app
    release(pool.threads)
    run.result()
    told = "A query, or a pool.get() that had to wait, ran in the thread of the event loop: leave them to threads."
    prove(NEVER_BLOCKS, not pool.blocked_loop, told)
    prove_answered(prove, ROWS, seen["row"], "row 1")
    prove_answered(prove, ROWS, seen["name"], "name 2")
    told = f"query() raised LookupError, and {seen['missing'].told()}: raise HTTPException(404) there."
    prove(NOT_FOUND, seen["missing"].status == 404, told)
    for after, out in seen["lost early"].items():
        prove(ALL_BACK, not out, f"After {after}, {out} of {POOL} connections had not come back.")
    querying, waiting = seen["querying"], seen["waiting"]
    told = (
        f"{waiting} threads sat in pool.get(), {seen['out']} requests held a connection, and not one of them found a "
    )
    told += "thread to run its query in."
    prove(NO_DEADLOCK, not (waiting and not querying), told)
    told = "Threads sat in pool.get() and did nothing else: no more than pool.size requests may reach it, counted over "
    told += "all routes together. More threads only mean more that sit."
    prove(NOBODY_WAITS, not seen["most waiting"], told)
    told = "Two requests used the same connection at the same time."
    prove(ALONE, not pool.shared, told)
    told = f"{CROWD} requests waited, and {querying} of {POOL} connections were in use."
    prove(ALL_TEN, querying == POOL, told)
    told = f"All {POOL} connections were in use, and /health, which needs none, had no answer: "
    told += "a middleware that takes one for every request, or threads that wait?"
    prove(OTHERS_PASS, seen["healthy"], told)
    wrong = [each for n, each in enumerate(seen["crowd"]) if (each.status, each.value) != (200, _found(n))]
    told = f"Of {CROWD} requests at once, {len(wrong)} went wrong: {wrong[0].told() if wrong else ''}."
    prove(ALL_ANSWERED, not wrong, told)
    prove(BACK_ONCE, not pool.misuse, pool.misuse)
    for after, out in {**seen["lost"], "the application had stopped": pool.out}.items():
        prove(ALL_BACK, not out, f"After {after}, {out} of {POOL} connections had not come back.")
    told = f"After errors and clients that left, only {seen['querying again']} of {POOL} connections were in use again."
    prove(USABLE, seen["querying again"] == POOL, told)
    wrong = [each for n, each in enumerate(seen["crowd again"]) if (each.status, each.value) != (200, _found(n))]
    told = f"After errors and clients that left, {len(wrong)} of {len(seen['crowd again'])} requests went wrong."
    prove(USABLE, not wrong, told)
    prove_all_gone(prove, run, left)


def _found(number: int) -> str:
    return f"name {number}" if number % 2 else f"row {number}"


def _ask(client: Client, count: int) -> list[Exchange]:
    return [client.start(f"/names/{n}" if n % 2 else f"/rows/{n}") for n in range(count)]


async def _crowd(client: Client, pool: _Pool, seen: dict[str, Any]) -> None:
    seen["row"] = await client.ask("/rows/1")
    kept = pool.out  # an async pool in front of this one takes all of them at the start
    seen["name"] = await client.ask("/names/2")
    seen["missing"] = await client.ask("/rows/404")
    lost = seen["lost early"] = {"a 200 and a 404": pool.out - kept}
    await client.ask("/names/500")
    lost["a ValueError in a query"] = pool.out - kept
    if any(lost.values()) or pool.blocked_loop or (seen["row"].value, seen["name"].value) != ("row 1", "name 2"):
        return
    seen["crowd"] = await _full_house(client, pool, seen)
    lost = seen["lost"] = {f"{CROWD} requests at once": pool.out - kept}
    seen["most waiting"] = pool.most_waiting
    if any(lost.values()) or pool.most_waiting or pool.shared or seen["querying"] < POOL:
        return  # what follows would wait for what is lost
    await _restless(client, pool, lost, kept)
    again: dict[str, Any] = {}
    seen["crowd again"] = await _full_house(client, pool, again, 3 * POOL)
    seen["querying again"] = again["querying"]


async def _full_house(client: Client, pool: _Pool, seen: dict[str, Any], count: int = CROWD) -> list[Exchange]:
    """All connections in a query, everybody else waiting; then look at who waits where."""
    pool.before = set(threading.enumerate()) - pool.threads
    pool.gate.clear()
    crowd = _ask(client, count)
    await settled(
        lambda: (pool.taken, len(pool.inside), pool.waiting),
        lambda: pool.blocked_loop or pool.at_rest(),
    )
    seen.update(querying=len(pool.inside), waiting=pool.waiting, out=pool.out)
    ends, seen["healthy"] = crowd, False
    if pool.inside:
        health = client.start("/health")
        ends = [*crowd, health]
        await settled(lambda: health.answered, lambda: health.answered or pool.at_rest())
        seen["healthy"] = (health.answered, health.status) == (True, 200)
    elif pool.waiting:
        pool.give_up()
    pool.gate.set()
    if not await client.finish(ends):
        pool.give_up()
    return crowd


async def _restless(client: Client, pool: _Pool, lost: dict[str, int], kept: int) -> None:
    """Clients that leave, and requests that are cancelled: while they wait, query, and get a connection."""
    for moment, event in (("got a connection", pool.ping), ("ran a query", pool.gate)):
        for what, end in (("clients that left", Exchange.leave), ("requests that were cancelled", Exchange.cancel)):
            event.clear()
            crowd = _ask(client, 3 * POOL)
            await settled(
                lambda: (pool.pinging, len(pool.inside)),
                lambda crowd=crowd: POOL in (pool.pinging, len(pool.inside)) or all(each.answered for each in crowd),
            )
            for exchange in crowd:
                end(exchange)
            await turns()
            event.set()
            await client.finish(crowd)
            lost[f"{what} while they waited or {moment}"] = pool.out - kept
            if pool.out > kept:
                return
