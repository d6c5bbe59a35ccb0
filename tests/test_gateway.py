"""The finished gateway: its pipeline on the virtual clock, and the application over real sockets."""

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from support import servers, simulate
from support.gateway import Gateway, Reply, Settings, UnknownService, UpstreamFailed, create_app

NAMES = ("users", "prices", "stock")
GOOD = Reply(200, {}, b'{"n": 1}')


class Fake:
    """Upstreams on the virtual clock: name -> what they do, given how often they were called; default: 50 ms."""

    def __init__(self, **behaviour: Callable[[int], Any]) -> None:
        self.behaviour, self.calls, self.cancelled = behaviour, Counter(), Counter()
        self.starts: list[tuple[str, float]] = []
        self.left: list[float | None] = []

    async def __call__(self, name: str, path: str, headers: Any, timeout: float | None) -> Reply:
        self.calls[name] += 1
        self.starts.append((name, asyncio.get_running_loop().time()))
        self.left.append(timeout)
        does = self.behaviour.get(name, lambda _: 0.05)(self.calls[name])
        try:
            if isinstance(does, float):
                await asyncio.sleep(does)
                return GOOD
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled[name] += 1
            raise
        if isinstance(does, BaseException):
            raise does
        return does


def off(**others: Any) -> Settings:
    """All protections off but those given."""
    return Settings.naive(dict.fromkeys((*NAMES, "more"), "http://127.0.0.1:9"), **others)


def run(settings: Settings, fake: Fake, scenario: Callable[[Gateway], Any]) -> Any:
    async def main() -> Any:
        gateway = Gateway(settings, fake, dice=random.Random(1))
        try:
            return await scenario(gateway)
        finally:
            await gateway.close()
            assert len(asyncio.all_tasks()) == 1, "tasks were left over"

    return simulate(main)


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


def statuses(answer: Any) -> dict[str, str]:
    return {name: part.status for name, part in answer.parts.items()}


def once(settings: Settings, fake: Fake, *names: str, **how: Any) -> tuple[Any, float]:
    """One aggregated request, and how long it took."""

    async def scenario(gateway: Gateway) -> Any:
        return await gateway.aggregate(names or NAMES, **how), now()

    return run(settings, fake, scenario)


# The pipeline


def test_all_parts_at_the_same_time_and_duplicates_once() -> None:
    answer, took = once(off(), fake := Fake(), "users", "prices", "users")
    assert (answer.status, took, fake.calls) == (200, 0.05, {"users": 1, "prices": 1})
    assert json.loads(answer.json()) == {"parts": {n: {"status": "ok", "data": {"n": 1}} for n in ("users", "prices")}}


def test_unknown_none_and_too_many_are_refused_before_any_call() -> None:
    fake = Fake()
    for names in (["nobody", "users"], [], ["http://127.0.0.1:9"], ["users", "prices", "stock", "more"]):
        with pytest.raises(UnknownService):
            once(off(services=3), fake, *(names or [""]))
    assert not fake.calls


@pytest.mark.parametrize(
    ("stock", "status", "word"),
    [
        (9.0, 207, "timeout"),
        (Reply(503, {}, b"Traceback: secret"), 207, "upstream_error"),
        (Reply(302, {"location": "http://169.254.169.254/"}, b""), 207, "upstream_error"),
        (Reply(404, {}, b"{}"), 207, "upstream_error"),
        (Reply(200, {}, b"<html>"), 207, "bad_payload"),
        (Reply(200, {}, b'{"n": NaN}'), 207, "bad_payload"),
        (Reply(200, {}, b"[" * 100_000), 207, "bad_payload"),
        (Reply(200, {}, b'{"a":1},"users":{"status":"ok"}'), 207, "bad_payload"),
        (ConnectionRefusedError("127.0.0.1:9"), 207, "unavailable"),
        (UpstreamFailed("too_large", started=True), 207, "too_large"),
        (asyncio.CancelledError(), 207, "failed"),
    ],
)
def test_a_failing_part_leaves_the_others_and_tells_nothing_internal(stock: Any, status: int, word: str) -> None:
    answer, took = once(off(deadline=1.0, partial=True), Fake(stock=lambda _: stock))
    assert answer.status == status and statuses(answer) == {"users": "ok", "prices": "ok", "stock": word}
    assert took <= 1.0
    body = json.loads(answer.json())
    assert set(body["parts"]["stock"]) <= {"status", "code"}
    assert not any(text in answer.json() for text in (b"secret", b"169.254", b"127.0.0.1", b"NaN"))


