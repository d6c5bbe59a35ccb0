"""The finished gateway's /proxy: its lines on the virtual clock, and over real sockets what goes out and what comes back."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from yarl import URL

from support import servers, simulate
from support.gateway import Settings, create_app
from support.gateway.app import Application
from support.gateway.client import Client

PATIENCE = 20  # seconds, after which a test gives up; nothing waits for it that goes well
CLOSED = "http://127.0.0.1:9"


# In line, on the virtual clock: nothing here may reach the network


@dataclass
class Visit:
    """What a client saw, and when."""

    status: int
    took: float
    body: dict[str, Any]


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Application]:
    """The application, started and stopped as a server does."""
    app, stop, started = create_app(settings), asyncio.Event(), asyncio.Event()
    said: list[str] = []

    async def receive() -> dict[str, Any]:
        if said:
            await stop.wait()
        return {"type": "lifespan.shutdown" if said else "lifespan.startup"}

    async def send(message: Any) -> None:
        said.append(message["type"])
        started.set()

    task = asyncio.create_task(app({"type": "lifespan"}, receive, send))
    await started.wait()
    try:
        yield app
    finally:
        stop.set()
        await task
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def visit(app: Application, path: str, *, leaves: float | None = None, **headers: str) -> Visit:
    """Ask for it, without a body; after ``leaves`` seconds the client is gone. Status 0: it got no answer."""
    loop, messages = asyncio.get_running_loop(), list[Any]()
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asked = iter(({"type": "http.request", "body": b"", "more_body": False},))

    async def receive() -> dict[str, Any]:
        for message in asked:
            return message
        if leaves is None:
            await asyncio.Event().wait()
        await asyncio.sleep(began + leaves - loop.time())
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": fields}
    began = loop.time()
    await app(scope, receive, send)
    took = round(loop.time() - began, 3)
    if not messages:
        return Visit(0, took, {})
    return Visit(messages[0]["status"], took, json.loads(messages[1]["body"]))


LINES = ({"shed": 1, "shed_queue": 5}, {"bulkhead": 1, "bulkhead_queue": 5})


@contextlib.asynccontextmanager
async def taken(app: Application) -> AsyncIterator[Any]:
    """Hold the only place. Gives what has the line before it."""
    gateway = app.running.gateway
    places = gateway.shedder or gateway.upstreams["a"].bulkhead
    async with places:
        yield places


@pytest.mark.parametrize("line", LINES)
def test_the_wait_in_line_counts_and_ends_with_the_clients_time(line: dict[str, int]) -> None:
    async def main() -> list[Visit]:
        async with running(Settings.naive({"a": CLOSED}, **line)) as app, taken(app) as places:
            seen = [await visit(app, "/proxy/a/x", x_deadline_ms=ms) for ms in ("200", "100", "999999999")]
            assert places.waiting == 0
            return seen

    seen = simulate(main)
    word, status = ("overloaded", 503) if "shed" in line else ("timeout", 504)
    assert [one.took for one in seen] == [0.18, 0.09, 29.98]  # something is kept for the answer
    assert {(one.status, one.body["error"]) for one in seen} == {(status, word)}


@pytest.mark.parametrize("line", LINES)
def test_a_client_that_leaves_the_line_gives_up_its_place(line: dict[str, int]) -> None:
    async def main() -> Visit:
        async with running(Settings.naive({"a": CLOSED}, **line)) as app, taken(app) as places:
            seen = await visit(app, "/proxy/a/x", leaves=0.05)
            assert places.waiting == 0 and places.inside == 1
            return seen

    assert simulate(main) == Visit(0, 0.05, {})


@pytest.mark.parametrize("line", LINES)
def test_it_asks_nobody_when_its_client_leaves_as_the_place_comes(line: dict[str, int]) -> None:
    async def main() -> Visit:
        async with running(Settings.naive({"a": CLOSED}, **line)) as app:
            async with taken(app) as places:
                task = asyncio.create_task(visit(app, "/proxy/a/x", leaves=0.05))
                await asyncio.sleep(0.05)
            seen = await task
            assert places.waiting == places.inside == 0
            return seen

    assert simulate(main) == Visit(0, 0.05, {})


# Over real sockets


class Played:
    """An upstream that says what a test needs, and keeps what it was sent. /hold waits until ``go``."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[bytes, bytes], bytes]] = []
        self.go = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        path = scope["path"]
        self.seen.append((path, dict(scope["headers"]), body))
        while path == "/hold" and not self.go.is_set():
            await asyncio.sleep(0.005)
        fields = [(b"content-type", b"application/json")]
        if path == "/moved":
            fields += [(b"location", scope["query_string"]), (b"content-location", scope["query_string"])]
        await send({"type": "http.response.start", "status": 302 if path == "/moved" else 200, "headers": fields})
        pieces = 3 if path == "/long" else 1
        for _ in range(pieces):
            await send({"type": "http.response.body", "body": b" " * 1000 + b"{}", "more_body": True})
        if path != "/half":
            await send({"type": "http.response.body", "body": b""})

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.seen]


