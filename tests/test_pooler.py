"""PgBouncer before the course's Postgres: few server connections, prepared statements that fail or not, gone with its parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from support import balancer, pooler, pooling, programs, service_base, services
from tests.test_programs import listening
from tests.test_servers import POSIX, ends, is_there, parent

BOUNCER = pytest.mark.skipif(os.name != "posix" or balancer.find("pgbouncer") is None, reason="no PgBouncer here")
ROOT_ONLY = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another")
URL = "postgresql://me:secret@127.0.0.1:5432/shop"
SCRIPT = """
import json, time
import psutil
from support import programs, services
front = programs.start_pooler(services.start_postgres(max_connections=20).url)
family = [child.pid for child in psutil.Process().children(recursive=True)]
print(json.dumps({"port": front.port, "pids": family}), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    services.stop_all()
    assert services.running() == []
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def seen_by(url: str, *, clients: int = 7, **options: Any) -> dict[str, int]:
    return dict(asyncio.run(pooling.query_ends(url, clients, **options)))


def backends(url: str) -> int:
    async def main() -> int:
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            question = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            return await connection.fetchval(question)
        finally:
            await connection.close()

    return asyncio.run(main())


@BOUNCER
def test_many_clients_share_few_connections_and_only_named_statements_fail() -> None:
    url = services.start_postgres(max_connections=20).fresh_database("pooled")
    with programs.start_pooler(url, server_connections=3) as front:
        pids, folder = front.pids, front._folder
        assert listening(pids) == {("127.0.0.1", front.port)} and front.url.endswith(f"@127.0.0.1:{front.port}/pooled")
        assert folder.stat().st_mode & 0o077 == 0  # the password is in it
        assert seen_by(front.url, clients=30, statement_cache_size=0) == {"answered": 300}
        assert 1 <= backends(front.url) <= 3
        named = seen_by(front.url)
        assert sum(named.values()) == 70 and named.keys() == {"answered", "InvalidSQLStatementNameError"}
        again = programs.start_pooler(url)  # the next of its name takes its place, and its port
        assert again.port == front.port and not is_there(pids[0])
        assert seen_by(again.url, statement_cache_size=0) == {"answered": 70} and backends(again.url) <= 2
        with pytest.raises(asyncpg.PostgresError, match="authentication failed"):
            seen_by(again.url.replace("course:", "course:not"))
    assert again.alive
    again.stop()
    assert not again.alive and not again._folder.exists()


@BOUNCER
def test_prepared_statements_are_kept_from_1_21_on() -> None:
    url = services.start_postgres(max_connections=20).url
    if pooler._version(balancer.find("pgbouncer")) >= (1, 21):
        assert seen_by(programs.start_pooler(url, prepared=100).url) == {"answered": 70}
        return
    with pytest.raises(RuntimeError, match=r"^PgBouncer 1\.\d+ cannot keep prepared statements: install 1\.21"):
        programs.start_pooler(url, prepared=100)


@BOUNCER
def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    url = services.start_postgres(max_connections=20).url
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = {"folder": service_base.own_folder(), "password": "", "port": port}
        monkeypatch.setitem(service_base.addresses, "The pooler 'pooler'", address)
        front = programs.start_pooler(url)
        assert front.port not in (0, port) and seen_by(front.url, statement_cache_size=0) == {"answered": 70}


@BOUNCER
@ROOT_ONLY
def test_root_without_user_namespaces_starts_it_as_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # so that there is no unshare
    front = programs.start_pooler(services.start_postgres(max_connections=20).url)
    assert psutil.Process(front.pid).uids().real == 65534
    assert seen_by(front.url, statement_cache_size=0) == {"answered": 70}


@BOUNCER
def test_a_server_of_the_readers_own_is_reached_by_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    own = services.Postgres(max_connections=20, log=False, tcp=True)  # stands for one that DATABASE_URL names
    try:
        monkeypatch.setenv("DATABASE_URL", own.url + "?sslmode=prefer")
        with programs.start_pooler(services.start_postgres().fresh_database("pooled")) as front:
            assert seen_by(front.url, statement_cache_size=0) == {"answered": 70}
    finally:
        services.stop_all()
        own.stop()


@BOUNCER
@POSIX
def test_kill_9_of_the_kernel_leaves_nothing() -> None:
    with parent(SCRIPT) as kernel:
        told = json.loads(next(line for line in iter(kernel.stdout.readline, "") if line.startswith("{")))
        assert len(told["pids"]) >= 4  # Postgres, PgBouncer, and a keeper of each
        kernel.send_signal(signal.SIGKILL)
        assert all([ends(pid) for pid in told["pids"]])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", told["port"]), timeout=5)


def config_of(monkeypatch: pytest.MonkeyPatch, url: str, version: tuple[int, int], **options: Any) -> dict[str, str]:
    """The files that it would be started with, where PgBouncer has that version."""
    seen: dict[str, str] = {}

    def remember(kind: type, *arguments: Any, files: dict[str, str]) -> Any:
        seen.update(files)
        return object.__new__(kind)

    monkeypatch.setattr(pooler, "find", lambda program: program)
    monkeypatch.setattr(pooler, "_version", lambda program: version)
    monkeypatch.setattr(pooler, "launch", remember)
    front = programs.start_pooler(url, **options)
    assert front.version == version and front.can_prepare == (version >= (1, 21))
    return seen


@POSIX
def test_only_a_new_one_is_told_of_prepared_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "prepared" not in config_of(monkeypatch, URL, (1, 20))["pgbouncer.ini"]
    for prepared in (0, 100):  # 0 as well, which is not its default
        config = config_of(monkeypatch, URL, (1, 25), prepared=prepared)["pgbouncer.ini"]
        assert f"\nmax_prepared_statements = {prepared}\n" in config


@POSIX
def test_names_and_passwords_arrive_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    files = config_of(monkeypatch, "postgresql://a%22b:p%40 s@/my%20shop?host=/tmp/my%27s&port=7", (1, 18))
    assert files["users.txt"] == '"a""b" "p@ s"\n'
    assert "* = host='/tmp/my''s' port=7\n" in files["pgbouncer.ini"]
    assert "server_tls_sslmode = disable" in files["pgbouncer.ini"]
    files = config_of(monkeypatch, URL + "?sslmode=require", (1, 18), server_connections=9)
    assert "server_tls_sslmode = require" in files["pgbouncer.ini"] and "pool_size = 9\n" in files["pgbouncer.ini"]


def test_without_one_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(pooler, "find", lambda program: None)
    assert programs.start_pooler(URL) is None
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2 and "skipped" in printed and "apt install pgbouncer" in printed


@POSIX
@pytest.mark.parametrize(
    "url",
    ["postgresql://me@127.0.0.1/shop", "postgresql://me:secret@/shop", "postgresql://me:secret@a,b/shop",
     "postgresql://me:secret@db/", URL + "?sslmode=verify-full"],
)  # fmt: skip
def test_a_url_that_it_cannot_use_is_skipped_with_a_sentence(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(pooler, "find", lambda program: program)
    assert programs.start_pooler(url) is None
    printed = capsys.readouterr().out
    assert "skipped" in printed and "set DATABASE_URL" in printed and "secret" not in printed


@pytest.mark.parametrize(
    ("url", "options", "named"),
    [
        ("mysql://me:secret@db/shop", {}, "must look like postgresql://"),
        (None, {}, "must look like postgresql://"),
        ("postgresql://me:secret@db:no/shop", {}, "with a number as its port"),
        ("postgresql://me:sec%0aret@db/shop", {}, "without line breaks"),
        (URL, {"server_connections": 0}, "server_connections must be a whole number from 1 to 50, not 0"),
        (URL, {"server_connections": True}, "not True"),
        (URL, {"prepared": -1}, "prepared must be a whole number from 0 to 10,000, not -1"),
    ],
)
def test_bad_input_is_named(url: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        programs.start_pooler(url, **options)
    assert named in str(caught.value) and "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert services.running() == []


# What the chapter does to a pool


def test_requests_that_wait_for_each_other_are_cancelled_together_and_errors_are_named() -> None:
    async def main() -> None:
        raised: set[str] = set()
        permits = asyncio.Semaphore(2)

        async def nested(here: asyncio.Barrier) -> None:
            async with permits:
                await here.wait()
                async with permits:
                    pass

        async def fails(here: asyncio.Barrier) -> None:
            await here.wait()
            raise LookupError

        assert await pooling.succeed(nested, 1, 2, raised) == 1 and not raised
        assert await pooling.succeed(nested, 2, 2, raised) == 0 and not raised and not permits.locked()
        assert await pooling.succeed(fails, 2, 2, raised) == 0 and raised == {"LookupError"}
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_ten_readings_count_the_wrong_ones_and_their_statements(capsys: pytest.CaptureFixture) -> None:
    statements: list[str] = ["from before"]
    answers = iter([1, 2, 1, 1, 1, 1, 1, 1, 1, 3])

    async def read(pool: None) -> int:
        statements.extend(["SELECT", "reset"])
        return next(answers)

    wrong, sent, seconds = asyncio.run(pooling.ten_readings(read, None, statements, right=1))
    assert (wrong, sent) == (2, 2) and 0 <= seconds < 1
    assert capsys.readouterr().out == "read         statements sent:   2; of 10 totals wrong: 2\n"
