"""Right and wrong answers to the exercises of chapter 04.

Every wrong answer names the property that its check must report as missing. FastAPI reads the
annotations of routes inside functions, so this file does without `from __future__`.
"""

import asyncio
import contextlib
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import anyio
import anyio.to_thread
from answers.register import Register
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.background import BackgroundTask

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub
IS_AN_APP = "returns a FastAPI app"
NO_ERROR = "runs without an error"
NO_TASKS = "leaves no task behind"
NO_THREADS = "leaves no thread behind"


# --- 4.1 unblock it ------------------------------------------------------------------------------

LOOKED_UP = "answers with what lookup returns"
UNKNOWN = "a KeyError is a 404"
FREE_LOOP = "lookup never runs in the thread of the event loop"
HEALTHY = "/health answers while lookups wait"
ALL_FORTY = "40 lookups run at once"
NO_MORE = "no more than 40 threads"
EACH_ASKS = "each request asks lookup once"


@stub("4.1")
def make_app_stub(lookup):
    """Return a FastAPI app."""
    raise NotImplementedError


@stub("4.1")
def make_app_pass(lookup): ...


async def _healthy():
    return "ok"


def _shop(fetch, *, health=_healthy, lifespan=None):
    """An app whose /items/{item} awaits fetch(item), and knows what a KeyError is."""
    app = FastAPI(lifespan=lifespan)

    @app.get("/items/{item}")
    async def items(item: str):
        try:
            return await fetch(item)
        except KeyError:
            raise HTTPException(404) from None

    app.get("/health")(health)
    return app


@right("4.1")
def make_app(lookup):
    app = FastAPI()

    @app.get("/items/{item}")
    def items(item: str):
        try:
            return lookup(item)
        except KeyError:
            raise HTTPException(404) from None

    @app.get("/health")
    async def health():
        return "ok"

    return app


@right("4.1")
def make_app_to_thread(lookup):
    return _shop(functools.partial(anyio.to_thread.run_sync, lookup))


@right("4.1")
def make_app_in_a_dependency(lookup):
    app = FastAPI()

    def found(item: str):
        try:
            return lookup(item)
        except KeyError:
            raise HTTPException(404) from None

    @app.get("/items/{item}")
    async def items(value: Annotated[str, Depends(found)]):
        return value

    @app.get("/health")
    async def health():
        return {"healthy": True}

    return app


@right("4.1")
def make_app_own_pool_shut_down(lookup):
    """A bulkhead of the same size, ended with the app."""
    pool = ThreadPoolExecutor(40)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        with pool:
            yield

    return _shop(lambda item: asyncio.get_running_loop().run_in_executor(pool, lookup, item), lifespan=lifespan)


@right("4.1")
def make_app_exception_handler(lookup):
    """run_in_threadpool, and the 404 in a handler."""
    app = FastAPI(exception_handlers={KeyError: lambda request, error: PlainTextResponse("no such item", 404)})

    @app.get("/items/{item}")
    async def items(item: str):
        return JSONResponse(await run_in_threadpool(lookup, item))

    @app.get("/health")
    async def health():
        return None

    return app


@wrong("4.1", FREE_LOOP)
def make_app_async_def(lookup):
    async def fetch(item):
        return lookup(item)

    return _shop(fetch)


@wrong("4.1", FREE_LOOP)
def make_app_in_a_task(lookup):
    """A task is no thread."""

    async def fetch(item):
        await asyncio.sleep(0)
        return lookup(item)

    async def in_a_task(item):
        return await asyncio.create_task(fetch(item))

    return _shop(in_a_task)


@wrong("4.1", FREE_LOOP)
def make_app_async_dependency(lookup):
    app = FastAPI()

    async def found(item: str):
        return lookup(item)

    @app.get("/items/{item}")
    def items(value: Annotated[str, Depends(found)]):
        return value

    return app


@wrong("4.1", NO_MORE)
def make_app_pool_per_request(lookup):
    async def fetch(item):
        with ThreadPoolExecutor(1) as pool:
            return await asyncio.get_running_loop().run_in_executor(pool, lookup, item)

    return _shop(fetch)


@wrong("4.1", NO_MORE)
def make_app_thread_per_request(lookup):
    async def fetch(item):
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        outcome = []

        def work():
            try:
                outcome.append((lookup(item), None))
            except KeyError as error:
                outcome.append((None, error))
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=work).start()
        await done.wait()
        value, error = outcome.pop()
        if error:
            raise error
        return value

    return _shop(fetch)


@wrong("4.1", NO_MORE)
def make_app_1000_tokens(lookup):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1000
        yield

    return _shop(functools.partial(run_in_threadpool, lookup), lifespan=lifespan)


@wrong("4.1", NO_MORE)
def make_app_60_tokens(lookup):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        anyio.to_thread.current_default_thread_limiter().total_tokens = 60
        yield

    return _shop(functools.partial(run_in_threadpool, lookup), lifespan=lifespan)


@wrong("4.1", NO_MORE)
def make_app_limiter_per_request(lookup):
    async def fetch(item):
        return await anyio.to_thread.run_sync(lookup, item, limiter=anyio.CapacityLimiter(1))

    return _shop(fetch)


