"""The curves of single laws: the knee of a closed loop, a retry storm, a pool of connections.

`figures.knee` and so on lead here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from .figures import BLOCKED, MEASURED, OTHER, RUNNING, THEORY, WAITING, _median_and_range, _note

__all__ = ["knee", "pool_curve", "pool_waits", "storm", "storm_plane", "wait_survival"]


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


def pool_curve(
    axes: Axes,
    series: Mapping[str, tuple[Mapping[int, Sequence[float]], Callable[[float], float]]],
    formula: str,
    regimes: Mapping[str, tuple[float, float]],
    *,
    title: str,
) -> dict[str, dict[int, float]]:
    """Throughput against the connections of a pool, logarithmic: series for kinds of load, each with its theory line.

    Args:
        series: for each name the repeats at each number of connections, and the theory, a function of that
            number; both in completions per second; at most two. The first has all sizes.
        formula: goes into the legend.
        regimes: words, and where they start: (connections, completions per second).
        title: the question.

    Returns:
        For each series and size, the best run over the theory.

    Raises:
        ValueError: no series, more than two, or a size without repeats.
    """
    looks = ((MEASURED, "o"), (OTHER, "s"))
    if not 1 <= len(series) <= len(looks):
        raise ValueError(f"pool_curve: one or two series can be told apart, not {len(series)}.")
    sizes = sorted({size for runs, _ in series.values() for size in runs})
    smooth, best_over_law = np.geomspace(sizes[0], sizes[-1], 200), {}
    for row, ((name, (runs, law)), (color, marker)) in enumerate(zip(series.items(), looks, strict=False)):
        empty = [size for size, group in runs.items() if not group]
        if empty:
            raise ValueError(f"pool_curve: {name!r} has no runs with {empty[0]} connections.")
        middle, low, high = (np.array([pick(group) for group in runs.values()]) for pick in (np.median, min, max))
        best_over_law[name] = {size: max(group) / law(size) for size, group in runs.items()}
        _note(axes, name, list(runs), middle, [law(size) for size in runs])
        line = [law(size) for size in smooth]
        axes.plot(smooth, line, color=THEORY, linestyle="--", label=None if row else f"theory: {formula}", zorder=1)
        axes.errorbar(
            list(runs),
            middle,
            yerr=[middle - low, high - middle],
            color=color,
            marker=marker,
            linestyle="none",
            capsize=3,
            label=name,
        )
    for words, place in regimes.items():
        axes.annotate(words, place, fontsize=9, color=BLOCKED)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    ends = [law(size) for _, law in series.values() for size in (sizes[0], sizes[-1])]
    lowest = min(run for runs, _ in series.values() for group in runs.values() for run in group)
    limits = min(0.25 * min(ends), 0.7 * lowest), 3 * max(ends)  # room for words above, the legend below
    axes.set(title=title, xlabel="connections K", ylabel="queries per second", yscale="log", ylim=limits)
    axes.legend(loc="lower right")
    return best_over_law


def pool_waits(
    axes: Sequence[Axes],
    simulated: Mapping[float, Sequence[float]],
    real: Mapping[float, Sequence[tuple[float, float, float]]],
    law: Callable[[float], float],
    *,
    formula: str,
) -> float:
    """Mean waits for a connection against the load, beside those of a pool where none idles while someone waits.

    Args:
        axes: two axes.
        simulated: for each load the mean waits, in milliseconds; their median is drawn.
        real: for each load that was sent its runs: load as it was, mean wait, mean wait of the same loans if no
            connection idles while someone waits; both in milliseconds, and above 0. At most three loads.
        law: the mean wait in milliseconds at a load below 1.
        formula: goes into the legend.

    Returns:
        How far the median of the ratio of both waits is from 1, over the real runs.
    """
    left, right = axes
    loads = np.linspace(0.3, 0.97, 100)
    left.semilogy(loads, [law(load) for load in loads], color=THEORY, linestyle="--", label=f"Erlang C: {formula}")
    middle = [np.median(waits) for waits in simulated.values()]
    _note(left, "simulated", list(simulated), middle, [law(load) for load in simulated])
    left.plot(list(simulated), middle, "D", color=OTHER, markersize=9, label="simulated")
    for (sent, runs), marker in zip(real.items(), "o^s", strict=False):
        load, wait, none_idle = np.transpose(runs)
        left.plot(load, wait, marker, color=MEASURED, label=f"asyncpg, sent for {sent:g}")
        right.loglog(none_idle, wait, marker, color=MEASURED)
    every = np.array([run for runs in real.values() for run in runs])
    ends = [every[:, 1:].min() / 2, 2 * every[:, 1:].max()]
    # Not the law of the left panel: what both axes have in common, so neither its style nor its colour.
    right.plot(ends, ends, color="#777777", linestyle=":", linewidth=1, zorder=1)
    right.annotate("equal", (ends[1] / 1.5, ends[1]), ha="right", va="top", fontsize=9, color="#555555")
    left.set(xlim=(0.3, max(1.0, every[:, 0].max()) + 0.05), ylim=(0.1, max(3000, 30 * every[:, 1].max())))
    left.set(xlabel="load rho = lam S/K, as it was", ylabel="mean wait (ms, logarithmic)")
    right.set(
        title="Does a connection idle while someone waits?",
        xlabel="mean wait if none idles (ms)",
        ylabel="mean wait in the pool (ms)",
    )
    left.legend(loc="upper left")
    return float(abs(np.median(every[:, 1] / every[:, 2]) - 1))


def wait_survival(axes: Axes, waits: Sequence[float], *, rate: float, service_time: float, servers: int) -> None:
    """Share of requests that wait longer than t, logarithmic, with Erlang's line where the load leaves one.

    Args:
        waits: seconds that each request waited; drawn in milliseconds.
        rate: requests per second.
        service_time: mean seconds that a request holds a server.
        servers: how many can be held at once.
    """
    from . import theory

    ordered, load = 1000 * np.sort(np.asarray(waits, dtype=float)), rate * service_time / servers
    axes.step(
        ordered,
        1 - np.arange(len(ordered)) / len(ordered),
        where="post",
        color=MEASURED,
        label=f"virtual clock, {len(ordered):,} requests",
    )
    if load < 1:
        t, spare = np.linspace(0, max(ordered[-1], 1.0), 50), servers / service_time - rate
        line = theory.erlang_c(rate, service_time, servers) * np.exp(-spare * t / 1000)
        axes.plot(t, line, color=THEORY, linestyle="--", label="theory: C exp(-(K mu - lam) t)")
    axes.axhline(0.01, color=OTHER, linestyle=":", label="one in a hundred")
    axes.set(yscale="log", ylim=(5e-4, 1.4), xlabel="wait t for a connection (ms)", ylabel="share that waits longer")
    axes.set_title(f"{servers} connections, load {load:.2f}" + ("" if load < 1 else ": the line only grows"))
    axes.legend(loc="upper right")
