"""The practice upstream: a small HTTP service that is slow, flaky, huge or full on request.

One ASGI application without a framework, so that it costs little per request and starts fast.
A path that it does not have is answered with the list of those it has. `/stats` tells what it saw
since the last `/reset`. Randomness is seeded: the same calls in the same order, the same answers.
"""

import asyncio
import bisect
import difflib
import json
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qsl, quote

MAX_SECONDS, MAX_BYTES = 60, 1 << 30
MAX_ARRIVALS = 10_000  # arrival times kept per run
CHUNK = bytes(1 << 16)
DRIP_INTERVAL = 0.05  # seconds between two pieces of a dripping body

Header = tuple[bytes, bytes]
Reply = tuple[Any, ...] | None  # status, content, headers; None when the answer is sent already


class RefusedInput(ValueError):
    """Input that the upstream refuses, in one sentence, and the status code of that answer."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class ClientLeft(Exception):
    """The client closed its connection before the answer was complete."""


def queue_up(ends: list[float], capacity: int, now: float, seconds: float) -> tuple[float, int]:
    """Queue work for `capacity` workers, first come first served.

    `ends` holds when each earlier piece of work ends, in order; it is updated.
    Returns when the new work ends, and how many pieces were ahead of it.
    """
    del ends[:bisect.bisect_right(ends, now)]
    ahead = len(ends)
    end = (ends[-capacity] if ahead >= capacity else now) + seconds
    bisect.insort(ends, end)
    return end, ahead


def gzip_pieces(size: int) -> Iterator[bytes]:
    """Yield a gzip file that unpacks to `size` zero bytes, about a thousandth of that in length."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)  # 16: with a gzip header
    for start in range(0, size, len(CHUNK)):
        yield packer.compress(CHUNK[:size - start])
    yield packer.flush()


class Run:
    """What was seen since the last reset. A request belongs to the run in which it arrived."""

    def __init__(self, seed: int) -> None:
        self.seed, self.since = seed, time.perf_counter()
        self.by_endpoint: Counter[str] = Counter()
        self.in_flight = self.peak_in_flight = self.aborted = self.connections = self.charges = 0
        self.arrivals: list[float] = []
        self.memory: dict[str, Any] = {}  # what an endpoint remembers, by "endpoint/key"

    def arrive(self, endpoint: str) -> None:
        self.by_endpoint[endpoint] += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        if len(self.arrivals) < MAX_ARRIVALS:
            self.arrivals.append(round(time.perf_counter() - self.since, 6))


