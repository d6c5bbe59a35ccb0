"""The practice upstream, over real sockets: what it answers, and that what it counts is true."""

import asyncio
import gzip
import json
import socket
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import psutil
import pytest

from support import servers
from support.upstream import MAX_ARRIVALS, Run, gzip_pieces, queue_up


@pytest.fixture(scope="module")
def running_upstream() -> Iterator[servers.Upstream]:
    with servers.start_upstream(name="test upstream") as upstream:
        yield upstream


@pytest.fixture
def upstream(running_upstream: servers.Upstream) -> servers.Upstream:
    running_upstream.reset(seed=1)
    return running_upstream


@asynccontextmanager
async def client(limit: int = 0) -> Any:
    connector = aiohttp.TCPConnector(limit=limit)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        yield session


def run(work: Callable[[aiohttp.ClientSession], Awaitable[Any]], limit: int = 0) -> Any:
    """Run `work` with a client session, within ten seconds."""
    async def main() -> Any:
        async with asyncio.timeout(10), client(limit) as session:
            return await work(session)
    return asyncio.run(main())


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], Any]:
    """Ask once, on a connection of its own: status, headers and content."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status, fields, body = answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        status, fields, body = error.code, dict(error.headers), error.read()
    return status, fields, json.loads(body) if body else None


async def until(upstream: servers.Upstream, name: str, value: int) -> dict[str, Any]:
    """Wait until a counter has that value, and return the counters. Fails when it never has."""
    deadline = time.monotonic() + 10
    while (seen := upstream.stats())[name] != value:
        assert time.monotonic() < deadline, f"{name} is {seen[name]}, not {value}"
        await asyncio.sleep(0.01)
    return seen


# What it counts


def test_all_counts_are_exact_for_fifty_at_once(upstream: servers.Upstream) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async def one() -> None:
            async with session.get(upstream.url_for("/delay/0.5")) as answer:
                assert (await answer.json()) == {"seconds": 0.5}
        await asyncio.gather(*(one() for _ in range(50)))

    run(work)
    seen = upstream.stats()
    arrivals = seen.pop("arrivals")
    assert seen == {"requests": 50, "by_endpoint": {"delay": 50}, "completed": 50, "in_flight": 0,
                    "peak_in_flight": 50, "aborted": 0, "connections": 50, "charges": 0}
    assert len(arrivals) == 50 and arrivals == sorted(arrivals) and arrivals[0] > 0


def test_a_limited_client_is_seen_as_limited(upstream: servers.Upstream) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        urls = [upstream.url_for("/delay/0.02", i=i) for i in range(20)]
        await asyncio.gather(*map(session.get, urls))

    run(work, limit=5)
    seen = upstream.stats()
    assert (seen["requests"], seen["peak_in_flight"], seen["connections"]) == (20, 5, 5)


def test_a_kept_connection_counts_once_and_one_per_call_each_time(
        upstream: servers.Upstream) -> None:
    async def kept(session: aiohttp.ClientSession) -> None:
        for _ in range(5):
            async with session.get(upstream.url_for("/item/7")) as answer:
                await answer.read()  # aiohttp closes a connection with an unread body

    run(kept)
    assert upstream.stats()["connections"] == 1
    for _ in range(5):
        ask(upstream.url_for("/item/7"))
    assert upstream.stats()["connections"] == 6


def test_asking_for_the_counters_changes_none(upstream: servers.Upstream) -> None:
    first = upstream.stats()
    assert upstream.stats() == first
    assert (first["requests"], first["connections"], first["arrivals"]) == (0, 0, [])


def test_a_connection_without_a_request_counts(upstream: servers.Upstream) -> None:
    with socket.create_connection(("127.0.0.1", upstream.port)):
        seen = asyncio.run(until(upstream, "connections", 1))
    assert seen["requests"] == 0


def test_a_connection_older_than_the_reset_is_not_counted(upstream: servers.Upstream) -> None:
    with socket.create_connection(("127.0.0.1", upstream.port)) as older:
        asyncio.run(until(upstream, "connections", 1))
        upstream.reset()
        older.sendall(b"GET /stats HTTP/1.1\r\nhost: x\r\n\r\n")
        assert older.recv(15) == b"HTTP/1.1 200 OK"
        assert upstream.stats()["connections"] == 0


def test_reset_zeroes_everything(upstream: servers.Upstream) -> None:
    ask(upstream.url_for("/charge"), "POST")
    ask(upstream.url + "/nowhere")
    before = upstream.stats()
    assert before["charges"] == 1 and before["by_endpoint"] == {"charge": 1, "unknown": 1}
    upstream.reset()
    after = upstream.stats()
    assert not any(after.values()), after


@pytest.mark.parametrize("path", [
    "/delay/30", "/stall", "/limited?seconds=30&capacity=1", "/drip?bytes=100&seconds=30",
    "/status/500?delay=30", "/big/1000000000", "/contended?seconds=30"])
def test_a_client_that_leaves_is_counted_as_aborted(upstream: servers.Upstream, path: str) -> None:
    async def work(session: aiohttp.ClientSession) -> dict[str, Any]:
        async def get() -> None:
            async with session.get(upstream.url + path):
                await asyncio.sleep(30)  # the streams answer at once, and are not read

        tasks = [asyncio.create_task(get()) for _ in range(3)]
        await until(upstream, "in_flight", 3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return await upstream.settled()

    seen = run(work)
    assert (seen["requests"], seen["aborted"], seen["completed"], seen["in_flight"]) == (3, 3, 0, 0)


def test_a_request_belongs_to_the_run_in_which_it_arrived(upstream: servers.Upstream) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        task = asyncio.create_task(session.get(upstream.url_for("/stall")))
        await until(upstream, "in_flight", 1)
        upstream.reset()
        async with session.get(upstream.url_for("/item/1")):
            pass
        assert (upstream.stats()["in_flight"], upstream.stats()["peak_in_flight"]) == (0, 1)
        task.cancel()

    run(work)
    # The connection closed before run() returned; a request after it sees the count of its end.
    ask(upstream.url_for("/item/1"))
    assert upstream.stats()["aborted"] == 0


def test_the_list_of_arrivals_is_bounded() -> None:
    run_of_many = Run(1)
    for _ in range(MAX_ARRIVALS + 5):
        run_of_many.arrive("delay")
    assert len(run_of_many.arrivals) == MAX_ARRIVALS
    assert run_of_many.by_endpoint["delay"] == MAX_ARRIVALS + 5


# What it answers


def test_a_delay_is_never_shorter_than_asked(upstream: servers.Upstream) -> None:
    async def work(session: aiohttp.ClientSession) -> list[float]:
        took = []
        for i in range(40):
            seconds = 0.005 + i * 0.0001  # timers that round to milliseconds are caught
            start = time.perf_counter()
            async with session.get(upstream.url_for(f"/delay/{seconds}")):
                took.append(time.perf_counter() - start - seconds)
        return took

    assert min(run(work)) > 0


@pytest.mark.parametrize("code", [200, 201, 204, 206, 304, 404, 418, 429, 500, 503, 599])
def test_status(upstream: servers.Upstream, code: int) -> None:
    status, _, content = ask(upstream.url_for(f"/status/{code}"))
    assert (status, content) == (code, None if code in (204, 304) else {"status": code})


def test_retry_after_comes_with_errors_only(upstream: servers.Upstream) -> None:
    assert ask(upstream.url_for("/status/503", retry_after=4))[1]["retry-after"] == "4"
    assert "retry-after" not in ask(upstream.url_for("/status/200", retry_after=4))[1]


def flaky_statuses(upstream: servers.Upstream, path: str, calls: int, **query: object) -> list[int]:
    return [ask(upstream.url_for(path, **query))[0] for _ in range(calls)]


def test_flaky_fails_first_for_each_key_and_repeats_after_reset(upstream: servers.Upstream) -> None:
    for _ in range(2):
        assert flaky_statuses(upstream, "/flaky/2", 4, key="a") == [503, 503, 200, 200]
        assert flaky_statuses(upstream, "/flaky/1", 2, key="b", status=429) == [429, 200]
        upstream.reset()


def test_random_failures_follow_the_seed(upstream: servers.Upstream) -> None:
    first = flaky_statuses(upstream, "/flaky", 30, p=0.5)
    upstream.reset()
    assert flaky_statuses(upstream, "/flaky", 30, p=0.5) == first
    upstream.reset(seed=2)
    assert flaky_statuses(upstream, "/flaky", 30, p=0.5) != first
    upstream.reset(seed=1)
    assert flaky_statuses(upstream, "/flaky", 30, p=0.5) == first
    assert set(first) == {200, 503}
    assert set(flaky_statuses(upstream, "/flaky", 5, p=0)) == {200}
    assert set(flaky_statuses(upstream, "/flaky", 5, p=1)) == {503}


def test_drip_sends_the_first_piece_long_before_the_last(upstream: servers.Upstream) -> None:
    async def work(session: aiohttp.ClientSession) -> int:
        async with session.get(upstream.url_for("/drip", bytes=1_003, seconds=0.4)) as answer:
            assert answer.content_length == 1_003
            first = await answer.content.readany()
            assert 0 < len(first) < 1_003
            assert upstream.stats()["in_flight"] == 1
            return len(first) + len(await answer.read())

    assert run(work) == 1_003
    assert upstream.stats()["completed"] == 1


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_001])
def test_big_has_exactly_that_size(upstream: servers.Upstream, size: int) -> None:
    async def work(session: aiohttp.ClientSession) -> int:
        async with session.get(upstream.url_for(f"/big/{size}")) as answer:
            return len(await answer.read())

    assert run(work) == size


def test_big_is_sent_no_faster_than_it_is_read(upstream: servers.Upstream) -> None:
    process = psutil.Process(upstream.pid)
    before = process.memory_info().rss
    with socket.create_connection(("127.0.0.1", upstream.port)) as slow:
        slow.sendall(b"GET /big/1073741824 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        for _ in range(20):  # others are served meanwhile
            assert ask(upstream.url_for("/item/1"))[0] == 200
        assert upstream.stats()["in_flight"] == 1
        assert process.memory_info().rss - before < 16e6
    assert asyncio.run(upstream.settled())["aborted"] == 1


@pytest.mark.parametrize("size", [0, 1, 1_000_000, 20_000_001])
def test_bomb_is_small_and_unpacks_to_that_size(upstream: servers.Upstream, size: int) -> None:
    async def work(session: aiohttp.ClientSession) -> bytes:
        async with session.get(upstream.url_for(f"/bomb/{size}")) as answer:
            assert answer.headers["content-encoding"] == "gzip"
            return await answer.read()

    wire = run(work)
    assert len(wire) < 64 + size / 900
    assert gzip.decompress(wire) == bytes(size)


def test_bomb_is_built_in_little_memory() -> None:
    tracemalloc.start()
    try:
        wire = sum(len(piece) for piece in gzip_pieces(1 << 24))
        assert wire < 20_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_redirects_lead_where_they_say(upstream: servers.Upstream) -> None:
    assert ask(upstream.url_for("/redirect/3"))[::2] == (200, {"redirects": "done"})
    assert upstream.stats()["requests"] == 4
    assert ask(upstream.url_for("/redirect", to=upstream.url + "/item/5"))[2]["id"] == "5"


def test_a_redirect_cannot_smuggle_a_header(upstream: servers.Upstream) -> None:
    async def work(session: aiohttp.ClientSession) -> dict[str, str]:
        url = upstream.url + "/redirect?to=/x%0d%0aset-cookie:%20a=b%C3%A9"
        async with session.get(url, allow_redirects=False) as answer:
            assert answer.status == 302
            return dict(answer.headers)

    fields = {name.lower(): value for name, value in run(work).items()}
    assert "set-cookie" not in fields
    assert fields["location"] == "/x%0D%0Aset-cookie:%20a=b%C3%A9"


def test_a_charge_is_made_before_the_answer_and_once_per_key(upstream: servers.Upstream) -> None:
    url, keyed = upstream.url_for("/charge", delay=30), {"Idempotency-Key": "k"}

    async def impatient(session: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        call = asyncio.create_task(session.post(url, headers=headers))
        await until(upstream, "in_flight", 1)
        call.cancel()
        await upstream.settled()

    async def work(session: aiohttp.ClientSession) -> None:
        for _ in range(3):
            await impatient(session, {})
        assert upstream.stats()["charges"] == 3
        await impatient(session, keyed)
        assert upstream.stats()["charges"] == 4
        for _ in range(2):  # no second delay, no second charge
            async with session.post(url, headers=keyed) as answer:
                assert answer.status == 200
                assert await answer.json() == {"charge": 4, "replayed": True}

    run(work)
    assert ask(upstream.url_for("/charge"), "POST")[::2] == (201, {"charge": 5, "replayed": False})
    seen = upstream.stats()
    assert (seen["charges"], seen["requests"], seen["aborted"]) == (5, 7, 4)


def test_refused_charges_charge_nothing(upstream: servers.Upstream) -> None:
    assert ask(upstream.url_for("/charge"))[0] == 405
    assert ask(upstream.url_for("/charge", delay="soon"), "POST")[0] == 400
    assert upstream.stats()["charges"] == 0


def test_limited_capacity_is_first_come_first_served() -> None:
    ends: list[float] = []
    # Two workers: each takes the next piece of work when it is free, in the order of arrival.
    planned = [queue_up(ends, 2, 0.0, seconds) for seconds in (3, 1, 1, 5, 1)]
    assert planned == [(3, 0), (1, 1), (2, 2), (7, 3), (4, 4)]
    assert queue_up(ends, 2, 3.5, 1) == (5, 2)  # the work that ended before 3.5 is forgotten
    assert queue_up(ends, 2, 100.0, 1) == (101, 0)


def test_limited_requests_queue_and_keys_have_their_own_queue(upstream: servers.Upstream) -> None:
    async def work(session: aiohttp.ClientSession) -> list[int]:
        finished: list[int] = []

        url = upstream.url_for("/limited", seconds=0.2, capacity=2, key="a")

        async def one() -> None:
            async with session.get(url) as answer:
                finished.append((await answer.json())["ahead"])

        await asyncio.gather(*(one() for _ in range(6)))
        return finished

    finished = run(work)
    assert sorted(finished) == [0, 1, 2, 3, 4, 5]
    assert [sorted(finished[i:i + 2]) for i in (0, 2, 4)] == [[0, 1], [2, 3], [4, 5]]
    assert ask(upstream.url_for("/limited", seconds=0, capacity=2, key="b"))[2] == {"ahead": 0}


def test_one_long_request_stalls_those_behind_it_on_the_same_key(
        upstream: servers.Upstream) -> None:
    async def work(session: aiohttp.ClientSession) -> list[str]:
        finished: list[str] = []

        async def one(name: str, seconds: float, key: str) -> None:
            url = upstream.url_for("/limited", seconds=seconds, capacity=1, key=key)
            async with session.get(url) as answer:
                await answer.read()
            finished.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(one("long", 0.7, "a"))
            await until(upstream, "in_flight", 1)
            group.create_task(one("behind it", 0, "a"))
            await until(upstream, "in_flight", 2)
            await one("elsewhere", 0, "b")
        return finished

    # "behind it" asked for no time at all, and could not be done before "long" was. The two answers may
    # reach a busy client at once, in either order.
    first, *later = run(work)
    assert (first, sorted(later)) == ("elsewhere", ["behind it", "long"])


def test_contended_requests_slow_each_other_down(upstream: servers.Upstream) -> None:
    url = upstream.url_for("/contended", seconds=0.1, alpha=0.5, beta=0.25, key="a")
    times = {1: 0.1, 2: 0.1 * (1 + 0.5 + 0.5), 3: 0.1 * (1 + 1.0 + 1.5), 4: 0.1 * (1 + 1.5 + 3.0)}

    async def work(session: aiohttp.ClientSession) -> list[tuple[int, float]]:
        async def one() -> tuple[int, float]:
            start = time.perf_counter()
            async with session.get(url) as answer:
                return (await answer.json())["there"], time.perf_counter() - start

        return await asyncio.gather(*(one() for _ in range(4)))

    finished = sorted(run(work))
    assert [there for there, _ in finished] == [1, 2, 3, 4]
    assert all(took > times[there] for there, took in finished)
    assert finished[0][1] < times[3]  # the first one does not wait for those that come after it
    assert ask(url)[2] == {"there": 1}  # they have left
    assert ask(upstream.url_for("/contended", seconds=0, key="b"))[2] == {"there": 1}


def test_contended_requests_of_other_keys_and_of_clients_that_left_do_not_count(
        upstream: servers.Upstream) -> None:
    async def work(session: aiohttp.ClientSession) -> tuple[int, int]:
        async def there(seconds: float, key: str) -> int:
            url = upstream.url_for("/contended", seconds=seconds, key=key)
            async with session.get(url) as answer:
                return (await answer.json())["there"]

        waiting = asyncio.create_task(there(30, "a"))
        await until(upstream, "in_flight", 1)
        seen = await there(0, "b"), await there(0, "a")
        waiting.cancel()
        await asyncio.wait([waiting])
        await upstream.settled()
        return *seen, await there(0, "a")

    assert run(work) == (1, 2, 1)


def test_item_is_the_same_every_time(upstream: servers.Upstream) -> None:
    assert ask(upstream.url_for("/item/7"))[2] == ask(upstream.url_for("/item/7"))[2]
    assert ask(upstream.url_for("/item/7"))[2] != ask(upstream.url_for("/item/8"))[2]


# Bad input


@pytest.mark.parametrize(("path", "named"), [
    ("/delay", "seconds"), ("/delay/abc", "'abc'"), ("/delay/-1", "'-1'"), ("/delay/61", "60"),
    ("/delay/nan", "'nan'"), ("/delay/1/2", "'1/2'"), ("/status/700", "code"),
    ("/status/2.5", "whole number"), ("/status/200?delay=x", "delay"), ("/flaky", "p must"),
    ("/status/503?retry_after=soon", "'soon'"), ("/flaky/2?status=200", "status"),
    ("/flaky?p=2", "p must"), ("/drip?bytes=5", "seconds"), ("/big/1073741825", "1073741824"),
    ("/bomb/x", "bytes"), ("/redirect/101", "times"), ("/limited?second=1", "seconds"),
    ("/limited?seconds=1&capacity=0", "capacity"), ("/reset?seed=x", "seed"),
    ("/contended?alpha=1", "seconds"), ("/contended?seconds=1&beta=2", "beta"),
])
def test_bad_input_is_refused_in_one_sentence_that_names_it(
        upstream: servers.Upstream, path: str, named: str) -> None:
    status, _, content = ask(upstream.url + path)
    assert status == 400
    assert named in content["error"]
    assert content["error"].endswith(".") and ". " not in content["error"]


def test_an_unknown_path_names_itself_and_the_endpoints(upstream: servers.Upstream) -> None:
    status, _, content = ask(upstream.url + "/dely/1")
    assert status == 404
    assert "'/dely/1'" in content["error"] and "did you mean /delay?" in content["error"]
    assert "/limited" in content["error"] and len(content["endpoints"]) == 14
    assert "did you mean" not in ask(upstream.url)[2]["error"]


def test_url_for_refuses_an_unknown_path_and_encodes_the_query(
        upstream: servers.Upstream) -> None:
    with pytest.raises(ValueError, match="did you mean /charge"):
        upstream.url_for("/chrage")
    assert upstream.url_for("flaky/2", key="a b&c") == f"{upstream.url}/flaky/2?key=a+b%26c"