def test_504_when_all_time_out_502_otherwise_and_without_partial_no_data() -> None:
    slow, broken = (lambda _: 9.0), (lambda _: Reply(500, {}, b"{}"))
    settings = off(deadline=0.5, partial=True)
    assert once(settings, Fake(users=slow, prices=slow, stock=slow))[0].status == 504
    assert once(settings, Fake(users=slow, prices=slow, stock=broken))[0].status == 502
    answer, _ = once(off(deadline=0.5, partial=False), Fake(stock=slow))
    assert answer.status == 504 and statuses(answer) == {"stock": "timeout"}


def test_an_exception_that_nobody_foresaw_fails_one_part(caplog: pytest.LogCaptureFixture) -> None:
    answer, _ = once(off(partial=True), Fake(stock=lambda _: LookupError("planted")))
    assert statuses(answer) == {"users": "ok", "prices": "ok", "stock": "failed"} and b"planted" not in answer.json()
    assert "stock" in caplog.text


def test_the_deadline_is_the_clients_is_capped_and_is_passed_on() -> None:
    slow = Fake(stock=lambda _: 60.0)
    for asked, most in ((None, 1.0), (0.3, 0.3), (99.0, 5.0)):
        answer, took = once(off(deadline=1.0, partial=True), slow, deadline=asked)
        assert most * 0.9 <= took <= most and statuses(answer)["stock"] == "timeout"
        assert all(left <= most for left in slow.left[-3:])
    assert slow.cancelled["stock"] == 3
    answer, took = once(off(upstream_timeout=8), slow)  # off: only the limit of one call
    assert (answer.status, took, slow.left[-1]) == (504, 8.0, None)


def test_a_cancelled_request_takes_its_calls_with_it() -> None:
    async def scenario(gateway: Gateway) -> None:
        task = asyncio.create_task(gateway.aggregate(NAMES))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for settings in (off(), off(cache=1.0), off(hedge=0.01), off(bulkhead=1, breaker=1, shed=1)):
        fake = Fake(stock=lambda _: 9.0)
        run(settings, fake, scenario)
        assert fake.cancelled["stock"] == fake.calls["stock"] >= 1


def test_retries_help_within_the_deadline_and_only_before_the_first_byte() -> None:
    flaky = Fake(stock=lambda n: Reply(503, {}, b"") if n < 3 else 0.05)
    assert once(off(retries=2), flaky)[0].status == 200 and flaky.calls["stock"] == 3
    begun = Fake(stock=lambda _: UpstreamFailed("failed", started=True))
    once(off(retries=5), begun)
    assert begun.calls["stock"] == 1
    for never in (Reply(500, {}, b""), Reply(404, {}, b""), Reply(200, {}, b"x")):
        fake = Fake(stock=lambda _, never=never: never)
        once(off(retries=5), fake)
        assert fake.calls["stock"] == 1
    late = Fake(stock=lambda _: ConnectionResetError())
    _, took = once(off(retries=50, retry_wait=0.1, deadline=0.5), late)
    assert took < 0.5 and max(at for _, at in late.starts) < 0.5
    stuck = Fake(stock=lambda n: 9.0 if n == 1 else 0.05)
    assert once(off(retries=1, attempt=0.2, deadline=1.0), stuck)[0].status == 200


def test_an_attempt_says_how_long_it_may_take_itself() -> None:
    for deadline, attempt, said in ((1.0, 0.2, 0.2), (0.1, 0.2, 0.09), (None, 0.2, 0.2), (1.0, None, 0.98)):
        once(off(attempt=attempt, deadline=deadline), fake := Fake(), "stock")
        assert fake.left == [pytest.approx(said)]
    stuck = Fake(stock=lambda n: 9.0 if n < 3 else 0.05)
    once(off(attempt=0.4, retries=2, retry_wait=1e-6, deadline=1.0), stuck, "stock")
    assert stuck.left == [pytest.approx(0.4), pytest.approx(0.4), pytest.approx(0.18, abs=1e-4)]


