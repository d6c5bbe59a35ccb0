"""Chapter 05, Postgres pools: one query for many rows, a budget for acquire, no nested acquire, a pool's size."""

from __future__ import annotations

import asyncio
import functools
import heapq
import math
import random
import re
import statistics
from typing import Any

from .. import theory
from .engine import Exercise, three_hints
from .faults import CANCELS, Canceller, Injected
from .harness import ENDS, NO_ERROR, Failed, Prove, Run, call, observe, plain, prove_clean, tell
from .pool05 import QUERY, Connection, Pool, PoolBusy, all_back, occupy, settle

__all__ = ["EXERCISES", "PoolBusy"]

BACK = "gives every connection back"


def _outcome(run: Run) -> str:
    return f"it raised {tell(run.error)}" if run.error else f"it returned {plain(repr(run.value))}"


# --- 5.1 one query for many rows -----------------------------------------------------------------

ROWS, FORBIDDEN = 200, 113  # the view cannot compute the name of one row: reading them all fails
TABLE = f"""
CREATE TABLE people (id bigint PRIMARY KEY, name text NOT NULL);
INSERT INTO people SELECT n, 'user ' || n FROM generate_series(1, {ROWS}) AS n;
CREATE VIEW users AS
    SELECT id, CASE WHEN id = {FORBIDDEN} THEN (1 / (id - {FORBIDDEN}))::text ELSE name END AS name FROM people;
"""
# A join, too, must look rows up: read as a whole, the table would fail a right answer.
PLANS = {"enable_hashjoin": "off", "enable_mergejoin": "off", "enable_seqscan": "off", "jit": "off"}
# What the driver sends on its own account: a reset on release, and questions about a type that is new to it.
ASIDE = re.compile(
    r"^\s*(BEGIN|COMMIT|ROLLBACK|SELECT pg_advisory)|typeinfo_tree|\b(current_setting|set_config)\('jit'"
)
ONE = "one query, however many ids"
ORDER = "names in the order of the ids"
SAME_TEXT = "one text of the query for all ids"
ONLY_THOSE = "reads only the rows asked for"


class _Database:
    """Runs an answer against a real Postgres, and keeps the text of each statement that the driver sent."""

    def __init__(self) -> None:
        from .. import start_postgres
        from ..service_base import services

        postgres = services.get("postgres")
        self.url = (postgres if postgres and postgres.alive else start_postgres()).fresh_database("exercise")
        call(lambda: asyncio.run(self._make_table())).result()

    async def _make_table(self) -> None:
        import asyncpg

        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(TABLE)
        finally:
            await connection.close()

    def fetch(self, answer: Any, ids: list[int]) -> tuple[Run, list[str], int]:
        """The run, the statements, and how many connections stayed out."""
        import asyncpg

        sent: list[str] = []
        out = [0]

        async def scene() -> Any:
            async def listen(connection: asyncpg.Connection) -> None:
                connection.add_query_logger(lambda record: sent.append(record.query))

            async with asyncpg.create_pool(
                self.url, min_size=0, max_size=5, init=listen, command_timeout=5, server_settings=PLANS
            ) as pool:
                try:
                    return await answer(pool, ids)
                finally:
                    await asyncio.sleep(0)
                    out[0] = pool.get_size() - pool.get_idle_size()
                    if out[0]:
                        pool.terminate()

        run = call(lambda: asyncio.run(scene()))
        return run, [text for text in sent if not ASIDE.search(text)], out[0]