@wrong("4.1", NO_MORE)
def make_app_big_pool(lookup):
    pool = ThreadPoolExecutor(64)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        with pool:
            yield

    return _shop(lambda item: asyncio.get_running_loop().run_in_executor(pool, lookup, item), lifespan=lifespan)


@wrong("4.1", ALL_FORTY)
def make_app_small_pool(lookup):
    """What asyncio.to_thread has on a machine with four cores."""
    pool = ThreadPoolExecutor(8)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        with pool:
            yield

    return _shop(lambda item: asyncio.get_running_loop().run_in_executor(pool, lookup, item), lifespan=lifespan)


@wrong("4.1", ALL_FORTY)
def make_app_asyncio_to_thread(lookup):
    return _shop(lambda item: asyncio.to_thread(lookup, item))


@wrong("4.1", ALL_FORTY)
def make_app_with_a_lock(lookup):
    lock = asyncio.Lock()

    async def fetch(item):
        async with lock:
            return await run_in_threadpool(lookup, item)

    return _shop(fetch)


@wrong("4.1", ALL_FORTY)
def make_app_with_a_thread_lock(lookup):
    """39 threads wait for the lock, and one looks up."""
    lock = threading.Lock()

    def fetch(item):
        with lock:
            return lookup(item)

    return _shop(functools.partial(run_in_threadpool, fetch))


@wrong("4.1", HEALTHY)
def make_app_health_in_a_thread(lookup):
    return _shop(functools.partial(run_in_threadpool, lookup), health=lambda: "ok")


@wrong("4.1", HEALTHY)
def make_app_health_looks_up(lookup):
    async def health():
        return await run_in_threadpool(lookup, "health")

    return _shop(functools.partial(run_in_threadpool, lookup), health=health)


@wrong("4.1", NO_THREADS)
def make_app_own_pool(lookup):
    pool = ThreadPoolExecutor(40)
    return _shop(lambda item: asyncio.get_running_loop().run_in_executor(pool, lookup, item))


@wrong("4.1", UNKNOWN)
def make_app_none_for_unknown(lookup):
    app = FastAPI()

    @app.get("/items/{item}")
    def items(item: str):
        with contextlib.suppress(KeyError):
            return lookup(item)

    return app


@wrong("4.1", UNKNOWN)
def make_app_key_error_is_500(lookup):
    app = FastAPI()
    app.get("/items/{item}")(lambda item: lookup(item))
    return app


@wrong("4.1", EACH_ASKS)
def make_app_with_a_cache(lookup):
    return _shop(functools.partial(run_in_threadpool, functools.cache(lookup)))


@wrong("4.1", EACH_ASKS)
def make_app_asks_twice(lookup):
    def fetch(item):
        first = lookup(item)
        if item == "tea":
            return first
        return first if lookup(item) else None

    return _shop(functools.partial(run_in_threadpool, fetch))


@wrong("4.1", LOOKED_UP)
def make_app_wraps_the_value(lookup):
    async def fetch(item):
        return {"value": await run_in_threadpool(lookup, item)}

    return _shop(fetch)


@wrong("4.1", LOOKED_UP)
def make_app_in_the_background(lookup):
    app = FastAPI()

    @app.get("/items/{item}")
    def items(item: str, background: BackgroundTasks):
        background.add_task(lookup, item)
        return "soon"

    return app


@wrong("4.1", LOOKED_UP)
def make_app_no_such_route(lookup):
    app = FastAPI()
    app.get("/item/{item}")(lookup)
    return app


@wrong("4.1", IS_AN_APP)
async def make_app_async(lookup):
    return make_app(lookup)


@wrong("4.1", IS_AN_APP)
def make_app_route_only(lookup):
    return lookup


@wrong("4.1", NO_ERROR)
def make_app_broken(lookup):
    async def fetch(item):
        return await run_in_threadpool(lookup(item))

    app = make_app(lookup)
    app.router.routes.clear()

    @app.get("/items/{item}")
    async def items(item: str):
        raise ZeroDivisionError(item)

    return app


@wrong("4.1", NO_ERROR)
def make_app_broken_lifespan(lookup):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        raise RuntimeError("no settings")
        yield

    return _shop(functools.partial(run_in_threadpool, lookup), lifespan=lifespan)