def test_the_retry_budget_holds_hedges_and_retries_together() -> None:
    async def scenario(gateway: Gateway) -> None:
        for _ in range(300):
            await gateway.aggregate(["stock"])

    without, with_budget = Fake(stock=lambda _: Reply(503, {}, b"")), Fake(stock=lambda _: Reply(503, {}, b""))
    run(off(retries=3), without, scenario)
    run(off(retries=3, retry_budget=0.1), with_budget, scenario)
    assert without.calls["stock"] == 1200 and 325 <= with_budget.calls["stock"] <= 335
    slow = Fake(stock=lambda _: 0.3)
    run(off(hedge=0.1, retries=3, retry_budget=0.1), slow, scenario)
    assert 325 <= slow.calls["stock"] <= 335


def test_a_hedge_takes_the_first_good_answer_and_cancels_the_other() -> None:
    fake = Fake(stock=lambda n: 5.0 if n == 1 else 0.05)
    answer, took = once(off(hedge=0.1), fake, "stock")
    assert (answer.status, took, fake.calls["stock"], fake.cancelled["stock"]) == (200, 0.15, 2, 1)
    fake = Fake(stock=lambda n: 0.2 if n == 1 else Reply(500, {}, b""))  # the second fails first
    assert once(off(hedge=0.1), fake, "stock")[0].status == 200
    fake = Fake()
    assert once(off(hedge=0.1), fake)[0].status == 200 and fake.calls.total() == 3  # fast: no hedge


def test_the_breaker_keeps_calls_from_a_dead_upstream_and_finds_it_again() -> None:
    async def scenario(gateway: Gateway) -> list[tuple[float, str]]:
        seen = []
        while now() < 8:
            seen.append((now(), statuses(await gateway.aggregate(NAMES))["stock"]))
            await asyncio.sleep(0.1 - now() % 0.1)
        return seen

    fake = Fake(stock=lambda _: 9.0 if now() < 4 else 0.05)
    seen = run(off(deadline=0.4, partial=True, breaker=3, breaker_rest=1.0), fake, scenario)
    dead = [at for name, at in fake.starts if name == "stock" and at < 4]
    assert 3 <= len(dead) <= 6 and Counter(word for at, word in seen if at < 4)["circuit_open"] > 15
    assert all(word == "ok" for at, word in seen if at > 5.5)


def test_clients_in_a_hurry_cannot_open_the_breaker() -> None:
    async def scenario(gateway: Gateway) -> str:
        for _ in range(20):
            await gateway.aggregate(["stock"], 0.001)
        return gateway.upstreams["stock"].breaker.state

    settings = off(deadline=1.0, breaker=3)
    assert run(settings, Fake(stock=lambda _: 0.1), scenario) == "closed"


def test_a_404_is_a_sign_of_life() -> None:
    async def scenario(gateway: Gateway) -> str:
        for _ in range(20):
            await gateway.aggregate(["stock"])
        return gateway.upstreams["stock"].breaker.state

    assert run(off(breaker=3), Fake(stock=lambda _: Reply(404, {}, b"{}")), scenario) == "closed"
    assert run(off(breaker=3), Fake(stock=lambda _: Reply(500, {}, b"{}")), scenario) == "open"


def test_a_slow_upstream_fills_its_own_bulkhead_only() -> None:
    async def scenario(gateway: Gateway) -> list:
        async def one(number: int) -> Any:
            await asyncio.sleep(number * 0.01)
            return await gateway.aggregate(["stock"]), await gateway.aggregate(["users"])

        return await asyncio.gather(*[one(number) for number in range(100)])

    fake = Fake(stock=lambda _: 9.0)
    pairs = run(off(deadline=1.0, bulkhead=5, bulkhead_queue=0), fake, scenario)
    assert all(statuses(fast) == {"users": "ok"} for _, fast in pairs)
    assert Counter(statuses(slow)["stock"] for slow, _ in pairs).keys() == {"timeout", "busy"}
    assert fake.calls["stock"] <= 10


