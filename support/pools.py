"""Worker processes that outlive the stop button."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def deaf_to_stop() -> Iterator[None]:
    """A process that is started in this block does not hear the stop button.

    JupyterLab's button sends SIGINT to the kernel and to all that it started. It would kill the
    workers of a ``ProcessPoolExecutor``. On Python 3.11 the pool then marks its waiting calls as
    failed, which raises where the button had cancelled one, and a thread of the pool stays for good.
    A blocked signal stays blocked in a child. The kernel itself still hears the button: its other
    threads do not block the signal, and Python's handler runs in the main thread whoever got it.
    On Windows, where signals cannot be blocked, this does nothing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
