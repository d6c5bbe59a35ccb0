"""The dashboard: rows from the difference of two scrapes, holes seen, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import math

import numpy as np
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from support.dashboard import Dashboard, Row, Scrape, at_quantile, read_scrape

BOUNDS = (0.1, 0.5, 1)
EDGES = np.array([*BOUNDS, math.inf])


class Page:
    """A /metrics page, as a real registry writes it, that the test fills by hand."""

    def __init__(self, *leave_out: str) -> None:
        self.registry = CollectorRegistry()
        self.asked, self.broken = 0, False
        for name in {"requests", "lag"} - {*leave_out}:
            setattr(self, name, Histogram(name, "in seconds", registry=self.registry, buckets=BOUNDS))
        for name in {"in_flight", "pool_waiting"} - {*leave_out}:
            setattr(self, name, Gauge(name, "just now", registry=self.registry))

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()

    @contextlib.asynccontextmanager
    async def served(self):
        async def metrics(request: web.Request) -> web.Response:
            self.asked += 1
            return web.Response(status=500) if self.broken else web.Response(text=self.text)

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
        finally:
            await runner.cleanup()


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_page_is_read_with_its_buckets_and_gauges():
    page = Page()
    for seconds in (0.05, 0.3, 0.3, 7):
        page.requests.observe(seconds)
    page.lag.observe(0.7)
    page.in_flight.set(3), page.pool_waiting.set(2)
    read = read_scrape(page.text, time=1.5)
    assert (read.time, read.in_flight, read.waiting) == (1.5, 3, 2)
    assert read.histograms["requests"].tolist() == [EDGES.tolist(), [1, 3, 3, 4]]
    assert read.histograms["lag"].tolist() == [EDGES.tolist(), [0, 0, 1, 1]]


def test_a_page_without_the_metrics_says_which():
    with pytest.raises(ValueError, match="has no lag and no pool_waiting"):
        read_scrape(Page("lag", "pool_waiting").text, time=0)


@pytest.mark.parametrize(
    ("q", "bound"), [(0.5, 0.1), (0.51, 0.5), (0.8, 0.5), (0.81, 1), (0.9, 1), (0.91, math.inf), (1, math.inf)]
)
def test_a_quantile_is_the_upper_bound_of_its_bucket(q, bound):
    assert at_quantile(EDGES, np.array([50, 80, 90, 100]), q) == bound


def test_a_quantile_of_nothing_is_nan():
    assert math.isnan(at_quantile(EDGES, np.zeros(4), 0.5))


def scraped(time: float, requests: list[int], lag: list[int], in_flight: float = 0, waiting: float = 0) -> Scrape:
    histograms = {"requests": np.array([EDGES, requests]), "lag": np.array([EDGES, lag])}
    return Scrape(time, histograms, in_flight, waiting)


def test_a_row_is_the_difference_to_the_newest_scrape_that_is_a_window_older():
    board = Dashboard("unused", window=0.5)
    board.scrapes = [
        scraped(0.0, [100, 100, 100, 900], [0, 0, 0, 5]),  # what was before counts for nothing
        scraped(0.25, [110, 110, 110, 910], [3, 3, 3, 8]),
        scraped(0.5, [150, 150, 150, 950], [9, 9, 9, 14], 2, 1),
        scraped(1.5, [150, 160, 160, 960], [9, 10, 10, 15]),  # after a hole
        scraped(2.0, [150, 160, 160, 960], [9, 10, 10, 15]),
    ]
    first, after_hole, idle = board.rows
    assert first == Row(0.5, rate=100, in_flight=2, waiting=1, p50=0.1, p99=0.1, worst_lag=0.1)
    assert after_hole == Row(1.5, rate=10, in_flight=0, waiting=0, p50=0.5, p99=0.5, worst_lag=0.5)
    assert idle.rate == 0 and all(map(math.isnan, (idle.p50, idle.p99, idle.worst_lag)))
    assert (board.slower_than(0.1), board.slower_than(0.5)) == (10, 0)
    with pytest.raises(ValueError, match="No bucket ends at 0.2 s, they end at 0.1, 0.5, 1.0, inf"):
        board.slower_than(0.2)


def test_the_figure_shows_the_rows_in_milliseconds():
    board = Dashboard("unused", window=0.5)
    board.draw()  # nothing yet
    board.scrapes = [scraped(0, [0] * 4, [0] * 4), scraped(2, [3, 4, 4, 4], [0, 2, 2, 2], 30, 20)]
    board.draw(), board.draw()
    rate, inside, latency, lag = board.figure.axes
    drawn = [[line.get_xydata().tolist() for line in axes.lines] for axes in (rate, inside, latency, lag)]
    assert drawn == [[[[2, 2]]], [[[2, 30]], [[2, 20]]], [[[2, 500]], [[2, 100]]], [[[2, 500]]]]
    assert inside.get_ylim()[1] > 30 and rate.get_xlim()[1] > 2
    assert len({line.get_marker() for line in inside.lines}) == 2


async def _watch_a_page() -> None:
    page = Page()
    page.requests.observe(0.3)
    async with page.served() as url:
        board = Dashboard(url, window=0.01)
        async with board.scraping(every=0.01):
            assert page.asked == len(board.scrapes) == 1  # at once
            await until(lambda: len(board.rows) >= 3)
            page.broken = True
            await until(lambda: board.missed >= 2)
            page.broken = False
            known = len(board.scrapes)
            await until(lambda: len(board.scrapes) > known)
            page.requests.observe(0.7)
        assert board.slower_than(0.5) == 1  # the last scrape comes after the block
        assert board.slower_than(0.1) == 1  # and what was there before it is not counted
        asked = page.asked
        await asyncio.sleep(0.05)
        assert page.asked == asked and not [one for one in asyncio.all_tasks() if one.get_name() == "dashboard"]


def test_it_reads_until_the_block_ends_and_counts_what_failed():
    asyncio.run(_watch_a_page())


async def _stop_early(how: type[BaseException]) -> None:
    page = Page()
    async with page.served() as url:
        with pytest.raises(how):
            async with Dashboard(url).scraping(every=0.01):
                raise how
        asked = page.asked
        await asyncio.sleep(0.05)
        assert page.asked == asked and not [one for one in asyncio.all_tasks() if one.get_name() == "dashboard"]


@pytest.mark.parametrize("how", [KeyError, asyncio.CancelledError])
def test_an_error_or_a_cancellation_ends_the_reading(how):
    asyncio.run(_stop_early(how))


async def _open(url: str) -> None:
    async with Dashboard(url).scraping():
        raise AssertionError("it was opened")


def test_what_cannot_be_read_is_told_in_a_sentence():
    async def bare_page() -> None:
        async with Page("lag").served() as url:
            await _open(url)

    with pytest.raises(ValueError, match="The page has no lag: a dashboard reads"):
        asyncio.run(bare_page())
    with pytest.raises(ConnectionError, match="No metrics came from http://127.0.0.1:1/metrics: "):
        asyncio.run(_open("http://127.0.0.1:1/metrics"))