def test_shedding_refuses_at_the_door_and_the_line_respects_the_deadline() -> None:
    async def scenario(gateway: Gateway) -> list:
        return [
            (answer.status, took)
            for answer, took in await asyncio.gather(*[timed(gateway.aggregate(["stock"])) for _ in range(10)])
        ]

    async def timed(work: Any) -> tuple[Any, float]:
        return await work, now()

    fake = Fake(stock=lambda _: 0.3)
    seen = run(off(shed=2, shed_queue=5, deadline=0.5), fake, scenario)
    assert seen[:2] == [(200, 0.3)] * 2 and seen[7:] == [(503, 0.0)] * 3  # at the door
    assert {status for status, _ in seen[4:7]} == {503} and all(took <= 0.5 for _, took in seen)
    assert fake.calls["stock"] == 4


def test_cache_and_single_flight_save_calls_and_off_means_off() -> None:
    async def scenario(gateway: Gateway) -> None:
        await asyncio.gather(*[gateway.aggregate(NAMES) for _ in range(20)])
        await gateway.aggregate(NAMES)

    on, without = Fake(), Fake()
    run(off(cache=1.0), on, scenario)
    run(off(), without, scenario)
    assert set(on.calls.values()) == {1} and set(without.calls.values()) == {21}


def test_what_belongs_to_one_user_is_neither_kept_nor_shared() -> None:
    async def scenario(gateway: Gateway) -> None:
        personal = [gateway.aggregate(["users"], headers={"authorization": f"Bearer {n}"}) for n in range(3)]
        await asyncio.gather(*personal)
        await asyncio.gather(*[gateway.aggregate(["users"], tenant=tenant) for tenant in "aabb"])

    fake = Fake()
    run(off(cache=1.0), fake, scenario)
    assert fake.calls["users"] == 5


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize(
    ("said", "calls"),
    [
        ([], 1),
        (["public, max-age=0"], 1),  # how long is the operator's to say
        (["x-private-label=1"], 1),
        (["no-store"], 5),
        (["max-age=60, Private"], 5),
        (['public, no-cache="set-cookie"'], 5),
        (["max-age=60", "no-store"], 5),
    ],
)
def test_what_an_upstream_marks_as_not_for_others_is_neither_kept_nor_shared(
    said: list[str], calls: int, status: int
) -> None:
    async def scenario(gateway: Gateway) -> None:
        await asyncio.gather(*[gateway.aggregate(["stock"]) for _ in range(3)])
        assert now() <= 0.03  # who has waited for an answer that is not theirs asks at once, and not one by one
        for _ in range(2):
            await gateway.aggregate(["stock"])

    headers = CIMultiDict((("cache-control"), one) for one in said)
    run(off(cache=1.0, deadline=1.0), fake := Fake(stock=lambda _: Reply(status, headers, b"{}")), scenario)
    assert fake.calls["stock"] == calls


def test_a_follower_outlives_the_shorter_deadline_of_the_leader() -> None:
    async def scenario(gateway: Gateway) -> Any:
        leader = asyncio.create_task(gateway.aggregate(["stock"], 0.1))
        await asyncio.sleep(0.01)
        follower = await gateway.aggregate(["stock"], 1.0)
        return (await leader).status, follower.status, now()

    assert run(off(cache=1.0, deadline=1.0), Fake(stock=lambda _: 0.3), scenario) == (504, 200, 0.39)


def test_the_breaker_hears_of_timeouts_behind_the_cache_too() -> None:
    async def scenario(gateway: Gateway) -> str:
        for _ in range(3):
            await gateway.aggregate(["stock"])
        return gateway.upstreams["stock"].breaker.state

    assert run(off(cache=1.0, deadline=0.2, breaker=3), Fake(stock=lambda _: 9.0), scenario) == "open"


