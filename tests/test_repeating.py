"""A disturbed measurement is repeated, up to a limit, and every result is kept."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from support.repeating import in_pairs, repeats


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


def pairs_of(values: list[float], **pairs: int) -> tuple[str, dict[str, list[list[float]]]]:
    """The ways in the order in which they were measured, and the pairs; each measurement takes the next value."""
    left, order = iter(values), []

    async def measure(way: str) -> float:
        order.append(way)
        return next(left)

    seen = asyncio.run(in_pairs(measure, "o", pairs))
    return "".join(order), {way: rows.tolist() for way, rows in seen.items()}


def test_each_pair_is_measured_in_turning_order_and_the_base_stands_first() -> None:
    order, seen = pairs_of([1, 2, 3, 4, 5, 6, 7, 8], a=3, b=1)
    assert order == "aooaaobo"
    assert seen == {"a": [[2, 1], [3, 4], [6, 5]], "b": [[8, 7]]}


def test_other_load_on_half_of_the_pairs_does_not_move_their_median_ratio() -> None:
    load = itertools.cycle([1.0, 1.0, 3.0, 3.0])  # every other pair takes three times as long

    async def measure(way: str) -> float:
        return next(load) * {"bare": 1.0, "ours": 1.25}[way]

    seen = asyncio.run(in_pairs(measure, "bare", {"ours": 20}))["ours"]
    assert np.median(seen[:, 1] / seen[:, 0]) == pytest.approx(1.25)


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_pairs_that_makes_no_sense_is_named(count: int) -> None:
    with pytest.raises(ValueError, match=rf"at least one pair, not {{'b': {count}}}"):
        pairs_of([1.0] * 9, a=1, b=count)
