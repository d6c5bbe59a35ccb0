"""The process in which `support.servers` runs an application, and what its threads share with it.

`support.servers` runs this file with the options as JSON. The process writes the port to stdout
when it serves, and ends when its parent lets go of stdin.
"""

import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

HOST = "127.0.0.1"
GRACE = 0.4  # seconds at most that a child takes to shut down in order


def listen(port: int = 0) -> socket.socket:
    """Return a bound socket on 127.0.0.1; port 0 takes a free one. Raises OSError, naming the port.

    The protocol is spelled out because asyncio sets TCP_NODELAY on a connection only if its
    listener says IPPROTO_TCP. Without it, an answer sent in two parts waits 40 ms for the client.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere the option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((HOST, port))
    except (OSError, OverflowError, TypeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"Port {port!r} on {HOST} cannot be used ({reason}): "
                      "stop what uses it, or pass port=0 for a free one.") from None
    return listener


def uvicorn_server(app: Any, loop: str, http: str, when_ready: Callable[[], None]) -> Any:
    """Return a uvicorn server that calls `when_ready` once its start-up is complete."""
    import uvicorn

    from support.prompt_server import PromptServer

    class TellingServer(PromptServer):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            when_ready()

    # Keep-alive outlasts that of clients, so that none meets a connection that closes as it sends.
    config = uvicorn.Config(app, loop=loop, http=http, log_config=None, log_level="warning",
                            access_log=False, proxy_headers=False, timeout_keep_alive=75,
                            timeout_graceful_shutdown=0)
    config.load()
    told = config.loaded_app
    if hasattr(told, "connection_opened"):  # it wants to know, as the practice upstream does

        class TellingProtocol(config.http_protocol_class):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                told.connection_opened(self.client)

            def connection_lost(self, exc: Exception | None) -> None:
                told.connection_closed(self.client)
                super().connection_lost(exc)

        config.http_protocol_class = TellingProtocol
    return TellingServer(config)


def _serve(app: str, port: int, loop: str, http: str) -> None:
    """Serve until the parent lets go of the pipe on stdin. Runs in the child process only."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the application prints goes to the log
    server, done = None, threading.Event()

    def end_group() -> None:
        if os.name == "posix" and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # with whatever the application has started
        os._exit(0)

    def watch() -> None:
        while os.read(0, 1):
            pass
        if server:
            server.end()
            done.wait(GRACE)
        end_group()

    def when_ready() -> None:
        with report:
            print(listener.getsockname()[1], file=report)

    threading.Thread(target=watch, daemon=True).start()
    try:
        listener = listen(port)
        server = uvicorn_server(app, loop, http, when_ready)
        server.run(sockets=[listener])
    except Exception:
        traceback.print_exc()
    finally:
        done.set()
        end_group()


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    sys.path[:] = options.pop("sys_path")  # the child finds modules where its parent finds them
    _serve(**options)
