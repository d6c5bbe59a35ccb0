"""The recorder: ``with record() as timeline:`` around any asyncio code, unmodified.

How it works. Everything that an asyncio loop runs, it runs from handles, and every handle passes
through ``loop._call_soon`` (ready now) or ``loop.call_at`` (a timer). For the duration of the
block the recorder shadows these two on the loop *instance* with versions that hand out
handles which note three moments: when the handle became ready and who caused it, when it began
to run, when it was done. A task step is a handle whose callback belongs to a task. Tasks,
coroutines, futures, names and contexts are left alone, so the program cannot tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
import time
import weakref
from asyncio import Handle, TimerHandle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, TracebackType
from typing import Any

from .internals import is_internal, is_step, name_of
from .timeline import COLLECTED, IO, NO_REASON, THREAD, TIMER, Lane, Site, Timeline
from .waits import reader_frame


class record:  # noqa: N801 - reads as a verb at the call: with record() as timeline
    """Record what the running loop does inside a ``with`` block; gives a :class:`Timeline`.

    Args:
        title: what the picture is called.
        block_ms: a callback that holds the loop longer than this many milliseconds is a block,
            drawn in red with its function and line.

    Raises:
        RuntimeError: outside a running loop; on a loop that is already recorded; on a loop
            without the hooks of asyncio's own loops (uvloop).
        ValueError: ``block_ms`` is not a positive number.
    """

    def __init__(self, title: str = "", *, block_ms: float = 20.0) -> None:
        if not isinstance(block_ms, (int, float)) or block_ms <= 0:
            raise ValueError(f"record(block_ms={block_ms!r}): give a positive number of milliseconds.")
        self._title = title
        self._threshold = block_ms / 1000

    def __enter__(self) -> Timeline:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "record() found no running event loop: use it inside an async function, or in a notebook cell that awaits."
            ) from None
        if not hasattr(loop, "_call_soon") or not hasattr(loop, "_selector"):
            raise RuntimeError(
                f"record() cannot see inside {type(loop).__module__}.{type(loop).__qualname__}: record the same code on asyncio's own loop, the default of asyncio.run()."
            )
        if "_call_soon" in vars(loop):
            raise RuntimeError(
                "record() is already recording this loop: leave the outer record() block first, or put both pieces of code into one."
            )
        self._loop = loop
        self._timeline, self._close = _install(loop, self._title, self._threshold)
        return self._timeline

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def _clock_of(loop: Any) -> tuple[Callable[[], float], float]:
    """The clock to read, and what to add to a loop time to get a reading of that clock."""
    if getattr(loop, "is_virtual", False):
        return loop.time, 0.0
    return time.perf_counter, time.perf_counter() - loop.time()


class _Idle:
    """Stands for 'no callback of ours runs': what happens now was caused by a socket."""

    lane = IO


class _Entry:
    """The step in which the block was entered; it had begun before the recorder could see it."""

    def __init__(self, lane: int, at: float) -> None:
        self.lane, self.at, self.waker, self.reason = lane, at, IO, NO_REASON


def _install(loop: Any, title: str, threshold: float) -> tuple[Timeline, Callable[[], None]]:
    """Shadow the hooks of ``loop``; returns the timeline and the function that ends the recording."""
    # One flat scope on purpose: the three handle classes run on every step of the recorded
    # program, and a variable of an enclosing function is the cheapest thing that they can share.
    clock, offset = _clock_of(loop)
    timeline = Timeline(title, clock(), threshold, is_virtual=getattr(loop, "is_virtual", False))
    lanes, log, blocks, samples = timeline.all_lanes, timeline._log, timeline._callback_blocks, timeline._samples
    append = log.append
    lane_of: dict[int, Lane] = {}  # by id(task): a strong reference would keep lost tasks alive
    number_of = timeline.wait_table.number_of
    thread_lanes: dict[int, int] = {}
    get_ident = threading.get_ident
    loop_thread = get_ident()
    selector, ready_queue = loop._selector, loop._ready
    nobody = _Idle()
    running: Any = nobody  # the handle that runs now
    started = timeline.origin  # when the loop began what it does now
    due = 0.0  # when the timer that runs now should have fired, or the socket's bytes were there
    arrived: dict[int, float] = {}  # file descriptors that became ready while the loop was held
    since: dict[int, float] = {}  # the same by id(handle), for the handles about to run
    sockets: list[weakref.ref[Handle]] = []  # handles lent our class, to be given back
    is_idle = is_closed = False

    def register(task: asyncio.Task[Any]) -> Lane:
        lane = Lane(len(lanes), clock(), running.lane if running.lane >= 0 else None)
        lane.is_internal = is_internal(task)
        identity = id(task)

        def forget(_: object) -> None:
            lane_of.pop(identity, None)
            if lane.outcome is None:
                lane.finish(COLLECTED, clock())

        lane.task = weakref.ref(task, forget)
        lane_of[identity] = lane
        lanes.append(lane)
        return lane

    def note_cancel(lane: Lane, task: asyncio.Task[Any], at: float) -> None:
        requests = task.cancelling()
        if requests > lane.cancelling:
            lane.marks.append((at, "cancel requested"))
        lane.cancelling = requests

    def leave_entry(now: float) -> None:
        """The first thing seen after the entering step ends that step."""
        nonlocal running
        if type(running) is _Entry:
            append((running.lane, running.at, running.at, now, IO, NO_REASON))
        running = nobody

    class Step(Handle):
        """One step of a task, from becoming ready to its next suspension."""

        __slots__ = ("at", "lane", "reason", "waker")

        def _run(self) -> None:
            nonlocal running, started
            start = clock()
            if running is not nobody:
                leave_entry(start)
            running, started = self, start
            Handle._run(self)
            started = end = clock()
            running = nobody
            if not is_closed:
                append((self.lane, self.at, start, end, self.waker, self.reason))
                if self._callback.__self__.done():  # type: ignore[attr-defined]
                    lanes[self.lane].close(self._callback.__self__, end)  # type: ignore[attr-defined]
            # A traceback may keep this frame; Handle._run forgets itself for the same reason.
            self = None  # type: ignore[assignment]

    class FirstStep(Step):
        """A task's first step, by which time it has its name: on 3.11 it is set after creation."""

        __slots__ = ()

        def _run(self) -> None:
            lanes[self.lane].describe(self._callback.__self__)  # type: ignore[attr-defined]
            Step._run(self)
            self = None  # type: ignore[assignment]

    class Callback(Handle):
        """Any other callback. ``lane`` is who caused it, and so who causes what it causes."""

        __slots__ = ("lane",)

        def _run(self) -> None:
            run_other(self, Handle)
            self = None  # type: ignore[assignment]

    class Socket(Handle):
        """The callback of a socket that is ready. Its class is lent for the recording."""

        __slots__ = ()
        lane = IO

        def _run(self) -> None:
            nonlocal due
            due = since.pop(id(self), math.inf)
            run_other(self, Handle)
            self = None  # type: ignore[assignment]

    class Timer(TimerHandle):
        """A timer. What it makes ready has been ready since the timer was due."""

        __slots__ = ()
        lane = TIMER

        def _run(self) -> None:
            nonlocal due
            due = self._when + offset
            scope = getattr(self._callback, "__self__", None)
            if isinstance(scope, asyncio.Timeout):
                lane = lane_of.get(id(scope._task))  # type: ignore[attr-defined]
                if lane is not None:
                    lane.marks.append((clock(), "timed out"))
            run_other(self, TimerHandle)
            self = None  # type: ignore[assignment]

    Step.__name__ = FirstStep.__name__ = Callback.__name__ = Socket.__name__ = (
        "Handle"  # asyncio prints these names in debug mode
    )
    Timer.__name__ = "TimerHandle"

    def run_other(handle: Any, kind: type) -> None:
        nonlocal running, started
        start = clock()
        if running is not nobody:
            leave_entry(start)
        running, started = handle, start
        kind._run(handle)  # type: ignore[attr-defined]
        handle = None
        started = end = clock()
        running = nobody
        if end - start >= threshold and not is_closed:
            blocks.append((start, end))

    def call_soon(callback: Any, args: Any, context: Any) -> Handle:
        at = clock()
        cause = running.lane
        if get_ident() != loop_thread:
            cause = thread_lanes.get(get_ident(), THREAD)
        elif (cause == TIMER or cause == IO and running is not nobody) and due < at:
            at = due
        handle: Any
        if is_step(callback):
            task = callback.__self__
            lane = lane_of.get(id(task)) or register(task)
            handle = (FirstStep if lane.is_new else Step)(callback, args, loop, context)
            handle.at, handle.waker, handle.lane = at, cause, lane.index
            if lane.is_new or cause == lane.index:  # a task that is scheduled by its own step was not suspended
                handle.reason, lane.is_new = NO_REASON, False
            else:
                handle.reason = number_of(task)
                note_cancel(lane, task, at)
        else:
            handle = Callback(callback, args, loop, context)
            handle.lane = cause
        if handle._source_traceback:
            del handle._source_traceback[-1]
        ready_queue.append(handle)
        return handle

    plain_call_at, plain_select, plain_executor = loop.call_at, selector.select, loop.run_in_executor
    plain_create_task = loop.create_task

    def call_at(when: float, callback: Any, *args: Any, context: Any = None) -> TimerHandle:
        timer = plain_call_at(when, callback, *args, context=context)
        timer.__class__ = Timer
        return timer

    def select(timeout: float | None = None) -> Any:
        nonlocal is_idle, started
        enter = clock()
        if running is not nobody:
            leave_entry(enter)
        elif enter - started >= threshold:  # socket callbacks, which no hook sees one by one
            blocks.append((started, enter))
        is_idle = True
        try:
            events = plain_select(timeout)
        finally:
            started = clock()
            is_idle = False
            if timeout is None or timeout > 0:
                timeline._idle.append((enter, started))
        since.clear()
        for key, _ in events:
            for handle in key.data if isinstance(key.data, tuple) else ():
                if type(handle) is Handle:
                    handle.__class__ = Socket
                    sockets.append(weakref.ref(handle))
                if key.fd in arrived:
                    since[id(handle)] = arrived[key.fd]
        arrived.clear()
        return events

    def run_in_executor(executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        if executor is not None and not isinstance(executor, ThreadPoolExecutor):
            return plain_executor(executor, func, *args)  # another process: func must stay picklable
        lane = Lane(len(lanes), clock(), running.lane if running.lane >= 0 else None, kind="thread")
        lane.function = lane.name = name_of(func)
        lanes.append(lane)

        def timed() -> Any:
            start = clock()
            thread_lanes[get_ident()] = lane.index
            try:
                return func(*args)
            except BaseException as error:
                lane.error = type(error).__name__
                raise
            finally:
                if not is_closed:
                    end = clock()
                    append((lane.index, lane.born, start, end, lane.index, NO_REASON))
                    lane.finish("failed" if lane.error else "finished", end)

        return plain_executor(executor, timed)

    def create_task(coro: Any, **options: Any) -> Any:
        start = clock()
        task = plain_create_task(coro, **options)
        if isinstance(task, asyncio.Task) and id(task) not in lane_of:
            # An eager task: it ran its first step in its constructor, on its parent's time.
            lane, end = register(task), clock()
            lane.born, lane.is_new = start, False
            append((lane.index, start, start, end, lane.index, NO_REASON))
            if lane.spawner is not None:
                lanes[lane.spawner].lent.append((start, end))
            if task.done():
                lane.close(task, end)
        return task

    step = min(threshold / 3, 0.004)  # seconds between two looks

    def watch() -> None:
        """Look at the loop's stack while one callback runs long, to know the line that holds it."""
        while not stop.wait(step):
            begun = started
            if is_idle or clock() - begun < step:
                continue
            frame = reader_frame(sys._current_frames().get(loop_thread))
            if frame is not None and begun == started:
                samples.setdefault(begun, []).append(Site.of(frame))
            now = clock()
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # the loop may be changing its sockets
                for key, _ in plain_select(0):  # asking takes nothing away: the loop will be told too
                    arrived.setdefault(key.fd, now)

    def on_occupied(start: float, end: float, frame: FrameType) -> None:
        found = reader_frame(frame)
        if found is not None:
            samples.setdefault(started, []).append(Site.of(found))

    main = asyncio.current_task(loop)
    others = asyncio.all_tasks(loop)
    if main is not None:
        lane = register(main)
        lane.is_main, lane.is_internal, lane.is_new = True, False, False
        running = _Entry(lane.index, timeline.origin)
        others.discard(main)
    for task in others:
        lane = register(task)
        lane.describe(task)
        lane.spawner, lane.born = None, timeline.origin
        lane.is_new = getattr(getattr(task.get_coro(), "cr_frame", None), "f_lasti", 0) == -1
    for position, queued in enumerate(ready_queue):  # steps that were scheduled before the block
        if type(queued) is Handle and not queued._cancelled and is_step(queued._callback):
            task = queued._callback.__self__
            twin: Any = FirstStep(queued._callback, queued._args, loop, queued._context)
            lane = lane_of.get(id(task)) or register(task)
            twin.at, twin.waker, twin.lane, twin.reason = timeline.origin, IO, lane.index, NO_REASON
            lane.is_new = False
            ready_queue[position] = twin

    hooks: dict[str, Any] = {"_call_soon": call_soon, "call_at": call_at, "run_in_executor": run_in_executor}
    if sys.version_info >= (3, 12):  # eager tasks exist
        hooks["create_task"] = create_task
    for name, hook in hooks.items():
        setattr(loop, name, hook)
    selector.select = select
    stop = threading.Event()
    watcher = threading.Thread(target=watch, name="support-recorder", daemon=True)
    if timeline.is_virtual:
        loop.on_occupied = on_occupied
    else:
        watcher.start()

    # From here on the program is on the clock, and not the recorder's own preparations.
    timeline.origin = started = clock()
    if isinstance(running, _Entry):
        running.at = started
    for lane in lanes:
        lane.born = started

    def close() -> None:
        nonlocal is_closed
        end = clock()
        is_closed = True
        if isinstance(running, (Step, _Entry)):
            start = started if isinstance(running, Step) else running.at
            append((running.lane, running.at, start, end, running.waker, running.reason))
        for name in hooks:
            delattr(loop, name)
        del selector.select
        for timer in loop._scheduled:
            if type(timer) is Timer:
                timer.__class__ = TimerHandle
        for lent in sockets:
            if (handle := lent()) is not None:
                handle.__class__ = Handle
        if timeline.is_virtual:
            loop.on_occupied = None
        else:
            stop.set()
            watcher.join()
        for lane in list(lanes):
            task = lane.task() if lane.task is not None else None
            if task is not None and lane.outcome is None:
                lane.close(task, end)
                if lane.outcome == "pending" and task is not main and not lane.is_new:
                    lane.last_wait = number_of(task)
            lane.task = None
        timeline._finish(end)

    return timeline, close
