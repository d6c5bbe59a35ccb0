"""The practice upstream over TLS, in its own process, with a certificate authority of its own.

    with start_tls_upstream() as secure:
        secure.url, secure.ca_file, secure.connections()

Nothing of the system is touched: only who is given `ca_file` trusts it, for instance a process that
is started with SSL_CERT_FILE set to it. The authority and the key go with the upstream.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path

from support.program_base import Program, launch
from support.server_process import HOST, listen, uvicorn_server

READY, CA_FILE = "serving over TLS", "ca.pem"


class TlsUpstream(Program):
    """The running upstream: as a Program, with `ca_file` and `connections()`."""

    start, scheme = "start_tls_upstream", "https"

    @property
    def ca_file(self) -> str:
        """The certificate of its authority, in PEM."""
        return os.path.join(self.address["folder"], CA_FILE)

    def connections(self) -> int:
        """How many TLS connections clients have opened so far."""
        trusted = ssl.create_default_context(cafile=self.ca_file)
        with urllib.request.urlopen(f"{self.url}/stats", context=trusted, timeout=5) as answer:  # noqa: S310
            return json.load(answer)["connections"]


def start_tls_upstream(name: str = "tls upstream") -> TlsUpstream:
    """Start it, wait until it serves, and return it. One of the same name is stopped first.

    Raises RuntimeError with its last words when it does not start.
    """
    command = [sys.executable, "-P", "-u", __file__, "{folder}", "{port}"]
    return launch(TlsUpstream, name, "practice upstream", command, READY)


def _serve(folder: str, port: int) -> None:
    """Make an authority and a certificate for 127.0.0.1, and serve until SIGTERM. Runs in the child only."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(Path(folder) / CA_FILE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    # uvloop's timers end up to a millisecond early, and a delay must not.
    server = uvicorn_server("support.upstream:app", "asyncio", "auto", lambda: print(READY, flush=True))
    server.config.ssl = context
    with listen(port) as listener:
        server.run(sockets=[listener])


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
