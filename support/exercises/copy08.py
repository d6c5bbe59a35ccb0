"""The checker of exercise 8.3: a copy from a stream to a slow reader, a gigabyte of it, and what can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from types import SimpleNamespace
from typing import Any

from .engine import Exercise, three_hints
from .faults import CANCELS, Calls, Injected, cancel_sweep
from .harness import Failed, Prove, observe, plain, prove_clean, tell

WHOLE = "copies every byte, in order"
BINARY = "copies bytes of any kind"
COUNT = "returns how many bytes it copied"
DELIVERED = "closes, and returns when the other end has everything"
BOUND = "never holds more than 1 MB"
PIECES = "reads at least 16 KiB at a time"
PACE = "goes on as fast as the other end takes it"
ERROR_OUT = "an error comes out"
HALF = "half a copy does not end like a whole one"
GIGABYTE, MOST, LEAST = 10**9, 10**6, 16 * 1024  # bytes: in all, held at once, asked for at once
HIGH, LOW, LINE = 64 * 1024, 16 * 1024, 64 * 1024  # bytes: drain() waits above HIGH until LOW is left; longest line
RATE = 1e8  # bytes per second that the other end takes


class _Pipe:
    """A reader and a writer as asyncio's streams are, and what lies between them. ``data`` None: a gigabyte of zeros.

    No byte of the gigabyte is copied: pieces of the same length are one object, and only counted.
    ``fail``: where an error comes: "read", "drain" or "wait_closed". ``stuck``: the other end takes nothing.
    """

    def __init__(self, data: bytes | None = None, fail: str = "", pace: float = 0.0, stuck: bool = False) -> None:
        self.data, self.total, self.fail, self.pace = data, GIGABYTE if data is None else len(data), fail, pace
        self.rate = 0.0 if stuck else RATE if data is None else RATE / 100
        self.read_so_far = self.written = self.peak = 0
        self.taken, self.since = 0.0, 0.0  # bytes that the other end has, and when that was so
        self.got: list[bytes] = []
        self.closed = self.aborted = False
        self.error: BaseException | None = None  # injected, or raised because a line has no end
        self.finding: Failed | None = None  # kept, for an answer may swallow what is raised in its calls
        self.dice, self.pieces = random.Random(3), {}
        self.reader = SimpleNamespace(
            read=self.read, readline=self.readline, readuntil=self.readline, readexactly=self.readexactly,
            at_eof=lambda: self.read_so_far == self.total,
        )  # fmt: skip
        self.writer = SimpleNamespace(
            write=self.write, writelines=lambda parts: self.write(b"".join(parts)), drain=self.drain,
            write_eof=lambda: None, can_write_eof=lambda: True, close=self.close, wait_closed=self.wait_closed,
            is_closing=lambda: self.closed or self.aborted,
        )  # fmt: skip
        self.writer.transport = SimpleNamespace(
            abort=self.abort, close=self.close, get_write_buffer_size=self.waiting,
            is_closing=self.writer.is_closing, set_write_buffer_limits=lambda *_, **__: None,
        )  # fmt: skip

    # --- the side that is read ---

    async def read(self, size: int = -1) -> bytes:
        left = await self._come(size)
        if size < 0:
            return self._handed(left)
        size = min(size, left)
        if size > 1 and self.data is not None:  # what has come so far: any number of bytes
            size = self.dice.choice((1, size // 2, size, size))
        return self._handed(size)

    async def readexactly(self, size: int) -> bytes:
        left = await self._come(size)
        part = self._handed(min(size, left))
        if left < size:
            raise asyncio.IncompleteReadError(part, size)
        return part

    async def _come(self, size: int) -> int:
        """Wait for data, and return how much is left. Of a gigabyte, who asks for too much or little gets nothing."""
        if self.pace:
            await asyncio.sleep(self.pace)
        left = self.total - self.read_so_far
        if self.fail == "read" and left <= self.total // 2:
            self._break()
        if self.data is None and not LEAST <= size <= MOST:
            self._insist(BOUND, size >= 0, "It asked for all there is: that is a gigabyte.")
            self._insist(BOUND, size <= MOST, f"It asked for {size} bytes at once.")
            self._insist(PIECES, False, f"It asked for {size} bytes at once. A gigabyte in such pieces takes ages.")
        return left

    async def readline(self, end: bytes = b"\n") -> bytes:
        if self.pace:
            await asyncio.sleep(self.pace)
        rest = (self.data or b"\n" * 9)[self.read_so_far :]
        found = rest.find(end) + len(end)
        if (found or len(rest)) > LINE:
            self.error = ValueError("Separator is not found, and chunk exceed the limit")
            raise self.error
        return self._handed(found or len(rest))

    def _handed(self, size: int) -> bytes:
        start, self.read_so_far = self.read_so_far, self.read_so_far + size
        held = self.read_so_far - self._taken()
        self.peak = max(self.peak, held)
        if self.data is None:
            self._insist(BOUND, held <= MOST, "More than 1 MB was read, and not yet taken by the other end.")
            return self.pieces.setdefault(size, bytes(size))
        return self.data[start : start + size]

    # --- the side that is written ---

    def write(self, part: bytes) -> None:
        if self.closed or self.aborted:
            raise RuntimeError("the stream is closed: nothing can be written")
        self._taken()
        self.written += len(part)
        if self.data is not None:
            self.got.append(bytes(part))

    async def drain(self) -> None:
        if self.fail == "drain" and self.written > self.total // 2:
            self._break()
        if self.waiting() > HIGH:
            await self._until(LOW)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        if not self.closed or self.waiting():
            self.aborted = True

    async def wait_closed(self) -> None:
        if not self.closed:
            await asyncio.Event().wait()
        if self.fail == "wait_closed":
            self._break()
        await self._until(0)

    async def _until(self, left: int) -> None:
        if not self.rate:
            await asyncio.Event().wait()
        await asyncio.sleep((self.waiting() - left) / self.rate)

    def waiting(self) -> int:
        """Bytes that were written, and that the other end has not taken."""
        return round(self.written - self._taken())

    def _taken(self) -> float:
        now = asyncio.get_running_loop().time()
        self.taken = min(self.written, self.taken + (now - self.since) * self.rate)
        self.since = now
        return self.taken

    # --- what the checker does with it ---

    def _break(self) -> None:
        self.error = Injected(f"failure injected into {self.fail}")
        raise self.error

    def _insist(self, lacking: str, ok: bool, told: str) -> None:
        if not ok:
            self.finding = self.finding or Failed(lacking, told)
            raise self.finding


def check_copy(answer: Any, prove: Prove) -> None:
    """Bytes of several kinds, then a gigabyte, then an error at every side, and a cancellation at every await."""
    dice = random.Random(1)
    noise = dice.randbytes(300_000).replace(b"\n", b"\r")
    for name, data in (
        ("nothing", b""), ("one byte", b"\x00"), ("two lines", b"first\nsecond\n"), ("lines of text", b"a line\n" * 30_000),
        ("noise without a line end", noise), ("zeros", bytes(200_000)), ("noise", dice.randbytes(300_000)),
    ):  # fmt: skip
        _copied(answer, prove, name, _Pipe(data))
    _copied(answer, prove, "a gigabyte", _Pipe())
    for fail in ("read", "drain", "wait_closed"):
        _broken(answer, prove, _Pipe(noise, fail))
    _cancelled(answer, prove, noise)


def _copied(answer: Any, prove: Prove, name: str, pipe: _Pipe) -> None:
    async def scene() -> tuple[Any, int]:
        value = await answer(pipe.reader, pipe.writer)
        return value, pipe.waiting()

    run = observe(_ending(scene, prove, pipe, f"Given {name}"))
    if pipe.finding:
        raise pipe.finding
    told = f"Given {name}, it looked for the end of a line, and {LINE // 1024} KiB had none."
    prove(BINARY, not isinstance(pipe.error, ValueError), told)
    value, waiting = run.result()
    got, sent = b"".join(pipe.got), f"Given {name}, {pipe.total} byte{'' if pipe.total == 1 else 's'},"
    prove(WHOLE, pipe.written == pipe.total, f"{sent} it wrote {pipe.written}.")
    prove(WHOLE, pipe.data is None or got == pipe.data, f"{sent} it wrote other bytes.")
    prove(DELIVERED, not pipe.aborted, f"{sent} it aborted the connection, though all went well.")
    prove(DELIVERED, pipe.closed, f"{sent} it did not close the writer: the other end waits on.")
    told = "it returned while the other end had not got all: await what close() has begun."
    prove(DELIVERED, not waiting, f"{sent} {told}")
    counted = value == pipe.total and isinstance(value, int) and not isinstance(value, bool)
    prove(COUNT, counted, f"{sent} it returned {plain(repr(value))}.")
    prove_clean(prove, run)
    if pipe.data is None:
        prove(BOUND, pipe.peak <= MOST, "More than 1 MB was read, and not yet taken by the other end.")
        prove(PIECES, True, "")  # who asked for less has met the finding above
        limit = 1.1 * pipe.total / RATE
        told = f"The other end takes {RATE / 1e6:g} MB a second, and a gigabyte took {run.elapsed:.3g} s."
        prove(PACE, run.elapsed <= limit, told)


def _ending(scene: Any, prove: Prove, pipe: _Pipe, where: str) -> Any:
    """The scene, which must be over when a patient other end would have been ten times."""

    async def kept() -> tuple[Any, SystemExit | None]:  # asyncio lets a SystemExit out of any task, and out of the loop
        try:
            return await scene(), None
        except SystemExit as error:
            return None, error

    async def ending() -> Any:
        task = asyncio.ensure_future(kept())
        ended, _ = await asyncio.wait([task], timeout=10 * (1 + pipe.total / (pipe.rate or 1e9)))
        if not ended:
            task.cancel()
            await asyncio.wait([task], timeout=1)
            raise Failed(DELIVERED, f"{where}, it waits for ever: wait_closed() ends only after close().")
        value, error = task.result()
        if error:
            raise error
        return value

    return ending


def _broken(answer: Any, prove: Prove, pipe: _Pipe) -> None:
    run = observe(_ending(functools.partial(answer, pipe.reader, pipe.writer), prove, pipe, f"{pipe.fail} fails"))
    error, where = pipe.error, f"{pipe.fail}() raised an error, and"
    prove(DELIVERED, error is not None, f"It never called {pipe.fail}().")
    told = f"it raised {tell(run.error)}." if run.error else "the copy ended as if all were well."
    prove(ERROR_OUT, error is not None and run.raised(error), f"{where} {told}")
    _not_whole(prove, pipe, where)
    prove_clean(prove, run)


def _not_whole(prove: Prove, pipe: _Pipe, where: str) -> None:
    sent_all = pipe.closed and pipe.written == pipe.total
    told = "it closed the writer: to the other end the half looks whole. Abort the transport."
    if not pipe.closed:
        told = "it left the connection open: abort the transport."
    prove(HALF, pipe.aborted or sent_all, f"{where} {told}")


def _cancelled(answer: Any, prove: Prove, data: bytes) -> None:
    pipes: list[_Pipe] = []

    async def scenario(calls: Calls, drive: Any) -> Any:
        pipes.append(_Pipe(data, pace=0.01))
        return await drive(answer(pipes[-1].reader, pipes[-1].writer))

    for run, _, canceller in cancel_sweep(scenario):
        where = f"Cancelled at {canceller},"
        told = f"it raised {tell(run.error)}." if run.error else "it ended as if nothing had happened."
        prove(CANCELS, run.was_cancelled, f"{where} {told}")
        prove(CANCELS, run.elapsed <= canceller.time + 1e-9, f"{where} it went on for a while: stop at once.")
        _not_whole(prove, pipes[-1], where)
        prove_clean(prove, run)

    async def stuck(pipe: _Pipe) -> bool:
        task = asyncio.ensure_future(answer(pipe.reader, pipe.writer))
        await asyncio.sleep(100)
        task.cancel()
        ended, _ = await asyncio.wait([task], timeout=1000)
        for _ in range(3):  # a second word for who did not hear the first
            task.cancel()
            await asyncio.wait([task], timeout=1)
        if ended:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return bool(ended) and task.cancelled()

    run = observe(stuck, pipe := _Pipe(data, stuck=True))
    told = "The other end takes nothing any more. Cancelled, the copy still waits for it."
    prove(CANCELS, run.result(), told)
    _not_whole(prove, pipe, "Cancelled while the other end takes nothing,")
    prove_clean(prove, run)


EXERCISES = [
    Exercise(
        "8.3",
        "a streaming copy",
        "async def copy(reader, writer)",
        ("reader", "writer"),
        three_hints("""
        Of a gigabyte, how much has to be in memory at once? And which call waits for the other end:
        write(), or another one?

        A loop: read up to 64 KiB, write them, await writer.drain(). An empty piece is the end, a short
        one is not. After the loop close() and await wait_closed(). An error on the way: abort.

        try: while piece := await reader.read(65536): writer.write(piece); await writer.drain(); count
        += len(piece). Then close and wait_closed, still in the try. except BaseException:
        writer.transport.abort(); raise.
        """),
        check_copy,
    )
]