@pytest.fixture
def played() -> Iterator[Played]:
    played = Played()
    yield played
    played.go.set()


def against(
    played: Played, use: Callable[[str, aiohttp.ClientSession, Application], Awaitable[Any]], **given: Any
) -> Any:
    """``use(url, session, app)`` with a gateway before ``played``, which is its upstream a."""
    with servers.serve(played, in_process=True, name="played") as upstream:
        app = create_app(Settings.naive({"a": upstream.url}, **given))
        with servers.serve(app, in_process=True, name="gateway before a played upstream") as server:

            async def main() -> Any:
                async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
                    try:
                        return await use(server.url, session, app)
                    finally:
                        played.go.set()

            return asyncio.run(main())


async def until(seen: Callable[[], bool]) -> None:
    while not seen():
        await asyncio.sleep(0.005)


async def metric(session: aiohttp.ClientSession, url: str, name: str) -> float:
    """The value of a metric, 0 when it has none yet."""
    async with session.get(f"{url}/metrics") as answer:
        found = [line for line in (await answer.text()).splitlines() if line.startswith(name + " ")]
    return float(found[0].split()[-1]) if found else 0.0


async def leave_in_line(url: str, session: aiohttp.ClientSession, path: str) -> None:
    """Ask for it, and leave as soon as the gateway has the request."""
    before = await metric(session, url, "gateway_in_flight")
    task = asyncio.create_task(session.get(url + path))
    while await metric(session, url, "gateway_in_flight") <= before:
        pass
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("line", LINES)
def test_live_the_upstream_hears_what_is_left_after_the_line_and_gets_the_whole_body(
    played: Played, line: dict[str, int]
) -> None:
    async def use(url: str, session: aiohttp.ClientSession, app: Application) -> None:
        first = asyncio.create_task(session.get(f"{url}/proxy/a/hold"))
        await until(lambda: bool(played.seen))
        said = {"x-deadline-ms": "15000"}
        waiting = [
            asyncio.create_task(session.post(f"{url}/proxy/a/x", data=b"7" * 300_000, headers=said)),
            asyncio.create_task(session.get(f"{url}/proxy/a/y", headers=said)),
        ]
        while await metric(session, url, "gateway_in_flight") < 4:  # /metrics is one of them
            pass
        await asyncio.sleep(0.3)
        assert played.paths() == ["/hold"]
        played.go.set()
        for one in (first, *waiting):
            assert (await one).status == 200

    against(played, use, **line)
    sent = {path: (fields, body) for path, fields, body in played.seen[1:]}
    assert sent["/x"][1] == b"7" * 300_000 and sent["/y"][1] == b""
    assert all(int(fields[b"x-deadline-ms"]) <= 14_700 for fields, _ in sent.values())


@pytest.mark.parametrize("line", LINES)
def test_live_a_client_that_left_in_line_is_not_served_and_counted_as_499(played: Played, line: dict[str, int]) -> None:
    async def use(url: str, session: aiohttp.ClientSession, app: Application) -> None:
        first = asyncio.create_task(session.get(f"{url}/proxy/a/hold"))
        await until(lambda: bool(played.seen))
        await leave_in_line(url, session, "/proxy/a/x")
        left = 'gateway_requests_total{route="/proxy/{name}/{path}",status="499"}'
        while not await metric(session, url, left):
            pass
        played.go.set()
        assert (await first).status == 200
        assert (await session.get(f"{url}/proxy/a/y")).status == 200

    against(played, use, **line)
    assert played.paths() == ["/hold", "/y"]


def test_live_the_log_tells_how_a_proxied_request_ended(played: Played, caplog: pytest.LogCaptureFixture) -> None:
    async def use(url: str, session: aiohttp.ClientSession, app: Application) -> None:
        async with session.get(f"{url}/proxy/a/x") as answer:
            assert await answer.json() == {}
        async with session.get(f"{url}/proxy/a/half") as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        await leave_in_line(url, session, "/proxy/a/hold")
        left = 'gateway_requests_total{route="/proxy/{name}/{path}",status="499"}'
        while not await metric(session, url, left):
            pass
        assert not await metric(session, url, left.replace("499", "0"))

    against(played, use, access_log=True)
    logged = [json.loads(record.message) for record in caplog.records if record.name == "gateway.access"]
    proxied = [(line["path"][9:], line["status"], line["outcome"]) for line in logged if line["route"] != "/metrics"]
    assert proxied == [("x", 200, "done"), ("half", 200, "upstream_broke"), ("hold", 499, "client_left")]
    assert {line["outcome"] for line in logged if line["route"] == "/metrics"} == {"done"}


