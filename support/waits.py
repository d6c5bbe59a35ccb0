"""What a suspended task waits for, read from the chain of awaits that it left behind.

A suspended coroutine knows what it awaits (``cr_await``), which knows what it awaits, and so on
down to the future that the loop will complete. The recorder walks this chain once per real
suspension, at the moment of the wake-up, when the chain is still in place. Nothing is changed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sysconfig
from types import CodeType, FrameType
from typing import Any, NamedTuple

_SUPPORT = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARIES = tuple(
    {
        os.path.realpath(path) + os.sep
        for name, path in sysconfig.get_paths().items()
        if name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    | {
        path + os.sep
        for name, path in sysconfig.get_paths().items()
        if name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
)


class Wait(NamedTuple):
    """One reason to be suspended, and the line of the reader's code that led to it."""

    kind: str  # "timer", "network", "lock", "tasks", "thread" or "other"
    label: str  # what a person would call it: "semaphore", "sleep", "task A", ...
    function: str
    file: str
    line: int  # 0 where no line of the reader's own is in the chain


# The function that a task is parked in names the reason. Keys: last two parts of the file, qualified name.
_BY_FUNCTION: dict[tuple[str, str], tuple[str, str]] = {
    ("asyncio/tasks.py", "sleep"): ("timer", "sleep"),
    ("asyncio/locks.py", "Lock.acquire"): ("lock", "lock"),
    ("asyncio/locks.py", "Semaphore.acquire"): ("lock", "semaphore"),
    ("asyncio/locks.py", "Event.wait"): ("lock", "event"),
    ("asyncio/locks.py", "Condition.wait"): ("lock", "condition"),
    ("asyncio/locks.py", "Barrier.wait"): ("lock", "barrier"),
    ("asyncio/queues.py", "Queue.get"): ("lock", "empty queue"),
    ("asyncio/queues.py", "Queue.put"): ("lock", "full queue"),
    ("asyncio/queues.py", "Queue.join"): ("lock", "queue join"),
    ("asyncio/taskgroups.py", "TaskGroup.__aexit__"): ("tasks", "child tasks"),
    ("asyncio/taskgroups.py", "TaskGroup._aexit"): ("tasks", "child tasks"),
    ("asyncio/tasks.py", "_wait"): ("tasks", "child tasks"),
    ("asyncio/tasks.py", "_AsCompletedIterator._wait_for_one"): ("tasks", "child tasks"),
    ("asyncio/tasks.py", "as_completed.<locals>._wait_for_one"): ("tasks", "child tasks"),
    ("asyncio/threads.py", "to_thread"): ("thread", "thread"),
    ("asyncio/base_events.py", "BaseEventLoop.getaddrinfo"): ("thread", "name look-up"),
    ("asyncio/base_events.py", "BaseEventLoop.shutdown_default_executor"): ("thread", "thread pool"),
    ("asyncio/streams.py", "StreamWriter.drain"): ("network", "full socket"),
    ("aiohttp/connector.py", "BaseConnector._wait_for_available_connection"): ("lock", "connection limit"),
    ("asyncpg/pool.py", "Pool._acquire"): ("lock", "connection pool"),
}
# A library whose every wait is, short of a better rule, a wait for the other side of a socket.
_BY_PACKAGE = {
    "aiohttp": "network",
    "asyncpg": "network",
    "redis": "network",
    "httpx": "network",
    "httpcore": "network",
    "uvicorn": "network",
}
_BY_FILE = {
    "asyncio/streams.py": "network",
    "asyncio/selector_events.py": "network",
    "asyncio/base_events.py": "network",
    "asyncio/proactor_events.py": "network",
}


class _CodeFacts(NamedTuple):
    is_reader: bool
    exact: tuple[str, str] | None
    vague: tuple[str, str] | None


# By id, because hashing a code object reads its whole body; the code is kept so that the id stays its own.
_facts: dict[int, tuple[CodeType, _CodeFacts]] = {}


def is_reader_code(filename: str) -> bool:
    """True for code that is neither the standard library's, nor a package's, nor the course's helper."""
    return not filename.startswith(("<frozen", _SUPPORT, *_LIBRARIES))


