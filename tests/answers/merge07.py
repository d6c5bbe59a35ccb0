"""Right and wrong answers to exercise 7.3, percentiles that can be merged.

Every wrong answer names the property that its check must report as missing.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import math
import statistics

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

WITHIN = "a quantile is off by no more than the width of its bucket"
MERGED = "merging is as good as having observed it all"
UNCHANGED = "merge leaves both as they were"
APART = "the merged one lives its own life"
MEMORY = "memory does not grow with what it observed"
FLAT = "memory does not grow with what was merged"
EMPTY = "an empty histogram has no quantile, and adds nothing"
TOP = "above the last bound it says the last bound"
EDGE = "a value on a bound belongs below it"
REFUSES = "refuses to merge other bounds"


@stub("7.3")
class HistogramStub:
    def __init__(self, bounds):
        raise NotImplementedError

    def observe(self, value):
        raise NotImplementedError

    def merge(self, other):
        raise NotImplementedError

    def quantile(self, q):
        raise NotImplementedError


@stub("7.3")
class SilentStub:
    def __init__(self, bounds):
        """Keep the bounds."""

    def observe(self, value):
        """Count one value."""

    def merge(self, other):
        """Return a new one."""

    def quantile(self, q):
        """Return seconds."""


@right("7.3")
class Histogram:
    def __init__(self, bounds):
        self.bounds, self.counts = bounds, [0] * (len(bounds) + 1)

    def observe(self, value):
        self.counts[bisect.bisect_left(self.bounds, value)] += 1

    def merge(self, other):
        if self.bounds != other.bounds:
            raise ValueError("other bounds")
        both = type(self)(self.bounds)
        both.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        return both

    def quantile(self, q):
        rank, before, low = q * sum(self.counts), 0, 0.0
        if not any(self.counts):
            return math.nan
        for high, count in zip(self.bounds, self.counts, strict=False):
            if count and before + count >= rank:
                return low + (high - low) * (rank - before) / count
            before, low = before + count, high
        return self.bounds[-1]


@right("7.3")
class Cumulative:
    """As Prometheus exposes it: each bucket counts those below it too; says the bucket's upper end."""

    def __init__(self, bounds):
        self.bounds, self.below, self.count = tuple(bounds), [0] * len(bounds), 0

    def observe(self, value):
        self.count += 1
        for at in range(bisect.bisect_left(self.bounds, value), len(self.bounds)):
            self.below[at] += 1

    def merge(self, other):
        if self.bounds != other.bounds:
            raise ValueError("other bounds")
        both = Cumulative(self.bounds)
        both.below = [sum(pair) for pair in zip(self.below, other.below, strict=True)]
        both.count = self.count + other.count
        return both

    def quantile(self, q):
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(q * self.count))
        return self.bounds[min(bisect.bisect_left(self.below, rank), len(self.bounds) - 1)]


@right("7.3")
class Sparse:
    """A Counter of buckets, and the geometric middle between their ends."""

    def __init__(self, bounds, counts=()):
        self.bounds, self.counts = bounds, collections.Counter(dict(counts))

    def observe(self, value):
        self.counts[bisect.bisect_left(self.bounds, value)] += 1

    def merge(self, other):
        if list(self.bounds) != list(other.bounds):
            raise ValueError("other bounds")
        return Sparse(self.bounds, self.counts + other.counts)

    def quantile(self, q):
        rank, ends = q * self.counts.total(), [*self.bounds, self.bounds[-1]]
        for at in sorted(self.counts):
            if (rank := rank - self.counts[at]) <= 0:
                return math.sqrt(ends[at - 1] * ends[at]) if at else ends[0] / 2
        return math.nan


@wrong("7.3", MERGED)
class AverageOfQuantiles(Histogram):
    """Each worker's own p99, averaged."""

    def __init__(self, bounds):
        super().__init__(bounds)
        self.parts = [self]

    def merge(self, other):
        both = type(self)(self.bounds)
        both.parts = self.parts + other.parts
        return both

    def combine(self, values):
        return statistics.fmean(values)

    def quantile(self, q):
        return self.combine([Histogram.quantile(part, q) for part in self.parts])


@wrong("7.3", MERGED)
class LargestOfQuantiles(AverageOfQuantiles):
    def combine(self, values):
        return max(values)


@wrong("7.3", MEMORY)
class RawValues:
    def __init__(self, bounds):
        self.bounds, self.values = bounds, []

    def observe(self, value):
        self.values.append(value)

    def merge(self, other):
        if self.bounds != other.bounds:
            raise ValueError("other bounds")
        both = RawValues(self.bounds)
        both.values = self.values + other.values
        return both

    def quantile(self, q):
        if not self.values:
            return math.nan
        value = sorted(self.values)[max(0, math.ceil(q * len(self.values)) - 1)]
        return min(value, self.bounds[-1])


@wrong("7.3", WITHIN)
class LastThousand(RawValues):
    """Bounded, but it forgets."""

    def observe(self, value):
        self.values = [*self.values[-99:], value]


