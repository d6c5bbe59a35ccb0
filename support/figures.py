"""The style of every figure, and the drawings that the chapters share.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; height, hatch or marker
doubles every colour.
"""

from __future__ import annotations

import base64
import html
import io
import os
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .imports import import_whole

import_whole("numpy", "matplotlib.figure")  # every chapter comes by here

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.collections import PolyCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNNING, READY, NETWORK, WAITING, BLOCKED = "#1a1a1a", "#e69f00", "#56b4e9", "#c9d6e4", "#d55e00"
THEORY, MEASURED, OTHER = "#0072b2", "#1a1a1a", "#cc79a7"
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 100, "figure.facecolor": "white", "font.size": 10, "font.family": "DejaVu Sans",
    "axes.titlesize": 11, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.titlepad": 10,
    "axes.labelsize": 10, "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.8, "axes.axisbelow": True,
}  # fmt: skip
WIDTH = 8.6  # inches; about 12 cm of readable text on a laptop screen
LARGE = 200_000  # bytes of a picture


def use_style() -> None:
    """Apply the one style of the course to every figure drawn from now on."""
    matplotlib.rcParams.update(STYLE)


def footnote() -> str:
    """What a figure was measured on: versions, system, cores. It differs between machines, so it never goes into text."""
    return f"measured on Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores"


