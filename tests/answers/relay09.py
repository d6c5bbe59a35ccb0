"""Right and wrong answers to exercise 9.2, a proxy that streams."""

from __future__ import annotations

import asyncio
import contextlib

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

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
CANCELS = "passes a cancellation on"
NO_TASKS = "leaves no task behind"
ENDS = "comes to an end"
FIXED = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}


@stub("9.2")
async def proxy_stub(scope, receive, send, call):
    """Stream both ways."""
    raise NotImplementedError


@stub("9.2")
async def proxy_pass(scope, receive, send, call):
    pass


class Left(Exception):
    """The client has left."""


def end_to_end(fields, also=()):
    named = {
        word.strip().lower() for name, value in fields if name.lower() == b"connection" for word in value.split(b",")
    }
    return [(name, value) for name, value in fields if name.lower() not in FIXED | named | set(also)]


def asked(fields):
    return end_to_end(fields, [b"host"])


async def pass_on(answer, send, down=end_to_end):
    await send({"type": "http.response.start", "status": answer.status, "headers": down(answer.headers)})
    async for piece in answer:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def stream(scope, receive, send, call, up=asked, down=end_to_end, pass_on=pass_on):
    """The model answer, with places to put a mistake."""
    read = asyncio.Event()

    async def body():
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Left
            yield message["body"]
            more = message["more_body"]
        read.set()

    async def gone():
        await read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
        raise Left

    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(gone())
            answer = await call(scope["method"], scope["path"], up(scope["headers"]), body())
            async with contextlib.aclosing(answer):
                await pass_on(answer, send, down)
            watch.cancel()
    except* Left:
        pass


@right("9.2")
async def proxy_in_a_group(scope, receive, send, call):
    await stream(scope, receive, send, call)