def _facts_of(code: CodeType) -> _CodeFacts:
    parts = code.co_filename.replace(os.sep, "/").split("/")
    tail = "/".join(parts[-2:])
    name = getattr(code, "co_qualname", code.co_name)
    vague = next(((kind, part) for part, kind in _BY_PACKAGE.items() if part in parts), None)
    if vague is None and tail in _BY_FILE:
        vague = (_BY_FILE[tail], "socket")
    facts = _CodeFacts(is_reader_code(code.co_filename), _BY_FUNCTION.get((tail, name)), vague)
    _facts[id(code)] = code, facts
    return facts


def _parts(awaitable: Any) -> tuple[CodeType | None, FrameType | None, Any] | None:
    """Code, frame and next link of a coroutine, generator or async generator; None for anything else."""
    for code, frame, following in (
        ("cr_code", "cr_frame", "cr_await"),
        ("gi_code", "gi_frame", "gi_yieldfrom"),
        ("ag_code", "ag_frame", "ag_await"),
    ):
        if hasattr(awaitable, code):
            return getattr(awaitable, code), getattr(awaitable, frame), getattr(awaitable, following)
    if type(awaitable).__name__ in (
        "coroutine_wrapper",
        "async_generator_asend",
        "async_generator_athrow",
        "anext_awaitable",
    ):
        # These C objects hide their target; the garbage collector knows it.
        return None, None, next((held for held in gc.get_referents(awaitable) if _has_code(held)), None)
    return None


def _has_code(thing: Any) -> bool:
    return hasattr(thing, "cr_code") or hasattr(thing, "gi_code") or hasattr(thing, "ag_code")


def wait_of(task: asyncio.Task[Any]) -> Wait:
    """The reason for which ``task`` is suspended now.

    The outermost function that has an exact rule wins, then the outermost library, then the
    future itself. Only looks: no frame is entered, no awaitable is touched.
    """
    exact = vague = None
    site: tuple[CodeType, FrameType] | None = None
    awaitable: Any = task.get_coro()
    while awaitable is not None:
        parts = _parts(awaitable)
        if parts is None:
            break
        code, frame, awaitable = parts
        if code is None:
            continue
        known = _facts.get(id(code))
        facts = known[1] if known else _facts_of(code)
        if facts.is_reader and frame is not None:
            site = code, frame
        exact = exact or facts.exact
        vague = vague or facts.vague
    kind, label = exact or vague or _by_future(getattr(task, "_fut_waiter", None))
    if site is None:
        return Wait(kind, label, "", "", 0)
    code, frame = site
    return Wait(kind, label, getattr(code, "co_qualname", code.co_name), code.co_filename, frame.f_lineno)


class WaitTable:
    """Reasons by number. The same chain of awaits, stopped at the same instructions, is looked up, not read again."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self._number_of: dict[Wait, int] = {}
        self._by_chain: dict[tuple[int, ...], tuple[int, list[CodeType]]] = {}

    def number_of(self, task: asyncio.Task[Any]) -> int:
        """The number of the reason for which ``task`` is suspended now; ``waits[number]`` is the reason."""
        awaitable: Any = task.get_coro()
        chain: list[int] = []
        codes = []
        try:
            while awaitable is not None:
                code = awaitable.cr_code
                codes.append(code)
                chain += id(code), awaitable.cr_frame.f_lasti
                awaitable = awaitable.cr_await
        except AttributeError:
            pass  # the end of the coroutines: a future, or something that hides its target
        key = tuple(chain)
        known = self._by_chain.get(key)
        if known is not None:
            return known[0]
        wait = wait_of(task)
        number = self._number_of.get(wait)
        if number is None:
            number = self._number_of[wait] = len(self.waits)
            self.waits.append(wait)
        if wait.kind != "other" and not wait.label.startswith("task ") and type(awaitable).__name__ == "FutureIter":
            self._by_chain[key] = number, codes  # the codes are kept so that their ids stay their own
        return number


def _by_future(future: Any) -> tuple[str, str]:
    if isinstance(future, asyncio.Task):
        return "tasks", f"task {future.get_name()}"
    if type(future).__name__ == "_GatheringFuture":
        return "tasks", "child tasks"
    return "other", "future"


def reader_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the reader's own code in this stack, or None."""
    while frame is not None and not is_reader_code(frame.f_code.co_filename):
        frame = frame.f_back
    return frame
