"""What became of a request: the status, a client who left, a crash; and the time until the last part."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import pytest

from support import exchange, serve
from support.exchange import Exchange

HEAD = {"type": "http.response.start", "status": 404, "headers": []}
PART = {"type": "http.response.body", "body": b"a", "more_body": True}
LAST = {"type": "http.response.body", "body": b"b"}


class Clock:
    """Stands for time.perf_counter; time passes only by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(exchange.time, "perf_counter", clock)
    return clock


class Peer:
    """A server's side of a connection: what it received, and what the client says next, if anything."""

    def __init__(self, *says: str) -> None:
        self.says, self.got, self.asked, self.more = list(says), [], 0, asyncio.Event()

    async def receive(self) -> dict:
        self.asked += 1
        if not self.says:
            await self.more.wait()
        return {"type": self.says.pop(0)}

    async def send(self, message: dict) -> None:
        self.got.append(message)


def run(clock: Clock, peer: Peer, *steps: float | dict | Exception) -> Exchange:
    """An application that does the steps: it sends a message, lets seconds pass, or raises."""

    async def app(scope, receive, send) -> None:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, dict):
                await send(step)
            else:
                clock.now += step

    request = Exchange(peer.receive, peer.send)
    with contextlib.suppress(ArithmeticError):
        asyncio.run(request.run(app, {"type": "http"}))
    return request


@pytest.mark.parametrize(
    ("says", "steps", "outcome"),
    [
        ([], [1, HEAD, LAST], "4xx"),
        (["http.disconnect"], [1, HEAD, LAST], "499"),
        (["http.disconnect"], [HEAD, PART, 1, LAST], "499"),
        (["http.request"], [1, HEAD, LAST], "4xx"),
        (["http.disconnect"], [0.01, HEAD, LAST], "4xx"),  # too soon to be asked
        ([], [HEAD, PART], "499"),
        ([], [], "5xx"),
        ([], [HEAD, PART, ArithmeticError()], "5xx"),
        ([], [ArithmeticError()], "5xx"),
    ],
)
def test_an_outcome_is_what_the_client_saw(clock: Clock, says: list, steps: list, outcome: str) -> None:
    peer = Peer(*says)
    request = run(clock, peer, *steps)
    assert request.outcome == outcome
    assert peer.got == [step for step in steps if isinstance(step, dict)]  # each message is passed on


def test_the_time_ends_with_the_last_part(clock: Clock) -> None:
    assert run(clock, Peer(), 1, HEAD, 2, PART, 4, LAST, 8).seconds == 7
    assert run(clock, Peer(), 3, ArithmeticError()).seconds == 3


def test_asking_waits_for_nobody_and_leaves_no_waiter(clock: Clock) -> None:
    peer = Peer()
    run(clock, peer, 1, HEAD, LAST)
    assert peer.asked == 1 and not peer.more._waiters
    run(clock, quick := Peer(), HEAD, LAST)
    assert quick.asked == 0


def test_an_error_of_the_application_passes() -> None:
    async def app(scope, receive, send) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        asyncio.run(Exchange(Peer().receive, Peer().send).run(app, {"type": "http"}))


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_real_server_tells_who_left(leaves: bool, http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ASK_AFTER", -1)  # always
    seen: list[str] = []
    begun = threading.Event()

    async def answer(scope, receive, send) -> None:
        begun.set()
        await receive()
        if leaves:
            assert (await receive())["type"] == "http.disconnect"
        await send(HEAD)
        await send(LAST)

    async def app(scope, receive, send) -> None:
        if scope["type"] == "http":
            request = Exchange(receive, send)
            await request.run(answer, scope)
            seen.append(request.outcome)

    with serve(app, in_process=True, http=http) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=9) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert begun.wait(9)  # a server that is told to end answers none whom it has not met
            while not leaves and client.recv(1000):
                pass
    assert seen == (["499"] if leaves else ["4xx"])  # stop() waited for the application
