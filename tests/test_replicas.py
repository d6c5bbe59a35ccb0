"""Replicas of a service: at the same port after a restart, one after the other in a rollout, seen by a steady load."""

from __future__ import annotations

import asyncio
import http.cookiejar
import urllib.request
from pathlib import Path

import pytest

from support import balancer, modules, services
from support.replicas import Replicas

HAPROXY = pytest.mark.skipif(balancer.find("haproxy") is None, reason="there is no HAProxy on this machine")
APP = """
import os
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{os.environ['WHO']} {os.getpid()}".encode()})
"""


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "replica_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    services.stop_all()
    modules.forget()


def test_a_replica_comes_back_at_its_port_with_the_environment_of_all() -> None:
    replicas = Replicas("replica_app:app", {"WHO": "ours"}, first=0, second=1)
    before = {name: (replicas[name].url, replicas[name].pid) for name in ("first", "second")}
    replicas.start("first", 0)
    assert replicas["first"].url == before["first"][0] and replicas["first"].pid != before["first"][1]
    assert (replicas["second"].url, replicas["second"].pid) == before["second"]
    with urllib.request.urlopen(replicas["first"].url, timeout=5) as answer:
        assert answer.read().startswith(b"ours ")


@HAPROXY
def test_a_rollout_restarts_each_in_turn_and_marks_it() -> None:
    replicas, turns = Replicas("replica_app:app", {"WHO": "ours"}, first=0, second=0), []

    async def restart(name: str, front: balancer.Balancer) -> None:
        turns.append((name, front.alive))

    seen = asyncio.run(replicas.rollout(restart, "/order", rate=100))
    assert turns == [("first", True), ("second", True)] and [label for _, label in seen.marks] == ["first", "second"]
    assert len(seen.answered) > 10 and not seen.failed


@HAPROXY
@pytest.mark.parametrize("sticky", [False, True])
def test_only_a_cookie_keeps_a_visitor_at_one_replica(sticky: bool) -> None:
    replicas = Replicas("replica_app:app", {"WHO": "ours"}, first=0, second=0)
    with replicas.balancer(sticky=sticky, algorithm="roundrobin") as front:
        visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        asked = {visitor.open(front.url, timeout=5).read() for _ in range(6)}
    assert len(asked) == (1 if sticky else 2)


def test_without_haproxy_nothing_is_rolled_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    replicas = Replicas("replica_app:app", {"WHO": "ours"}, first=0)
    monkeypatch.setattr(balancer, "find", {"nginx": "nginx"}.get)

    async def never(name: str, front: balancer.Balancer) -> None:
        raise AssertionError("nothing is to be restarted")

    assert asyncio.run(replicas.rollout(never, "/", rate=10)) is None
    assert replicas.balancer(sticky=True) is None and "apt install haproxy" in capsys.readouterr().out


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one name with its graceful timeout"):
        Replicas("replica_app:app")
    with pytest.raises(ValueError, match="'module:attribute', not 'replica_app'"):
        Replicas("replica_app", first=0)
