"""Run ASGI applications beside a notebook, on 127.0.0.1 and a free port.

`serve("module:app")` runs one in a process of its own: for whatever is measured. `serve(app,
in_process=True)` runs one in a thread with a loop of its own: for looking inside. Both return when
the server is ready. A server ends with `stop()`, at exit, or when the process that started it is
gone, however that ended: the child waits at a pipe of which only the parent holds the other end.
"""

import asyncio
import atexit
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import urlencode

from support.upstream import endpoint_of

HOST = "127.0.0.1"
LOG_LINES = 200
GRACE = 0.4  # seconds at most that a child takes to shut down in order
LOOPS, PROTOCOLS = ("auto", "asyncio", "uvloop"), ("auto", "h11", "httptools")
# The child finds modules where this process finds them.
CHILD = """
import json, sys
options = json.loads(sys.argv[1])
sys.path[:] = options.pop("sys_path")
from support import servers
servers._run_child(**options)
"""

_servers: dict[str, "Server"] = {}


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


def _uvicorn_server(app: Any, loop: str, http: str, when_ready: Callable[[], None]) -> Any:
    """Return a uvicorn server that calls `when_ready` once its start-up is complete."""
    import uvicorn

    class EventfulServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.loop = asyncio.get_running_loop()
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
    return EventfulServer(config)


class Server:
    """A running server: `url`, `port`, `pid` and `stop()`; in this process also its `loop`."""

    def __init__(self, name: str) -> None:
        self.name, self.pid, self.port = name, os.getpid(), 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self._log: deque[str] = deque(maxlen=LOG_LINES)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> str:
        """The last lines that the server wrote. They never reach the notebook."""
        return "".join(self._log)

    def stop(self) -> None:
        """Stop the server and wait until it is gone. Stopping twice is no error."""
        if _servers.get(self.name) is self:
            del _servers[self.name]
        self._let_go()
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "" if self.alive else ", stopped"
        return f"<{type(self).__name__} {self.name!r} at {self.url}{state}>"

    def _failure(self, app: Any) -> Exception:
        skipped = "Application startup failed"  # uvicorn's farewell, after the line that says why
        lines = [line for line in self.log.splitlines() if line and not line.startswith(skipped)]
        reason = lines[-1] if lines else "it ended without a word"
        if reason.startswith("OSError: Port "):
            return OSError(reason.removeprefix("OSError: "))
        return RuntimeError(f"Server {self.name!r}, application {app!r}, did not start: {reason}")


