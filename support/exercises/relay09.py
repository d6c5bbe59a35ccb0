"""The checker of exercise 9.2: a proxy that streams both ways, and keeps what belongs to one connection."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .engine import Exercise, three_hints
from .exchange09 import ANSWERED, ASKED, CLEANUP, PIECE, Exchange
from .faults import CANCELS, Calls, cancel_sweep
from .harness import Prove, Run, observe, plain, prove_clean, tell

HOP_UP = "hop-by-hop fields do not reach the upstream"
HOP_DOWN = "hop-by-hop fields do not reach the client"
HOST = "the client's Host does not reach the upstream"
KEEPS = "all other fields pass, repeated ones too"
WHOLE = "both bodies pass, byte for byte"
ORDER = "speaks ASGI: a start, pieces, and an end"
STREAMS = "each piece passes as it comes"
HELD = "holds less than 256 kB"
RECEIVES = "takes no part of the body for a disconnect"
LEAVES = "a client that leaves ends the call to the upstream"
CLOSES = "closes the answer, whatever happens"
ERROR_OUT = "an error of the upstream comes out"
ONCE = "calls the upstream once"
MOST, SOON = 256_000, 0.2  # bytes; simulated seconds
HOP = ["Connection", "Keep-Alive", "Proxy-Connection", "TE", "Transfer-Encoding", "Upgrade"]


def check_relay(answer: Any, prove: Prove) -> None:
    """Fields, bodies at every pace, a client that leaves at every moment, an upstream that breaks, a cancellation."""
    for scene in (_plain, *(functools.partial(_fields, style) for style in range(6)), _paces, _errors):
        scene(answer, prove)
    _leaving(answer, prove)
    _cancelled(answer, prove)


def _play(answer: Any, prove: Prove, exchange: Callable[[], Exchange]) -> tuple[Run, Exchange]:
    made: list[Exchange] = []

    async def scenario() -> None:
        made.append(exchange())
        try:
            await made[0].run(answer)
        finally:
            made[0].over = True

    return observe(scenario), made[0]


def _passed(prove: Prove, run: Run, exchange: Exchange, scene: str) -> None:
    """All that holds when nobody leaves and nothing breaks."""
    run.result()
    prove(
        RECEIVES, not exchange.lost_piece, "Two of its tasks awaited receive() at once: one gets what the other needs."
    )
    prove(ONCE, exchange.calls == 1, f"{scene}, it called the upstream {'never' if not exchange.calls else 'again'}.")
    sent = b"".join(exchange.piece(number) for number in range(exchange.up))
    prove(WHOLE, bytes(exchange.upstream_got) == sent, f"{scene}, the upstream did not get what the client sent.")
    prove(ORDER, not exchange.misspoken, exchange.misspoken)
    prove(ORDER, exchange.started is not None, f"{scene}, it sent no http.response.start.")
    told = f"{scene}, the answer never ended: the last piece has more_body=False."
    prove(ORDER, exchange.ended, told)
    count = exchange.up if exchange.echo else exchange.down
    back = b"".join(exchange.piece(number) for number in range(count))
    prove(WHOLE, bytes(exchange.client_got) == back, f"{scene}, the client did not get what the upstream sent.")
    prove(
        WHOLE,
        exchange.started["status"] == 203,
        f"The upstream answered 203, and it passed {exchange.started['status']}.",
    )
    closed = exchange.answer is not None and exchange.answer.closed
    prove(CLOSES, closed, f"{scene}, it did not await answer.aclose().")
    prove_clean(prove, run)


def _plain(answer: Any, prove: Prove) -> None:
    for up, down in ((0, 2), (2, 0), (1, 1), (3, 2)):
        run, exchange = _play(answer, prove, lambda up=up, down=down: Exchange(up, down))
        _passed(prove, run, exchange, f"With {up} pieces up and {down} down")


def _fields(style: int, answer: Any, prove: Prove) -> None:
    """Every hop-by-hop name, and more that Connection names: in one field or several, in any case."""
    case = (str.lower, str.title, str.upper)[style % 3]
    own = [["X-Hop-One", "X-Hop-Two"], ["X-Other"]][style // 3]
    named = [", ".join(["close", *own])] if style % 2 else [f" {name} ,," for name in [*own, "keep-alive"]]
    extra = [(case("Connection"), case(value)) for value in named]
    extra += [(case(name), "1") for name in HOP[1:]] + [((str.upper, str.lower)[style % 2](name), "1") for name in own]
    extra = [(name.encode(), value.encode()) for name, value in extra]
    half = len(extra) // 2
    asked, answered = [extra[:half] + fields + extra[half:] for fields in (ASKED, ANSWERED)]
    run, exchange = _play(answer, prove, lambda: Exchange(1, 1, asked=asked, answered=answered))
    _passed(prove, run, exchange, "With hop-by-hop fields")
    came = [(bytes(name).lower(), bytes(value)) for name, value in exchange.started["headers"]]
    gone = [name.lower().encode() for name in [*HOP, *own]]
    for lacking, fields, where in ((HOP_UP, exchange.fields_up, "The upstream"), (HOP_DOWN, came, "The client")):
        passed = [name.decode() for name, _ in fields if name in gone]
        listed = passed and passed[0] not in map(str.lower, HOP)
        told = f"{where} got {passed[0] if passed else ''}" + (", which Connection names." if listed else ".")
        prove(lacking, not passed, told + " Names differ in case, and Connection may come in several fields.")
    prove(HOST, b"host" not in dict(exchange.fields_up), "The upstream got the Host that the client had sent to you.")
    for fields, kept, where in ((exchange.fields_up, ASKED[1:], "upstream"), (came, ANSWERED, "client")):
        lost = [name.decode() for name, value in kept if fields.count((name, value)) != 1]
        told = f"The {where} got {lost[0] if lost else ''} not at all, or changed, or twice: it is no hop-by-hop field."
        prove(KEEPS, not lost, told)


def _paces(answer: Any, prove: Prove) -> None:
    """One side slow, then the other, both ways, and an upstream that answers while it reads."""
    many = 40
    for scene, make in (
        ("With a client that reads slowly", lambda: Exchange(0, many, down_takes=0.1)),
        ("With an upstream that reads slowly", lambda: Exchange(many, 1, up_takes=0.1)),
        ("With an upstream that answers slowly", lambda: Exchange(0, many, down_pace=0.1)),
        ("With a client that sends slowly", lambda: Exchange(many, 1, up_pace=0.1)),
    ):
        run, exchange = _play(answer, prove, make)
        _passed(prove, run, exchange, scene)
        for way in ("up", "down"):
            told = f"{scene}, it held {exchange.peak[way] // 1000} kB of the body at once."
            prove(HELD, exchange.peak[way] < MOST, told)
        told = f"{scene}, {many} pieces at 0.1 s each took {run.elapsed:g} s."
        prove(STREAMS, run.elapsed <= many * 0.1 + 1, told)
    run, exchange = _play(answer, prove, lambda: Exchange(many, many + 1, up_pace=0.1, echo=True))
    told = "The upstream answers each piece before it takes the next, and that came to a stop: read and write at the same time."
    prove(STREAMS, exchange.ended and run.elapsed <= many * 0.1 + 1, told)
    _passed(prove, run, exchange, "With an upstream that answers while it reads")
    prove(
        HELD, max(exchange.peak.values()) < MOST, "With an upstream that answers while it reads, it held over 256 kB."
    )
    run, exchange = _play(answer, prove, lambda: Exchange(0, 3, down_pace=5.0, leaves=12.0))
    told = "The upstream made a piece every 5 s, and the client left after 12 s without the first two: pass each as it comes."
    prove(STREAMS, len(exchange.client_got) >= 2 * PIECE, told)


def _errors(answer: Any, prove: Prove) -> None:
    for fail, when in (("call", "before its answer"), ("answer", "after two pieces of its answer")):
        run, exchange = _play(answer, prove, lambda fail=fail: Exchange(2, 5, fail=fail))
        told = f"The upstream broke {when}, and it called it again: what has passed cannot be taken back."
        prove(ONCE, exchange.calls == 1, told)
        told = f"it raised {tell(run.error)}" if run.error else "it returned as if all were well"
        prove(
            ERROR_OUT,
            exchange.error is not None and run.raised(exchange.error),
            f"The upstream broke {when}, and {told}.",
        )
        told = f"The upstream broke {when}, and it ended the answer with more_body=False: half a body looks whole."
        prove(ERROR_OUT, not exchange.ended, told)
        closed = fail == "call" or exchange.answer.closed
        prove(CLOSES, closed, f"The upstream broke {when}, and it did not await answer.aclose().")
        prove_clean(prove, run)


def _leaving(answer: Any, prove: Prove) -> None:
    """The client leaves in each phase. The upstream would go on for long."""
    for phase, make in (
        ("while the upstream works", lambda: Exchange(1, 5, head=50.0, leaves=2.0)),
        ("while it sends its body", lambda: Exchange(9, 5, up_pace=1.0, leaves=2.5)),
        ("while the upstream reads its body", lambda: Exchange(9, 5, up_takes=1.0, head=50.0, leaves=2.5)),
        (
            "while the upstream is silent in the middle of its answer",
            lambda: Exchange(0, 5, down_pace=10.0, leaves=12.0),
        ),
        ("while it reads the answer", lambda: Exchange(0, 50, down_takes=1.0, leaves=4.5)),
        ("at once", lambda: Exchange(1, 5, head=50.0, leaves=0.0)),
    ):
        run, exchange = _play(answer, prove, make)
        # An upload that is not taken: the leaving is behind it in the line, and is heard when the rest is.
        late = 1.0 + SOON if "reads its body" in phase else SOON
        prove(LEAVES, exchange.calls <= 1, f"The client left {phase}, and it called the upstream again.")
        late_by = None if exchange.stopped_at is None else exchange.stopped_at - exchange.leaves
        told = "went on" if late_by is None else f"was ended {late_by:.2g} s later"
        told = f"The client left {phase}, and the call to the upstream {told}."
        ended = not exchange.calls or exchange.stopped_at is not None and exchange.stopped_at <= exchange.leaves + late
        prove(LEAVES, ended, told)
        told = f"The client left {phase}, and it returned {run.elapsed - exchange.leaves:.2g} s later."
        prove(LEAVES, run.elapsed <= exchange.leaves + late + CLEANUP + 1e-9, told)
        told = (
            f"The client left {phase}, and it raised {tell(run.error) if run.error else ''}: that is no error of yours."
        )
        prove(LEAVES, run.error is None, told)
        if exchange.answer is not None:
            prove(CLOSES, exchange.answer.closed, f"The client left {phase}, and it did not await answer.aclose().")
        prove_clean(prove, run)


def _cancelled(answer: Any, prove: Prove) -> None:
    made: list[Exchange] = []

    async def scenario(calls: Calls, drive: Any) -> Any:
        made.append(Exchange(2, 3, up_pace=0.1, up_takes=0.1, down_pace=0.1, down_takes=0.1))
        return await drive(made[-1].run(answer))

    for run, _calls, canceller in cancel_sweep(scenario):
        exchange, where = made[-1], f"Cancelled at {canceller},"
        told = f"it raised {tell(run.error)}" if run.error else f"it returned {plain(run.value)}"
        prove(CANCELS, run.was_cancelled, f"{where} {told}: let CancelledError through, or raise it again.")
        late = run.elapsed - canceller.time
        prove(CANCELS, late <= SOON, f"{where} it took {late:.2g} s more: stop at once.")
        if exchange.answer is not None:
            prove(CLOSES, exchange.answer.closed, f"{where} it did not await answer.aclose().")
        prove_clean(prove, run)


EXERCISES = [
    Exercise(
        "9.2",
        "a proxy that streams",
        "async def proxy(scope, receive, send, call)",
        ("scope", "receive", "send", "call"),
        three_hints("""
        Which fields belong to this connection only, and who says so? And which two things can come
        from receive(): in which order, and who may wait for them?

        Pass call() an async generator that takes pieces from receive(): then nothing is read before
        it is wanted. When it is through, one task waits for http.disconnect. A TaskGroup ends the
        call when that task raises.

        async with asyncio.TaskGroup() as group: watch = group.create_task(gone()), then async with
        contextlib.aclosing(await call(method, path, fields, body())) as answer: send the start, async
        for piece in answer: await send(...). Then the end, and watch.cancel(). Around it: except* Left.
        """),
        check_relay,
    )
]