class Call:
    """One request: what arrived, and the ways to wait for its client and to answer it."""

    def __init__(self, scope: dict, receive: Callable, send: Callable, run: Run) -> None:
        self.scope, self.receive, self.send, self.run = scope, receive, send, run
        self.endpoint, _, self.argument = scope["path"].strip("/").partition("/")
        self.query = dict(parse_qsl(scope["query_string"].decode("latin-1")))

    def number(self, name: str, low: float, high: float, default: float | None = None, *,
               in_path: bool = False) -> Any:
        """Return a number that the client gave, whole when `low` is an int. Raises RefusedInput."""
        text = self.argument if in_path else self.query.get(name, "")
        if not text and default is not None:
            return default
        kind, word = (int, "whole number") if isinstance(low, int) else (float, "number")
        try:
            if low <= (value := kind(text)) <= high:
                return value
        except ValueError:
            pass
        raise RefusedInput(f"{name} must be a {word} from {low} to {high}, not {text[:60]!r}.")

    async def wait(self, seconds: float) -> None:
        """Wait that long. Raises ClientLeft as soon as the client closes its connection."""
        try:
            async with asyncio.timeout(seconds):
                while (await self.receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return
        raise ClientLeft

    async def answer(self, status: int, content: Any, *headers: Header) -> None:
        """Answer with `content` as JSON."""
        body = b"" if status in (204, 205, 304) else json.dumps(content).encode()
        length = [] if status in (204, 304) else [(b"content-length", b"%d" % len(body))]
        fields = [(b"content-type", b"application/json"), *length, *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": fields})
        await self.send({"type": "http.response.body", "body": body})

    async def stream(self, pieces: Iterable[bytes], *headers: Header, interval: float = 0) -> None:
        """Answer with pieces, `interval` seconds apart, and no faster than the client reads."""
        fields = [(b"content-type", b"application/octet-stream"), *headers]
        await self.send({"type": "http.response.start", "status": 200, "headers": fields})
        clock = asyncio.get_running_loop().time
        due = clock()
        for piece in pieces:
            due += interval
            await self.wait(due - clock())
            await self.send({"type": "http.response.body", "body": piece, "more_body": True})
        await self.send({"type": "http.response.body"})


def endpoint_of(path: str) -> Callable:
    """Return the handler that serves `path`. Raises RefusedInput, which lists those there are."""
    name = path.partition("?")[0].strip("/").partition("/")[0]
    if name in ENDPOINTS:
        return ENDPOINTS[name]
    close = difflib.get_close_matches(name, ENDPOINTS, n=1)
    guess = f" (did you mean /{close[0]}?)" if close else ""
    known = ", ".join(f"/{known}" for known in ENDPOINTS)
    raise RefusedInput(f"The upstream has no path {path[:100]!r}{guess}; it has {known}.", 404)


class PracticeUpstream:
    """The ASGI application. `seed` is where its random answers start."""

    def __init__(self, seed: int = 1) -> None:
        self.run = Run(seed)
        self._fresh: set[Any] = set()  # connections opened in this run, without a request yet

    # The server calls these two, because an ASGI application cannot see connections.
    def connection_opened(self, client: Any) -> None:
        self.run.connections += 1
        self._fresh.add(client)

    def connection_closed(self, client: Any) -> None:
        self._fresh.discard(client)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"The upstream speaks HTTP only, not {scope['type']}.")
        call, client = Call(scope, receive, send, self.run), scope["client"]
        if call.endpoint in ("stats", "reset"):
            # A connection opened to ask for the counters is not part of them, nor is the request.
            call.run.connections -= client in self._fresh
            call.run = Run(0)
        self._fresh.discard(client)
        call.run.arrive(call.endpoint if call.endpoint in ENDPOINTS else "unknown")
        try:
            await self._serve(call)
        except ClientLeft:
            call.run.aborted += 1
        finally:
            call.run.in_flight -= 1

    async def _serve(self, call: Call) -> None:
        headers: list[Header] = []
        try:
            handler = endpoint_of(call.scope["path"])
            delay = call.number("delay", 0.0, MAX_SECONDS, 0)
            retry_after = call.number("retry_after", 0, 3600, -1)
            reply = await handler(self, call)
            if reply is None:
                return
            status, content, *headers = reply
            if delay:
                await call.wait(delay)
            if status >= 400 and retry_after >= 0:
                headers.append((b"retry-after", b"%d" % retry_after))
        except RefusedInput as refused:
            status, content = refused.status, {"error": str(refused)}
            if status == 404:
                content["endpoints"] = [handler.__doc__ for handler in ENDPOINTS.values()]
        await call.answer(status, content, *headers)

    # The endpoints: the methods whose docstring begins with their path. Those that answer with JSON
    # also take delay= (seconds before the answer) and retry_after= (seconds, sent with an error).

    async def delay(self, call: Call) -> Reply:
        """/delay/{seconds} answers after that many seconds."""
        seconds = call.number("seconds", 0.0, MAX_SECONDS, in_path=True)
        await call.wait(seconds)
        return 200, {"seconds": seconds}

    async def status(self, call: Call) -> Reply:
        """/status/{code} answers with that status code."""
        code = call.number("code", 200, 599, in_path=True)
        return code, {"status": code}

    async def flaky(self, call: Call) -> Reply:
        """/flaky/{failures}?key= fails the first calls of a key; /flaky?p= fails by chance."""
        failures = call.number("failures", 0, 1_000_000, 0, in_path=True)
        chance = 0.0 if call.argument else call.number("p", 0.0, 1)
        status, key = call.number("status", 400, 599, 503), call.query.get("key", "")
        dice = random.Random(f"{call.run.seed}/{key}")
        state = call.run.memory.setdefault(f"flaky/{key}", {"calls": 0, "dice": dice})
        state["calls"] += 1
        fails = state["calls"] <= failures or state["dice"].random() < chance
        return status if fails else 200, {"call": state["calls"], "ok": not fails}

    async def stall(self, call: Call) -> Reply:
        """/stall never answers: it waits until the client leaves; after a minute it sends a 504."""
        await call.wait(MAX_SECONDS)
        return 504, {"error": "The client waited a minute for an answer that never comes."}

    async def drip(self, call: Call) -> None:
        """/drip?bytes=&seconds= sends a body in small pieces, spread over that many seconds."""
        size, seconds = call.number("bytes", 1, MAX_BYTES), call.number("seconds", 0.0, MAX_SECONDS)
        count = min(size, max(round(seconds / DRIP_INTERVAL), size // (1 << 20), 1))
        pieces = (bytes(size * (i + 1) // count - size * i // count) for i in range(count))
        await call.stream(pieces, (b"content-length", b"%d" % size), interval=seconds / count)

    async def big(self, call: Call) -> None:
        """/big/{bytes} sends that many bytes, as fast as the client reads them."""
        size = call.number("bytes", 0, MAX_BYTES, in_path=True)
        pieces = (CHUNK[:size - start] for start in range(0, size, len(CHUNK)))
        await call.stream(pieces, (b"content-length", b"%d" % size))

    async def bomb(self, call: Call) -> None:
        """/bomb/{bytes} sends a small gzip body that unpacks to that many bytes."""
        size = call.number("bytes", 0, MAX_BYTES, in_path=True)
        await call.stream(gzip_pieces(size), (b"content-encoding", b"gzip"))

    async def redirect(self, call: Call) -> Reply:
        """/redirect/{times} redirects that often, and /redirect?to= to the given address."""
        target = call.query.get("to")
        if not target:
            if not (times := call.number("times", 0, 100, in_path=True)):
                return 200, {"redirects": "done"}
            target = f"/redirect/{times - 1}"
        location = quote(target, safe="/:?&=#%@+,;[]!~*'()$").encode()  # no line break gets through
        return 302, {"to": target}, (b"location", location)

    async def charge(self, call: Call) -> Reply:
        """/charge charges at each POST, before any delay=, but once only per Idempotency-Key."""
        if call.scope["method"] != "POST":
            raise RefusedInput(f"/charge takes POST, not {call.scope['method']}.", 405)
        number, key = call.run.charges + 1, dict(call.scope["headers"]).get(b"idempotency-key")
        if key:
            number = call.run.memory.setdefault(f"charge/{key.decode('latin-1')}", number)
        if number <= call.run.charges:  # known: the answer is ready, without a second delay
            return await call.answer(200, {"charge": number, "replayed": True})
        call.run.charges = number
        return 201, {"charge": number, "replayed": False}

    async def limited(self, call: Call) -> Reply:
        """/limited?seconds=&capacity= works that long, on so many workers; other requests queue."""
        # Work that is queued is done, also when its client has left: most servers do not notice.
        seconds = call.number("seconds", 0.0, MAX_SECONDS)
        capacity = call.number("capacity", 1, 1000)
        ends = call.run.memory.setdefault(f"limited/{capacity}/{call.query.get('key', '')}", [])
        now = asyncio.get_running_loop().time()
        end, ahead = queue_up(ends, capacity, now, seconds)
        await call.wait(end - now)
        return 200, {"ahead": ahead}

    async def contended(self, call: Call) -> Reply:
        """/contended?seconds=&alpha=&beta= takes longer the more requests of its key= are there."""
        # With n there, this one among them: seconds (1 + alpha (n - 1) + beta n (n - 1)). A closed
        # loop of N then completes as the universal scalability law says.
        seconds = call.number("seconds", 0.0, MAX_SECONDS)
        alpha, beta = call.number("alpha", 0.0, 1, 0.0), call.number("beta", 0.0, 1, 0.0)
        there = call.run.memory.setdefault(f"contended/{call.query.get('key', '')}", Counter())
        there["now"] += 1
        n = there["now"]
        try:
            await call.wait(min(seconds * (1 + alpha * (n - 1) + beta * n * (n - 1)), MAX_SECONDS))
        finally:
            there["now"] -= 1
        return 200, {"there": n}

    async def item(self, call: Call) -> Reply:
        """/item/{id} answers with a small JSON object, always the same for the same id."""
        return 200, {"id": call.argument, "price": zlib.crc32(call.argument.encode()) % 10_000}

    async def stats(self, call: Call) -> Reply:
        """/stats answers with the counters since the last reset."""
        requests, hidden = self.run.by_endpoint.total(), ("seed", "since", "memory")
        completed = requests - self.run.in_flight - self.run.aborted
        counters = {name: seen for name, seen in vars(self.run).items() if name not in hidden}
        return 200, {"requests": requests, "completed": completed} | counters

    async def reset(self, call: Call) -> Reply:
        """/reset zeroes the counters and starts the random answers again, from seed= if given."""
        self.run = Run(call.number("seed", 0, 2**53, self.run.seed))
        self._fresh.clear()
        return 200, {"seed": self.run.seed}


ENDPOINTS: dict[str, Callable] = {
    name: method for name, method in vars(PracticeUpstream).items()
    if (method.__doc__ or "").startswith("/")}
app = PracticeUpstream()
