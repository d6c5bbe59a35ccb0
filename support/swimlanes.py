"""The picture of a timeline: one lane a task, three states, the loop below."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .figures import BLOCKED, NETWORK, OTHER, READY, RUNNING, THEORY, WAITING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .timeline import Lane, Slice, Timeline

MOST_LANES = 40  # a screenful; more lanes are drawn as one band that says how many it holds
_PIXELS = 2000  # slices that fall on the same pixel of a lane are drawn once
# kind of wait: colour, half height, hatch, what the key calls it
_LOOK = {
    "running": (RUNNING, 0.40, "", "running: holds the loop"),
    "ready": (READY, 0.27, "", "ready: waits for the loop"),
    "network": (NETWORK, 0.13, "", "suspended: network"),
    "timer": (NETWORK, 0.13, "////", "suspended: sleep"),
    "waiting": (WAITING, 0.13, "", "suspended: lock, queue, other task"),
    "worker": (OTHER, 0.30, "", "running in a thread"),
}
_MARKS = {"timed out": "v", "cancel requested": "1"}
_ENDS = {
    "finished": ("", RUNNING),
    "failed": ("x", BLOCKED),
    "cancelled": ("|", BLOCKED),
    "garbage collected": ("D", BLOCKED),
}


def lanes_drawn(timeline: Timeline) -> int:
    """How many rows the picture will have, the loop's own left out."""
    count = len(timeline.lanes)
    return count if count <= MOST_LANES else MOST_LANES + 2


def summary_text(timeline: Timeline) -> str:
    """One sentence that says what the picture shows, without a number that changes from run to run."""
    waits = (
        ", ".join(sorted({piece.why for piece in timeline.slices if piece.state == "suspended" and piece.why}))
        or "nothing"
    )
    ends = Counter(lane.error or lane.outcome for lane in timeline.lanes)
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items(), key=str))
    return f"Timeline{' of ' + timeline.title if timeline.title else ''}: {len(timeline.lanes)} lanes ({told}); suspended on {waits}."


def _look_of(piece: Slice, lane: Lane) -> str:
    if piece.state == "running":
        return "worker" if lane.kind == "thread" else "running"
    if piece.state == "ready":
        return "ready"
    return piece.kind if piece.kind in ("network", "timer") else "waiting"


def draw(
    axes: Axes,
    timeline: Timeline,
    *,
    wakes: bool = False,
    spawns: bool = False,
    key: bool = True,
    only: list[str] | None = None,
) -> None:
    """Draw ``timeline`` on ``axes``.

    Args:
        axes: where to draw; the x axis becomes milliseconds since the start.
        timeline: a finished recording.
        wakes: draw an arrow from the task that woke another to the task that it woke.
        spawns: draw an arrow from the task that created another.
        key: draw the key of colours below the picture.
        only: labels of the lanes to draw; all where it is None.

    Raises:
        KeyError: a label in ``only`` is not a lane; names the lanes there are.
    """
    lanes = timeline.lanes if only is None else [timeline.lane(name) for name in only]
    shown = lanes[:MOST_LANES]
    row_of = {lane.index: row for row, lane in enumerate(shown)}
    by_index = {lane.index: lane for lane in lanes}
    blocked = {(block.lane, block.start) for block in timeline.blocks}
    boxes: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    rest: list[Slice] = []
    for piece in timeline.slices:
        row = row_of.get(piece.lane)
        if row is None:
            if piece.lane in by_index:
                rest.append(piece)
            continue
        is_block = (
            piece.end - piece.start >= timeline.threshold
            and piece.state == "running"
            and (piece.lane, piece.start) in blocked
        )
        look = "blocked" if is_block else _look_of(piece, by_index[piece.lane])
        boxes[look].append((row, piece.start, piece.end, 0.42 if is_block else _LOOK[look][1]))
    bottom = len(shown)
    labels = [lane.label for lane in shown]
    if len(lanes) > len(shown):
        _draw_rest(axes, timeline, rest, len(lanes) - len(shown), bottom)
        labels += [f"{len(lanes) - len(shown)} more lanes:\nshare in each state"]
        bottom += 2
    loop_row = bottom + 0.6
    for look, rows in boxes.items():
        color, hatch = (BLOCKED, "") if look == "blocked" else (_LOOK[look][0], _LOOK[look][2])
        _add_boxes(axes, rows, timeline.makespan, color, hatch)
    _draw_loop(axes, timeline, loop_row)
    _draw_marks(axes, timeline, row_of)
    if wakes:
        _arrows(
            axes,
            [(p.woken_by, p.lane, p.end) for p in timeline.slices if p.state == "suspended" and p.woken_by >= 0],
            row_of,
            THEORY,
        )
    if spawns:
        _arrows(
            axes,
            [(lane.spawner, lane.index, lane.born - timeline.origin) for lane in shown if lane.spawner is not None],
            row_of,
            OTHER,
        )
    _label_blocks(axes, timeline, row_of, loop_row)
    ticks = [*range(len(shown)), *([len(shown) + 0.5] if len(lanes) > len(shown) else []), loop_row]
    axes.set_yticks(ticks, [*labels, "event loop"])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(loop_row + 0.6, -0.7)
    axes.set_xlim(-timeline.makespan * 8, timeline.makespan * 1000 * 1.02)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("virtual time since start (ms)" if timeline.is_virtual else "time since start (ms)")
    if timeline.title:
        axes.set_title(timeline.title)
    if key:
        _draw_key(axes, timeline, [look for look in _LOOK if look in boxes], wakes=wakes, spawns=spawns)


