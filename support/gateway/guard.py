"""Where the gateway may connect to, whatever a URL says.

    guard = Guard({"api.example.com": {443}})
    async with aiohttp.ClientSession(connector=guard.connector()) as session:
        async with session.get(url, allow_redirects=False) as answer: ...

A URL names a host, and a connection goes to an address. So the guard reads the URL with the parser of the client that
will use it, looks host and port up in the operator's list, resolves the name once, and checks every address. The
client gets those addresses and no others: who answers the second question about a name differently is not asked one.
The connector asks the guard at each connection, and so at each redirect, should somebody follow them.

The session must not use a proxy: it would resolve the name again, where nobody checks.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

SCHEMES, DEFAULT_PORTS, ANY_HOST = ("http", "https"), frozenset({80, 443}), "*"
LONGEST_URL = 2000  # characters
Resolve = Callable[[str, int], Awaitable[Collection[str]]]

# IANA's registries of special-purpose addresses (RFC 6890 and its successors), multicast and what is reserved. Written
# out, because the standard library's is_global has changed between patch versions, and leaves multicast in.
_CLOSED_V4 = [
    ipaddress.IPv4Network(net) for net in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4")
]  # fmt: skip
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")  # all that is given out for the public internet
_CLOSED_V6 = [
    # 2001::/23 holds Teredo, 2002::/16 is 6to4: both carry an IPv4 address, and relays send the packet on to it.
    ipaddress.IPv6Network(net)
    for net in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # a gateway sends the packet on to the IPv4 address in its last 32 bits
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")


class Blocked(ValueError):
    """The URL leads where this service does not go. ``reason``: one word, for logs and metrics.

    Tell a client only that it was refused: the reasons, told apart, are a map of the network.
    """

    def __init__(self, reason: str, told: str) -> None:
        super().__init__(told)
        self.reason = reason


@dataclass(frozen=True)
class Target:
    """A checked URL. ``addresses``: all that its host has, and each may be connected to."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]


def is_public(address: str) -> bool:
    """Whether a packet to this address, in its usual notation, leaves for the public internet.

    An IPv6 address that carries an IPv4 one (mapped, NAT64) counts as that one.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found in _NAT64 or found.ipv4_mapped:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        return found in _OPEN_V6 and not any(found in net for net in _CLOSED_V6)
    return not any(found in net for net in _CLOSED_V4)


# RFC 6761, 6762, 8375, what ICANN has set aside, and what networks use on their own.
_LOCAL_NAMES = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".corp", ".intranet", ".test", ".invalid")


def is_internal(host: str) -> bool:
    """Whether a host in a URL is of no use outside, by its spelling: no name is looked up.

    An address that is not public, a name without a dot or with a local ending, and what is no host name at all.
    """
    try:
        plain = normal_host(host)
    except Blocked:
        return True
    return not is_public(plain) if _is_address(plain) else "." not in plain or plain.endswith(_LOCAL_NAMES)


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


@functools.lru_cache(4096)
def normal_host(host: str) -> str:
    """The one spelling of a host: lower case, punycode, without a last dot; an address in its usual notation.

    Raises:
        Blocked: it is no host name, or a number that only some programs take for an address.
    """
    try:
        plain = (URL.build(scheme="http", host=host.strip("[]")).raw_host or "").removesuffix(".")
    except ValueError:
        raise Blocked("host", f"{host!r} is no host name.") from None
    if _is_address(plain):
        return str(ipaddress.ip_address(plain))
    # 127.1, 0x7f000001 and 017700000001 are 127.0.0.1 for inet_aton, and names for others (WHATWG URL, 3.5).
    if _NUMBER.fullmatch(plain.rpartition(".")[2]):
        raise Blocked("host", f"{host!r} is a number, and no address in its usual notation.")
    if len(plain) > 253 or not _HOST.fullmatch(plain):
        raise Blocked("host", f"{host!r} is no host name.")
    return plain


async def system_resolve(host: str, port: int) -> list[str]:
    """The addresses that the operating system knows for a name. Raises OSError when there are none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Guard:
    """Decides which URLs may be fetched, and makes the connector that fetches no others.

    Args:
        allowed_hosts: host -> ports; or hosts, for ports 80 and 443. The host "*" stands for any that is public.
        resolve: coroutine function (host, port) -> addresses; without it the operating system is asked.
        allow_loopback_for_practice: the listed hosts, or those named here, may be on this machine, at the ports listed
            for them. Other private addresses stay closed. Never for "*", and never in production.

    Raises:
        ValueError: a host of the list is none, or a port is not in 1..65535.
    """

    def __init__(
        self,
        allowed_hosts: Mapping[str, Collection[int]] | Collection[str],
        *,
        resolve: Resolve | None = None,
        allow_loopback_for_practice: bool | Collection[str] = False,
    ) -> None:
        if isinstance(allowed_hosts, str):
            raise ValueError(f"allowed_hosts={allowed_hosts!r} is one text: give a set of hosts, or host -> ports.")
        ports_of = allowed_hosts if isinstance(allowed_hosts, Mapping) else dict.fromkeys(allowed_hosts, DEFAULT_PORTS)
        self._ports: dict[str, frozenset[int]] = {}
        for host, ports in ports_of.items():
            if wrong := [port for port in ports if not (isinstance(port, int) and 0 < port < 65536)]:
                raise ValueError(f"allowed_hosts: {host!r} has the port {wrong[0]!r}; ports are 1 to 65535.")
            own = host if host == ANY_HOST else normal_host(host)
            self._ports[own] = self._ports.get(own, frozenset()) | frozenset(ports)
        practice = self._ports if allow_loopback_for_practice is True else allow_loopback_for_practice or ()
        self._practice = frozenset(normal_host(host) for host in practice if host != ANY_HOST) & self._ports.keys()
        self._resolve = resolve or system_resolve

    async def checked(self, url: str) -> Target:
        """Read a URL strictly, look it up in the list, resolve its host and check every address.

        Raises:
            Blocked: .reason is "characters", "scheme", "userinfo", "host", "port", "unlisted" or "address".
            OSError: the name has no address.
        """
        parsed = _parsed(url)
        host, port = self.listed(parsed)
        return Target(parsed.scheme, host, port, parsed.raw_path_qs, tuple(await self.addresses(host, port)))

    def listed(self, url: URL) -> tuple[str, int]:
        """Host and port of a URL, if the operator's list has them. Raises Blocked."""
        if url.scheme not in SCHEMES:
            raise Blocked("scheme", f"{url.scheme!r} is not http or https.")
        host, port = normal_host(url.raw_host or ""), url.port or 0
        ports = self._ports.get(host, self._ports.get(ANY_HOST))
        if ports is None:
            raise Blocked("unlisted", f"{host} is not a host that this service fetches from.")
        if port not in ports:
            raise Blocked("port", f"Port {port} of {host} is not one that this service connects to.")
        return host, port

    async def addresses(self, host: str, port: int) -> list[str]:
        """All addresses of a listed host, each of them checked. Raises Blocked when one is not public."""
        found = [host] if _is_address(host) else list(await self._resolve(host, port))
        if not found:
            raise OSError(f"{host} has no address.")
        for address in found:
            if not is_public(address) and not (host in self._practice and _is_loopback(address)):
                raise Blocked("address", f"{host} is at an address that is not public.")
        return found

    def connector(self, **options: Any) -> aiohttp.TCPConnector:
        """A connector for one ClientSession; ``options`` are those of aiohttp.TCPConnector, without a resolver."""
        return _GuardedConnector(self, **options)


