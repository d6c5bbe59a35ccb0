"""The private corners of asyncio that the recorder reads, all in one place.

Nothing here changes anything. Checked on CPython 3.11 to 3.13; a version that renames one of these
names fails at the first import, not in the middle of a recording.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from types import BuiltinFunctionType, MethodType
from typing import Any

_PyTask: type = asyncio.tasks._PyTask  # type: ignore[attr-defined]
_PY_STEPS = (_PyTask._Task__step, _PyTask._Task__wakeup)  # type: ignore[attr-defined]


def _step_type() -> type:
    """The type of the callback by which the C task starts a step; it has no public name."""
    seen: list[Any] = []

    class Ear:  # a loop as far as Task.__init__ needs one
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> None:
            seen.append(callback)

        def get_debug(self) -> bool:
            return False

        is_running = get_debug

    async def nothing() -> None: ...

    coroutine = nothing()
    task = asyncio.Task(coroutine, loop=Ear(), name="")  # type: ignore[arg-type]
    asyncio.tasks._unregister_task(task)  # type: ignore[attr-defined]
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine.close()
    return type(seen[0])


_C_STEP = _step_type()
_INTERNAL = ("ipykernel", "tornado", "jupyter_client", "IPython", "zmq", "support.kernel")


def is_internal(task: asyncio.Task[Any]) -> bool:
    """True for the notebook kernel's own tasks, which are no part of the reader's program."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith(_INTERNAL)


def is_step(callback: Any) -> bool:
    """True for the callbacks by which a task, C or Python, takes its next step."""
    kind = type(callback)
    return (
        kind is _C_STEP
        or (kind is BuiltinFunctionType and callback.__name__ == "task_wakeup")
        or (kind is MethodType and callback.__func__ in _PY_STEPS)
    )


def name_of(func: Callable[..., Any]) -> str:
    """What a person would call the function that a thread was given; to_thread wraps it twice."""
    while isinstance(func, functools.partial):
        func = func.args[0] if isinstance(getattr(func.func, "__self__", None), contextvars.Context) else func.func
    return getattr(func, "__qualname__", type(func).__name__)