def _check_fetch_many(answer: Any, prove: Prove) -> None:
    database, texts = _Database(), set()
    cases = ([7], [3, 1, 2], [2, 2, 5, 2], [9, 1000, 4, -1], list(range(100, 0, -1)), [])
    for ids in cases:
        run, sent, out = database.fetch(answer, list(ids))
        if type(run.error).__name__ == "DivisionByZeroError":
            told = "It read the whole table to return a few rows: let the database choose them, with WHERE."
            prove(ONLY_THOSE, False, told)
        got, wanted = run.result(), [f"user {one}" if 0 < one <= ROWS else None for one in ids]
        prove(BACK, out == 0, f"After {len(ids)} ids, {out} of its connections were still out.")
        shown = ids if len(ids) < 9 else f"{len(ids)} ids"
        told = f"For {shown} the driver sent {len(sent)} statements: send all ids in one."
        prove(ONE, len(sent) <= 1, told)
        texts.update(sent)
        told = f"For {shown} it returned {plain(repr(got))}"
        if not ids:
            prove("an empty list of ids is no error", got == [], f"For no ids at all it returned {plain(repr(got))}.")
        elif wanted != sorted(wanted, key=str) and isinstance(got, list):
            prove(ORDER, sorted(got, key=str) != sorted(wanted, key=str) or got == wanted, f"{told}: mind the order.")
        missing = None in wanted
        prove("None for an id without a row" if missing else "a name for each id", got == wanted, f"{told}.")
    told = f"The text of the query was different for different ids, such as {plain(repr(min(texts, key=len)))}: send them as one argument."
    prove(SAME_TEXT, len(texts) == 1, told)
    ids = list(range(40_000))
    run, _, out = database.fetch(answer, ids[:100] + ids[300:])
    prove("40,000 ids at once", run.error is None and len(run.value) == 39_800, f"With 40,000 ids {_outcome(run)}.")
    prove(BACK, out == 0, f"After 40,000 ids, {out} of its connections were still out.")


# --- 5.2 acquire with a budget -------------------------------------------------------------------

BUDGET = 0.25
IN_TIME = "gives up after its budget, and not before"
UNCUT = "cuts no query short"
WAITS = "reports each wait once, and only the wait"
CALLED = "runs the work once, and only with a connection"


class _Budgeted:
    """One call of the answer, with what its work and its `observe` saw."""

    def __init__(self, answer: Any, pool: Pool, seconds: float = QUERY, value: Any = "value",
                 error: BaseException | None = None) -> None:  # fmt: skip
        self.pool, self.seconds, self.value, self.error = pool, seconds, value, error
        self.waits: list[float] = []
        self.worked: list[Connection] = []
        self.coroutine = functools.partial(answer, pool, self.work, BUDGET, self.waits.append)

    async def work(self, connection: Connection) -> Any:
        if not isinstance(connection, Connection):
            raise Failed(CALLED, f"work needs a connection, and it was called with {plain(repr(connection))}.")
        self.worked.append(connection)
        await connection.query("work", None, self.seconds)
        if self.error:
            raise self.error
        return self.value


def _check_budget(answer: Any, prove: Prove) -> None:
    for scene in (_free_pool, _errors, _saturated, _freed_in_time, _long_work, _crowd):
        run = observe(functools.partial(scene, answer, prove))
        run.result()
        prove_clean(prove, run)
    for busy in (0, 1, 2):
        for moment in ("suspended", "woken"):
            for number in range(1, 100):
                canceller = Canceller(number, moment)
                run = observe(functools.partial(_cancelled, answer, prove, busy, canceller))
                run.result()
                prove_clean(prove, run)
                if not canceller.fired:
                    break


async def _free_pool(answer: Any, prove: Prove) -> None:
    for value in ("value", None, 0, [], TimeoutError("a value, not raised")):
        use = _Budgeted(answer, Pool(2), value=value)
        got = await use.coroutine()
        prove(
            "returns what the work returns",
            got is value,
            f"work returned {value!r}, and it returned {plain(repr(got))}.",
        )
        prove(CALLED, len(use.worked) == 1, f"With a free connection, work was called {len(use.worked)} times.")
        told = f"With a free connection and work of {QUERY:g} s, it reported {plain(use.waits)}: one wait, of 0 s."
        prove(WAITS, len(use.waits) == 1 and abs(use.waits[0]) < 1e-9, told)
        await settle()
        prove(BACK, all_back(use.pool), f"After work that returned {value!r}, a connection was still out.")


async def _errors(answer: Any, prove: Prove) -> None:
    for error in (Injected("the query failed"), TimeoutError("the query was slow"), PoolBusy("of another pool")):
        use = _Budgeted(answer, Pool(1), error=error)
        caught: BaseException | None = None
        try:
            await use.coroutine()
        except Exception as raised:
            caught = raised
        if isinstance(caught, (NotImplementedError, Failed)):
            raise caught
        told = f"work raised {tell(error)}, and it raised {tell(caught) if caught else 'nothing'}."
        prove("an error of the work comes out unchanged", caught is error, told)
        await settle()
        prove(BACK, all_back(use.pool), f"After work that raised {type(error).__name__}, a connection was still out.")


