"""Servers beside a notebook: ready when returned, on loopback only, and gone with their parent."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from support import server_process, servers

ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and process groups")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

APP = '''
import os, pathlib, socket, sys, time
print("printed at import")

async def answer(send, body):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(body).encode()})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            pathlib.Path(__file__).with_name(event).write_text("done")
            await send({"type": f"lifespan.{event}.complete"})
    elif scope["path"] == "/raise":
        print("printed in a request")
        raise LookupError("planted")
    elif scope["path"] == "/block":
        await answer(send, "blocking now")
        time.sleep(60)
    elif scope["path"] == "/nodelay":
        options = []
        for number in os.listdir("/proc/self/fd"):
            try:
                with socket.socket(fileno=os.dup(int(number))) as each:
                    if each.family == socket.AF_INET and each.getpeername():
                        options.append(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            except OSError:
                pass
        await answer(send, options)
    elif scope["path"] == "/environment":
        await answer(send, os.environ.get("ONLY_HERE"))
    else:
        await answer(send, os.getpid())

class Failing:
    async def __call__(self, scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "LookupError: no database"})
failing = Failing()

class Hanging:
    async def __call__(self, scope, receive, send):
        pathlib.Path(__file__).with_name("hanging").write_text(str(os.getpid()))
        await receive()
        time.sleep(60)
hanging = Hanging()
'''


@pytest.fixture(autouse=True)
def no_servers_left() -> Iterator[None]:
    yield
    servers.stop_all()
    assert servers.running() == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with beside_app.py, on the path of this process only."""
    (tmp_path / "beside_app.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("beside_app", None)
    return tmp_path


def get(server: servers.Server, path: str = "/") -> str:
    with urllib.request.urlopen(server.url + path, timeout=10) as answer:
        return answer.read().decode()


def is_there(pid: int) -> bool:
    """Whether a process has that pid, zombies aside."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends(pid: int) -> bool:
    """Whether the process is gone within five seconds."""
    deadline = time.monotonic() + 5
    while is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_there(pid)


@contextlib.contextmanager
def parent(script: str, *folders: Path) -> Iterator[subprocess.Popen]:
    """Run a script in a process group of its own, as a kernel is. All of it ends with the block."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, *folders))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                               start_new_session=True, env=os.environ | {"PYTHONPATH": path})
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("in_process", [False, True])
def test_it_is_ready_when_returned_and_gone_when_stopped(folder: Path, in_process: bool) -> None:
    this = psutil.Process()
    threads, handles = set(threading.enumerate()), this.num_fds() if os.name == "posix" else 0
    log_handlers = list(logging.getLogger("uvicorn").handlers)
    with servers.serve("beside_app:app", in_process=in_process) as server:
        assert (folder / "startup").exists()
        assert int(get(server)) == server.pid
        assert (server.pid == this.pid) == in_process
        assert servers.running() == [server]
        assert server.url == f"http://127.0.0.1:{server.port}" and "beside_app:app" in repr(server)
        sockets = psutil.Process(server.pid).net_connections("inet")
        listening = [tuple(each.laddr) for each in sockets if each.status == psutil.CONN_LISTEN]
        assert ("127.0.0.1", server.port) in listening
        assert in_process or len(listening) == 1
    assert (folder / "shutdown").exists()
    assert "stopped" in repr(server) and not server.alive
    server.stop()  # a second time
    assert set(threading.enumerate()) == threads
    assert logging.getLogger("uvicorn").handlers == log_handlers
    if os.name == "posix":
        assert this.num_fds() == handles
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


@pytest.mark.parametrize("in_process", [False, True])
def test_nothing_reaches_the_notebook_and_the_log_keeps_it(
        folder: Path, in_process: bool, capfd: pytest.CaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    # As logging.basicConfig() in a cell leaves it.
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
    with servers.serve("beside_app:app", in_process=in_process) as server:
        with pytest.raises(urllib.error.HTTPError):
            get(server, "/raise")
        deadline = time.monotonic() + 5
        while "LookupError: planted" not in server.log and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "LookupError: planted" in server.log
        # What an application prints in this process is the notebook's own output.
        assert ("printed in a request" in server.log) != in_process
    out, err = capfd.readouterr()
    assert err == ""
    assert in_process or out == ""


def test_an_async_with_stops_it_too(folder: Path) -> None:
    async def main() -> servers.Server:
        async with servers.serve("beside_app:app", in_process=True) as server:
            assert server.alive
        return server

    assert not asyncio.run(main()).alive


def test_a_cell_may_run_again_and_two_names_run_at_once(folder: Path) -> None:
    first = servers.serve("beside_app:app", name="a")
    other = servers.serve("beside_app:app", name="b")
    assert int(get(first)) != int(get(other))
    again = servers.serve("beside_app:app", name="a")
    assert not is_there(first.pid)
    assert servers.running() == [other, again]
    first.stop()  # must not take the new one with it
    assert int(get(again)) == again.pid
    assert servers.running() == [other, again]


def test_a_blocking_client_in_a_cell_reaches_a_server_in_a_thread() -> None:
    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": threading.current_thread().name.encode()})

    async def cell() -> None:
        with servers.serve(app, in_process=True) as server:
            assert get(server) == server._thread.name
            assert server.loop is not asyncio.get_running_loop() and server.loop.is_running()

    asyncio.run(cell())


@LINUX
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connections_have_no_delay(folder: Path, loop: str) -> None:
    with servers.serve("beside_app:app", loop=loop) as server:
        assert json.loads(get(server, "/nodelay")) == [1]


def test_the_listener_says_tcp() -> None:
    with server_process.listen() as listener:
        assert listener.proto == socket.IPPROTO_TCP
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert listener.getsockname()[0] == "127.0.0.1"


def test_the_process_finds_modules_where_this_one_does(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("support", "json"):
        (elsewhere / f"{name}.py").write_text("raise ImportError('the wrong module')")
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with servers.serve("beside_app:app") as server:
        assert int(get(server)) == server.pid
    with servers.serve("support.upstream:app") as server:
        assert json.loads(get(server, "/stats"))["requests"] == 0


# Gone with its parent


@POSIX
def test_kill_9_of_the_parent_leaves_nothing(folder: Path) -> None:
    script = """
import os, time, urllib.request
from support import servers
upstream = servers.start_upstream()
blocked = servers.serve("beside_app:app")
with urllib.request.urlopen(blocked.url + "/block") as answer:
    assert answer.read() == b"blocking now"
if os.fork():
    print(upstream.pid, blocked.pid, flush=True)
time.sleep(60)  # and so does the forked worker, which outlives its parent
"""
    with parent(script, folder) as process:
        assert process.stdout.readline() == "practice upstream: ready on 127.0.0.1\n"
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert all(is_there(pid) for pid in pids)
        process.send_signal(signal.SIGKILL)
        assert all([ends(pid) for pid in pids])


@POSIX
def test_an_interrupt_of_the_notebook_does_not_reach_the_server(folder: Path) -> None:
    script = """
import time
from support import servers
server = servers.serve("beside_app:app")
try:
    print(server.pid, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    import urllib.request
    print(urllib.request.urlopen(server.url).read().decode(), flush=True)
"""
    with parent(script, folder) as process:
        pid = int(process.stdout.readline())
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == f"{pid}\n"
        assert process.wait(10) == 0  # an ordinary end: atexit stops the server
        assert not is_there(pid)


@POSIX
def test_an_interrupt_during_the_start_leaves_nothing(folder: Path) -> None:
    script = """
from support import servers
try:
    servers.serve("beside_app:hanging")
except KeyboardInterrupt:
    print("interrupted", servers.running(), flush=True)
"""
    with parent(script, folder) as process:
        note = folder / "hanging"
        deadline = time.monotonic() + 10
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        pid = int(note.read_text())
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted []\n"
        assert not is_there(pid)


@pytest.mark.parametrize("moment", ["before it serves", "as it is ready"])
def test_an_interrupt_during_the_start_in_a_thread_leaves_nothing(
        folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is held where uvicorn is made, or runs on, while the cell is interrupted."""
    interrupted, threads = threading.Event(), set(threading.enumerate())
    make = servers.uvicorn_server

    def make_late(*arguments: Any) -> Any:
        interrupted.wait(5)
        return make(*arguments)

    class InterruptedEvent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if moment == "as it is ready":
                super().wait()
            interrupted.set()
            raise KeyboardInterrupt

    if moment == "before it serves":
        monkeypatch.setattr(servers, "uvicorn_server", make_late)
    before = {(one.fd, one.laddr) for one in psutil.Process().net_connections("inet")}
    with monkeypatch.context() as only_here, pytest.raises(KeyboardInterrupt):
        tools = {name: getattr(threading, name) for name in threading.__all__}
        only_here.setattr(servers, "threading", SimpleNamespace(**tools | {"Event": InterruptedEvent}))
        servers.serve("beside_app:app", in_process=True)
    assert servers.running() == [] and set(threading.enumerate()) == threads
    assert {(one.fd, one.laddr) for one in psutil.Process().net_connections("inet")} == before


def test_an_interrupt_once_the_process_serves_leaves_nothing(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = set(psutil.Process().children())

    def interrupted(server: servers.Server, port: int) -> None:
        vars(server)["port"] = port
        if port:
            raise KeyboardInterrupt

    with monkeypatch.context() as only_here, pytest.raises(KeyboardInterrupt):
        port = property(lambda server: vars(server)["port"], interrupted)
        only_here.setattr(servers.ProcessServer, "port", port, raising=False)
        servers.serve("beside_app:app")
    assert servers.running() == [] and set(psutil.Process().children()) == children


# Bad input


@pytest.mark.parametrize("in_process", [False, True])
def test_a_port_taken_is_named(in_process: bool) -> None:
    with server_process.listen() as taken:
        taken.listen()
        port = taken.getsockname()[1]
        named = rf"^Port {port} on 127\.0\.0\.1 cannot be used \(.+\): stop what uses it"
        with pytest.raises(OSError, match=named):
            servers.serve("support.upstream:app", port=port, in_process=in_process)


@pytest.mark.parametrize(("app", "reason", "in_process"), [
    ("no_such_module:app", "no_such_module", False),
    ("beside_app:nothing", 'Attribute "nothing" not found', True),
    ("beside_app:failing", "LookupError: no database", False),
    ("beside_app:failing", "LookupError: no database", True),
])
def test_an_application_that_does_not_start_says_why(
        folder: Path, app: str, reason: str, in_process: bool) -> None:
    with pytest.raises(RuntimeError) as caught:
        servers.serve(app, in_process=in_process)
    assert app in str(caught.value) and reason in str(caught.value)
    assert servers.running() == []


def test_variables_are_set_for_the_new_process_only(folder: Path) -> None:
    with servers.serve("beside_app:app", env={"ONLY_HERE": "a value"}) as server:
        assert get(server, "/environment") == "a value"
        assert "ONLY_HERE" not in os.environ


def test_a_server_that_is_told_to_end_does_not_wait_for_a_tick(folder: Path) -> None:
    def end_s() -> float:
        server = servers.serve("beside_app:app", in_process=True)
        assert get(server)
        start = time.perf_counter()
        server.stop()
        return time.perf_counter() - start

    assert min(end_s() for _ in range(5)) < 0.15  # of these, uvicorn waits 0.1 s; with its tick it was 0.2 s


def test_an_application_of_the_notebook_cannot_move_to_another_process() -> None:
    async def my_app(scope: dict, receive: Callable, send: Callable) -> None: ...

    with pytest.raises(TypeError, match="my_app lives in this process .* pass in_process=True"):
        servers.serve(my_app)


@pytest.mark.parametrize(("options", "error", "named"), [
    ({"app": 3}, TypeError, "not 3"), ({"app": "gateway"}, ValueError, "'gateway'"),
    ({"app": "a:b", "loop": "fast"}, ValueError, "auto, asyncio, uvloop, not 'fast'"),
    ({"app": "a:b", "http": "3"}, ValueError, "http must be one of"),
    ({"app": "support.upstream:app", "port": 99_999}, OSError, "Port 99999"),
    ({"app": "support.upstream:app", "port": "x", "in_process": True}, OSError, "Port 'x'"),
    ({"app": "a:b", "env": {"CACHE": 60}}, ValueError, "not {'CACHE': 60}"),
    ({"app": "a:b", "env": {"CACHE": "60"}, "in_process": True}, ValueError, "leave in_process out"),
])
def test_bad_input_is_named(options: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error) as caught:
        servers.serve(**options)
    assert named in str(caught.value) and "\n" not in str(caught.value)


# The practice upstream


def test_start_upstream_keeps_one_that_answers_and_replaces_one_that_does_not(
        capsys: pytest.CaptureFixture) -> None:
    upstream = servers.start_upstream()
    get(upstream, "/item/1")
    assert servers.start_upstream() is upstream
    assert upstream.stats()["requests"] == 0
    psutil.Process(upstream.pid).kill()
    with pytest.raises(RuntimeError, match=r"does not answer .* call start_upstream\(\)"):
        upstream.stats()
    another = servers.start_upstream()
    assert another is not upstream and another.stats()["requests"] == 0
    assert capsys.readouterr().out == "practice upstream: ready on 127.0.0.1\n" * 3
    with pytest.raises(ValueError, match="seed must be a whole number"):
        another.reset(seed="x y")
    with servers.serve("support.upstream:app", name="upstream", in_process=True) as taken:
        assert servers.start_upstream() is not taken  # a name that another server has


def test_a_line_server_answers_in_order_and_leaves_nothing():
    async def main() -> tuple[list[bytes], int]:
        async with servers.line_server(0.001) as port:
            pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for _, writer in pairs:
                writer.write(b"GET a\nGET b\n")
            lines = [await reader.readline() for reader, _ in pairs for _ in range(2)]
            pairs[0][1].close()  # the other one is open when the server ends
        assert await pairs[1][0].read() == b""
        pairs[1][1].close()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
        return lines, len(asyncio.all_tasks())

    assert asyncio.run(main()) == ([b"data of a\n", b"data of b\n"] * 2, 1)