def test_the_rate_limit_is_the_tenants() -> None:
    async def scenario(gateway: Gateway) -> list:
        return [(await gateway.aggregate(["users"], tenant=tenant)).status for tenant in "aaab"]

    assert run(off(rate=2), Fake(), scenario) == [200, 200, 429, 200]


# Settings


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"upstreams": {}}, "upstreams"),
        ({"upstreams": {"a b": "http://x"}}, "a b"),
        ({"upstreams": {"a": "ftp://x"}}, "ftp://x"),
        ({"upstreams": {"a": "http://u:p@x"}}, "u:p@x"),
        ({"upstreams": {"a": "http://x:99999"}}, "99999"),
        ({"upstreams": {"a": "http://x/y?key=1"}}, "query"),
        ({"upstreams": "http://x"}, "upstreams"),
        ({"deadline": -1}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
        ({"deadline": 9.0}, "deadline_max"),
        ({"bulkhead": 1.5}, "bulkhead"),
        ({"bulkhead": 0}, "bulkhead"),
        ({"partial": 1}, "partial"),
        ({"services": None}, "services"),
        ({"keys": {"a": 1}}, "keys"),
    ],
)
def test_settings_refuse_what_makes_no_sense_and_name_it(given: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        Settings(**{"upstreams": {"a": "http://127.0.0.1:9"}} | given)
    assert str(caught.value).count(". ") == 0 and str(caught.value).endswith(".")


def test_settings_from_the_environment() -> None:
    text = {
        "GATEWAY_UPSTREAMS": '{"a": "http://127.0.0.1:9/x"}',
        "GATEWAY_CACHE": "off",
        "GATEWAY_DEADLINE": "0.5",
        "HOME": "/",
    }
    settings = Settings.from_environment(text)
    assert (dict(settings.upstreams), settings.cache, settings.deadline) == ({"a": "http://127.0.0.1:9/x"}, None, 0.5)
    for extra in (
        {"GATEWAY_CASH": "1"},
        {"GATEWAY_CACHE": "often"},
        {"GATEWAY_BREAKER": "-1"},
        {"GATEWAY_UPSTREAMS": ""},
    ):
        with pytest.raises(
            ValueError, match=next(iter(extra)).removeprefix("GATEWAY_").lower()[:5] + "|" + next(iter(extra))
        ):
            Settings.from_environment(text | extra)
    with pytest.raises(ValueError, match="GATEWAY_UPSTREAMS"):
        Settings.from_environment({})


# The application, over real sockets


@pytest.fixture(scope="module")
def upstream() -> Iterator[servers.Upstream]:
    with servers.start_upstream(name="gateway test upstream") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: servers.Upstream) -> Iterator[servers.Server]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()[1]
    paths = {"item": "/item/1", "slow": "/stall", "error": "/status/500", "big": "/big/3000000", "bomb": "/bomb/150000000",
             "redirect": "/redirect/1", "html": "/big/100", "root": ""}  # fmt: skip
    registry = {name: upstream.url + path for name, path in paths.items()} | {"dead": f"http://127.0.0.1:{dead}"}
    settings = Settings(upstreams=registry, deadline=0.5, cache=None, breaker=None)
    with servers.serve(create_app(settings), in_process=True, name="gateway under test") as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> None:
    if "upstream" in request.fixturenames:
        request.getfixturevalue("upstream").reset(seed=1)


def get(url: str, **how: Any) -> tuple[int, Any, Any]:
    async def main() -> tuple[int, Any, Any]:
        async with aiohttp.ClientSession() as session, session.request(how.pop("method", "GET"), url, **how) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text and "json" in answer.content_type else text, answer.headers

    return asyncio.run(main())


def test_live_parts_of_every_kind(gateway: servers.Server) -> None:
    names = ("item", "slow", "error", "big", "redirect", "html", "dead", "bomb")
    status, body, headers = get(f"{gateway.url}/aggregate?" + "&".join(f"services={name}" for name in names))
    assert status == 207 and headers["content-type"] == "application/json"
    assert {name: part["status"] for name, part in body["parts"].items()} == {
        "item": "ok", "slow": "timeout", "error": "upstream_error", "big": "too_large", "redirect": "upstream_error",
        "html": "bad_payload", "dead": "unavailable", "bomb": "too_large"}  # fmt: skip
    assert body["parts"]["item"]["data"]["id"] == "1" and "127.0.0.1" not in json.dumps(body)


