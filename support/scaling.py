"""How throughput grows with the number of workers, drawn against its ceiling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from support import figures, theory


def draw(
    axes: Axes, workers: Sequence[int], rates: Sequence[float], ceiling: Sequence[float], *, formula: str
) -> float:
    """Requests per second with 1 and more workers, the most that is possible, and the USL fitted; returns its contention.

    The USL is fitted without coherence, as Amdahl's law: contention 0 is in proportion, 1 is no gain at all.
    Raises ValueError when the lengths differ, or the workers do not begin with 1.
    """
    contention = theory.usl_contention(workers, rates)
    figures.measured_against_theory(
        axes, workers, [[rate] for rate in rates], ceiling, formula=f"at most\n{formula}", label="measured"
    )
    fine = np.linspace(min(workers), max(workers))
    fitted = [theory.usl_throughput(count, rates[0], contention, 0) for count in fine]
    axes.plot(fine, fitted, ":", color=figures.OTHER, label=f"USL, contention {contention:.2f}")
    axes.set(xlabel="workers, W", xticks=workers, ylim=(0, 1.9 * max(*ceiling, *rates)))
    axes.legend(loc="upper left", fontsize=8)
    return contention