async def _saturated(answer: Any, prove: Prove) -> None:
    use, loop = _Budgeted(answer, pool := Pool(2)), asyncio.get_running_loop()
    others = await occupy(pool, 3.0, 2)
    start = loop.time()
    try:
        async with asyncio.timeout(2.0):
            await use.coroutine()
        ended = "returned"
    except PoolBusy:
        ended = "busy"
    except TimeoutError:
        ended = "TimeoutError"
    took = loop.time() - start
    told = "With all connections in use it went on waiting." if took > 1.9 else (
        f"With all connections in use, and a budget of {BUDGET:g} s, it gave up after {took:g} s.")  # fmt: skip
    prove(IN_TIME, abs(took - BUDGET) < 1e-6, told)
    told = f"With all connections in use it ended with {ended}: raise PoolBusy, which becomes a 503."
    prove("raises PoolBusy when its budget is gone", ended == "busy", told)
    prove(CALLED, not use.worked, "It ran the work without a connection of its own.")
    prove(WAITS, len(use.waits) == 1 and abs(use.waits[0] - BUDGET) < 1e-6,
          f"It gave up after {BUDGET:g} s, and reported {plain(use.waits)}: a wait in vain is a wait.")  # fmt: skip
    await asyncio.gather(*others)
    await settle()
    prove(BACK, all_back(pool), "After it had given up and all others were done, a connection was still out.")


async def _freed_in_time(answer: Any, prove: Prove) -> None:
    use, loop = _Budgeted(answer, pool := Pool(1)), asyncio.get_running_loop()
    others, start = await occupy(pool, 0.1, 1), loop.time()
    got = await use.coroutine()
    took, least = loop.time() - start, 0.1 + QUERY
    told = f"A connection was free after 0.1 s, the work took {QUERY:g} s, and it ended after {took:g} s."
    prove("takes a connection as soon as there is one", got == "value" and least <= took < least + 0.01, told)
    told = f"It waited 0.1 s, and reported {plain(use.waits)}: neither the work nor the release belong to the wait."
    prove(WAITS, len(use.waits) == 1 and 0.1 <= use.waits[0] + 1e-9 < 0.105, told)
    await asyncio.gather(*others)


async def _long_work(answer: Any, prove: Prove) -> None:
    use = _Budgeted(answer, pool := Pool(1), seconds=4 * BUDGET)
    others = await occupy(pool, 0.1, 1)
    try:
        got = await use.coroutine()
    except (TimeoutError, PoolBusy) as error:
        got = error
    told = f"A query of {4 * BUDGET:g} s had begun in time, and it ended with {plain(repr(got))}: the budget is for the wait alone."
    prove(UNCUT, got == "value", told)
    await asyncio.gather(*others)


async def _crowd(answer: Any, prove: Prove) -> None:
    """40 callers, 2 connections, work of 0.1 s: five waves fit into the budget at most."""
    pool, loop = Pool(2), asyncio.get_running_loop()
    uses, start = [_Budgeted(answer, pool, seconds=0.1) for _ in range(40)], loop.time()
    got = await asyncio.gather(*(use.coroutine() for use in uses), return_exceptions=True)
    served = sum(each == "value" for each in got)
    refused = sum(isinstance(each, PoolBusy) for each in got)
    told = f"40 callers of 2 connections: {served} were served and {refused} refused, with work of 0.1 s and a budget of {BUDGET:g} s."
    prove(IN_TIME, served == 6 and refused == 34 and loop.time() - start < 0.1 + BUDGET + 0.02, told)
    prove(WAITS, all(len(use.waits) == 1 for use in uses), "Of 40 callers, not every one reported one wait.")
    await settle()
    prove(BACK, all_back(pool), f"After 40 callers, {pool.held} of 2 connections were still out.")


async def _cancelled(answer: Any, prove: Prove, busy: int, canceller: Canceller) -> None:
    pool = Pool(2)
    others = await occupy(pool, 0.1 if busy < 2 else 0.1 + 2 * busy * BUDGET, min(2, 2 * busy)) if busy else []
    use, cancelled = _Budgeted(answer, pool), False
    where = f"Cancelled at {canceller}, with {'all' if busy else 'no'} connections in use,"
    try:
        await canceller.drive(use.coroutine())
    except asyncio.CancelledError:
        cancelled = True
    except PoolBusy:
        prove(CANCELS, not canceller.fired, f"{where} it raised PoolBusy: let CancelledError through.")
    prove(CANCELS, cancelled or not canceller.fired, f"{where} no CancelledError came out.")
    await asyncio.gather(*others)
    await settle()
    prove(BACK, all_back(pool), f"{where} a connection never came back.")


