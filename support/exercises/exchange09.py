"""What stands around a proxy in exercise 9.2: a client behind its server, and an upstream. On the virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from .faults import Injected

PIECE = 1 << 16  # bytes
CLEANUP, STAYS = 0.05, 1000.0  # simulated seconds; a client that stays is there for so long
ASKED = [
    (b"host", b"shop.example"), (b"accept", b"text/plain"), (b"accept", b"application/json"), (b"x-request-id", b"r-1"),
    (b"authorization", b"Bearer abc"), (b"keep-alive-policy", b"mine"), (b"upgrade-insecure-requests", b"1"),
    (b"content-type", b"text/plain"), (b"cache-control", b"no-cache"), (b"x-closed", b"no"),
]  # fmt: skip
ANSWERED = [
    (b"content-type", b"text/plain"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"etag", b'"v1"'),
    (b"cache-control", b"no-store"), (b"vary", b"accept"), (b"host", b"of-no-meaning-here"), (b"x-closed", b"yes"),
]  # fmt: skip


class Answer:
    """What call() returns: ``status``, ``headers``, pieces by ``async for``, and ``aclose()``."""

    def __init__(self, exchange: Exchange) -> None:
        self.status, self.headers, self._exchange, self.closed = 203, list(exchange.answered), exchange, False
        self._pieces = exchange.pieces()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.closed:
            raise RuntimeError("the answer is closed")
        return await anext(self._pieces)

    async def aclose(self) -> None:
        self.closed = True
        self._exchange.note_closed()
        await self._exchange.stop_echo()


class Exchange:
    """A client and an upstream, and all that passes between them. Times are in simulated seconds.

    Args:
        up, down: how many pieces of 64 KiB each side sends; ``echo``: the upstream answers while it reads.
        up_pace, down_pace: seconds in which each is made; up_takes, down_takes: in which it is taken.
        leaves: when the client leaves. ``fail``: where an error comes: "call", "answer".
    """

    def __init__(
        self, up: int = 0, down: int = 2, *, up_pace: float = 0.0, down_pace: float = 0.0, up_takes: float = 0.0,
        down_takes: float = 0.0, head: float = 0.1, echo: bool = False, leaves: float | None = None, fail: str = "",
        asked: list = ASKED, answered: list = ANSWERED,
    ) -> None:  # fmt: skip
        self.up, self.down, self.echo, self.leaves, self.fail, self.head = up, down, echo, leaves, fail, head
        self.up_pace, self.down_pace, self.up_takes, self.down_takes = up_pace, down_pace, up_takes, down_takes
        self.asked, self.answered = asked, answered
        self.calls = self.given_up = self.held_up = self.held_down = 0
        self.peak = {"up": 0, "down": 0}
        self.upstream_got, self.client_got, self.late = bytearray(), bytearray(), 0.0
        self.fields_up: list = []
        self.started: dict[str, Any] | None = None
        self.ended, self.over, self.misspoken = False, False, ""
        self.stopped_at: float | None = None  # when the call ended, or its answer was closed
        self.answer: Answer | None = None
        self.error: Injected | None = None
        self.receiving = 0
        self.lost_piece = False
        self._echo: asyncio.Task[None] | None = None
        self._echoed: asyncio.Queue[bytes | None] = asyncio.Queue(1)

    def piece(self, number: int) -> bytes:
        return b"%06d" % number + bytes(PIECE - 6)

    def run(self, answer: Any) -> Any:
        scope = {"type": "http", "method": "POST", "path": "/things", "headers": list(self.asked)}
        return answer(scope, self.receive, self.send, self.call)

    # --- the client, behind its server ---

    async def receive(self) -> dict[str, Any]:
        now = asyncio.get_running_loop().time
        self.receiving += 1
        try:
            if self.given_up < max(1, self.up):
                if self.receiving > 1:
                    self.lost_piece = True  # two wait, and the piece goes to one of them
                await self._until_left(self.up_pace)
                if self.leaves is not None and now() >= self.leaves:
                    return {"type": "http.disconnect"}
                body = self.piece(self.given_up) if self.up else b""
                self.given_up += 1
                self.held_up += len(body)
                self.peak["up"] = max(self.peak["up"], self.held_up)
                return {"type": "http.request", "body": body, "more_body": self.given_up < self.up}
            await self._until_left(STAYS)
            return {"type": "http.disconnect"}
        finally:
            self.receiving -= 1

    async def _until_left(self, seconds: float) -> None:
        left = seconds if self.leaves is None else max(0.0, self.leaves - asyncio.get_running_loop().time())
        await asyncio.sleep(0 if self.ended else min(seconds, left))

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.misspoken = self.misspoken or ("It sent two starts." if self.started else "")
            self.started = message
            return
        self.misspoken = self.misspoken or ("" if self.started else "It sent a piece of the body before the start.")
        self.misspoken = self.misspoken or ("It sent a piece after the end." if self.ended else "")
        body = bytes(message.get("body", b""))
        await asyncio.sleep(self.down_takes * bool(body))
        self.held_down -= len(body)
        self.client_got += body
        self.ended = not message.get("more_body", False)

    # --- the upstream ---

    async def call(self, method: str, path: str, headers: list, body: Any) -> Answer:
        self.calls += 1
        if self.calls > 1:
            self.break_()
        self.fields_up = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        try:
            if self.echo:
                self._echo = asyncio.ensure_future(self._read(body))
            elif self.up or body is not None:
                await self._read(body)
            await asyncio.sleep(self.head)
            if self.fail == "call":
                self.break_()
        except BaseException:
            self.note_closed()
            await asyncio.sleep(CLEANUP)
            raise
        self.answer = Answer(self)
        return self.answer

    async def _read(self, body: Any) -> None:
        async for piece in body:
            await asyncio.sleep(self.up_takes)
            self.held_up -= len(piece)
            self.upstream_got += piece
            if self.echo and piece:
                await self._echoed.put(bytes(piece))
        await self._echoed.put(None) if self.echo else None

    async def pieces(self) -> AsyncIterator[bytes]:
        for number in range(self.down):
            await asyncio.sleep(self.down_pace)
            if self.fail == "answer" and number == 2:
                self.break_()
            piece = self.piece(number)
            if self.echo and (piece := await self._echoed.get()) is None:
                return
            self.held_down += len(piece)
            self.peak["down"] = max(self.peak["down"], self.held_down)
            yield piece

    def break_(self) -> None:
        self.error = Injected("failure injected into the upstream")
        raise self.error

    def note_closed(self) -> None:
        if self.stopped_at is None and not self.over:
            self.stopped_at = asyncio.get_running_loop().time()

    async def stop_echo(self) -> None:
        if self._echo:
            self._echo.cancel()
            await asyncio.wait([self._echo])
