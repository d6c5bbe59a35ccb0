"""A small dashboard of one server: it reads the server's /metrics page, and makes a row of points each time.

    board = Dashboard(f"{server.url}/metrics/")
    async with live(board.figure, board.draw, alt=...), board.scraping(): await the_run()

The page must have the histograms ``requests`` and ``lag``, in seconds, and the gauges ``in_flight`` and
``pool_waiting``. A histogram only grows: what happened lately is the *difference* of two readings, so
any number of dashboards can read one page. A page that comes late leaves a hole in the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import NamedTuple

import aiohttp
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from .figures import MEASURED, new_figure

HISTOGRAMS, GAUGES = ("requests", "lag"), ("in_flight", "pool_waiting")
PANELS = (  # title, unit, factor from a row to the unit, series, the least height of the panel
    ("Requests per second", "", 1, ("rate",), 100),
    ("In flight (o), waiting (+)", "", 1, ("in_flight", "waiting"), 10),
    ("p99 (o), p50 (+)", "ms, at most", 1000, ("p99", "p50"), 100),
    ("Worst lag", "ms, at most", 1000, ("worst_lag",), 100),
)


class Scrape(NamedTuple):
    """One reading. Each histogram is two lines of an array: the upper bounds (s), and the cumulative counts."""

    time: float  # seconds since the first
    histograms: dict[str, np.ndarray]
    in_flight: float
    waiting: float


class Row(NamedTuple):
    """One column of points. Times in seconds; nan: nothing was counted in the window."""

    time: float  # since the first reading
    rate: float  # requests per second
    in_flight: float
    waiting: float  # for a connection of the pool
    p50: float
    p99: float
    worst_lag: float


def read_scrape(text: str, time: float) -> Scrape:
    """What the text of a /metrics page says. Raises ValueError when a metric is not there."""
    families = {family.name: family.samples for family in text_string_to_metric_families(text)}
    if missing := {*HISTOGRAMS, *GAUGES} - families.keys():
        raise ValueError(f"The page has no {' and no '.join(sorted(missing))}: a dashboard reads these metrics.")
    buckets = {name: [sample for sample in families[name] if "le" in sample.labels] for name in HISTOGRAMS}
    read = {name: sorted((float(one.labels["le"]), one.value) for one in buckets[name]) for name in HISTOGRAMS}
    return Scrape(time, {name: np.array(read[name]).T for name in read}, *(families[name][0].value for name in GAUGES))


def at_quantile(bounds: np.ndarray, counts: np.ndarray, q: float) -> float:
    """The upper bound of the bucket of quantile ``q`` (0 to 1), for cumulative ``counts``; nan when all are 0."""
    return float(bounds[np.searchsorted(counts, q * counts[-1])]) if counts[-1] else math.nan


class Dashboard:
    """The ``scrapes``, how many were ``missed``, and ``rows``: a row compares two scrapes ``window`` seconds apart."""

    def __init__(self, url: str, *, window: float = 0.4) -> None:
        self.url, self.window, self.missed = url, window, 0
        self.scrapes: list[Scrape] = []
        self.figure, panels = new_figure(height=2.7, columns=len(PANELS))
        self._lines = []
        for axes, (title, unit, _, series, _) in zip(panels, PANELS, strict=True):
            axes.set(title=title, xlabel="time (s)", ylabel=unit)
            self._lines.append([axes.plot([], [], "o+"[i], ms=4, color=MEASURED)[0] for i in range(len(series))])

    @property
    def rows(self) -> list[Row]:
        """A row for each scrape that has an older one to be compared with; of those, the newest."""
        rows = []
        for number, new in enumerate(self.scrapes):
            if older := [one for one in self.scrapes[:number] if new.time - one.time >= self.window]:
                (bounds, done), (lag_bounds, beats) = (self._between(older[-1], new, name) for name in HISTOGRAMS)
                p50, p99 = (at_quantile(bounds, done, q) for q in (0.5, 0.99))
                rate, lag = float(done[-1]) / (new.time - older[-1].time), at_quantile(lag_bounds, beats, 1)
                rows.append(Row(new.time, rate, new.in_flight, new.waiting, p50, p99, lag))
        return rows

    def slower_than(self, seconds: float) -> int:
        """How many requests of the whole run took longer; ValueError if no bucket ends at ``seconds``."""
        bounds, done = self._between(self.scrapes[0], self.scrapes[-1], "requests")
        if seconds not in bounds:
            raise ValueError(f"No bucket ends at {seconds!r} s, they end at {', '.join(map(str, bounds))}.")
        return int(done[-1] - done[np.searchsorted(bounds, seconds)])

    def draw(self) -> None:
        """Bring the figure up to date."""
        rows = self.rows
        end = max([1.0, *(row.time for row in rows)])
        for lines, (_, _, factor, series, height) in zip(self._lines, PANELS, strict=True):
            for line, name in zip(lines, series, strict=True):
                line.set_data([row.time for row in rows], [factor * getattr(row, name) for row in rows])
            seen = [value for line in lines for value in line.get_ydata() if math.isfinite(value)]
            lines[0].axes.set(xlim=(0, 1.05 * end), ylim=(-height / 40, 1.1 * max([height, *seen])))

    @contextlib.asynccontextmanager
    async def scraping(self, every: float = 0.1) -> AsyncIterator[None]:
        """Read the page now, every so many seconds, and at the end. ConnectionError: the first or last one failed."""

        async def keep_scraping() -> None:
            while True:
                await asyncio.sleep(every)
                try:
                    await self._scrape(session)
                except ConnectionError:
                    self.missed += 1

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            await self._scrape(session)
            reading = asyncio.create_task(keep_scraping(), name="dashboard")
            try:
                yield
            finally:
                reading.cancel()
                (ended,) = await asyncio.gather(reading, return_exceptions=True)
            if not isinstance(ended, asyncio.CancelledError):
                raise ended
            await self._scrape(session)

    async def _scrape(self, session: aiohttp.ClientSession) -> None:
        try:
            async with session.get(self.url, raise_for_status=True) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConnectionError(f"No metrics came from {self.url}: {error or 'timeout'}.") from None
        now = asyncio.get_running_loop().time()  # of the answer: a late one is a hole
        self._start = now if not self.scrapes else self._start
        self.scrapes.append(read_scrape(text, now - self._start))

    @staticmethod
    def _between(old: Scrape, new: Scrape, name: str) -> tuple[np.ndarray, np.ndarray]:
        bounds, counts = new.histograms[name]
        return bounds, counts - old.histograms[name][1]
