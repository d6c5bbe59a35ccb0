"""One request of an ASGI application, as its client sees it: how it ended, and how long it took.

For a middleware that counts: give it what the server gave you, and run the application through it.

    request = Exchange(receive, send)
    try:
        await request.run(app, scope)
    finally:
        print(request.outcome, request.seconds)
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]

ASK_AFTER = 0.05  # seconds: hardly a client leaves sooner, and asking costs as much as a message


class Exchange:
    """What became of one request; `outcome` and `seconds` hold at any time, and are final after `run`.

    outcome: "2xx" to "5xx" by the status; "5xx" also when nothing was sent, or the application raised.
        "499" when the client had left before the last part was sent, or when there was no last part.
    """

    def __init__(self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        self._receive, self._send = receive, send
        self._start, self._end, self._status = time.perf_counter(), 0.0, 500
        self.outcome = "5xx"

    @property
    def seconds(self) -> float:
        """From the first call of the application to the end of its last message, or to now if it has sent none."""
        return (self._end or time.perf_counter()) - self._start

    async def run(self, app: Callable[..., Awaitable[None]], scope: Message) -> None:
        """Run the application for this request. Its exceptions pass."""
        try:
            await app(scope, self._receive, self._watch)
        except BaseException:
            self.outcome = "5xx"
            raise

    async def _watch(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self.outcome = message["status"], "499"  # until the last part
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            is_gone = time.perf_counter() - self._start > ASK_AFTER and self._client_left()
            self.outcome = "499" if is_gone else f"{self._status // 100}xx"
        await self._send(message)
        self._end = time.perf_counter()

    def _client_left(self) -> bool:
        """Whether the client's next message is there, and says that it left. A body that is still unread is dropped."""
        step = self._receive().__await__()
        try:
            step.send(None)  # one step by hand: awaiting would wait for a client who stays
        except StopIteration as done:
            return done.value["type"] == "http.disconnect"
        step.close()  # nothing yet; the server takes the waiter away
        return False
