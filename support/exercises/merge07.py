"""The checker of exercise 7.3: histograms that can be merged, and quantiles within one bucket."""

from __future__ import annotations

import bisect
import itertools
import math
import random
from typing import Any

from ..probes import traced_memory
from .engine import Exercise, three_hints
from .harness import Failed, Prove, call, plain

WITHIN = "a quantile is off by no more than the width of its bucket"
MERGED = "merging is as good as having observed it all"
ORDER = "the order of merging does not matter"
UNCHANGED = "merge leaves both as they were"
APART = "the merged one lives its own life"
MEMORY = "memory does not grow with what it observed"
FLAT = "memory does not grow with what was merged"
EMPTY = "an empty histogram has no quantile, and adds nothing"
TOP = "above the last bound it says the last bound"
EDGE = "a value on a bound belongs below it"
REFUSES = "refuses to merge other bounds"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
QUANTILES = (0.01, 0.25, 0.5, 0.9, 0.99, 0.999)
WORKERS, MANY, MERGES = 8, 40_000, 3000
MOST_BYTES = 60_000  # far above ten counters, far below MANY or MERGES of anything


def _worker(number: int, count: int = 2000) -> list[float]:
    """Latencies as one of the workers saw them: the last one is slow, and got a tenth of the requests."""
    numbers = random.Random(number)
    slow = number == WORKERS - 1
    return [numbers.lognormvariate(-1.0 if slow else -4.5, 0.6) for _ in range(count // 10 if slow else count)]


def _filled(answer: Any, values: list[float], bounds: tuple[float, ...] = BOUNDS) -> Any:
    histogram = answer(bounds)
    for value in values:
        histogram.observe(value)
    return histogram


def _merged(histograms: list[Any]) -> Any:
    total = histograms[0]
    for one in histograms[1:]:
        total = total.merge(one)
        if total is None:
            raise Failed(UNCHANGED, "merge returned None: return a new histogram.")
    return total


def _bucket(value: float, bounds: tuple[float, ...]) -> tuple[float, float]:
    at = bisect.bisect_left(bounds, value)
    return (bounds[at - 1] if at else 0.0), (bounds[at] if at < len(bounds) else bounds[-1])


def _within(got: Any, values: list[float], q: float, bounds: tuple[float, ...]) -> bool:
    """Whether ``got`` is in the bucket of the q-quantile, by either of the two usual ranks."""
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise Failed(WITHIN, f"quantile({q:g}) returned {plain(repr(got))}: return seconds.")
    ordered = sorted(values)
    ranks = {math.ceil(q * len(ordered)) - 1, int(q * (len(ordered) - 1))}
    buckets = [_bucket(ordered[max(0, rank)], bounds) for rank in ranks]
    return any(low <= got <= high or math.isclose(got, high) for low, high in buckets)


def _same(one: Any, other: Any) -> bool:
    return all(math.isclose(one.quantile(q), other.quantile(q), rel_tol=1e-9) for q in QUANTILES)


def check_histogram(answer: Any, prove: Prove) -> None:
    """The scenes in order."""
    for scene in (_alone, _edges, _eight, _orders, _copies, _empty, _refusal, _memory, _chain):
        run = call(scene, answer, prove)
        if isinstance(run.error, Failed):
            raise run.error
        run.result()


def _alone(answer: Any, prove: Prove) -> None:
    spread = [(number + 0.5) / 1000 for number in range(1000)]  # evenly over a second, none on a bound
    for values, bounds in ((_worker(0), BOUNDS), (spread, BOUNDS), (spread, (0.1, 0.5, 1.0)), ([0.03], BOUNDS)):
        histogram = _filled(answer, values, bounds)
        got = [histogram.quantile(q) for q in QUANTILES]
        for q, one in zip(QUANTILES, got, strict=True):
            told = f"Of {len(values)} values, quantile({q:g}) returned {plain(repr(one))}; the value of that rank is in another bucket."
            prove(WITHIN, _within(one, values, q, bounds), told)
        prove("a larger q has no smaller quantile", got == sorted(got), "quantile(0.5) is above quantile(0.99), or so.")


def _edges(answer: Any, prove: Prove) -> None:
    histogram = _filled(answer, [0.1] * 100, (0.1, 0.2, 0.4))
    got = histogram.quantile(0.5)
    prove(EDGE, 0 <= got <= 0.1, f"100 values were 0.1, which is a bound, and quantile(0.5) is {plain(repr(got))}.")
    for values in ([7.0, 8.0, 9.0], [0.05] * 9 + [50.0] * 9):
        got = _filled(answer, values, (0.1, 0.2, 0.4)).quantile(0.99)
        told = f"The last bound is 0.4 and half of the values are above it: quantile(0.99) is {plain(repr(got))}."
        prove(TOP, got == 0.4, told)


def _eight(answer: Any, prove: Prove) -> None:
    shares = [_worker(number) for number in range(WORKERS)]
    total, everything = _merged([_filled(answer, share) for share in shares]), list(itertools.chain(*shares))
    for q in QUANTILES:
        got = total.quantile(q)
        told = f"Of 8 workers one is slow. Of all their values, quantile({q:g}) is in another bucket than {plain(repr(got))}."
        prove(MERGED, _within(got, everything, q, BOUNDS), told)
    told = "8 workers merged, and one histogram that observed the same values, have different quantiles."
    prove(MERGED, _same(total, _filled(answer, everything)), told)


def _orders(answer: Any, prove: Prove) -> None:
    def one(number: int) -> Any:
        return _filled(answer, _worker(number, 300))

    wanted = one(0).merge(one(1)).merge(one(7))
    for told, got in {
        "(a + b) + c and a + (b + c)": one(0).merge(one(1).merge(one(7))),
        "(a + b) + c and (c + b) + a": one(7).merge(one(1)).merge(one(0)),
    }.items():
        prove(ORDER, _same(got, wanted), f"{told} have different quantiles.")


def _copies(answer: Any, prove: Prove) -> None:
    one, other, alike = (_filled(answer, _worker(number, 300)) for number in (0, 7, 0))
    other_alike = _filled(answer, _worker(7, 300))
    total, again = one.merge(other), one.merge(other)
    prove(UNCHANGED, _same(one, alike), "After a.merge(b), a had other quantiles than before: return a new one.")
    prove(UNCHANGED, _same(other, other_alike), "After a.merge(b), b had other quantiles than before.")
    prove(UNCHANGED, _same(total, again), "a.merge(b), done twice, gave two results: something counts double.")
    both = one.merge(one)
    prove(UNCHANGED, _same(both, alike), "a.merge(a) must have the quantiles of a: every value is there twice.")
    for _ in range(5000):
        total.observe(3.0)
    prove(APART, _same(one, alike) and _same(other, other_alike), "What the merged one observed, a or b has counted.")
    for _ in range(5000):
        one.observe(3.0), other.observe(3.0)
    prove(APART, again.quantile(0.5) < 1, "What a and b observed after the merge, the merged one has counted.")
    for merge in (lambda full: full.merge(answer(BOUNDS)), lambda full: answer(BOUNDS).merge(full)):
        full = _filled(answer, _worker(0, 300))
        copy = merge(full)
        for _ in range(5000):
            copy.observe(3.0)
        prove(APART, _same(full, alike), "Merged with an empty one, a became the result itself: copy its counts.")


def _empty(answer: Any, prove: Prove) -> None:
    def quantile(histogram: Any) -> Any:
        run = call(histogram.quantile, 0.99)
        if run.error is not None:
            raise Failed(EMPTY, f"quantile(0.99) of an empty histogram raised {type(run.error).__name__}: return nan.")
        return run.value

    for got in (quantile(answer(BOUNDS)), quantile(answer(BOUNDS).merge(answer(BOUNDS)))):
        told = f"Of an empty histogram, quantile(0.99) is {plain(repr(got))}: return nan."
        prove(EMPTY, isinstance(got, float) and math.isnan(got), told)
    full, alike = _filled(answer, _worker(0, 300)), _filled(answer, _worker(0, 300))
    same = _same(full.merge(answer(BOUNDS)), alike) and _same(answer(BOUNDS).merge(full), alike)
    prove(EMPTY, same, "Merged with an empty histogram, another one has other quantiles than before.")


def _refusal(answer: Any, prove: Prove) -> None:
    for bounds in ((0.1, 0.5, 1.0), BOUNDS[:-1], (*BOUNDS[:-1], 7.5)):
        run = call(lambda bounds: _filled(answer, [0.03]).merge(_filled(answer, [0.03], bounds)), bounds)
        told = f"raised {type(run.error).__name__}" if run.error else "returned something"
        told = f"Merging a histogram with other bounds {told}: raise ValueError."
        prove(REFUSES, isinstance(run.error, ValueError), told)


def _memory(answer: Any, prove: Prove) -> None:
    numbers = random.Random(3)
    histogram = _filled(answer, [0.03] * 100)
    with traced_memory() as memory:
        for _ in range(MANY):
            histogram.observe(numbers.random())
    told = f"Its memory grew with each of {MANY:,} values: keep a count for each bucket, and no values."
    prove(MEMORY, memory.peak < MOST_BYTES, told)


def _chain(answer: Any, prove: Prove) -> None:
    """What a dashboard does all day: add the newest scrape."""
    total = answer(BOUNDS)
    with traced_memory() as memory:
        for _ in range(MERGES):
            total = total.merge(_filled(answer, [0.03] * 9 + [0.3]))
        run = call(total.quantile, 0.99)
    told = f"After {MERGES:,} merges, quantile raised {type(run.error).__name__}." if run.error else ""
    told = told or f"Its memory grew with each of {MERGES:,} merges: add the counts up, and keep nothing else."
    prove(FLAT, run.error is None and memory.peak < MOST_BYTES, told)
    prove(FLAT, 0.25 <= run.value <= 0.5, "After many merges of the same histogram, its p99 was in another bucket.")


EXERCISES = [
    Exercise(
        "7.3", "percentiles that can be merged", "Histogram(bounds)", ("bounds",),
        three_hints("""
            From two workers' p99, can you tell the p99 of both? What can be added up, and what must be kept for
            it?

            One count for each bucket, and one for what is above the last bound. merge adds them, place by
            place, into a new histogram. bisect.bisect_left(bounds, value) finds the place.

            rank = q * sum(counts); go through the buckets until their counts reach the rank; then
            low + (high - low) * (rank - before) / count. No count: nan. Past the last bound: the last bound.
        """),
        check_histogram,
    ),
]  # fmt: skip