@pytest.mark.parametrize(
    "query",
    [
        "", "services=", "services=http://127.0.0.1:1/", "services=item,dead", "services=ITEM", "services=item&deadline=0",
        "services=item&deadline=nan", "services=item&deadline=inf", "services=item&deadline=x", "services=%ff",
        "services=item&" * 200,
    ],
)  # fmt: skip
def test_live_bad_queries_are_422_and_ask_nobody(
    gateway: servers.Server, upstream: servers.Upstream, query: str
) -> None:
    status, body, _ = get(f"{gateway.url}/aggregate?{query}")
    assert status == 422 and set(body) == {"error"} and upstream.stats()["requests"] == 0


def test_live_one_session_for_all_requests(gateway: servers.Server, upstream: servers.Upstream) -> None:
    for _ in range(20):
        assert get(f"{gateway.url}/aggregate?services=item&services=item")[0] == 200
    seen = upstream.stats()
    assert seen["by_endpoint"] == {"item": 20} and seen["connections"] <= 1


def test_live_a_client_that_leaves_takes_the_calls_with_it(gateway: servers.Server, upstream: servers.Upstream) -> None:
    async def main() -> dict:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /aggregate?services=slow&deadline=5 HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(5):
            while not upstream.stats()["in_flight"]:
                await asyncio.sleep(0.01)
        writer.close()
        start = time.monotonic()
        seen = await upstream.settled(within=3)
        assert time.monotonic() - start < 3
        return seen

    seen = asyncio.run(main())
    assert (seen["aborted"], seen["in_flight"], seen["completed"]) == (1, 0, 0)


def test_live_proxy_passes_on_what_is_asked_and_nothing_beside(gateway: servers.Server) -> None:
    assert get(f"{gateway.url}/proxy/root/item/7?x=1")[:2] == (200, {"id": "7", "price": 1346})
    assert get(f"{gateway.url}/proxy/item")[1]["id"] == "1"
    assert get(f"{gateway.url}/proxy/nobody/x")[0] == 404
    assert get(f"{gateway.url}/proxy/root/status/418")[0] == 418
    assert get(f"{gateway.url}/proxy/root/charge", method="POST", data=b"{}")[0] == 201


