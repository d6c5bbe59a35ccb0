"""What the reader's machine measured through the course, beside what theory or the reader predicted.

`figures.show` keeps the points of every comparison that it shows while a chapter is open; `score` keeps single
numbers, and `predict` the reader's guesses. All lie in the reader's own file, see `support.exercises.store`. This
room reads them back, draws them on one sheet, and writes them to files.
"""

from __future__ import annotations

import csv
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from . import figures  # first: it imports numpy whole
from .exercises import store

import numpy as np  # isort: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 40  # of one comparison; more are thinned out
WIDEST = 4.0  # measured over theory is drawn up to this ratio, and down to its inverse
COLUMNS = ("kind", "chapter", "name", "at", "measured", "predicted", "unit")
OUTCOMES = {"right": ("✓", figures.THEORY), "wrong": ("✗", figures.BLOCKED), "no guess": ("○", "#999999")}
_drawn: WeakKeyDictionary[Axes, list[tuple[str, list[list[float]]]]] = WeakKeyDictionary()


class Comparison(NamedTuple):
    """The points of one law: where, what was measured there, and what the theory says, in one unit."""

    chapter: str
    name: str
    at: list[float]
    measured: list[float]
    theory: list[float]

    @property
    def ratios(self) -> list[float]:
        """Measured over theory, a number a point."""
        return [value / law for value, law in zip(self.measured, self.theory, strict=True)]


# --- Keeping ---------------------------------------------------------------------------


def note(axes: Axes, label: str, at: Sequence[float], measured: Sequence[float], theory: Sequence[float]) -> None:
    """Remember what was drawn on `axes` beside a theory. Points without a positive, finite pair are left out."""
    points = np.array([at, measured, theory], dtype=float)
    points = points[:, np.isfinite(points).all(axis=0) & (points[1:] > 0).all(axis=0)]
    if points.shape[1]:
        thin = np.unique(np.linspace(0, points.shape[1] - 1, MOST_POINTS).astype(int))
        _drawn.setdefault(axes, []).append((label, points[:, thin].tolist()))


def keep(figure: Figure, chapter: str) -> None:
    """Write what was noted on the axes of `figure` into the reader's file. The last value of a name counts."""
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    heading = next((title for title in titles if title), "")
    for axes, title in zip(figure.axes, titles, strict=True):
        noted = _drawn.pop(axes, [])
        for label, (at, measured, theory) in noted:
            label = f" {label}" if len(noted) > 1 else ""
            name = " ".join(f"{title or heading}{label}".split())
            key = re.sub(r"\d+", "#", title or heading) + label  # a title may count what this run saw
            store.record("compared", f"{chapter} {key}", chapter=chapter, name=name, at=at, measured=measured, theory=theory)  # fmt: skip


# --- Reading ---------------------------------------------------------------------------


def comparisons() -> list[Comparison]:
    """Every comparison that the reader's machine made, by chapter, each in its last form."""
    found = {}
    for event in store.events("compared"):
        try:
            one = Comparison(*(event[field] for field in Comparison._fields))
            if one.ratios:
                found[event["key"]] = one
        except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a damaged line
            continue
    return sorted(found.values(), key=lambda one: one.chapter)


def _chapter_of(key: str) -> str:
    found = re.match(r"\d\d", key)
    return found[0] if found else "?"


def rows() -> list[dict[str, Any]]:
    """All that is kept, as plain records with the fields of COLUMNS: for a table, a CSV file, or pandas."""
    kept = [
        dict(zip(COLUMNS, ("prediction", _chapter_of(key), key, "", event.get("measured", ""), event.get("guess", ""), "option"), strict=True))
        for key, event in {event["key"]: event for event in store.events("prediction")}.items()
    ]  # fmt: skip
    for key, one in store.scores().items():
        predicted = "" if one.predicted is None else one.predicted
        kept.append(
            dict(zip(COLUMNS, ("number", _chapter_of(key), key, "", one.value, predicted, one.unit), strict=True))
        )
    for one in comparisons():
        for at, measured, theory in zip(one.at, one.measured, one.theory, strict=True):
            values = ("theory", _chapter_of(one.chapter), one.name, at, measured, theory, "")
            kept.append(dict(zip(COLUMNS, values, strict=True)))
    return sorted(kept, key=lambda row: (row["kind"], row["chapter"], row["name"]))


# --- Drawing ---------------------------------------------------------------------------


def sheet() -> Figure:
    """Everything on one sheet: guesses, measured over theory for each law, and the single numbers."""
    laws, numbers = comparisons(), store.scores()
    heights = [0.9 + 0.24 * max(1, len({_chapter_of(key) for key in store.predicted()})), 1.2 + 0.24 * max(1, len(laws)),
               1.0 + 0.26 * max(1, len(numbers))]  # fmt: skip
    figures.use_style()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(figures.WIDTH + 1.8, sum(heights)), layout="constrained")
    above, middle, below = figure.subplots(3, 1, height_ratios=heights)
    _draw_guesses(above)
    _draw_laws(middle, laws)
    _draw_numbers(below, numbers)
    return figure


def _nothing_yet(axes: Axes, title: str) -> None:
    axes.set(title=title, xticks=[], yticks=[])
    axes.text(0.01, 0.5, "nothing yet: run a chapter, then this page again", transform=axes.transAxes, va="center")


