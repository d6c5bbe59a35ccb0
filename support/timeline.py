"""The timeline: what the recorder saw, as lanes, slices, sums and a path.

All times are seconds since the recording began. A lane is one task, or one call in a thread.
A slice is a stretch of a lane in one state: *running* (it holds the loop), *ready* (it could run,
and waits for the loop), *suspended* (it waits for something else).
"""

from __future__ import annotations

import asyncio
import linecache
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cached_property
from types import FrameType
from typing import Any, NamedTuple

from .waits import WaitTable

IO, TIMER, THREAD = -1, -2, -3  # who woke a task, where it was no task
NO_REASON = -1
COLLECTED = "garbage collected"
_CAUSES = {IO: "socket or callback", TIMER: "timer", THREAD: "thread"}
STATES = ("running", "ready", "suspended")


class Site(NamedTuple):
    """A place in the reader's source."""

    function: str
    file: str
    line: int

    @classmethod
    def of(cls, frame: FrameType) -> Site:
        """The place where ``frame`` is now."""
        code = frame.f_code
        return cls(getattr(code, "co_qualname", code.co_name), code.co_filename, frame.f_lineno)

    @property
    def source(self) -> str:
        """The text of the line, or an empty string where the source is not to be had."""
        return linecache.getline(self.file, self.line).strip()


class Slice(NamedTuple):
    """A stretch of one lane in one state; ``kind`` and ``why`` say what a suspended lane waits for."""

    lane: int
    state: str
    start: float
    end: float
    kind: str
    why: str
    line: int
    woken_by: int  # who ended the suspension: a lane, or IO, TIMER, THREAD

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


class Block(NamedTuple):
    """A callback that held the loop longer than the recorder's threshold."""

    lane: int | None  # None: a plain callback, no task
    start: float
    end: float
    site: Site | None  # None: no line of the reader's own was seen

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


class Lane:
    """One task, or one call in a thread: its name, its birth and end, and how it ended."""

    __slots__ = ("born", "cancelling", "ended", "error", "function", "index", "is_internal", "is_main", "is_new", "kind",
                 "label", "last_wait", "lent", "marks", "name", "outcome", "spawner", "task")  # fmt: skip

    def __init__(self, index: int, born: float, spawner: int | None, kind: str = "task") -> None:
        self.index, self.born, self.spawner, self.kind = index, born, spawner, kind
        self.name = self.function = self.error = ""
        self.label = ""  # what the picture calls it; set when the recording ends
        self.ended: float | None = None
        self.outcome: str | None = None
        self.is_internal = self.is_main = False
        self.is_new = True
        self.cancelling = 0
        self.last_wait = NO_REASON
        self.lent: list[tuple[float, float]] = []  # time inside own steps given to eager children
        self.marks: list[tuple[float, str]] = []
        self.task: Callable[[], Any] | None = None

    def describe(self, task: asyncio.Task[Any]) -> None:
        """Read the task's name, late: on 3.11 a TaskGroup sets it after the task was created."""
        self.name = task.get_name()
        coroutine = task.get_coro()
        if coroutine is not None:
            self.function = getattr(coroutine, "__qualname__", type(coroutine).__name__)

    def close(self, task: asyncio.Task[Any], now: float) -> None:
        """Note how the task stands, without marking its exception as retrieved."""
        self.describe(task)
        if not task.done():
            self.outcome = "pending"
            return
        error = None if task.cancelled() else task._exception  # type: ignore[attr-defined]
        self.error = type(error).__name__ if error is not None else ""
        self.finish("cancelled" if task.cancelled() else "failed" if error is not None else "finished", now)

    def finish(self, outcome: str, now: float) -> None:
        """Set the outcome and the moment of the end."""
        self.outcome, self.ended = outcome, now


