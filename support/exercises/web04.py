"""How the checkers of chapter 04 run a reader's application: on a real loop, with real threads.

Nothing here looks at the wall clock to judge. A scenario holds a gate shut, waits until nothing
changes any more, counts, and opens the gate. fastapi is imported where it is needed: it takes long.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..guard import RealTimeLimit, call_in_thread
from . import harness
from .harness import NO_ERROR, NO_TASKS_LEFT, Failed, NotAttempted, Prove, Run, plain, tell

# Nothing has changed for this long and this often: then nothing will. A busy machine slows both.
PATIENCE, LOOKS = 0.5, 200
TURNS = 200  # of the loop: more than any request here needs from one wait to the next
ENDING = 2.0  # real seconds in which a thread that was told to end has ended
IS_AN_APP = "returns a FastAPI app"
NO_THREADS_LEFT = "leaves no thread behind"


class Exchange:
    """One request and its answer, as a server would put it to an ASGI application.

    ``status`` is 0 until the answer begins. ``error`` is what came out of the application, where a
    server would log it. ``on_start`` is called when the answer begins.
    """

    def __init__(self, method: str, path: str, on_start: Callable[[], None] | None = None) -> None:
        import anyio

        self.method, self.path, self.status, self.body = method, path, 0, b""
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.answered = False
        self._on_start = on_start
        self._scope = anyio.CancelScope()
        self._asked = self._left = False
        self._over = asyncio.Event()

    def leave(self) -> None:
        """The client closes its connection: receive() says so, and send() fails."""
        self._left = True
        self._over.set()

    def cancel(self) -> None:
        """Cancel it, as Starlette does below a middleware, or in a stream, when a client leaves."""
        self._scope.cancel()

    @property
    def value(self) -> Any:
        """The JSON of the answer, or its text where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return self.body.decode(errors="replace")

    def told(self) -> str:
        """What came of it, in words."""
        asked = f"{self.method} {self.path}"
        if not self.status:
            return f"{asked} got no answer" + (f": {tell(self.error)}" if self.error else "")
        return f"{asked} got {self.status}" + (f" ({tell(self.error)})" if self.error else f": {plain(self.value)}")

    async def put_to(self, app: Any, state: dict[str, Any]) -> None:
        """Await the application; keep its error."""
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
            "method": self.method, "scheme": "http", "path": self.path, "raw_path": self.path.encode(),
            "query_string": b"", "root_path": "", "headers": [(b"host", b"course")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": dict(state),
        }  # fmt: skip
        try:
            with self._scope:
                await app(scope, self._receive, self._send)
        except Exception as error:
            self.error = error

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        if self._left:
            raise OSError("the client has left")
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._on_start:
                self._on_start()
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                self.answered = True
                self._over.set()


class Client:
    """Sends requests to an application that runs on this loop."""

    def __init__(self, app: Any, state: dict[str, Any] | None) -> None:
        self._app, self._state = app, state or {}

    def start(self, path: str, method: str = "GET", on_start: Callable[[], None] | None = None) -> Exchange:
        """Send a request, and do not wait."""
        exchange = Exchange(method, path, on_start)
        exchange.task = asyncio.create_task(exchange.put_to(self._app, self._state), name=path)
        return exchange

    async def ask(self, path: str, method: str = "GET", on_start: Callable[[], None] | None = None) -> Exchange:
        """Send a request, and wait for its end."""
        exchange = self.start(path, method, on_start)
        await self.finish([exchange])
        return exchange

    async def finish(self, exchanges: Sequence[Exchange]) -> bool:
        """Wait until all have ended. When nothing moves any more, cancel the rest, and return False."""
        tasks = [exchange.task for exchange in exchanges if exchange.task]
        ended = await settled(lambda: sum(t.done() for t in tasks), lambda: all(t.done() for t in tasks))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return ended


