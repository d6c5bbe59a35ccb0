"""Repeat a measurement that other programs disturbed.

What else runs on a computer can only slow a run down. So a cell that compares its best run with a law
may run again, up to a limit; what it asserts afterwards stays the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import numpy as np

Result = TypeVar("Result")


async def repeats(
    measure: Callable[[], Awaitable[Result]], enough: Callable[[list[Result]], bool], *, least: int = 3, most: int = 12
) -> list[Result]:
    """Run `await measure()` at least `least` times, and then until `enough(results)`, or `most` times.

    Returns all results, in order. Whether they are good enough in the end is for the caller to assert.
    Raises ValueError unless 1 <= least <= most, and whatever `measure` or `enough` raises.
    """
    if not 1 <= least <= most:
        raise ValueError(f"repeats(least={least!r}, most={most!r}): it takes 1 <= least <= most.")
    results: list[Result] = []
    while len(results) < most and (len(results) < least or not enough(results)):
        results.append(await measure())
    return results


async def in_pairs(
    measure: Callable[[str], Awaitable[float]], base: str, pairs: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Measure each way beside a base, in turning order, so that what else runs comes to both of a pair.

    The median ratio of the pairs, ``np.median(seen[way][:, 1] / seen[way][:, 0])``, hardly moves with other load, where
    the ratio of two best runs depends on which of them found a calm moment.

    pairs: way -> how many pairs of the base and this way.
    Returns, by way, an array of shape (pairs, 2): what `await measure(base)` and then what `await measure(way)` gave.
    Raises ValueError for a number of pairs below 1, and whatever `measure` raises.
    """
    if bad := {way: count for way, count in pairs.items() if count < 1}:
        raise ValueError(f"in_pairs(): each way takes at least one pair, not {bad!r}.")
    seen = {}
    for way, count in pairs.items():
        rows = np.empty((count, 2))
        for number, row in enumerate(rows):
            for column in (0, 1) if number % 2 else (1, 0):
                row[column] = await measure((base, way)[column])
        seen[way] = rows
    return seen
