"""Waiting for an answer, a broker's client, and the grid of outcomes."""

from __future__ import annotations

import asyncio

import pytest

from support.figures import new_figure
from support.outcomes import client_of, draw_outcomes, until


def test_until_asks_until_the_answer_is_the_wanted_one():
    answers = iter([3, 2, 1, 0, 0])

    async def question():
        return next(answers)

    asyncio.run(until(question, 0))
    assert list(answers) == [0]


def test_until_gives_up_and_tells_the_last_answer():
    async def question():
        return 45

    with pytest.raises(TimeoutError, match="still 45 after 0.03 s, not 0"):
        asyncio.run(until(question, 0, within=0.03))


@pytest.mark.parametrize("fails_at", ["startup", "body", None])
def test_a_broker_is_closed_whatever_happened(fails_at):
    log = []

    class Broker:
        async def startup(self):
            log.append("startup")
            if fails_at == "startup":
                raise OSError

        async def shutdown(self):
            log.append("shutdown")

    async def main():
        async with client_of(Broker()):
            log.append("body")
            if fails_at == "body":
                raise OSError

    if fails_at:
        with pytest.raises(OSError):
            asyncio.run(main())
    else:
        asyncio.run(main())
    assert log == ["startup"] + ["body"] * (fails_at != "startup") + ["shutdown"]


def test_the_grid_says_each_outcome_by_mark_and_count():
    _, axes = new_figure()
    draw_outcomes(axes, {"list": {"work": (2, 0), "ack": (0, 0)}, "stream": {"work": (0, 0), "ack": (0, 3)}}, 5)
    assert [text.get_text() for text in axes.texts] == ["2 of 5 lost", "5 of 5 once", "5 of 5 once", "3 of 5 doubled"]
    shapes = {
        text: mark.get_paths()[0].vertices.shape
        for text, mark in zip(("lost", "once", "", "twice"), axes.collections, strict=True)
    }
    assert len({shapes["lost"], shapes["once"], shapes["twice"]}) == 3


def test_the_grid_refuses_a_place_with_two_outcomes():
    _, axes = new_figure()
    with pytest.raises(ValueError, match="1 jobs were lost and 1 doubled"):
        draw_outcomes(axes, {"list": {"work": (1, 1)}}, 5)