async def turns(count: int = TURNS) -> None:
    """Let the loop turn, so that everything moves that waits for nothing but its turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def settled(changes: Callable[[], Any], enough: Callable[[], bool]) -> bool:
    """Wait until ``enough()`` holds, and still holds some turns later.

    False when it does not, and ``changes()`` has long returned the same value.
    """
    loop = asyncio.get_running_loop()
    last, since, looks = changes(), loop.time(), 0
    while True:
        if enough():
            await turns()
            if enough():
                return True
        await asyncio.sleep(0.001)  # a real one: threads need time, not turns
        looks += 1
        if (now := changes()) != last:
            last, since, looks = now, loop.time(), 0
        elif looks > LOOKS and loop.time() - since > PATIENCE:
            return False


def made(prove: Prove, run: Run, name: str) -> Any:
    """The application that ``name(...)`` returned. Raises Failed when it is none."""
    import fastapi

    app = run.result()
    told = f"{name} returned {plain(repr(app))}, and not a FastAPI()."
    if inspect.iscoroutine(app):
        app.close()
        told = f"{name} is called as a plain function: write def, not async def."
    prove(IS_AN_APP, isinstance(app, fastapi.FastAPI), told)
    return app


def observe_app(app: Any, scenario: Callable[[Client], Awaitable[Any]]) -> Run:
    """Start the application, await ``scenario(client)`` on a real loop in a guarded thread, stop it."""

    async def served() -> Any:
        async with app.router.lifespan_context(app) as state:
            return await scenario(Client(app, state))

    return observe_real(served)


def observe_real(scenario: Callable[[], Awaitable[Any]]) -> Run:
    """``observe`` on a real loop: for threads and sockets. Its Run has no simulated times."""
    run, before = Run(), set(threading.enumerate())

    async def watched() -> None:
        loop, own = asyncio.get_running_loop(), asyncio.current_task()
        loop.set_exception_handler(lambda _, context: run.loop_errors.append(harness._told(context)))
        try:
            run.value = await scenario()
        except (Failed, NotAttempted, KeyboardInterrupt):
            raise
        except BaseException as error:
            run.error = error
        await turns()  # what was told to end is given the turns to do it
        run.left_over = sorted(harness._coroutine_name(t) for t in asyncio.all_tasks() if t is not own)

    with harness._watching(run):
        try:
            call_in_thread(lambda: asyncio.run(watched()), real_limit=harness.REAL_LIMIT)
        except RealTimeLimit:
            raise harness._overran() from None
        except SystemExit as error:  # asyncio lets it out of any task
            run.error = error
        except KeyboardInterrupt:  # it may have come when the loop was about to tell its threads to end
            for thread in _new_workers(before):
                thread.stop()
            raise
        alive_after(_new_workers(before))
    return harness._attempted(run)


def _new_workers(before: set[threading.Thread]) -> list[Any]:
    """The threads of anyio's pools that were started since."""
    return [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("AnyIO")]


def alive_after(threads: Iterable[threading.Thread]) -> int:
    """How many of ``threads`` still run when they have had time to end."""
    deadline, threads = time.monotonic() + ENDING, list(threads)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return sum(thread.is_alive() for thread in threads)


def prove_all_gone(prove: Prove, run: Run, left: int) -> None:
    """Nothing goes on once the application has stopped, in the loop or in threads."""
    gone = ", ".join(run.left_over)
    told = f"When the application had stopped, {gone} was still running."
    prove(NO_TASKS_LEFT, not run.left_over, told)
    lost = ", ".join(run.never_awaited)
    prove(harness.AWAITS_ALL, not lost, f"The coroutine {lost} was made and never awaited.")
    errors = "; ".join(run.loop_errors)
    prove(harness.NO_LOST_ERRORS, not errors, f"asyncio had to log what nobody noticed: {errors}.")
    told = f"When the application had stopped, {left} of its threads still ran: shut a pool of your own down "
    prove(NO_THREADS_LEFT, not left, told + "in the lifespan, or use the one that FastAPI has.")


def release(threads: Iterable[threading.Thread]) -> None:
    """Shut down the pools that ``threads`` were left in, so that none of them outlives the check."""
    alive = {thread for thread in threads if thread.is_alive()}
    if not alive:
        return
    for found in gc.get_objects():  # FastAPI caches the routes that hold a pool: it is not collected
        if issubclass(type(found), ThreadPoolExecutor) and found._threads & alive:
            found.shutdown(wait=False, cancel_futures=True)
    alive_after(alive)


def prove_answered(prove: Prove, lacking: str, exchange: Exchange, expected: Any) -> None:
    """The answer is a 200 with ``expected`` in it; an error of the application is told as its own."""
    if exchange.error is not None and exchange.status in (0, 500):
        raise Failed(NO_ERROR, f"{exchange.method} {exchange.path} raised {tell(exchange.error)}.")
    told = f"{exchange.told()}; expected was 200: {plain(expected)}."
    prove(lacking, (exchange.status, exchange.value) == (200, expected), told)
