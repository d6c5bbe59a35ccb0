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

import matplotlib
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

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
    return float(np.max(np.abs(middle - np.array(theory)) / np.array(theory)))


def knee(
    axes: Sequence[Axes],
    concurrency: Sequence[int],
    throughput: Sequence[Sequence[float]],
    latency: Sequence[Sequence[float]],
    *,
    service_time: float,
    capacity: float,
) -> tuple[float, float]:
    """Throughput and latency against concurrency, side by side, with their bounds and the knee.

    Args:
        axes: two axes: throughput is drawn on the first, latency on the second.
        concurrency: how many requests were kept in flight.
        throughput: for each concurrency the repeats, in completions per second.
        latency: for each concurrency the repeats, in seconds; drawn in milliseconds.
        service_time: seconds of one request alone.
        capacity: the most completions per second.

    Returns:
        The largest ``|median - theory| / theory`` of the throughput, and that of the latency.

    Raises:
        ValueError: the three sequences differ in length.
    """
    from . import theory

    if not len(concurrency) == len(throughput) == len(latency):
        raise ValueError(
            f"knee: {len(concurrency)} concurrencies, {len(throughput)} groups of throughputs and {len(latency)} of latencies do not match."
        )
    at = capacity * service_time
    smooth = np.unique([*np.geomspace(min(concurrency), max(concurrency), 100), at])
    in_ms = [[1000 * seconds for seconds in group] for group in latency]
    panels = (
        (throughput, theory.throughput_bound, 1, "X = min(N / S, μ)", "Does it get more done?", "completions per second"),
        (in_ms, theory.response_time_bound, 1000, "R = max(S, N / μ)", "How long does each take?", "latency (ms)"),
    )  # fmt: skip
    left_half = at < np.sqrt(min(concurrency) * max(concurrency))
    # Where no curve goes: below the throughput, and above the latency on the wider side of the knee.
    places = ((0.03, "left"), (0.55, "left" if left_half else "right"))
    residuals = []
    for panel, place, (runs, bound, scale, formula, title, unit) in zip(axes, places, panels, strict=True):
        line = [scale * bound(n, service_time, capacity) for n in smooth]
        panel.plot(smooth, line, color=THEORY, linestyle="--", label=f"theory: {formula}", zorder=1)
        expected = [scale * bound(n, service_time, capacity) for n in concurrency]
        residuals.append(_median_and_range(panel, concurrency, runs, expected))
        panel.axvline(at, ymax=0.72, color=OTHER, linestyle=":", zorder=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(concurrency, [str(n) for n in concurrency])
        panel.minorticks_off()
        panel.set(title=title, xlabel="requests in flight, N", ylabel=unit)
        panel.set_ylim(0, 1.35 * max(max(line), *(max(group) for group in runs)))  # room for the legend
        panel.legend(loc="upper left")
        panel.annotate(
            f"knee\nN* = μS = {at:g}",
            (at, place[0]),
            xycoords=("data", "axes fraction"),
            xytext=(5 if place[1] == "left" else -5, 0),
            textcoords="offset points",
            ha=place[1],
            fontsize=9,
            color=OTHER,
        )
    return residuals[0], residuals[1]


def storm(
    axes: Axes,
    seconds: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    stall: tuple[float, float],
    load: float,
    capacity: float,
) -> None:
    """Answers in time per second, before, during and after a stall, one line a variant, named at its end.

    Args:
        seconds: the middle of each stretch that was counted, since the start.
        series: for each variant the answers in time per second, as long as ``seconds``.
        stall: when the server stopped, and when it went on.
        load: requests per second, without retries.
        capacity: the most requests per second that the server can do.

    Raises:
        ValueError: a variant is not as long as ``seconds``, or there are more than four.
    """
    looks = ((MEASURED, "-", "o"), (BLOCKED, "--", "s"), (THEORY, "-.", "^"), (OTHER, ":", "D"))
    if len(series) > len(looks):
        raise ValueError(f"storm: {len(series)} variants are too many to tell apart: draw at most {len(looks)}.")
    top = 1.25 * max(capacity, load, *(max(values) for values in series.values()))
    axes.set_ylim(0, top)
    axes.axvspan(*stall, color=WAITING, alpha=0.6, linewidth=0, zorder=0)
    axes.text(sum(stall) / 2, 0.99 * top, "stall", ha="center", va="top", fontsize=9)
    for level, name in ((capacity, "capacity μ"), (load, "load λ")):
        axes.axhline(level, color="#777777", linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            f"{name} = {level:g}",
            (min(seconds), level),
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=9,
            color="#555555",
        )
    ends, every = [], max(1, len(seconds) // 12)
    for row, ((name, values), (color, style, marker)) in enumerate(zip(series.items(), looks, strict=False)):
        if len(values) != len(seconds):
            raise ValueError(f"storm: {len(seconds)} times and {len(values)} values of {name!r} do not match.")
        beside = (row * every // len(series), every)  # lines on top of each other show all their markers
        axes.plot(seconds, values, color=color, linestyle=style, marker=marker, markevery=beside, markersize=5)
        ends.append((float(np.mean(values[-every:])), name, color, marker))
    line_height = top * 14 / (72 * 0.7 * axes.figure.get_figheight())  # 14 points, in the unit of the axis
    free = 0.0  # where the next label may begin
    for value, name, color, marker in sorted(ends, key=lambda end: end[0]):
        height = line_height * (1 + name.count("\n"))
        middle = max(value, free + height / 2)
        free = middle + height / 2
        sign = {"o": "●", "s": "■", "^": "▲", "D": "◆"}[marker]
        axes.annotate(
            f"{sign} {name}",
            (1, middle),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=color,
        )
    axes.set_xlabel("time since start (s)")
    axes.set_ylabel("answers in time per second")


def storm_plane(
    axes: Axes, retries: Sequence[int], loads: Sequence[float], stuck: Sequence[Sequence[bool]], *, capacity: float
) -> int:
    """Which servers stay down after a stall, on the plane of load and retries, with the line λ(1 + r) = μ.

    Args:
        retries: the rows: retries of each request.
        loads: the columns: requests per second, without retries.
        stuck: for each row and column whether the server stayed down.
        capacity: the most requests per second that the server can do.

    Returns:
        How many points lie on the wrong side of the line.

    Raises:
        ValueError: ``stuck`` has not one row for each of ``retries`` and one column for each of ``loads``.
    """
    from . import theory

    down = np.asarray(stuck, dtype=bool)
    if down.shape != (len(retries), len(loads)):
        raise ValueError(
            f"storm_plane: {len(retries)} rows of {len(loads)} are needed, one a number of retries, and stuck has the shape {down.shape}."
        )
    x, y = np.meshgrid(np.asarray(loads) / capacity, retries)
    axes.plot(x[~down], y[~down], "o", markerfacecolor="none", color=THEORY, markersize=8, label="recovers")
    axes.plot(x[down], y[down], "D", color=BLOCKED, markersize=7, label="stays down")
    rows = np.linspace(max(min(retries) - 0.4, -0.1), max(retries) + 0.4, 100)
    axes.plot(1 / (1 + rows), rows, color=RUNNING, linestyle="--", zorder=1)
    middle = min(retries) + 0.33  # between two rows of points
    axes.set(xlim=(0, max(1.12, 1.05 * float(x.max()))), ylim=(min(retries) - 0.5, max(retries) + 0.5))
    axes.text(
        1 / (1 + middle),
        middle + 0.06,
        "λ(1 + r) = μ",
        fontsize=9,
        ha="center",
        va="bottom",
        rotation=float(np.degrees(np.arctan(-((1 + middle) ** 2)))),  # along the line
        rotation_mode="anchor",
        transform_rotates_text=True,
    )
    axes.set_yticks(retries)
    axes.set_xlabel("load / capacity, λ / μ")
    axes.set_ylabel("retries of each request, r")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    expected = [[theory.storm_stays(load, capacity, each) for load in loads] for each in retries]
    return int((down != np.array(expected)).sum())


def ladder(axes: Axes, rungs: Mapping[str, Sequence[float]], *, unit: str) -> None:
    """Horizontal bars on a log axis, one a rung, with the median beside the bar and the range on it."""
    names = list(rungs)
    middles = [float(np.median(rungs[name])) for name in names]
    for row, (name, middle) in enumerate(zip(names, middles, strict=True)):
        axes.barh(row, middle, color=NETWORK, edgecolor=RUNNING, linewidth=0.6, height=0.6)
        axes.plot([min(rungs[name]), max(rungs[name])], [row, row], color=RUNNING, linewidth=1.2)
        axes.annotate(
            f"{middle:.2g} {unit}",
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
    axes: Axes, values: Mapping[str, float], *, unit: str, theory: Mapping[str, float] | None = None, digits: int = 2
) -> None:
    """Horizontal bars with their value beside them; a dashed tick marks what the theory says."""
    names = list(values)
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
        reach = max(values[name], theory[name] if theory is not None else 0)
        axes.annotate(
            f"{values[name]:.{digits}f} {unit}".strip(),
            (reach, row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlim(left=0)


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
