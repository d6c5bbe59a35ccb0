"""The checker of exercise 9.1: a guard against server-side request forgery, on a network of its own.

Names have answers that change from question to question, and every connection is noted. Nothing is sent anywhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from .engine import Exercise, three_hints
from .faults import CANCELS, Calls, cancel_sweep, prove_cancelled
from .harness import NO_ERROR, Failed, NotAttempted, Prove, observe, plain, prove_clean, tell

GOOD = "fetches what is public"
WHOLE = "asks for the URL that it was given"
SCHEME = "http and https only"
PORTS = "ports 80 and 443 only"
USER = "no user in a URL"
PRIVATE = "connects to no private address"
EVERY = "every address of a name must be public"
PINNED = "connects to the address that it checked"
ANEW = "checks a name anew each time"
FOLLOWS = "follows redirects to public pages"
REDIRECTS = "checks a redirect as it checked the URL"
FEW = "ends after five redirects"
REFUSES = "refuses with a ValueError"
PASSES_ON = "an error of resolve or connect comes out unchanged"

OPEN, OTHER, OPEN6 = "93.184.215.14", "8.8.4.4", "2606:4700::1111"  # public addresses; nothing is sent there
METADATA = "169.254.169.254"
# Name -> the answers to its first question, its second, and so on; the last one stays.
NAMES = {
    "shop.test": [[OPEN]],
    "news.test": [[OPEN6, OTHER]],
    "xn--bcher-kva.test": [[OTHER]],
    "localhost": [["127.0.0.1"]],
    "intranet.test": [["10.0.0.7"]],
    "shop.test.evil.test": [["192.168.0.1"]],
    "metadata.google.internal": [[METADATA]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "six.test": [["fd00:ec2::254"]],
    "first.test": [["127.0.0.1", OPEN]],
    "second.test": [[OPEN, "127.0.0.1"]],
    "third.test": [[OPEN6, OPEN, OTHER, "::1"]],
    "rebind.test": [[OPEN], ["127.0.0.1"]],
    "rebind.later.test": [[OPEN], [OTHER], [METADATA]],
    "back.test": [["127.0.0.1"], [OPEN]],
    "empty.test": [[]],
}
PAGES = (
    "http://shop.test/item/1", "https://SHOP.test/item/2?next=http://127.0.0.1/&mail=a@b", "http://shop.test:80/item/3",
    "https://shop.test:443/item/4", "http://shop.test./item/5", "http://news.test/item/6#@127.0.0.1", f"http://{OPEN}/item/7",
    f"https://[{OPEN6}]/item/8", "http://bücher.test/item/9",
)  # fmt: skip
HOSTILE = (
    "http://127.0.0.1/", "http://localhost/", "http://LOCALHOST./", "http://127.0.0.1./", "http://2130706433/",
    "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://0/", "http://0.0.0.0/",
    "http://①②⑦.⓪.⓪.①/", "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/",
    "http://[fd00:ec2::254]/", "http://[fe80::1]/", "http://[ff02::1]/", f"http://{METADATA}/latest/meta-data/", "http://10.0.0.5/",
    "http://172.31.0.1/", "http://192.168.1.1/", "http://100.64.0.1/", "http://224.0.0.1/", "http://255.255.255.255/",
    "http://intranet.test/", "http://shop.test.evil.test/", "http://metadata.google.internal/", "http://mapped.test/",
    "http://six.test/", "http://shop.test@127.0.0.1/", "http://shop.test:80@localhost/",
    "http://127.0.0.1#@shop.test/", "http://127.0.0.1?@shop.test/", "http://127.0.\t0.1/",
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """What ``connect`` returns. ``location``: where a redirect leads, or None."""

    status: int
    location: str | None
    body: str


class _World:
    """Names that answer, and servers that are dialled."""

    def __init__(self, redirects: dict[str, str] | None = None) -> None:
        self.redirects = redirects or {}
        self.asked: Counter[str] = Counter()
        self.given: set[str] = set()  # all addresses that resolve has returned
        self.dialled: list[tuple[str, Any, str]] = []
        self.by_name = False  # connect had to look a name up
        self.broken: Exception | None = None

    async def resolve(self, host: str) -> list[str]:
        """As the system's: a name's addresses, and what inet_aton makes of a number. OSError for a name without one."""
        await asyncio.sleep(0.01)
        found = self._look_up(host)
        self.given.update(found)
        return found

    async def connect(self, address: str, port: int, url: str) -> Reply:
        """Dial, ask for the URL, and return the reply. A name is looked up once more, as every client does."""
        await asyncio.sleep(0.01)
        if self.broken:
            raise self.broken
        address = str(address).strip("[]")
        try:
            ipaddress.ip_address(address)
        except ValueError:
            found = self._look_up(address)
            if not found:
                raise OSError("no such name") from None
            self.by_name, address = True, found[0]
        self.dialled.append((address, port, url))
        location = self.redirects.get(url)
        return Reply(302 if location else 200, location, f"the page at {urlsplit(url).path}")

    def _look_up(self, host: str) -> list[str]:
        try:
            host = str(host).strip("[]").encode("idna").decode().lower().removesuffix(".")
        except UnicodeError:
            raise OSError("no such name") from None
        if host in NAMES:
            self.asked[host] += 1
            return list(NAMES[host][min(self.asked[host], len(NAMES[host])) - 1])
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        try:
            return [socket.inet_ntoa(socket.inet_aton(host))]
        except OSError:
            raise OSError("no such name") from None

    @property
    def inside(self) -> list[str]:
        """Private addresses that were dialled."""
        return [address for address, _, _ in self.dialled if address not in (OPEN, OTHER, OPEN6)]


async def _fetch(answer: Any, world: _World, url: str) -> Any:
    """What it returned, or the exception that it raised."""
    try:
        return await answer(url, world.resolve, world.connect)
    except (NotImplementedError, NotAttempted, Failed):
        raise
    except Exception as error:
        return error


async def _refused(
    answer: Any, prove: Prove, url: str, lacking: str, world: _World | None = None, hops: int = 0
) -> None:
    """``hops``: connections that are right, before the one that is not."""
    world = world or _World()
    got = await _fetch(answer, world, url)
    where = f"{plain(url)!r}" + (f", which redirects to {plain(world.redirects[url])!r}," if hops else "")
    told = f"{where} made it connect to {plain(world.dialled[-1][0])}." if world.dialled else ""
    prove(lacking, not world.inside and len(world.dialled) <= hops, told)
    if got is Ellipsis:
        raise NotAttempted
    told = f"{where} was not fetched, but " + (
        f"it raised {tell(got)}." if isinstance(got, Exception) else f"it returned {plain(got)!r}."
    )
    prove(REFUSES, isinstance(got, ValueError | OSError), told)


async def _good(answer: Any, prove: Prove) -> None:
    tries = [(world := _World(), await _fetch(answer, world, url)) for url in PAGES]
    if all(isinstance(got, Exception) and not world.asked and not world.dialled for world, got in tries):
        prove(NO_ERROR, False, f"For every public page it raised {tell(tries[0][1])}.")
    for url in PAGES:
        world = _World()
        got = await _fetch(answer, world, url)
        if got is Ellipsis:
            raise NotAttempted
        told = f"{plain(url)!r} is a public page, and it raised {tell(got)}." if isinstance(got, Exception) else ""
        prove(GOOD, not told, told)
        prove(GOOD, bool(world.dialled), f"For {plain(url)!r} it never connected.")
        address, port, asked = world.dialled[-1]
        told = f"Given {plain(url)!r}, it asked the server for {plain(asked)!r}: Host header and certificate need the name."
        prove(WHOLE, asked == url, told)
        wanted = 443 if url.startswith("https") else 80
        prove(WHOLE, port == wanted, f"For {plain(url)!r} it connected to a port that is not {wanted}.")
        body = f"the page at {urlsplit(url).path}"
        prove(GOOD, got == body, f"For {plain(url)!r} it returned {plain(got)!r}, and the body was {body!r}.")


async def _private(answer: Any, prove: Prove) -> None:
    for url in HOSTILE:
        await _refused(answer, prove, url, PRIVATE)


async def _strict(answer: Any, prove: Prove) -> None:
    for url in (
        "ftp://shop.test/",
        "gopher://shop.test:80/_PING",
        "file:///etc/passwd",
        "//shop.test/",
        "ws://shop.test/",
        "shop.test",
    ):
        await _refused(answer, prove, url, SCHEME)
    odd = ("http://shop.test:22/", "http://shop.test:6379/", "https://shop.test:8443/", f"http://{OPEN}:25/")
    for url in (*odd, "http://shop.test:0/", "https://shop.test:0/"):
        await _refused(answer, prove, url, PORTS)
    for url in ("http://admin:secret@shop.test/", "http://localhost@shop.test/"):
        await _refused(answer, prove, url, USER)


async def _names(answer: Any, prove: Prove) -> None:
    for name in ("first.test", "second.test", "third.test"):
        world = _World()
        await _fetch(answer, world, f"http://{name}/")
        told = f"{name} has the addresses {', '.join(NAMES[name][0])}. One is private: refuse the name, and do not connect."
        prove(EVERY, not world.dialled, told)
        await _refused(answer, prove, f"http://{name}/", EVERY)
    for name in ("rebind.test", "rebind.later.test", "back.test", "shop.test"):
        world = _World()
        await _fetch(answer, world, f"http://{name}/")
        told = f"{name} answers each question differently. It connected to {plain(world.inside)}, which nobody had checked."
        prove(PINNED, not world.inside, told)
        told = (
            "It connected by the name, which is then resolved once more: give connect an address that you have checked."
        )
        prove(PINNED, not world.by_name, told)
        told = "It connected to an address that resolve had not returned."
        prove(PINNED, {address for address, _, _ in world.dialled} <= world.given, told)
    world = _World()
    await _fetch(answer, world, "http://rebind.test/1")
    before = len(world.dialled)
    await _fetch(answer, world, "http://rebind.test/2")
    told = (
        "In the first fetch rebind.test was public, in the second one private, and it connected: verdicts do not keep."
    )
    prove(ANEW, not world.inside and len(world.dialled) == before, told)
    await _refused(answer, prove, "http://empty.test/", EVERY)


async def _hops(answer: Any, prove: Prove) -> None:
    start = "http://shop.test/go"
    for location, last in (
        ("https://news.test/new", "/new"),
        ("/here", "/here"),
        ("?page=2", "/go"),
        (f"//{OPEN}/x", "/x"),
    ):
        world = _World({start: location})
        got = await _fetch(answer, world, start)
        told = f"{start!r} redirects to {location!r}, and it "
        told += f"raised {tell(got)}." if isinstance(got, Exception) else f"returned {plain(got)!r}."
        prove(FOLLOWS, got == f"the page at {last}", told)
        prove(FOLLOWS, world.dialled[-1][2] == urljoin(start, location), f"{told} It asked for another URL than that.")
    hostile = [
        *HOSTILE,
        "http://shop.test:22/",
        "http://shop.test:0/",
        "ftp://shop.test/",
        "file:///etc/passwd",
        "http://a@shop.test/",
        "http://second.test/",
        "http://empty.test/",
    ]
    for location in hostile:
        if location.isascii() and "\t" not in location:  # a header has no others
            await _refused(answer, prove, start, REDIRECTS, _World({start: location}), hops=1)
    world = _World({start: "https://news.test/new", "https://news.test/new": "//localhost/"})
    await _fetch(answer, world, start)
    told = "A redirect led to a second one, and that to localhost, and it connected."
    prove(REDIRECTS, not world.inside, told)
    world = _World({start: "http://rebind.test/a", "http://rebind.test/a": "http://rebind.test/b"})
    await _fetch(answer, world, start)
    told = "Two redirects led to rebind.test. It was public at the first, private at the second, and it connected."
    prove(REDIRECTS, not world.inside, told)
    chain = {f"http://shop.test/{n}": f"http://shop.test/{n + 1}" for n in range(5)}
    got = await _fetch(answer, _World(chain), "http://shop.test/0")
    prove(
        FOLLOWS, got == "the page at /5", "Five redirects led from one public page to the next, and it did not follow."
    )
    world = _World({start: start})
    got = await asyncio.wait_for(_fetch(answer, world, start), 60)
    told = "A page redirects to itself, and it made more than six connections."
    prove(FEW, len(world.dialled) <= 6, told)
    prove(FEW, isinstance(got, ValueError), "After six connections without a page, it raised no ValueError.")


async def _errors(answer: Any, prove: Prove) -> None:
    got = await _fetch(answer, _World(), "http://nobody.test/")
    prove(PASSES_ON, type(got) is OSError, f"resolve raised an OSError, and out came {plain(repr(got))}.")
    world = _World()
    world.broken = ConnectionRefusedError("refused")
    got = await _fetch(answer, world, "http://shop.test/")
    prove(PASSES_ON, got is world.broken, f"connect raised a ConnectionRefusedError, and out came {plain(repr(got))}.")


def check_guard(answer: Any, prove: Prove) -> None:
    for scene in (_good, _private, _strict, _names, _hops, _errors):
        run = observe(scene, answer, prove)
        if isinstance(run.error, TimeoutError):
            raise Failed(FEW, "A page redirects to itself, and it never came to an end.")
        run.result()
        prove_clean(prove, run)

    async def cancelled(calls: Calls, drive: Any) -> Any:
        world = _World()
        return await drive(answer("http://shop.test/", world.resolve, world.connect))

    for run, calls, canceller in cancel_sweep(cancelled):
        prove_cancelled(prove, run, calls, canceller, 0.0)
    prove(CANCELS, True, "")
    prove(NO_ERROR, True, "")


EXERCISES = [
    Exercise(
        "9.1",
        "an SSRF guard",
        "fetch(url, resolve, connect)",
        ("url", "resolve", "connect"),
        three_hints("""
        A URL has a scheme, a user, a host, a port. Which of them decides where the packet goes? And who
        turns the host into an address: you, or the client, and how often?

        One round of a loop for each hop: urlsplit, refuse, resolve once, look at every address, connect
        to one of those. If the reply has a location, urljoin it to the URL, and go round again. After
        six rounds, give up.

        port = {"http": 80, "https": 443}.get(parts.scheme) if parts.port is None else parts.port. Refuse
        unless port is one of the two and "@" is not in parts.netloc. addresses = await
        resolve(parts.hostname); refuse unless there are some, and all(map(is_public, addresses)); reply = await connect(addresses[0], port, url).
        """),
        check_guard,
    )
]