@pytest.mark.parametrize(
    "path",
    ["%2e%2e/stats", "item/%2e%2e/%2e%2e/stats", "..%2fstats", "item%5c..%5cx", "a%00b", "./x", "..;/stats",
     "x/..%3Ba=1/stats", "%2e%2e;/stats", ".;/x"],
)  # fmt: skip
def test_live_proxy_stays_below_the_upstreams_own_path(
    gateway: servers.Server, upstream: servers.Upstream, path: str
) -> None:
    async def main() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)  # a client would tidy the path
        writer.write(f"GET /proxy/item/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    assert b" 422 " in asyncio.run(main()).splitlines()[0] and upstream.stats()["requests"] == 0


def test_live_metrics_have_templates_and_names_only(gateway: servers.Server) -> None:
    get(f"{gateway.url}/secret-path-42")
    get(f"{gateway.url}/proxy/root/item/secret-43")
    get(f"{gateway.url}/proxy/secret-44/x")
    _, text, _ = get(f"{gateway.url}/metrics")
    assert "secret" not in text
    for line in (
        'gateway_requests_total{route="unmatched",status="404"}',
        'route="/proxy/{name}/{path}"',
        'upstream="root"',
    ):
        assert line in text


def test_live_methods_ids_and_the_errors_of_the_gateway_itself(gateway: servers.Server) -> None:
    assert get(f"{gateway.url}/aggregate?services=item", method="POST")[0] == 405
    status, body, headers = get(f"{gateway.url}/nowhere", headers={"x-request-id": "my-id.7"})
    assert status == 404 and set(body) == {"error"} and headers["x-request-id"] == "my-id.7"
    assert get(f"{gateway.url}/health", headers={"x-request-id": "bad id\t"})[2]["x-request-id"] != "bad id\t"
    assert get(f"{gateway.url}/ready")[0] == get(f"{gateway.url}/ready", method="HEAD")[0] == 200


def test_live_proxy_keeps_bodies_within_the_limit_and_half_an_answer_looks_like_one(upstream: servers.Upstream) -> None:
    settings = Settings(upstreams={"root": upstream.url}, body_bytes=100_000)
    with servers.serve(create_app(settings), in_process=True, name="gateway with small bodies") as server:
        assert get(f"{server.url}/proxy/root/charge", method="POST", data=bytes(200_000))[0] == 413
        assert get(f"{server.url}/proxy/root/big/200000")[0] == 502
        assert get(f"{server.url}/proxy/root/big/90000")[0] == 200


def test_what_the_client_says_of_itself_stays_outside_and_the_deadline_goes_on() -> None:
    seen: dict[str, dict[bytes, bytes]] = {}

    async def mirror(scope: Any, receive: Any, send: Any) -> None:
        seen[scope["path"]] = dict(scope["headers"])
        fields = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"{}"})

    with servers.serve(mirror, in_process=True, name="mirror") as upstream:
        settings = Settings(
            upstreams={"a": f"{upstream.url}/aggregated", "b": upstream.url}, keys={"k": "acme"}, cache=None
        )
        with servers.serve(create_app(settings), in_process=True, name="gateway with a mirror") as server:
            said = {"x-api-key": "k", "x-tenant-id": "other", "cookie": "session=1", "authorization": "Bearer t",
                    "x-deadline-ms": "300", "x-request-id": "abc", "range": "bytes=0-1"}  # fmt: skip
            assert get(f"{server.url}/aggregate?services=a&deadline=2", headers=said)[0] == 200
            assert get(f"{server.url}/proxy/b/proxied", headers=said)[0] == 200
    for path in ("/aggregated", "/proxied"):
        known = seen[path]
        assert (known[b"x-tenant-id"], known[b"authorization"], known[b"x-request-id"]) == (
            b"acme",
            b"Bearer t",
            b"abc",
        )
        assert not {b"cookie", b"x-api-key"} & known.keys() and 200 <= int(known[b"x-deadline-ms"]) <= 300
    assert b"range" not in seen["/aggregated"]


def test_upstreams_at_one_address_cannot_take_each_others_connections(upstream: servers.Upstream) -> None:
    paths = {"hung": "/stall", "stuck": "/stall", "well": "/item/1"}
    registry = {name: upstream.url + path for name, path in paths.items()}
    settings = Settings.naive(
        registry, shared_client=True, bulkhead=2, deadline=4.0, connections_per_host=4, connections=4
    )
    with servers.serve(create_app(settings), in_process=True, name="gateway with a shared address") as server:

        async def main() -> int:
            async with aiohttp.ClientSession() as session:
                held = [
                    asyncio.create_task(session.get(f"{server.url}/aggregate?services={name}"))
                    for name in ("hung", "stuck") * 2
                ]
                async with asyncio.timeout(3.5):
                    while upstream.stats()["in_flight"] < 4:
                        await asyncio.sleep(0.01)
                async with session.get(f"{server.url}/aggregate?services=well&deadline=3") as answer:
                    status = answer.status
                for one in held:
                    one.cancel()
                await asyncio.gather(*held, return_exceptions=True)
                return status

        assert asyncio.run(main()) == 200


def test_public_only_connects_to_no_private_address(upstream: servers.Upstream) -> None:
    settings = Settings(upstreams={"here": upstream.url, "name": f"http://localhost:{upstream.port}"}, public_only=True)
    with servers.serve(create_app(settings), in_process=True, name="gateway to the public") as server:
        _, body, _ = get(f"{server.url}/aggregate?services=here&services=name")
        get(f"{server.url}/proxy/here/item/1")
    assert {part["status"] for part in body["parts"].values()} == {"blocked"}
    assert (upstream.stats()["requests"], upstream.stats()["connections"]) == (0, 0)


