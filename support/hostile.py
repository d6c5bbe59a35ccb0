"""URLs that want in: the battery of chapter 09, and a network on which none of them does harm.

    network = Network(canary_port, upstream_port)
    await attempt(network, f"http://127.0.0.1:{canary_port}/")
    network.forbidden  # what was dialled, and should not have been

Names are looked up in a table, and every connection is noted before it is made. Only two are made at all: to the canary
(a server on this machine that stands for all that is private) and to the practice upstream. Every other address gets
"connection refused" without a packet, so a metadata address or a public one can be tried anywhere.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from support.gateway.guard import Guard

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLIC = "93.184.215.14"  # stands for a public server; nothing is sent there
LISTED = ("users.practice", "orders.practice", "bücher.practice")  # the practice upstream's names
PARTNERS = ("partner.test", "second.test")  # on the list too, and then their DNS changes
METADATA = "169.254.169.254"  # where clouds hand out credentials
Check = Callable[[str, "Network"], Awaitable[None]]


class Hostile(NamedTuple):
    """One URL of the battery, and which trick it is."""

    trick: str
    url: str


def zone() -> dict[str, list[list[str]]]:
    """Name -> what each question about it is answered in turn; the last answer stays."""
    here = {name: [["127.0.0.1"]] for name in ("localhost", "intranet.test", "127.0.0.1.nip.test", *LISTED)}
    return here | {
        "users.practice.evil.test": [["127.0.0.1"]],
        "xn--bcher-kva.practice": [["127.0.0.1"]],
        "metadata.google.internal": [[METADATA]],
        "mapped.test": [["::ffff:127.0.0.1"]],
        "two.test": [[PUBLIC, "127.0.0.1"]],  # the second address is private
        "rebind.test": [[PUBLIC], ["127.0.0.1"]],  # the second answer is private
        "partner.test": [[PUBLIC], ["127.0.0.1"]],
        "second.test": [[PUBLIC, "127.0.0.1"]],
    }


def battery(canary: int, upstream: int) -> list[Hostile]:
    """The hostile URLs. ``canary`` and ``upstream`` are ports on 127.0.0.1; the second one is on the operator's list."""
    p, good = canary, f"users.practice:{upstream}"
    hop = f"http://{good}/redirect?to="
    tricks = {
        "plain": [
            f"http://127.0.0.1:{p}/", f"http://localhost:{p}/", f"http://0.0.0.0:{p}/", "http://10.0.0.5/",
            f"http://{METADATA}/latest/meta-data/", "http://100.100.100.200/latest/meta-data/", "http://224.0.0.1/",
        ],
        "number": [
            f"http://2130706433:{p}/", f"http://017700000001:{p}/", f"http://0177.0.0.1:{p}/", f"http://127.1:{p}/",
            f"http://0:{p}/", f"http://0x7f.1:{p}/", f"http://0x7f.0x0.0x0.0x1:{p}/", f"http://0x7f000001:{p}/",
            "http://0xa9fea9fe/latest/meta-data/",
        ],
        "IPv6": [
            f"http://[::1]:{p}/", f"http://[::]:{p}/", f"http://[::ffff:127.0.0.1]:{p}/", f"http://[::ffff:7f00:1]:{p}/",
            f"http://[::127.0.0.1]:{p}/", f"http://[64:ff9b::7f00:1]:{p}/", f"http://[2001::80ff:fffe]:{p}/",
            "http://[fd00:ec2::254]/", "http://[fe80::1]/",
        ],
        "spelling": [
            f"http://LOCALHOST:{p}/", f"http://LocalHost.:{p}/", f"http://127。0。0。1:{p}/", f"http://①②⑦.⓪.⓪.①:{p}/",
            f"http://１２７.0.0.1:{p}/", f"http://127.0.0.1.:{p}/", f"http://localhoſt:{p}/", f"http://%6cocalhost:{p}/",
            f"http://127%2e0%2e0%2e1:{p}/",
        ],
        "user, @, #": [
            f"http://users.practice@127.0.0.1:{p}/", f"http://{good}@127.0.0.1:{p}/", f"http://{good}%2f@[::1]:{p}/",
            f"http://users.practice;x@0x7f000001:{p}/", f"http://{good}\\@127.0.0.1:{p}/",
            f"http://127.0.0.1:{p}#@{good}/", f"http://127.0.0.1:{p}?@{good}/", f" http://127.0.0.1:{p}/",
            f"http://127.0.\t0.1:{p}/",
        ],
        "name": [
            f"http://intranet.test:{p}/", f"http://127.0.0.1.nip.test:{p}/", f"http://users.practice.evil.test:{p}/",
            "http://metadata.google.internal/computeMetadata/v1/", f"http://mapped.test:{p}/", f"http://two.test:{p}/",
            f"http://rebind.test:{p}/", f"http://partner.test:{p}/", f"http://second.test:{p}/",
        ],
        "redirect": [
            f"{hop}http://127.0.0.1:{p}/", f"{hop}http://localhost:{p}/", f"{hop}http://0x7f000001:{p}/",
            f"{hop}http://[::ffff:127.0.0.1]:{p}/", f"{hop}http://{METADATA}/", f"{hop}{hop}http://intranet.test:{p}/",
        ],
        "port, scheme": [
            f"http://users.practice:{p}/", "http://users.practice:22/", f"https://users.practice:{p}/", "http://users.practice/",
            f"ws://127.0.0.1:{p}/", f"ftp://127.0.0.1:{p}/", f"gopher://127.0.0.1:{p}/_PING", "file:///etc/passwd",
            f"//127.0.0.1:{p}/",
        ],
    }  # fmt: skip
    return [Hostile(trick, url) for trick, urls in tricks.items() for url in urls]


