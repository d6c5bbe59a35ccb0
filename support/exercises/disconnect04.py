"""The checker of 4.4: work that ends when its client leaves. On the virtual clock, then on real sockets."""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from .faults import CANCELS, Calls, cancel_sweep, prove_cancelled
from .harness import Prove, Run, observe, plain, prove_clean, tell
from .web04 import observe_real, settled, turns

AT_ONCE = 0.1  # simulated seconds from the client's leaving to the end of the work, its cleanup apart
CLEANUP = 0.5  # simulated seconds that cancelled work needs to clean up
STAYS = "returns what the work returns while the client stays"
ERRORS = "lets an error of the work out"
ONCE = "starts the work once"
STOPS = "stops the work within 100 ms of the disconnect"
CLEANS_UP = "lets the work clean up, and waits for it"
QUIET = "ends quietly when the client has left"
BODY = "takes no part of a request for a disconnect"
SOCKET_STAYS = "through a real socket: answers a client that stays"
SOCKET_STOPS = "through a real socket: stops when the client leaves"


class _FakeClient:
    """Sends the rest of its request at the times given, and leaves at ``leaves``, in simulated seconds."""

    def __init__(self, leaves: float = 1000.0, body: tuple[float, ...] = (0.0,)) -> None:
        self._messages = [(at, at != body[-1]) for at in body]
        self.leaves = leaves

    async def receive(self) -> dict[str, Any]:
        now = asyncio.get_running_loop().time()
        comes = self._messages[0][0] if self._messages else self.leaves
        if now < min(comes, self.leaves):  # what is there already is returned without a wait, as uvicorn does
            await asyncio.sleep(min(comes, self.leaves) - now)
        if self._messages and comes <= self.leaves:
            return {"type": "http.request", "body": b"part", "more_body": self._messages.pop(0)[1]}
        return {"type": "http.disconnect"}

    def request(self) -> Any:
        from fastapi import Request

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
        return Request(scope, self.receive)


class _Work:
    """Takes ``seconds``; cancelled, it cleans up with an await, as closing a connection does."""

    def __init__(self, seconds: float, value: Any = "value", error: BaseException | None = None) -> None:
        self.seconds, self.value, self.error = seconds, value, error
        self.started = 0
        self.stopped = self.cleaned = None

    async def __call__(self) -> Any:
        now = asyncio.get_running_loop().time
        self.started += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.stopped = now()
            await asyncio.sleep(CLEANUP)
            self.cleaned = now()
            raise
        if self.error:
            raise self.error
        return self.value


def _observe(answer: Any, client: _FakeClient, work: Callable[[], Awaitable[Any]]) -> Run:
    return observe(lambda: answer(client.request(), work))


def _outcome(run: Run) -> str:
    return f"it raised {tell(run.error)}" if run.error else f"it returned {plain(repr(run.value))}"


def check_disconnect(answer: Any, prove: Prove) -> None:
    """Checks stop_on_disconnect(request, work) of exercise 4.4."""
    _check_staying(answer, prove)
    _check_leaving(answer, prove)
    for run, calls, canceller in cancel_sweep(
        lambda calls, drive: drive(answer(_FakeClient().request(), calls.job("work", 1.0, "value", cleanup=0.05)))
    ):
        _prove_cancelled_with_its_work(prove, run, calls, canceller)
    _check_sockets(answer, prove)


def _prove_cancelled_with_its_work(prove: Prove, run: Run, calls: Calls, canceller: Any) -> None:
    told = f"The route was cancelled at {canceller}, and the work ran on: cancel it in a finally."
    prove(CANCELS, not ("work" in calls.finished and canceller.time < 1.0 - 1e-9), told)
    prove_cancelled(prove, run, calls, canceller, 0.05)


def _check_staying(answer: Any, prove: Prove) -> None:
    for value in ("value", None, 0, False, []):
        work = _Work(2.0, value)
        run = _observe(answer, _FakeClient(), work)
        told = f"The client stayed, the work returned {value!r}, and {_outcome(run)}"
        told += (
            " before the work had ended: the first message is the request itself."
            if not run.error and run.elapsed < 2
            else "."
        )
        if run.error is not None:
            run.result()
        prove(STAYS, run.value is value and work.started > 0, told)
        prove(ONCE, work.started == 1, f"It started the work {work.started} times.")
        told = f"The work takes 2 s, and it returned after {run.elapsed:g} s."
        prove(STAYS, abs(run.elapsed - 2.0) < AT_ONCE, told)
        prove_clean(prove, run)
    for body in ((0.0, 0.1, 0.2), (0.5, 0.6, 0.7, 0.8), (0.0, 1.999)):
        work = _Work(2.0)
        run = _observe(answer, _FakeClient(body=body), work)
        told = f"The client was still sending its request, in {len(body)} parts, and {_outcome(run)} after {run.elapsed:g} s: "
        told += 'go on until the message has type "http.disconnect".'
        prove(BODY, run.error is None and run.value == "value" and abs(run.elapsed - 2.0) < AT_ONCE, told)
        prove_clean(prove, run)
    for error in (ValueError("of the work"), TimeoutError("of the work"), RuntimeError("of the work")):
        work = _Work(2.0, error=error)
        run = _observe(answer, _FakeClient(), work)
        prove(ERRORS, run.error is error, f"The work raised {tell(error)}, and {_outcome(run)}.")
        prove_clean(prove, run)


