"""A disturbed measurement is repeated, up to a limit, and every result is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from support.repeating import by_turns, repeats


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


def least(values: str, turns: list[tuple[str, ...]], bound: float, **limits: int) -> tuple[str, dict[str, float]]:
    """The ways in the order in which they were measured, and the least of each; each measurement takes the next digit."""
    left, order = iter(values), []

    async def measure(way: str) -> float:
        order.append(way)
        return float(next(left))

    best = asyncio.run(by_turns(measure, turns, lambda best: best["a"] <= bound, **limits))
    return "".join(order), best


def test_each_way_has_its_turn_and_the_least_of_it_counts() -> None:
    assert least("5364", [("a", "b"), ("b", "a")], 5) == ("abba", {"a": 4.0, "b": 3.0})


def test_all_turns_are_taken_again_until_the_least_is_good_enough() -> None:
    assert least("938275", [("a", "b")], 7) == ("ababab", {"a": 7.0, "b": 2.0})
    assert least("9999999", [("a", "b")], 1, most=2) == ("abab", {"a": 9.0, "b": 9.0})


@pytest.mark.parametrize(
    ("turns", "most", "named"), [([], 3, "not \\[\\]"), ([()], 3, "at least one turn"), ([("a",)], 0, "most=0")]
)
def test_turns_that_make_no_sense_are_named(turns: list, most: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        least("1", turns, 1, most=most)