def welcome(upstream: int) -> list[str]:
    """URLs that look strange, and must work."""
    good = f"http://users.practice:{upstream}"
    return [
        f"{good}/item/1", f"http://USERS.Practice:{upstream}/item/2", f"http://users.practice.:{upstream}/item/3",
        f"http://orders.practice:{upstream}/item/4", f"http://bücher.practice:{upstream}/item/5",
        f"http://xn--bcher-kva.practice:{upstream}/item/6", f"{good}/item/7?next=http://127.0.0.1/&mail=a@b",
        f"{good}/item/8#@169.254.169.254",
    ]  # fmt: skip


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """For asyncio.start_server: reads a line and closes, as a database does when it hears HTTP."""
    await reader.readline()
    writer.close()


def address(listening: asyncio.Server) -> str:
    """The URL of a server of asyncio.start_server."""
    return "http://{}:{}".format(*listening.sockets[0].getsockname())


def nested(gateway: str, depth: int) -> str:
    """A URL that makes a gateway that fetches URLs ask itself, twice in each of ``depth`` levels."""
    inner = quote(nested(gateway, depth - 1), safe="") if depth else ""
    return f"{gateway}/gateway/aggregate?services={inner}%2C{inner}" if depth else f"{gateway}/seen"


def told(part: Mapping[str, Any]) -> str:
    """What a part of an answer tells about the network behind: its data, or which error it names."""
    if "error" not in part:
        return str(part)
    for known in ("Connect call failed", "Server disconnected"):
        if known in part["error"]:
            return known
    return "another error"


class Network:
    """A table of names, and a note of every connection. ``canary``, ``upstream``: ports on 127.0.0.1."""

    def __init__(self, canary: int, upstream: int) -> None:
        self.canary, self.upstream = canary, upstream
        self.fresh()

    def fresh(self) -> None:
        """Forget what was asked and dialled."""
        self.asked: Counter[str] = Counter()
        self.dialled: list[tuple[str, int]] = []

    @property
    def forbidden(self) -> list[tuple[str, int]]:
        """Connections to anything but the practice upstream, and public servers."""
        return [dial for dial in self.dialled if dial[0] != PUBLIC and dial != ("127.0.0.1", self.upstream)]

    @property
    def options(self) -> dict[str, Any]:
        """For an aiohttp.TCPConnector that nothing guards."""
        return {"resolver": _Resolver(self), **self.counting}

    @property
    def counting(self) -> dict[str, Any]:
        """For Guard.connector(), which brings its own resolver."""
        return {"socket_factory": self._socket, "force_close": True}

    async def resolve(self, host: str, port: int = 0) -> list[str]:
        """The addresses of a name, as a system's resolver has them: numbers in all their forms are addresses too.

        Raises OSError for a name that the table has not.
        """
        try:
            host = host.encode("idna").decode().lower().removesuffix(".")
        except UnicodeError:
            raise OSError(errno.ENOENT, f"{host!r} is no name") from None
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        answers = zone().get(host)
        if answers:
            self.asked[host] += 1
            return answers[min(self.asked[host], len(answers)) - 1]
        try:
            return [socket.inet_ntoa(socket.inet_aton(host))]
        except OSError:
            raise OSError(errno.ENOENT, f"nobody knows {host}") from None

    def _socket(self, found: Any) -> socket.socket:
        family, kind, protocol, _, address = found
        self.dialled.append((address[0], address[1]))
        carried = ipaddress.ip_address(address[0])
        local = str(getattr(carried, "ipv4_mapped", None) or carried) == "127.0.0.1"
        if not local or address[1] not in (self.canary, self.upstream):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    def __init__(self, network: Network) -> None:
        self._network = network

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                          family=socket.AF_INET6 if ":" in address else socket.AF_INET)
            for address in await self._network.resolve(host, port)
        ]  # fmt: skip

    async def close(self) -> None: ...


