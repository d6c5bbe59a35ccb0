"""Several lines in one picture, told apart without colour, on logarithmic axes with plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", figures.RUNNING), ("--", figures.OTHER), (":", figures.BLOCKED), ("-.", figures.NETWORK)


def draw_lines(
    axes: Axes,
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    theory: Sequence[float] | None = None,
    formula: str = "",
) -> None:
    """Draw each of ``series``, a label and its values, over ``x``: each in a colour and a line style of its own.

    ``theory`` is a broad pale line behind them, and ``formula`` is its label. What is nan is left out.

    Raises:
        ValueError: there are more series than styles, or a series is not as long as ``x``.
    """
    if len(series) > len(_STYLES):
        raise ValueError(f"draw_lines: {len(series)} series; draw {len(_STYLES)} at most, or they look alike.")
    for name, values in [*series.items(), *([] if theory is None else [(formula, theory)])]:
        if len(values) != len(x):
            raise ValueError(f"draw_lines: {name!r} has {len(values)} values for {len(x)} x values; give one for each.")
    if theory is not None:
        axes.plot(x, theory, color=figures.THEORY, linewidth=5, alpha=0.35, label=formula)
    for (name, values), (style, color) in zip(series.items(), _STYLES, strict=False):
        axes.plot(x, values, style, color=color, label=name)


def log_ticks(
    axes: Axes,
    x: Sequence[float] | Mapping[float, str] = (),
    y: Sequence[float] | Mapping[float, str] = (),
) -> None:
    """Make an axis logarithmic, with ticks at these values and nowhere else: 0.5, not 5e-1.

    A mapping gives each value a text of its own. An axis without values stays as it is.
    """
    for name, ticks in (("x", x), ("y", y)):
        if len(ticks):
            texts = list(ticks.values()) if isinstance(ticks, Mapping) else [f"{tick:g}" for tick in ticks]
            axes.set(**{f"{name}scale": "log"})
            getattr(axes, f"{name}axis").minorticks_off()
            axes.set(**{f"{name}ticks": list(ticks), f"{name}ticklabels": texts})
