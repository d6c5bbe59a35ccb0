"""The figures of chapter 09 about protections: a slow neighbour, the protection ladder, the gateway's door; what a slow
client holds, and what the finished gateway wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from support import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from support.ladders import Rung

LABEL = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5, "zorder": 5,
         "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}  # fmt: skip


def neighbours(
    taus: Sequence[float], flying: Mapping[str, Sequence[float]], p99: Mapping[str, Sequence[float]], *,
    flying_law: Sequence[float], p99_law: Sequence[float],
) -> tuple[Figure, float]:  # fmt: skip
    """Calls to a slow upstream in flight, and p99 of a healthy one, against the time of a slow call; two kinds of pools.

    The laws hold for the first kind's p99, and for the second kind's calls in flight. Returns the figure, and the
    larger of the two residuals.
    """
    figure, (left, right) = figures.new_figure(height=3.1, columns=2)
    (one, both), bad = flying, {"color": figures.BLOCKED, "marker": "o"}
    left.plot(taus, flying[one], linestyle="none", markerfacecolor="none", markersize=9, label=one, **bad)
    off = figures.measured_against_theory(
        left,
        taus,
        [[calls] for calls in flying[both]],
        flying_law,
        formula="lam tau, up to the places",
        label=both,
        marker="s",
    )
    right.plot(taus, p99[both], "s", color=figures.MEASURED, label=both)
    late = figures.measured_against_theory(
        right,
        taus,
        [[seconds] for seconds in p99[one]],
        p99_law,
        formula="alone + T (lam (tau + s)/P - 1)",
        label=one,
        **bad,
    )
    left.set(title="How many slow calls are in flight?", xlabel="time of a slow call, tau (s)", ylabel="calls")
    right.set(
        title="... and how slow is the healthy one?", xlabel="time of a slow call, tau (s)", ylabel="p99 (s, virtual)"
    )
    for axes in (left, right):
        axes.legend()
    return figure, max(off, late)


def ladder(
    seen: Mapping[str, Rung], *, law: Mapping[str, float] | None = None, real: Mapping[str, Rung] | None = None,
    deadline: float = 1.0, height: float = 3.8,
) -> Figure:  # fmt: skip
    """Three panels, a row for each rung: answers that are whole, p99, calls to the dead upstream.

    Args:
        law: for some rungs, the calls to the dead upstream that theory says.
        real: for some rungs, what was seen on this machine; not its p99, for that outage is shorter.
    """
    law, real = law or {}, real or {}
    figure, (whole, p99, dead) = figures.new_figure(height=height, columns=3, sharey=True)
    rows = {name: row for row, name in enumerate(seen)}
    _bars(whole, {name: 100 * rung.whole for name, rung in seen.items()}, "{:.3g} %")
    _bars(p99, {name: rung.p99 for name, rung in seen.items()}, "{:.2f} s")
    _bars(dead, {name: 100 * rung.dead for name, rung in seen.items()}, "{:.3g} %", figures.BLOCKED, law)
    whole.set(title="Are answers whole?", xlabel="% in time, with all living parts", xlim=(0, 135), xticks=(0, 50, 100))
    whole.set_yticks(list(rows.values()), list(rows))
    p99.set(title="How long do they take?", xlabel="p99 (s); dotted: the deadline")
    p99.axvline(deadline, color=figures.RUNNING, linestyle=":", linewidth=1.2, zorder=0)
    dead.set(title="Is the dead one left alone?", xlabel="calls to it, % of its normal load")
    for name, value in law.items():
        span = [rows[name] - 0.42, rows[name] + 0.42]
        dead.plot([100 * value] * 2, span, color=figures.THEORY, linestyle="--", linewidth=2.2, zorder=4)
    look = {"marker": "v", "color": figures.OTHER, "markersize": 6, "markeredgecolor": "black", "markeredgewidth": 0.5}
    for name, rung in real.items():
        for panel, share in ((whole, rung.whole), (dead, rung.dead)):
            panel.plot(100 * share, rows[name] - 0.39, clip_on=False, zorder=6, linestyle="none", **look)
    if law or real:
        dead.plot([], [], "--", color=figures.THEORY, linewidth=2.2, label="theory: 1 + r,\n1 + b, slots / tau")
        dead.plot([], [], linestyle="none", label="this machine", **look)
        dead.legend(loc="lower right", fontsize=8.5, handlelength=1.4, borderpad=0)
    whole.invert_yaxis()
    return figure


def _bars(
    axes: Axes, values: Mapping[str, float], text: str, color: str = figures.NETWORK, law: Mapping[str, float] | None = None
) -> None:  # fmt: skip
    axes.barh(
        range(len(values)), list(values.values()), color=color, edgecolor=figures.RUNNING, linewidth=0.6, height=0.55
    )
    for row, (name, value) in enumerate(values.items()):
        axes.annotate(text.format(value), (max(value, 100 * (law or {}).get(name, 0)), row), **LABEL)
    axes.margins(x=0.32)
    axes.set_xlim(left=0)


def door(
    p99: Mapping[int, float], law: Mapping[int, float], waits: Mapping[str, np.ndarray], *, surge: Sequence[tuple[float, float]]
) -> Figure:  # fmt: skip
    """p99 of those let in against the places; and how long each waited who came around a surge.

    Args:
        p99, law: seconds by places, as seen and by theory.
        waits: by name, pairs of when a request came and how long it took, in seconds.
        surge: (load in mu, seconds) before, during and after it.
    """
    figure, (left, right) = figures.new_figure(height=3.1, columns=2)
    formula = "K/mu + 2.33 sqrt(K)/mu"
    figures.measured_against_theory(
        left,
        list(p99),
        [[seconds] for seconds in p99.values()],
        list(law.values()),
        formula=formula,
        label="let in, at 3 mu",
    )
    looks = ((".", figures.BLOCKED), ("x", figures.MEASURED))
    for (name, seen), (marker, color) in zip(waits.items(), looks, strict=True):
        right.plot(*seen[::12].T, marker, color=color, label=name, markersize=4)
    (_, begins), (high, lasts), (low, rest) = surge
    top = (high - 1) * lasts
    corners = [0, begins, begins + lasts, begins + lasts + top / (1 - low), begins + lasts + rest]
    formula = f"+{high - 1:g} s, then -{1 - low:g} s a second"
    right.plot(corners, [0, 0, top, 0, 0], "--", color=figures.THEORY, label=f"theory: {formula}")
    right.axvspan(begins, begins + lasts, color=figures.WAITING, alpha=0.6, linewidth=0, zorder=0)
    left.set(title="How long for those let in?", xlabel="places K", ylabel="p99 (s, virtual)", ylim=(0, None))
    right.set(
        title="... and around a surge of 3 mu?", xlabel="came at (s, virtual); grey: the surge", ylabel="waited (s)"
    )
    right.set_ylim(-0.5, 1.55 * top)
    for axes in (left, right):
        axes.legend(loc="upper left" if axes is left else "upper right")
    return figure


def slow_client(traces: Mapping[str, Sequence[Sequence[float]]], *, kernel: float) -> Figure:
    """What an upstream sent for a client that reads slowly, by gateway: first one that holds all, then one that streams.

    Args:
        traces: seconds, bytes that the upstream has sent, bytes that the client has read.
        kernel: bytes that the buffers of the connections between the two may hold.
    """
    figure, axes = figures.new_figure(height=2.9)
    looks = (("--", figures.BLOCKED), ("-", figures.MEASURED))
    for (way, (when, sent, _)), (style, color) in zip(traces.items(), looks, strict=True):
        axes.plot(when, np.asarray(sent) / 1e6, style, color=color, label=f"{way}: sent by the upstream")
    *_, (way, (when, _, got)) = traces.items()
    label = "read + the kernel's buffers: 2 (4 + 6) MiB, Linux"
    axes.plot(when, (np.asarray(got) + kernel) / 1e6, color=figures.THEORY, linewidth=1, label=label)
    axes.plot(when, np.asarray(got) / 1e6, ":", color=figures.OTHER, label=f"{way}: read by the client")
    axes.set(title="A slow client leaves after 8 MB of 65: how much was sent for it?", xlabel="time (s)", ylabel="MB")
    axes.legend(loc="center right")
    return figure


def gains(
    seen: Mapping[str, tuple[Sequence[float], float]], bounds: Mapping[str, float], rounds: Sequence[tuple[float, float]],
    by_work: float,
) -> Figure:  # fmt: skip
    """How many times the naive rate the finished gateway answers; and how long one aggregate takes.

    Args:
        seen: by case, the gain of each round, and the gain by CPU time.
        bounds: by case, the gain that is asserted.
        rounds: pairs of bare calls and the gateway, in times of the ideal.
        by_work: the ideal and the gateway's CPU time, in times of the ideal.
    """
    figure, (left, right) = figures.new_figure(height=3.2, columns=2)
    diamond = {"markersize": 8, "markerfacecolor": "none", "color": figures.THEORY}
    for row, (case, (times, by_cpu)) in enumerate(seen.items()):
        hidden = "_" * row  # one entry each in the legend
        left.plot(times, [row] * len(times), "o", color=figures.MEASURED, alpha=0.5, label=f"{hidden}a round")
        left.plot([bounds[case]] * 2, [row - 0.35, row + 0.35], color=figures.BLOCKED, label=f"{hidden}asserted bound")
        left.plot(by_cpu, row, "D", label=f"{hidden}the same, by CPU time", **diamond)
    left.set(title="How many times the naive rate?", xlabel="times (logarithmic)", xscale="log", xlim=(0.8, 200))
    left.set_ylim(len(seen) - 0.4, -1.9)
    left.set_yticks(range(len(seen)), seen)
    left.set_xticks((1, 10, 100), ("1", "10", "100"))
    for who, times in zip(("bare calls", "gateway"), zip(*rounds, strict=True), strict=True):
        right.plot(times, [who] * len(times), "o", color=figures.MEASURED)
    right.plot([by_work], ["gateway"], "D", label="the ideal + CPU time", **diamond)
    for bound, style, what in ((1.6, "-", "a quiet machine, best"), (2.5, "--", "asserted, best")):
        right.axvline(bound, 0, 0.5, linestyle=style, color=figures.BLOCKED, label=f"{what} < {bound}")
    right.set(title="50 calls of 20 ms: how long?", xlabel="times 20 ms", xlim=(1, 3.2), ylim=(1.6, -1.9))
    for axes in (left, right):
        axes.legend()
    return figure
