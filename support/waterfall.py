"""A trace as a waterfall: one bar a span, from its start to its end, a child below its parent.

Spans are those that an exporter of OpenTelemetry was given. A span whose parent is unknown begins a
trace of its own: beside a request, that is a span that was lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .figures import BLOCKED, NETWORK, RUNNING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tree(spans: Iterable[Any]) -> list[tuple[int, Any]]:
    """Depth and span, parents before their children, sisters in the order in which they began."""
    ordered = sorted(spans, key=lambda span: span.start_time)
    known = {span.context.span_id for span in ordered}
    below: dict[int | None, list[Any]] = {}
    for span in ordered:
        parent = span.parent.span_id if span.parent else None
        below.setdefault(parent if parent in known else None, []).append(span)

    def walk(parent: int | None, depth: int) -> list[tuple[int, Any]]:
        found = []
        for span in below.get(parent, ()):
            found += [(depth, span), *walk(span.context.span_id, depth + 1)]
        return found

    return walk(None, 0)


def lines(spans: Iterable[Any]) -> list[str]:
    """The tree as text, a line a span. It holds no times and no ids, and is the same in each run."""
    return ["   " * (depth - 1) + "└─ " * (depth > 0) + span.name for depth, span in tree(spans)]


def waterfall(axes: Axes, spans: Iterable[Any]) -> None:
    """Draw the spans against milliseconds since the first began; the first trace in blue, others red and hatched.

    Raises:
        ValueError: there are no spans.
    """
    rows = tree(spans)
    if not rows:
        raise ValueError("waterfall() got no spans: let them end, then take them from the exporter.")
    start, first_trace = min(span.start_time for _, span in rows), rows[0][1].context.trace_id
    end = max(span.end_time for _, span in rows)
    for row, (_, span) in enumerate(rows):
        left, width = (span.start_time - start) / 1e6, (span.end_time - span.start_time) / 1e6
        lost = span.context.trace_id != first_trace
        style = {"color": BLOCKED, "hatch": "///"} if lost else {"color": NETWORK, "hatch": ""}
        axes.barh(row, width, left=left, height=0.6, edgecolor=RUNNING, linewidth=0.6, alpha=0.9, **style)
    axes.set_yticks(range(len(rows)), lines(span for _, span in rows))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, (end - start) / 1e6 * 1.03)
    axes.set_xlabel("time since the request began (ms)")