# --- 5.3 no nested acquire -----------------------------------------------------------------------

FINISH = "50 tasks finish on a pool of 5"
DEPTH = "one connection per task at a time"
SNAPSHOT = "all reads in one transaction"
ONE_STATE = "all reads see one state of the data"
OUTSIDE = "holds no connection while it waits for others"
READS = ("order", "items", "prices")
FIRST, LOOKUP = 2, 1.0  # the first order has items; the seconds of an audit


class _Shop:
    """The tables of a shop, and the audit service, which is slow. They know who called."""

    def __init__(self, pool: Pool, fail: str = "") -> None:
        self.pool, self.fail = pool, fail
        self.read: list[tuple[str, Any]] = []
        self.audited: list[Any] = []
        self.held_at_audit = 0

    async def _query(self, connection: Any, name: str, key: Any, value: Any) -> Any:
        if not isinstance(connection, Connection):
            raise Failed(NO_ERROR, f"shop.{name} needs a connection, and got {plain(repr(connection))}.")
        got = await connection.query(name, value)
        self.read.append((name, key))
        if name == self.fail:
            raise Injected(f"the query {name} failed")
        return got

    async def order(self, connection: Any, number: int) -> dict[str, Any]:
        return await self._query(connection, "order", number, {"number": number, "customer": f"customer {number}"})

    async def items(self, connection: Any, number: int) -> list[str]:
        return await self._query(connection, "items", number, [f"item {number}.{n}" for n in range(number % 3)])

    async def prices(self, connection: Any, items: list[str]) -> dict[str, int]:
        return await self._query(connection, "prices", tuple(items), {item: len(item) for item in items})

    async def audit(self, number: int) -> None:
        self.audited.append(number)
        self.held_at_audit = max(self.held_at_audit, self.pool.held)
        await asyncio.sleep(LOOKUP)
        if self.fail == "audit":
            raise Injected("the audit service failed")


def _expected(number: int) -> dict[str, Any]:
    items = [f"item {number}.{n}" for n in range(number % 3)]
    return {"number": number, "customer": f"customer {number}", "total": sum(map(len, items))}


def _check_no_nesting(answer: Any, prove: Prove) -> None:
    for tasks, size in ((1, 5), (1, 1), (50, 5)):
        pool = Pool(size)
        shop = _Shop(pool)
        try:
            run = observe(functools.partial(_orders, answer, pool, shop, tasks))
        except Failed as failed:
            if failed.lacking != ENDS or pool.held < size:  # it spins, and waits for nobody
                raise
            where = f"{tasks} task{'s' * (tasks > 1)} on a pool of {size}"
            raise Failed(FINISH if tasks > 1 else DEPTH,
                         f"{where}: each holds a connection and waits for another, for ever.") from None  # fmt: skip
        got = run.result()
        for number, one in enumerate(got, FIRST):
            told = f"Order {number}: it returned {plain(repr(one))}, not {_expected(number)}."
            prove("the order, its customer and its total", one == _expected(number), told)
        if tasks == 1 and size == 5:
            told = f"One task alone had {pool.peak} connections at once: pass the one it has down."
            prove(DEPTH, pool.peak == 1, told)
            outside = [
                name for connection in pool.history for name, safe in connection.done if name in READS and not safe
            ]
            sessions = sum(any(name in READS for name, _ in connection.done) for connection in pool.history)
            told = (f"It read {outside[0]} outside a transaction." if outside else
                    f"Its reads took {sessions} connection{'s' * (sessions > 1)} and {_transactions(pool)} transactions: the order can change in between.")  # fmt: skip
            prove(SNAPSHOT, not outside and sessions == 1 and _transactions(pool) == 1, told)
            levels = {level for connection in pool.history for level in connection.levels}
            told = "At READ COMMITTED, the default, each query sees what was committed when it began."
            prove(ONE_STATE, levels <= {"repeatable_read", "serializable"}, told)
            read = sorted(name for name, _ in shop.read)
            prove("three queries for one order", read == sorted(READS), f"It sent the queries {', '.join(read)}.")
            told = f"While it waited {LOOKUP:g} s for the audit, it held a connection: give it back first."
            prove(OUTSIDE, shop.held_at_audit == 0, told)
        prove(
            "audits each order once",
            sorted(shop.audited) == list(range(FIRST, FIRST + tasks)),
            f"It audited {plain(shop.audited)}.",
        )
        prove(BACK, all_back(pool), f"After {tasks} orders, {pool.held} connections were still out.")
        if tasks == 50:
            least = 50 / 5 * 3 * QUERY + LOOKUP
            told = f"50 tasks took {run.elapsed:g} s, and {least:g} s are enough with 5 connections: do not queue them otherwise."
            prove(FINISH, run.elapsed < 1.5 * least, told)
        prove_clean(prove, run)
    for fail in (*READS, "audit"):
        _check_shop_failure(answer, prove, fail)
    for number in range(1, 100):
        canceller = Canceller(number)
        run = observe(functools.partial(_cancelled_shop, answer, prove, canceller))
        run.result()
        prove_clean(prove, run)
        if not canceller.fired:
            break


