"""Right and wrong answers to exercise 9.1, an SSRF guard."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from urllib.parse import urljoin, urlsplit, urlunsplit

from answers.register import Register
from yarl import URL

from support.gateway.guard import is_public

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

NO_ERROR = "runs without an error"
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
CANCELS = "passes a cancellation on"


@stub("9.1")
async def fetch_stub(url, resolve, connect):
    raise NotImplementedError


@stub("9.1")
async def fetch_ellipsis(url, resolve, connect):
    print("here", url)
    return ...


def where(url):
    """Host and port of a URL that may be fetched, as far as its text tells."""
    parts = urlsplit(url)
    port = {"http": 80, "https": 443}.get(parts.scheme) if parts.port is None else parts.port
    if parts.scheme not in ("http", "https") or port not in (80, 443) or "@" in parts.netloc or not parts.hostname:
        raise ValueError("not a URL to fetch")
    return parts.hostname, port


async def pinned(host, resolve):
    addresses = await resolve(host)
    if not addresses or not all(is_public(address) for address in addresses):
        raise ValueError("not public")
    return addresses[0]


@right("9.1")
async def fetch(url, resolve, connect):
    for _ in range(6):
        host, port = where(url)
        reply = await connect(await pinned(host, resolve), port, url)
        if reply.location is None:
            return reply.body
        url = urljoin(url, reply.location)
    raise ValueError("too many redirects")


@right("9.1")
async def fetch_by_recursion(url, resolve, connect, hops=5):
    """yarl instead of urlsplit, ipaddress instead of the course's is_public, the last address instead of the first."""
    try:
        parsed = URL(url)
    except ValueError:
        raise
    if parsed.scheme not in {"http", "https"} or parsed.port not in {80, 443} or parsed.user is not None:
        raise ValueError("not a URL to fetch")
    found = [ipaddress.ip_address(address) for address in await resolve(parsed.host)]
    if not found:
        raise ValueError("no address")
    for address in found:
        inner = getattr(address, "ipv4_mapped", None) or address
        if not inner.is_global or inner.is_multicast:
            raise ValueError("not public")
    reply = await connect(str(found[-1]), parsed.port, url)
    if reply.location is None:
        return reply.body
    if hops == 0:
        raise ValueError("too many redirects")
    return await fetch_by_recursion(urljoin(url, reply.location), resolve, connect, hops - 1)


@right("9.1")
async def fetch_with_another_error(url, resolve, connect):
    """Its refusal is a kind of ValueError, and it tries the next address when one does not answer."""

    class Refused(ValueError):
        pass

    left = 6
    while left:
        left -= 1
        match = re.fullmatch(
            r"(https?)://(\[[0-9a-f:.]+\]|[^\s/?#@:\\\[\]]+)(?::(80|443))?([/?#].*)?", url, re.IGNORECASE
        )
        if not match:
            raise Refused
        addresses = await resolve(match[2].strip("[]"))
        if not addresses or any(not is_public(one) for one in addresses):
            raise Refused
        for position, address in enumerate(addresses, start=1):
            try:
                reply = await connect(address, int(match[3] or {"http": 80}.get(match[1].lower(), 443)), url)
                break
            except ConnectionError:
                if position == len(addresses):
                    raise
        if not reply.location:
            return reply.body
        url = urljoin(url, reply.location)
    raise Refused


@wrong("9.1", PRIVATE)
async def no_guard(url, resolve, connect):
    for _ in range(6):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        reply = await connect((await resolve(parts.hostname))[0], port, url)
        if reply.location is None:
            return reply.body
        url = urljoin(url, reply.location)
    raise ValueError


@wrong("9.1", NO_ERROR)
async def blocks_everything(url, resolve, connect):
    raise ValueError("no")


@wrong("9.1", GOOD)
async def starts_with(url, resolve, connect):
    if not url.startswith(("http://shop.test", "https://shop.test")):
        raise ValueError
    return await fetch(url, resolve, connect)


@wrong("9.1", PRIVATE)
async def block_list(url, resolve, connect):
    """Strings in the host."""
    words = ("localhost", "127.", "10.", "192.168.", "172.16.", "169.254.", "[::1]", "0.0.0.0")
    if any(word in urlsplit(url).netloc.lower() for word in words):
        raise ValueError
    return await no_guard(url, resolve, connect)


@wrong("9.1", PRIVATE)
async def regex_on_the_host(url, resolve, connect):
    host, port = where(url)
    if re.match(r"(localhost|127\.|10\.|192\.168\.|169\.254\.|172\.(1[6-9]|2\d|3[01])\.|0|::|f[cde])", host.lower()):
        raise ValueError
    return await no_guard(url, resolve, connect)