class Timeline:
    """What happened inside one ``with record()`` block. Complete once the block is left."""

    def __init__(self, title: str, origin: float, threshold: float, *, is_virtual: bool) -> None:
        self.title, self.origin, self.threshold, self.is_virtual = title, origin, threshold, is_virtual
        self.all_lanes: list[Lane] = []
        self.wait_table = WaitTable()
        self.makespan = 0.0
        # What the recorder appends to while it runs; absolute times.
        self._log: list[tuple[int, float, float, float, int, int]] = []  # lane, ready, start, end, waker, reason
        self._idle: list[tuple[float, float]] = []
        self._callback_blocks: list[tuple[float, float]] = []
        self._samples: dict[float, list[Site]] = {}
        self._is_open = True

    def __repr__(self) -> str:
        state = "recording" if self._is_open else f"{len(self.lanes)} lanes, {len(self._log)} steps"
        return f"<Timeline {self.title!r}: {state}>"

    def _finish(self, end: float) -> None:
        self.makespan = end - self.origin
        self._is_open = False
        # A task that nobody named is called by its function, numbered where there are several:
        # asyncio's own numbers go on from whatever the process did before.
        short = {lane: lane.function.rpartition("<locals>.")[2] or "task" for lane in self.all_lanes}
        nameless = [
            lane for lane in self.lanes if not lane.name or lane.name.startswith("Task-") or lane.kind == "thread"
        ]
        alike = Counter(short[lane] for lane in nameless)
        seen: Counter[str] = Counter()
        for lane in self.all_lanes:
            lane.label = lane.name
        for lane in nameless:
            seen[short[lane]] += 1
            lane.label = f"{short[lane]} {seen[short[lane]]}" if alike[short[lane]] > 1 else short[lane]
            if lane.kind == "thread":
                lane.label = f"thread: {lane.label}"
        for lane in self.all_lanes:
            if lane.is_main:
                lane.label = "main"

    def _closed(self) -> None:
        if self._is_open:
            raise RuntimeError("This timeline is still recording: read it after the `with record()` block.")

    @property
    def lanes(self) -> list[Lane]:
        """The lanes of the reader's program, in order of birth; the kernel's own tasks are left out."""
        return [lane for lane in self.all_lanes if not lane.is_internal]

    @cached_property
    def slices(self) -> list[Slice]:
        """Every slice of every lane, lane by lane in order of time."""
        self._closed()
        steps: dict[int, list[tuple[int, float, float, float, int, int]]] = defaultdict(list)
        for entry in self._log:
            steps[entry[0]].append(entry)
        found: list[Slice] = []
        for lane in self.lanes:
            found += self._slices_of(lane, steps[lane.index])
        return found

    def _slices_of(self, lane: Lane, steps: list[tuple[int, float, float, float, int, int]]) -> list[Slice]:
        zero, index, found = self.origin, lane.index, []
        previous = lane.born
        for _, ready, start, end, waker, reason in steps:
            ready = min(max(ready, previous), start)
            if ready > previous:
                found.append(self._suspended(index, previous, ready, reason, waker))
            if start > ready:
                found.append(Slice(index, "ready", ready - zero, start - zero, "", "", 0, waker))
            for lent_from, lent_to in lane.lent:  # eager children ran on this lane's time
                if start <= lent_from and lent_to <= end:
                    found.append(Slice(index, "running", start - zero, lent_from - zero, "", "", 0, IO))
                    start = lent_to
            found.append(Slice(index, "running", start - zero, end - zero, "", "", 0, IO))
            previous = end
        if lane.ended is None and self.origin + self.makespan > previous:
            found.append(self._suspended(index, previous, self.origin + self.makespan, lane.last_wait, IO))
        return found

    def _suspended(self, lane: int, start: float, end: float, reason: int, waker: int) -> Slice:
        kind, why, line = "other", "", 0
        if reason != NO_REASON:
            wait = self.wait_table.waits[reason]
            kind, why, line = wait.kind, wait.label, wait.line
        return Slice(lane, "suspended", start - self.origin, end - self.origin, kind, why, line, waker)

    @cached_property
    def idle(self) -> list[tuple[float, float]]:
        """The stretches in which the loop slept in its selector: (start, end), in order."""
        self._closed()
        return [(start - self.origin, end - self.origin) for start, end in self._idle]

    @cached_property
    def blocks(self) -> list[Block]:
        """The callbacks that held the loop too long, in order; the line is what a sampler saw most often."""
        self._closed()
        threads = {lane.index for lane in self.all_lanes if lane.kind == "thread"}
        found = [
            (lane, start, end)
            for lane, _, start, end, _, _ in self._log
            if end - start >= self.threshold and lane not in threads
        ]
        found += [(None, start, end) for start, end in self._callback_blocks]
        blocks = []
        for lane, start, end in sorted(found, key=lambda block: block[1]):
            sites = self._samples.get(start)
            site = Counter(sites).most_common(1)[0][0] if sites else None
            blocks.append(Block(lane, start - self.origin, end - self.origin, site))
        return blocks

    @property
    def longest_block(self) -> Block | None:
        """The block that held the loop longest, or None."""
        return max(self.blocks, key=lambda block: block.duration, default=None)

    def lane(self, name: str) -> Lane:
        """The first lane of this name. Raises KeyError naming the lanes there are."""
        for lane in self.lanes:
            if name in (lane.name, lane.label):
                return lane
        raise KeyError(f"no lane called {name!r}; the lanes are {', '.join(lane.label for lane in self.lanes)}")

    def slices_of(self, name: str) -> list[Slice]:
        """The slices of the lane called ``name``."""
        index = self.lane(name).index
        return [piece for piece in self.slices if piece.lane == index]

    def total(self, state: str, why: str | None = None, lane: str | None = None) -> float:
        """Seconds in ``state``, of one lane or of all, for one reason (its kind or its label) or for all.

        Raises ValueError for a state that is not running, ready or suspended.
        """
        if state not in STATES:
            raise ValueError(f"no state called {state!r}; the states are {', '.join(STATES)}")
        pieces = self.slices if lane is None else self.slices_of(lane)
        return sum(
            piece.duration
            for piece in pieces
            if piece.state == state and (why is None or why in (piece.kind, piece.why))
        )

    def peak(self, why: str) -> int:
        """The most lanes that were suspended at once for this reason (a kind or a label)."""
        edges = []
        for piece in self.slices:
            if piece.state == "suspended" and why in (piece.kind, piece.why):
                edges += [(piece.start, 1), (piece.end, -1)]
        most = now = 0
        for _, change in sorted(edges):  # at one instant, ends (-1) sort before starts
            now += change
            most = max(most, now)
        return most

    @cached_property
    def reasons(self) -> dict[str, float]:
        """Seconds suspended, summed over lanes, by reason, longest first."""
        sums: Counter[str] = Counter()
        for piece in self.slices:
            if piece.state == "suspended":
                sums[piece.why or "unknown"] += piece.duration
        return dict(sums.most_common())

    def table(self) -> list[dict[str, Any]]:
        """One plain record a lane: name, outcome, and the seconds in each state."""
        rows = {
            lane.index: {
                "lane": lane.label,
                "outcome": lane.error or lane.outcome,
                "running": 0.0,
                "ready": 0.0,
                "suspended": 0.0,
                "steps": 0,
            }
            for lane in self.lanes
        }
        for piece in self.slices:
            row = rows[piece.lane]
            row[piece.state] += piece.duration
            row["steps"] += piece.state == "running"
        return list(rows.values())

    def records(self) -> list[dict[str, Any]]:
        """One plain record a slice, ready for ``json.dumps``."""
        names = {lane.index: lane.label for lane in self.lanes}
        return [
            {"lane": names[p.lane], "state": p.state, "start": p.start, "end": p.end, "kind": p.kind, "why": p.why, "line": p.line,
             "woken_by": self._cause(p) if p.state != "running" else ""}
            for p in self.slices
        ]  # fmt: skip

    def columns(self) -> dict[str, list[Any]]:
        """The records as columns: ``pandas.DataFrame(timeline.columns())``."""
        records = self.records()
        return {
            name: [record[name] for record in records]
            for name in ("lane", "state", "start", "end", "kind", "why", "line", "woken_by")
        }

    def _cause(self, piece: Slice) -> str:
        return self.all_lanes[piece.woken_by].label if piece.woken_by >= 0 else _CAUSES[piece.woken_by]

    def order(self) -> list[str]:
        """The label of the lane of every step, in the order in which the steps ran."""
        visible = {lane.index: lane.label for lane in self.lanes if lane.kind == "task"}
        return [visible[entry[0]] for entry in sorted(self._log, key=lambda entry: entry[2]) if entry[0] in visible]

    def critical_path(self) -> list[Slice]:
        """The chain of slices that decided the makespan, from the start to the end of the recording.

        Walks back from the lane that ended last: a running slice came from being ready, being ready
        from a wake-up. Woken by a task, the path goes on in that task; woken by a timer or a
        socket, the wait itself is on the path.
        """
        by_lane: dict[int, list[Slice]] = defaultdict(list)
        for piece in self.slices:
            by_lane[piece.lane].append(piece)
        if not by_lane:
            return []
        lane = max(by_lane, key=lambda index: by_lane[index][-1].end)
        moment, path = by_lane[lane][-1].end, []
        left: set[tuple[int, float]] = set()  # lanes left at this moment, so that no ring is walked twice
        while moment > 0:
            place = bisect_left(by_lane[lane], moment, key=lambda piece: piece.start) - 1
            if place < 0:  # the lane was not born yet: go on in the one that created it
                spawner = self.all_lanes[lane].spawner
                if spawner is None or spawner not in by_lane or (lane, moment) in left:
                    break
                left.add((lane, moment))
                lane = spawner
                continue
            piece = by_lane[lane][place]
            is_handed_on = piece.state == "suspended" and piece.woken_by in by_lane and piece.end == moment
            if is_handed_on and (lane, moment) not in left:
                left.add((lane, moment))
                lane = piece.woken_by
                continue
            path.append(piece._replace(end=min(piece.end, moment)))
            moment = piece.start
        return path[::-1]

    def save_trace(self, path: str) -> str:
        """Write a trace file that Perfetto and chrome://tracing open; returns ``path``."""
        from .trace import write_trace

        return write_trace(self, path)

    def plot(self, **options: Any) -> Any:
        """Draw the timeline; see :func:`support.figures.draw_timeline` for the options."""
        from .figures import show_timeline

        return show_timeline(self, **options)
