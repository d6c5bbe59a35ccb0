"""Servers beside a notebook that are not uvicorn: they answer, their CPU time is known, and they are gone when they should."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import kernel, rivals, servers
from tests.test_servers import POSIX, ends, get, is_there, parent

NODE = pytest.mark.skipif(shutil.which("node") is None, reason="node is not on PATH")
APP = """
import pathlib, time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        pathlib.Path(__file__).with_name("startup").write_text("done")
        await send({"type": "lifespan.startup.complete"})
        return await receive()
    if scope["path"] == "/burn":
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
    status = 500 if scope["path"] == "/fail" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})
"""


@pytest.fixture(autouse=True)
def no_servers_left() -> Iterator[None]:
    yield
    servers.stop_all()
    assert servers.running() == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rival_app.py, on the path of this process only."""
    (tmp_path / "rival_app.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def family(server: servers.Server) -> list[int]:
    keeper = psutil.Process(server.pid)
    return [each.pid for each in (keeper, *keeper.children(recursive=True))]


def test_granian_serves_an_application_and_is_gone_when_stopped(folder: Path) -> None:
    this, threads = psutil.Process(), set(threading.enumerate())
    handles = this.num_fds() if os.name == "posix" else 0
    with rivals.start_granian("rival_app:app") as server:
        assert get(server, "/hello") == "/hello"
        assert (folder / "startup").exists()
        pids = family(server)
        assert len(pids) >= 2 and servers.running() == [server]
        assert server.url.startswith("http://127.0.0.1:") and "granian" in repr(server)
        again = rivals.start_granian("rival_app:app")  # as a cell that runs again
        assert not any(map(is_there, pids)) and servers.running() == [again]
    again.stop()
    again.stop()  # a second time
    assert not again.alive and set(threading.enumerate()) == threads
    if os.name == "posix":
        assert this.num_fds() == handles


@POSIX
def test_uvicorn_finishes_what_it_has_begun_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "patient_app.py").write_text("""
import asyncio, pathlib

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
    if scope["path"] == "/work":
        await asyncio.sleep(0.3)
        pathlib.Path(__file__).with_name("finished").write_text("done")
""")
    monkeypatch.syspath_prepend(tmp_path)
    with rivals.start_uvicorn("patient_app:app") as server:
        assert get(server, "/work") == "ok"
        (process,) = psutil.Process(server.pid).children()
        assert not (tmp_path / "finished").exists()
        process.terminate()
        server._child.wait(10)
        assert (tmp_path / "finished").exists() and not server.alive


def test_pairs_of_runs_compare_two_servers_and_name_a_failing_one(folder: Path) -> None:
    async def compare(paths: tuple[str, str], until: float = 0) -> tuple[list[float], float]:
        return await rivals.paired_rates(busy, idle, paths, concurrency=1, seconds=0.15, until=until)

    with servers.serve("rival_app:app", name="busy") as busy, servers.serve("rival_app:app", name="idle") as idle:
        gains, by_cpu = asyncio.run(compare(("/burn", "/hello")))
        assert len(gains) == 3 and max(gains) > 5 and by_cpu > 5  # 100 ms of CPU time against next to none
        gains, by_cpu = asyncio.run(compare(("/burn", "/burn"), until=3))
        assert len(gains) == 12 and 0.5 < by_cpu < 2  # the median never came so far
        with pytest.raises(RuntimeError, match="/fail"):
            asyncio.run(compare(("/hello", "/fail")))


@NODE
def test_node_answers_both_routes() -> None:
    with rivals.start_node() as server:
        assert json.loads(get(server)) == {"message": "hello"}
        start = time.perf_counter()
        assert json.loads(get(server, "/wait")) == {"message": "hello"}
        assert time.perf_counter() - start > 0.099


@POSIX
def test_go_is_built_and_its_program_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to a Go server, with a Go that builds a server of Python: no Go is needed here."""
    note = tmp_path / "built"
    (tmp_path / "go").write_text(f"""#!{sys.executable}
