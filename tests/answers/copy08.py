"""Right and wrong answers to exercise 8.3, a streaming copy."""

from __future__ import annotations

import asyncio
import contextlib

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

WHOLE = "copies every byte, in order"
BINARY = "copies bytes of any kind"
COUNT = "returns how many bytes it copied"
DELIVERED = "closes, and returns when the other end has everything"
BOUND = "never holds more than 1 MB"
PIECES = "reads at least 16 KiB at a time"
PACE = "goes on as fast as the other end takes it"
ERROR_OUT = "an error comes out"
HALF = "half a copy does not end like a whole one"
CANCELS = "passes a cancellation on"
NO_ERROR = "runs without an error"
NO_TASKS = "leaves no task behind"
SIZE = 1 << 16


@stub("8.3")
async def copy_stub(reader, writer):
    raise NotImplementedError


@stub("8.3")
async def copy_pass(reader, writer):
    pass


@right("8.3")
async def copy_by_pieces(reader, writer):
    count = 0
    try:
        while piece := await reader.read(SIZE):
            writer.write(piece)
            await writer.drain()
            count += len(piece)
        writer.close()
        await writer.wait_closed()
    except BaseException:
        writer.transport.abort()
        raise
    return count


@right("8.3")
async def copy_with_a_queue(reader, writer):
    """Reads ahead, three pieces at most."""
    queue, done = asyncio.Queue(3), False

    async def fill():
        while piece := await reader.read(100_000):
            await queue.put(piece)
        await queue.put(b"")

    try:
        count = 0
        async with asyncio.TaskGroup() as group:
            group.create_task(fill())
            while piece := await queue.get():
                writer.write(piece)
                await writer.drain()
                count += len(piece)
        writer.close()
        await writer.wait_closed()
        done = True
        return count
    finally:
        if not done:
            writer.transport.abort()


@right("8.3")
async def copy_exactly(reader, writer):
    """Full pieces, and what is left at the end. Drains when there is something to drain."""
    count, last = 0, False
    try:
        while not last:
            try:
                piece = await reader.readexactly(1 << 14)
            except asyncio.IncompleteReadError as end:
                piece, last = end.partial, True
            writer.write(piece)
            count += len(piece)
            if writer.transport.get_write_buffer_size() > SIZE:
                await writer.drain()
        await writer.drain()
        writer.write_eof()
        writer.close()
        await writer.wait_closed()
    except BaseException:
        writer.transport.abort()
        raise
    return count


@right("8.3")
async def copy_in_large_pieces(reader, writer):
    count = 0
    try:
        while True:
            piece = await reader.read(500_000)
            if not piece:
                break
            count += len(piece)
            writer.writelines([piece])
            del piece
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        return count
    except (Exception, asyncio.CancelledError):
        writer.transport.abort()
        raise


def variant(
    size=SIZE,
    drain=lambda writer: writer.drain(),
    at_end=None,
    finish=None,
    on_error=lambda writer: writer.transport.abort(),
    last=lambda piece: not piece,
    pause=0.0,
):
    """The right copy with one thing changed."""

    async def copy(reader, writer):
        count = 0
        try:
            while True:
                piece = await reader.read(size)
                if last(piece):
                    break
                writer.write(piece)
                if drain:
                    await drain(writer)
                if pause:
                    await asyncio.sleep(pause)
                count += len(piece)
            if at_end:
                await at_end(writer)
            if finish is None:
                writer.close()
                await writer.wait_closed()
            else:
                await finish(writer)
        except BaseException:
            on_error(writer)
            raise
        return count

    return copy


def named(name, copy):
    copy.__name__ = copy.__qualname__ = name
    return copy


async def nothing(writer):
    pass


async def only_close(writer):
    writer.close()


async def only_eof(writer):
    writer.write_eof()


async def waits_first(writer):
    await writer.wait_closed()
    writer.close()


async def deaf_close(writer):
    writer.close()
    with contextlib.suppress(Exception):
        await writer.wait_closed()


async def deaf_drain(writer):
    with contextlib.suppress(Exception):
        await writer.drain()


async def empty_first(writer):
    """Waits until the other end has nothing left to do."""
    while writer.transport.get_write_buffer_size():
        await asyncio.sleep(0.001)


wrong("8.3", BOUND)(named("copy_without_drain", variant(drain=None)))
wrong("8.3", BOUND)(named("copy_drains_at_the_end", variant(drain=None, at_end=lambda writer: writer.drain())))
wrong("8.3", BOUND)(named("copy_yields_instead", variant(drain=lambda writer: asyncio.sleep(0))))
wrong("8.3", BOUND)(named("copy_in_huge_pieces", variant(size=1 << 24)))
wrong("8.3", PIECES)(named("copy_in_tiny_pieces", variant(size=100)))
wrong("8.3", WHOLE)(named("copy_ends_at_a_short_piece", variant(last=lambda piece: len(piece) < SIZE)))
wrong("8.3", DELIVERED)(named("copy_never_closes", variant(finish=nothing)))
wrong("8.3", DELIVERED)(named("copy_says_eof_only", variant(finish=only_eof)))
wrong("8.3", DELIVERED)(named("copy_closes_and_leaves", variant(finish=only_close)))
wrong("8.3", DELIVERED)(named("copy_waits_before_it_closes", variant(finish=waits_first)))
wrong("8.3", ERROR_OUT)(named("copy_deaf_at_the_close", variant(finish=deaf_close)))
wrong("8.3", ERROR_OUT)(named("copy_deaf_at_the_drain", variant(drain=deaf_drain)))
wrong("8.3", HALF)(named("copy_leaves_it_open", variant(on_error=lambda writer: None)))
wrong("8.3", HALF)(named("copy_closes_after_an_error", variant(on_error=lambda writer: writer.close())))
wrong("8.3", PACE)(named("copy_rests", variant(pause=0.001)))
wrong("8.3", PACE)(named("copy_sleeps_and_looks", variant(drain=empty_first)))


