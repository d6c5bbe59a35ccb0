"""A program that a keeper process starts and ends: what `support.programs` and its balancer share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from support.kernel import at_close
from support.probes import _used_by
from support.service_base import Service, services
from support.service_process import HOST, POLL_SECONDS
from support.services import stop_all

_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_starting: dict[str, threading.Lock] = {}  # by the name of a program
_ERROR = re.compile(r"([\w.]*(Error|Exception|Failure)\b|ERROR: |\[ALERT\])")


class Program(Service):
    """A running program: `pid`, `pids`, `alive`, `log`, `port`, `url`, `terminate()`, `stop()`, `kill()`."""

    start, scheme = "start_program", "http"

    def __init__(self, name: str, what: str, **options: Any) -> None:
        self.name, self.kind = f"The {what} {name!r}", f"program {name}"
        super().__init__(**options)

    @property
    def pids(self) -> list[int]:
        """The processes of the program that live: its main process first, then those it started, oldest first."""
        if not self.alive:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            living = [self._process, *sorted(self._process.children(recursive=True), key=lambda one: one.pid)]
            return [one.pid for one in living if _serves(one)]
        return []

    def kill(self, pid: int | None = None) -> None:
        """Kill the program as an outage would, and wait until all of it is gone; or one of its `pids` only.

        Raises ValueError for a process that is not one of them, RuntimeError when the program has ended.
        """
        self._expect_alive()
        if pid is None:
            return super().kill()
        if pid not in self.pids:
            raise ValueError(f"{self.name} has no process {pid!r}: take one of its pids.")
        psutil.Process(pid).kill()
        return None

    def terminate(self) -> None:
        """Ask the program to end (SIGTERM), and return at once. `await ended()` waits for it.

        `stop()` asks too, but gives it no more than a second. Nothing happens to a program that has ended.
        """
        if self.alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.terminate()

    async def ended(self, within: float = 10.0) -> bool:
        """Wait until the program has ended, at most that many seconds. Returns whether it has."""
        deadline = time.monotonic() + within
        while self.alive and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        return not self.alive

    @contextlib.contextmanager
    def awake(self, count: int) -> Iterator[list[int]]:
        """Suspend all workers, `pids[1:]`, but the first `count`, and wake them when the block is left. Gives their pids.

        A server whose supervisor asks its workers for a sign of life, as uvicorn's does, replaces them after 5 seconds.
        Raises ValueError unless there are as many workers.
        """
        self._expect_alive()
        workers = [psutil.Process(pid) for pid in self.pids[1:]]
        expect(type(count) is int and 1 <= count <= len(workers),
               f"{self.name} has {len(workers)} workers, so count must be from 1 to {len(workers)}, not {count!r}.")  # fmt: skip
        try:
            for worker in workers[count:]:
                worker.suspend()
            yield [worker.pid for worker in workers[:count]]
        finally:
            for worker in workers[count:]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.resume()

    def cpu_seconds(self) -> dict[int, float]:
        """The processor seconds that the first thread of each of the `pids` has used so far, by pid."""
        return {pid: _used_by(pid) for pid in self.pids}

    def __repr__(self) -> str:
        return f"<{self.name} of this kernel{'' if self.alive else ', stopped'}>"

    def _expect_alive(self) -> None:
        if not self.alive:
            raise RuntimeError(f"{self.name} has ended: run the cell that starts it again.")

    @property
    def url(self) -> str:
        """Where the program listens, or did before it ended: the next one of its name takes the same port if it can."""
        return f"{self.scheme}://{HOST}:{self.port}"

    def _details(self) -> dict[str, Any]:
        return {"kind": "program"}

    def _programs(self) -> Path:
        return Path()


def launch(kind: type[Program], name: str, what: str, command: list[str], ready: str | int, *, times: int = 1,
           env: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None) -> Any:  # fmt: skip
    """Start a program of that kind, known as `what` and `name`. Ready: a text that its log holds so many times, or a port.

    files: what to write into its folder first. {port} and {folder} are filled in, there as in the command.
    Raises ValueError for a bad name or environment, RuntimeError with its last words when it does not start.
    """
    expect(isinstance(name, str) and name != "", f"The name of a program must be a text, not {name!r}.")
    given = dict(env or {})
    expect(all(isinstance(word, str) for word in [*given, *given.values()]),
            "env must hold texts only, such as {'WEB_CONCURRENCY': '2'}.")  # fmt: skip
    if command[0] == sys.executable:  # modules are found where this process finds them
        given = {"PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)} | given
    with _starting.setdefault(name, threading.Lock()):  # a thread may start it still, for a cell that was interrupted
        if running_one := services.get(f"program {name}"):
            running_one.stop()
        try:
            started = kind(name, what, command=command, ready=ready, times=times, env=given, files=dict(files or {}))
        except RuntimeError as error:
            raise RuntimeError(_in_a_sentence(str(error))) from None
        services[f"program {name}"] = started
        at_close("services", stop_all)
    return started


def _in_a_sentence(report: str) -> str:
    """The reason among a program's last words: the line of an error, or the last one."""
    start, _, words = report.partition(" did not start: ")
    lines = [line.strip() for line in words.split(" / ") if "Child process [" not in line]
    reason = ([line for line in lines if _ERROR.match(line)] or lines or [words])[-1]
    return f"{start} did not start: {reason.removeprefix('ERROR: ')}"


def _serves(process: psutil.Process) -> bool:
    """Whether it lives, and is more than a helper of the standard library."""
    with contextlib.suppress(psutil.Error):
        words = " ".join(process.cmdline())
        return process.status() != psutil.STATUS_ZOMBIE and not any(helper in words for helper in _HELPERS)
    return False


def expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