@right("9.2")
async def proxy_with_wait(scope, receive, send, call):
    """One task reads the client, one makes the call; the first that ends, ends the other."""
    pieces = asyncio.Queue(1)

    async def client():
        while (message := await receive())["type"] != "http.disconnect":
            if message["body"]:
                await pieces.put(message["body"])
            if not message["more_body"]:
                await pieces.put(None)

    async def body():
        while (piece := await pieces.get()) is not None:
            yield piece

    async def exchange():
        answer = await call(scope["method"], scope["path"], asked(scope["headers"]), body())
        try:
            await pass_on(answer, send)
        finally:
            await answer.aclose()

    tasks = [asyncio.ensure_future(exchange()), asyncio.ensure_future(client())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@wrong("9.2", HELD)
async def proxy_reads_the_answer(scope, receive, send, call):
    async def whole(answer, send, down):
        body = b"".join([piece async for piece in answer])
        await send({"type": "http.response.start", "status": answer.status, "headers": down(answer.headers)})
        await send({"type": "http.response.body", "body": body})

    await stream(scope, receive, send, call, pass_on=whole)


@wrong("9.2", HELD)
async def proxy_reads_the_request(scope, receive, send, call):
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        parts.append(message)
        more = message["more_body"]

    async def again():
        return parts.pop(0) if parts else await receive()

    await stream(scope, again, send, call)


@wrong("9.2", HELD)
async def proxy_with_a_queue_without_bound(scope, receive, send, call):
    async def queued(answer, send, down):
        queue = asyncio.Queue()

        async def read():
            async for piece in answer:
                await queue.put(piece)
            await queue.put(None)

        async def items():
            while (piece := await queue.get()) is not None:
                yield piece

        items_answer = type("Queued", (), {"__aiter__": lambda self: items()})()
        items_answer.status, items_answer.headers = answer.status, answer.headers
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            await pass_on(items_answer, send, down)

    await stream(scope, receive, send, call, pass_on=queued)


@wrong("9.2", HOP_UP)
async def proxy_fixed_list_up(scope, receive, send, call):
    await stream(
        scope, receive, send, call, up=lambda fields: [f for f in fields if f[0].lower() not in FIXED | {b"host"}]
    )


@wrong("9.2", HOP_DOWN)
async def proxy_fixed_list_down(scope, receive, send, call):
    await stream(scope, receive, send, call, down=lambda fields: [f for f in fields if f[0].lower() not in FIXED])


@wrong("9.2", HOP_DOWN)
async def proxy_cleans_one_way(scope, receive, send, call):
    await stream(scope, receive, send, call, down=list)


@wrong("9.2", HOP_UP)
async def proxy_lower_case_only(scope, receive, send, call):
    def up(fields):
        named = {word.strip() for name, value in fields if name == b"connection" for word in value.split(b",")}
        return [(name, value) for name, value in fields if name not in FIXED | named | {b"host"}]

    await stream(scope, receive, send, call, up=up)


@wrong("9.2", HOP_UP)
async def proxy_last_connection_field(scope, receive, send, call):
    def up(fields):
        last = {name.lower(): value for name, value in fields}.get(b"connection", b"")
        named = {word.strip().lower() for word in last.split(b",")}
        return [(name, value) for name, value in fields if name.lower() not in FIXED | named | {b"host"}]

    await stream(scope, receive, send, call, up=up)


@wrong("9.2", HOP_UP)
async def proxy_forwards_transfer_encoding(scope, receive, send, call):
    framing = {b"transfer-encoding"}
    await stream(
        scope, receive, send, call, up=lambda fields: asked(fields) + [f for f in fields if f[0].lower() in framing]
    )


@wrong("9.2", HOST)
async def proxy_forwards_host(scope, receive, send, call):
    await stream(scope, receive, send, call, up=end_to_end)


@wrong("9.2", KEEPS)
async def proxy_makes_a_dict(scope, receive, send, call):
    await stream(scope, receive, send, call, down=lambda fields: list(dict(end_to_end(fields)).items()))


@wrong("9.2", KEEPS)
async def proxy_passes_a_few(scope, receive, send, call):
    few = {b"accept", b"content-type", b"x-request-id"}
    await stream(scope, receive, send, call, up=lambda fields: [f for f in asked(fields) if f[0] in few])


@wrong("9.2", KEEPS)
async def proxy_drops_by_prefix(scope, receive, send, call):
    def up(fields):
        return [f for f in asked(fields) if not f[0].lower().startswith((b"keep-alive", b"upgrade"))]

    await stream(scope, receive, send, call, up=up)


async def without_watch(scope, receive, send, call):
    async def body():
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Left
            yield message["body"]
            more = message["more_body"]

    with contextlib.suppress(Left):
        async with contextlib.aclosing(
            await call(scope["method"], scope["path"], asked(scope["headers"]), body())
        ) as answer:
            await pass_on(answer, send)


@wrong("9.2", LEAVES)
async def proxy_hears_no_leaving(scope, receive, send, call):
    await without_watch(scope, receive, send, call)


@wrong("9.2", RECEIVES)
async def proxy_two_receive(scope, receive, send, call):
    """A watch from the start: it takes pieces of the body."""

    async def gone():
        while (await receive())["type"] != "http.disconnect":
            pass
        raise Left

    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(gone())
            await without_watch(scope, receive, send, call)
            watch.cancel()
    except* Left:
        pass


@wrong("9.2", CLOSES)
async def proxy_never_closes(scope, receive, send, call):
    async def open_ended(*args):
        answer = await call(*args)

        class Kept:
            status, headers = answer.status, answer.headers

            def __aiter__(self):
                return answer

            async def aclose(self):
                pass

        return Kept()

    await stream(scope, receive, send, open_ended)


@wrong("9.2", CLOSES)
async def proxy_closes_at_the_good_end_only(scope, receive, send, call):
    last = []

    async def keep(*args):
        last.append(await call(*args))
        return Shell(last[0])

    await stream(scope, receive, send, keep)
    await last[0].aclose()


class Shell:
    """An answer whose aclose() does nothing."""

    def __init__(self, answer):
        self.status, self.headers, self._answer = answer.status, answer.headers, answer

    def __aiter__(self):
        return self._answer

    async def aclose(self):
        pass


@wrong("9.2", ONCE)
async def proxy_tries_again(scope, receive, send, call):
    """After the first byte too."""
    started = []

    async def once(message):
        if message["type"] != "http.response.start" or not started:
            started.append(message)
            await send(message)

    for attempt in range(2):
        try:
            return await stream(scope, receive, once, call)
        except BaseExceptionGroup:
            if attempt:
                raise


@wrong("9.2", ERROR_OUT)
async def proxy_ends_half_a_body(scope, receive, send, call):
    async def careless(answer, send, down):
        await send({"type": "http.response.start", "status": answer.status, "headers": down(answer.headers)})
        with contextlib.suppress(Exception):
            async for piece in answer:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await stream(scope, receive, send, call, pass_on=careless)


@wrong("9.2", ORDER)
async def proxy_never_ends(scope, receive, send, call):
    async def endless(answer, send, down):
        await send({"type": "http.response.start", "status": answer.status, "headers": down(answer.headers)})
        async for piece in answer:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    await stream(scope, receive, send, call, pass_on=endless)


@wrong("9.2", ENDS)
async def proxy_half_duplex(scope, receive, send, call):
    """Waits for the end of the request before it passes the answer on."""
    read = asyncio.Event()

    async def noted():
        message = await receive()
        if message["type"] == "http.disconnect" or not message["more_body"]:
            read.set()
        return message

    async def later(answer, send, down):
        await read.wait()
        await pass_on(answer, send, down)

    await stream(scope, noted, send, call, pass_on=later)


@wrong("9.2", CANCELS)
async def proxy_swallows_cancel(scope, receive, send, call):
    with contextlib.suppress(asyncio.CancelledError):
        await stream(scope, receive, send, call)


@wrong("9.2", NO_TASKS)
async def proxy_forgets_its_watch(scope, receive, send, call):
    async def gone():
        await asyncio.sleep(3600)

    asyncio.ensure_future(gone())
    await stream(scope, receive, send, call)


@wrong("9.2", STREAMS)
async def proxy_passes_pairs(scope, receive, send, call):
    """Holds little, and holds it back."""

    async def paired(answer, send, down):
        await send({"type": "http.response.start", "status": answer.status, "headers": down(answer.headers)})
        kept = b""
        async for piece in answer:
            kept += piece
            if len(kept) > 1 << 17:
                await send({"type": "http.response.body", "body": kept, "more_body": True})
                kept = b""
        await send({"type": "http.response.body", "body": kept, "more_body": False})

    await stream(scope, receive, send, call, pass_on=paired)


@wrong("9.2", LEAVES)
async def proxy_shields_the_call(scope, receive, send, call):
    async def shielded(*args):
        return await asyncio.shield(asyncio.ensure_future(call(*args)))

    await stream(scope, receive, send, shielded)


@wrong("9.2", WHOLE)
async def proxy_drops_the_last_piece(scope, receive, send, call):
    """The message that ends the body may carry the last part of it."""

    async def body():
        while (message := await receive()).get("more_body"):
            yield message["body"]

    async with contextlib.aclosing(
        await call(scope["method"], scope["path"], asked(scope["headers"]), body())
    ) as answer:
        await pass_on(answer, send)


@wrong("9.2", LEAVES)
async def proxy_lets_the_leaving_out(scope, receive, send, call):
    last = {}

    async def noted():
        last.update(await receive())
        return last

    await stream(scope, noted, send, call)
    if last.get("type") == "http.disconnect":
        raise ConnectionError("the client has left")
