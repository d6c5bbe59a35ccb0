"""The simulated queue agrees with Erlang C, and refuses what it cannot simulate."""

from __future__ import annotations

import pytest

from support import theory
from support.queueing import oldest_job_ages, simulated_wait


@pytest.mark.parametrize(("rate", "servers"), [(80.0, 1), (300.0, 4), (700.0, 10)])
def test_waits_are_those_of_erlang_c(rate: float, servers: int) -> None:
    found = [simulated_wait(0.95, rate, 0.01, servers, arrivals=60_000, seed=seed) for seed in (1, 2, 3)]
    assert sorted(found)[1] == pytest.approx(theory.erlang_c_wait_quantile(0.95, rate, 0.01, servers), rel=0.08)


def test_the_same_seed_gives_the_same_answer_and_another_another() -> None:
    assert (
        simulated_wait(0.9, 80, 0.01, 1) == simulated_wait(0.9, 80, 0.01, 1) != simulated_wait(0.9, 80, 0.01, 1, seed=2)
    )


@pytest.mark.parametrize(
    "bad", [{"q": 1.0}, {"rate": 0}, {"service_time": -1}, {"servers": 1}, {"servers": 2.5}, {"arrivals": 3}]
)
def test_bad_input_is_named(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"simulated_wait: {next(iter(bad))} cannot be"):
        simulated_wait(**{"q": 0.99, "rate": 100, "service_time": 0.01, "servers": 2} | bad)


def test_the_oldest_job_grows_old_where_cpu_starts_the_workers_and_not_where_its_age_does() -> None:
    by_cpu = oldest_job_ages(lambda age, cpu: cpu > 0.6)
    by_age = oldest_job_ages(lambda age, cpu: age > 2)
    assert len(by_cpu) == len(by_age) == 600
    assert by_cpu[-1] == pytest.approx(60 * (1 - 10 / 30), abs=0.5)  # one worker does 10 of 30 jobs a second
    assert max(by_age) < 10 and by_age[-1] < 0.2
    assert max(oldest_job_ages(lambda age, cpu: False, rate=10)) < 0.2  # one worker is enough
    with pytest.raises(ValueError, match="not 25"):
        oldest_job_ages(lambda age, cpu: False, rate=25)
