"""The way to the upstreams: one aiohttp session for the whole process, and one call as the pipeline wants it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from support.gateway.answer import Reply, UpstreamFailed
from support.gateway.guard import Blocked, Guard, is_internal
from support.gateway.relay import TooLarge, read_capped
from support.gateway.settings import Settings

# What aiohttp would add to a call. Nobody asks for packed answers: to unpack them costs more than the way.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class Client:
    """Calls to the upstreams of ``settings``. ``async with`` it, on the loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.session: aiohttp.ClientSession  # from async with on
        self.urls = {name: URL(url) for name, url in settings.upstreams.items()}
        self._hosts = {url.host for url in self.urls.values()}
        self._guard: Guard | None = None
        if settings.public_only:
            ports: dict[str, set[int]] = {}
            for url in self.urls.values():
                ports.setdefault(url.host or "", set()).add(url.port or 0)
            self._guard = Guard(ports)

    async def __aenter__(self) -> Client:
        self.session = self._new_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    def _new_session(self) -> aiohttp.ClientSession:
        settings = self.settings
        trusted: ssl.SSLContext | bool = True
        if settings.ca_file:
            trusted = ssl.create_default_context()
            trusted.load_verify_locations(settings.ca_file)
        # Behind bulkheads each upstream has places of its own, and 0, no limit, keeps them apart: in one pool two
        # upstreams that hang could hold every connection of an address, and a third would wait for theirs.
        limit, per_host = (0, 0) if settings.bulkhead else (settings.connections, settings.connections_per_host)
        connector = self._guard.connector if self._guard else aiohttp.TCPConnector
        return aiohttp.ClientSession(
            connector=connector(limit=limit, limit_per_host=per_host, ssl=trusted),
            cookie_jar=aiohttp.DummyCookieJar(),  # or one user's session cookie is sent with the next one's request
            skip_auto_headers=_NOT_ADDED,
            # The pipeline holds one deadline for each call; a second timer in here would only cost.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect),
        )

    def url_for(self, name: str, raw_path: str = "", query: str = "") -> URL:
        """The address of a path below an upstream's own, both as they were sent: still escaped.

        Raises ValueError for a path that would leave the upstream's own.
        """
        base = self.urls[name]
        if not raw_path and not query:
            return base
        plain = URL(f"/{raw_path}", encoded=True).path
        segments = [part.partition(";")[0] for part in plain.split("/")]  # servlets take ..;x for .. with a parameter
        if "\\" in plain or any(part in (".", "..") for part in segments) or not plain.isprintable():
            raise ValueError("A path must not hold . or .. segments, backslashes or control characters.")
        return URL(f"{str(base).rstrip('/')}/{raw_path}" + (f"?{query}" if query else ""), encoded=True)

    def told(self, name: str, asked: URL, location: str) -> str | None:
        """What the client is told of an address that the upstream's answer to ``asked`` names. None: nothing.

        Below the upstream's own address it is a path of /proxy. A public host stays as it is; another
        address of an upstream, or one of this network, is nobody's business outside.
        """
        try:
            target = asked.join(URL(location))
        except ValueError:
            return None
        if target.scheme not in ("http", "https"):
            return location  # of an app, or of mail
        base, path = self.urls[name], target.raw_path
        own = base.raw_path.rstrip("/")
        if target.origin() == base.origin() and (path == own or path.startswith(f"{own}/")):
            rest = target.raw_query_string, target.raw_fragment
            below = f"/proxy/{name}{path[len(own) :]}"
            return str(URL.build(path=below, query_string=rest[0], fragment=rest[1], encoded=True))
        host = (target.host or "").rstrip(".")
        return None if host in self._hosts or is_internal(host) else location

    async def fetch(self, name: str, path: str, headers: Mapping[str, str] | None, timeout: float | None) -> Reply:
        """GET an upstream, and read its answer within the limit. Raises UpstreamFailed, TimeoutError or OSError."""
        if not self.settings.shared_client:
            async with self._new_session() as session:
                return await self._get(session, name, path, headers, timeout)
        return await self._get(self.session, name, path, headers, timeout)

    async def _get(
        self,
        session: aiohttp.ClientSession,
        name: str,
        path: str,
        headers: Mapping[str, str] | None,
        timeout: float | None,
    ) -> Reply:
        sent = CIMultiDict(headers or ())
        if timeout is not None:  # what is left: the upstream need not work longer than somebody waits
            sent["X-Deadline-Ms"] = str(int(1000 * timeout))
        started = False
        try:
            async with session.get(self.url_for(name, path), headers=sent, allow_redirects=False) as response:
                started = True
                length, limit = response.content_length, self.settings.answer_bytes
                if length is not None and length <= limit and "Content-Encoding" not in response.headers:
                    body = await response.read()
                else:
                    body = await read_capped(response, limit)
                return Reply(response.status, response.headers, body)
        except Blocked:
            raise UpstreamFailed("blocked") from None
        except TooLarge:
            raise UpstreamFailed("too_large", started=True) from None
        except aiohttp.ConnectionTimeoutError:
            raise UpstreamFailed("unavailable") from None
        except aiohttp.ClientPayloadError:
            raise UpstreamFailed("failed", started=True) from None
        except aiohttp.ClientError:
            raise UpstreamFailed("unavailable", started=started) from None
