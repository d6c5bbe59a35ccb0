"""Which header fields pass a gateway, and which it takes off, or writes itself.

Only two rules are HTTP's own: fields that belong to one connection end there (RFC 9110, 7.6.1), and
so does the framing of a body (RFC 9112, 6). The rest is a border: what says who somebody is comes
from the gateway, or from nobody.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from multidict import CIMultiDict

# RFC 9110, 7.6.1, and what RFC 2616 counted among them. Whatever Connection names is added.
HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    "proxy-authenticate", "proxy-authorization",
})  # fmt: skip
# What a client may not say about itself: the gateway writes these fields, or nobody does.
WRITTEN_HERE = frozenset({"forwarded", "x-real-ip", "x-request-id", "x-deadline-ms", "traceparent"})
WRITTEN_HERE_PREFIXES = ("x-forwarded-", "x-user-", "x-tenant-", "x-auth-", "x-internal-")
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
NAME = "gateway"  # what Via calls this gateway

Fields = Mapping[str, str] | Iterable[tuple[Any, Any]]


def request_headers(
    incoming: Fields,
    *,
    client: str,
    request_id: str,
    remaining_ms: int,
    scheme: str = "http",
    trusted_proxies: Collection[str] = (),
    cookies: Collection[str] = (),
    identity: Mapping[str, str] | None = None,
) -> CIMultiDict[str]:
    """The header fields of a request to an upstream.

    Args:
        incoming: the fields that the client sent: a mapping, or pairs of str, or of bytes as in an ASGI scope.
        client: the address that the connection came from.
        request_id: what the upstream shall call this request in its log.
        remaining_ms: milliseconds that the client still waits; the upstream finds them in x-deadline-ms.
        scheme: how the client spoke to the gateway.
        trusted_proxies: addresses whose X-Forwarded-* fields and X-Real-IP are believed, as those of your own balancer.
        cookies: names of cookies that the upstream may see. No others pass.
        identity: what the gateway itself has proved about the user, as {"x-user-id": "7"}.

    Authorization passes: a proxy must not change it (RFC 9110, 11.6.2). Host is left to the client
    library, Expect was answered by the server that runs the gateway.
    """
    pairs = list(_pairs(incoming))
    one = dict(reversed(pairs))  # the first of each name
    passing: CIMultiDict[str] = CIMultiDict(
        (name, value)
        for name, value in _end_to_end(pairs)
        if name not in ("host", "expect", "cookie") and not _is_written_here(name)
    )
    if "transfer-encoding" in one:  # then Content-Length is not the length (RFC 9112, 6.3)
        passing.popall("content-length", None)
    kept = [crumb for name, value in pairs if name == "cookie" for crumb in _crumbs(value) if _cookie(crumb) in cookies]
    if kept:
        passing["Cookie"] = "; ".join(kept)

    believed = one if client in trusted_proxies else {}
    before = [value for name, value in pairs if name == "x-forwarded-for"] if believed else []
    passing["X-Forwarded-For"] = ", ".join([*before, client])
    passing["X-Forwarded-Proto"] = believed.get("x-forwarded-proto", scheme)
    if host := believed.get("x-forwarded-host", one.get("host")):
        passing["X-Forwarded-Host"] = host
    passing.add("Via", f"1.1 {NAME}")
    passing["X-Request-ID"] = request_id
    passing["X-Deadline-Ms"] = str(remaining_ms)
    parent = one.get("traceparent", "")
    passing["traceparent"] = parent if TRACEPARENT.fullmatch(parent) else new_traceparent()
    passing.update(identity or {})
    return passing


def response_headers(incoming: Fields, *, cookies: Collection[str] = ()) -> CIMultiDict[str]:
    """The header fields of the answer to the client.

    Only ``cookies`` of these names may be set by the upstream. Date and Server are left out: the
    server that runs the gateway writes its own.
    """
    pairs = list(_pairs(incoming))
    passing: CIMultiDict[str] = CIMultiDict(
        (name, value)
        for name, value in _end_to_end(pairs)
        if name not in ("date", "server")
        and not name.startswith("x-internal-")
        and (name != "set-cookie" or _cookie(value) in cookies)
    )
    if any(name == "transfer-encoding" for name, _ in pairs):
        passing.popall("content-length", None)
    return passing


def new_traceparent() -> str:
    """A W3C traceparent of a trace that begins here, and is sampled."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def _pairs(fields: Fields) -> Iterator[tuple[str, str]]:
    """Names in lower case, and values, as text."""
    for name, value in fields.items() if isinstance(fields, Mapping) else fields:
        yield _text(name).lower(), _text(value)


def _text(value: str | bytes) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _end_to_end(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Drop the fields of one connection. Several Connection fields may name more of them."""
    named = {option.strip().lower() for name, value in pairs if name == "connection" for option in value.split(",")}
    return ((name, value) for name, value in pairs if name not in HOP_BY_HOP and name not in named)


def _is_written_here(name: str) -> bool:
    name = name.replace("_", "-")  # CGI and WSGI write both as X_USER_ID
    return name in WRITTEN_HERE or name.startswith(WRITTEN_HERE_PREFIXES)


def _crumbs(value: str) -> list[str]:
    return [crumb.strip() for crumb in value.split(";")]


def _cookie(crumb: str) -> str:
    """The name of a cookie, from ``name=value`` and what may follow."""
    return crumb.partition("=")[0].strip()
