"""What stands around simulated code: a thread that can be stopped, and a time.sleep of its own."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import math
import sys
import threading
import time
from asyncio import events
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class SimulationError(RuntimeError):
    """The program cannot be simulated: it needs the real world, or it can never end."""


class RealTimeLimit(SimulationError):
    """The program was stopped because it used too much real time."""


def call_in_thread(function: Callable[[], T], *, real_limit: float | None = None) -> T:
    """Call ``function()`` in a helper thread, with the caller's context variables, and wait.

    An interrupt in the caller stops the thread, also in a loop that never awaits.
    Raises RealTimeLimit after ``real_limit`` real seconds. A thread that sits in a C call, or
    swallows every KeyboardInterrupt, cannot be stopped: it stays, and ends with the process.
    """
    outcome: dict[str, Any] = {}
    # Not thread.join: interrupted, it takes a running thread for dead before Python 3.13.
    ended = threading.Event()

    def work() -> None:
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error
        finally:
            ended.set()

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name="simulation", daemon=True)
    deadline = math.inf if real_limit is None else time.monotonic() + real_limit
    thread.start()
    try:
        # Short waits, because an interrupt cannot end a long one on every platform.
        while not ended.wait(max(0.0, min(0.1, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise RealTimeLimit(f"stopped after {real_limit:g} s of real time.")
    except BaseException:
        _stop(thread, ended)
        raise
    thread.join()
    try:
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]
    finally:
        outcome.clear()  # or the exception, its traceback and this frame keep each other alive


def _stop(thread: threading.Thread, ended: threading.Event, patience: float = 2.0) -> None:
    """Raise KeyboardInterrupt in another thread, again and again until it ends."""
    interrupt = ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
    give_up = time.monotonic() + patience
    while not ended.is_set() and time.monotonic() < give_up:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(*interrupt)
        ended.wait(0.2)
    thread.join(0.2)


def occupied_virtually(seconds: float, frame: FrameType) -> bool:
    """Let the time pass on the virtual loop that runs in this thread. False when none runs."""
    loop = events._get_running_loop()
    if not getattr(loop, "is_virtual", False):
        return False
    start = loop.time()
    loop.move_to(start + seconds)
    if loop.on_occupied is not None:
        loop.on_occupied(start, loop.time(), frame)
    return True


_sleep_lock = threading.Lock()
_simulations = 0
_real_sleep = time.sleep


def _time_sleep(seconds: float) -> None:
    if not (0 <= seconds < math.inf and occupied_virtually(seconds, sys._getframe(1))):
        _real_sleep(seconds)


@contextlib.contextmanager
def virtual_time_sleep() -> Iterator[None]:
    """Let time.sleep hold the virtual loop; other threads keep the real one."""
    global _simulations, _real_sleep
    with _sleep_lock:
        if _simulations == 0:
            _real_sleep, time.sleep = time.sleep, _time_sleep
        _simulations += 1
    try:
        yield
    finally:
        with _sleep_lock:
            _simulations -= 1
            if _simulations == 0:
                time.sleep = _real_sleep