def _check_leaving(answer: Any, prove: Prove) -> None:
    from fastapi import HTTPException

    for leaves, body in ((0.3, (0.0,)), (1.1, (0.0,)), (3.05, (0.0, 1.0, 2.0)), (0.0, (0.0,)), (2.0, (3.0,))):
        work = _Work(20.0)
        run = _observe(answer, _FakeClient(leaves, body), work)
        if work.started:
            stopped = "after the work had ended" if work.stopped is None else f"{work.stopped - leaves:.2g} s later"
            told = (
                f"The client left at {leaves:g} s, and the work was cancelled {stopped}: wait for the work and for the "
            )
            told += "disconnect at the same time, and do not ask now and then."
            ok = work.stopped is not None and work.stopped - leaves <= AT_ONCE + 1e-9
            prove(STOPS, ok, told)
            told = "The cleanup of the cancelled work was cut short: cancel once, and then await the task. "
            told += "An anyio task group cancels every await of a cleanup, again and again."
            if work.cleaned is None and run.left_over:
                told = "It returned while the cancelled work was still cleaning up: await the task after cancel()."
            prove(CLEANS_UP, work.cleaned is not None, told)
            late = run.elapsed - work.cleaned
            prove(STOPS, late <= AT_ONCE, f"The work had cleaned up, and it waited {late:g} s more.")
        quiet = run.error is None or isinstance(run.error, HTTPException)
        prove(QUIET, quiet, f"The client had left, and {_outcome(run)}: nobody can read that, so return None.")
        prove_clean(prove, run)
    for leaves in (2.0, 2.001, 1.999):
        run = _observe(answer, _FakeClient(leaves), _Work(2.0))
        quiet = run.error is None or isinstance(run.error, HTTPException)
        told = f"The client left at {leaves:g} s, just as the work ended at 2 s, and {_outcome(run)}."
        prove(QUIET, quiet and run.value in ("value", None), told)
        prove_clean(prove, run)


# --- real sockets --------------------------------------------------------------------------------


def _check_sockets(answer: Any, prove: Prove) -> None:
    seen: dict[str, Any] = {}
    run = observe_real(lambda: _through_sockets(answer, seen))
    run.result()
    for number, got in enumerate(seen["stayed"]):
        told = f"Answer {number + 1} on one connection, to a client that stayed, was {plain(got) or 'nothing'}."
        prove(SOCKET_STAYS, got.startswith("200 ") and got.endswith(f'"work {number}"'), told)
    for how, state in seen["left"].items():
        told = f"A client {how}, and the work {state}."
        prove(SOCKET_STOPS, state == "cleaned up", told)
    errors = "; ".join(tell(error) for error in seen["errors"])
    prove(QUIET, not errors, f"The server had to log what came out of the route: {errors}.")
    prove_clean(prove, run)


async def _through_sockets(answer: Any, seen: dict[str, Any]) -> None:
    from fastapi import FastAPI, Request

    app, states, doors = FastAPI(), {}, {}
    seen.update(stayed=[], left={}, errors=[])

    @app.post("/poll/{name}")
    async def poll(request: Request, name: str) -> Any:
        async def work() -> str:
            states[name] = "went on"
            try:
                await doors[name].wait()
            except asyncio.CancelledError:
                states[name] = "was cut short while it cleaned up"
                await asyncio.sleep(0.005)
                states[name] = "cleaned up"
                raise
            return f"work {name}"

        try:
            return await answer(request, work)
        except Exception as error:
            if not hasattr(error, "status_code"):  # an HTTPException is an answer
                seen["errors"].append(error)
            raise

    async with _serving(app) as port:
        # One that stays, and asks twice on its connection.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            for name in "01":
                doors[name] = asyncio.Event()
                writer.write(f"POST /poll/{name} HTTP/1.1\r\nhost: course\r\ncontent-length: 4\r\n\r\nbody".encode())
                await settled(lambda name=name: name in states, lambda name=name: name in states)
                doors[name].set()
                answered = asyncio.create_task(_read_answer(reader))
                await settled(answered.done, answered.done)
                answered.cancel()
                got = (await asyncio.gather(answered, return_exceptions=True))[0]
                seen["stayed"].append(got if isinstance(got, str) else "")
        # Two that leave, in the two ways that a connection can end.
        for how in ("closed its connection", "lost its connection"):
            doors[how.split()[0]] = asyncio.Event()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            name = how.split()[0]
            with contextlib.closing(writer):
                writer.write(f"POST /poll/{name} HTTP/1.1\r\nhost: course\r\ncontent-length: 0\r\n\r\n".encode())
                await settled(lambda name=name: name in states, lambda name=name: name in states)
                if name == "lost":  # close() then sends a reset
                    wire = writer.get_extra_info("socket")
                    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await settled(lambda name=name: states.get(name), lambda name=name: states.get(name) == "cleaned up")
            seen["left"][how] = states.get(name, "never started")
            doors[name].set()
    await turns()


async def _read_answer(reader: asyncio.StreamReader) -> str:
    """Status and body of one answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].split()[0])
    return f"{head.split()[1]} {(await reader.readexactly(length)).decode()}"


@contextlib.asynccontextmanager
async def _serving(app: Any) -> AsyncIterator[int]:
    """uvicorn on this loop; yields its port. Interrupted at any point, it leaves no socket open."""
    from ..server_process import listen, uvicorn_server

    ready, logger = asyncio.Event(), logging.getLogger("uvicorn.error")
    with contextlib.ExitStack() as at_the_end:
        listener = at_the_end.enter_context(listen())
        at_the_end.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)  # the check tells what went wrong
        server = uvicorn_server(app, "asyncio", "auto", ready.set)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            await ready.wait()
            yield listener.getsockname()[1]
        finally:
            server.end()
            for connection in list(server.server_state.connections):
                connection.transport.abort()  # in an interrupt, uvicorn is cancelled, and closes nothing
            await serving