def _short(name: str, longest: int) -> str:
    """A name that ends with a whole word."""
    return textwrap.shorten(name, longest, placeholder=" ...")


def _draw_guesses(axes: Axes) -> None:
    title, outcomes = "Which of your predictions were right?", store.predicted()
    if not outcomes:
        return _nothing_yet(axes, title)
    chapters = sorted({_chapter_of(key) for key in outcomes})
    for row, chapter in enumerate(chapters):
        for column, key in enumerate(sorted(key for key in outcomes if _chapter_of(key) == chapter)):
            sign, colour = OUTCOMES.get(outcomes[key], OUTCOMES["no guess"])
            axes.text(column, row, sign, color=colour, fontsize=11, ha="center", va="center", fontweight="bold")
    axes.set_yticks(range(len(chapters)), chapters)
    axes.set(title=title, xticks=[], ylabel="chapter", ylim=(len(chapters) - 0.4, -0.6))
    axes.set(xlim=(-0.7, max(12, *(list(map(_chapter_of, outcomes)).count(chapter) for chapter in chapters))))
    axes.set_xlabel("a sign for each prediction, in order:  ✓ right   ✗ wrong   ○ not guessed", loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_laws(axes: Axes, laws: Sequence[Comparison]) -> None:
    title = "How far was your machine from the theory?"
    if not laws:
        return _nothing_yet(axes, title)
    axes.axvspan(0.9, 1.1, color=figures.WAITING, alpha=0.6, linewidth=0)
    axes.axvline(1, color=figures.THEORY, linestyle="--", linewidth=1.4)
    for row, law in enumerate(laws):
        low, middle, high = np.clip(np.percentile(law.ratios, (0, 50, 100)), 1 / WIDEST, WIDEST)
        axes.plot((low, high), (row, row), color=figures.MEASURED, linewidth=1.4)
        ends = [end for end in (low, high) if end in (1 / WIDEST, WIDEST)]
        axes.plot(ends, [row] * len(ends), "x", color=figures.BLOCKED)
        axes.plot(middle, row, "o", color=figures.MEASURED, markersize=5)
    names = [f"{_chapter_of(law.chapter)}  {_short(law.name, 68)}" for law in laws]
    axes.set_yticks(range(len(laws)), names, fontsize=8.5)
    axes.set_xscale("log")
    ticks = (0.25, 0.5, 0.9, 1.1, 2, 4)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(title=title, xlim=(0.9 / WIDEST, 1.1 * WIDEST), ylim=(len(laws) - 0.4, -0.6))
    axes.set_xlabel(
        "measured over theory: median and range of the points (band: within 10 %; cross: beyond the axis)", x=0.3
    )


def _draw_numbers(axes: Axes, numbers: dict[str, store.Score]) -> None:
    title = "Which numbers did the chapters keep?"
    kept = sorted(numbers.items())
    if not kept:
        return _nothing_yet(axes, title)
    for row, (_, one) in enumerate(kept):
        if one.value > 0:  # a logarithmic axis has no 0: that number is only written
            axes.barh(
                row, one.value - 1, left=1, height=0.55, color=figures.NETWORK, edgecolor=figures.RUNNING, linewidth=0.6
            )
        predicted = f"{one.predicted:.3g}" if isinstance(one.predicted, float) else one.predicted
        told = "" if predicted is None else f"  (predicted {predicted})"
        foreseen = one.predicted if isinstance(one.predicted, int | float) and one.predicted > 0 else 1.0
        if foreseen != 1.0:
            axes.plot([foreseen] * 2, [row - 0.4, row + 0.4], color=figures.THEORY, linestyle="--")
        value = f"{one.value:.2g}" if one.value < 10 else f"{one.value:,.0f}"
        axes.annotate(f"{value} {one.unit}{told}", (max(1.0, one.value, foreseen), row), xytext=(6, 0),
                      textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
    values = [one.value for _, one in kept if one.value > 0]
    axes.set_yticks(range(len(kept)), [_short(key, 64) for key, _ in kept], fontsize=8.5)
    axes.set(
        title=title,
        xscale="log",
        xlim=(min([0.5, *values]) / 1.2, 5000 * max([2.0, *values])),
        ylim=(len(kept) - 0.4, -0.6),
    )
    axes.set_xlabel("the number in its own unit (logarithmic); dashed: predicted")


# --- Taking it away --------------------------------------------------------------------


def export(folder: str | Path | None = None) -> list[str]:
    """Write your_numbers.csv and the sheet, your_numbers.png, and return their names.

    folder: where; by default beside the reader's own notebooks. Files of these names are replaced.
    Raises NotADirectoryError for a folder that is none, OSError where it cannot be written.
    """
    target = Path(folder) if folder is not None else store.folder()
    if folder is None and target.name == ".progress":
        target = target.parent
    if not target.is_dir():
        raise NotADirectoryError(f"export({str(folder)!r}): this is no folder; make it, or name another.")
    with open(target / "your_numbers.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows())
    drawn = sheet()
    drawn.text(0.995, 0.001, figures.footnote(), ha="right", va="bottom", fontsize=6.5, color="#777777")
    drawn.savefig(target / "your_numbers.png", dpi=150)  # no PDF: what draws one cannot be interrupted and tried again
    return ["your_numbers.csv", "your_numbers.png"]