@wrong("4.1", NO_TASKS)
def make_app_with_a_ticker(lookup):
    """A task of the lifespan that nobody stops."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        app.state.ticker = asyncio.create_task(asyncio.sleep(1000))
        yield

    return _shop(functools.partial(run_in_threadpool, lookup), lifespan=lifespan)


# --- 4.2 a dependency that cannot deadlock -------------------------------------------------------

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


@stub("4.2")
def pooled_stub(pool):
    raise NotImplementedError


def _tables(rows, names=None, *, lifespan=None, query=None):
    """The three routes; ``rows`` and ``names`` are what Depends gives the two that query."""
    app = FastAPI(lifespan=lifespan)
    query = query or (lambda connection, table, number: connection.query(table, number))

    def found(connection, table, number):
        try:
            return query(connection, table, number)
        except LookupError:
            raise HTTPException(404) from None

    @app.get("/rows/{number}")
    def row(number: int, connection: Annotated[Any, rows]):
        return found(connection, "row", number)

    @app.get("/names/{number}")
    def name(number: int, connection: Annotated[Any, names or rows]):
        return found(connection, "name", number)

    @app.get("/health")
    def health():
        return "ok"

    return app


def _borrowing(pool):
    def connection():
        taken = pool.get()
        try:
            yield taken
        finally:
            pool.put(taken)

    return connection


@right("4.2")
def pooled(pool):
    app = FastAPI()

    def connection():
        taken = pool.get()
        try:
            yield taken
        finally:
            pool.put(taken)

    Connection = Annotated[Any, Depends(connection, max_concurrency=pool.size)]

    @app.get("/rows/{number}")
    def row(number: int, connection: Connection):
        try:
            return connection.query("row", number)
        except LookupError:
            raise HTTPException(404) from None

    @app.get("/names/{number}")
    def name(number: int, connection: Connection):
        try:
            return connection.query("name", number)
        except LookupError:
            raise HTTPException(404) from None

    @app.get("/health")
    async def health():
        return "ok"

    return app


@right("4.2")
def pooled_by_a_semaphore(pool):
    """The same by hand: an async dependency that waits without a thread."""
    free = asyncio.Semaphore(pool.size)

    async def connection():
        async with free:
            taken = await run_in_threadpool(pool.get)
            try:
                yield taken
            finally:
                pool.put(taken)

    return _tables(Depends(connection))


@right("4.2")
def pooled_in_a_queue(pool):
    """An async pool: all connections are taken at the start, and a queue hands them out."""
    queue = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def lifespan(app):
        for _ in range(pool.size):
            queue.put_nowait(pool.get())
        yield
        while not queue.empty():
            pool.put(queue.get_nowait())

    async def connection():
        taken = await queue.get()
        try:
            yield taken
        finally:
            queue.put_nowait(taken)

    return _tables(Depends(connection), lifespan=lifespan)


@right("4.2")
def pooled_for_the_function(pool):
    """The exit before the answer; async routes that send only the query to a thread."""
    app = FastAPI(exception_handlers={LookupError: lambda request, error: JSONResponse("no such row", 404)})
    Connection = Annotated[Any, Depends(_borrowing(pool), max_concurrency=pool.size, scope="function")]

    @app.get("/{table}s/{number}")
    async def found(table: str, number: int, connection: Connection):
        return await run_in_threadpool(connection.query, table, number)

    @app.get("/health")
    async def health():
        return "ok"

    return app


@right("4.2")
def pooled_inside_the_limit(pool):
    """Acquired in the body, in the same thread as the query, with a limiter of the pool's size."""
    app, limiter = FastAPI(), anyio.CapacityLimiter(pool.size)

    def query(table, number):
        connection = pool.get()
        try:
            return connection.query(table, number)
        finally:
            pool.put(connection)

    @app.get("/{table}s/{number}")
    async def found(table: str, number: int):
        try:
            return await anyio.to_thread.run_sync(query, table, number, limiter=limiter)
        except LookupError:
            raise HTTPException(404) from None

    @app.get("/health")
    async def health():
        return "ok"

    return app


@wrong("4.2", NO_DEADLOCK)
def pooled_naive(pool):
    return _tables(Depends(_borrowing(pool)))


@wrong("4.2", NO_DEADLOCK)
def pooled_function_scope_alone(pool):
    return _tables(Depends(_borrowing(pool), scope="function"))


@wrong("4.2", NO_DEADLOCK)
def pooled_limit_of_40(pool):
    """As many as there are threads: too many by 30."""
    return _tables(Depends(_borrowing(pool), max_concurrency=60))


@wrong("4.2", NOBODY_WAITS)
def pooled_more_threads(pool):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1000
        yield

    return _tables(Depends(_borrowing(pool)), lifespan=lifespan)


@wrong("4.2", NOBODY_WAITS)
def pooled_limit_per_route(pool):
    connection = _borrowing(pool)
    return _tables(Depends(connection, max_concurrency=pool.size), Depends(connection, max_concurrency=pool.size))


@wrong("4.2", NOBODY_WAITS)
def pooled_limit_too_high(pool):
    return _tables(Depends(_borrowing(pool), max_concurrency=pool.size + 1))


@wrong("4.2", NOBODY_WAITS)
def pooled_in_the_body(pool):
    """Cannot deadlock, but 30 threads sit and wait."""

    def nothing():
        return None

    def query(_, table, number):
        connection = pool.get()
        try:
            return connection.query(table, number)
        finally:
            pool.put(connection)

    return _tables(Depends(nothing), query=query)


@wrong("4.2", NOBODY_WAITS)
def pooled_threads_of_its_own(pool):
    """The waiting has moved to other threads."""

    async def connection():
        waiting = anyio.CapacityLimiter(1)
        taken = await anyio.to_thread.run_sync(pool.get, limiter=waiting)
        try:
            yield taken
        finally:
            pool.put(taken)

    return _tables(Depends(connection))