def test_live_a_body_over_the_limit_is_counted_as_such_and_opens_no_breaker(played: Played) -> None:
    async def use(url: str, session: aiohttp.ClientSession, app: Application) -> None:
        for _ in range(2):
            async with session.get(f"{url}/proxy/a/long") as answer:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
        async with session.get(f"{url}/proxy/a/x") as answer:
            assert answer.status == 200
            await answer.read()  # who leaves before the end abandons the call
        called = 'gateway_upstream_calls_total{outcome="%s",upstream="a"}'
        assert await metric(session, url, called % "too_large") == 2
        assert await metric(session, url, called % "abandoned") == 0

    against(played, use, body_bytes=2500, breaker=1, breaker_rest=60.0)


def test_live_while_it_drains_relayed_answers_close_the_connection_too(played: Played) -> None:
    async def use(url: str, session: aiohttp.ClientSession, app: Application) -> None:
        for drained in (False, True):
            if drained:
                app.drain()
            for path in ("/proxy/a/x", "/proxy/nobody/x", "/health"):
                async with session.get(url + path) as answer:
                    assert answer.headers.getall("connection", []) == (["close"] if drained else [])

    against(played, use)


# Addresses in answers


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("http://users.corp:8000/v1", "/proxy/users"),
        ("http://users.corp:8000/v1/7?a=%20b#c", "/proxy/users/7?a=%20b#c"),
        ("HTTP://USERS.corp:8000/v1/7", "/proxy/users/7"),
        ("/v1/8", "/proxy/users/8"),
        ("8", "/proxy/users/items/8"),
        ("?page=2", "/proxy/users/items/1?page=2"),
        ("../9", "/proxy/users/9"),
        ("https://shop.example.com/pay?x=1#y", "https://shop.example.com/pay?x=1#y"),
        ("//shop.example.com/pay", "//shop.example.com/pay"),
        ("https://93.184.215.14/", "https://93.184.215.14/"),
        ("shopapp://back", "shopapp://back"),
        # below the upstream's host, and not below its path; another port, scheme or upstream
        ("/login", None),
        ("/v1evil", None),
        ("http://users.corp:8000/v1/../admin", None),
        ("http://users.corp:8000/v1/%2e%2e/admin", None),
        ("http://users.corp:9000/v1/7", None),
        ("https://users.corp:8000/v1/7", None),
        ("http://stock.example.com/1", None),
        ("http://stock.example.com./1", None),
        # inside
        ("http://127.0.0.1:8000/", None),
        ("http://10.1.2.3/", None),
        ("http://169.254.169.254/latest/meta-data", None),
        ("http://[::1]/", None),
        ("http://[::ffff:10.0.0.1]/", None),
        ("http://2130706433/", None),
        ("http://0x7f.1/", None),
        ("http://localhost/", None),
        ("http://admin/", None),
        ("http://db.prod.internal/", None),
        ("http://a.svc.cluster.local./", None),
        # no address at all
        ("http://[", None),
        ("http://x:99999/", None),
        ("http:///10.0.0.1/x", None),
    ],
)
def test_what_the_client_is_told_of_an_address(location: str, told: str | None) -> None:
    client = Client(Settings(upstreams={"users": "http://users.corp:8000/v1", "stock": "http://stock.example.com/"}))
    assert client.told("users", URL("http://users.corp:8000/v1/items/1"), location) == told


def test_an_upstream_without_a_path_has_every_path() -> None:
    client = Client(Settings(upstreams={"root": "http://10.0.0.1:8000"}))
    asked = URL("http://10.0.0.1:8000/a/b")
    assert client.told("root", asked, "/login?next=%2Fa") == "/proxy/root/login?next=/a"
    assert client.told("root", asked, "http://10.0.0.1:8000") == "/proxy/root/"


def test_live_an_internal_address_does_not_get_out(played: Played) -> None:
    async def use(url: str, session: aiohttp.ClientSession, app: Application) -> None:
        upstream = app.running.settings.upstreams["a"]
        for location, told in (
            (f"{upstream}/x/7", "/proxy/a/x/7"),
            ("http://10.0.0.1/x", None),
            ("https://example.com/x", "https://example.com/x"),
        ):
            async with session.get(f"{url}/proxy/a/moved?{location}", allow_redirects=False) as answer:
                assert answer.status == 302
                assert answer.headers.get("location") == answer.headers.get("content-location") == told

    against(played, use)
