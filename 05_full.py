# %% [markdown]
# # How many connections?
#
# After this chapter you can say what a database connection costs, size a pool from three numbers, and find the code that leaks, deadlocks or drains it.
#
# You need chapters 02 and 04: semaphores, FastAPI's `Depends` and `lifespan`. You need no database and no SQL beyond `SELECT`: a real Postgres starts with the chapter, and ends with it.

# %% tags=["setup"]
import asyncio, contextlib, heapq, inspect, itertools, json, math, os, random, statistics, time
from collections import Counter
from functools import partial

import aiohttp, asyncpg, httpx, psutil, psycopg_pool
import ipywidgets as widgets
import numpy as np
from fastapi.encoders import jsonable_encoder
from support import (check, close_chapter, figures, load, new_figure, open_chapter, predict, probes, run_script, score, serve, show,
    simulate, start_postgres, theory)
from support.exercises import PoolBusy

open_chapter("05_connection_pools")
postgres = start_postgres(max_connections=100)
load.start()

# %% [markdown]
# ## 1. What does one query cost?
#
# Postgres answers each connection with a *process* of its own: started, logged in, and ended for you. A *pool* keeps some connections open, and lends them. Between two borrowers it *resets* the connection. So there are three prices for a query: with a connection of its own, over a borrowed one, over one that you hold.

# %% tags=["predict"]
reset_guess = predict("05.1", "You hold a connection and send SELECT 1 ten times. Then ten times pool.fetchval('SELECT 1'). How many statements reach Postgres?", {
    "a": "10 and 10: the pool only lends.",
    "b": "10 and 20: each return of a connection sends one more.",
    "c": "10 and 30: a transaction around each.",
}, guess="")

# %% tags=["experiment"]
async def statements(work) -> list[str]:  # what a pool of one connection sends meanwhile
    sent = []
    async def log(connection: asyncpg.Connection) -> None: connection.add_query_logger(lambda record: sent.append(record.query))
    async with asyncpg.create_pool(postgres.url, min_size=1, max_size=1, init=log) as pool: await work(pool)
    return sent
async def ten_times(lender) -> None:
    for _ in range(10): await lender.fetchval("SELECT 1")
