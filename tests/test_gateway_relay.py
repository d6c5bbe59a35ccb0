"""The gateway's proxy: which fields pass, bodies with an end, streams that hold little, clients that leave."""

import asyncio
import contextlib
import gzip
import tracemalloc
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from support.gateway.headers import TRACEPARENT
from support.gateway.relay import (
    Limits,
    RelayBroken,
    TooLarge,
    read_capped,
    relay,
    request_headers,
    response_headers,
)
from support.servers import serve
from support.upstream import gzip_pieces

KNOWN = {"client": "203.0.113.7", "request_id": "r-1", "remaining_ms": 900}
MB = 1_000_000
PATIENCE = 20  # seconds, after which a test gives up; nothing waits for it that goes well


# Header fields


def sent(*pairs: tuple[str, str], **options: Any) -> Any:
    return request_headers(pairs, **(KNOWN | options))


def test_fields_of_one_connection_end_there() -> None:
    hop = ["Connection", "keep-alive", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "UPGRADE"]
    hop += ["Proxy-Authenticate", "Proxy-Authorization"]
    for rule in (lambda pairs: sent(*pairs), response_headers):
        passed = rule([*((name, "x") for name in hop), ("Cache-Control", "no-store"), ("ETag", '"1"')])
        assert not [name for name in hop if name in passed]
        assert (passed["cache-control"], passed["etag"]) == ("no-store", '"1"')


def test_connection_names_more_fields_in_any_case_and_in_several_lines() -> None:
    pairs = [("connection", "close, X-One"), ("X-ONE", "1"), ("X-Two", "2"), ("x-three", "3")]
    pairs += [("CONNECTION", " x-two ,"), ("x-three", "4")]
    for rule in (lambda pairs: sent(*pairs), response_headers):
        passed = rule(pairs)
        assert "x-one" not in passed and "x-two" not in passed
        assert passed.getall("x-three") == ["3", "4"]


def test_a_client_cannot_name_away_what_the_gateway_writes() -> None:
    named = "X-Forwarded-For, X-Request-ID, X-User-Id, X-Deadline-Ms, Via"
    passed = sent(("Connection", named), identity={"X-User-Id": "7"})
    assert passed["x-forwarded-for"] == "203.0.113.7" and passed["x-request-id"] == "r-1"
    assert passed["x-user-id"] == "7" and passed["x-deadline-ms"] == "900" and passed["via"] == "1.1 gateway"


def test_who_the_client_is_comes_from_the_gateway_only() -> None:
    spoofed = [
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "x-forwarded-host",
        "X-Forwarded-Prefix",
        "Forwarded",
        "X-Real-IP",
    ]
    spoofed += [
        "X-User-Id",
        "x_user_id",
        "X-User-Roles",
        "X-Tenant-Id",
        "X-Auth-Subject",
        "X-Internal-Call",
        "X-Request-ID",
    ]
    passed = sent(*((name, "spoofed") for name in spoofed), ("Host", "shop.example"))
    assert "spoofed" not in passed.values()
    assert passed["x-forwarded-host"] == "shop.example" and passed["x-forwarded-proto"] == "http"
    assert "x-user-id" not in passed and "host" not in passed


