"""Is everything there? Plain words for a reader whose set-up may be half done."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

PROJECT = "async-python-measured"


def problems() -> Iterator[str]:
    """One sentence for each thing that is missing or wrong, and what to do about it."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the place that says so
        yield f"Python {sys.version_info.major}.{sys.version_info.minor} is too old: install 3.11 or newer, then run `make lab`."
    yield from _package_problems()
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname(), timeout=5),
        ):
            pass
    except OSError as error:
        yield f"A server on 127.0.0.1 cannot be reached ({error.strerror or error}): allow connections to this machine itself."
    from .exercises.store import folder

    if not os.access(folder(), os.W_OK):
        yield "Your progress cannot be kept, the folder for it is not writable: set COURSE_PROGRESS to a folder that is."
    if (limit := _open_files()) is not None and limit < 256:
        yield f"Only {limit} files may be open at once: raise the limit with `ulimit -n 1024` before you start the lab."


def _package_problems() -> Iterator[str]:
    try:
        wanted = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        yield "The course itself is not installed: start the lab with `make lab`."
        return
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"The package {requirement.name} is missing: run `make lab` once more."
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"The package {requirement.name} is version {found}, and the course needs {requirement.specifier}: run `make lab` once more."


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def check_environment() -> None:
    """Print what is missing, one sentence each, or that nothing is."""
    found = list(problems())
    for sentence in found:
        print(f"- {sentence}")
    if found:
        return
    print("Python is new enough, every package is there, servers on this machine work,")
    print("and your progress can be kept. You are ready.")
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    print("This kernel already runs an event loop:", re.sub(r"^_?(Unix|Windows)?", "", type(loop).__name__))
