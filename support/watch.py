"""Is the loop late, and who holds it? Cheap enough to run all the time.

``LagProbe`` measures on the loop *how late* it is, and cannot say why. ``Watchdog`` looks from a thread of its
own, which runs while the loop does not, and names *the line* that holds it. Neither changes the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import linecache
import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, NamedTuple

from .waits import reader_frame

_IDLE = {("selectors.py", "select"), ("windows_events.py", "_poll")}  # where the thread of an idle loop is


class _Started:
    """What runs on the loop between start() and stop(), or for one ``async with``."""

    _loop: Any = None

    def __init__(self, name: str, seconds: float, keep: int) -> None:
        if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise ValueError(f"{name}={seconds!r}: give a positive number of seconds.")
        if not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep={keep!r}: give a positive whole number, how many to remember.")

    def start(self) -> Any:
        """Begin, on the running loop. Raises RuntimeError outside a loop, and when it runs already."""
        name = type(self).__name__
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(f"This {name} is running: stop() it first, or make another one.")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(f"{name} found no running event loop: start it in an async function.") from None
        self._begin(loop)
        self._loop = loop
        return self

    def stop(self) -> None:
        """End, on the same loop, and leave nothing behind. Does nothing when it is not running."""
        if self._loop is not None:
            self._end(self._loop)
            self._loop = None

    async def __aenter__(self) -> Any:
        return self.start()

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    def _begin(self, loop: Any) -> None: ...
    def _end(self, loop: Any) -> None: ...


class LagProbe(_Started):
    """``async with LagProbe() as probe:`` then ``probe.max``: a heartbeat that notes how late each beat comes.

    A block of D seconds begins at any point between two beats, so the probe reads D less a random part of one
    period; of a block shorter than the period it sees something with probability D / period. The beats keep to a
    grid of absolute times, so that a late one does not delay the next. Works on a real loop and under simulate().

    Args:
        period: seconds between two beats.
        keep: beats to remember; ``max`` and ``count`` are of all.
        on_beat: called on the loop with the seconds that each beat was late, such as the observe of a histogram.

    Raises:
        ValueError: ``period`` or ``keep`` is not positive.
    """

    def __init__(
        self, period: float = 0.02, *, keep: int = 3000, on_beat: Callable[[float], object] | None = None
    ) -> None:
        super().__init__("period", period, keep)
        self.period, self._on_beat = float(period), on_beat
        self.beats: deque[tuple[float, float]] = deque(maxlen=keep)  # loop time at which it was due, seconds late
        self.max, self.count = 0.0, 0

    def quantile(self, share: float) -> float:
        """The lateness, in seconds, that ``share`` (0 to 1) of the remembered beats do not exceed; 0 without beats."""
        if not 0 <= share <= 1:
            raise ValueError(f"quantile({share!r}): give a share from 0 to 1, such as 0.99.")
        late = sorted(late for _, late in self.beats)
        return late[max(0, math.ceil(share * len(late)) - 1)] if late else 0.0

    def _begin(self, loop: Any) -> None:
        self._due = loop.time() + self.period
        self._timer = loop.call_at(self._due, self._beat, loop)

    def _end(self, loop: Any) -> None:
        self._timer.cancel()
        if loop.time() > self._due:
            self._note(loop.time())  # a block right before the end

    def _note(self, now: float) -> None:
        late = max(0.0, now - self._due)
        self.beats.append((self._due, late))
        self.max, self.count = max(self.max, late), self.count + 1
        self._due += self.period * (1 + late // self.period)
        if self._on_beat is not None:
            self._on_beat(late)

    def _beat(self, loop: Any) -> None:
        try:
            self._note(loop.time())
        finally:  # an error of on_beat goes to the loop's exception handler, and the beats go on
            self._timer = loop.call_at(self._due, self._beat, loop)


class Place(NamedTuple):
    """A line of the user's code, and the library's function that it waits in, if any. Without such code, of a library."""

    function: str
    file: str
    line: int
    library: str = ""

    @classmethod
    def of(cls, frame: FrameType) -> Place:
        """The innermost line of the user's own code on the stack of ``frame``."""
        own = reader_frame(frame) or frame
        name, below = (getattr(each.f_code, "co_qualname", each.f_code.co_name) for each in (own, frame))
        library = "" if own is frame else f"{frame.f_globals.get('__name__', '?')}.{below}"
        return cls(name, own.f_code.co_filename, own.f_lineno, library)

    def __str__(self) -> str:
        below = f" (in {self.library})" if self.library else ""
        return f"{self.function}, line {self.line}: {linecache.getline(self.file, self.line).strip()}{below}"


