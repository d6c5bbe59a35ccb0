"""Run ASGI applications beside a notebook, on 127.0.0.1 and a free port.

`serve("module:app")` runs one in a process of its own: for whatever is measured. `serve(app,
in_process=True)` runs one in a thread with a loop of its own: for looking inside. Both return when
the server is ready. A server ends with `stop()`, at exit, or when the process that started it is
gone, however that ended: the child waits at a pipe of which only the parent holds the other end.
"""

import asyncio
import atexit
import contextlib
import http.client
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self
from urllib.parse import urlencode

from support import server_process
from support.server_process import GRACE, HOST, listen, uvicorn_server
from support.upstream import endpoint_of

LOG_LINES = 200
LOOPS, PROTOCOLS = ("auto", "asyncio", "uvloop"), ("auto", "h11", "httptools")
_servers: dict[str, "Server"] = {}
_starting: dict[str, threading.Lock] = {}


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
        self._let_go()  # first: who is interrupted here finds it among the servers, or ended
        if _servers.get(self.name) is self:
            del _servers[self.name]
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

    def _run_until_ready(self, **options: Any) -> None:
        """Start it, and return when it is ready, or can no longer be."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Tell it to end, in whichever state it is."""
        raise NotImplementedError

    def _wait(self) -> None:
        """Wait until it has ended."""
        raise NotImplementedError

    def _failure(self, *, app: Any, **_: Any) -> Exception:
        skipped = "Application startup failed"  # uvicorn's farewell, after the line that says why
        lines = [line for line in self.log.splitlines() if line and not line.startswith(skipped)]
        reason = lines[-1] if lines else "it ended without a word"
        if reason.startswith("OSError: Port "):
            return OSError(reason.removeprefix("OSError: "))
        return RuntimeError(f"Server {self.name!r}, application {app!r}, did not start: {reason}")


class ProcessServer(Server):
    """A server in a process of its own."""

    _child: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None

    def _run_until_ready(self, **options: Any) -> None:
        # A session of its own, because an interrupt goes to the notebook's whole process group.
        group = ({"start_new_session": True} if os.name == "posix" else
                 {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP})
        environment = os.environ | options.pop("env", {})
        options["sys_path"] = [str(folder) for folder in sys.path]
        # By its path, not by its name: the notebook's folder must not decide what is imported. Nor
        # must the folder of that file (-P), which has a module trace, as the standard library has.
        command = [sys.executable, "-u", "-P", server_process.__file__, json.dumps(options)]
        self._child = child = subprocess.Popen(
            command, text=True, errors="replace", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment, **group)
        self.pid = child.pid
        reader = threading.Thread(target=self._log.extend, args=(child.stderr,), daemon=True)
        reader.start()
        self._reader = reader
        try:
            with child.stdout as report:
                self.port = int(report.readline() or 0)  # nothing when the child is dead
        finally:
            if not self.port:
                child.kill()

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def _let_go(self) -> None:
        if self._child:
            self._child.stdin.close()

    def _wait(self) -> None:
        if self._child is None:
            return
        try:
            self._child.wait(GRACE + 2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._reader:
            self._reader.join(1)
        self._child.stdout.close()
        self._child.stderr.close()


class ThreadServer(Server):
    """A server in a thread of this process, with a loop of its own."""

    _thread: threading.Thread | None = None
    _uvicorn: Any = None
    _unwanted = False  # told to end before there was a server to tell

    def _run_until_ready(self, *, app: Any, port: int, loop: str, http: str) -> None:
        self._ready = threading.Event()
        # uvloop would hide its callbacks from the recorder, which a lesson may use in this thread.
        loop = "asyncio" if loop == "auto" else loop
        # The thread opens the socket, and closes it: an interrupt comes only to the main thread.
        self._thread = threading.Thread(target=self._run, args=(app, port, loop, http), daemon=True)
        self._thread.start()
        self._ready.wait()

    def _run(self, app: Any, port: int, loop: str, http: str) -> None:
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
            with listen(port) as listener:
                self._uvicorn = uvicorn_server(app, loop, http, when_ready)
                if not self._unwanted:
                    self._uvicorn.run(sockets=[listener])
        except BaseException as error:
            if not isinstance(error, SystemExit):  # uvicorn has logged why
                self._log.extend(traceback.format_exception_only(error))
        finally:
            logger.removeHandler(handler)
            self._ready.set()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _let_go(self) -> None:
        self._unwanted = True
        if self._uvicorn:
            self._uvicorn.end()

    def _wait(self) -> None:
        if self.alive:
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
          loop: str = "auto", http: str = "auto", env: Mapping[str, str] | None = None) -> Server:
    """Serve an ASGI application on 127.0.0.1; return when it is ready.

    app: an import string "module:attribute"; with `in_process` it may be the application itself.
    name: a server of the same name is stopped first, so that a cell may run again.
    loop, http: as uvicorn takes them: auto, asyncio, uvloop; auto, h11, httptools.
    env: environment variables of the new process, beside those of this one.
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
    if env and in_process:
        raise ValueError(f"The environment {dict(env)!r} is for a process of its own: leave in_process out.")
    if not all(isinstance(word, str) for word in itertools.chain(*(env or {}).items())):
        raise ValueError(f"env must hold texts only, such as {{'CACHE': '60'}}, not {dict(env)!r}.")
    kind, own = (ThreadServer, {}) if in_process else (ProcessServer, {"env": dict(env or {})})
    return _start(kind, name or known_as, app=app, port=port, loop=loop, http=http, **own)


def _start(kind: type[Server], name: str, **options: Any) -> Server:
    with _starting.setdefault(name, threading.Lock()):  # in a thread, one may start while another does
        if name in _servers:
            _servers[name].stop()
        _servers[name] = server = kind(name)  # before it starts: whenever an interrupt comes, it is known
        try:
            server._run_until_ready(**options)
        except BaseException:
            server.stop()
            raise
        if not server.port:
            server.stop()  # so that its log is complete
            raise server._failure(**options)
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


@contextlib.asynccontextmanager
async def line_server(seconds: float = 0.03) -> AsyncIterator[int]:
    """``async with line_server() as port``: a server of a line protocol, on this loop, as Redis is one.

    To each line ``GET name`` it answers ``data of name`` after that many seconds. The answers to a
    connection come in the order of its requests, also when the client no longer waits for them.
    """
    open_ones: set[asyncio.Task[None]] = set()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while line := await reader.readline():
                await asyncio.sleep(seconds)
                writer.write(b"data of " + line.split()[-1] + b"\n")

    server = await asyncio.start_server(serve_one, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


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
