"""Servers other than that of `support.serve` beside a notebook: granian, Node, Go, and uvicorn as it comes.

Each runs in processes of its own, on 127.0.0.1 and a free port, is ready when its function returns,
and ends as a server of `support.servers` does: with `stop()`, with the chapter, or when the kernel is
gone, however that ended. `cpu_seconds` says what a server, of this room or of that one, has used.

Node and Go answer two routes with {"message": "hello"}: "/" at once, and "/wait" after 100 ms. Their
programs are the files rival_hello.js and rival_hello.go beside this one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from support import rival_process, servers
from support.repeating import repeats
from support.servers import ProcessServer, Server, ThreadServer

_HERE = Path(__file__).parent
_PROGRAMS = {"Node": ("node", "https://nodejs.org"), "Go": ("go", "https://go.dev")}


class Rival(ProcessServer):
    """A server that a keeper process starts and ends. Its `pid` is the keeper's."""

    def _run_until_ready(self, *, command: list[str], build: list[str]) -> None:
        options = {"command": command, "build": build, "sys_path": [str(folder) for folder in sys.path]}
        # A session of its own, because an interrupt goes to the notebook's whole process group.
        group = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x200}
        self._child = subprocess.Popen(
            [sys.executable, "-P", rival_process.__file__], text=True, errors="replace",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **group)  # fmt: skip
        self.pid = self._child.pid
        self._reader = threading.Thread(target=self._log.extend, args=(self._child.stderr,), daemon=True)
        self._reader.start()
        print(json.dumps(options), file=self._child.stdin, flush=True)
        with self._child.stdout as report:
            self.port = int(report.readline() or 0)  # nothing when the server did not start

    def _failure(self, *, command: list[str], **_: object) -> Exception:
        # The worker's error tells more than granian's own last line, that a worker has ended.
        self._log = deque(line for line in self._log if not line.startswith("[")) or self._log
        return super()._failure(app=os.path.basename(command[-1]))


def start_uvicorn(app: str, *, name: str = "python -m uvicorn") -> Server:
    """Serve an ASGI application, "module:app", as `python -m uvicorn` does by default. Return when it answers.

    `support.serve` ends at once when it is told to; this one finishes what it has begun. Its process is
    the only child of the server's `pid`. Raises ValueError for another form, RuntimeError when the
    application does not start.
    """
    arguments = ["--host", rival_process.HOST, "--port", "0", "--log-level", "warning"]
    return _start(name, [sys.executable, "-P", "-m", "uvicorn", *arguments, _named(app, "uvicorn")])


def start_granian(app: str, *, name: str = "granian") -> Server:
    """Serve an ASGI application, "module:app", by granian with one worker. Return when it answers.

    Raises ValueError for another form, RuntimeError when granian or the application does not start.
    """
    _named(app, "granian")
    if importlib.util.find_spec("granian") is None:
        raise RuntimeError("granian is not installed: run `pip install granian`.")
    arguments = ["--interface", "asgi", "--host", rival_process.HOST, "--port", "0", "--log-level", "warning"]
    return _start(name, [sys.executable, "-P", "-m", "granian", *arguments, app])


def start_node(*, name: str = "Node") -> Server:
    """Serve the two routes by Node. Raises RuntimeError when it is not on PATH."""
    return _start(name, [_program("Node"), str(_HERE / "rival_hello.js")])


def start_go(*, name: str = "Go") -> Server:
    """Build the two routes with Go and serve them, on one core. Raises RuntimeError when it is not on PATH."""
    program = os.path.join(rival_process.FOLDER, "hello.exe")  # a name that every system can run
    return _start(name, [program], [_program("Go"), "build", "-o", program, str(_HERE / "rival_hello.go")])


def present() -> dict[str, Callable[[], Server]]:
    """The start functions of those among Node and Go that are on PATH, by name."""
    return {name: start for name, start in (("Node", start_node), ("Go", start_go)) if name not in absent()}


def absent() -> dict[str, str]:
    """For each of Node and Go that is not on PATH, a sentence that says so."""
    return {
        name: f"{name} is not on PATH, so it is left out: install it from {source} to see its row."
        for name, (program, source) in _PROGRAMS.items()
        if shutil.which(program) is None
    }


def cpu_seconds(server: Server) -> float:
    """CPU seconds that a server's processes have used so far: take the difference of two calls.

    Precise to the microsecond on Linux, to a hundredth of a second where only psutil knows it. A
    process that has ended counts no more. Raises ValueError for a server in this process, whose
    time cannot be told from the notebook's, and RuntimeError for one that has ended.
    """
    if isinstance(server, ThreadServer):
        raise ValueError(f"{server.name!r} runs in the notebook's process: serve it as 'module:app' to measure it.")
    try:
        family = psutil.Process(server.pid)
        return sum(_cpu_seconds(each) for each in (family, *family.children(recursive=True)))
    except psutil.NoSuchProcess:
        raise RuntimeError(f"The server {server.name!r} has ended: start it again to measure it.") from None


def _cpu_seconds(process: psutil.Process) -> float:
    if sys.platform == "linux":
        return time.clock_gettime((~process.pid << 3) | 2)  # what clock_getcpuclockid(3) gives for a process
    times = process.cpu_times()
    return times.user + times.system


def _named(app: Any, who: str) -> str:
    if not isinstance(app, str) or not all(app.partition(":")):
        raise ValueError(f"{who} needs an application as 'module:attribute', not {app!r}.")
    return app


def _program(name: str) -> str:
    if name in absent():
        raise RuntimeError(absent()[name])
    return shutil.which(_PROGRAMS[name][0])


def _start(name: str, command: list[str], build: list[str] | None = None) -> Server:
    return servers._start(Rival, name, command=command, build=build or [])


async def paired_rates(
    base: Server, other: Server, paths: tuple[str, str], *, concurrency: int, seconds: float, until: float = 0
) -> tuple[list[float], float]:
    """Answers per second of `other` over those of `base`, round by round, and the same by CPU time alone.

    Each round asks both, in turning order, after one short round that only warms them up. There are three rounds,
    and then up to twelve, until their median ratio is at least `until`: other programs are in the way of some.
    paths: what `base` and what `other` is asked for. concurrency: requests in flight. seconds: of one measurement.
    Returns the ratio of the rates for each round, and CPU seconds for an answer of `base` over those of `other`.
    Raises RuntimeError when a request fails.
    """
    from support import load

    both = [(base, paths[0]), (other, paths[1])]

    async def each(length: float) -> list[tuple[float, float]]:
        both.reverse()
        seen = {}
        for server, path in both:
            before = cpu_seconds(server)
            run = await load.closed_loop(server.url + path, concurrency=concurrency, seconds=length)
            if run.failed:
                raise RuntimeError(f"paired_rates: requests for {path[:60]!r} failed: {dict(run.failed)}.")
            seen[server] = run.rate, (cpu_seconds(server) - before) / run.sent
        return [seen[base], seen[other]]

    def gains(rounds: list[list[tuple[float, float]]]) -> list[float]:
        return [rate / first for (first, _), (rate, _) in rounds]

    await each(0.01)
    rounds = await repeats(partial(each, seconds), lambda rounds: median(gains(rounds)) >= until)
    return gains(rounds), sum(first for (_, first), _ in rounds) / sum(spent for _, (_, spent) in rounds)
