"""What `support.services` and its two servers share: a server that a keeper process starts and ends."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import psutil

from support import service_process
from support.service_process import CLAIM

STOP_SECONDS = 8.0
LONGEST_SOCKET_PATH = 100  # bytes; the systems allow 104 or 108
services: dict[str, Service] = {}
addresses: dict[str, dict[str, Any]] = {}  # where a service was: the next one has the same url if it can


class Service:
    """A running server: `url`, `pid`, `alive`, `log`, `stop()`, `kill()`. The pid is 0 for one of the reader's own."""

    name = start = variable = kind = ""

    def __init__(self, **options: Any) -> None:
        self.options, self.pid, self.port, self._process = options, 0, 0, None
        self._guest_of = os.environ.get(self.variable, "").strip()
        self._log: list[str] = []
        self._is_over = False
        if self._guest_of:
            self._check_url()
        self.address = addresses.get(self.name, {})
        if not self.address or os.path.exists(self.address["folder"]):
            self.address = {"folder": own_folder(), "password": secrets.token_hex(12), "port": 0}
        self._token = f"{CLAIM}_{secrets.token_hex(4)}_"  # marks what is the course's in a server of the reader's own
        self._folder = Path(self.address["folder"])
        details = {
            **options, **self.address, "token": self._token, "kind": self.kind, "socket": False, "sys_path": [str(part) for part in sys.path],
            "guest_of": self._guest_of, "programs": "" if self._guest_of else str(self._programs()),
        } | self._details()  # fmt: skip
        # A session of its own, because an interrupt goes to the notebook's whole process group.
        group = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x200}
        command = [sys.executable, "-P", service_process.__file__]  # by its path: see support.servers
        self._keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, **group)  # fmt: skip
        ready = False
        try:
            self._keeper.stdin.write(json.dumps(details) + "\n")
            self._keeper.stdin.flush()
            report = json.loads(self._keeper.stdout.readline() or '{"error": "its keeper ended without a word"}')
            if "error" in report:
                raise RuntimeError(f"{self.name} did not start: {report['error']}")
            self.pid, self.port = report["pid"], report["port"]
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process = psutil.Process(self.pid) if self.pid else None
            self._prepare()
            ready = True
        finally:
            if not ready:  # an interrupt, too, must leave nothing behind
                self.stop()
        addresses[self.name] = self.address | {"port": self.port}

    @property
    def alive(self) -> bool:
        """Whether the server runs. For one of the reader's own: whether `stop` was not called."""
        if self._keeper.poll() is not None or self._guest_of:
            return self._keeper.poll() is None
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        return False

    @property
    def url(self) -> str:
        """The address, with its password, as clients take it. Raises RuntimeError if the server has ended."""
        self._expect_alive()
        return self._url()

    @property
    def log(self) -> str:
        """The last lines that the server wrote."""
        return "\n".join(self._log if self._is_over else service_process.tail(self._folder))

    def kill(self) -> None:
        """Kill the server as an outage would, and wait until it is gone. Its start function makes a fresh, empty one.

        Raises RuntimeError for a server of the reader's own, and for one that has ended.
        """
        if self._guest_of:
            raise RuntimeError(f"The {self.name} of {self.variable} is yours and is not killed: unset {self.variable}.")
        self._expect_alive()
        self._process.kill()
        self._wait()

    def stop(self) -> None:
        """Stop the server, remove its data, and wait until all is gone. Stopping twice is no error."""
        if services.get(self.kind) is self:
            del services[self.kind]
        self._let_go()
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        where = f"the server of {self.variable}" if self._guest_of else "of this kernel"
        return f"<{self.name}, {where}{'' if self.alive else ', stopped'}>"

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            self._keeper.stdin.close()

    def _wait(self) -> None:
        if self._is_over:  # and its folder may be that of the next one
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(STOP_SECONDS)
        if self._keeper.poll() is None or self._folder.exists():  # the keeper was stopped, or killed
            self._keeper.kill()
            self._keeper.wait()
            service_process.clear(self._folder)
        with self._keeper.stdout as reports, contextlib.suppress(ValueError):
            self._log = [line for report in reports for line in json.loads(report).get("log", [])]
        self._let_go()
        self._is_over = True

    def _expect_alive(self) -> None:
        if not self.alive:
            raise RuntimeError(f"This {self.name} has ended: call {self.start}() to go on with a fresh, empty one.")

    def _guest_error(self, error: BaseException) -> RuntimeError:
        reason = " ".join(str(error).split()) or type(error).__name__
        if not self._guest_of:
            return RuntimeError(f"{self.name} does not answer ({reason}): call {self.start}() for a fresh one.")
        return RuntimeError(
            f"The {self.name} of {self.variable} ({masked(self._guest_of)}) cannot be used ({masked(reason)}): start "
            f"that server, correct {self.variable}, or unset it to use the one that the course brings."
        )

    def _details(self) -> dict[str, Any]:
        return {}

    def _check_url(self) -> None: ...
    def _programs(self) -> Path: ...
    def _prepare(self) -> None: ...
    def _url(self) -> str: ...
    def _forget(self) -> None: ...


def own_folder() -> str:
    """The name of a folder that does not exist, short enough for a socket file where that is possible."""
    folders = [os.path.realpath(tempfile.gettempdir()), *([os.path.realpath("/tmp")] if os.name == "posix" else [])]
    names = [os.path.join(folder, f"course-{secrets.token_hex(5)}") for folder in folders]
    fitting = (name for name in names if len(os.fsencode(name)) + 14 <= LONGEST_SOCKET_PATH)
    return next(fitting, names[0])


def binary(package: str, distribution: str, pattern: str, variable: str) -> Path:
    """Find a program inside a package without importing it, which would run its own launcher's code."""
    found = importlib.util.find_spec(package)
    for folder in found.submodule_search_locations or () if found else ():
        for program in sorted(Path(folder).glob(pattern)):
            return program
    raise RuntimeError(f"The package {distribution} is not installed, or has no program for this system: "
                       f"install it, or set {variable} to a server of your own.")  # fmt: skip


def masked(text: str) -> str:
    return re.sub(r"//[^@/\s]*@", "//***@", text)