async def attempt(network: Network, url: str, check: Check | None = None, guard: Guard | None = None) -> str:
    """GET a URL as a service with this defence would, and return the text of the answer, or the name of the error.

    Args:
        network: is made fresh, and then tells what was dialled.
        check: coroutine function (url, network) that raises for what it refuses; the client then does what it likes.
        guard: its connector is used, and nothing else; without a guard, a plain one.
    """
    network.fresh()
    timeout = aiohttp.ClientTimeout(total=5)
    try:
        if check:
            await check(url, network)
        connector = guard.connector(**network.counting) if guard else aiohttp.TCPConnector(**network.options)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, session.get(url) as answer:
            return await answer.text()
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return type(error).__name__


@dataclass
class Tally:
    """What one defence let through: the hostile URLs that connected, those that brought the secret, the good ones."""

    tried: list[Hostile]
    connected: list[Hostile]
    leaked: list[Hostile]
    good: int  # good URLs that worked
    welcome: int  # good URLs

    def count(self, trick: str) -> int:
        """Hostile URLs of one trick that connected."""
        return sum(one.trick == trick for one in self.connected)

    def example(self, trick: str) -> str:
        """The first URL of a trick that brought the secret. Its port, which differs from run to run, is left out."""
        return re.sub(r":\d{4,5}\b", ":PORT", next(one.url for one in self.leaked if one.trick == trick))


async def run(network: Network, secret: str, check: Check | None = None, guard: Guard | None = None) -> Tally:
    """Try the battery, and then the good URLs, against one defence. ``secret``: a text that only the canary has."""
    tally = Tally(battery(network.canary, network.upstream), [], [], 0, 0)
    for one in tally.tried:
        answer = await attempt(network, one.url, check, guard)
        tally.connected += [one] * bool(network.forbidden)
        tally.leaked += [one] * (secret in answer)
    for url in welcome(network.upstream):
        answer = await attempt(network, url, check, guard)
        tally.welcome += 1
        tally.good += '"price"' in answer and not network.forbidden
    return tally


def draw(axes: Axes, tallies: Mapping[str, Tally]) -> None:
    """A table in colour: a row for each trick, a column for each defence, in each cell how many URLs connected."""
    tried = Counter(one.trick for one in next(iter(tallies.values())).tried)
    shares = [[tally.count(trick) / tried[trick] for tally in tallies.values()] for trick in tried]
    axes.imshow(shares, cmap="Oranges", vmin=0, vmax=1.6, aspect="auto")
    for x, tally in enumerate(tallies.values()):
        counts = [str(tally.count(trick) or "-") for trick in tried]
        sums = [f"{len(tally.connected)} of {len(tally.tried)}", f"{tally.good} of {tally.welcome}"]
        for y, text in enumerate(counts + sums):
            axes.text(x, y, text, ha="center", va="center", weight="bold" if y == len(tried) else "normal")
    names = [f"{trick} ({count})" for trick, count in tried.items()]
    axes.set(xticks=range(len(tallies)), xticklabels=tallies, yticks=range(len(names) + 2), ylim=(len(names) + 1.5, -0.5),
             yticklabels=[*names, "hostile, in all", "good ones that work"])  # fmt: skip
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
