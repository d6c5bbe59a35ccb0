"""A timeline as a trace file that Perfetto (ui.perfetto.dev) and chrome://tracing open offline."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .timeline import Timeline


def trace_events(timeline: Timeline) -> list[dict[str, Any]]:
    """The slices, blocks and marks as Chrome trace events; times in microseconds.

    One thread row a lane. Format: the Trace Event Format document of the Chromium project.
    """
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": timeline.title or "timeline"}}
    ]
    row = {lane.index: number for number, lane in enumerate(timeline.lanes, 1)}
    for lane in timeline.lanes:
        events.append(
            {"ph": "M", "pid": 1, "tid": row[lane.index], "name": "thread_name", "args": {"name": lane.label}}
        )
        for moment, what in lane.marks:
            events.append(
                {
                    "ph": "i",
                    "pid": 1,
                    "tid": row[lane.index],
                    "s": "t",
                    "name": what,
                    "ts": (moment - timeline.origin) * 1e6,
                }
            )
    for piece in timeline.slices:
        name = piece.why or piece.state
        events.append(
            {"ph": "X", "pid": 1, "tid": row[piece.lane], "name": name, "cat": piece.state, "ts": piece.start * 1e6, "dur": piece.duration * 1e6,
             "args": {"line": piece.line}}
        )  # fmt: skip
    loop_row = len(row) + 1
    events.append({"ph": "M", "pid": 1, "tid": loop_row, "name": "thread_name", "args": {"name": "event loop"}})
    for start, end in timeline.idle:
        events.append(
            {
                "ph": "X",
                "pid": 1,
                "tid": loop_row,
                "name": "idle",
                "cat": "loop",
                "ts": start * 1e6,
                "dur": (end - start) * 1e6,
            }
        )
    for block in timeline.blocks:
        name = f"blocked in {block.site.function}, line {block.site.line}" if block.site else "blocked"
        events.append(
            {
                "ph": "X",
                "pid": 1,
                "tid": loop_row,
                "name": name,
                "cat": "block",
                "ts": block.start * 1e6,
                "dur": block.duration * 1e6,
            }
        )
    return events


def write_trace(timeline: Timeline, path: str) -> str:
    """Write the trace to ``path`` as JSON and return ``path``.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"save_trace({path!r}): there is no folder {folder!r}; create it first.")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"traceEvents": trace_events(timeline), "displayTimeUnit": "ms"}, file)
    return path