def new_figure(height: float = 3.6, columns: int = 1, *, sharey: bool = False) -> tuple[Figure, Any]:
    """A figure in the course's size with one axes, or an array of ``columns`` axes. Height in inches."""
    use_style()
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=sharey)


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` as a picture, and below it the same in words, folded.

    JupyterLab gives a picture no alternative text of its own, so the words are an output beside
    it; they are also the picture's plain-text form, and in its metadata for other viewers.

    Raises:
        ValueError: ``alt`` is shorter than 20 characters: say what is to be seen.
    """
    if len(alt.strip()) < 20:
        raise ValueError(f"show(alt={alt!r}): describe in a sentence what is to be seen in the figure.")
    from IPython.display import display

    from . import kernel, scoreboard

    if kernel.chapter:
        scoreboard.keep(figure, kernel.chapter)
    display({"image/png": png(figure), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})
    words = f"<details><summary>The figure in words</summary>{html.escape(alt)}</details>"
    display({"text/html": words, "text/plain": ""}, raw=True)


def png(figure: Figure) -> str:
    """The figure as a base64 PNG, with the footnote in its corner."""
    strip = 0.2 / figure.get_figheight()  # inches kept free for the footnote
    figure.text(0.995, 0.1 * strip, footnote(), ha="right", va="bottom", fontsize=6.5, color="#777777")
    figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip), h_pad=0.03)  # type: ignore[union-attr, call-arg]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    if len(buffer.getvalue()) > LARGE:  # a tall sheet of text: with a palette it takes a quarter
        from PIL import Image

        drawn, buffer = Image.open(buffer), io.BytesIO()
        drawn.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def measured_against_theory(
    axes: Axes,
    x: Sequence[float],
    runs: Sequence[Sequence[float]],
    theory: Sequence[float],
    *,
    formula: str,
    label: str = "measured: median and range",
    color: str = MEASURED,
    marker: str = "o",
) -> float:
    """Points with their range over repeats, and the theory line; returns the worst residual.

    Args:
        x: the varied quantity.
        runs: for each x, the repeats.
        theory: for each x, what the formula says, in the unit of the runs.
        formula: goes into the legend.

    Returns:
        The largest ``|median - theory| / theory`` over all x.

    Raises:
        ValueError: the three sequences differ in length.
    """
    if not len(x) == len(runs) == len(theory):
        raise ValueError(
            f"measured_against_theory: {len(x)} x values, {len(runs)} groups of runs and {len(theory)} theory values do not match."
        )
    axes.plot(x, theory, color=THEORY, linestyle="--", label=f"theory: {formula}", zorder=1)
    return _median_and_range(axes, x, runs, theory, label=label, color=color, marker=marker)


def _median_and_range(
    axes: Axes,
    x: Sequence[float],
    runs: Sequence[Sequence[float]],
    theory: Sequence[float],
    *,
    label: str = "measured: median and range",
    color: str = MEASURED,
    marker: str = "o",
) -> float:
    middle = np.array([np.median(group) for group in runs])
    low, high = np.array([min(group) for group in runs]), np.array([max(group) for group in runs])
    axes.errorbar(
        x,
        middle,
        yerr=[middle - low, high - middle],
        color=color,
        marker=marker,
        linestyle="none",
        capsize=3,
        label=label,
        zorder=2,
    )
    _note(axes, label, x, middle, theory)
    return float(np.max(np.abs(middle - np.array(theory)) / np.array(theory)))


def _note(axes: Axes, label: str, x: Sequence[float], measured: Sequence[float], theory: Sequence[float]) -> None:
    from . import scoreboard

    scoreboard.note(axes, label, x, measured, theory)


def ladder(axes: Axes, rungs: Mapping[str, Sequence[float]], *, unit: str) -> None:
    """Horizontal bars on a log axis, one a rung, with the median beside the bar and the range on it."""
    names = list(rungs)
    middles = [float(np.median(rungs[name])) for name in names]
    for row, (name, middle) in enumerate(zip(names, middles, strict=True)):
        axes.barh(row, middle, color=NETWORK, edgecolor=RUNNING, linewidth=0.6, height=0.6)
        axes.plot([min(rungs[name]), max(rungs[name])], [row, row], color=RUNNING, linewidth=1.2)
        axes.annotate(
            f"{float(f'{middle:.2g}'):g} {unit}",
            (max(rungs[name]), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.set_xlim(min(middles) / 3, max(max(group) for group in rungs.values()) * 6)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"cost of one ({unit}, logarithmic)")


def bars(
    axes: Axes, values: Mapping[str, float], *, unit: str, theory: Mapping[str, float] | None = None, digits: int = 2,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> None:  # fmt: skip
    """Horizontal bars with their value beside them; a dashed tick marks what the theory says, a thin line the range."""
    names = list(values)
    if theory is not None:
        _note(axes, unit, range(len(names)), list(values.values()), [theory[name] for name in names])
    for row, name in enumerate(names):
        axes.barh(row, values[name], color=NETWORK, edgecolor=RUNNING, linewidth=0.6, height=0.55)
        if theory is not None:
            axes.plot(
                [theory[name]] * 2,
                [row - 0.42, row + 0.42],
                color=THEORY,
                linestyle="--",
                linewidth=2.2,
                label="theory" if row == 0 else None,
            )
        around = () if ranges is None else ranges[name]
        if ranges is not None:
            axes.plot(around, [row] * len(around), color=RUNNING, linewidth=1.2)
        reach = max(values[name], theory[name] if theory is not None else 0, *around)
        axes.annotate(
            f"{values[name]:.{digits}f} {unit}".strip(),
            (reach, row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            zorder=5,  # a line that crosses the words stays behind them
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlim(left=0)


def medians(axes: Axes, groups: Mapping[str, Sequence[float]], *, unit: str, digits: int = 2) -> None:
    """Horizontal bars, one a group, as long as its median; a thin line is the middle half of the group."""
    halves = {name: np.quantile(group, (0.25, 0.75)) for name, group in groups.items()}
    middles = {name: float(np.median(group)) for name, group in groups.items()}
    bars(axes, middles, unit=unit, digits=digits, ranges=halves)


def lag_trace(axes: Axes, due: Sequence[float], late: Sequence[float], *, color: str = MEASURED) -> None:
    """How late each beat of a heartbeat came: a wedge that opens when the beat is due and grows until it comes.

    Both in milliseconds. The width of a wedge is its height: a block of 300 ms is 300 ms wide.
    """
    high = [max(lateness, 0.0) for lateness in late]
    corners = [[(start, 0), (start + top, top), (start + top, 0)] for start, top in zip(due, high, strict=True)]
    axes.add_collection(PolyCollection(corners, facecolors=color, edgecolors=color, linewidths=0.8))
    axes.plot(due, [0] * len(due), "|", color=color, markersize=4)
    axes.autoscale_view()
    axes.set_xlabel("time since start (ms)")
    axes.set_ylabel("lateness (ms)")


def latency_cdf(axes: Axes, samples: Mapping[str, Sequence[float]], *, unit: str = "ms") -> None:
    """Share of requests at or below each latency, one line a series, labelled at its end."""
    for (name, values), style in zip(samples.items(), ("-", "--", ":", "-."), strict=False):
        ordered = np.sort(np.asarray(values, dtype=float))
        axes.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), linestyle=style, label=name)
    axes.set_xlabel(f"latency ({unit})")
    axes.set_ylabel("share of requests at or below")
    axes.set_ylim(0, 1.01)
    axes.legend()


def draw_timeline(axes: Axes, timeline: Any, **options: Any) -> None:
    """Draw a timeline on ``axes``; see :func:`support.swimlanes.draw`."""
    from .swimlanes import draw

    draw(axes, timeline, **options)


def show_timeline(
    timeline: Any, *, alt: str = "", beside: Any = None, height: float | None = None, **options: Any
) -> None:
    """Display one timeline, or two side by side on the same time scale.

    Args:
        timeline: what to draw.
        alt: what is to be seen, for readers who do not see it; a summary is made where it is empty.
        beside: a second timeline, drawn below on the same scale.
        height: inches; from the number of lanes where it is None.
        options: passed on to :func:`support.swimlanes.draw`.
    """
    from .swimlanes import draw, lanes_drawn, summary_text

    pair = [timeline] if beside is None else [timeline, beside]
    rows = [lanes_drawn(one) for one in pair]
    use_style()
    total = height or sum(1.35 + (0.27 if count <= 20 else 0.2) * count for count in rows)
    figure = Figure(figsize=(WIDTH, total), layout="constrained")
    panels = figure.subplots(len(pair), 1, squeeze=False, sharex=True, height_ratios=[count + 3 for count in rows])[
        :, 0
    ]
    for panel, one in zip(panels, pair, strict=True):
        draw(panel, one, key=one is pair[-1], **options)
    if beside is not None:
        panels[0].set_xlabel("")
        for panel in panels:
            panel.set_xlim(right=max(one.makespan for one in pair) * 1000 * 1.02)
    show(figure, alt or " ".join(summary_text(one) for one in pair))


def __getattr__(name: str) -> Any:
    """The curves of single laws stand in a room of their own."""
    from . import curves

    if name not in curves.__all__:
        raise AttributeError(f"support.figures has no {name!r}")
    return getattr(curves, name)