@wrong("8.3", BOUND)
async def copy_at_once(reader, writer):
    data = await reader.read()
    writer.write(data)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    return len(data)


@wrong("8.3", BOUND)
async def copy_collects(reader, writer):
    pieces = []
    while piece := await reader.read(SIZE):
        pieces.append(piece)
    writer.writelines(pieces)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    return sum(map(len, pieces))


@wrong("8.3", BOUND)
async def copy_through_an_endless_queue(reader, writer):
    queue = asyncio.Queue()

    async def fill():
        while piece := await reader.read(SIZE):
            await queue.put(piece)
            await asyncio.sleep(0)
        await queue.put(b"")

    count = 0
    async with asyncio.TaskGroup() as group:
        group.create_task(fill())
        while piece := await queue.get():
            writer.write(piece)
            await writer.drain()
            count += len(piece)
    writer.close()
    await writer.wait_closed()
    return count


@wrong("8.3", BINARY)
async def copy_lines(reader, writer):
    count = 0
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
        count += len(line)
    writer.close()
    await writer.wait_closed()
    return count


@wrong("8.3", WHOLE)
async def copy_one_behind(reader, writer):
    """Keeps a piece back, and forgets it at the end."""
    count, held = 0, b""
    while piece := await reader.read(SIZE):
        writer.write(held)
        await writer.drain()
        count, held = count + len(piece), piece
    writer.close()
    await writer.wait_closed()
    return count


@wrong("8.3", WHOLE)
async def copy_stripped(reader, writer):
    count = 0
    while piece := await reader.read(SIZE):
        writer.write(piece.strip())
        await writer.drain()
        count += len(piece)
    writer.close()
    await writer.wait_closed()
    return count


@wrong("8.3", COUNT)
async def copy_counts_pieces(reader, writer):
    count = 0
    while piece := await reader.read(SIZE):
        writer.write(piece)
        await writer.drain()
        count += 1
    writer.close()
    await writer.wait_closed()
    return count


@wrong("8.3", NO_ERROR)
async def copy_exactly_or_not_at_all(reader, writer):
    count = 0
    while piece := await reader.readexactly(SIZE):
        writer.write(piece)
        await writer.drain()
        count += len(piece)
    writer.close()
    await writer.wait_closed()
    return count


@wrong("8.3", ERROR_OUT)
async def copy_swallows(reader, writer):
    count = 0
    try:
        while piece := await reader.read(SIZE):
            writer.write(piece)
            await writer.drain()
            count += len(piece)
    except Exception:
        writer.transport.abort()
        return count
    writer.close()
    await writer.wait_closed()
    return count


@wrong("8.3", CANCELS)
async def copy_swallows_the_cancellation(reader, writer):
    count = 0
    try:
        while piece := await reader.read(SIZE):
            writer.write(piece)
            await writer.drain()
            count += len(piece)
        writer.close()
        await writer.wait_closed()
    except asyncio.CancelledError:
        writer.transport.abort()
    except BaseException:
        writer.transport.abort()
        raise
    return count


@wrong("8.3", CANCELS)
async def copy_sends_the_rest_first(reader, writer):
    """Cancelled, it waits for an other end that may never take anything."""
    count = 0
    try:
        while piece := await reader.read(SIZE):
            writer.write(piece)
            await writer.drain()
            count += len(piece)
        writer.close()
        await writer.wait_closed()
    except asyncio.CancelledError:
        await writer.drain()
        writer.transport.abort()
        raise
    except Exception:
        writer.transport.abort()
        raise
    return count


@wrong("8.3", HALF)
async def copy_waits_on_its_way_out(reader, writer):
    """As many programs do: close and wait, in a finally. What was cut off looks whole."""
    count = 0
    try:
        while piece := await reader.read(SIZE):
            writer.write(piece)
            await writer.drain()
            count += len(piece)
    except Exception:
        writer.transport.abort()
        raise
    finally:
        writer.close()
        await writer.wait_closed()
    return count


@wrong("8.3", NO_TASKS)
async def copy_closes_in_the_background(reader, writer):
    count = 0
    try:
        while piece := await reader.read(SIZE):
            writer.write(piece)
            await writer.drain()
            count += len(piece)
        writer.close()
        await writer.wait_closed()
    except BaseException:
        writer.transport.abort()
        raise
    finally:
        copy_closes_in_the_background.watch = asyncio.create_task(asyncio.sleep(1e4))
    return count