def test_the_access_log_is_json_and_off_by_default(
    upstream: servers.Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    access = logging.getLogger("gateway.access")
    before = access.level, list(access.handlers)
    for wanted in (False, True):
        settings = Settings(upstreams={"item": f"{upstream.url}/item/1"}, access_log=wanted)
        with servers.serve(create_app(settings), in_process=True, name="gateway with a log") as server:
            get(f"{server.url}/aggregate?services=item", headers={"x-request-id": "abc"})
            get(f"{server.url}/a%0Ab")
    assert (access.level, access.handlers) == before  # it is left as it was
    lines = [json.loads(record.message) for record in caplog.records if record.name == "gateway.access"]
    assert [(line["route"], line["status"]) for line in lines] == [("/aggregate", 200), ("unmatched", 404)]
    assert lines[0]["id"] == "abc" and lines[1]["path"] == "/a\nb" and "\n" not in caplog.messages[-1]


def test_keys_decide_who_may_ask() -> None:
    settings = Settings(upstreams={"a": "http://127.0.0.1:9"}, keys={"k1": "tenant"})
    with servers.serve(create_app(settings), in_process=True, name="gateway with keys") as server:
        assert get(f"{server.url}/aggregate?services=a")[0] == 401
        assert get(f"{server.url}/proxy/a/x", headers={"x-api-key": "k2"})[0] == 401
        assert get(f"{server.url}/aggregate?services=a", headers={"x-api-key": "k1"})[0] == 502
        assert get(f"{server.url}/health")[0] == 200


def start_uvicorn(port: int, **settings: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "uvicorn", "support.gateway.app:app", "--port", str(port), "--no-access-log"]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")} | settings
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM")
def test_uvicorn_runs_it_as_it_stands_and_sigterm_drains_it(upstream: servers.Upstream) -> None:
    registry = json.dumps({"item": f"{upstream.url}/item/1", "slow": f"{upstream.url}/delay/0.9"})
    port = free_port()
    child = start_uvicorn(port, GATEWAY_UPSTREAMS=registry, GATEWAY_DRAIN="0.6", GATEWAY_DEADLINE="3")
    url = f"http://127.0.0.1:{port}"

    async def main() -> None:
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):

            async def ask(path: str) -> int:
                async with session.get(url + path) as answer:
                    await answer.read()
                    return answer.status

            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    assert await ask("/ready") == 200
                    break
                await asyncio.sleep(0.02)
            assert await ask("/aggregate?services=item") == 200
            slow = asyncio.create_task(ask("/aggregate?services=slow"))
            while not upstream.stats()["in_flight"]:
                await asyncio.sleep(0.01)
            child.send_signal(signal.SIGTERM)
            while await ask("/ready") == 200:
                await asyncio.sleep(0.01)
            assert await ask("/aggregate?services=item") == 200  # not ready, and still serving
            assert await slow == 200  # in flight when the signal came
            with pytest.raises(aiohttp.ClientConnectorError):
                while True:
                    await ask("/health")

    try:
        asyncio.run(main())
        log, _ = child.communicate(timeout=10)
        assert "Traceback" not in log and "shutdown complete" in log
    finally:
        child.kill()
        child.wait()


def test_uvicorn_shows_the_access_log_without_any_setting_up() -> None:
    port = free_port()
    child = start_uvicorn(port, GATEWAY_UPSTREAMS='{"a": "http://127.0.0.1:9"}', GATEWAY_ACCESS_LOG="true")

    async def main() -> None:
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    async with session.get(f"http://127.0.0.1:{port}/health", headers={"x-request-id": "seen"}):
                        return
                await asyncio.sleep(0.02)

    try:
        asyncio.run(main())
        child.terminate()
        log, _ = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [(line["id"], line["route"], line["status"]) for line in lines] == [("seen", "/health", 200)]


def test_uvicorn_without_settings_says_what_is_missing() -> None:
    child = start_uvicorn(free_port())
    try:
        log, _ = child.communicate(timeout=20)
    finally:
        child.kill()
    assert child.returncode and "Set GATEWAY_UPSTREAMS" in log and "Traceback" not in log
