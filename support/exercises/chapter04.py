"""Chapter 04, FastAPI: blocking code, dependencies that wait, sessions, clients that leave."""

from __future__ import annotations

from .disconnect04 import check_disconnect
from .engine import Exercise, three_hints
from .pool04 import check_dependency
from .session04 import check_session
from .threads04 import check_unblock

EXERCISES = [
    Exercise(
        "4.1",
        "unblock it",
        "lookup_app(lookup)",
        ("lookup",),
        three_hints("""
        In which thread does a route run that is written with async def, and in which one that is
        written with def? Which of the two may wait for lookup(), and which for nothing?

        FastAPI runs def routes in a pool of 40 threads. All def routes share it, so a route that
        must answer in any case stays out of it.

        def item(name: str): try: return lookup(name), except KeyError: raise HTTPException(404).
        And async def health().
        """),
        check_unblock,
    ),
    Exercise(
        "4.2",
        "a dependency that cannot deadlock",
        "pool_app(pool)",
        ("pool",),
        three_hints("""
        40 threads wait in pool.get(). Ten requests have a connection. In which thread does the
        query of one of the ten run?

        Let the others wait before they take a thread: Depends has max_concurrency. It counts for
        each Depends object, so all routes must share one.

        Connection = Annotated[Any, Depends(connection, max_concurrency=pool.size)], where
        connection() gets one, yields it in try, and puts it back in finally.
        """),
        check_dependency,
    ),
    Exercise(
        "4.3",
        "a session that ends before the background work",
        "orders_app(sessions, deliver)",
        ("sessions", "deliver"),
        three_hints("""
        Five things happen: the route returns, the session ends, the answer goes out, the
        background task begins, and it ends. Which order does FastAPI give them, and which do you
        want?

        Depends(..., scope="function") ends the dependency before the answer goes out. The
        background task then cannot use that session: it opens its own.

        async with sessions() as session: yield session; await session.commit(). The task does the
        same around await deliver(session, number).
        """),
        check_session,
    ),
    Exercise(
        "4.4",
        "stop on disconnect",
        "async def stop_on_disconnect(request, work)",
        ("request", "work"),
        three_hints("""
        Two things can happen first: the work ends, or the client leaves. What tells you the
        second, without asking again and again?

        await request.receive() returns the next message of the client. The first ones are the
        request itself; the last has the type "http.disconnect". Make a task of each side.

        await asyncio.wait([job, gone], return_when=FIRST_COMPLETED) in try; in finally, cancel
        both and await asyncio.gather(job, gone, return_exceptions=True).
        """),
        check_disconnect,
    ),
]
