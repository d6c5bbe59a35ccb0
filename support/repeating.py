"""Repeat a measurement that other programs disturbed.

What else runs on a computer can only slow a run down. So a cell that compares its best run with a law
may run again, up to a limit; what it asserts afterwards stays the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

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
