"""Repeat a measurement that other programs disturbed.

What else runs on a computer can only slow a run down. So a cell that compares its best run with a law
may run again, up to a limit; what it asserts afterwards stays the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
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


async def by_turns(
    measure: Callable[[str], Awaitable[float]], turns: Sequence[Sequence[str]], enough: Callable[[dict[str, float]], bool],
    *, most: int = 8
) -> dict[str, float]:  # fmt: skip
    """The least that `await measure(way)` gave for each way, of all the times that it was its turn.

    turns: the ways in the order in which they are measured, so that what else runs comes to all of them. All turns are
        taken again until `enough(least so far, by way)`, or `most` times.
    Raises ValueError without a turn, or for most < 1, and whatever `measure` or `enough` raises.
    """
    if not any(turns):
        raise ValueError(f"by_turns(): it takes at least one turn with a way in it, not {turns!r}.")
    seen: defaultdict[str, list[float]] = defaultdict(list)

    async def all_turns() -> dict[str, float]:
        for way in (way for turn in turns for way in turn):
            seen[way].append(await measure(way))
        return {way: min(values) for way, values in seen.items()}

    return (await repeats(all_turns, lambda least: enough(least[-1]), least=1, most=most))[-1]
