"""A disturbed measurement is repeated, up to a limit, and every result is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from support.repeating import repeats


def run(values: list[float], bound: float, **limits: int) -> list[float]:
    left: Iterator[float] = iter(values)

    async def measure() -> float:
        return next(left)

    return asyncio.run(repeats(measure, lambda seen: max(seen) >= bound, **limits))


def test_a_calm_machine_gives_the_least_number_of_runs() -> None:
    assert run([5, 4, 6, 7], 5) == [5, 4, 6]


def test_it_goes_on_until_one_run_is_good_enough() -> None:
    assert run([1, 2, 1, 2, 9, 9], 9) == [1, 2, 1, 2, 9]


def test_it_ends_when_no_run_is_good_enough() -> None:
    assert run([1.0] * 10, 9, least=2, most=5) == [1.0] * 5


@pytest.mark.parametrize("least, most", [(0, 3), (4, 3)])
def test_limits_that_make_no_sense_are_named(least: int, most: int) -> None:
    with pytest.raises(ValueError, match=rf"repeats\(least={least}, most={most}\)"):
        run([1], 1, least=least, most=most)
