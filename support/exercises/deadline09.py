"""The checker of exercise 9.4, deadline propagation: attempts, pauses and body within one client's budget."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .engine import Exercise, three_hints
from .faults import Calls, cancel_sweep, prove_cancelled
from .harness import NO_ERROR, Failed, Prove, observe, plain, prove_clean, tell

TOLD = "tells each attempt what is left of the budget"
BUDGET = "attempts, pauses and body together keep to the budget"
ALL_OF_IT = "an attempt may use all that is left"
RETRIES = "tries again while there is time"
AT_MOST = "at most three attempts, 0.1 s apart"
TRANSIENT = "tries again only after a lost connection, 502, 503 and 504"
FIRST_BYTE = "no retry after the first byte"
NO_SLEEP = "does not sleep into the deadline"
GIVES_UP = "giving up, passes on the last reply or error"
ONE_REPLY = "the client gets one reply, whole"
STREAMS = "passes each piece on as it comes"
CLOSES = "closes each reply before the next attempt"
SPENT = "makes no attempt when nothing is left"
HEADER, PAUSE, ATTEMPTS = "x-deadline-ms", 0.1, 3  # seconds between two attempts
EXACT = 1e-6  # seconds: how far sums of floating point numbers may be off


@dataclass(frozen=True)
class _Act:
    """What the upstream does at one attempt; ``status`` None: the connection is lost instead."""

    after: float  # seconds until the status, or until the connection is lost
    status: int | None = 200
    pieces: tuple[tuple[float, bytes], ...] = ((0.0, b"all"),)  # seconds before each piece, and the piece
    breaks: bool = False  # the connection is lost after the pieces
    error: type[Exception] = ConnectionRefusedError  # what ``send`` raises when there is no status


LOST = _Act(0.2, None)


class _Reply:
    """As the answer sees it: ``status``, and pieces in ``async for``."""

    def __init__(self, act: _Act) -> None:
        self.status, self._act = act.status, act

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for seconds, piece in self._act.pieces:
            await asyncio.sleep(seconds)
            yield piece
        if self._act.breaks:
            raise ConnectionResetError("the upstream closed the connection in the middle of the body")


class _Bench:
    """One forwarded request: what the upstream was asked, what the client got, and how it ended."""

    def __init__(self, acts: list[_Act], budget_ms: float, *, calls: Calls | None = None, client_gone: bool = False):
        self.acts, self.budget_ms, self.calls, self.client_gone = acts, budget_ms, calls or Calls(), client_gone
        self.began: list[float] = []  # when the attempts began
        self.told: list[Any] = []  # their headers
        self.written: list[tuple[float, bytes]] = []
        self.open = self.peak = 0
        self.value: Any = None
        self.error: BaseException | None = None
        self.start = self.took = 0.0

    @contextlib.asynccontextmanager
    async def send(self, headers: Any) -> AsyncIterator[_Reply]:
        """What the answer calls: one attempt."""
        act = self.acts[min(len(self.began), len(self.acts) - 1)]
        self.began.append(self._now())
        self.told.append(headers)
        self.open += 1
        self.peak = max(self.peak, self.open)
        try:
            with self.calls.one(f"attempt {len(self.began)}"):
                await asyncio.sleep(act.after)
                if act.status is None:
                    raise act.error(f"attempt {len(self.began)} got no reply")
                yield _Reply(act)
        finally:
            self.open -= 1

    async def write(self, piece: bytes) -> None:
        """What the answer calls: one piece to the client."""
        await asyncio.sleep(0)
        if self.client_gone:
            raise BrokenPipeError("the client has left")
        self.written.append((self._now(), piece))

    async def forward(self, answer: Any, drive: Callable[[Any], Any] | None = None) -> None:
        """Run the answer. A cancellation passes when ``drive`` makes it."""
        self.start = asyncio.get_running_loop().time()
        try:
            forwarding = answer(self.send, self.write, self.budget_ms)
            self.value = await (drive(forwarding) if drive else forwarding)
        except (Failed, NotImplementedError, KeyboardInterrupt):
            raise
        except BaseException as caught:
            if drive:
                raise
            self.error = caught
        self.took = self._now()
        if self.value is Ellipsis:
            raise NotImplementedError

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self.start

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.written)

    def __str__(self) -> str:
        ended = f"it raised {tell(self.error)}" if self.error else f"it returned {plain(repr(self.value))}"
        return f"after {_attempts(len(self.began))}, at {self.took:g} s, {ended}"


def _attempts(count: int) -> str:
    return f"{count} attempt{'s' if count != 1 else ''}"


def check_forward(answer: Any, prove: Prove) -> None:
    """Scenes with one upstream that is slow, refuses or breaks off, and a cancellation at every await."""
    for scene in (
        _well, _tries_again, _told, _all_of_it, _hangs, _gives_up, _permanent, _first_byte, _near_the_end, _spent,
    ):  # fmt: skip
        run = observe(functools.partial(scene, answer, prove))
        run.result()
        prove_clean(prove, run)
    # "woken" is left out: before Python 3.12 a wait_for that has its result swallows a cancellation.
    for run, calls, canceller in cancel_sweep(functools.partial(_cancelled, answer), moments=["suspended"]):
        prove_cancelled(prove, run, calls, canceller, 0)


async def _bench(answer: Any, prove: Prove, acts: list[_Act], budget_ms: float, **how: Any) -> _Bench:
    """Forward one request, and prove what holds of each."""
    await asyncio.sleep(7)  # a request never comes when the loop's clock is at 0
    bench = _Bench(acts, budget_ms, **how)
    await bench.forward(answer)
    told = f"Budget {budget_ms:g} ms: {bench}."
    prove(BUDGET, bench.took <= max(budget_ms, 0) / 1000 + EXACT, told)
    prove(AT_MOST, len(bench.began) <= ATTEMPTS, told)
    prove(CLOSES, bench.peak <= 1 and not bench.open, f"{told} {bench.peak} replies were open at once.")
    return bench


def _prove_reply(prove: Prove, bench: _Bench, lacking: str, status: int, body: bytes, scene: str) -> None:
    prove(lacking, bench.error is None and bench.value == status, f"{scene}: {bench}, and {status} was expected.")
    told = f"{scene}: the client got {bench.body!r:.60}, and {body!r:.60} was expected."
    prove(ONE_REPLY, bench.body == body, told)


async def _well(answer: Any, prove: Prove) -> None:
    pieces = ((0.1, b"one "), (0.2, b"two "), (0.3, b"three"))
    bench = await _bench(answer, prove, [_Act(0.2, 200, pieces)], 5000)
    if bench.error is not None and not bench.began:
        prove(NO_ERROR, False, f"Before any attempt it raised {tell(bench.error)}.")
    _prove_reply(prove, bench, ONE_REPLY, 200, b"one two three", "One reply with three pieces")
    times = [round(at, 6) for at, _ in bench.written]
    told = f"Pieces came at 0.3, 0.5 and 0.8 s, and went to the client at {times}: write each before you ask for more."
    prove(STREAMS, times == [0.3, 0.5, 0.8], told)
    prove(RETRIES, len(bench.began) == 1, f"A reply with status 200, and yet {bench}.")


async def _told(answer: Any, prove: Prove) -> None:
    bench = await _bench(answer, prove, [LOST, _Act(0.25, 503), _Act(0.1)], 2000)
    for at, headers in zip(bench.began, bench.told, strict=True):
        left = bench.budget_ms - 1000 * at
        text = headers.get(HEADER) if isinstance(headers, Mapping) else None
        told = f"Of 2000 ms, {left:.0f} were left, and the attempt was sent {plain(repr(headers))}: "
        told += f'send {{"{HEADER}": "..."}} with whole milliseconds.'
        prove(TOLD, isinstance(text, str) and text.isdigit() and abs(int(text) - left) <= 1, told)


async def _all_of_it(answer: Any, prove: Prove) -> None:
    for acts, budget_ms in (([_Act(2.9)], 3000), ([LOST, _Act(2.6)], 3000), ([_Act(0.1, 200, ((2.7, b"all"),))], 3000)):
        bench = await _bench(answer, prove, acts, budget_ms)
        _prove_reply(prove, bench, ALL_OF_IT, 200, b"all", "A slow reply, complete 0.1 s or more before the deadline")


async def _hangs(answer: Any, prove: Prove) -> None:
    slow_body = tuple((0.4, b"piece") for _ in range(9))
    for acts, attempts, scene in (
        ([_Act(60)], 1, "The upstream hangs"),
        ([LOST, _Act(60)], 2, "The second attempt hangs"),
        ([_Act(0.1, 200, slow_body)], 1, "The body takes longer than the budget"),
    ):
        bench = await _bench(answer, prove, acts, 1000)
        told = f"{scene}, with 1000 ms: {bench}. TimeoutError, at 1 s, was expected."
        prove(BUDGET, isinstance(bench.error, TimeoutError) and abs(bench.took - 1) <= EXACT, told)
        lacking = FIRST_BYTE if bench.written else AT_MOST
        prove(lacking, len(bench.began) == attempts, told)


async def _tries_again(answer: Any, prove: Prove) -> None:
    for first in (LOST, *(_Act(0.2, status, ((0.0, b"busy"),)) for status in (502, 503, 504))):
        what = "lost connections" if first.status is None else f"replies with {first.status}"
        for failures in (1, 2):
            bench = await _bench(answer, prove, [first] * failures + [_Act(0.3)], 5000)
            _prove_reply(prove, bench, RETRIES, 200, b"all", f"First {what}, {failures} of them, then a reply")
            apart = [round(0.3 * number, 6) for number in range(failures + 1)]
            times = [round(at, 6) for at in bench.began]
            told = f"After {what}, 0.2 s each, the attempts began at {times} s, and {apart} was expected."
            prove(AT_MOST, times == apart, told)


async def _gives_up(answer: Any, prove: Prove) -> None:
    bench = await _bench(answer, prove, [LOST], 5000)
    told = f"Three attempts lost their connection: {bench}. The third one's error was expected."
    prove(RETRIES, len(bench.began) == ATTEMPTS, told)
    prove(GIVES_UP, isinstance(bench.error, ConnectionRefusedError) and "attempt 3" in str(bench.error), told)
    prove(NO_SLEEP, abs(bench.took - 0.8) <= EXACT, f"{told} There is nothing to wait for after the last attempt.")
    busy = [_Act(0.2, 503, ((0.0, b"busy %d" % number),)) for number in (1, 2, 3)]
    bench = await _bench(answer, prove, busy, 5000)
    prove(RETRIES, len(bench.began) == ATTEMPTS, f"Three replies with status 503: {bench}.")
    _prove_reply(prove, bench, GIVES_UP, 503, b"busy 3", "Three replies with status 503")


async def _permanent(answer: Any, prove: Prove) -> None:
    for status in (201, 304, 400, 404, 409, 429, 500, 501):
        bench = await _bench(answer, prove, [_Act(0.1, status, ((0.0, b"told"),))], 5000)
        told = f"The upstream answered {status}, and it made {_attempts(len(bench.began))}."
        prove(TRANSIENT, len(bench.began) == 1, told)
        _prove_reply(prove, bench, ONE_REPLY, status, b"told", f"A reply with status {status}")
    bench = await _bench(answer, prove, [_Act(0.1, None, error=ValueError), _Act(0.1)], 5000)
    told = f"send raised a ValueError, which no further attempt can cure: {bench}."
    prove(TRANSIENT, len(bench.began) == 1 and isinstance(bench.error, ValueError), told)


async def _first_byte(answer: Any, prove: Prove) -> None:
    broken = _Act(0.1, 200, ((0.1, b"half"),), breaks=True)
    bench = await _bench(answer, prove, [broken, _Act(0.1)], 5000)
    told = f"The connection broke after a piece had gone to the client: {bench}; the client got {bench.body!r}."
    good = len(bench.began) == 1 and isinstance(bench.error, ConnectionResetError)
    prove(FIRST_BYTE, good, f"{told} Let that error out.")
    bench = await _bench(answer, prove, [_Act(0.1)], 5000, client_gone=True)
    told = f"write raised, as the client had left: {bench}. Whether a byte got through, nobody knows."
    prove(FIRST_BYTE, len(bench.began) == 1 and isinstance(bench.error, BrokenPipeError), told)
    empty = _Act(0.1, 200, (), breaks=True)
    bench = await _bench(answer, prove, [empty, _Act(0.1)], 5000)
    _prove_reply(prove, bench, RETRIES, 200, b"all", "The connection broke before the first piece; then a reply")


async def _near_the_end(answer: Any, prove: Prove) -> None:
    for left_ms in (20, 90):  # less than the pause: waiting could only end in the deadline
        bench = await _bench(answer, prove, [LOST], 200 + left_ms)
        told = f"The connection was lost {left_ms} ms before the deadline: {bench}. A pause takes 100 ms."
        prove(NO_SLEEP, abs(bench.took - 0.2) <= EXACT, told)
        prove(GIVES_UP, isinstance(bench.error, ConnectionRefusedError), told)
        bench = await _bench(answer, prove, [_Act(0.2, 503, ((0.0, b"busy"),))], 200 + left_ms)
        prove(NO_SLEEP, abs(bench.took - 0.2) <= EXACT, f"A 503, {left_ms} ms before the deadline: {bench}.")
        _prove_reply(prove, bench, GIVES_UP, 503, b"busy", f"A 503, {left_ms} ms before the deadline")
    for left_ms in (110, 150, 300):  # more than the pause
        bench = await _bench(answer, prove, [LOST, _Act(0.005)], 200 + left_ms)
        scene = f"The connection was lost {left_ms} ms before the deadline; a pause takes 100 ms, the next reply 5 ms"
        _prove_reply(prove, bench, RETRIES, 200, b"all", scene)


async def _spent(answer: Any, prove: Prove) -> None:
    for budget_ms in (0, -40):
        bench = await _bench(answer, prove, [_Act(0.0)], budget_ms)
        told = f"Budget {budget_ms} ms: {bench}. TimeoutError, without an attempt, was expected."
        prove(SPENT, isinstance(bench.error, TimeoutError) and not bench.began, told)


async def _cancelled(answer: Any, calls: Calls, drive: Any) -> None:
    bench = _Bench([LOST, _Act(0.2, 503), _Act(0.2, 200, ((0.1, b"one"), (0.1, b"two")))], 5000, calls=calls)
    await bench.forward(answer, drive)


EXERCISES = [
    Exercise(
        "9.4",
        "Deadline propagation",
        "async def forward(send, write, budget_ms)",
        ("send", "write", "budget_ms"),
        three_hints("""
            The budget is a length of time; a deadline is a moment. Which of the two stays true while attempts and
            pauses go by, and what can still be taken back once a piece is with the client?

            asyncio.timeout_at around all attempts, made once. Before each attempt, and before each pause, look at
            loop.time(). A flag that is set before the first write says that a retry is no longer possible.

            def another(): return number < 3 and loop.time() + 0.1 < deadline. Inside async with send(...) as reply:
            if reply.status not in (502, 503, 504) or not another(): write the pieces, and return reply.status.
        """),
        check_forward,
    )
]