def _add_boxes(
    axes: Axes, rows: list[tuple[float, float, float, float]], makespan: float, color: str, hatch: str
) -> None:
    """One collection for all boxes of a look, each pixel of a lane drawn once."""
    data = np.array(rows)
    pixel = max(makespan, 1e-9) / _PIXELS
    order = np.lexsort((data[:, 1], data[:, 0]))
    row, start, end, half = data[order].T
    first, last = np.floor(start / pixel).astype(np.int64), np.floor(end / pixel).astype(np.int64)
    # A box that lies within the pixel of the box before it adds nothing that could be seen.
    keep = np.ones(len(row), dtype=bool)
    keep[1:] = (row[1:] != row[:-1]) | (last[1:] > first[1:]) | (first[1:] != first[:-1])
    row, half = row[keep], half[keep]
    start, end = start[keep] * 1000, end[keep] * 1000
    corners = np.stack(
        [
            np.stack([start, row - half], 1),
            np.stack([end, row - half], 1),
            np.stack([end, row + half], 1),
            np.stack([start, row + half], 1),
        ],
        axis=1,
    )
    edge = 0.7 if color in (RUNNING, READY) else 0.0
    axes.add_collection(
        PolyCollection(
            corners,
            facecolors=color,
            edgecolors="white" if hatch else color,
            linewidths=edge,
            hatch=hatch or None,
            zorder=3 if color == RUNNING else 2,
        )
    )


def _draw_rest(axes: Axes, timeline: Timeline, rest: list[Slice], count: int, row: float) -> None:
    """A stacked band over two rows: the share of the remaining lanes in each state, over time."""
    columns = 400
    step = max(timeline.makespan, 1e-9) / columns
    shares = {}
    for state in ("running", "ready", "suspended"):
        part = np.array([(piece.start, piece.end) for piece in rest if piece.state == state]).reshape(-1, 2)
        change = np.zeros(columns + 1)
        cells = np.clip(part / step, 0, columns)
        low = np.floor(cells).astype(int)
        for side, sign in ((0, 1.0), (1, -1.0)):  # each edge counts for the part of its column that it covers
            share = cells[:, side] - low[:, side]
            np.add.at(change, np.minimum(low[:, side], columns), sign * (1 - share))
            np.add.at(change, np.minimum(low[:, side] + 1, columns), sign * share)
        shares[state] = np.cumsum(change)[:columns] / count
    x = (np.arange(columns) + 0.5) * step * 1000
    floor = np.full(columns, row + 1.4)
    for state, color in (("running", RUNNING), ("ready", READY), ("suspended", WAITING)):
        roof = floor - 1.8 * shares[state]
        axes.fill_between(x, floor, roof, color=color, linewidth=0, zorder=2)
        floor = roof


def _draw_loop(axes: Axes, timeline: Timeline, row: float) -> None:
    """The loop's own lane: a frame that is black where it works, red where it is blocked, empty where it sleeps."""
    edges = [0.0, *(moment for span in timeline.idle for moment in span), timeline.makespan]
    busy = [(row, start, end, 0.28) for start, end in zip(edges[::2], edges[1::2], strict=True) if end > start]
    if busy:
        _add_boxes(axes, busy, timeline.makespan, RUNNING, "")
    if timeline.blocks:
        _add_boxes(axes, [(row, b.start, b.end, 0.28) for b in timeline.blocks], timeline.makespan, BLOCKED, "")
        axes.collections[-1].set_zorder(4)
    axes.plot(
        np.array([0, 1, 1, 0, 0]) * timeline.makespan * 1000,
        row + 0.28 * np.array([-1, -1, 1, 1, -1]),
        color="#777777",
        linewidth=0.8,
        zorder=1,
    )


