"""Visitors note what they see: the status, who gave up, and the time to the last byte."""

from __future__ import annotations

import asyncio

import pytest

from support import start_upstream
from support.visitors import report, visit_all


@pytest.fixture(scope="module")
def upstream():
    with start_upstream(name="visited") as server:
        yield server


def test_they_come_at_once_and_in_groups(upstream) -> None:
    upstream.reset()
    visits = {"two": (["/delay/0.2", "/status/404"], 9), "gives up": (["/stall"], 0.1), "alone": (["/item/1"], 9)}
    seen = asyncio.run(visit_all(upstream.url, visits))
    assert {name: [status for status, _ in each] for name, each in seen.items()} == {
        "two": [200, 404], "gives up": [499], "alone": [200]
    }  # fmt: skip
    assert seen["two"][0][1] >= 0.19 and seen["gives up"][0][1] >= 0.09
    assert upstream.stats()["peak_in_flight"] == 2


def test_who_follows_a_pause_comes_later(upstream) -> None:
    upstream.reset()
    seen = asyncio.run(visit_all(upstream.url, {"apart": (["/item/1", 0.2, "/item/2"], 9)}))
    first, second = upstream.stats()["arrivals"]
    assert len(seen["apart"]) == 2 and second - first > 0.1


def test_patience_must_be_positive(upstream) -> None:
    with pytest.raises(ValueError, match="'nobody' wait 0 s"):
        asyncio.run(visit_all(upstream.url, {"nobody": (["/item/1"], 0)}))


def test_a_report_is_asked_for_until_it_is_ready(upstream) -> None:
    upstream.reset()
    answers: list = []
    asyncio.run(report(upstream.url_for("/item/1"), lambda found: answers.append(found) or len(answers) == 3))
    assert len(answers) == 3 and answers[0]["id"] in (1, "1")
    with pytest.raises(TimeoutError):
        asyncio.run(report(upstream.url_for("/item/1"), lambda _: False, within=0.05))
