"""The protection ladder: exact, as good as the chapter says whoever dies, and the same settings on the reader's machine."""

from __future__ import annotations

import asyncio
import json
import os

import numpy as np
import pytest

from support import figures, ladder_figures, ladders, outages, simulate
from support.gateway.settings import Settings

STEPS = {
    "naive": {},
    "+ deadline": {"shared_client": True, "deadline": 1.0},
    "+ partial results": {"partial": True},
    "+ retry budget": {"bulkhead": 4, "bulkhead_queue": 8, "retry_budget": 0.1, "attempt": 0.2},
    "finished": {"breaker": 5, "cache": 0.2, "hedge": 0.1, "shed": 64},
}
GATEWAYS = ladders.gateways(STEPS, connections=12, retries=2)


def test_each_step_keeps_the_protections_of_those_before():
    assert GATEWAYS["naive"].deadline is None and not GATEWAYS["naive"].shared_client and GATEWAYS["naive"].shed is None
    assert GATEWAYS["+ partial results"].deadline == 1.0 and GATEWAYS["+ partial results"].breaker is None
    assert GATEWAYS["finished"].partial and GATEWAYS["finished"].bulkhead == 4 and GATEWAYS["finished"].retries == 2


def test_an_outage_is_the_same_each_time():
    once, again = (simulate(ladders.outage, GATEWAYS["finished"], fails="prices") for _ in range(2))
    assert once == again


@pytest.mark.parametrize("fails", ladders.MEANS)
def test_the_finished_gateway_keeps_its_promise_whoever_dies(fails):
    for seed in (1, 2, 3):
        seen = simulate(ladders.outage, GATEWAYS["finished"], fails=fails, seed=seed)
        assert seen.whole >= 0.99 and seen.dead <= 0.1 and seen.p99 < 1.0
        assert seen.statuses[207] > 0.5 * sum(seen.statuses.values())


def test_the_naive_gateway_answers_nothing_whole_and_triples_the_load():
    seen = simulate(ladders.outage, GATEWAYS["naive"], fails="users")
    assert seen.whole == 0 and seen.dead == pytest.approx(3, rel=0.02) and seen.p99 > 4.5
    assert seen.connections == pytest.approx(2 + 3, rel=0.02)


def test_an_upstream_that_is_gone_at_once_keeps_nobody_waiting():
    seen = simulate(ladders.outage, GATEWAYS["+ partial results"], fails="users", hangs=0.0, seconds=1.0)
    assert seen.whole == 1.0
    assert seen.dead == pytest.approx(3, rel=0.1)


def test_the_load_on_the_dead_one_follows_the_formula():
    for name, law in (
        ("naive", 3.0),
        ("+ deadline", ladders.dead_load(3, 0.98)),
        ("+ retry budget", ladders.dead_load(3, 0.2, slots=4, budget=0.1)),
    ):
        assert simulate(ladders.outage, GATEWAYS[name], fails="users").dead == pytest.approx(law, rel=0.1), name


def test_dead_load_counts_what_its_docstring_says():
    assert ladders.dead_load(3, 0.0) == 2.0  # 5 s one call, 5 s three
    assert ladders.dead_load(3, 1.0, slots=5, rate=50, budget=0.0) == pytest.approx((5 * 0.1 + 5) / 10)
    assert ladders.dead_load(1, 1.0, slots=1000) == 1.0


@pytest.mark.parametrize("name", ["finished", "naive"])
def test_settings_go_through_the_environment(name: str, monkeypatch: pytest.MonkeyPatch):
    for variable, value in outages.as_environment(GATEWAYS[name]).items():
        monkeypatch.setenv(variable, value)
    assert Settings.from_environment() == GATEWAYS[name]
    assert json.loads(os.environ["GATEWAY_UPSTREAMS"]) == ladders.REGISTRY


def test_a_service_dies_and_counts():
    async def main() -> list[int]:
        service, sent = outages.Dying(), []

        async def send(message):
            sent.append(message.get("status"))

        async def call() -> None:
            await service({"type": "http", "path": "/users"}, None, send)

        await call()
        service.hang()
        waiting = [asyncio.create_task(call()) for _ in range(3)]
        await asyncio.sleep(5)
        assert not any(task.done() for task in waiting) and service.calls == {"/users": 3}
        service.go()
        await asyncio.gather(*waiting, call())
        return [status for status in sent if status]

    assert simulate(main) == [200, 503, 503, 503, 503]


def test_the_figures_are_drawn():
    rung = ladders.Rung(0.99, 0.3, 0.03, 1.0, 0.0, {207: 9})
    seen = {"naive": ladders.Rung(0.0, 5.0, 3.0, 1.0, 5.0, {502: 9}), "finished": rung}
    figure = ladder_figures.ladder(seen, law={"naive": 3.0}, real={"finished": rung})
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["naive", "finished"]
    two = {"one pool": [1.0, 5.0], "bulkheads": [1.0, 1.0]}
    drawn, residual = ladder_figures.neighbours([0.1, 0.2], two, two, flying_law=[1.0, 1.0], p99_law=[1.0, 4.0])
    assert residual == 0.25
    waits = {"lets all wait": np.array([[1.0, 2.0]] * 13), "36 places": np.array([[1.0, 0.1]] * 13)}
    door = ladder_figures.door({4: 0.1, 9: 0.2}, {4: 0.1, 9: 0.2}, waits, surge=((0.5, 5), (3, 5), (0.5, 23)))
    for each in (figure, drawn, door):
        assert len(figures.png(each)) > 10_000


def test_the_figures_of_the_slow_client_and_of_the_gains_show_each_row_once():
    figure = ladder_figures.slow_client(
        {way: [[0, 1], [1e6, 9e6], [0, 8e6]] for way in ("whole", "relay")}, kernel=20e6
    )
    [axes] = figure.axes
    assert [line.get_label().split(":")[0] for line in axes.lines] == [
        "whole", "relay", "read + the kernel's buffers", "relay"]  # fmt: skip
    assert list(axes.lines[2].get_ydata()) == [20, 28]
    seen = {"3 services": ([1.5, 2], 1.7), "cache on": ([12], 11)}
    figure = ladder_figures.gains(seen, {"3 services": 1.3, "cache on": 10}, [(1.1, 1.5), (1.2, 1.6)], 1.4)
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().texts] == [
        "a round",
        "asserted bound",
        "the same, by CPU time",
    ]
    assert [text.get_text() for text in left.get_yticklabels()] == list(seen) and len(right.lines) == 5
