"""Figures of what grows with the number of workers: throughput, what a limit lets in, the gain of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from support import figures, theory


def draw(
    axes: Axes, workers: Sequence[int], rates: Sequence[float], ceiling: Sequence[float], *, formula: str
) -> float:
    """Requests per second with 1 and more workers, the most that is possible, and the USL fitted; returns its contention.

    The USL is fitted without coherence, as Amdahl's law: contention 0 is in proportion, 1 is no gain at all.
    Where more workers gave less than one, the fit is above 1, which the law does not know: it is drawn as 1.
    Raises ValueError when the lengths differ, or the workers do not begin with 1.
    """
    contention = min(1.0, theory.usl_contention(workers, rates))
    figures.measured_against_theory(
        axes, workers, [[rate] for rate in rates], ceiling, formula=f"at most\n{formula}", label="measured"
    )
    fine = np.linspace(min(workers), max(workers))
    fitted = [theory.usl_throughput(count, rates[0], contention, 0) for count in fine]
    axes.plot(fine, fitted, ":", color=figures.OTHER, label=f"USL, contention {contention:.2f}")
    axes.set(xlabel="workers, W", xticks=workers, ylim=(0, 1.9 * max(*ceiling, *rates)))
    axes.legend(loc="upper left", fontsize=8)
    return contention


def draw_laws(
    axes: Axes,
    x: Sequence[float],
    measured: Mapping[str, Sequence[float]],
    laws: Mapping[str, tuple[str, Sequence[float]]],
    *,
    label: str,
) -> float:
    """Draw what was measured in several ways, each beside its law, a (formula, values) pair; return the worst residual.

    Each law has a dash of its own, and its formula at its end. label: what stands before a way's name in the legend.
    Raises ValueError for more than four ways, and KeyError for one without measurements.
    """
    looks = list(zip("os^D", ((0, (6, 2)), (0, (2, 2)), "-.", ":"), strict=True))
    if not 1 <= len(laws) <= len(looks):
        raise ValueError(f"draw_laws(): it takes one to {len(looks)} laws, not {len(laws)}.")
    residuals = []
    for (name, (formula, law)), (marker, dash) in zip(laws.items(), looks, strict=False):
        first, points = len(axes.lines), [[one] for one in measured[name]]
        residuals.append(
            figures.measured_against_theory(
                axes, x, points, law, formula=formula, label=f"{label} {name}", marker=marker
            )
        )
        axes.lines[first].set_linestyle(dash)
        axes.annotate(formula, (x[-1], law[-1]), xytext=(-12, 5), textcoords="offset points", ha="right")
    axes.legend(loc="upper left")
    return max(residuals)


def draw_gain(
    axes: Axes, sizes_ms: Sequence[float], gain: Sequence[Sequence[float]], overhead_ms: float, workers: int, found_ms: float
) -> None:  # fmt: skip
    """How many times as fast a cluster is, by the size of a task, beside s / (o + s / W), and both break-even sizes.

    gain: the repeats for each size. overhead_ms: o, the cost of a task that does nothing. found_ms: where the measured
    line crosses 1; the formula does at o W / (W - 1). Raises ValueError for fewer than two workers.
    """
    if workers < 2:
        raise ValueError(f"draw_gain(): one worker has no break-even, so workers cannot be {workers!r}.")
    law, even_ms = [s / (overhead_ms + s / workers) for s in sizes_ms], overhead_ms * workers / (workers - 1)
    figures.measured_against_theory(axes, sizes_ms, gain, law, formula="s / (o + s / W)")
    axes.axhline(1, color=figures.RUNNING, linewidth=0.6)
    for at, colour, dash, label in ((even_ms, figures.THEORY, ":", "break-even: s = o W / (W - 1)"),
                                    (found_ms, figures.MEASURED, "-.", "measured break-even")):  # fmt: skip
        axes.plot([at, at], [0, 1], dash, color=colour, label=label)
    axes.set(xscale="log", title="From which size on is it faster?", ylim=(0, 3.4))
    axes.set(xlabel="s: computing of one task (ms)", ylabel="times as fast as in this process")
    axes.set_xticks(sizes_ms, [f"{size:g}" for size in sizes_ms])
    axes.minorticks_off()
    axes.legend(loc="upper left", fontsize=8)


def draw_fullest(axes: Axes, servers: Sequence[int], most: Mapping[int, Sequence[float]], runs: Sequence[int]) -> float:
    """Requests at the fullest of n servers, n requests at once, against n; return the worst residual.

    most: for 1 and for 2 random choices, the mean over `runs` runs for each number of servers. The laws are the
    expected maxima, `theory.most_in_one_bin`; least connections, with news that is fresh, stays at 1.
    Raises KeyError for another number of choices.
    """
    looks = {1: ("random", "ln n / ln ln n", {"marker": "s", "color": figures.BLOCKED}),
             2: ("two choices", "ln ln n / ln 2", {"marker": "o", "color": figures.MEASURED})}  # fmt: skip
    residuals = []
    for choices, means in most.items():
        name, growth, style = looks[choices]
        law = [theory.most_in_one_bin(n, choices) for n in servers]
        axes.annotate(name, (servers[-1], law[-1]), xytext=(-14, 5), textcoords="offset points", ha="right")
        label = f"{name}, mean of {min(runs)} to {max(runs)} runs"
        formula = f"expected maximum, {name}; grows as {growth}"
        points = [[mean] for mean in means]
        residuals.append(
            figures.measured_against_theory(axes, servers, points, law, **style, label=label, formula=formula)
        )
    axes.axhline(1, color=figures.NETWORK, label="least connections, with news that is fresh: 1")
    axes.set(xlabel="servers n, and as many requests at once", ylabel="requests at the fullest")
    axes.set(xscale="log", ylim=(0, 13))
    axes.legend(loc="upper left")
    return max(residuals)
