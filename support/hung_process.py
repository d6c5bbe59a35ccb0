"""The service that `support.hung` diagnoses: it awaits one function, and says from a thread what can be seen inside.

By line on stdin: first its orders as JSON, then "look" has the tasks listed, and "tell" asks what was seen. Each is
answered by one line of JSON. The end of stdin ends the service, so it lives no longer than the process that reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any


def chain(task: asyncio.Task[Any]) -> Iterator[Any]:
    """The code of the coroutines that await each other in a waiting task, outermost first."""
    coroutine = task.get_coro()
    while hasattr(coroutine, "cr_code"):
        yield coroutine.cr_code
        coroutine = coroutine.cr_await


class Sight:
    """What the tools inside the process have named so far, by tool."""

    def __init__(self, file: str) -> None:
        self.file, self.names, self.spoke = file, dict[str, str](), threading.Event()

    def look(self) -> None:
        """List the tasks: the frame that get_stack() gives, and the innermost function of `file` on a chain of awaits."""
        for task in asyncio.all_tasks():
            own = [code.co_name for code in chain(task) if code.co_filename == self.file]
            if own:
                self.note("get_stack", task.get_stack()[-1].f_code.co_name)
                self.note("chain of awaits", own[-1])
        self.spoke.set()

    def note(self, tool: str, name: str) -> None:
        self.names[tool] = name
        self.spoke.set()


async def serve(module: str, function: str, file: str) -> None:
    from support.watch import Watchdog

    sight, loop = Sight(file), asyncio.get_running_loop()

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() == "look":
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(sight.look)
                sight.spoke.wait()
            print(json.dumps(sight.names), flush=True)
        os._exit(0)

    call = getattr(importlib.import_module(module), function)
    threading.Thread(target=listen, daemon=True).start()
    async with Watchdog(on_block=lambda block: sight.note("Watchdog", block.place.function)):
        try:
            await call()
            sight.note("ended", "it returned")
        except Exception as error:
            sight.note("ended", f"it raised {type(error).__name__}")
        await loop.create_future()  # until stdin ends


def main() -> None:
    orders = json.loads(sys.stdin.readline())
    sys.path[:] = orders.pop("sys_path")
    with contextlib.suppress(AttributeError, OSError, TypeError):  # Linux: other programs of this user may look inside
        pr_set_ptracer, anyone = 0x59616D61, ctypes.c_ulong(-1)
        ctypes.CDLL(None).prctl(pr_set_ptracer, anyone, 0, 0, 0)
    asyncio.run(serve(**orders))


if __name__ == "__main__":
    main()
