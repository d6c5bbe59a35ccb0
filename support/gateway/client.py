"""The way to the upstreams: one aiohttp session for the whole process, and one call as the pipeline wants it."""

from __future__ import annotations

import ssl
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from support.gateway.answer import Reply, UpstreamFailed
from support.gateway.guard import Blocked, Guard
from support.gateway.relay import TooLarge, read_capped
from support.gateway.settings import Settings

# What aiohttp would add to a call. Nobody asks for packed answers: to unpack them costs more than the way.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class Client:
    """Calls to the upstreams of ``settings``. ``async with`` it, on the loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.urls = {name: URL(url) for name, url in settings.upstreams.items()}
        self.session: aiohttp.ClientSession
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
        options = {"limit": settings.connections, "limit_per_host": settings.connections_per_host, "ssl": trusted}
        connector = self._guard.connector(**options) if self._guard else aiohttp.TCPConnector(**options)
        return aiohttp.ClientSession(
            connector=connector,
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
        if "\\" in plain or any(part in (".", "..") for part in plain.split("/")) or not plain.isprintable():
            raise ValueError("A path must not hold . or .. segments, backslashes or control characters.")
        text = f"{str(base.with_query(None)).rstrip('/')}/{raw_path}" + (f"?{query}" if query else "")
        return URL(text, encoded=True)

    async def fetch(self, name: str, path: str, headers: Any, timeout: float | None) -> Reply:
        """GET an upstream, and read its answer within the limit. Raises UpstreamFailed, TimeoutError or OSError."""
        if not self.settings.shared_client:
            async with self._new_session() as session:
                return await self._get(session, name, path, headers, timeout)
        return await self._get(self.session, name, path, headers, timeout)

    async def _get(
        self, session: aiohttp.ClientSession, name: str, path: str, headers: Any, timeout: float | None
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