class ProcessServer(Server):
    """A server in a process of its own."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name)
        # A session of its own, because an interrupt goes to the notebook's whole process group.
        group = ({"start_new_session": True} if os.name == "posix" else
                 {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP})
        options["sys_path"] = [str(folder) for folder in sys.path]
        self._child = subprocess.Popen(
            [sys.executable, "-u", "-c", CHILD, json.dumps(options)], text=True, errors="replace",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **group)
        self.pid, stderr = self._child.pid, self._child.stderr
        self._reader = threading.Thread(target=self._log.extend, args=(stderr,), daemon=True)
        self._reader.start()
        try:
            with self._child.stdout as report:
                self.port = int(report.readline() or 0)  # nothing when the child is dead
        finally:
            if not self.port:  # an interrupt, too, must leave nothing behind
                self._child.kill()
                self.stop()
        if not self.port:
            raise self._failure(options["app"])

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def _let_go(self) -> None:
        self._child.stdin.close()

    def _wait(self) -> None:
        try:
            self._child.wait(GRACE + 2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join(1)
        self._child.stderr.close()


def _run_child(app: str, port: int, loop: str, http: str) -> None:
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
            server.should_exit = True
            done.wait(GRACE)
        end_group()

    def when_ready() -> None:
        with report:
            print(listener.getsockname()[1], file=report)

    threading.Thread(target=watch, daemon=True).start()
    try:
        listener = listen(port)
        server = _uvicorn_server(app, loop, http, when_ready)
        server.run(sockets=[listener])
    except Exception:
        traceback.print_exc()
    finally:
        done.set()
        end_group()


class ThreadServer(Server):
    """A server in a thread of this process, with a loop of its own."""

    def __init__(self, name: str, app: Any, port: int, loop: str, http: str) -> None:
        super().__init__(name)
        self._ready, self._uvicorn = threading.Event(), None
        # uvloop would hide its callbacks from the recorder, which a lesson may use in this thread.
        loop = "asyncio" if loop == "auto" else loop
        how = (app, listen(port), loop, http)
        self._thread = threading.Thread(target=self._run, args=how, daemon=True)
        self._thread.start()
        try:
            self._ready.wait()
        finally:
            if not self.port:
                self._let_go()
        if not self.port:
            raise self._failure(app)

    def _run(self, app: Any, listener: socket.socket, loop: str, http: str) -> None:
        def when_ready() -> None:
            self.port, self.loop = listener.getsockname()[1], self._uvicorn.loop
            self._ready.set()

        this_thread, handler = threading.get_ident(), logging.Handler()
        handler.emit = lambda record: self._log.append(handler.format(record) + "\n")
        handler.addFilter(lambda record: record.thread == this_thread)
        logger = logging.getLogger("uvicorn")
        logger.addHandler(handler)
        logger.propagate = False
        try:
            self._uvicorn = _uvicorn_server(app, loop, http, when_ready)
            self._uvicorn.run(sockets=[listener])
        except BaseException as error:
            if not isinstance(error, SystemExit):  # uvicorn has logged why
                self._log.extend(traceback.format_exception_only(error))
        finally:
            logger.removeHandler(handler)
            listener.close()
            self._ready.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _let_go(self) -> None:
        if self._uvicorn:
            self._uvicorn.should_exit = True

    def _wait(self) -> None:
        self._thread.join(5)
        if self.alive:
            raise RuntimeError(f"Server {self.name!r} does not stop because its loop is blocked: "
                               "restart the kernel.")


class Upstream(ProcessServer):
    """The practice upstream in its own process, with its counters."""

    def url_for(self, path: str, **query: object) -> str:
        """Return the URL of a path such as "/delay/0.05". Raises ValueError for an unknown path."""
        endpoint_of(path)
        return f"{self.url}/{path.lstrip('/')}" + (f"?{urlencode(query)}" if query else "")

    def stats(self) -> dict[str, Any]:
        """Return what the upstream saw since the last reset."""
        return self._ask("/stats")

    async def settled(self, within: float = 2.0) -> dict[str, Any]:
        """Return the counters once nothing is in flight, or after `within` seconds.

        That a client has left is noticed a moment later, so count aborted requests with this.
        """
        deadline = time.monotonic() + within
        while (seen := self.stats())["in_flight"] and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return seen

    def reset(self, seed: int | None = None) -> None:
        """Zero the counters and start the random answers again, from `seed` if it is given."""
        self._ask("/reset" if seed is None else f"/reset?{urlencode({'seed': seed})}")

    def _ask(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"connection": "close"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"The practice upstream does not answer ({error!r}): "
                               "call start_upstream().") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(content["error"])
        return content


def serve(app: Any, *, name: str | None = None, in_process: bool = False, port: int = 0,
          loop: str = "auto", http: str = "auto") -> Server:
    """Serve an ASGI application on 127.0.0.1; return when it is ready.

    app: an import string "module:attribute"; with `in_process` it may be the application itself.
    name: a server of the same name is stopped first, so that a cell may run again.
    loop, http: as uvicorn takes them: auto, asyncio, uvloop; auto, h11, httptools.
    Raises TypeError or ValueError for bad input, OSError for a port that cannot be used, and
    RuntimeError for an application that does not start. Each names what it is about.
    """
    known_as = app if isinstance(app, str) else getattr(app, "__name__", type(app).__name__)
    if isinstance(app, str) and not all(app.partition(":")):
        raise ValueError(f"The application must be given as 'module:attribute', not {app!r}.")
    if not isinstance(app, str) and not callable(app):
        raise TypeError(f"The application must be an import string or ASGI callable, not {app!r}.")
    if not isinstance(app, str) and not in_process:
        raise TypeError(f"The application {known_as} lives in this process and cannot move to "
                        "another: pass in_process=True, or put it in a file and pass 'file:app'.")
    for option, given, choices in (("loop", loop, LOOPS), ("http", http, PROTOCOLS)):
        if given not in choices:
            raise ValueError(f"{option} must be one of {', '.join(choices)}, not {given!r}.")
    kind = ThreadServer if in_process else ProcessServer
    return _start(kind, name or known_as, app=app, port=port, loop=loop, http=http)


def _start(kind: type[Server], name: str, **options: Any) -> Server:
    if name in _servers:
        _servers[name].stop()
    _servers[name] = server = kind(name, **options)
    return server


def start_upstream(*, seed: int = 1, name: str = "upstream") -> Upstream:
    """Start the practice upstream in its own process, print one line that says so, and return it.

    One that runs and answers is kept, with its counters reset: a cell may run again, and addresses
    in other cells stay valid. Otherwise a new one takes its place. Raises as `serve` does.
    """
    try:
        _servers[name].reset(seed)
    except (KeyError, AttributeError, RuntimeError):  # none, another server, or a dead one
        # uvloop's timers end up to a millisecond early, and a delay must not.
        how = {"app": "support.upstream:app", "port": 0, "loop": "asyncio", "http": "auto"}
        _start(Upstream, name, **how).reset(seed)
    print(f"practice {name}: ready on {HOST}")
    return _servers[name]


def running() -> list[Server]:
    """Return the servers of this process that are alive."""
    return [server for server in _servers.values() if server.alive]


def stop_all() -> None:
    """Stop every server of this process."""
    for server in _servers.values():
        server._let_go()  # all of them first: they end at the same time
    for server in list(_servers.values()):
        server.stop()


def _forget_in_fork() -> None:
    """Close the pipes that keep servers alive: a forked worker may outlive the notebook."""
    for server in _servers.values():
        if isinstance(server, ProcessServer):
            server._let_go()
    _servers.clear()


atexit.register(stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_fork)