async def _orders(answer: Any, pool: Pool, shop: _Shop, tasks: int) -> list[Any]:
    got = await asyncio.gather(*(answer(pool, shop, n) for n in range(FIRST, FIRST + tasks)))
    await settle()
    return got


def _transactions(pool: Pool) -> int:
    return sum(name == "BEGIN" for connection in pool.history for name, _ in connection.done)


def _check_shop_failure(answer: Any, prove: Prove, fail: str) -> None:
    async def scene() -> tuple[BaseException | None, bool]:
        pool, error = Pool(1), None
        try:
            await answer(pool, _Shop(pool, fail), 2)
        except Injected as raised:
            error = raised
        await settle()
        return error, all_back(pool)

    run = observe(scene)
    error, back = run.result()
    prove(
        "an error comes out",
        error is not None,
        f"The {'audit' if fail == 'audit' else f'query {fail}'} failed, and no error came out.",
    )
    prove(BACK, back, f"After an error in {fail}, a connection was still out.")
    prove_clean(prove, run)


async def _cancelled_shop(answer: Any, prove: Prove, canceller: Canceller) -> None:
    pool, cancelled = Pool(1), False
    try:
        await canceller.drive(answer(pool, _Shop(pool), 2))
    except asyncio.CancelledError:
        cancelled = True
    prove(CANCELS, cancelled or not canceller.fired, f"Cancelled at {canceller}, no CancelledError came out.")
    await settle()
    prove(BACK, all_back(pool), f"Cancelled at {canceller}, it kept its connection.")


# --- 5.4 the size of a pool ----------------------------------------------------------------------

HOLDS = "99 % of waits within the target"
LEAST = "no larger than it must be"
CEILING = "refuses what the database cannot carry"
# rate (per s), hold (s), target (s) of the 99th percentile, ceiling, and the spread of the holds
LOADS = ((300, 0.012, 0.005, 16, 0.5), (100, 0.01, 0.002, 16, 0.5), (40, 0.2, 0.05, 40, 0.5), (900, 0.004, 0.001, 32, 0.5),
         (5, 0.01, 0.005, 4, 0.5), (200, 0.05, 0.1, 64, 0.5))  # fmt: skip


def _smallest(rate: float, hold: float, target: float, ceiling: int) -> int | None:
    first = math.floor(rate * hold) + 1
    fitting = (k for k in range(first, ceiling + 1) if theory.erlang_c_wait_quantile(0.99, rate, hold, k) <= target)
    return next(fitting, None)


def waits_of(rate: float, hold: float, size: int, spread: float, seed: int, count: int = 30_000) -> list[float]:
    """Seconds that each of `count` requests waits for one of `size` connections, first come, first served.

    rate: arrivals per second, Poisson. hold: mean seconds of a lognormal hold. spread: sigma of its logarithm.
    """
    random_numbers, now, middle = random.Random(seed), 0.0, math.log(hold) - spread**2 / 2
    free, waits = [0.0] * size, []
    for _ in range(count):
        now += random_numbers.expovariate(rate)
        start = max(now, free[0])
        heapq.heapreplace(free, start + random_numbers.lognormvariate(middle, spread))
        waits.append(start - now)
    return waits