import os, sys
verb, option, program, source = sys.argv[1:]
assert (verb, option) == ("build", "-o") and "GOMAXPROCS(1)" in open(source).read()
open(program, "w").write('''#!{sys.executable}
import http.server
http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler).serve_forever()
''')
os.chmod(program, 0o700)
open({str(note)!r}, "w").write(program)
""")
    (tmp_path / "go").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with rivals.start_go() as server, contextlib.suppress(urllib.error.HTTPError):
        program = Path(note.read_text())
        assert program.exists() and "Go" in rivals.present()
        get(server)
    assert not program.parent.exists()


@pytest.mark.skipif(shutil.which("go") is None, reason="go is not on PATH")
def test_go_answers_both_routes() -> None:
    with rivals.start_go() as server:
        assert json.loads(get(server)) == json.loads(get(server, "/wait")) == {"message": "hello"}


def test_what_is_not_on_path_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert list(rivals.absent()) == ["Node", "Go"] and rivals.present() == {}
    for start in (rivals.start_node, rivals.start_go):
        with pytest.raises(RuntimeError, match="^(Node|Go) is not on PATH, .* install it from https://"):
            start()
    assert servers.running() == []


@pytest.mark.parametrize("how", ["uvicorn", "granian"])
def test_cpu_seconds_counts_what_the_application_uses(folder: Path, how: str) -> None:
    start = servers.serve if how == "uvicorn" else rivals.start_granian
    with start("rival_app:app") as server:
        get(server)
        before = rivals.cpu_seconds(server)
        time.sleep(0.1)  # which costs a server that waits nothing
        idle = rivals.cpu_seconds(server)
        get(server, "/burn")
        busy = rivals.cpu_seconds(server)
    assert idle - before < 0.03 and 0.095 < busy - idle < 0.15
    with pytest.raises(RuntimeError, match="has ended: start it again"):
        rivals.cpu_seconds(server)


def test_the_cpu_time_of_a_server_in_this_process_is_not_told(folder: Path) -> None:
    with servers.serve("rival_app:app", in_process=True) as server, pytest.raises(ValueError, match="serve it as"):
        rivals.cpu_seconds(server)


@pytest.mark.parametrize(("app", "error", "named"), [
    ("gateway", ValueError, "not 'gateway'"), (3, ValueError, "not 3"),
    ("no_such_module:app", RuntimeError, "'no_such_module:app', did not start: RuntimeError: Could not import"),
])  # fmt: skip
def test_what_cannot_start_says_why(app: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error) as caught:
        rivals.start_granian(app)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="^uvicorn needs an application as 'module:attribute', not 7.$"):
        rivals.start_uvicorn(7)
    assert servers.running() == []


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = tmp_path / "late.py"
    late.write_text(Path(rivals.rival_process.__file__).read_text().replace("START_SECONDS, POLL", "_, POLL").replace(
        "HOST =", "START_SECONDS, HOST = 0.1,"))  # fmt: skip
    monkeypatch.setattr(rivals.rival_process, "__file__", str(late))
    with pytest.raises(RuntimeError, match="did not start: it did not answer within 0.1 s"):
        rivals._start("mute", [sys.executable, "-c", "import threading; threading.Event().wait()"])


def test_a_server_that_dies_is_not_alive(folder: Path) -> None:
    with rivals.start_granian("rival_app:app") as server:
        pids = family(server)
        for pid in pids[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        assert all(map(ends, pids))
        server._child.wait(5)  # a moment after it shows as ended, its last thread has
        assert not server.alive


def test_the_chapter_stops_them(folder: Path, capsys: pytest.CaptureFixture) -> None:
    kernel.open_chapter("04_fastapi")
    server = rivals.start_granian("rival_app:app")
    kernel.close_chapter()
    assert "tasks left: 0, threads left: 0, child processes left: 0, sockets left: 0" in capsys.readouterr().out
    assert not server.alive


@POSIX
def test_kill_9_of_the_parent_leaves_nothing(folder: Path) -> None:
    script = """
import os, psutil, time
from support import rivals
started = [rivals.start_granian("rival_app:app"), *(start() for name, start in rivals.present().items() if name == "Node")]
keepers = [psutil.Process(server.pid) for server in started]
pids = [each.pid for keeper in keepers for each in (keeper, *keeper.children(recursive=True))]
if os.fork():
    print(*pids, flush=True)
time.sleep(60)  # and so does the forked worker, which outlives its parent
"""
    with parent(script, folder) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) >= 3 and all(map(is_there, pids))
        process.send_signal(signal.SIGKILL)
        assert all([ends(pid) for pid in pids])


@POSIX
def test_an_interrupt_reaches_the_cell_and_not_the_server(folder: Path) -> None:
    script = """
import threading, urllib.request
from support import rivals
server = rivals.start_granian("rival_app:app")
try:
    print(server.pid, flush=True)
    threading.Event().wait(60)
except KeyboardInterrupt:
    print(urllib.request.urlopen(server.url + "/still").read().decode(), flush=True)
"""
    with parent(script, folder) as process:
        pid = int(process.stdout.readline())
        pids = [pid, *(each.pid for each in psutil.Process(pid).children(recursive=True))]
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "/still\n"
        assert process.wait(10) == 0  # an ordinary end: atexit stops the server
        assert not any(map(is_there, pids))


@POSIX
def test_an_interrupt_during_the_start_leaves_nothing(folder: Path) -> None:
    note = folder / "importing"
    (folder / "slow_app.py").write_text(
        f"import os, threading; open({str(note)!r}, 'w').write(str(os.getpid()))\nthreading.Event().wait()"
    )
    script = """
from support import rivals, servers
try:
    rivals.start_granian("slow_app:app")
except KeyboardInterrupt:
    print("interrupted", servers.running(), flush=True)
"""
    with parent(script, folder) as process:
        deadline = time.monotonic() + 10
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        worker = int(note.read_text())
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted []\n"
        assert not is_there(worker)