@dataclass
class Block:
    """One time that the loop was held. ``seconds`` grows until it is ``over``, and reads low by up to one period."""

    named_at: float  # time.perf_counter() when the watchdog named it
    seconds: float
    places: Counter[Place]  # where the looks at the stack found the loop
    over: bool = False

    @property
    def place(self) -> Place:
        """Where most looks found the loop."""
        return self.places.most_common(1)[0][0]


@dataclass
class _Suspect:
    """A loop that was found at work and was asked for a sign of life. Times in seconds."""

    since: float
    collected: float  # by the garbage collector, until then
    queued: float | None
    places: Counter[Place] = field(default_factory=Counter)
    starved: float = 0.0
    answered: float = math.inf  # when the sign of life came
    block: Block | None = None

    def answer(self) -> None:
        self.answered = time.perf_counter()


class Watchdog(_Started):
    """``async with Watchdog() as dog:`` then ``dog.blocks``: who held the loop longer than ``threshold`` seconds.

    A thread looks at the stack of the loop's thread twice in each threshold. A loop that sits in its
    selector is idle, however late the machine wakes it. A loop found at work is asked to call back; until it does,
    each look notes the line. When that takes longer than the threshold, the line is named, while it still lasts: at
    the latest two looks after the threshold. A call into C that keeps the interpreter lock stops the watchdog too: it
    is named when it returns, at times with the line after it. Not counted are pauses of the garbage collector
    (``pauses`` has the seconds of the long ones), and time that the loop's thread spent in the queue for a processor
    (Linux tells; elsewhere: time by which the watchdog's own thread was late while the loop's did not compute).

    ``used`` is the processor time of the watchdog's own thread so far, in seconds: an idle loop pays nothing besides.

    Args:
        threshold: seconds. Blocks shorter than it are never named, those twice as long always.
        on_block: called with each new Block, in the watchdog's thread. Its errors go to the loop's exception handler.
        keep: blocks and pauses to remember; ``count`` is of all blocks.

    Raises:
        ValueError: ``threshold`` or ``keep`` is not positive. RuntimeError: start() under simulate().
    """

    def __init__(
        self, threshold: float = 0.05, *, on_block: Callable[[Block], object] | None = None, keep: int = 100
    ) -> None:
        super().__init__("threshold", threshold, keep)
        self.threshold, self.period, self.count, self.used = float(threshold), 0.5 * threshold, 0, 0.0
        self.blocks: deque[Block] = deque(maxlen=keep)
        self.pauses: deque[float] = deque(maxlen=keep)
        self._on_block, self._collected, self._collecting = on_block, 0.0, math.inf

    def _begin(self, loop: Any) -> None:
        if getattr(loop, "is_virtual", False):
            raise RuntimeError("Watchdog: under simulate() nothing is held for real: use LagProbe, or a real loop.")
        clock: Callable[[], float] = time.process_time
        if hasattr(time, "pthread_getcpuclockid"):  # of the loop's thread alone
            number = time.pthread_getcpuclockid(threading.get_ident())
            clock = lambda: time.clock_gettime(number)  # noqa: E731
        self._root: CodeType | None = None
        if not isinstance(loop, asyncio.BaseEventLoop):  # uvloop has no frames: when idle, it is in what runs it
            loop.call_soon(self._note_root)
        gc.callbacks.append(self._on_gc)
        self._running = threading.Lock()  # cheaper to wait for than an Event
        self._running.acquire()
        whose = loop, threading.get_ident(), threading.get_native_id(), clock
        self._thread = threading.Thread(target=self._watch, args=whose, name="support-watchdog", daemon=True)
        self._thread.start()

    def _end(self, loop: Any) -> None:
        self._running.release()
        self._thread.join()

    def _note_root(self) -> None:
        self._root = sys._getframe(1).f_code

    def _on_gc(self, phase: str, _: object) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._collecting = now
        elif self._collecting <= now:
            if (pause := now - self._collecting) > self.threshold:
                self.pauses.append(pause)
            self._collected += pause
            self._collecting = math.inf

    def _watch(self, loop: Any, thread: int, native: int, clock: Callable[[], float]) -> None:
        suspect: _Suspect | None = None
        looked, computed, collected = time.perf_counter(), clock(), self._collected
        while not self._running.acquire(timeout=self.period) and not loop.is_closed():
            began, gone = self._collecting, self._collected  # before the clock: a pause after it must not count as work
            now, cpu, self.used = time.perf_counter(), clock(), time.thread_time()
            gone += max(0.0, now - began)  # in a block that makes objects, most looks find the collector at work
            late, used, paused = now - looked - self.period, cpu - computed, gone - collected
            looked, computed, collected = now, cpu, gone
            frame = sys._current_frames().get(thread)
            if frame is not None and frame.f_code is Watchdog._on_gc.__code__:
                frame = frame.f_back  # where the collector was called from
            is_idle = frame is None or not loop.is_running() or self._idles_in(frame.f_code)
            if suspect is not None and (is_idle or suspect.answered <= now):
                self._judge(loop, suspect, native, is_over=True)
                suspect = None
            if frame is None or is_idle:
                continue
            if suspect is None:
                hidden = max(0.0, min(late, used) - paused)  # so long it computed and kept the interpreter lock
                suspect = _Suspect(now - hidden, gone, _queued(native))
                with contextlib.suppress(RuntimeError):  # the loop was closed just now
                    loop.call_soon_threadsafe(suspect.answer)
            elif suspect.queued is None:
                suspect.starved += max(0.0, late - used)
            suspect.places[Place.of(frame)] += 1
            self._judge(loop, suspect, native, is_over=False)
            frame = None  # or it would keep the program's variables alive
        if suspect is not None:
            self._judge(loop, suspect, native, is_over=True)
        gc.callbacks.remove(self._on_gc)

    def _idles_in(self, code: CodeType) -> bool:
        file = code.co_filename.replace("\\", "/").rpartition("/")[2]
        return code is self._root or (file, code.co_name) in _IDLE

    def _judge(self, loop: Any, suspect: _Suspect, native: int, *, is_over: bool) -> None:
        now, queued = min(time.perf_counter(), suspect.answered), _queued(native)
        if queued is not None and suspect.queued is not None:
            suspect.starved = queued - suspect.queued
        began, collected = self._collecting, self._collected
        collected += max(0.0, now - began) - suspect.collected
        held = now - suspect.since - collected - suspect.starved
        if held > self.threshold and suspect.block is None:
            suspect.block = Block(now, held, suspect.places)
            self.blocks.append(suspect.block)
            self.count += 1
            try:
                if self._on_block is not None:
                    self._on_block(suspect.block)
            except Exception as error:
                told = {"message": "The on_block of a Watchdog failed.", "exception": error}
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(loop.call_exception_handler, told)
        if suspect.block is not None:
            suspect.block.seconds, suspect.block.over = max(suspect.block.seconds, held), is_over


def _queued(native: int) -> float | None:
    """Seconds that a thread of this process was ready to run and had no processor; None where the system does not say."""
    try:
        with open(f"/proc/self/task/{native}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None