def test_a_trusted_proxy_is_believed_and_the_chain_grows() -> None:
    pairs = [("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "10.0.0.2"), ("X-Forwarded-Proto", "https")]
    pairs += [("X-Forwarded-Host", "shop.example"), ("Host", "internal")]
    passed = sent(*pairs, trusted_proxies=["203.0.113.7"])
    assert passed["x-forwarded-for"] == "198.51.100.1, 10.0.0.2, 203.0.113.7"
    assert (passed["x-forwarded-proto"], passed["x-forwarded-host"]) == ("https", "shop.example")
    assert sent(*pairs, trusted_proxies=["10.0.0.2"])["x-forwarded-for"] == "203.0.113.7"


def test_cookies_pass_by_name_only() -> None:
    pairs = [("Cookie", "session=A; theme=dark"), ("cookie", "lang=en; themes=no")]
    assert "cookie" not in sent(*pairs)
    assert sent(*pairs, cookies=["theme", "lang"])["cookie"] == "theme=dark; lang=en"
    answer = [("Set-Cookie", "session=B; Path=/; theme=x"), ("set-cookie", "theme=light"), ("Set-Cookie", "lang=de")]
    assert "set-cookie" not in response_headers(answer)
    assert response_headers(answer, cookies=["theme", "lang"]).getall("set-cookie") == ["theme=light", "lang=de"]


def test_what_is_end_to_end_passes_unchanged() -> None:
    pairs = [("Authorization", "Bearer abc"), ("Accept-Encoding", "br"), ("Via", "1.1 front"), ("Content-Length", "5")]
    passed = sent(*pairs)
    assert passed["authorization"] == "Bearer abc" and passed["accept-encoding"] == "br"
    assert passed.getall("via") == ["1.1 front", "1.1 gateway"] and passed["content-length"] == "5"
    assert "content-length" not in sent(("Transfer-Encoding", "chunked"), ("Content-Length", "5"))
    assert "content-length" not in response_headers([("transfer-encoding", "chunked"), ("content-length", "5")])


def test_a_trace_goes_on_or_begins() -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert sent(("Traceparent", parent))["traceparent"] == parent
    for broken in ("", "yes", parent.upper(), "00-" + "0" * 32 + parent[35:], "ff" + parent[2:], parent + "\n"):
        begun = sent(("traceparent", broken))["traceparent"]
        assert begun != broken and TRACEPARENT.fullmatch(begun)


# A body up to a limit


@contextlib.asynccontextmanager
async def upstream(
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """An upstream that speaks HTTP word by word. Gives its URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await speak(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server, asyncio.timeout(PATIENCE):
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def answers(head: str, *body: bytes) -> Callable[..., Awaitable[None]]:
    """An upstream that reads a head, and answers with these words."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        for piece in body:
            writer.write(piece)
            await writer.drain()

    return speak


async def capped(speak: Any, limit: int, **options: Any) -> bytes:
    async with upstream(speak) as url, aiohttp.ClientSession() as session, session.get(url) as response:
        return await read_capped(response, limit, **options)


def test_a_body_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    plain, packed = b"x" * 1000, gzip.compress(b"x" * 1000)
    asked = f"HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: {len(packed)}"
    for speak in (answers("HTTP/1.1 200 OK", plain), answers(asked, packed)):
        assert asyncio.run(capped(speak, 1000)) == plain
        with pytest.raises(TooLarge, match="over 999 bytes"):
            asyncio.run(capped(speak, 999))


def test_a_length_that_is_too_large_is_not_even_read() -> None:
    with pytest.raises(TooLarge, match="says that it has 5000 bytes"):
        asyncio.run(capped(answers("HTTP/1.1 200 OK\nContent-Length: 5000"), 4999))


def test_a_bomb_costs_the_limit_and_not_the_bomb() -> None:
    pieces = list(gzip_pieces(150 * MB))
    head = f"HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: {sum(map(len, pieces))}"

    async def main() -> int:
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge):
                await capped(answers(head, b"".join(pieces)), MB)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert asyncio.run(main()) < 4 * MB


def test_a_drip_ends_by_the_time_for_all_of_it() -> None:
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.005)
        gone.set()

    async def main() -> None:
        async with upstream(drip) as url, aiohttp.ClientSession() as session:
            timeout = aiohttp.ClientTimeout(sock_read=5)  # never fires
            async with session.get(url, timeout=timeout) as response:
                with pytest.raises(TimeoutError):
                    await read_capped(response, MB, seconds=0.1)
                await gone.wait()  # the connection is closed, not given back

    asyncio.run(main())


# The relay, between a client that is played and an upstream that speaks word by word


class Client:
    """The server's side of one ASGI request: what the client sends, reads, and when it leaves."""

    def __init__(self, method: str = "GET", *body: bytes, headers: tuple = (), stays: bool = True) -> None:
        framing = [(b"transfer-encoding", b"chunked")] if body else []
        self.scope = {"type": "http", "method": method, "scheme": "http", "client": ("203.0.113.7", 1)}
        self.scope["headers"] = [(b"host", b"shop.example"), *framing, *headers]
        self._body, self._stays = deque(body), stays
        self.left, self.reads = asyncio.Event(), asyncio.Event()
        self.reads.set()
        self.status, self.fields, self.body, self.whole = 0, [], bytearray(), False
        self.taken, self.keeps = 0, True

    async def receive(self) -> dict[str, Any]:
        if self._body:
            piece = self._body.popleft()
            more = bool(self._body) or not self._stays
            return {"type": "http.request", "body": piece, "more_body": more}
        if self._stays:
            await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            assert not self.status
            self.status, self.fields = message["status"], message["headers"]
        else:
            self.taken += len(message.get("body", b""))
            if self.keeps:
                self.body += message.get("body", b"")
            self.whole = not message.get("more_body", False)

    @property
    def names(self) -> list[bytes]:
        return [name for name, _ in self.fields]

    async def asks(self, url: str, **options: Any) -> Any:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            return await relay(self.scope, self.receive, self.send, session=session, url=url, **options)


async def relayed(client: Client, speak: Any, **options: Any) -> Any:
    async with upstream(speak) as url:
        return await client.asks(url, **options)


def recorder(into: list[bytes], head: str = "HTTP/1.1 200 OK\nContent-Length: 2", body: bytes = b"ok") -> Any:
    """An upstream that notes the head and a chunked body as they came."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"chunked" in request:
            request += await reader.readuntil(b"0\r\n\r\n")
        elif b"content-length: 5" in request.lower():
            request += await reader.readexactly(5)
        into.append(request)
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)

    return speak


def test_a_body_passes_in_pieces_and_its_framing_is_our_own() -> None:
    async def main() -> None:
        client, seen = Client("PUT", b"one", b"", b"two", headers=((b"content-length", b"99"),)), []
        exchange = await relayed(client, recorder(seen))
        assert (client.status, bytes(client.body), client.whole) == (200, b"ok", True)
        assert seen[0].lower().count(b"transfer-encoding: chunked") == 1 and b"Content-Length" not in seen[0]
        assert seen[0].endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        assert (exchange.outcome, exchange.from_client, exchange.to_client) == ("done", 6, 2)

        client, seen = Client("POST", b"12", b"345", headers=((b"content-length", b"5"),)), []
        del client.scope["headers"][1]  # no Transfer-Encoding
        await relayed(client, recorder(seen))
        assert seen[0].endswith(b"\r\n\r\n12345") and b"chunked" not in seen[0].lower()

    asyncio.run(main())


def test_the_upstream_sees_its_own_host_and_nothing_that_aiohttp_adds() -> None:
    async def main() -> None:
        client, seen = Client(headers=((b"x-odd", "\u00e9\u4e2d".encode()),)), []
        await relayed(client, recorder(seen))
        lines = seen[0].decode().lower().split("\r\n")
        assert lines[0] == "get / http/1.1" and "host: shop.example" not in lines and "x-odd: \u00e9\u4e2d" in lines
        assert not [line for line in lines if line.startswith(("user-agent", "accept", "content-", "transfer-"))]

    asyncio.run(main())


def test_answers_without_a_body() -> None:
    async def main() -> None:
        for method, status, length in (("HEAD", "200", b"5000"), ("GET", "204", None), ("GET", "304", None)):
            client = Client(method)
            exchange = await relayed(client, answers(f"HTTP/1.1 {status} x\nContent-Length: 5000\nETag: 1"))
            assert (exchange.outcome, client.whole, client.body) == ("done", True, b"")
            assert dict(client.fields).get(b"content-length") == length and b"etag" in client.names

    asyncio.run(main())


def test_a_packed_body_stays_packed_and_a_redirect_is_the_clients() -> None:
    async def main() -> None:
        packed = gzip.compress(b"x" * 1000)
        client = Client()
        await relayed(
            client, answers(f"HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: {len(packed)}", packed)
        )
        assert bytes(client.body) == packed and dict(client.fields)[b"content-length"] == b"%d" % len(packed)
        client = Client()
        await relayed(client, answers("HTTP/1.1 302 Found\nLocation: /other\nContent-Length: 0"))
        assert (client.status, dict(client.fields)[b"location"]) == (302, b"/other")

    asyncio.run(main())


def test_a_fault_before_the_first_byte_has_a_status_and_no_inside_words() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async def main() -> None:
        long = answers("HTTP/1.1 200 OK\nContent-Length: 11", b"x" * 11)
        for speak, limits, status, outcome in (
            (slow, Limits(seconds=0.05), 504, "upstream_timeout"),
            (answers("nonsense"), Limits(), 502, "upstream_broke"),
            (answers("HTTP/1.1 700 Odd"), Limits(), 502, "upstream_broke"),
            (long, Limits(response_bytes=10), 502, "response_too_large"),
        ):
            client = Client()
            exchange = await relayed(client, speak, limits=limits)
            assert (client.status, exchange.status, exchange.outcome) == (status, status, outcome)
            assert bytes(client.body) == b'{"error": "%s"}' % outcome.encode() and client.whole
        async with upstream(slow) as url:
            pass
        assert (await Client().asks(url)).outcome == "upstream_unreachable"  # it listens no more
        client = Client("TRACE")
        assert (await relayed(client, slow)).outcome == "refused_method" and client.status == 405

    asyncio.run(main())


def test_a_fault_after_the_first_byte_is_raised_and_nothing_is_sent_again() -> None:
    async def main() -> None:
        head, chunked = "HTTP/1.1 200 OK\nContent-Length: 10", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked"
        for speak, limits, outcome in (
            (answers(head, b"half"), Limits(), "upstream_broke"),
            (answers(chunked, b"4\r\nhalf\r\n"), Limits(), "upstream_broke"),
            (answers(chunked, b"4\r\nhalf\r\n7\r\n and so\r\n"), Limits(response_bytes=9), "response_too_large"),
        ):
            calls, client = [], Client()

            async def counted(reader: Any, writer: Any, speak: Any = speak, calls: list = calls) -> None:
                calls.append(1)
                await speak(reader, writer)

            with pytest.raises(RelayBroken, match=outcome) as caught:
                await relayed(client, counted, limits=limits)
            assert len(calls) == 1 and client.status == 200 and not client.whole
            assert caught.value.exchange.outcome == outcome

    asyncio.run(main())


def test_silence_after_the_first_byte_ends_it() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answers("HTTP/1.1 200 OK\nContent-Length: 10", b"half")(reader, writer)
        await reader.read(-1)

    async def main() -> None:
        with pytest.raises(RelayBroken, match="upstream_timeout"):
            await relayed(Client(), silent, limits=Limits(idle_seconds=0.05))
        stuck = Client()  # it takes the head, and then nothing more
        taking = stuck.send

        async def send(message: dict[str, Any]) -> None:
            await taking(message)
            stuck.reads.clear()

        stuck.send = send
        with pytest.raises(RelayBroken, match="ended after 0 bytes: client_idle") as caught:
            await relayed(stuck, silent, limits=Limits(idle_seconds=0.1))
        assert caught.value.exchange.status == 200

    asyncio.run(main())


def test_a_client_that_leaves_ends_the_call() -> None:
    async def main() -> None:
        gone, begun = asyncio.Event(), asyncio.Event()

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            begun.set()
            assert await reader.read(-1) is not None  # until the gateway closes
            gone.set()

        client = Client()
        async with upstream(speak) as url:
            task = asyncio.create_task(client.asks(url))
            await begun.wait()
            client.left.set()
            assert (await task).outcome == "client_left" and not client.status
            await gone.wait()
        gone.clear()
        client = Client("POST", b"half of it", stays=False)  # it leaves in the middle of its body
        async with upstream(speak) as url:
            assert (await client.asks(url)).outcome == "client_left" and not client.status
            await gone.wait()

    asyncio.run(main())


def test_a_request_body_has_a_limit_and_a_pace() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async def main() -> None:
        client = Client("POST", *[bytes(1000)] * 20)
        exchange = await relayed(client, swallow, limits=Limits(request_bytes=9999))
        assert (exchange.outcome, client.status, exchange.from_client) == ("request_too_large", 413, 10_000)
        client = Client("POST", b"x")
        client.receive = asyncio.Event().wait  # it sends nothing more
        exchange = await relayed(client, swallow, limits=Limits(idle_seconds=0.05))
        assert (exchange.outcome, client.status) == ("client_idle", 408)

    asyncio.run(main())


def test_a_side_that_does_not_read_stops_the_other() -> None:
    """100 MB each way, through a few hundred kilobytes."""
    size, piece = 100 * MB, bytes(1 << 16)
    counts = {"up": 0, "down": 0}

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while counts["down"] < size:
            writer.write(piece[: size - counts["down"]])
            await writer.drain()
            counts["down"] = min(size, counts["down"] + len(piece))

    async def main() -> int:
        client = Client()
        client.reads.clear()
        async with upstream(speak) as url:
            task = asyncio.create_task(client.asks(url))
            for before in iter(lambda: counts["down"], None):  # until the upstream stands still
                await asyncio.sleep(0.2)
                if before and before == counts["down"]:
                    break
            assert counts["down"] < 20 * MB  # what the kernel's buffers of two connections can take
            tracemalloc.start()
            try:
                client.keeps = False
                client.reads.set()
                exchange = await task
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert exchange.to_client == client.taken == size
        return peak

    assert asyncio.run(main()) < 3 * MB


def test_an_upload_goes_no_faster_than_the_upstream_takes_it() -> None:
    async def main() -> None:
        begun, go, given = asyncio.Event(), asyncio.Event(), [0]

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            begun.set()
            await go.wait()
            while piece := await reader.read(1 << 16):
                if piece.endswith(b"0\r\n\r\n"):
                    break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        client = Client("POST", b"x")

        async def receive() -> dict[str, Any]:
            if given[0] >= 100 * MB:
                await client.left.wait()
                return {"type": "http.disconnect"}
            given[0] += 100_000
            return {"type": "http.request", "body": bytes(100_000), "more_body": given[0] < 100 * MB}

        client.receive = receive
        async with upstream(speak) as url:
            task = asyncio.create_task(client.asks(url, limits=Limits(request_bytes=100 * MB)))
            await begun.wait()
            before = -1
            while before != given[0]:  # until it stands still
                before = given[0]
                await asyncio.sleep(0.2)
            assert 0 < given[0] < 20 * MB
            go.set()
            assert (await task).from_client == 100 * MB

    asyncio.run(main())


# Behind a real server


def test_behind_a_real_server_a_broken_answer_is_seen_as_broken() -> None:
    async def main() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
            if path == b"/whole":
                writer.write(b"0\r\n\r\n")

        async with upstream(speak) as url:

            async def app(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "http":
                    async with aiohttp.ClientSession() as session:
                        await relay(scope, receive, send, session=session, url=url.rstrip("/") + scope["path"])

            server = await asyncio.to_thread(serve, app, in_process=True)
            try:
                async with aiohttp.ClientSession() as session:
                    async with session.get(server.url + "/whole") as answer:
                        assert await answer.read() == b"half" and answer.headers.getall("date")[1:] == []
                    async with session.get(server.url + "/broken") as answer:
                        with pytest.raises(aiohttp.ClientPayloadError):
                            await answer.read()
            finally:
                await asyncio.to_thread(server.stop)

    asyncio.run(main())


def test_deflate_is_unpacked_in_steps_too() -> None:
    packed = zlib.compress(bytes(9 * MB))
    head = f"HTTP/1.1 200 OK\nContent-Encoding: deflate\nContent-Length: {len(packed)}"
    with pytest.raises(TooLarge):
        asyncio.run(capped(answers(head, packed), MB))
    assert asyncio.run(capped(answers(head, packed), 9 * MB)) == bytes(9 * MB)