def _check_pool_size(answer: Any, prove: Prove) -> None:
    for rate, hold, target, ceiling, spread in LOADS:
        least = _smallest(rate, hold, target, ceiling)
        asked = f"{rate:g} requests/s, each holding {1000 * hold:g} ms"
        size = call(answer, rate, hold, target, ceiling).result()
        if asyncio.iscoroutine(size):
            size.close()
        whole = isinstance(size, int) and not isinstance(size, bool)
        prove("a whole number of connections", whole, f"For {asked}, it returned {plain(repr(size))}.")
        told = f"{asked}: {size} connections are busy {rate * hold / max(size, 1e-9):.0%} of the time, so the queue grows for ever."
        prove(HOLDS, size > rate * hold, told)
        measured = statistics.quantiles(waits_of(rate, hold, size, spread, seed=1), n=100)[98]
        told = f"{asked}: with {size} connections, the 99th percentile of the wait, simulated, is {measured / target:.1f} times the target."
        prove(HOLDS, measured <= target and size >= least - 1, told)
        told = f"{asked}: it chose {size} connections, and {least} hold the target. The database serves all pools with few cores."
        prove(LEAST, size <= min(least + 1, ceiling), told)
    sizes = [call(answer, rate, 0.02, 0.01, 200).result() for rate in (1, 10, 100, 1000, 5000)]
    told = f"For 1, 10, 100, 1000 and 5000 requests/s it chose {plain(sizes)}."
    prove("more load never gets fewer connections", sizes == sorted(sizes) and sizes[0] <= 3, told)
    for rate, hold, target, ceiling in (
        (300, 0.012, 0.005, 5),
        (300, 0.012, 0.005, 3),
        (1000, 0.01, 1.0, 10),
        (200, 0.05, 0.001, 16),
    ):
        run = call(answer, rate, hold, target, ceiling)
        told = f"{rate:g} requests/s, each holding {1000 * hold:g} ms, need more than the {ceiling} connections allowed, and"
        prove(CEILING, isinstance(run.error, ValueError), f"{told} {_outcome(run)}: raise ValueError.")


EXERCISES = [
    Exercise(
        "5.1", "one query for many rows", "fetch_many(pool, ids)", ("pool", "ids"),
        three_hints("""
            A query for each id pays the way to the server each time. What can take all ids at once?

            WHERE id = any($1::bigint[]) takes one argument, a list. Rows come in any order, and a missing
            id has no row.

            names = {row["id"]: row["name"] for row in await pool.fetch(QUERY, ids)}
        """),
        _check_fetch_many,
    ),
    Exercise(
        "5.2", "acquire with a budget", "with_connection(pool, work, budget, observe)",
        ("pool", "work", "budget", "observe"),
        three_hints("""
            Three things happen: a wait, the work, the release. Which of them may the budget end?

            Only acquire gets the timeout. Everything after it stands in try and finally, outside of the
            except that turns TimeoutError into PoolBusy.

            try: connection = await pool.acquire(timeout=budget), except TimeoutError: raise PoolBusy,
            finally: observe(loop.time() - start); and below it try: return await work(connection), finally: ...
        """),
        _check_budget,
    ),
    Exercise(
        "5.3", "no nested acquire", "order_total(pool, shop, number)", ("pool", "shop", "number"),
        three_hints("""
            Five tasks hold one connection each and want another. Who gives one back?

            Acquire once, at the top, and pass the connection down. The audit needs none.

            async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
            the three reads; and after that block, await shop.audit(number).
        """),
        _check_no_nesting,
    ),
    Exercise(
        "5.4", "the size of a pool", "pool_size(rate, hold, target, ceiling)", ("rate", "hold", "target", "ceiling"),
        three_hints("""
            Little's law says how many are busy on average. Why is that number, as a pool, a disaster?

            theory.erlang_c_wait_quantile(0.99, rate, hold, size) is the wait that 99 % do not exceed. It is
            defined for size > rate * hold.

            for size in range(math.floor(rate * hold) + 1, ceiling + 1): return the first that holds the target.
        """),
        _check_pool_size,
    ),
]  # fmt: skip
