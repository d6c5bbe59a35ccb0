"""Programs beside a notebook that are more than one process: workers, job workers, a cluster, a balancer, a pooler.

Each is kept by a process of its own, as Postgres and Redis are (`support.service_process`): it ends
with `stop()`, with the chapter, or when the kernel is gone, however that ended, and so does every
process that it started. All of them listen on 127.0.0.1 only, at ports that were free. A program of
the same name is stopped first, and the next one takes its port again where that is possible.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from support import program_process
from support.balancer import Balancer, start_balancer
from support.pooler import Pooler, start_pooler
from support.program_base import Program, expect, launch
from support.program_process import LISTENING, READY

__all__ = [
    "Balancer",
    "Cluster",
    "Pooler",
    "Program",
    "start_balancer",
    "start_cluster",
    "start_job_worker",
    "start_pooler",
    "start_program",
    "start_workers",
]

MOST_WORKERS = 16
LOOPS = ("auto", "asyncio", "uvloop")


class Cluster(Program):
    """A Dask cluster: as a Program, with a url such as tcp://127.0.0.1:8786."""

    scheme = "tcp"


def start_program(
    name: str, command: Sequence[str], *, ready: str | int, env: Mapping[str, str] | None = None
) -> Program:
    """Start a program that ends with this kernel, wait until it is ready, and return it.

    name: one of the same name is stopped first, so that a cell may run again.
    command: the words of the command. In them, and in `ready`, {port} stands for a free port and {folder} for the
        program's own folder, where it runs. A command that begins with sys.executable finds this kernel's modules.
    ready: a text that a line of the log holds once it is ready; or the port at which it then listens, 0 for {port}.
    env: environment variables besides those of this kernel.
    Raises ValueError for bad input, RuntimeError with the program's last words when it does not start.
    """
    words = [] if isinstance(command, str) else list(command)
    expect(bool(words) and all(isinstance(word, str) for word in words),
            f"command must be a list of words such as ['redis-server', '--port', '{{port}}'], not {command!r}.")  # fmt: skip
    expect(isinstance(ready, str) and ready != "" or type(ready) is int and 0 <= ready < 65536,
            f"ready must be a text of the program's log or a port, not {ready!r}.")  # fmt: skip
    expect(shutil.which(words[0]) is not None,
           f"There is no program {words[0]!r} on this machine: install it, or correct the command.")  # fmt: skip
    return launch(Program, name, "program", words, ready, env=env)


def start_workers(app: str, workers: int = 2, *, name: str | None = None, env: Mapping[str, str] | None = None,
                  graceful_timeout: float | None = None, loop: str = "auto") -> Program:  # fmt: skip
    """Serve an application with several uvicorn workers at one port, as `uvicorn --workers` does.

    Returns when each worker serves. With one worker, `pid` is its process; with more, `pid` is the supervisor's and
    `pids[1:]` are theirs: the supervisor replaces one that dies.
    graceful_timeout: seconds that uvicorn gives requests in flight after SIGTERM; None waits for them, however long.
    Raises ValueError for bad input, RuntimeError with the reason for an application that does not start.
    """
    _expect_import(app, "application")
    _expect_count(workers)
    expect(graceful_timeout is None or isinstance(graceful_timeout, (int, float)) and graceful_timeout >= 0,
            f"graceful_timeout must be None or a number of seconds, not {graceful_timeout!r}.")  # fmt: skip
    expect(loop in LOOPS, f"loop must be one of {', '.join(LOOPS)}, not {loop!r}.")
    options = {"app": app, "workers": workers, "loop": loop, "graceful_timeout": graceful_timeout}
    return launch(Program, name or app, "server", _own("workers", **options), READY, env=env)


def start_job_worker(broker: str, *, workers: int = 1, name: str | None = None, env: Mapping[str, str] | None = None,
                     options: Sequence[str] = ()) -> Program:  # fmt: skip
    """Start taskiq workers for a broker, given as "module:broker"; return when each of them listens.

    `pid` is the process that replaces workers that die, `pids[1:]` are the workers.
    options: more options of `taskiq worker`, such as ["--ack-type", "when_executed"].
    Raises ValueError for bad input, RuntimeError with the reason when they do not start.
    """
    _expect_import(broker, "broker")
    _expect_count(workers)
    command = _own("job_workers", arguments=[broker, "--workers", str(workers), *options])
    return launch(Program, name or broker, "job worker", command, LISTENING, times=workers, env=env)


def start_cluster(workers: int = 2, *, name: str = "cluster") -> Cluster:
    """Start a Dask scheduler and worker processes of one thread each; return when they are there.

    Its `url` is for `distributed.Client(url, asynchronous=True)`. `pid` is the scheduler's process.
    Raises ValueError for bad input, RuntimeError with the reason when it does not start.
    """
    _expect_count(workers)
    return launch(Cluster, name, "Dask cluster", _own("cluster", workers=workers, folder="{folder}"), READY)


def _own(role: str, **options: Any) -> list[str]:
    """The command for a child that runs `support.program_process`."""
    words = json.dumps(options)[:-1] + ', "port": {port}}'
    return [sys.executable, "-P", "-u", program_process.__file__, role, words]


def _expect_import(target: Any, what: str) -> None:
    expect(isinstance(target, str) and all(target.partition(":")),
            f"The {what} must be given as 'module:attribute', not {target!r}.")  # fmt: skip


def _expect_count(workers: Any) -> None:
    expect(type(workers) is int and 1 <= workers <= MOST_WORKERS,
            f"workers must be a whole number from 1 to {MOST_WORKERS}, not {workers!r}.")  # fmt: skip
