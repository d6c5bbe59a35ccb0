"""The practice upstream over TLS: trusted by who has its authority, by nobody else, and gone when stopped."""

import asyncio
import os
import ssl

import aiohttp
import pytest

from support.tls_upstream import start_tls_upstream


def test_it_is_trusted_with_its_authority_only_and_counts_connections() -> None:
    async def main(url: str, trusted: ssl.SSLContext, connections: int) -> None:
        for _ in range(connections):
            connector = aiohttp.TCPConnector(ssl=trusted)
            async with aiohttp.ClientSession(connector=connector) as session:
                for _ in range(2):
                    async with session.get(f"{url}/item/1") as answer:
                        assert (await answer.json())["id"] == "1"

    with start_tls_upstream("tls under test") as upstream:
        assert upstream.url.startswith("https://127.0.0.1:") and os.path.isfile(upstream.ca_file)
        asyncio.run(main(upstream.url, ssl.create_default_context(cafile=upstream.ca_file), 3))
        assert upstream.connections() == 3
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            asyncio.run(main(upstream.url, ssl.create_default_context(), 1))
        folder = upstream.ca_file
    assert not upstream.alive and not os.path.exists(folder)