def _parsed(url: str) -> URL:
    """The URL as the client will read it, if there is only one way to read it."""
    if not isinstance(url, str) or len(url) > LONGEST_URL:
        raise Blocked("characters", f"A URL is a text of at most {LONGEST_URL} characters.")
    if re.search(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029]", url):  # parsers drop them, or turn them into others
        raise Blocked("characters", "A URL has no blanks, backslashes or control characters in it.")
    scheme, slashes, rest = url.partition("://")
    if not slashes or scheme.lower() not in SCHEMES:
        raise Blocked("scheme", "A URL begins with http:// or https://.")
    if "@" in re.split("[/?#]", rest, maxsplit=1)[0]:
        raise Blocked("userinfo", "A URL with a user in it is not fetched.")
    try:
        parsed = URL(url)
    except ValueError:
        raise Blocked("host", "The host or the port of the URL cannot be read.") from None
    return parsed


class _CheckedResolver(AbstractResolver):
    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_UNSPEC) -> list[ResolveResult]:
        found = await self._guard.addresses(normal_host(host), port)
        return [
            ResolveResult(hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                          family=socket.AF_INET6 if ":" in address else socket.AF_INET)
            for address in found
        ]  # fmt: skip

    async def close(self) -> None: ...


class _GuardedConnector(aiohttp.TCPConnector):
    """Asks the guard before each use: for the first request of a host, for those that follow, for each redirect."""

    def __init__(self, guard: Guard, **options: Any) -> None:
        super().__init__(resolver=_CheckedResolver(guard), **options)
        self._guard = guard

    async def connect(self, req: aiohttp.ClientRequest, *args: Any, **kwargs: Any) -> Any:
        if req.proxy:
            raise Blocked("proxy", "A proxy would resolve the name again, where nobody checks.")
        host, port = self._guard.listed(req.url)
        if _is_address(host):  # then aiohttp asks no resolver
            await self._guard.addresses(host, port)
        return await super().connect(req, *args, **kwargs)
