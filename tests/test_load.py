"""The load generator against the practice upstream, whose own counters say what was sent."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from support import load, load_process, server_process, servers, theory
from tests.test_servers import ends, is_there, parent

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture(scope="module")
def running_upstream() -> Iterator[servers.Upstream]:
    with servers.start_upstream(name="upstream under load") as upstream:
        yield upstream
    servers.stop_all()


@pytest.fixture
def upstream(running_upstream: servers.Upstream) -> servers.Upstream:
    running_upstream.reset(seed=1)
    return running_upstream


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(20):
            return await work

    return asyncio.run(main())


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is true. Fails when it never is."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


# Closed loop


@pytest.mark.parametrize("concurrency", [1, 7, 130])
def test_a_closed_loop_keeps_as_many_in_flight_as_asked(upstream: servers.Upstream, concurrency: int) -> None:
    url = upstream.url_for("/delay/0.1")
    seen = run(load.closed_loop(url, concurrency=concurrency, requests=3 * concurrency))
    counted = upstream.stats()
    assert counted["peak_in_flight"] == counted["connections"] == concurrency
    assert counted["requests"] == seen.sent == seen.completed == 3 * concurrency
    assert seen.latencies.min() >= 0.1 and seen.failed == Counter() and seen.late == 0


def test_littles_law_between_the_server_and_the_client(upstream: servers.Upstream) -> None:
    concurrency, requests = 10, 120
    seen = run(load.closed_loop(upstream.url_for("/delay/0.05"), concurrency=concurrency, requests=requests))
    arrivals = upstream.stats()["arrivals"]
    # Each arrival after the first ten follows a completion.
    throughput = (requests - concurrency) / (arrivals[-1] - arrivals[0])
    assert throughput * seen.mean == pytest.approx(concurrency, rel=0.1)
    assert seen.rate == pytest.approx(throughput, rel=0.1)


@pytest.mark.parametrize("concurrency", [2, 24])
def test_a_limited_server_is_measured_at_its_capacity(upstream: servers.Upstream, concurrency: int) -> None:
    url = upstream.url_for("/limited", seconds=0.04, capacity=4, key=concurrency)
    seen = run(load.closed_loop(url, concurrency=concurrency, seconds=0.3, warm_up=0.3))
    assert seen.rate == pytest.approx(theory.throughput_bound(concurrency, 0.04, 100), rel=0.15)
    assert seen.mean == pytest.approx(theory.response_time_bound(concurrency, 0.04, 100), rel=0.15)


def test_the_warm_up_is_sent_and_not_counted(upstream: servers.Upstream) -> None:
    seen = run(load.closed_loop(upstream.url_for("/delay/0.01"), concurrency=3, requests=6, warm_up=0.2))
    assert seen.sent == seen.completed == 6
    assert upstream.stats()["requests"] >= 6 + 3
    assert seen.starts.min() >= 0


def test_requests_sent_in_time_are_waited_for(upstream: servers.Upstream) -> None:
    seen = run(load.closed_loop(upstream.url_for("/delay/0.4"), concurrency=4, seconds=0.1))
    assert seen.sent == seen.completed == 4 == upstream.stats()["completed"]
    assert seen.rate == pytest.approx(4 / seen.mean, rel=0.01)  # and not 4 / 0.1


# Open loop


def test_an_open_loop_does_not_give_way(upstream: servers.Upstream) -> None:
    seen = run(load.open_loop(upstream.url_for("/delay/1"), rate=150, seconds=0.3, spacing="even"))
    assert seen.sent == seen.completed == upstream.stats()["requests"] == 45
    assert upstream.stats()["peak_in_flight"] == 45
    assert seen.starts == pytest.approx(np.arange(45) / 150, abs=1e-6)


def test_its_rate_is_that_of_the_completions(upstream: servers.Upstream) -> None:
    url = upstream.url_for("/limited", seconds=0.02, capacity=1)
    seen = run(load.open_loop(url, rate=100, seconds=0.4, spacing="even"))
    assert seen.completed == 40
    assert seen.rate == pytest.approx(50, rel=0.05)  # what the server can do
    assert seen.latencies[-1] == pytest.approx(40 * 0.02 - 39 / 100, abs=0.1)


def test_requests_above_the_most_in_flight_are_not_sent_and_are_reported(upstream: servers.Upstream) -> None:
    url = upstream.url_for("/delay/1")
    seen = run(load.open_loop(url, rate=100, seconds=0.2, spacing="even", max_in_flight=5))
    assert seen.sent == seen.completed == upstream.stats()["requests"] == 5
    assert seen.failed == {"max_in_flight": 15}


def test_poisson_arrivals_are_independent_and_repeatable() -> None:
    offsets = np.array(load_process.schedule(1000, 40, "poisson", 1))
    gaps = np.diff(offsets)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)
    per_second = np.histogram(offsets, np.arange(0, 40.1, 0.1))[0]
    assert per_second.var() == pytest.approx(per_second.mean(), rel=0.2)  # as for a Poisson count
    assert offsets[0] > 0 and offsets[-1] < 40
    assert load_process.schedule(1000, 1, "poisson", 1) == load_process.schedule(1000, 1, "poisson", 1)
    assert load_process.schedule(1000, 1, "poisson", 2) != load_process.schedule(1000, 1, "poisson", 1)


def test_an_open_loop_sees_a_stall_and_a_closed_loop_does_not(upstream: servers.Upstream) -> None:
    """Coordinated omission. The stall: one long request, ahead of all others in the same queue."""
    stall, seconds, rate, service = 0.4, 1.2, 150, 0.001

    async def measure(key: str, measured: Awaitable[load.Load]) -> load.Load:
        upstream.reset()
        run = asyncio.ensure_future(measured)
        await until(lambda: upstream.stats()["requests"] >= 20)
        ahead = upstream.url_for("/limited", seconds=stall, capacity=1, key=key)
        await asyncio.to_thread(servers_get, ahead)
        return await run

    async def both() -> tuple[load.Load, load.Load]:
        url = upstream.url_for("/limited", seconds=service, capacity=1, key="x")
        open_one = await measure("x", load.open_loop(url, rate=rate, seconds=seconds, spacing="even"))
        return open_one, await measure("x", load.closed_loop(url, concurrency=1, seconds=seconds))

    open_one, closed_one = run(both())
    for q in (90, 95, 99):
        expected = theory.stalled_quantile(q / 100, stall, seconds, rate * service)
        assert open_one.percentile(q) == pytest.approx(expected, abs=0.04)
    assert closed_one.percentile(99) < 0.1 < 0.3 < closed_one.latencies.max()


def servers_get(url: str) -> None:
    import urllib.request

    urllib.request.urlopen(url, timeout=10).read()


@POSIX
def test_it_says_how_late_it_was_itself(upstream: servers.Upstream) -> None:
    pause = 0.4

    async def work() -> load.Load:
        load.start()
        measured = asyncio.ensure_future(
            load.open_loop(upstream.url_for("/delay/0"), rate=100, seconds=1, spacing="even")
        )
        await until(lambda: upstream.stats()["requests"] >= 10)
        os.kill(load._generator().pid, signal.SIGSTOP)
        await asyncio.sleep(pause)
        os.kill(load._generator().pid, signal.SIGCONT)
        return await measured

    seen = run(work())
    assert seen.sent == 100  # those that were late are sent all the same
    assert pause - 0.05 < seen.late <= seen.latencies.max()
    assert (seen.latencies > pause / 2).sum() >= 15  # and count from when they were due


# What failed, and bad input


def test_failures_are_counted_by_reason_and_have_no_latency(upstream: servers.Upstream) -> None:
    async def work() -> list[load.Load]:
        flaky = upstream.url_for("/flaky/4", status=429)
        slow = upstream.url_for("/delay/5")
        return [
            await load.closed_loop(flaky, concurrency=2, requests=10),
            await load.closed_loop(slow, concurrency=2, requests=3, timeout=0.05),
            await load.open_loop(slow, rate=50, seconds=0.1, spacing="even", timeout=0.05),
        ]

    flaky, closed, opened = run(work())
    assert (flaky.sent, flaky.completed, flaky.failed) == (10, 6, {"429": 4})
    assert (closed.sent, closed.completed, closed.failed) == (3, 0, {"TimeoutError": 3})
    assert (opened.sent, opened.completed, opened.failed) == (5, 0, {"TimeoutError": 5})
    assert closed.rate == opened.rate == 0 and np.isnan(opened.mean) and np.isnan(closed.percentile(50))
    assert repr(flaky) == "<Load: 10 sent, 6 completed, 4 failed>"


def test_a_redirect_is_not_followed(upstream: servers.Upstream) -> None:
    url = upstream.url_for("/redirect", to="http://example.com/")
    assert run(load.closed_loop(url, concurrency=1, requests=2)).completed == 2


def test_a_server_that_is_not_there_is_named() -> None:
    with server_process.listen() as bound:  # bound, and not listening
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        for work in (
            load.closed_loop(f"{url}/x", concurrency=3, seconds=5),
            load.open_loop(f"{url}/x", rate=10, seconds=5),
        ):
            with pytest.raises(ConnectionError, match=rf"^Nothing listens at {re.escape(url)}: start the server"):
                run(work)


HERE = "http://127.0.0.1:1/"


@pytest.mark.parametrize(
    ("work", "named"),
    [
        (lambda: load.closed_loop("http://example.com/", concurrency=1, seconds=1), "'http://example.com/'"),
        (lambda: load.closed_loop("http://127.0.0.1.example.com/", concurrency=1, seconds=1), "example.com"),
        (lambda: load.closed_loop("http://127.0.0.1@example.com/", concurrency=1, seconds=1), "example.com"),
        (lambda: load.open_loop("ftp://127.0.0.1/", rate=1, seconds=1), "'ftp://127.0.0.1/'"),
        (lambda: load.open_loop("http://127.0.0.1:99999/", rate=1, seconds=1), "99999"),
        (lambda: load.open_loop(None, rate=1, seconds=1), "not to None"),
        (lambda: load.closed_loop(HERE, concurrency=1), "either seconds= or requests="),
        (lambda: load.closed_loop(HERE, concurrency=1, seconds=1, requests=1), "exactly one"),
        (lambda: load.closed_loop(HERE, concurrency=0, seconds=1), "concurrency must be a whole number"),
        (lambda: load.closed_loop(HERE, concurrency=901, seconds=1), "from 1 to 900, not 901"),
        (lambda: load.closed_loop(HERE, concurrency=1, requests=1.5), "requests must be a whole number"),
        (lambda: load.closed_loop(HERE, concurrency=1, seconds=61), "seconds must be a number above 0 and up to 60"),
        (lambda: load.closed_loop(HERE, concurrency=1, seconds=1, warm_up=-1), "warm_up must be"),
        (lambda: load.closed_loop(HERE, concurrency=1, seconds=1, timeout=0), "timeout must be"),
        (lambda: load.open_loop(HERE, rate=0, seconds=1), "rate must be a number above 0"),
        (lambda: load.open_loop(HERE, rate=float("nan"), seconds=1), "not nan"),
        (lambda: load.open_loop(HERE, rate=20_000, seconds=60), "rate * seconds must be"),
        (lambda: load.open_loop(HERE, rate=1, seconds=1, spacing="odd"), "spacing must be"),
        (lambda: load.open_loop(HERE, rate=1, seconds=1, seed="x"), "seed must be"),
        (lambda: load.open_loop(HERE, rate=1, seconds=1, max_in_flight=0), "max_in_flight must be"),
    ],
)
def test_bad_input_is_named_before_anything_is_sent(work: Callable[[], Awaitable[load.Load]], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        run(work())
    assert named in str(caught.value) and "\n" not in str(caught.value)


def some_load(latencies: list[float]) -> load.Load:
    count = len(latencies)
    return load.Load(np.array(latencies), np.zeros(count), 1.0, count, Counter(), 0.0, 0.1)


def test_percentiles_are_in_percent() -> None:
    seen = some_load([0.001 * n for n in range(101)])
    assert seen.percentile(99) == pytest.approx(0.099) and seen.percentile(100) == pytest.approx(0.1)
    assert seen.percentile(0) == 0 and seen.mean == pytest.approx(0.05)
    for q in (0.99, 101, -1, float("nan")):
        with pytest.raises(ValueError, match="q is in percent"):
            seen.percentile(q)
    counts, edges = seen.histogram([0, 0.05, 0.2])
    assert list(counts) == [50, 51] and list(edges) == [0, 0.05, 0.2]
    assert seen.histogram()[0].sum() == 101


# Its process


def test_runs_share_one_process_that_is_not_this_one(upstream: servers.Upstream) -> None:
    url = upstream.url_for("/item/1")
    run(load.closed_loop(url, concurrency=1, requests=1))
    generator = load._generator()
    load.start()
    run(load.open_loop(url, rate=100, seconds=0.02))
    assert load._generator() is generator and generator.pid != os.getpid()


def test_a_cancelled_run_leaves_no_process_and_no_request(upstream: servers.Upstream) -> None:
    async def work() -> int:
        measured = asyncio.ensure_future(load.closed_loop(upstream.url_for("/delay/30"), concurrency=5, seconds=30))
        await until(lambda: upstream.stats()["in_flight"] == 5)
        pid = load._generator().pid
        measured.cancel()
        with pytest.raises(asyncio.CancelledError):
            await measured
        assert not is_there(pid)
        assert (await upstream.settled())["in_flight"] == 0
        return pid

    gone = run(work())
    assert run(load.closed_loop(upstream.url_for("/item/1"), concurrency=1, requests=1)).completed == 1
    assert load._generator().pid != gone


@POSIX
def test_a_generator_that_dies_during_a_run_is_named(upstream: servers.Upstream) -> None:
    async def work() -> None:
        measured = asyncio.ensure_future(load.closed_loop(upstream.url_for("/delay/30"), concurrency=5, seconds=30))
        await until(lambda: upstream.stats()["in_flight"] == 5)
        os.kill(load._generator().pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="load generator was stopped during the run"):
            await measured

    run(work())


SCRIPT = """
import asyncio
from support import load
async def main():
    load.start()
    print(load._generator().pid, flush=True)
    await load.closed_loop({url!r}, concurrency=5, seconds=30)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@POSIX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_end_of_the_kernel_and_an_interrupt_end_the_load(
    upstream: servers.Upstream, number: signal.Signals
) -> None:
    with parent(SCRIPT.format(url=upstream.url_for("/delay/30"))) as process:
        assert process.stdout.readline().startswith("load generator: ready")
        pid = int(process.stdout.readline())
        run(until(lambda: upstream.stats()["in_flight"] == 5))
        process.send_signal(number)
        assert ends(pid)
        assert run(upstream.settled())["aborted"] == 5
        assert process.stdout.readline() == ("interrupted\n" if number == signal.SIGINT else "")


def test_the_leak_report_of_a_chapter_stays_at_zero(upstream: servers.Upstream) -> None:
    script = f"""
import asyncio
from support import close_chapter, load, open_chapter
async def main():
    open_chapter("03_errors")
    await load.closed_loop({upstream.url_for("/item/1")!r}, concurrency=5, requests=20)
    close_chapter()
asyncio.run(main())
"""
    with parent(script) as process:
        lines = process.stdout.read().splitlines()
    assert lines[1:] == ["tasks left: 0, threads left: 0, child processes left: 0, sockets left: 0"]
