"""A scanner tries many paths, each once: what does a middleware keep of them?"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from types import SimpleNamespace
from typing import Any

import psutil

from support.sandbox import run_script


async def memory_by_path(middleware: str, paths: int, step: int) -> list[float]:
    """Megabytes that a fresh process has gained after 0, `step`, 2 `step`, ... up to `paths` different paths.

    There is no server: the middleware is called by hand, and every answer is a 404.

    Args:
        middleware: "module:name" of an ASGI middleware, a class that is made with the application, or of
            a function of (request, call_next).

    Raises:
        ValueError: `middleware` has no colon, or `step` is not positive. Others as `run_script`.
    """
    if not all(middleware.partition(":")):
        raise ValueError(f"The middleware must be given as 'module:name', not {middleware!r}.")
    if step < 1:
        raise ValueError(f"step={step!r}: give a positive whole number of paths between two looks.")
    start = f"import sys; sys.path[:] = {sys.path}; from support import scan"
    printed = await run_script(f"{start}; scan.run_here({middleware!r}, {paths}, {step})")
    sizes = [float(line) for line in printed.splitlines()]
    return [size - sizes[0] for size in sizes]


def run_here(middleware: str, paths: int, step: int) -> None:
    """Scan in this process, and print its megabytes in memory after each `step` paths."""
    module, _, name = middleware.partition(":")
    asyncio.run(_scan(getattr(importlib.import_module(module), name), paths, step))


async def _scan(middleware: Any, paths: int, step: int) -> None:
    process = psutil.Process()
    watch = middleware(_not_found) if inspect.isclass(middleware) else None
    for number in range(paths + 1):
        if number % step == 0:
            print(process.memory_info().rss / 2**20)
        path = f"/wp-{number}.php"
        if watch:
            await watch({"type": "http", "method": "GET", "path": path, "headers": []}, _receive, _send)
        else:
            await middleware(SimpleNamespace(method="GET", url=SimpleNamespace(path=path)), _call_next)


async def _receive() -> dict[str, Any]:
    return {"type": "http.request"}


async def _send(message: dict[str, Any]) -> None:
    pass


async def _not_found(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body"})


async def _call_next(request: Any) -> SimpleNamespace:
    return SimpleNamespace(status_code=404)