async def hold(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection: await ten_times(connection)
held, borrowed = await statements(hold), await statements(ten_times)
print("held:", len(held), "with one reset at its return - pool.fetchval:", len(borrowed), "- the reset:\n ", " ".join(borrowed[1].split()))
reset_guess.settle({10: "a", 20: "b"}.get(len(borrowed), "c"), "nobody shall inherit locks, cursors, listeners or settings")

# %% tags=["experiment"]
async def connect_per_query() -> None:
    connection = await asyncpg.connect(postgres.url)
    try: await connection.fetchval("SELECT 1")
    finally: await connection.close()
async def pool_per_query() -> None:
    async with asyncpg.create_pool(postgres.url) as own: await own.fetchval("SELECT 1")
async with asyncpg.create_pool(postgres.url) as pool, pool.acquire() as held, asyncpg.create_pool(postgres.url, statement_cache_size=0) as plain, plain.acquire() as uncached:
    select = {"pool.fetchval": pool.fetchval, "held, no statement cache": uncached.fetchval, "held connection": held.fetchval}
    ways = {"a pool per query": pool_per_query, "a connection per query": connect_per_query} | {name: partial(fetch, "SELECT 1") for name, fetch in select.items()}
    cost = {name: [] for name in ways}
    for _, (name, query) in itertools.product(range(8), ways.items()):  # in turn, so that noise hits all
        cost[name].append([1000 * await probes.seconds(query()) for _ in range(10 if name in select else 1)])

# %% tags=["figure"]
figure, axes = new_figure(height=2.7)
figures.ladder(axes, {name: [statistics.median(times) for times in rounds[1:]] for name, rounds in cost.items()}, unit="ms")  # round 0 opens and prepares
axes.set(title="What does SELECT 1 cost, five ways?", xlabel="time of one query (ms, logarithmic): median and range")
show(figure, alt="Bars on a logarithmic axis. A pool per query takes tens of milliseconds, a connection per query a few, pool.fetchval and a connection without cached statements some tenths, a held connection the least.")
by_pool, by_connection, borrowed_ms, uncached_ms, held_ms = (min(map(min, rounds[1:])) for rounds in cost.values())
assert by_pool > 50 * borrowed_ms and by_pool > 2 * by_connection and by_connection > 10 * borrowed_ms and by_connection > 30 * held_ms
assert borrowed_ms > 1.5 * held_ms and uncached_ms > 1.2 * held_ms
print("By the quickest runs, a pool that lives is over 10 times faster than a connection per query, a pool per query over 50 times slower.")
score("05 a connection per query over a held connection", by_connection / held_ms, "times")

# %% tags=["experiment"]
async with asyncpg.create_pool(postgres.url, min_size=2, max_size=8, max_inactive_connection_lifetime=0.1) as pool:
    async with contextlib.AsyncExitStack() as loans:
        pids = [(await loans.enter_async_context(pool.acquire())).get_server_pid() for _ in range(8)]
        own_mb = [psutil.Process(pid).memory_full_info().uss / 1e6 for pid in set(pids) if psutil.pid_exists(pid)]
        print("open at rest: 2; 8 borrowers:", pool.get_size(), "- processes:", len(own_mb), "- each with over 1 MB that it shares with nobody:", min(own_mb, default=0) > 1)
    async with asyncio.timeout(10):
        while pool.get_size() > 2: await asyncio.sleep(0.01)
    print("idle for max_inactive_connection_lifetime: closed down to min_size =", pool.get_size())
async with asyncpg.create_pool(postgres.url, min_size=4, max_size=4, max_queries=10) as pool:
    lent = [await pool.fetchval("SELECT pg_backend_pid()") for _ in range(12)]
    print("last returned, first lent: 4 loans in turn meet", len(set(lent[:4])), "of 4 connections; after 12 it is gone, as max_queries=10 counts resets:", lent[0] != lent[-1])

# %% [markdown]
# ## 2. A pool per request
#
# The usual FastAPI snippet makes its pool in a dependency, one for each request, behind a decorator that FastAPI does not want there. Two endpoints use it: one query, and 100 users read at once. `%%module` writes a cell as a file, so that `serve` can run it in a process of its own.

# %% tags=["predict"]
request_guess = predict("05.2", "A pool of 5 to 20, created in a dependency and closed after the response. 20 requests, one after the other, one query each. How many connections does Postgres open?", {
    "a": "5 to 20: a pool per request is still a pool.",
    "b": "20: one for each request.",
    "c": "100: five for each request.",
}, guess="")

# %% tags=["experiment"]
# %%module shop_routes
import asyncio
from fastapi import Depends, FastAPI
def make_app(get_pool, **options) -> FastAPI:  # both endpoints, wherever their pool comes from
    app = FastAPI(**options)
    @app.get("/database-query")
    async def database_query(pool=Depends(get_pool)) -> int:
        return await pool.fetchval("SELECT count(*) FROM users")
    @app.get("/concurrent-database")
    async def concurrent_database(pool=Depends(get_pool)) -> dict[str, int]:
        users = await asyncio.gather(*[pool.fetchrow("SELECT * FROM users WHERE id = $1", number) for number in range(1, 101)], return_exceptions=True)
        return {"total_users": 100, "successful_queries": sum(not isinstance(user, Exception) for user in users)}
    return app

# %% tags=["experiment"]
# %%module shop_naive
import contextlib, os, asyncpg
from shop_routes import make_app

pool = None
async def get_db_pool():
    global pool
    pool = await asyncpg.create_pool(os.environ["SHOP_DSN"], min_size=5, max_size=20)  # a password has no place in the source
    try: yield pool
    finally: await pool.close()

app = make_app(get_db_pool)
app.mount("/as-written", make_app(contextlib.asynccontextmanager(get_db_pool)))  # as it is usually decorated

# %% tags=["experiment"]
os.environ["SHOP_DSN"] = postgres.fresh_database("shop")
async def ask(url: str, query: str, *arguments) -> int:
    async with asyncpg.create_pool(url, min_size=0, max_size=1) as one: return await one.fetchval(query, *arguments)
SHOP = await ask(os.environ["SHOP_DSN"], "SELECT current_database()")
await ask(os.environ["SHOP_DSN"], "CREATE TABLE users AS SELECT n AS id, 'user ' || n AS name FROM generate_series(1, 100) n")
async def connections_open() -> int:  # asked from another database, so that the question does not count
    return await ask(postgres.url, "SELECT count(*) FROM pg_stat_activity WHERE datname = $1", SHOP)
async def connections_ever() -> int:  # a connection is in this count for certain when it has ended
    async with asyncio.timeout(10):
        while await connections_open(): await asyncio.sleep(0.01)
    return await ask(postgres.url, "SELECT sessions FROM pg_stat_database WHERE datname = $1", SHOP)

# %% tags=["experiment"]
before = await connections_ever()
with serve("shop_naive:app") as server:
    refused = await load.closed_loop(f"{server.url}/as-written/database-query", concurrency=1, requests=3)
    naive = await load.closed_loop(f"{server.url}/database-query", concurrency=1, requests=20)
    naive_opened = await connections_ever() - before
    naive_crowd = await load.closed_loop(f"{server.url}/database-query", concurrency=30, requests=30)
    too_many = "TooManyConnectionsError" in server.log
print("decorated with @asynccontextmanager, 3 requests:", dict(refused.failed), "- FastAPI wants the bare generator")
print("20 requests, one after the other:", naive_opened, "connections opened")
print("30 at once: refused with a 500:", 0 < naive_crowd.failed["500"], "- TooManyConnectionsError in the log:", too_many)
request_guess.settle({20: "b", 100: "c"}.get(naive_opened, "a"), "by Postgres's own count: nothing is used twice, so it is no pool")

# %% tags=["experiment"]
import shop_naive, shop_routes
for requests in (2, 4, 8):
    dependencies = [shop_naive.get_db_pool() for _ in range(requests)]
    pools = [await anext(dependency) for dependency in dependencies]  # all are at work, and the global `pool` is the last one's
    await anext(dependencies[0], None)  # the first is done, and closes `pool`
    async with httpx.AsyncClient(transport=httpx.ASGITransport(shop_routes.make_app(lambda: pools[-1])), base_url="http://shop") as last:
        answer = await last.get("/concurrent-database")
    for dependency in dependencies[1:]: await anext(dependency, None)  # they close what is closed already
    print(requests, "requests at once leave open:", await connections_open(), f"connections, 5 x {requests - 1}")
    for pool in pools: pool.terminate()
    _ = await connections_ever()  # waits until they are gone
print("the neighbour whose pool was closed answers", answer.status_code, answer.json(), "- gather collected the errors")

# %% tags=["experiment"]
# %%module shop
import contextlib, os, asyncpg
from fastapi import FastAPI, Request
from shop_routes import make_app

@contextlib.asynccontextmanager
async def lifespan(app: FastAPI):  # one pool for the life of the process
    async with asyncpg.create_pool(os.environ["SHOP_DSN"], min_size=5, max_size=20) as app.state.pool:
        yield

def get_pool(request: Request) -> asyncpg.Pool: return request.app.state.pool
app = make_app(get_pool, lifespan=lifespan)

# %% tags=["figure"]
before = await connections_ever()
with serve("shop:app") as server:
    fixed = await load.closed_loop(f"{server.url}/database-query", concurrency=1, requests=20)
    fixed_crowd = await load.closed_loop(f"{server.url}/database-query", concurrency=200, requests=200)
fixed_opened = await connections_ever() - before
print("200 at once: answered:", fixed_crowd.completed, "- at most 20 connections opened for all 220 requests:", fixed_opened <= 20)
figure, axes = new_figure(height=2.8)
figures.latency_cdf(axes, {"a pool per request: 5 connections each": 1000 * naive.latencies, "one pool, in the lifespan": 1000 * fixed.latencies})
axes.set(title="How long does /database-query take, one request at a time?", xscale="log", xlabel="latency (ms, logarithmic)")
show(figure, alt="Two steps on a logarithmic axis: with the lifespan's pool nearly all answers come within some milliseconds, with a pool per request they take over five times as long.")
assert naive.percentile(50) > 5 * fixed.percentile(50)

# %% tags=["experiment"]
limit, reserved, taken = [await ask(postgres.url, query) for query in (
    "SELECT current_setting('max_connections')::int", "SELECT current_setting('superuser_reserved_connections')::int",
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")]
budget, workers = (limit - reserved - taken) // 20, 0
async with contextlib.AsyncExitStack() as stack:
    with contextlib.suppress(asyncpg.TooManyConnectionsError):
        while True:  # each worker process has a pool of its own
            await stack.enter_async_context(asyncpg.create_pool(postgres.url, min_size=20, max_size=20))
            workers += 1
print("pool size x workers x replicas <= max_connections - reserve - others: workers with 20 that fit:", budget, "- that started:", workers)

# %% [markdown]
# ## 3. How large should the pool be?
#
# N clients want queries of S seconds, and there are K connections. While queries wait inside Postgres (for a disk, a lock, here `pg_sleep`), min(K, N)/S of them finish per second, until the processors of client and server are busy. A query that *computes* needs a core: beyond the number of cores more connections only share it.

# %% tags=["predict"]
size_guess = predict("05.3", "A report needs S of processor time in Postgres, and waits for nothing. 64 clients want it. The pool grows from two connections per core to 64. Throughput?", {
    "a": "It grows with the pool: bigger pool = faster.",
    "b": "It stays at what the cores can do, cores/S.",
    "c": "It falls to half: the processes disturb each other.",
}, guess="")

# %% tags=["experiment"]
async def throughput(pool: asyncpg.Pool, query: str, clients: int = 64, seconds: float = 0.08) -> float:
    start, ends = time.perf_counter(), []
    async def client() -> None:
        while True:
            async with pool.acquire() as connection:  # as pool.fetchval does; but who gets one too late sends nothing
                if time.perf_counter() > start + seconds: return
                await connection.fetchval(query)
                ends.append(time.perf_counter())
    await asyncio.gather(*[client() for _ in range(clients)])
    return len(ends) / (ends[-1] - start)

# %% tags=["experiment"]
WAITS, COMPUTES, WAIT_S = "SELECT pg_sleep(0.01)", "SELECT count(*) FROM generate_series(1, 60000)", 0.01
SIZES, CORES, few, many, computed = (1, 2, 4, 8, 16, 32, 64), psutil.cpu_count(), {}, {}, {}
for size in SIZES:
    async with asyncpg.create_pool(postgres.url, min_size=size, max_size=size) as pool:
        many[size] = [await throughput(pool, WAITS) for _ in range(2)]
        few[size] = [await throughput(pool, WAITS, clients=8) for _ in range(2)]
        if size not in (8, 32): computed[size] = [await throughput(pool, COMPUTES) for _ in range(2)]
        if size == 64: ceiling = max([await throughput(pool, "SELECT pg_sleep(0.00001)") for _ in range(3)])  # the same work, hardly a wait
async with asyncpg.create_pool(postgres.url) as pool, pool.acquire() as connection:
    compute_s = await probes.process_seconds(connection.get_server_pid(), connection.executemany(f"{COMPUTES} WHERE $1", [(True,)] * 25)) / 25

# %% tags=["figure"]
laws = [[min(K / WAIT_S, ceiling) for K in SIZES], [min(K, 8) / WAIT_S for K in SIZES], [min(K, CORES) / compute_s for K in computed]]
figure, (left, right) = new_figure(columns=2, height=3.9)
figures.pool_curve(left, SIZES, {"64 clients": (list(many.values()), laws[0]), "8 clients": (list(few.values()), laws[1])}, formula="min(K, N)/S, ceiling",
                   regimes={"the pool limits: K/S": (1.1, 900), "processors limit": (6, 1.3 * ceiling), "clients limit: N/S": (10, 480)})
figures.pool_curve(right, list(computed), {"64 clients": (list(computed.values()), laws[2])}, formula="min(K, cores)/S", regimes={"the cores limit": (3, 1.15 * laws[2][-1])})
left.set(title="Do more connections help a query that waits 10 ms?", yscale="log", ylim=(25, 3 * ceiling))
right.set(title="... and one that computes?", ylabel="", ylim=(0, 1.7 * laws[2][-1]))
show(figure, alt="Two panels against the connections K. Queries that wait: throughput grows as K/S until the processors are busy; with 8 clients it is flat from K = 8 on. Queries that compute: flat from the number of cores on.")
assert all(max(many[K] + few[K]) > 0.6 * K / WAIT_S for K in (1, 2, 4, 8)) and max(many[64]) / 64 < max(many[8]) / 8
assert all(max(computed[K]) <= 1.5 * min(K, CORES) / compute_s for K in computed)
size_guess.settle("a" if max(computed[64]) > 2 * CORES / compute_s else "b" if max(computed[64]) > max(computed[2]) / 2 else "c", "never over 1.5 cores/S, with any K; but queries that wait reach over 0.6 K/S up to 8 connections")

# %% [markdown]
# ## 4. How long is the line?
#
# Requests come at random, lam per second, and hold a connection for S = 1/mu on average: a load of rho = lam S/K. Even below 1 some wait, because they come in bunches. *Erlang C* is the mean wait: Wq = C(K, a)/(K mu - lam), with a = lam S, and C the chance to wait.

# %% tags=["predict"]
wait_guess = predict("05.4", "All connections of an asyncpg pool are lent, and stay so. What does pool.acquire() do?", {
    "a": "It fails at once: the pool is exhausted.",
    "b": "It fails after a timeout, such as 30 s.",
    "c": "It waits, for ever if need be.",
}, guess="")

# %% tags=["experiment"]
async with asyncpg.create_pool(postgres.url, min_size=1, max_size=1) as pool, pool.acquire():
    _, line = await asyncio.wait([asyncio.ensure_future(pool.acquire())], timeout=0.2)
    default = inspect.signature(asyncpg.Pool.acquire).parameters["timeout"].default
    wait_guess.settle("c" if line and default is None else "b" if line else "a", f"still waiting after 0.2 s, and the default is timeout={default}")
    for waiter in line: waiter.cancel()
async with psycopg_pool.AsyncConnectionPool(postgres.url, min_size=1, max_size=1, timeout=0.1, max_waiting=1, open=False) as pool:
    async with pool.connection() as connection: await connection.execute("SET application_name = 'mine'")
    async with pool.connection() as connection:
        inherited = await (await connection.execute("SHOW application_name")).fetchone()
        errors = await asyncio.gather(pool.getconn(), pool.getconn(), return_exceptions=True)
        print("psycopg's pool, timeout=0.1, max_waiting=1:", *[type(error).__name__ for error in errors], "- counted by itself:", pool.get_stats()["requests_errors"])
        print("it resets nothing: the next borrower inherits", *inherited, "- a loan is a transaction:", connection.info.transaction_status.name)

# %% tags=["experiment"]
POOL, HOLD_S, RHOS = 4, 0.01, (0.5, 0.7, 0.85)
async def load_and_wait(take, use, rho: float, seconds: float, seed: int, due: float = 0.0) -> tuple[float, float]:  # rho, as it was; mean wait (ms)
    dice, loop, waits, held, start = random.Random(seed), asyncio.get_running_loop(), [], [], asyncio.get_running_loop().time()
    async def request(asked: float, hold_s: float) -> None:
        async with take() as connection:
            waits.append((got := loop.time()) - asked)
            await use(connection, hold_s)
        held.append(loop.time() - got)  # with the reset
    async with asyncio.TaskGroup() as group:
        while (due := due + dice.expovariate(rho * POOL / HOLD_S)) < seconds:
            await asyncio.sleep(start + due - loop.time()); group.create_task(request(loop.time(), dice.expovariate(1 / HOLD_S)))
    return sum(held) / (POOL * seconds), 1000 * statistics.fmean(waits)

# %% tags=["experiment"]
def first_free(rho: float, seconds: float, due: float = 0.0) -> float:  # the same requests without a loop, so that there may be many
    dice, free, waits = random.Random(1), [0.0] * POOL, []
    while (due := due + dice.expovariate(rho * POOL / HOLD_S)) < seconds:
        waits.append(max(0.0, free[0] - due))
        heapq.heapreplace(free, due + waits[-1] + dice.expovariate(1 / HOLD_S))
    return 1000 * statistics.fmean(waits)
def erlang_ms(rho: float) -> float: return 1000 * theory.erlang_c_mean_wait(rho * POOL / HOLD_S, HOLD_S, POOL)
by_loop = [simulate(load_and_wait, lambda permits=asyncio.Semaphore(POOL): permits, lambda _, hold_s: asyncio.sleep(hold_s), rho, 6, 1)[1] for rho in RHOS]
by_simulation = [first_free(rho, 600) for rho in RHOS]
print("tasks and a semaphore on the virtual clock wait as `first_free` says:", all(math.isclose(a, first_free(rho, 6), rel_tol=1e-6) for a, rho in zip(by_loop, RHOS)))
for rho, wait in zip(RHOS, by_simulation): print(f"rho = {rho:.2f}: mean wait in 600 s over Erlang C: {wait / erlang_ms(rho):.2f}, within 10 %: {abs(wait / erlang_ms(rho) - 1) < 0.1}")

# %% tags=["figure"]
async def measured(rho: float, seed: int) -> tuple[float, float]:
    async with asyncpg.create_pool(postgres.url, min_size=POOL, max_size=POOL) as pool:
        return await load_and_wait(pool.acquire, lambda connection, hold_s: connection.execute("SELECT pg_sleep($1)", hold_s), rho, 0.6, seed)
real = [await asyncio.gather(*[measured(rho, seed) for seed in (1, 2, 3)]) for rho in RHOS]  # three pools at once
(figure, axes), line, middle = new_figure(height=3.4), np.linspace(0.3, 0.97, 100), [np.median(runs, axis=0)[1] for runs in real]
axes.semilogy(line, [erlang_ms(rho) for rho in line], "--", color=figures.THEORY, label="theory: Wq = C(K, a)/(K mu - lam)")
axes.plot(RHOS, by_simulation, "D", color=figures.OTHER, markersize=9, label="simulated, 600 s")
_ = [axes.plot(*zip(*runs), marker, color=figures.MEASURED, label=f"asyncpg, 0.6 s each, sent for rho = {rho}") for rho, runs, marker in zip(RHOS, real, "o^s")]
axes.set(title="How long is the wait for one of 4 connections?", xlabel="load rho = lam S/K, as it was in that run", ylabel="mean wait (ms, logarithmic)", xlim=(0.3, 1.1))
axes.legend(loc="lower right"); show(figure, alt="Mean wait against load, logarithmic. The simulated points lie on the line of Erlang C, which turns up steeply towards 1. Short runs with the real pool scatter around it, further right than they were sent for, because each loan also pays for round trip and reset.")
print("the same code over a real pool, waits grow with the load:", middle == sorted(middle))

# %% [markdown]
# ## Try it
#
# The same pool on the virtual clock. The curve is the share of requests that wait longer than t; the line is C e^(-(K mu - lam) t). Take one connection away. Let the load pass what the pool can do. Then let all queries take the same time, which about halves the wait.

# %% tags=["widget", "nbval-ignore-output"]
async def waits(pool: int, rate: float, hold_s: float, vary: bool) -> list[float]:
    dice, permits, loop, seen = random.Random(1), asyncio.Semaphore(pool), asyncio.get_running_loop(), []
    async def request(asked: float) -> None:
        async with permits: seen.append(loop.time() - asked); await asyncio.sleep(hold_s * (dice.expovariate(1) if vary else 1))
    async with asyncio.TaskGroup() as group:
        for _ in range(4000): group.create_task(request(loop.time())); await asyncio.sleep(dice.expovariate(rate))
    return seen
def line_for(pool: int, per_second: int, hold_ms: int, vary: bool) -> None:
    figure, axes = new_figure(height=3.4)
    figures.wait_survival(axes, simulate(waits, pool, per_second, hold_ms / 1000, vary), rate=per_second, service_time=hold_ms / 1000, servers=pool)
    show(figure, alt=f"Share of requests that wait longer than t, for {pool} connections and {per_second} requests per second of {hold_ms} ms each.")
_ = widgets.interact(line_for, pool=widgets.IntSlider(5, 1, 16), per_second=widgets.IntSlider(300, 50, 600, 50), hold_ms=widgets.IntSlider(12, 2, 30, 2), vary=True)

# %% [markdown]
# ## 5. One connection inside another
#
# A handler holds a connection and calls a function that takes a second one. Each passes its own test. Under load, every task holds one and waits for another: a *deadlock*, while no query runs. If n tasks need d connections each, one by one, a pool of K is safe when n(d - 1) + 1 ≤ K.

# %% tags=["predict"]
nested_guess = predict("05.5", "Each request holds one connection and asks for a second. The pool has 5. How do 4 requests at once fare? How do 5?", {
    "a": "4 succeed. 5 take a little longer: one waits its turn.",
    "b": "4 succeed. Of 5, one fails: it is one connection short.",
    "c": "4 succeed. Of 5 none does, and asyncpg raises, because the pool is exhausted.",
    "d": "4 succeed. Of 5 none does, and asyncpg waits forever.",
}, guess="")

# %% tags=["experiment"]
async def request(pool, depth: int, all_here: asyncio.Barrier | None = None) -> None:
    async with pool.acquire() as connection:  # first the handler's, then the repository's, then the audit log's
        _ = await connection.fetchval("SELECT 1"), all_here and await all_here.wait()  # the worst case: each has one
        if depth > 1: await request(pool, depth - 1)

async def succeed(pool, tasks: int, depth: int) -> int:
    meetings = [asyncio.Barrier(min(tasks, pool.get_size()))] * tasks
    running = {asyncio.create_task(request(pool, depth, all_here)) for all_here in meetings}
    while running:
        finished, running = await asyncio.wait(running, timeout=0.3, return_when=asyncio.FIRST_COMPLETED)
        if not finished: break  # all are cancelled together, for the first to give up would free the others
    _ = [task.cancel() for task in running], await asyncio.gather(*running, return_exceptions=True)
    return tasks - len(running)

# %% tags=["figure"]
TASKS, POOLS, grid = range(1, 9), {2: 5, 3: 13}, np.linspace(0.5, 8.5, 400)  # POOLS: depth d and size K
async def sweep(depth: int, size: int) -> list[int]:
    async with asyncpg.create_pool(postgres.url, min_size=size, max_size=size) as pool:
        return [await succeed(pool, tasks, depth) for tasks in TASKS]
done = dict(zip(POOLS, await asyncio.gather(*[sweep(*pair) for pair in POOLS.items()])))
figure, panels = new_figure(height=3.2, columns=2, sharey=True)
for axes, (d, K) in zip(panels, POOLS.items()):
    axes.plot(grid, 100 * (np.round(grid) * (d - 1) + 1 <= K), "--", color=figures.THEORY, label="theory: n(d - 1) + 1 ≤ K")
    axes.plot(TASKS, 100 * np.divide(done[d], TASKS), "o", color=figures.MEASURED, label="measured")
    axes.set(title=f"How many get {d} of {K} connections each?", xlabel="requests at once, n", ylabel="succeed (%)" if d == 2 else "")
_ = panels[1].legend(loc="lower left"), panels[0].text(6.5, 8, "deadlock", ha="center"), panels[1].text(7.5, 8, "deadlock", ha="center")
show(figure, alt="Share of requests that succeed against requests at once, for two pools, on the theory's step: 100 % up to 4 and up to 6, then 0.")

# %% tags=["experiment"]
assert all(count == n * (n * (d - 1) + 1 <= POOLS[d]) for d in POOLS for n, count in zip(TASKS, done[d])), done
async def request_with(connection, depth: int) -> None:  # repository and audit log take a connection, not the pool
    await connection.fetchval("SELECT 1")
    if depth > 1: await request_with(connection, depth - 1)
async def handle(pool, depth: int) -> None:
    async with pool.acquire() as connection: await request_with(connection, depth)  # acquired here, and nowhere else
async with asyncpg.create_pool(postgres.url, min_size=5, max_size=5) as pool:
    passed_down = (await asyncio.gather(*[handle(pool, 3) for _ in range(50)])).count(None)
limit = inspect.signature(asyncpg.Pool.acquire).parameters["timeout"].default
letter = {5: "a", 4: "b"}.get(done[2][4], "d" if limit is None else "c")
nested_guess.settle(letter, f"succeeded: {done[2][3]} of 4, {done[2][4]} of 5. The default is acquire(timeout={limit})")
print("with one connection, passed down, on a pool of 5 succeed, of 50 at once:", passed_down)

# %% [markdown]
# ## 6. How long do you hold it?
#
# What you hold nobody else has. By Little's law (chapter 02), λ requests a second that hold a connection for h seconds keep λh connections busy. All that you await inside the block counts, the slow call to another service too: for Postgres the connection is idle, for your pool it is gone.

# %% tags=["predict"]
hold_guess = predict("05.6", "A query of 5 ms, then an HTTP call of 45 ms. How many connections serve 100 such requests a second, "
                     "with the call inside `async with pool.acquire()`, and with it after the block?", {
    "a": "One, and one: while a task awaits HTTP, its connection is free for others.",
    "b": "Five, and one.",
    "c": "Five, and five: a request takes 50 ms either way.",
    "d": "100, and 100: one each.",
}, guess="")

# %% tags=["experiment"]
QUERY_S, CALL_S, REQUESTS, SIZES = 0.005, 0.045, 10, (1, 2, 5, 10)
async def one_request(pool, inside: bool) -> None:
    async with pool.acquire() as connection:
        await connection.execute(f"SELECT pg_sleep({QUERY_S})")
        if inside: await asyncio.sleep(CALL_S)  # the HTTP call
    if not inside: await asyncio.sleep(CALL_S)

async def batch_ms(size: int, inside: bool) -> list[float]:  # until the last of 10 requests is answered; twice
    async with asyncpg.create_pool(postgres.url, min_size=size, max_size=size) as pool:
        return [1000 * await probes.seconds(asyncio.gather(*[one_request(pool, inside) for _ in range(REQUESTS)])) for _ in range(2)]

# %% tags=["figure"]
runs = [await asyncio.gather(batch_ms(size, True), batch_ms(size, False)) for size in SIZES]
(figure, axes), (inside, after), waves = new_figure(height=3.2), zip(*runs), np.ceil(REQUESTS / np.array(SIZES))
figures.measured_against_theory(axes, SIZES, inside, 50 * waves, formula="50 ⌈N/K⌉", label="call inside: held 50 ms")
figures.measured_against_theory(axes, SIZES, after, 5 * waves + 45, formula="5 ⌈N/K⌉ + 45", label="call after it: held 5 ms", color=figures.BLOCKED, marker="s")
_ = axes.axhline(100, color=figures.OTHER, linestyle=":"), axes.text(3.4, 106, "100 a second", color=figures.OTHER, ha="center")
axes.set(title="10 requests at once: when is the last one answered?", xlabel="connections in the pool, K", ylabel="time (ms)", xticks=SIZES, ylim=(0, None))
_ = axes.legend()
show(figure, alt="Time of ten requests against the size of the pool. With the call inside it falls from 500 ms to 50 ms, and passes 100 ms at five connections; with the call after the block it is about 100 ms with one.")
above = all(min(runs) > 0.98 * law for all_runs, laws in ((inside, 50 * waves), (after, 5 * waves + 45)) for runs, law in zip(all_runs, laws))
print("no point below its line, which leaves out the round trips and the reset of each loan:", above)
ratio = min(inside[0]) / min(after[0])
hold_guess.settle("b" if ratio > 2.5 else "a" if min(inside[0]) < 250 else "c", f"with one connection, over twice as fast with the call after the block: {ratio > 2}")

# %% [markdown]
# ## 7. A hundred queries, or one?
#
# *N+1*: one query gives N ids, then follows a query for each. `gather` makes them concurrent, not few, and each sees a *snapshot* of its own: what was committed when it began. Only one statement, or one transaction at REPEATABLE READ, sees one state of the world. First, an endpoint as it is often written.

# %% tags=["predict"]
many_guess = predict("05.7", "100 accounts are read by 100 gathered queries on a pool of 10, or by one query with = ANY. "
                     "Meanwhile money moves between accounts. How much slower are the 100, and is their total right?", {
    "a": "As fast, and right: they run at the same time, and each transfer is a transaction.",
    "b": "Over 5 times slower, and right: Postgres is consistent.",
    "c": "As fast, and wrong.",
    "d": "Over 5 times slower, and wrong.",
}, guess="")

# %% tags=["experiment"]
async def concurrent_database(pool, ids: list[int]) -> dict:
    rows = await asyncio.gather(*[pool.fetchrow("SELECT * FROM users WHERE id = $1", each) for each in ids], return_exceptions=True)
    good = [row for row in rows if not isinstance(row, Exception)]
    return {"total": len(ids), "successful": len(good), "results": [row and dict(row) for row in good]}

USERS = """CREATE TABLE users (id int PRIMARY KEY, name text, email text, password_hash text, balance int);
INSERT INTO users SELECT id, 'user' || id, id || '@example.com', md5('secret' || id), 100 FROM generate_series(1, {count}) id"""
async with asyncpg.create_pool(postgres.fresh_database("people"), min_size=10) as pool:
    _ = await pool.execute(USERS.format(count=50))
    answer = await concurrent_database(pool, [*range(1, 101), 2**40])  # 50 that exist, 50 that do not, one that cannot
nulls = answer["results"].count(None)
print(f"of {answer['total']}, successful: {answer['successful']}, of which null: {nulls}. Errors: not told. Sent out:", *answer["results"][0])

# %% tags=["experiment"]
ACCOUNTS = list(range(1, 101))
async def gathered(pool) -> int:
    return sum(await asyncio.gather(*[pool.fetchval("SELECT balance FROM users WHERE id = $1", each) for each in ACCOUNTS]))

async def one_query(pool) -> int:  # names its columns, tells missing rows from found ones, and lets errors out
    balances = {row["id"]: row["balance"] for row in await pool.fetch("SELECT id, balance FROM users WHERE id = ANY($1::int[])", ACCOUNTS)}
    return sum(balances[each] for each in ACCOUNTS)

async def one_snapshot(pool) -> int:  # for what does not fit into one statement
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        return sum([await connection.fetchval("SELECT balance FROM users WHERE id = $1", each) for each in ACCOUNTS])

# %% tags=["experiment"]
async def move_money(pool) -> None:  # from one account to another, in one statement: the total never changes
    while True:
        pair, amount = random.sample(ACCOUNTS, 2), random.randint(1, 99)
        await pool.execute("UPDATE users SET balance = balance + CASE id WHEN $1 THEN -$3::int ELSE $3 END WHERE id IN ($1, $2)", *pair, amount)

async def watch(connection) -> None:
    await connection.fetch("SELECT $1::int[]", [])  # on each connection, the first array costs a look into the catalogue
    connection.add_query_logger(lambda sent: statements.append(sent.query))

async def measure(read, pool) -> tuple[int, int, float]:  # wrong totals of 10, statements sent and seconds for one reading
    start, _ = time.perf_counter(), statements.clear()
    totals = [await read(pool) for _ in range(10)]
    return sum(total != 10_000 for total in totals), len(statements) // 10, (time.perf_counter() - start) / 10

# %% tags=["experiment"]
statements, bank, rows = [], postgres.fresh_database("bank"), {}
async with asyncpg.create_pool(bank, min_size=10, init=watch) as pool, asyncpg.create_pool(bank, min_size=1) as others:
    _, moving = await others.execute(USERS.format(count=100)), asyncio.create_task(move_money(others))
    rows = {read: await measure(read, pool) for read in (gathered, one_query, one_snapshot)}
    _ = moving.cancel(), await asyncio.wait([moving])
for read, (wrong, sent, _) in rows.items():
    print(f"{read.__name__:12s} statements sent: {sent:3d}; of 10 totals wrong: {'over half' if wrong > 5 else wrong}")
slower, is_wrong = rows[gathered][2] / rows[one_query][2], rows[gathered][0] > 5
assert moving.cancelled() and rows[one_query][:2] == (0, 2) and rows[one_snapshot][0] == 0, rows
letter = {(False, False): "a", (True, False): "b", (False, True): "c"}.get((slower > 5, is_wrong), "d")
many_guess.settle(letter, "and the pool sends a reset after each use of a connection")
score("05 100 gathered queries over one query", slower, "times")

# %% tags=["experiment"]
MANY = "SELECT id, 'user' || id AS name, md5(id::text) AS email, id % 2 = 0 AS active, now() AS seen FROM generate_series(1, 6000) id"
async def fetch_all(connection) -> None:  # and what FastAPI does to a list of dicts without a response model
    json.dumps(jsonable_encoder([dict(row) for row in await connection.fetch(MANY)]))

async def cursor(connection) -> None:
    async with connection.transaction():  # without it: NoActiveSQLTransactionError
        async for row in connection.cursor(MANY, prefetch=100):
            json.dumps(dict(row), default=str)  # one part of a streaming response

async def copy(connection) -> None:
    async def send(part: bytes) -> None: await asyncio.sleep(0)
    await connection.copy_from_query(MANY, output=send, format="csv")

# %% tags=["figure"]
(figure, panels), lag_ms, peak_mb = new_figure(height=2.4, columns=2), {}, {}
async with asyncpg.create_pool(postgres.url, min_size=1) as pool, pool.acquire() as connection:
    for way, name in ((fetch_all, "fetch, encoder"), (cursor, "cursor, 100 rows"), (copy, "COPY as CSV")):
        lag_ms[name] = min([max(late for _, late in await probes.lag_beside(lambda: way(connection), margin=0.02)) for _ in range(2)])
        with probes.traced_memory() as memory: await way(connection)
        peak_mb[name] = memory.peak / 1e6
for axes, values, unit, title in zip(panels, (lag_ms, peak_mb), ("ms", "MB"), ("How long is the loop held?", "How much memory, at most?")):
    figures.bars(axes, values, unit=unit, digits=1)
    axes.set(title=title, xlabel=f"{unit}, for 6000 rows")
show(figure, alt="For 6000 rows, fetch with the encoder holds the loop much longer than a cursor or COPY, and takes megabytes where they take little.")
assert all(lag_ms["fetch, encoder"] > 3 * lag_ms[way] and peak_mb["fetch, encoder"] > 3 * peak_mb[way] for way in [*lag_ms][1:]), (lag_ms, peak_mb)

# %% [markdown]
# ## 8. Every wait has a limit
#
# A request waits for a connection, for its query, for the network. Each wait needs a limit, and together they must fit into the time that the caller gives: one *budget*. Who gets no connection soon answers 503: better now than too late. Which of these limits is the one for the pool?

# %% tags=["predict"]
limit_guess = predict("05.8", "All connections of an asyncpg pool are held. What gives up after its 0.3 s?", {
    "a": "A fetchval of create_pool(..., timeout=0.3).",
    "b": "A fetchval of create_pool(..., command_timeout=0.3).",
    "c": "pool.fetchval(query, timeout=0.3).",
    "d": "pool.acquire(timeout=0.3).",
    "e": "All four, each in its way.",
}, guess="")

# %% tags=["experiment"]
async def given_up(calls: dict) -> dict[str, str]:
    tasks = {name: asyncio.ensure_future(call) for name, call in calls.items()}
    done, waiting = await asyncio.wait(tasks.values(), timeout=0.6)
    _ = [task.cancel() for task in waiting], await asyncio.gather(*waiting, return_exceptions=True)
    return {name: type(task.exception()).__name__ for name, task in tasks.items() if task in done}

a, b = [asyncpg.create_pool(postgres.url, min_size=1, max_size=1, **limit) for limit in ({"timeout": 0.3}, {"command_timeout": 0.3})]
async with a, b, a.acquire(), b.acquire():
    ended = await given_up({"a": a.fetchval("SELECT 1"), "b": b.fetchval("SELECT 1"), "c": b.fetchval("SELECT 1", timeout=0.3), "d": a.acquire(timeout=0.3)})
limit_guess.settle("e" if len(ended) == 4 else min(ended), f"gave up: {ended}. The others limit connecting, or a query that has a connection")

# %% tags=["experiment"]
# %%module report_api
import asyncpg, contextlib, fastapi, os
@contextlib.asynccontextmanager
async def lifespan(app: fastapi.FastAPI):  # a connection within 0.1 s, an answer within 500 ms: below what our caller waits
    async with asyncpg.create_pool(os.environ["SHOP_URL"], max_size=2, min_size=2, server_settings={"statement_timeout": "500"}) as app.state.pool: yield
app = fastapi.FastAPI(lifespan=lifespan)
@app.get("/report/{seconds}")
async def report(seconds: float) -> str:
    try: connection = await app.state.pool.acquire(timeout=0.1)  # around acquire only, not around the query
    except TimeoutError: raise fastapi.HTTPException(503, "busy", {"Retry-After": "1"}) from None
    try: return await connection.fetchval("SELECT 'done' || pg_sleep($1)", seconds)
    except asyncpg.QueryCanceledError: raise fastapi.HTTPException(504, "too slow") from None  # what statement_timeout raises
    finally: await app.state.pool.release(connection)

# %% tags=["experiment"]
import report_api
os.environ["SHOP_URL"], answers = postgres.url, []  # not a line of the source: there its password would be, too
with serve(report_api.app, in_process=True) as server:
    async with aiohttp.ClientSession(server.url) as session:
        async def ask(seconds: float) -> None:
            async with session.get(f"/report/{seconds}") as answer: answers.append(answer.status)
        _ = await asyncio.gather(*[ask(0.3) for _ in range(12)]), await ask(9)
print("2 connections, 12 reports at once, then one that is too slow. Answers in their order:", answers)
async with asyncpg.create_pool(postgres.url, min_size=2, command_timeout=0.3) as pool:
    too_slow = ("SELECT pg_sleep(9)", "SET statement_timeout = 100; SELECT pg_sleep(9)")
    errors = await asyncio.gather(*map(pool.execute, too_slow), return_exceptions=True)
print("command_timeout ends it from here:", type(errors[0]).__name__, "- statement_timeout, in Postgres, even if we are gone:", type(errors[1]).__name__)

# %% tags=["experiment"]
TWO_LOOPS = f"""import asyncio, asyncpg
async def fixture(): return await asyncpg.create_pool("{postgres.url}", min_size=1, max_size=1)
async def test(pool): return await pool.fetchval("SELECT 'passed'")
session_loop, test_loop = asyncio.new_event_loop(), asyncio.new_event_loop()  # pytest-asyncio: loop_scope of fixture and test
for loop in (test_loop, session_loop):
    pool = session_loop.run_until_complete(fixture())
    try: print("the fixture's own loop:" if loop is session_loop else "another loop:", loop.run_until_complete(test(pool)))
    except asyncpg.InterfaceError as error: print(error, "- because:", str(error.__context__)[-28:])
    pool.terminate()
"""
print((await run_script(TWO_LOOPS)).strip())

# %% [markdown]
# ## 9. A job that survives
#
# `BackgroundTasks` live in the memory of one process. An *outbox* is a table: the request adds a row, in the transaction of its order, and answers 202. A worker claims a row with `FOR UPDATE SKIP LOCKED`, which passes over rows that others hold, and marks it done in the same transaction as its effect.

# %% tags=["predict"]
job_guess = predict("05.9", "Ten jobs of each kind are accepted with 202. Two workers have begun one each. Then kill -9, and a restart. "
                    "How many are done, and how often?", {
    "a": "All twenty, once each: 202 means accepted.",
    "b": "The ten in the table, but the two that had begun twice, or never.",
    "c": "The ten in the table, once each, and none of the BackgroundTasks.",
    "d": "Eight of the ten in the table: who was begun is still claimed.",
}, guess="")

# %% tags=["experiment"]
# %%module outbox
import asyncio, os
CLAIM = "SELECT id FROM jobs WHERE NOT done ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
async def send_mail(db, kind: str, number: int) -> None:  # the effect, here a row in Postgres
    await asyncio.sleep(float(os.environ["MAIL_S"]))
    await db.execute("INSERT INTO mails VALUES ($1, $2)", kind, number)
async def work(pool) -> None:  # until it is cancelled
    while True:
        async with pool.acquire() as connection, connection.transaction():  # open while the job runs: for short jobs
            if job := await connection.fetchval(CLAIM):
                await send_mail(connection, "outbox", job)
                await connection.execute("UPDATE jobs SET done = true WHERE id = $1", job)
        await asyncio.sleep(0 if job else 0.02)  # LISTEN and NOTIFY would save the asking

# %% tags=["experiment"]
# %%module jobs_api
import asyncio, asyncpg, contextlib, fastapi, os, outbox
@contextlib.asynccontextmanager
async def lifespan(app: fastapi.FastAPI):
    async with asyncpg.create_pool(os.environ["JOBS_URL"], min_size=3) as app.state.pool, asyncio.TaskGroup() as group:
        workers = [group.create_task(outbox.work(app.state.pool)) for _ in range(2)]
        yield
        _ = [worker.cancel() for worker in workers]
app = fastapi.FastAPI(lifespan=lifespan)
@app.post("/outbox", status_code=202)
async def submit() -> int: return await app.state.pool.fetchval("INSERT INTO jobs DEFAULT VALUES RETURNING id")
@app.post("/background", status_code=202)
async def submit_task(tasks: fastapi.BackgroundTasks) -> None: tasks.add_task(outbox.send_mail, app.state.pool, "background", 0)

# %% tags=["experiment"]
os.environ["JOBS_URL"] = postgres.fresh_database("jobs")
JOBS = "CREATE TABLE jobs (id int GENERATED ALWAYS AS IDENTITY, done bool DEFAULT false); CREATE TABLE mails (kind text, number int)"
UNCLAIMED = "SELECT count(*) FROM (SELECT FROM jobs WHERE NOT done FOR UPDATE SKIP LOCKED) AS rows_that_are_free"
async def until(pool, question: str, wanted: int, within_s: float = 10) -> None:  # Postgres gives that answer
    async with asyncio.timeout(within_s):
        while await pool.fetchval(question) != wanted: await asyncio.sleep(0.02)

async def accept_jobs(url: str) -> Counter:
    async with aiohttp.ClientSession(url) as session:
        async def post(path: str) -> tuple[str, int]:
            async with session.post(path) as answer: return path, answer.status
        return Counter(await asyncio.gather(*map(post, 10 * ["/outbox", "/background"])))

# %% tags=["experiment"]
async with asyncpg.create_pool(os.environ["JOBS_URL"], min_size=1) as pool:
    _, os.environ["MAIL_S"] = await pool.execute("DROP TABLE IF EXISTS jobs, mails;" + JOBS), "60"  # the mail server hangs
    with serve("jobs_api:app") as server:
        accepted = await accept_jobs(server.url)
        await until(pool, UNCLAIMED, 8)  # two workers hold one row each, and not the same
        psutil.Process(server.pid).kill()  # SIGKILL: no handler, no finally, no shutdown runs
    await until(pool, UNCLAIMED, 10)  # Postgres saw the connections end, and undid both transactions
    os.environ["MAIL_S"] = "0.02"  # the mail server is well again
    with serve("jobs_api:app"):
        await until(pool, "SELECT count(*) FROM jobs WHERE done", 10)
    mails = {kind: rest for kind, *rest in await pool.fetch("SELECT kind, count(*), count(DISTINCT number) FROM mails GROUP BY kind")}

# %% tags=["experiment"]
(sent, different), (survived, _) = mails.get("outbox", (0, 0)), mails.get("background", (0, 0))
print(f"accepted with 202: {accepted['/outbox', 202]} and {accepted['/background', 202]}. In progress at the kill: 2. After the restart, counted in Postgres:")
print(f"outbox: {sent} mails for {different} jobs, of 10; BackgroundTasks: {survived} of 10")
letter = {(10, 10, 0): "c", (10, 10, 10): "a", (8, 8, 0): "d"}.get((sent, different, survived), "b")
job_guess.settle(letter, "Postgres undoes what a dead client had not committed. A mail outside Postgres can go out twice: give it a key")

# %% tags=["experiment"]
async with asyncpg.create_pool(postgres.url, min_size=0, max_size=1) as pool:
    print("before:", await pool.fetchval("SELECT 'yes'"))
    postgres.kill()  # if it ever dies on you, this is how to go on
    (failure,) = await asyncio.gather(pool.fetchval("SELECT 1"), return_exceptions=True)
    print("with Postgres gone, the query fails:", isinstance(failure, (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)))
    try: postgres.url
    except RuntimeError as error: print(error)
    postgres = start_postgres(max_connections=100)
    print("same url, and the same pool connects again by itself:", await pool.fetchval("SELECT 'yes'"))

# %% [markdown]
# ## Spot the bug
#
# Which line? Decide, then run the proof. First, a transfer. Two of its lines are wrong:
#
# ```python
# 1  async with pool.acquire() as connection, connection.transaction():
# 2      await connection.execute("UPDATE accounts SET balance = balance - 10 WHERE id = 1")
# 3      await pool.execute("UPDATE accounts SET balance = balance + 10 WHERE id = 2")
# 4      await asyncio.gather(connection.execute(LOG), connection.execute(NOTIFY))
# ```
#
# Then a query that sometimes fails:
#
# ```python
# 1  connection = await pool.acquire()
# 2  rows = await connection.fetch(query)
# 3  await pool.release(connection)
# ```
#
# And one seat for each of two customers:
#
# ```python
# 1  async with connection.transaction():
# 2      seats = await connection.fetchval("SELECT seats FROM flight")
# 3      await connection.execute("UPDATE flight SET seats = $1", seats - 1)
# ```

# %% tags=["spot"]
async with asyncpg.create_pool(postgres.fresh_database("spot"), min_size=2) as pool:
    await pool.execute("CREATE TABLE accounts AS SELECT id, 100 AS balance FROM generate_series(1, 2) id")
    try:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("UPDATE accounts SET balance = balance - 10 WHERE id = 1")
            await pool.execute("UPDATE accounts SET balance = balance + 10 WHERE id = 2")  # another connection: no part of this
            both = await asyncio.gather(*[connection.execute("SELECT 1") for _ in range(2)], return_exceptions=True)
            raise both[1]
    except asyncpg.InterfaceError as error:
        print("line 4:", error)
        print("undone, but for line 3: balances", await pool.fetchval("SELECT array_agg(balance ORDER BY id) FROM accounts"))

# %% tags=["spot"]
async def leaky(pool) -> None:
    connection = await pool.acquire()
    await connection.fetch("SELECT 1 / 0")
    await pool.release(connection)  # not after an error: `async with`, or `finally`

async with asyncpg.create_pool(postgres.url, min_size=3, max_size=3) as pool:
    held = await asyncio.gather(*[leaky(pool) for _ in range(3)], return_exceptions=True)
    print("three errors later:", pool.get_idle_size(), "of", pool.get_size(), "connections left;", end=" ")
    try: await pool.acquire(timeout=0.1)
    except TimeoutError: print("the next request waits, forever if it sets no limit")
    pool.terminate()

# %% tags=["spot"]
async def book(pool, level: str, both_read: asyncio.Barrier) -> int:  # returns the number of attempts
    for attempt in itertools.count(1):
        with contextlib.suppress(asyncpg.SerializationError):  # 40001: undone as a whole, so the whole is tried again
            async with pool.acquire() as connection, connection.transaction(isolation=level):
                seats, _ = await connection.fetchval("SELECT seats FROM flight"), attempt > 1 or await both_read.wait()
                await connection.execute("UPDATE flight SET seats = $1", seats - 1)
            return attempt
for level in ("read_committed", "repeatable_read", "serializable"):
    async with asyncpg.create_pool(postgres.fresh_database("spot"), min_size=2) as pool:
        await pool.execute("CREATE TABLE flight AS SELECT 10 AS seats")
        attempts = sorted(await asyncio.gather(*[book(pool, level, both) for both in [asyncio.Barrier(2)] * 2]))
        print(f"{level}: attempts {attempts}, seats sold 2, seats left of 10: {await pool.fetchval('SELECT seats FROM flight')}")

# %% [markdown]
# ## Exercises
#
# 5.1 runs on your Postgres; the others on the virtual clock, with a pool that behaves as asyncpg's does.
#
# **5.1 One query for many rows.** Write `fetch_many`: the names of users, in the order of the ids. `users(id bigint, name text)` is a view of the exercise's own database.
#
# <details><summary>Hint 1</summary>A query for each id pays the way to the server each time. What can take all ids at once?</details>
# <details><summary>Hint 2</summary><code>WHERE id = any($1::bigint[])</code> takes one argument, a list. Rows come in any order, and a missing id has no row.</details>
# <details><summary>Hint 3</summary><code>names = {row["id"]: row["name"] for row in await pool.fetch(QUERY, ids)}</code></details>

# %% tags=["exercise", "check"]
async def fetch_many(pool, ids: list[int]) -> list[str | None]:
    """Return the name of each id, in the order of `ids`; an id may come twice; None for one without a row.

    One query, with one text for every list of ids, up to 40,000 of them. It reads no other rows.
    No ids is an empty list. Every connection goes back to the pool.
    """
    raise NotImplementedError

check("5.1", fetch_many)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
async def fetch_many_solution(pool, ids: list[int]) -> list[str | None]:
    rows = await pool.fetch("SELECT id, name FROM users WHERE id = any($1::bigint[])", ids)
    names = {row["id"]: row["name"] for row in rows}
    return [names.get(one) for one in ids]

check("5.1", fetch_many_solution)

# %% [markdown]
# **5.2 Acquire with a budget.** Write `with_connection`: run `work(connection)`, but wait no longer than `budget` seconds for a connection. A caller that gets `PoolBusy` answers 503 at once, instead of standing in a line that grows.
#
# <details><summary>Hint 1</summary>Three things happen: a wait, the work, the release. Which of them may the budget end?</details>
# <details><summary>Hint 2</summary>Only <code>acquire</code> gets the timeout. Everything after it stands in <code>try</code> and <code>finally</code>, outside of the <code>except</code> that turns TimeoutError into PoolBusy.</details>
# <details><summary>Hint 3</summary><code>try: connection = await pool.acquire(timeout=budget)</code>, <code>except TimeoutError: raise PoolBusy</code>, <code>finally: observe(loop.time() - start)</code>; then <code>try: return await work(connection)</code></details>

# %% tags=["exercise", "check"]
async def with_connection(pool, work, budget: float, observe):
    """Return what `await work(connection)` returns; its errors come out unchanged, a TimeoutError too.

    Raise PoolBusy when no connection came within `budget` seconds. A work that has begun is never cut.
    Call observe(seconds) once, with the wait for the connection, also when it was in vain. A cancelled
    call need not report.
    The connection goes back whatever happens: a value, an error, a cancellation at any await.
    """
    raise NotImplementedError

check("5.2", with_connection)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
async def with_connection_solution(pool, work, budget: float, observe):
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        connection = await pool.acquire(timeout=budget)
    except TimeoutError:
        raise PoolBusy(f"no connection within {budget} s") from None
    finally:
        observe(loop.time() - start)
    try:
        return await work(connection)
    finally:
        await pool.release(connection)

check("5.2", with_connection_solution)

# %% [markdown]
# **5.3 No nested acquire.** Write `order_total`. As it stood, each of its three reads acquired a connection while the caller held one. `shop.order(connection, number)` is a dict, `shop.items(connection, number)` a list, `shop.prices(connection, items)` a price for each; `shop.audit(number)` takes a second and needs no connection.
#
# <details><summary>Hint 1</summary>Five tasks hold one connection each and want another. Who gives one back?</details>
# <details><summary>Hint 2</summary>Acquire once, at the top, and pass the connection down. The audit needs none.</details>
# <details><summary>Hint 3</summary><code>async with pool.acquire() as connection, connection.transaction():</code> the three reads; after that block, <code>await shop.audit(number)</code></details>

# %% tags=["exercise", "check"]
async def order_total(pool, shop, number: int) -> dict:
    """Return the order with its key "total" added: the sum of the prices of its items.

    The three reads see one state of the data: one connection, one transaction. At most one connection
    per task at a time, none of them during the audit: 50 tasks finish on a pool of 5, without a lock.
    An error comes out. Whatever happens, the connection goes back.
    """
    raise NotImplementedError

check("5.3", order_total)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
async def order_total_solution(pool, shop, number: int) -> dict:
    async with pool.acquire() as connection, connection.transaction():
        order = await shop.order(connection, number)
        items = await shop.items(connection, number)
        prices = await shop.prices(connection, items)
    await shop.audit(number)
    return {**order, "total": sum(prices.values())}

check("5.3", order_total_solution)

# %% [markdown]
# **5.4 The size of a pool.** Write `pool_size`: the fewest connections with which 99 % of requests wait no longer than `target`. The check simulates your choice with lognormal holds. It allows one more than Erlang C asks for, and no less than one below.
#
# <details><summary>Hint 1</summary>Little's law says how many are busy on average. Why is that number, as a pool, a disaster?</details>
# <details><summary>Hint 2</summary><code>theory.erlang_c_wait_quantile(0.99, rate, hold, size)</code> is the wait that 99 % do not exceed. It needs size &gt; rate * hold.</details>
# <details><summary>Hint 3</summary><code>for size in range(math.floor(rate * hold) + 1, ceiling + 1):</code> return the first that holds the target.</details>

# %% tags=["exercise", "check"]
def pool_size(rate: float, hold: float, target: float, ceiling: int) -> int:
    """Return the number of connections for `rate` requests per second, each holding one for `hold` s on average.

    target: seconds that 99 % of the waits must not exceed. ceiling: the most connections that the
    database, a few for each of its cores, has for this pool.
    Raise ValueError when the ceiling is too low: a pool that does not fit must not look as if it did.
    """
    raise NotImplementedError

check("5.4", pool_size)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def pool_size_solution(rate: float, hold: float, target: float, ceiling: int) -> int:
    for size in range(math.floor(rate * hold) + 1, ceiling + 1):
        if theory.erlang_c_wait_quantile(0.99, rate, hold, size) <= target:
            return size
    raise ValueError(f"{ceiling} connections do not serve {rate:g} requests/s of {hold:g} s within {target:g} s")

check("5.4", pool_size_solution)

# %% [markdown]
# ## Recap
#
# | you will meet | what it costs (measured above) | do this instead |
# |---|---|---|
# | a connection per query | over 10 times a query on a living pool | a pool |
# | `pool.fetchval` in a loop | a second statement for each, the reset | `async with pool.acquire()` around the batch |
# | a pool in a dependency, for each request | 5 connections opened for one query; `TooManyConnectionsError` in a crowd | one pool, opened and closed by the lifespan |
# | `Depends` on an `@asynccontextmanager` function | a 500 for each request | the bare generator |
# | `global pool`, closed by whoever is done | the pools of the others leak; a neighbour's reads fail, and it says 200 | the lifespan closes what the lifespan opened |
# | `min_size` times workers | the next worker does not start | size x workers x replicas ≤ `max_connections` - reserve |
# | a bigger pool for queries that compute | nothing, beyond the cores of the server | about twice its cores, for all clients together |
# | a connection inside a connection | n(d - 1) + 1 > K: every request waits, and no query runs | pass the connection down |
# | an HTTP call inside the block | λ times the call, in connections | leave the block first |
# | two queries at once on one connection | `InterfaceError` (psycopg lets the second wait) | a connection for each, or one after the other |
# | `pool.execute` inside a transaction | it is not undone with the rest | `connection.execute` |
# | `acquire()` without `async with` | each error takes a connection out of the pool | `async with`, or `finally` |
# | a hundred gathered queries | over 5 times one query, in 200 statements; over half of the totals wrong | `= ANY($1::int[])`, or one REPEATABLE READ transaction |
# | `successful = not isinstance(row, Exception)` | 50 missing users count as successes, a failed query is not told | compare ids; let errors out |
# | `SELECT *` | the password hash leaves the house | name the columns, and the response model |
# | `fetch` without LIMIT, `jsonable_encoder` | the loop held over 3 times as long, over 3 times the memory | LIMIT; a cursor in a transaction; COPY |
# | `command_timeout`, or `timeout=` of `pool.fetchval`, for a full pool | neither ends the wait for a connection | `acquire(timeout=...)`, then 503 with `Retry-After` |
# | a time limit in the client only | none, if the client is gone: the query runs on (not measured here) | `statement_timeout` as well, a little shorter |
# | read, compute, write | one of two bookings lost | `SET seats = seats - 1`, or REPEATABLE READ and a retry on 40001 |
# | `BackgroundTasks` for what was promised | 0 of 10 survive a kill | an outbox and SKIP LOCKED: 10 of 10, once each |
# | a mail sent from a transaction | twice, if the kill comes before the commit (not measured here) | an idempotency key, as in chapter 03 |
# | a pool made in another loop, as in pytest | "attached to a different loop", or "another operation is in progress" | a pool per loop: a fixture in the loop of the test |
# | prepared statements behind PgBouncer's transaction mode | forbidden, many pages say; not since 1.21 (not measured here) | `max_prepared_statements`, on by default since 1.24; before that `statement_cache_size=0` |
# | the DSN with its password in the source, unused imports | everybody who reads the repository can log in | an environment variable; `ruff` |
#
# ### Take it with you
#
# ```python
# # jobs.py: a queue in a table. Use: DATABASE_URL=postgresql://... python jobs.py "first job" "second job"
# import asyncio
# import os
# import sys
#
# import asyncpg
#
# TABLE = """CREATE TABLE IF NOT EXISTS outbox
#     (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task text NOT NULL, done_at timestamptz)"""
# CLAIM = "SELECT id, task FROM outbox WHERE done_at IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
# LIMITS = {"timeout": 5, "command_timeout": 5, "server_settings": {"statement_timeout": "4000"}}  # s, s, ms
#
#
# async def do_one(pool: asyncpg.Pool) -> bool:
#     """Do the oldest job that nobody holds. False when there is none. A kill before the end undoes the claim."""
#     async with pool.acquire(timeout=1) as connection, connection.transaction():
#         job = await connection.fetchrow(CLAIM)
#         if job is not None:
#             print("doing", job["task"])  # the effect: in this transaction, or with an idempotency key
#             await connection.execute("UPDATE outbox SET done_at = now() WHERE id = $1", job["id"])
#     return job is not None
#
#
# async def main(tasks: list[str]) -> None:
#     async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=4, **LIMITS) as pool:
#         await pool.execute(TABLE)
#         await pool.executemany("INSERT INTO outbox (task) VALUES ($1)", [(task,) for task in tasks])
#         while await do_one(pool):
#             pass
#
#
# if __name__ == "__main__":
#     asyncio.run(main(sys.argv[1:]))
# ```
#
# ### Roads not taken
#
# SQLAlchemy brings its own pool. PgBouncer shares connections among processes. procrastinate, PgQueuer and DBOS are ready-made queues in Postgres. A job of minutes holds no transaction: it takes a *lease*, a column that says until when it is claimed.
#
# ### Further reading
#
# - [asyncpg: connection pools](https://magicstack.github.io/asyncpg/current/usage.html#connection-pools)
# - [psycopg: connection pools](https://www.psycopg.org/psycopg3/docs/advanced/pool.html)
# - [PostgreSQL: transaction isolation](https://www.postgresql.org/docs/current/transaction-iso.html), and [the locking clause, SKIP LOCKED](https://www.postgresql.org/docs/current/sql-select.html#SQL-FOR-UPDATE-SHARE)
# - [HikariCP: about pool sizing](https://github.com/brettwooldridge/HikariCP/wiki/About-Pool-Sizing)
# - [PgBouncer: configuration, max_prepared_statements](https://www.pgbouncer.org/config.html)
# - [The transactional outbox](https://microservices.io/patterns/data/transactional-outbox.html)
# - [procrastinate](https://procrastinate.readthedocs.io/), [PgQueuer](https://github.com/janbjorge/pgqueuer), [DBOS](https://docs.dbos.dev/)
#
# Next, chapter 06: the fastest query is the one not sent. What happens to this database when a cache forgets?

# %% tags=["cleanup"]
close_chapter()