@wrong("7.3", WITHIN)
class NormalCurve:
    """Mean and variance are easy to merge, and say nothing of the tail."""

    def __init__(self, bounds):
        self.bounds, self.sums = bounds, (0, 0.0, 0.0)

    def observe(self, value):
        self.sums = self.sums[0] + 1, self.sums[1] + value, self.sums[2] + value * value

    def merge(self, other):
        if self.bounds != other.bounds:
            raise ValueError("other bounds")
        both = NormalCurve(self.bounds)
        both.sums = tuple(map(sum, zip(self.sums, other.sums, strict=True)))
        return both

    def quantile(self, q):
        count, total, squares = self.sums
        if not count:
            return math.nan
        mean = total / count
        spread = math.sqrt(max(1e-12, squares / count - mean * mean))
        return min(statistics.NormalDist(mean, spread).inv_cdf(q), self.bounds[-1])


@wrong("7.3", TOP)
class OffTheTop(Histogram):
    """Goes on with the width of the last bucket."""

    def quantile(self, q):
        rank = q * sum(self.counts)
        if self.counts[-1] and rank > sum(self.counts[:-1]):
            width = self.bounds[-1] - self.bounds[-2]
            return self.bounds[-1] + width * (rank - sum(self.counts[:-1])) / self.counts[-1]
        return super().quantile(q)


@wrong("7.3", TOP)
class InfiniteTop(OffTheTop):
    def quantile(self, q):
        above = q * sum(self.counts) > sum(self.counts[:-1])
        return math.inf if above else super().quantile(q)


@wrong("7.3", UNCHANGED)
class MergesInPlace(Histogram):
    def merge(self, other):
        if self.bounds != other.bounds:
            raise ValueError("other bounds")
        for at, count in enumerate(other.counts):
            self.counts[at] += count
        return self


@wrong("7.3", UNCHANGED)
class ReturnsNothing(MergesInPlace):
    def merge(self, other):
        super().merge(other)


@wrong("7.3", UNCHANGED)
class EmptiesTheOther(Histogram):
    """As if it moved the counts."""

    def merge(self, other):
        both = super().merge(other)
        other.counts = [0] * len(other.counts)
        return both


@wrong("7.3", APART)
class LiveView(Histogram):
    """The merged one goes on counting what its parts count."""

    def __init__(self, bounds):
        super().__init__(bounds)
        self.views = []

    def merge(self, other):
        both = super().merge(other)
        self.views.append(both), other.views.append(both)
        return both

    def observe(self, value):
        super().observe(value)
        for view in self.views:
            view.observe(value)


@wrong("7.3", APART)
class AddsNothingToNothing(Histogram):
    """Nothing to add: hands out the counts of the other one."""

    def merge(self, other):
        both = super().merge(other)
        if not any(self.counts):
            both.counts = other.counts
        return both


@wrong("7.3", FLAT)
class KeepsItsParts(Histogram):
    """Adds up at the end, from all that was ever merged."""

    old = ()

    def merge(self, other):
        if self.bounds != other.bounds:
            raise ValueError("other bounds")
        both = type(self)(self.bounds)
        both.old = (*self.old, *other.old, tuple(self.counts), tuple(other.counts))
        return both

    def quantile(self, q):
        total = Histogram(self.bounds)
        total.counts = [sum(column) for column in zip(self.counts, *self.old, strict=True)]
        return total.quantile(q)


@wrong("7.3", MERGED)
class AddsUpTwice(Cumulative):
    """Cumulative counts, merged, and then made cumulative once more."""

    def merge(self, other):
        both = super().merge(other)
        both.below = list(itertools.accumulate(both.below))
        both.count = both.below[-1]
        return both


@wrong("7.3", REFUSES)
class AnyBounds(Histogram):
    def merge(self, other):
        both = type(self)(self.bounds)
        both.counts = [mine + its for mine, its in itertools.zip_longest(self.counts, other.counts, fillvalue=0)]
        return both


@wrong("7.3", REFUSES)
class OnlyAsMany(Histogram):
    """Looks at the number of bounds only."""

    def merge(self, other):
        both = type(self)(self.bounds)
        both.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        return both


@wrong("7.3", EDGE)
class AboveTheBound(Histogram):
    def observe(self, value):
        self.counts[bisect.bisect_right(self.bounds, value)] += 1


@wrong("7.3", EMPTY)
class ZeroWhenEmpty(Histogram):
    def quantile(self, q):
        return super().quantile(q) if any(self.counts) else 0.0


@wrong("7.3", EMPTY)
class RaisesWhenEmpty(Cumulative):
    def quantile(self, q):
        return super().quantile(q) if 1 / self.count else math.nan


@wrong("7.3", WITHIN)
class LastBucketOnly(Histogram):
    """The upper end of the highest bucket that holds anything."""

    def quantile(self, q):
        filled = [high for high, count in zip(self.bounds, self.counts, strict=False) if count]
        return filled[-1] if filled else super().quantile(q)
