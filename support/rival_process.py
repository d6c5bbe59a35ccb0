"""The process that keeps one server for `support.rivals`, and ends it with their common parent.

It gets its options as one line of JSON on stdin, starts the server's command, and waits until one
of the server's processes listens and answers. Then it writes the port to stdout. It ends itself
and the server when stdin ends, of which only the parent holds the other end, or when the server ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

HOST = "127.0.0.1"
BUILD_SECONDS, START_SECONDS, POLL_SECONDS = 120.0, 20.0, 0.005
FOLDER = "{folder}"  # in a command: a folder for the program that is built
QUESTION = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()


class Keeper:
    """One server, from its start until everything of it is gone."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._folder = tempfile.mkdtemp(prefix="course-rival-") if options["build"] else ""
        self._build, self._command = ([part.replace(FOLDER, self._folder) for part in options[name]]
                                      for name in ("build", "command"))  # fmt: skip
        # A Python server finds modules where the parent finds them.
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self._one_end = threading.Lock()  # held for good once the end begins

    def run(self, report: Any) -> None:
        """Start the server, report its port, and wait for its end."""
        import psutil

        with report:
            if not self._build or self._spawn(self._build).wait(BUILD_SECONDS) == 0:
                server = self._spawn(self._command)
                if port := _when_it_answers(psutil.Process(server.pid), server):
                    print(port, file=report, flush=True)
                    server.wait()
        self.end()

    def end(self) -> None:
        """Leave nothing behind, and end this process. Called from two threads; the first one does it."""
        self._one_end.acquire()
        shutil.rmtree(self._folder, ignore_errors=True)
        if os.name == "posix" and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # with whatever the server has started
        _kill_children()
        os._exit(0)

    def _spawn(self, command: list[str]) -> subprocess.Popen:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=self._environment)


def _when_it_answers(process: Any, server: subprocess.Popen) -> int:
    """Wait until a server that chose its port itself answers a request. Returns the port, 0 if it ends instead."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None:
        left = deadline - time.monotonic()
        if left < 0:
            print(f"it did not answer within {START_SECONDS:g} s", file=sys.stderr)
            break
        with contextlib.suppress(OSError):
            if port := _listening(process):
                with socket.create_connection((HOST, port), left) as connection:
                    connection.sendall(QUESTION)
                    if connection.recv(1):
                        return port
        time.sleep(POLL_SECONDS)
    return 0


def _listening(process: Any) -> int:
    """The port at which a process or one of its children listens, 0 for none yet."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for each in (process, *process.children(recursive=True)):
            for link in each.net_connections("inet"):
                if link.status == psutil.CONN_LISTEN:
                    return link.laddr.port
    return 0


def _kill_children() -> None:
    """Where there are no process groups: end what the server has started, one by one."""
    import psutil

    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            each.kill()


def main() -> None:
    """Run until the parent lets go of stdin, or the server ends."""
    options = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = options["sys_path"]
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the server prints goes to the log
    keeper = Keeper(options)

    def watch() -> None:
        while os.read(0, 1):
            pass
        keeper.end()

    threading.Thread(target=watch, daemon=True).start()
    keeper.run(report)


if __name__ == "__main__":
    main()