@wrong("9.1", PRIVATE)
async def literals_only(url, resolve, connect):
    """Checks addresses that stand in the URL, and no names."""
    host, port = where(url)
    try:
        if not is_public(str(ipaddress.ip_address(host))):
            raise RuntimeError
    except RuntimeError:
        raise ValueError from None
    except ValueError:
        pass
    return await no_guard(url, resolve, connect)


async def follow(url, resolve, connect, one):
    """``one(url)`` gives host and port to connect to."""
    for _ in range(6):
        reply = await connect(*await one(url), url)
        if reply.location is None:
            return reply.body
        url = urljoin(url, reply.location)
    raise ValueError("too many redirects")


@wrong("9.1", PRIVATE)
async def is_private_only(url, resolve, connect):
    """is_private is False for 100.64.0.1, which is not global either, and for multicast."""

    async def one(url):
        host, port = where(url)
        addresses = await resolve(host)
        for address in map(ipaddress.ip_address, addresses):
            if address.is_private or address.is_loopback or address.is_link_local:
                raise ValueError
        return addresses[0], port

    return await follow(url, resolve, connect, one)


@wrong("9.1", PRIVATE)
async def connects_and_then_looks(url, resolve, connect):
    async def one(url):
        host, port = where(url)
        address = (await resolve(host))[0]
        await connect(address, port, url)
        if not is_public(address):
            raise ValueError
        return address, port

    return await follow(url, resolve, connect, one)


@wrong("9.1", EVERY)
async def first_address(url, resolve, connect):
    async def one(url):
        host, port = where(url)
        address = (await resolve(host))[0]
        if not is_public(address):
            raise ValueError
        return address, port

    return await follow(url, resolve, connect, one)


@wrong("9.1", EVERY)
async def last_address(url, resolve, connect):
    """Two of them, and takes the rest on trust."""

    async def one(url):
        host, port = where(url)
        addresses = await resolve(host)
        if not all(map(is_public, addresses[:2])):
            raise ValueError
        return addresses[0], port

    return await follow(url, resolve, connect, one)


@wrong("9.1", EVERY)
async def picks_a_public_one(url, resolve, connect):
    """Safe as long as it is not the client that picks: but a name that is half private is an attack, or a mistake."""

    async def one(url):
        host, port = where(url)
        if not (addresses := [address for address in await resolve(host) if is_public(address)]):
            raise ValueError
        return addresses[0], port

    return await follow(url, resolve, connect, one)


@wrong("9.1", EVERY)
async def any_public(url, resolve, connect):
    async def one(url):
        host, port = where(url)
        addresses = await resolve(host)
        if not any(map(is_public, addresses)):
            raise ValueError
        return addresses[0], port

    return await follow(url, resolve, connect, one)


@wrong("9.1", PINNED)
async def resolve_then_let_the_client_resolve(url, resolve, connect):
    async def one(url):
        host, port = where(url)
        await pinned(host, resolve)
        return host, port

    return await follow(url, resolve, connect, one)


@wrong("9.1", PINNED)
async def resolves_twice(url, resolve, connect):
    async def one(url):
        host, port = where(url)
        await pinned(host, resolve)
        return (await resolve(host))[0], port

    return await follow(url, resolve, connect, one)


@wrong("9.1", PINNED)
async def resolves_three_times(url, resolve, connect):
    """Two checks, and then the answer to the third question."""

    async def one(url):
        host, port = where(url)
        await pinned(host, resolve)
        await pinned(host, resolve)
        return (await resolve(host))[-1], port

    return await follow(url, resolve, connect, one)


@wrong("9.1", ANEW)
async def keeps_verdicts(url, resolve, connect, fine={}):  # noqa: B006
    """A cache of hosts that were found to be public, shared by all calls with the same network."""

    async def one(url):
        host, port = where(url)
        key = connect.__self__, host
        if key in fine:
            return (await resolve(host))[0], port
        fine[key] = True
        return await pinned(host, resolve), port

    return await follow(url, resolve, connect, one)


@wrong("9.1", WHOLE)
async def address_in_the_url(url, resolve, connect):
    async def one(url):
        host, port = where(url)
        return await pinned(host, resolve), port

    address, port = await one(url)
    parts = urlsplit(url)
    netloc = f"[{address}]" if ":" in address else address
    return await follow(urlunsplit(parts._replace(netloc=netloc)), resolve, connect, one)


@wrong("9.1", WHOLE)
async def always_port_80(url, resolve, connect):
    async def one(url):
        host, _ = where(url)
        return await pinned(host, resolve), 80

    return await follow(url, resolve, connect, one)


@wrong("9.1", GOOD)
async def splits_by_hand(url, resolve, connect):
    """Everything behind the first colon is the port: not in [::1]."""
    host, _, port = url.split("/")[2].partition(":")
    if port not in ("", "80", "443") or "@" in url.split("/")[2]:
        raise ValueError
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError
    reply = await connect(await pinned(host, resolve), int(port or {"http:": 80}.get(url.split("/")[0], 443)), url)
    return reply.body


