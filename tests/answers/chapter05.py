"""Right and wrong answers to the exercises of chapter 05.

Every wrong answer names the property that its check must report as missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math

from answers.register import Register

from support import theory
from support.exercises import PoolBusy

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

RUNS = "runs without an error"
BACK = "gives every connection back"
CANCEL = "passes a cancellation on"


# --- 5.1 one query for many rows -----------------------------------------------------------------

QUERY = "SELECT id, name FROM users WHERE id = any($1::bigint[])"
ONE = "one query, however many ids"
ORDER = "names in the order of the ids"
SAME_TEXT = "one text of the query for all ids"
ONLY_THOSE = "reads only the rows asked for"
NONE = "None for an id without a row"
EACH = "a name for each id"


@stub("5.1")
async def fetch_stub(pool, ids):
    raise NotImplementedError


@right("5.1")
async def fetch_many(pool, ids):
    names = {row["id"]: row["name"] for row in await pool.fetch(QUERY, ids)}
    return [names.get(one) for one in ids]


@right("5.1")
async def fetch_joined(pool, ids):
    query = (
        "SELECT name FROM unnest($1::bigint[]) WITH ORDINALITY AS asked(id, n) LEFT JOIN users USING (id) ORDER BY n"
    )
    async with pool.acquire() as connection:
        return [row["name"] for row in await connection.fetch(query, ids)]


@right("5.1")
async def fetch_unless_empty(pool, ids):
    if not ids:
        return []
    async with pool.acquire() as connection, connection.transaction():
        names = dict(await connection.fetch(QUERY, list(set(ids))))
    return [names.get(one) for one in ids]


@wrong("5.1", ONE)
async def fetch_one_by_one(pool, ids):
    return [await pool.fetchval("SELECT name FROM users WHERE id = $1", one) for one in ids]


@wrong("5.1", ONE)
async def fetch_gathered(pool, ids):
    return await asyncio.gather(*[pool.fetchval("SELECT name FROM users WHERE id = $1", one) for one in ids])


@wrong("5.1", RUNS)
async def fetch_gathered_on_one(pool, ids):
    async with pool.acquire() as connection:
        return await asyncio.gather(*[connection.fetchval("SELECT name FROM users WHERE id = $1", one) for one in ids])


@wrong("5.1", ONE)
async def fetch_in_pieces(pool, ids):
    names = {}
    for start in range(0, len(ids), 50):
        names |= dict(await pool.fetch(QUERY, ids[start : start + 50]))
    return [names.get(one) for one in ids]


@wrong("5.1", ONE)
async def fetch_twice_to_be_sure(pool, ids):
    count = await pool.fetchval("SELECT count(*) FROM users WHERE id = any($1::bigint[])", ids)
    names = dict(await pool.fetch(QUERY, ids)) if count else {}
    return [names.get(one) for one in ids]


@wrong("5.1", SAME_TEXT)
async def fetch_pasted(pool, ids):
    if not ids:
        return []
    rows = await pool.fetch(f"SELECT id, name FROM users WHERE id IN ({', '.join(map(str, ids))})")
    names = dict(rows)
    return [names.get(one) for one in ids]


@wrong("5.1", SAME_TEXT)
async def fetch_placeholders(pool, ids):
    if not ids:
        return []
    places = ", ".join(f"${n}" for n in range(1, len(ids) + 1))
    names = dict(await pool.fetch(f"SELECT id, name FROM users WHERE id IN ({places})", *ids))
    return [names.get(one) for one in ids]


@wrong("5.1", SAME_TEXT)
async def fetch_pasted_array(pool, ids):
    names = dict(
        await pool.fetch(f"SELECT id, name FROM users WHERE id = any('{{{','.join(map(str, ids))}}}'::bigint[])")
    )
    return [names.get(one) for one in ids]


@wrong("5.1", RUNS)
async def fetch_in_argument(pool, ids):
    names = dict(await pool.fetch("SELECT id, name FROM users WHERE id IN ($1)", ids))
    return [names.get(one) for one in ids]


@wrong("5.1", ORDER)
async def fetch_as_they_come(pool, ids):
    return [row["name"] for row in await pool.fetch(QUERY, ids)]


@wrong("5.1", EACH)
async def fetch_without_repeats(pool, ids):
    names = dict(await pool.fetch(QUERY, ids))
    return [names.get(one) for one in dict.fromkeys(ids)]


@wrong("5.1", NONE)
async def fetch_without_missing(pool, ids):
    names = dict(await pool.fetch(QUERY, ids))
    return [names[one] for one in ids if one in names]


@wrong("5.1", RUNS)
async def fetch_key_error(pool, ids):
    names = dict(await pool.fetch(QUERY, ids))
    return [names[one] for one in ids]


@wrong("5.1", ONLY_THOSE)
async def fetch_everything(pool, ids):
    names = dict(await pool.fetch("SELECT id, name FROM users"))
    return [names.get(one) for one in ids]


@wrong("5.1", "an empty list of ids is no error")
async def fetch_none_for_nothing(pool, ids):
    if not ids:
        return None
    return await fetch_many(pool, ids)


@wrong("5.1", BACK)
async def fetch_and_keep(pool, ids):
    connection = await pool.acquire()
    names = dict(await connection.fetch(QUERY, ids))
    return [names.get(one) for one in ids]


# --- 5.2 acquire with a budget -------------------------------------------------------------------

IN_TIME = "gives up after its budget, and not before"
BUSY = "raises PoolBusy when its budget is gone"
UNCUT = "cuts no query short"
WAITS = "reports each wait once, and only the wait"
CALLED = "runs the work once, and only with a connection"
VALUE = "returns what the work returns"
UNCHANGED = "an error of the work comes out unchanged"


@stub("5.2")
async def budget_stub(pool, work, budget, observe):
    raise NotImplementedError


@right("5.2")
async def with_connection(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        connection = await pool.acquire(timeout=budget)
    except TimeoutError:
        raise PoolBusy from None
    finally:
        observe(loop.time() - start)
    try:
        return await work(connection)
    finally:
        await pool.release(connection)


@right("5.2")
async def with_timeout(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        async with asyncio.timeout(budget):
            connection = await pool.acquire()
    except TimeoutError as error:
        observe(loop.time() - start)
        raise PoolBusy(f"no connection within {budget} s") from error
    try:
        observe(loop.time() - start)
        return await work(connection)
    finally:
        await pool.release(connection)


@right("5.2")
async def with_stack(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        start = loop.time()
        try:
            connection = await stack.enter_async_context(pool.acquire(timeout=budget))
        except TimeoutError:
            observe(budget)
            raise PoolBusy from None
        observe(loop.time() - start)
        return await work(connection)


@wrong("5.2", IN_TIME)
async def budget_forgotten(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with pool.acquire() as connection:
        observe(loop.time() - start)
        return await work(connection)


@wrong("5.2", UNCHANGED)
async def budget_around_everything(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        async with asyncio.timeout(budget), pool.acquire() as connection:
            observe(loop.time() - start)
            return await work(connection)
    except TimeoutError:
        if not pool.held:
            observe(loop.time() - start)
        raise PoolBusy from None


@wrong("5.2", UNCUT)
async def budget_cuts_the_work(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start, waited = loop.time(), None
    try:
        async with asyncio.timeout(budget) as scope, pool.acquire() as connection:
            waited = loop.time() - start
            observe(waited)
            return await work(connection)
    except TimeoutError:
        if not scope.expired():
            raise
        if waited is None:
            observe(loop.time() - start)
        raise PoolBusy from None


@wrong("5.2", BUSY)
async def budget_as_timeout_error(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        connection = await pool.acquire(timeout=budget)
    finally:
        observe(loop.time() - start)
    try:
        return await work(connection)
    finally:
        await pool.release(connection)


@wrong("5.2", UNCHANGED)
async def budget_work_inside_the_except(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        async with pool.acquire(timeout=budget) as connection:
            observe(loop.time() - start)
            return await work(connection)
    except TimeoutError:
        raise PoolBusy from None


@wrong("5.2", BACK)
async def budget_no_finally(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        connection = await pool.acquire(timeout=budget)
    except TimeoutError:
        raise PoolBusy from None
    finally:
        observe(loop.time() - start)
    value = await work(connection)
    await pool.release(connection)
    return value


@wrong("5.2", BACK)
async def budget_released_after_exceptions_only(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        connection = await pool.acquire(timeout=budget)
    except TimeoutError:
        raise PoolBusy from None
    finally:
        observe(loop.time() - start)
    try:
        value = await work(connection)
    except Exception:  # a cancellation is none
        await pool.release(connection)
        raise
    await pool.release(connection)
    return value


@wrong("5.2", WAITS)
async def budget_measures_the_work_too(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        try:
            connection = await pool.acquire(timeout=budget)
        except TimeoutError:
            raise PoolBusy from None
        try:
            return await work(connection)
        finally:
            await pool.release(connection)
    finally:
        observe(loop.time() - start)


@wrong("5.2", WAITS)
async def budget_forgets_the_waits_in_vain(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        connection = await pool.acquire(timeout=budget)
    except TimeoutError:
        raise PoolBusy from None
    observe(loop.time() - start)
    try:
        return await work(connection)
    finally:
        await pool.release(connection)


@wrong("5.2", IN_TIME)
async def budget_refuses_at_once(pool, work, budget, observe):
    if pool.held == pool.size:
        observe(0.0)
        raise PoolBusy
    return await with_connection(pool, work, budget, observe)


@wrong("5.2", CANCEL)
async def budget_swallows_a_cancellation(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        connection = await pool.acquire(timeout=budget)
    except (TimeoutError, asyncio.CancelledError):
        raise PoolBusy from None
    finally:
        observe(loop.time() - start)
    try:
        return await work(connection)
    finally:
        await pool.release(connection)


@wrong("5.2", BACK)
async def budget_acquires_in_a_task(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start, acquiring = loop.time(), asyncio.ensure_future(pool.acquire())
    done, _ = await asyncio.wait([acquiring], timeout=budget)
    observe(loop.time() - start)
    if not done:
        acquiring.cancel()
        await asyncio.wait([acquiring])
        raise PoolBusy
    connection = acquiring.result()
    try:
        return await work(connection)
    finally:
        await pool.release(connection)


@wrong("5.2", "takes a connection as soon as there is one")
async def budget_polls(pool, work, budget, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    while pool.held == pool.size:
        if loop.time() - start >= budget - 1e-9:
            observe(loop.time() - start)
            raise PoolBusy
        await asyncio.sleep(min(0.08, budget - (loop.time() - start)))
    observe(loop.time() - start)
    async with pool.acquire() as connection:
        return await work(connection)


@wrong("5.2", CALLED)
async def budget_works_twice(pool, work, budget, observe):
    async def both(connection):
        await work(connection)
        return await work(connection)

    return await with_connection(pool, both, budget, observe)


# --- 5.3 no nested acquire -----------------------------------------------------------------------

DEPTH = "one connection per task at a time"
ONE_STATE, LEVEL = "all reads see one state of the data", "repeatable_read"
SNAPSHOT = "all reads in one transaction"
OUTSIDE = "holds no connection while it waits for others"
FINISH = "50 tasks finish on a pool of 5"
TOTAL = "the order, its customer and its total"


@stub("5.3")
async def order_stub(pool, shop, number):
    raise NotImplementedError


@right("5.3")
async def order_total(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
        order = await shop.order(connection, number)
        prices = await shop.prices(connection, await shop.items(connection, number))
    await shop.audit(number)
    return {**order, "total": sum(prices.values())}


@right("5.3")
async def order_by_hand(pool, shop, number):
    connection = await pool.acquire()
    try:
        async with connection.transaction(isolation=LEVEL):
            items = await shop.items(connection, number)
            order, prices = await shop.order(connection, number), await shop.prices(connection, items)
    finally:
        await pool.release(connection)
    await shop.audit(number)
    return {**order, "total": sum(prices[item] for item in items)}


async def _total(connection, shop, number):
    return sum((await shop.prices(connection, await shop.items(connection, number))).values())


@right("5.3")
async def order_audited_first(pool, shop, number):
    await shop.audit(number)
    async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
        return {**await shop.order(connection, number), "total": await _total(connection, shop, number)}


async def _items_of_their_own(pool, shop, number):
    async with pool.acquire() as connection:
        return await shop.items(connection, number)


@wrong("5.3", DEPTH)
async def order_nested(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
        order = await shop.order(connection, number)
        items = await _items_of_their_own(pool, shop, number)
        prices = await shop.prices(connection, items)
    await shop.audit(number)
    return {**order, "total": sum(prices.values())}


@wrong("5.3", DEPTH)
async def order_nested_with_retry(pool, shop, number):
    while True:
        try:
            async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
                order = await shop.order(connection, number)
                async with pool.acquire(timeout=0.1) as second:
                    items = await shop.items(second, number)
                prices = await shop.prices(connection, items)
            break
        except TimeoutError:
            await asyncio.sleep(0.01 * number)
    await shop.audit(number)
    return {**order, "total": sum(prices.values())}


@wrong("5.3", DEPTH)
async def order_gathered(pool, shop, number):
    async def read(query, key):
        async with pool.acquire() as connection:
            return await query(connection, key)

    order, items = await asyncio.gather(read(shop.order, number), read(shop.items, number))
    prices = await read(shop.prices, items)
    await shop.audit(number)
    return {**order, "total": sum(prices.values())}


@wrong("5.3", RUNS)
async def order_gathered_on_one(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
        order, total = await asyncio.gather(shop.order(connection, number), _total(connection, shop, number))
    await shop.audit(number)
    return {**order, "total": total}


@right("5.3")
async def order_serializable(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation="serializable", readonly=True):
        order, total = await shop.order(connection, number), await _total(connection, shop, number)
    await shop.audit(number)
    return {**order, "total": total}


@wrong("5.3", ONE_STATE)
async def order_read_committed(pool, shop, number):
    """One transaction, but each query has a snapshot of its own."""
    async with pool.acquire() as connection, connection.transaction():
        order, total = await shop.order(connection, number), await _total(connection, shop, number)
    await shop.audit(number)
    return {**order, "total": total}


@wrong("5.3", ONE_STATE)
async def order_read_committed_by_name(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation="read_committed", readonly=True):
        order, total = await shop.order(connection, number), await _total(connection, shop, number)
    await shop.audit(number)
    return {**order, "total": total}


@wrong("5.3", SNAPSHOT)
async def order_one_after_the_other(pool, shop, number):
    async with pool.acquire() as connection:
        order = await shop.order(connection, number)
    items = await _items_of_their_own(pool, shop, number)
    async with pool.acquire() as connection:
        prices = await shop.prices(connection, items)
    await shop.audit(number)
    return {**order, "total": sum(prices.values())}


@wrong("5.3", SNAPSHOT)
async def order_without_a_transaction(pool, shop, number):
    async with pool.acquire() as connection:
        order, total = await shop.order(connection, number), await _total(connection, shop, number)
    await shop.audit(number)
    return {**order, "total": total}


@wrong("5.3", SNAPSHOT)
async def order_three_transactions(pool, shop, number):
    async with pool.acquire() as connection:
        async with connection.transaction(isolation=LEVEL):
            order = await shop.order(connection, number)
        async with connection.transaction(isolation=LEVEL):
            items = await shop.items(connection, number)
        async with connection.transaction(isolation=LEVEL):
            prices = await shop.prices(connection, items)
    await shop.audit(number)
    return {**order, "total": sum(prices.values())}


@wrong("5.3", OUTSIDE)
async def order_audited_inside(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
        order, total = await shop.order(connection, number), await _total(connection, shop, number)
        await shop.audit(number)
    return {**order, "total": total}


@wrong("5.3", BACK)
async def order_released_on_success(pool, shop, number):
    connection = await pool.acquire()
    async with connection.transaction(isolation=LEVEL):
        order, total = await shop.order(connection, number), await _total(connection, shop, number)
    await pool.release(connection)
    await shop.audit(number)
    return {**order, "total": total}


@wrong("5.3", "leaves no task behind")
async def order_audits_later(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
        order, total = await shop.order(connection, number), await _total(connection, shop, number)
    order_audits_later.tasks = asyncio.ensure_future(shop.audit(number))
    await asyncio.sleep(0)
    return {**order, "total": total}


class _Locks:
    """One lock for each loop: the checker runs the answer on many."""

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def of(self, loop):
        return asyncio.Lock()


_LOCKS = _Locks()


@wrong("5.3", FINISH)
async def order_under_one_lock(pool, shop, number):
    async with _LOCKS.of(asyncio.get_running_loop()):
        return await order_total(pool, shop, number)


@wrong("5.3", "audits each order once")
async def order_not_audited(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
        return {**await shop.order(connection, number), "total": await _total(connection, shop, number)}


@wrong("5.3", TOTAL)
async def order_counts_items(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
        order, items = await shop.order(connection, number), await shop.items(connection, number)
        await shop.prices(connection, items)
    await shop.audit(number)
    return {**order, "total": len(items)}


@wrong("5.3", "an error comes out")
async def order_swallows_audit_errors(pool, shop, number):
    async with pool.acquire() as connection, connection.transaction(isolation=LEVEL):
        order, total = await shop.order(connection, number), await _total(connection, shop, number)
    with contextlib.suppress(Exception):
        await shop.audit(number)
    return {**order, "total": total}


# --- 5.4 the size of a pool ----------------------------------------------------------------------

HOLDS = "99 % of waits within the target"
LEAST = "no larger than it must be"
CEILING = "refuses what the database cannot carry"


@stub("5.4")
def size_stub(rate, hold, target, ceiling):
    raise NotImplementedError


@right("5.4")
def pool_size(rate, hold, target, ceiling):
    for size in range(math.floor(rate * hold) + 1, ceiling + 1):
        if theory.erlang_c_wait_quantile(0.99, rate, hold, size) <= target:
            return size
    raise ValueError(f"{ceiling} connections are too few for {rate}/s of {hold} s")


@right("5.4")
def size_one_to_spare(rate, hold, target, ceiling):
    return min(ceiling, pool_size(rate, hold, target, ceiling) + 1)


@right("5.4")
def size_by_its_own_formula(rate, hold, target, ceiling):
    load = rate * hold
    for size in range(1, ceiling + 1):
        if size <= load:
            continue
        term = total = 1.0
        for busy in range(1, size):
            term *= load / busy
            total += term
        last = term * load / size * size / (size - load)
        if last / (total + last) * math.exp(-(size / hold - rate) * target) <= 0.01:
            return size
    raise ValueError("too few connections allowed")


@wrong("5.4", LEAST)
def size_a_hundred(rate, hold, target, ceiling):
    return max(100, ceiling)


@wrong("5.4", LEAST)
def size_of_the_ceiling(rate, hold, target, ceiling):
    return ceiling


@wrong("5.4", HOLDS)
def size_little_rounded_down(rate, hold, target, ceiling):
    return math.floor(rate * hold)


@wrong("5.4", HOLDS)
def size_little_rounded_up(rate, hold, target, ceiling):
    return math.ceil(rate * hold)


@wrong("5.4", HOLDS)
def size_little_and_one(rate, hold, target, ceiling):
    return math.floor(rate * hold) + 1


@wrong("5.4", HOLDS)
def size_eighty_percent(rate, hold, target, ceiling):
    return math.ceil(rate * hold / 0.8)


@wrong("5.4", HOLDS)
def size_by_the_mean(rate, hold, target, ceiling):
    for size in range(math.floor(rate * hold) + 1, ceiling + 1):
        if theory.erlang_c_mean_wait(rate, hold, size) <= target:
            return size
    raise ValueError("too few")


@wrong("5.4", CEILING)
def size_cut_at_the_ceiling(rate, hold, target, ceiling):
    try:
        return pool_size(rate, hold, target, ceiling)
    except ValueError:
        return ceiling


@wrong("5.4", CEILING)
def size_without_a_ceiling(rate, hold, target, ceiling):
    return pool_size(rate, hold, target, 10_000)


@wrong("5.4", "a whole number of connections")
def size_as_a_fraction(rate, hold, target, ceiling):
    return 1.25 * pool_size(rate, hold, target, ceiling)


@wrong("5.4", LEAST)
def size_doubled(rate, hold, target, ceiling):
    return 2 * pool_size(rate, hold, target, ceiling)