@wrong("4.2", ALL_TEN)
def pooled_limit_too_low(pool):
    return _tables(Depends(_borrowing(pool), max_concurrency=pool.size // 2))


@wrong("4.2", ALL_TEN)
def pooled_with_a_lock(pool):
    lock = asyncio.Lock()

    async def connection():
        async with lock:
            taken = await run_in_threadpool(pool.get)
            try:
                yield taken
            finally:
                pool.put(taken)

    return _tables(Depends(connection))


@wrong("4.2", ALONE)
def pooled_one_for_all(pool):
    """One connection, taken at the start, for everybody."""
    kept = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        kept.append(pool.get())
        yield
        pool.put(kept.pop())

    def connection():
        return kept[0]

    return _tables(Depends(connection), lifespan=lifespan)


@wrong("4.2", OTHERS_PASS)
def pooled_in_middleware(pool):
    free = asyncio.Semaphore(pool.size)

    def connection(request: Request):
        return request.state.connection

    app = _tables(Depends(connection))

    @app.middleware("http")
    async def connected(request: Request, call_next):
        async with free:
            request.state.connection = await run_in_threadpool(pool.get)
            try:
                return await call_next(request)
            finally:
                pool.put(request.state.connection)

    return app


@wrong("4.2", OTHERS_PASS)
def pooled_for_the_whole_app(pool):
    connection = Depends(_borrowing(pool), max_concurrency=pool.size)
    app = FastAPI(dependencies=[connection])
    app.include_router(_tables(connection).router)
    return app


@wrong("4.2", ALL_BACK)
def pooled_lost_on_errors(pool):
    def connection():
        taken = pool.get()
        yield taken
        pool.put(taken)

    return _tables(Depends(connection, max_concurrency=pool.size))


@wrong("4.2", ALL_BACK)
def pooled_lost_on_http_exception(pool):
    """Gives back what an ordinary error leaves, and not what an HTTPException does."""

    def connection():
        taken = pool.get()
        try:
            yield taken
        except HTTPException:
            raise
        except BaseException:
            pool.put(taken)
            raise
        else:
            pool.put(taken)

    return _tables(Depends(connection, max_concurrency=pool.size))


@wrong("4.2", ALL_BACK)
def pooled_lost_on_cancel(pool):
    def connection():
        taken = pool.get()
        try:
            yield taken
        except Exception:
            pool.put(taken)
            raise
        else:
            pool.put(taken)

    return _tables(Depends(connection, max_concurrency=pool.size))


@wrong("4.2", ALL_BACK)
def pooled_lost_in_to_thread(pool):
    """A cancelled asyncio.to_thread goes on, and what it returns is lost."""
    free = asyncio.Semaphore(pool.size)

    async def connection():
        async with free:
            future = asyncio.get_running_loop().run_in_executor(executor, pool.get)
            taken = await future
            try:
                yield taken
            finally:
                pool.put(taken)

    executor = ThreadPoolExecutor(pool.size)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        with executor:
            yield

    return _tables(Depends(connection), lifespan=lifespan)


@wrong("4.2", ALL_BACK)
def pooled_given_back_in_the_background(pool):
    """A background task runs after an answer only, and an error has none."""
    free = asyncio.Semaphore(pool.size)

    async def connection(background: BackgroundTasks):
        async with free:
            taken = await run_in_threadpool(pool.get)
            background.add_task(pool.put, taken)
            yield taken

    return _tables(Depends(connection))


@wrong("4.2", BACK_ONCE)
def pooled_given_back_twice(pool):
    def query(connection, table, number):
        try:
            return connection.query(table, number)
        finally:
            pool.put(connection)

    return _tables(Depends(_borrowing(pool), max_concurrency=pool.size), query=query)


@wrong("4.2", ALL_ANSWERED)
def pooled_sends_away(pool):
    free = asyncio.Semaphore(pool.size)

    async def connection():
        if free.locked():
            raise HTTPException(503)
        async with free:
            taken = await run_in_threadpool(pool.get)
            try:
                yield taken
            finally:
                pool.put(taken)

    return _tables(Depends(connection))


@wrong("4.2", USABLE)
def pooled_loses_permits(pool):
    """The connection comes back, the permit of a cancelled request does not."""
    free = asyncio.Semaphore(pool.size)

    async def connection():
        await free.acquire()
        taken = await run_in_threadpool(pool.get)
        try:
            yield taken
        except Exception:
            free.release()
            raise
        else:
            free.release()
        finally:
            pool.put(taken)

    return _tables(Depends(connection))


@wrong("4.2", NEVER_BLOCKS)
def pooled_query_in_the_loop(pool):
    app = FastAPI()
    Connection = Annotated[Any, Depends(_borrowing(pool), max_concurrency=pool.size)]

    @app.get("/{table}s/{number}")
    async def found(table: str, number: int, connection: Connection):
        return connection.query(table, number)

    return app


@wrong("4.2", NEVER_BLOCKS)
def pooled_get_in_the_loop(pool):
    async def connection():
        taken = pool.get()
        try:
            yield taken
        finally:
            pool.put(taken)

    return _tables(Depends(connection))


@wrong("4.2", NOT_FOUND)
def pooled_no_404(pool):
    app = FastAPI()
    Connection = Annotated[Any, Depends(_borrowing(pool), max_concurrency=pool.size)]

    @app.get("/{table}s/{number}")
    def found(table: str, number: int, connection: Connection):
        return connection.query(table, number)

    return app


@wrong("4.2", ROWS)
def pooled_one_table(pool):
    app = FastAPI()
    Connection = Annotated[Any, Depends(_borrowing(pool), max_concurrency=pool.size)]

    @app.get("/{table}s/{number}")
    def found(number: int, connection: Connection):
        return connection.query("row", number)

    return app


@wrong("4.2", NO_ERROR)
def pooled_one_generator(pool):
    """One generator for all requests: the second finds it used up."""
    made = _borrowing(pool)()

    def connection():
        return next(made)

    return _tables(Depends(connection, max_concurrency=pool.size))


# --- 4.3 a session that ends before the background work ------------------------------------------

STORES = "stores the order and answers with its id"
VISIBLE = "committed before the answer"
TOLD = "an order that fails is no 200"
FREE = "the request's session is closed before the delivery begins"
OWN = "the delivery has an open session of its own"
ONE = "one connection at a time"
NO_WAIT = "the client does not wait for the delivery"
ONCE = "delivers each stored order once"
KEPT = "commits what the delivery did"
ROLLBACK = "nothing of a failed order is stored"
ROLLBACK_DELIVERY = "a failed delivery is rolled back, its order stays"
NOT_DELIVERED = "delivers nothing that was not stored"
ALL_CLOSED = "closes every session"


@stub("4.3")
def ordered_stub(sessions, deliver):
    raise NotImplementedError


def _committed(sessions):
    """A dependency, and a context manager: a session that commits where nothing failed."""

    async def session():
        async with sessions() as opened:
            yield opened
            await opened.commit()

    return session


def _later(sessions, deliver):
    async def later(number):
        async with contextlib.asynccontextmanager(_committed(sessions))() as session:
            await deliver(session, number)

    return later


def _counter(session, later, *, scope="function"):
    """The route, around a dependency, and a task that awaits later(number, the route's session)."""
    app = FastAPI()

    async def task(number, session):
        await later(number, session)

    @app.post("/orders/{name}")
    async def order(name: str, session: Annotated[Any, Depends(session, scope=scope)], background: BackgroundTasks):
        number = await session.add(name)
        background.add_task(task, number, session)
        return {"id": number}

    return app


@right("4.3")
def ordered(sessions, deliver):
    app = FastAPI()

    async def session_of_a_request():
        async with sessions() as session:
            yield session
            await session.commit()

    async def deliver_later(number):
        async with sessions() as session:
            await deliver(session, number)
            await session.commit()

    @app.post("/orders/{name}")
    async def order(
        name: str,
        session: Annotated[Any, Depends(session_of_a_request, scope="function")],
        background: BackgroundTasks,
    ):
        number = await session.add(name)
        background.add_task(deliver_later, number)
        return {"id": number}

    return app


@right("4.3")
def ordered_in_the_body(sessions, deliver):
    """No dependency: the block ends before the route returns."""
    app = FastAPI()

    @app.post("/orders/{name}")
    async def order(name: str):
        async with sessions() as session:
            number = await session.add(name)
            await session.commit()
        return JSONResponse({"id": number}, background=BackgroundTask(_later(sessions, deliver), number))

    return app


@right("4.3")
def ordered_with_a_rollback(sessions, deliver):
    """Says what close() would do anyway, commits in the route, and logs a failed delivery."""

    async def opened():
        async with sessions() as session:
            try:
                yield session
            except BaseException:
                await session.rollback()
                raise

    async def later(number):
        try:
            async with sessions() as session:
                await deliver(session, number)
                await session.commit()
        except ValueError:
            print("not delivered:", number)

    app = FastAPI()

    @app.post("/orders/{name}")
    async def order(name: str, session: Annotated[Any, Depends(opened, scope="function")], tasks: BackgroundTasks):
        number = await session.add(name)
        await session.commit()
        tasks.add_task(later, number)
        return {"id": number}

    return app


@right("4.3")
def ordered_with_a_worker(sessions, deliver):
    """A queue and one worker, which the lifespan ends; close() comes before the answer."""
    queue = asyncio.Queue()

    async def work():
        while True:
            number = await queue.get()
            with contextlib.suppress(ValueError):
                await _later(sessions, deliver)(number)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        worker = asyncio.create_task(work())
        yield
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders/{name}")
    async def order(name: str):
        async with contextlib.asynccontextmanager(_committed(sessions))() as session:
            number = await session.add(name)
        queue.put_nowait(number)
        return {"id": number}

    return app


@wrong("4.3", VISIBLE)
def ordered_default_scope(sessions, deliver):
    later = _later(sessions, deliver)
    return _counter(_committed(sessions), lambda number, _: later(number), scope=None)


@wrong("4.3", FREE)
def ordered_default_scope_committed(sessions, deliver):
    """Commits in the route, and holds the connection until the delivery ends."""
    app, later = FastAPI(), _later(sessions, deliver)

    @app.post("/orders/{name}")
    async def order(name: str, session: Annotated[Any, Depends(_committed(sessions))], background: BackgroundTasks):
        number = await session.add(name)
        await session.commit()
        background.add_task(later, number)
        return {"id": number}

    return app


@wrong("4.3", OWN)
def ordered_closed_session(sessions, deliver):
    """The session of the request is closed when the task gets it."""
    return _counter(_committed(sessions), lambda number, session: deliver(session, number))


@wrong("4.3", OWN)
def ordered_session_of_the_request(sessions, deliver):
    """The session of the request is open when the task gets it, and pinned."""
    app = FastAPI()

    @app.post("/orders/{name}")
    async def order(name: str, session: Annotated[Any, Depends(_committed(sessions))], background: BackgroundTasks):
        number = await session.add(name)
        await session.commit()
        background.add_task(deliver, session, number)
        return {"id": number}

    return app


@wrong("4.3", OWN)
def ordered_session_not_entered(sessions, deliver):
    return _counter(_committed(sessions), lambda number, _: deliver(sessions(), number))


@wrong("4.3", OWN)
def ordered_factory_for_a_session(sessions, deliver):
    return _counter(_committed(sessions), lambda number, _: deliver(sessions, number))


@wrong("4.3", NO_WAIT)
def ordered_delivers_first(sessions, deliver):
    app = FastAPI()

    @app.post("/orders/{name}")
    async def order(name: str):
        async with sessions() as session:
            number = await session.add(name)
            await session.commit()
        await _later(sessions, deliver)(number)
        return {"id": number}

    return app


@wrong("4.3", NOT_DELIVERED)
def ordered_in_a_task(sessions, deliver):
    """The task starts at the next await, and that is the commit."""
    tasks = set()

    def later(number, session):
        task = asyncio.create_task(_later(sessions, deliver)(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    app = FastAPI()

    @app.post("/orders/{name}")
    async def order(name: str, session: Annotated[Any, Depends(_committed(sessions), scope="function")]):
        number = await session.add(name)
        later(number, session)
        return {"id": number}

    return app


@wrong("4.3", STORES)
def ordered_never_commits(sessions, deliver):
    async def session():
        async with sessions() as opened:
            yield opened

    later = _later(sessions, deliver)
    return _counter(session, lambda number, _: later(number))


@wrong("4.3", STORES)
def ordered_no_id(sessions, deliver):
    app = FastAPI()

    @app.post("/orders/{name}")
    async def order(name: str, session: Annotated[Any, Depends(_committed(sessions), scope="function")]):
        return await session.add(name)

    return app


@wrong("4.3", VISIBLE)
def ordered_commits_in_the_background(sessions, deliver):
    async def session():
        async with sessions() as opened:
            yield opened

    async def later(number, session):
        await session.commit()
        await _later(sessions, deliver)(number)

    return _counter(session, later, scope=None)


@wrong("4.3", ROLLBACK)
def ordered_commits_in_finally(sessions, deliver):
    async def session():
        async with sessions() as opened:
            try:
                yield opened
            finally:
                await opened.commit()

    later = _later(sessions, deliver)
    return _counter(session, lambda number, _: later(number))


@wrong("4.3", ROLLBACK)
def ordered_commits_what_was_cancelled(sessions, deliver):
    async def session():
        async with sessions() as opened:
            try:
                yield opened
            except Exception:
                await opened.rollback()
                raise
            finally:
                with anyio.CancelScope(shield=True):
                    await opened.commit()

    later = _later(sessions, deliver)
    return _counter(session, lambda number, _: later(number))


@wrong("4.3", TOLD)
def ordered_hides_errors(sessions, deliver):
    app, later = FastAPI(), _later(sessions, deliver)

    @app.post("/orders/{name}")
    async def order(name: str, background: BackgroundTasks):
        try:
            async with sessions() as session:
                number = await session.add(name)
                await session.commit()
        except Exception as error:
            return {"error": str(error)}
        background.add_task(later, number)
        return {"id": number}

    return app


@wrong("4.3", TOLD)
def ordered_hides_a_failed_commit(sessions, deliver):
    async def session():
        async with sessions() as opened:
            yield opened
            with contextlib.suppress(ConnectionError):
                await opened.commit()

    async def later(number, _):
        with contextlib.suppress(Exception):
            await _later(sessions, deliver)(number)

    return _counter(session, later)


@wrong("4.3", KEPT)
def ordered_delivery_without_commit(sessions, deliver):
    async def later(number, _):
        async with sessions() as session:
            await deliver(session, number)

    return _counter(_committed(sessions), later)


@wrong("4.3", ROLLBACK_DELIVERY)
def ordered_delivery_commits_in_finally(sessions, deliver):
    async def later(number, _):
        async with sessions() as session:
            try:
                await deliver(session, number)
            finally:
                await session.commit()

    return _counter(_committed(sessions), later)


@wrong("4.3", ALL_CLOSED)
def ordered_delivery_left_open(sessions, deliver):
    """__aexit__ only where nothing fails."""

    async def later(number, _):
        session = await sessions().__aenter__()
        await deliver(session, number)
        await session.commit()
        await session.__aexit__(None, None, None)

    return _counter(_committed(sessions), later)


@wrong("4.3", ALL_CLOSED)
def ordered_order_left_open(sessions, deliver):
    async def session():
        opened = await sessions().__aenter__()
        yield opened
        await opened.commit()
        await opened.__aexit__(None, None, None)

    later = _later(sessions, deliver)
    return _counter(session, lambda number, _: later(number))


@wrong("4.3", ONCE)
def ordered_never_delivers(sessions, deliver):
    return _counter(_committed(sessions), lambda number, _: asyncio.sleep(0))


@wrong("4.3", "awaits every coroutine")
def ordered_lambda_in_the_background(sessions, deliver):
    """add_task calls the lambda in a thread, and drops the coroutine that it returns."""
    app, later = FastAPI(), _later(sessions, deliver)

    @app.post("/orders/{name}")
    async def order(name: str, background: BackgroundTasks):
        async with sessions() as session:
            number = await session.add(name)
            await session.commit()
        background.add_task(lambda: later(number))
        return {"id": number}

    return app


@wrong("4.3", ONCE)
def ordered_delivers_twice(sessions, deliver):
    async def later(number, _):
        await _later(sessions, deliver)(number)
        await _later(sessions, deliver)(number)

    return _counter(_committed(sessions), later)


@wrong("4.3", ONE)
def ordered_two_sessions_at_once(sessions, deliver):
    """The session for the task is opened with the one of the request."""
    app = FastAPI()

    async def for_the_task():
        async with sessions() as session:
            yield session
            await session.commit()

    @app.post("/orders/{name}")
    async def order(
        name: str,
        later: Annotated[Any, Depends(for_the_task)],
        session: Annotated[Any, Depends(_committed(sessions), scope="function")],
        background: BackgroundTasks,
    ):
        number = await session.add(name)
        background.add_task(deliver, later, number)
        return {"id": number}

    return app


@wrong("4.3", IS_AN_APP)
def ordered_returns_the_route(sessions, deliver):
    return _later(sessions, deliver)


@wrong("4.3", NO_ERROR)
def ordered_one_session_for_all(sessions, deliver):
    """A session that was made once cannot be entered for every request."""
    session = sessions()

    async def opened():
        async with session:
            yield session
            await session.commit()

    later = _later(lambda: session, deliver)
    return _counter(opened, lambda number, _: later(number))


# --- 4.4 stop on disconnect ----------------------------------------------------------------------

STAYS = "returns what the work returns while the client stays"
ERRORS = "lets an error of the work out"
WORK_ONCE = "starts the work once"
STOPS = "stops the work within 100 ms of the disconnect"
CLEANS_UP = "lets the work clean up, and waits for it"
QUIET = "ends quietly when the client has left"
BODY = "takes no part of a request for a disconnect"
CANCELS = "passes a cancellation on"


@stub("4.4")
async def stop_stub(request, work):
    """End the work when the client leaves."""
    raise NotImplementedError


@stub("4.4")
async def stop_pass(request, work):
    pass


async def disconnected(request):
    while (await request.receive())["type"] != "http.disconnect":
        pass


@right("4.4")
async def stop_on_disconnect(request, work):
    job = asyncio.create_task(work())
    gone = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        job.cancel()
        gone.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


@right("4.4")
async def stop_from_the_listener(request, work):
    """The listener cancels the work; the route waits for the work alone."""

    async def listen():
        await disconnected(request)
        job.cancel()

    job, listener = asyncio.create_task(work()), asyncio.create_task(listen())
    try:
        await asyncio.wait([job])
        return None if job.cancelled() else job.result()
    finally:
        for task in (job, listener):
            task.cancel()
        await asyncio.gather(job, listener, return_exceptions=True)


@right("4.4")
async def stop_with_499(request, work):
    job, gone = asyncio.ensure_future(work()), asyncio.ensure_future(disconnected(request))
    try:
        done, _ = await asyncio.wait({job, gone}, return_when="FIRST_COMPLETED")
        if job in done:
            return await job
        raise HTTPException(499)
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


@right("4.4")
async def stop_by_asking_often(request, work):
    """Every 20 ms: costs more than to wait, and keeps the promise."""
    job = asyncio.create_task(work())
    try:
        while not job.done() and not await request.is_disconnected():
            await asyncio.wait([job], timeout=0.02)
        return job.result() if job.done() else None
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


@wrong("4.4", STOPS)
async def stop_never(request, work):
    return await work()


@wrong("4.4", STOPS)
async def stop_asks_before(request, work):
    if await request.is_disconnected():
        return None
    return await work()


async def polling(request, work, seconds):
    job = asyncio.create_task(work())
    try:
        while not job.done():
            await asyncio.wait([job], timeout=seconds)
            if not job.done() and await request.is_disconnected():
                return None
        return job.result()
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


@wrong("4.4", STOPS)
async def stop_asks_each_second(request, work):
    return await polling(request, work, 1.0)


@wrong("4.4", STOPS)
async def stop_asks_too_rarely(request, work):
    return await polling(request, work, 0.25)


@wrong("4.4", STOPS)
async def stop_gives_up_after_a_while(request, work):
    """Listens for a second only."""

    async def listen():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await disconnected(request)
                return
        await asyncio.Event().wait()

    job, gone = asyncio.create_task(work()), asyncio.create_task(listen())
    try:
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


@wrong("4.4", STAYS)
async def stop_at_the_first_message(request, work):
    """The first message is the request itself."""
    job, gone = asyncio.create_task(work()), asyncio.create_task(request.receive())
    try:
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


@wrong("4.4", BODY)
async def stop_at_the_second_message(request, work):
    """A request may come in many parts."""

    async def second():
        await request.receive()
        await request.receive()

    job, gone = asyncio.create_task(work()), asyncio.create_task(second())
    try:
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


@wrong("4.4", BODY)
async def stop_reads_the_body_first(request, work):
    await request.body()
    return await stop_on_disconnect(request, work)


@wrong("4.4", STAYS)
async def stop_waits_for_the_disconnect(request, work):
    """Returns only when the client has left."""
    job = asyncio.create_task(work())
    await disconnected(request)
    job.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        return await job


@wrong("4.4", STAYS)
async def stop_drops_the_value(request, work):
    await stop_on_disconnect(request, work)


@wrong("4.4", STAYS)
async def stop_takes_false_for_nothing(request, work):
    return await stop_on_disconnect(request, work) or None


@wrong("4.4", CLEANS_UP)
async def stop_in_an_anyio_group(request, work):
    """A cancelled scope cancels the cleanup, too."""
    value = error = None
    async with anyio.create_task_group() as group:

        async def listen():
            await disconnected(request)
            group.cancel_scope.cancel()

        group.start_soon(listen)
        try:
            value = await work()
        except Exception as raised:
            error = raised
        group.cancel_scope.cancel()
    if error:
        raise error
    return value


@wrong("4.4", CLEANS_UP)
async def stop_cancels_twice(request, work):
    job, gone = asyncio.create_task(work()), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        gone.cancel()
        while not job.done():
            job.cancel()
            await asyncio.wait([job, gone], timeout=0.05)
        await asyncio.gather(gone, return_exceptions=True)


@wrong("4.4", CLEANS_UP)
async def stop_without_waiting(request, work):
    """cancel() only asks."""
    job, gone = asyncio.create_task(work()), asyncio.create_task(disconnected(request))
    await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
    if job.done():
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        return job.result()
    job.cancel()


@wrong("4.4", NO_TASKS)
async def stop_leaves_the_listener(request, work):
    job, gone = asyncio.create_task(work()), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


@wrong("4.4", NO_TASKS)
async def stop_cancels_the_listener_only(request, work):
    job, gone = asyncio.create_task(work()), asyncio.create_task(disconnected(request))
    await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if job.done():
        return job.result()
    job.cancel()
    await asyncio.gather(job, gone, return_exceptions=True)


@wrong("4.4", NO_TASKS)
async def stop_only_when_it_ends_well(request, work):
    """Tidies up after both ends, not after a cancellation of its own."""
    job, gone = asyncio.create_task(work()), asyncio.create_task(disconnected(request))
    await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
    ended = job.done()
    for task in (job, gone):
        task.cancel()
    await asyncio.gather(job, gone, return_exceptions=True)
    return job.result() if ended else None


@wrong("4.4", STOPS)
async def stop_behind_a_shield(request, work):
    job = asyncio.create_task(work())
    gone = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    return await asyncio.shield(job)


@wrong("4.4", CANCELS)
async def stop_swallows_cancel(request, work):
    with contextlib.suppress(asyncio.CancelledError):
        return await stop_on_disconnect(request, work)


@wrong("4.4", CANCELS)
async def stop_finishes_the_work_when_cancelled(request, work):
    """Nobody else may stop the work."""
    job, gone = asyncio.create_task(work()), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            job.cancel()
    finally:
        gone.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)
    return None if job.cancelled() else job.result()


@wrong("4.4", ERRORS)
async def stop_hides_errors(request, work):
    with contextlib.suppress(Exception):
        return await stop_on_disconnect(request, work)


@wrong("4.4", ERRORS)
async def stop_in_a_task_group(request, work):
    """The group wraps what the work raises."""

    async def listen():
        await disconnected(request)
        job.cancel()

    async with asyncio.TaskGroup() as group:
        job = group.create_task(work())
        gone = group.create_task(listen())
        await asyncio.wait([job])
        gone.cancel()
    return None if job.cancelled() else job.result()


@wrong("4.4", QUIET)
async def stop_raises_cancelled(request, work):
    job, gone = asyncio.create_task(work()), asyncio.create_task(disconnected(request))
    gone.add_done_callback(lambda _: job.cancel())
    try:
        return await job
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


@wrong("4.4", QUIET)
async def stop_raises_an_error(request, work):
    async def noted():
        try:
            return await work()
        except asyncio.CancelledError:
            raise ConnectionResetError("the client has left") from None

    job, gone = asyncio.create_task(noted()), asyncio.create_task(disconnected(request))
    gone.add_done_callback(lambda _: job.cancel())
    try:
        return await job
    finally:
        gone.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


@wrong("4.4", WORK_ONCE)
async def stop_starts_twice(request, work):
    await stop_on_disconnect(request, work)
    return await stop_on_disconnect(request, work)


@wrong("4.4", "awaits every coroutine")
async def stop_calls_the_work_for_nothing(request, work):
    async def unused():
        await work()

    unused()
    return await stop_on_disconnect(request, work)


@wrong("4.4", "is a coroutine function")
def stop_without_async(request, work):
    return request and "value"


SOCKET_STAYS = "through a real socket: answers a client that stays"
SOCKET_STOPS = "through a real socket: stops when the client leaves"


@wrong("4.4", SOCKET_STAYS)
async def stop_needs_the_first_body(request, work):
    """Takes a client that sends four bytes for one that has left."""
    if request.headers.get("content-length") == "4":
        return None
    return await stop_on_disconnect(request, work)


@wrong("4.4", SOCKET_STOPS)
async def stop_only_without_a_length(request, work):
    """Right in every test with a made-up request, and wrong behind a server."""
    if request.headers.get("content-length") == "0":
        return await work()
    return await stop_on_disconnect(request, work)