@wrong("9.1", SCHEME)
async def any_scheme(url, resolve, connect):
    async def one(url):
        parts = urlsplit(url)
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
        if port not in (80, 443) or "@" in parts.netloc or not parts.hostname:
            raise ValueError
        return await pinned(parts.hostname, resolve), port

    return await follow(url, resolve, connect, one)


@wrong("9.1", PORTS)
async def any_port(url, resolve, connect):
    async def one(url):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or "@" in parts.netloc:
            raise ValueError
        return await pinned(parts.hostname, resolve), parts.port or {"http": 80, "https": 443}[parts.scheme]

    return await follow(url, resolve, connect, one)


@wrong("9.1", PORTS)
async def port_zero(url, resolve, connect):
    """0 is false, so `or` makes 80 of it."""

    async def one(url):
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        if parts.scheme not in ("http", "https") or port not in (80, 443) or "@" in parts.netloc or not parts.hostname:
            raise ValueError
        return await pinned(parts.hostname, resolve), port

    return await follow(url, resolve, connect, one)


@wrong("9.1", REFUSES)
async def no_address_at_all(url, resolve, connect):
    """all() of nothing is true."""

    async def one(url):
        host, port = where(url)
        addresses = await resolve(host)
        if not all(map(is_public, addresses)):
            raise ValueError
        return addresses[0], port

    return await follow(url, resolve, connect, one)


@wrong("9.1", USER)
async def any_user(url, resolve, connect):
    async def one(url):
        parts = urlsplit(url)
        host, port = where(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
        return await pinned(host, resolve), port

    return await follow(url, resolve, connect, one)


@wrong("9.1", FOLLOWS)
async def follows_nothing(url, resolve, connect):
    host, port = where(url)
    reply = await connect(await pinned(host, resolve), port, url)
    return reply.body


@wrong("9.1", FOLLOWS)
async def absolute_redirects_only(url, resolve, connect):
    for _ in range(6):
        host, port = where(url)
        reply = await connect(await pinned(host, resolve), port, url)
        if reply.location is None:
            return reply.body
        url = reply.location
    raise ValueError


@wrong("9.1", REDIRECTS)
async def follows_unchecked(url, resolve, connect):
    host, port = where(url)
    reply = await connect(await pinned(host, resolve), port, url)
    if reply.location is None:
        return reply.body
    return await no_guard(urljoin(url, reply.location), resolve, connect)


@wrong("9.1", REDIRECTS)
async def a_redirect_may_have_any_port(url, resolve, connect):
    first = True

    async def one(url):
        nonlocal first
        host, port = where(url) if first else (urlsplit(url).hostname, urlsplit(url).port or 80)
        first = False
        return await pinned(host, resolve), port

    return await follow(url, resolve, connect, one)


@wrong("9.1", REDIRECTS)
async def first_two_hops_are_checked(url, resolve, connect):
    hops = 0

    async def one(url):
        nonlocal hops
        hops += 1
        host, port = where(url)
        return await pinned(host, resolve) if hops < 3 else (await resolve(host))[0], port

    return await follow(url, resolve, connect, one)


@wrong("9.1", REDIRECTS)
async def remembers_hosts_of_this_fetch(url, resolve, connect):
    fine = set()

    async def one(url):
        host, port = where(url)
        address = (await resolve(host))[0] if host in fine else await pinned(host, resolve)
        fine.add(host)
        return address, port

    return await follow(url, resolve, connect, one)


@wrong("9.1", FEW)
async def follows_for_ever(url, resolve, connect):
    while True:
        host, port = where(url)
        reply = await connect(await pinned(host, resolve), port, url)
        if reply.location is None:
            return reply.body
        url = urljoin(url, reply.location)


@wrong("9.1", FEW)
async def gives_what_it_has(url, resolve, connect):
    for _ in range(6):
        host, port = where(url)
        reply = await connect(await pinned(host, resolve), port, url)
        if reply.location is None:
            break
        url = urljoin(url, reply.location)
    return reply.body


@wrong("9.1", REFUSES)
async def returns_none(url, resolve, connect):
    try:
        return await fetch(url, resolve, connect)
    except ValueError:
        return None


@wrong("9.1", REFUSES)
async def raises_something_else(url, resolve, connect):
    try:
        return await fetch(url, resolve, connect)
    except ValueError:
        raise RuntimeError("refused") from None


@wrong("9.1", PASSES_ON)
async def all_is_a_refusal(url, resolve, connect):
    try:
        return await fetch(url, resolve, connect)
    except OSError as error:
        raise ValueError("not fetched") from error


@wrong("9.1", CANCELS)
async def swallows_cancellation(url, resolve, connect):
    try:
        return await fetch(url, resolve, connect)
    except asyncio.CancelledError:
        raise ValueError("not fetched") from None
