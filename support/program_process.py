"""What runs inside the children of `support.programs`: uvicorn with its workers, taskiq with its own, a Dask cluster.

Run as a file: `program_process.py ROLE OPTIONS`, with the options as JSON. The role is workers, job_workers or
cluster. All tell when they serve, by READY or LISTENING in their log, and end as any program does, at SIGTERM.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import sys
import threading
import time

READY = "ready to serve"
LISTENING = "Listening started."  # what each of taskiq's workers logs
POLL_SECONDS = 0.005


def workers(*, app: str, port: int, workers: int, loop: str, graceful_timeout: float | None) -> None:
    """Serve an application with that many uvicorn workers at one port, until SIGTERM."""
    from uvicorn import Config
    from uvicorn.supervisors import Multiprocess, multiprocess

    from support.prompt_server import PromptServer, PromptWorker
    from support.server_process import listen

    logging.basicConfig(format="%(levelname)s: %(message)s")
    # The course's own listener, not uvicorn's: see `listen` for what TCP_NODELAY has to do with it (uvicorn#3149).
    config = Config(app, workers=workers, loop=loop, log_config=None, log_level="warning", access_log=False,
                    proxy_headers=False, timeout_keep_alive=75, timeout_graceful_shutdown=graceful_timeout)  # fmt: skip

    class TellingServer(PromptServer):
        async def startup(self, sockets: list | None = None) -> None:
            await super().startup(sockets)
            print(READY, flush=True)

    class TellingSupervisor(Multiprocess):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            signal.signal(signal.SIGTERM, lambda *_: self.should_exit.set())  # at once, not at its next half second

        def init_processes(self) -> None:
            super().init_processes()
            if all([_serves(one) for one in self.processes]):
                print(READY, flush=True)

    multiprocess.Process = PromptWorker  # the supervisor takes no other class
    with listen(port) as listener:
        runner = TellingServer(config) if workers == 1 else TellingSupervisor(config, [listener])
        runner.run([listener]) if workers == 1 else runner.run()


def _serves(worker: object) -> bool:
    """Wait until a worker of uvicorn's supervisor serves; False when it ended instead."""
    while worker.process.is_alive():
        if worker.is_ready(timeout=1):
            return True
        time.sleep(POLL_SECONDS)
    return False


def job_workers(*, arguments: list[str], port: int) -> None:
    """Run `taskiq worker` with those arguments, until SIGTERM. `port` is not used: job workers listen to a queue."""
    from taskiq.__main__ import main

    if multiprocessing.get_start_method() == "forkserver":  # from Python 3.14 on: there taskiq's workers log nothing
        multiprocessing.set_start_method("spawn", force=True)
    sys.argv = ["taskiq", "worker", *arguments]
    main()


def cluster(*, port: int, workers: int, folder: str) -> None:
    """Run a Dask scheduler and its workers, one thread each, until SIGTERM."""
    from distributed import LocalCluster

    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    with LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1", scheduler_port=port,
                      dashboard_address="127.0.0.1:0", local_directory=folder, silence_logs=logging.ERROR):  # fmt: skip
        print(READY, flush=True)
        over.wait()


if __name__ == "__main__":
    {"workers": workers, "job_workers": job_workers, "cluster": cluster}[sys.argv[1]](**json.loads(sys.argv[2]))