def _draw_marks(axes: Axes, timeline: Timeline, row_of: dict[int, int]) -> None:
    for lane in timeline.lanes:
        row = row_of.get(lane.index)
        if row is None:
            continue
        for moment, what in lane.marks:
            axes.plot(
                (moment - timeline.origin) * 1000,
                row - 0.42,
                marker=_MARKS[what],
                color=BLOCKED,
                markersize=7,
                zorder=6,
            )
        marker, color = _ENDS.get(lane.outcome or "", ("", RUNNING))
        if marker and lane.ended is not None:
            moment = (lane.ended - timeline.origin) * 1000
            axes.plot(moment, row, marker=marker, color=color, markersize=8, markeredgewidth=2, zorder=6)
            axes.annotate(
                lane.error or lane.outcome or "",
                (moment, row),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=color,
            )


def _arrows(axes: Axes, pairs: list[tuple[int, int, float]], row_of: dict[int, int], color: str) -> None:
    for source, target, moment in pairs:
        if source in row_of and target in row_of and source != target:
            axes.annotate(
                "", xy=(moment * 1000, row_of[target]), xytext=(moment * 1000, row_of[source]),
                arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.0, "shrinkA": 4, "shrinkB": 4, "connectionstyle": "arc3,rad=0.12"}, zorder=5,
            )  # fmt: skip


def _label_blocks(axes: Axes, timeline: Timeline, row_of: dict[int, int], loop_row: float) -> None:
    """Write function, line and source beside the longest blocks, on the side that has room."""
    for block in sorted(timeline.blocks, key=lambda b: -b.duration)[:3]:
        row = row_of.get(block.lane, loop_row) if block.lane is not None else loop_row
        text = f"holds the loop {block.duration * 1000:.0f} ms"
        if block.site is not None:
            source = block.site.source
            text = (
                f"{block.site.function}, line {block.site.line}: {source[:38]}{'…' if len(source) > 38 else ''}\n{text}"
            )
        has_room = timeline.makespan - block.end > 0.3 * timeline.makespan
        anchor, offset = (block.end, 7) if has_room else (block.start, -7)
        axes.annotate(
            text, (anchor * 1000, row), xytext=(offset, 0), textcoords="offset points", ha="left" if has_room else "right", va="center", fontsize=8,
            color="#a04000", zorder=7, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )  # fmt: skip


def _draw_key(axes: Axes, timeline: Timeline, looks: list[str], *, wakes: bool, spawns: bool) -> None:
    handles: list[Any] = []
    for look in looks:
        color, _, hatch, text = _LOOK[look]
        if look == "waiting":
            text = f"suspended: {_names_of_waits(timeline)}"
        handles.append(Patch(facecolor=color, hatch=hatch or None, edgecolor="white" if hatch else color, label=text))
    if timeline.blocks:
        handles.append(Patch(facecolor=BLOCKED, label="blocks the loop"))
    if wakes:
        handles.append(Line2D([], [], color=THEORY, marker=">", label="woke"))
    if spawns:
        handles.append(Line2D([], [], color=OTHER, marker=">", label="created"))
    marks = {what for lane in timeline.lanes for _, what in lane.marks}
    for what, symbol in _MARKS.items():
        if what in marks:
            handles.append(Line2D([], [], color=BLOCKED, marker=symbol, linestyle="none", markersize=7, label=what))
    axes.figure.legend(handles=handles, loc="outside lower left", ncols=min(3, len(handles)), fontsize=8.5)


def _names_of_waits(timeline: Timeline) -> str:
    """The reasons that share the pale colour, the longest first, at most three by name, none that could not be seen."""
    sums: Counter[str] = Counter()
    for piece in timeline.slices:
        if piece.state == "suspended" and piece.kind not in ("network", "timer"):
            sums["another task" if piece.why.startswith("task ") else piece.why or "other"] += piece.duration
    names = [name for name, total in sums.most_common() if total > 0.01 * sums.total()]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
