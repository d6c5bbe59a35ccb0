"""Async Python, measured: the helpers that the notebooks use.

The names below are what a reader types in a cell. Each loads its room when it is first used, so
that a server process which needs one room does not pay for all.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from support.imports import import_whole

_ROOM_OF = {
    "open_chapter": "kernel",
    "close_chapter": "kernel",
    "record": "recorder",
    "simulate": "clock",
    "occupy_loop": "clock",
    "start_upstream": "servers",
    "serve": "servers",
    "start_postgres": "services",
    "start_redis": "services",
    "predict": "exercises",
    "check": "exercises",
    "hint": "exercises",
    "progress": "exercises",
    "score": "exercises",
    "deaf_to_stop": "pools",
    "in_pairs": "repeating",
    "repeats": "repeating",
    "run_script": "sandbox",
    "run_cells": "sandbox",
    "new_figure": "figures",
    "show": "figures",
    "LagProbe": "watch",
    "Watchdog": "watch",
    "Dashboard": "dashboard",
    "diagnose": "hung",
    "memory_by_path": "scan",
}
_ROOMS = ("figures", "load", "probes", "rivals", "theory", "visitors", "waterfall")
__all__ = ["import_whole", *_ROOM_OF, *_ROOMS]  # noqa: PLE0604 - names, made from the table above


def _room(name: str) -> ModuleType:
    import_whole(f"support.{name}")  # the stop button must not leave half a room, or half of numpy
    return importlib.import_module(f"support.{name}")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return _room(name)
    if name in _ROOM_OF:
        return getattr(_room(_ROOM_OF[name]), name)
    raise AttributeError(f"support has no {name!r}; it has {', '.join(sorted(__all__))}")
