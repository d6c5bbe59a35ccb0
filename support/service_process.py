"""The process that keeps Postgres, Redis or a program for its parent, and ends them with it.

It gets its options as one line of JSON on stdin, so that no password shows in a list of processes.
It starts the server in a folder of its own, reports one line of JSON on stdout when the server is
ready, and then waits for two things: the end of stdin, of which only the parent holds the other
end, or the end of the server. After either it ends whatever lives in the folder, and removes it.
What differs for programs, and for servers of the reader's own, is in program_keeper and guest_keeper.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
START_SECONDS = 20.0  # at most for a server to become ready, and three times that for initdb
GRACE = 1.0  # seconds for Postgres to shut down in order, which frees its shared memory
POLL_SECONDS = 0.005
PORT_TRIES = 5
LOG_LINES = 20
UNPRIVILEGED = 65534  # "nobody", on most systems
NEWEST_REDIS_DATABASE = 15
CLAIM = "async_python_measured"  # the key that marks a Redis database as the course's own

# An immediate start matters here, and data that outlives a crash does not.
_POSTGRES = {
    "fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "wal_level": "minimal",
    "max_wal_senders": "0", "shared_buffers": "16MB", "dynamic_shared_memory_type": "mmap", "jit": "off",
    "max_parallel_workers_per_gather": "0", "timezone": "UTC", "log_timezone": "UTC",
    "unix_socket_permissions": "0700",
}  # fmt: skip
if os.name != "posix":
    del _POSTGRES["dynamic_shared_memory_type"], _POSTGRES["unix_socket_permissions"]
_STATEMENT_LOG = {
    "logging_collector": "on", "log_destination": "jsonlog", "log_directory": "log", "log_filename": "statements.log",
    "log_rotation_age": "0", "log_rotation_size": "0", "log_statement": "all",
}  # fmt: skip


def tail(folder: Path) -> list[str]:
    """The last lines of the server's log."""
    with contextlib.suppress(OSError):
        return [line[:300] for line in (folder / "log").read_text(errors="replace").splitlines() if line][-LOG_LINES:]
    return []


def clear(folder: Path) -> None:
    """End every process that works inside the folder, free its shared memory, and remove it."""
    import psutil

    def lives_here(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):
            return Path(process.cwd().removesuffix(" (deleted)")).is_relative_to(folder)
        return False

    give_up = time.monotonic() + 5
    # Again until none is found: one that was about to start another may have done so.
    while (living := list(filter(lives_here, psutil.process_iter()))) and time.monotonic() < give_up:
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(living, timeout=0.05)
    _free_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _free_shared_memory(folder: Path) -> None:
    """A killed Postgres leaves a System V segment, of which some systems have only 32."""
    with contextlib.suppress(OSError, IndexError, ValueError, TypeError, AttributeError):
        key_and_id = (folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()
        ctypes.CDLL(None).shmctl(int(key_and_id[1]), 0, None)  # 0 is IPC_RMID


class Keeper:
    """One server, from its start until everything of it is gone."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.folder = options, Path(options["folder"])
        self.is_postgres = options["kind"] == "postgres"
        self.server: subprocess.Popen | None = None
        self._prefix: list[str] = []
        self._identity: dict[str, Any] = {}
        self._lock = threading.Lock()  # held for good once the end begins: nothing starts after it

    def run(self) -> None:
        """Start the server, report, and wait for its end."""
        try:
            self.folder.mkdir(mode=0o700)
            port = self._start(self._prepared())
        except Exception as error:
            say({"error": str(error) if isinstance(error, RuntimeError) else repr(error)})
        else:
            say({"pid": self.server.pid, "port": port})
            self.server.wait()
        self.end()

    def end(self) -> None:
        """Leave nothing behind, and end this process. Called from two threads; the first one does it."""
        self._lock.acquire()
        if self.server and self.server.poll() is None and (farewell := self._farewell()):
            for number in farewell:
                self.server.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(GRACE)
        say({"log": tail(self.folder)})
        clear(self.folder)
        os._exit(0)

    def _farewell(self) -> tuple[int, ...]:
        """The signals that ask for an orderly end. For Postgres an immediate one, also of one that is stopped."""
        return (signal.SIGQUIT, signal.SIGCONT) if self.is_postgres and os.name == "posix" else ()

    def _prepared(self) -> Path:
        """Whatever comes before the start. Returns the folder of the server's programs."""
        programs = Path(self.options["programs"])
        if self.is_postgres:
            programs = self._as_ordinary_user(programs)
            self._initdb(programs)
        return programs

    def _spawn(self, command: list[str], **environment: str) -> subprocess.Popen:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
        with self._lock, open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                [*self._prefix, *command], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=kept | {"LC_ALL": "C", "TZ": "UTC"} | environment, **self._identity)  # fmt: skip

    def _as_ordinary_user(self, programs: Path) -> Path:
        """Postgres refuses to run as root: show it another user, or become one. Returns its programs' folder."""
        if os.name != "posix" or os.geteuid() != 0:
            return programs
        unshare = [shutil.which("unshare") or "", "--user", f"--map-user={UNPRIVILEGED}"]
        if unshare[0] and _works([*unshare, "true"]):  # files of root stay readable this way
            self._prefix = unshare
            return programs
        self._identity = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}
        os.chown(self.folder, UNPRIVILEGED, UNPRIVILEGED)
        if _works([str(programs / "postgres"), "--version"], **self._identity):
            return programs
        package = programs.parent.parent  # not readable for that user, as below /root: a copy is
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, self.folder / "programs" / part.name)
        return self.folder / "programs" / programs.relative_to(package.parent)

    def _initdb(self, programs: Path) -> None:
        secret = self.folder / "secret"
        descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(self.options["admin_password"])
        if self._identity:
            os.chown(secret, UNPRIVILEGED, UNPRIVILEGED)
        initdb = self._spawn([
            str(programs / "initdb"), "--pgdata=data", "--username=admin", f"--pwfile={secret}", "--no-sync",
            "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8", "--no-instructions"])  # fmt: skip
        if initdb.wait(3 * START_SECONDS):
            raise RuntimeError(self._last_words())
        secret.unlink()
        (self.folder / "log").unlink()  # from here it is the server's

    def _start(self, programs: Path) -> int:
        """Start the server and wait until it is ready. Returns its port, 0 for a socket file."""
        wanted = self.options["port"]
        for _ in range(PORT_TRIES):
            port = 0 if self.options["socket"] else wanted or _free_port()
            self.server = self._spawn(self._command(programs, port))
            if self._becomes_ready():
                return port
            taken = any("in use" in line for line in tail(self.folder)[-5:])
            if not taken:
                break
            wanted = 0  # another program was faster: take another port
        raise RuntimeError(self._last_words())

    def _command(self, programs: Path, port: int) -> list[str]:
        return self._postgres(programs, port) if self.is_postgres else self._redis(programs, port)

    def _postgres(self, programs: Path, port: int) -> list[str]:
        settings = _POSTGRES | {"max_connections": self.options["max_connections"]}
        settings |= _STATEMENT_LOG if self.options["log"] else {}
        settings |= {"listen_addresses": HOST if port else "", "port": port or 5432}
        if os.name == "posix":
            settings["unix_socket_directories"] = self.folder
        return [str(programs / "postgres"), "-D", "data", *(f"--{key}={value}" for key, value in settings.items())]

    def _redis(self, programs: Path, port: int) -> list[str]:
        settings = {
            "bind": HOST, "port": port, "requirepass": self.options["password"], "dir": self.folder, "save": '""',
            "appendonly": "no", "maxmemory": self.options["maxmemory"], "maxmemory-policy": self.options["eviction"],
            "daemonize": "no", "enable-debug-command": "yes",
        }  # fmt: skip
        file = self.folder / "redis.conf"
        file.touch(mode=0o600)
        file.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        return [str(programs / "valkey-server"), str(file)]

    def _becomes_ready(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.server.poll() is None:
            if self._is_ready():
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _is_ready(self) -> bool:
        if not self.is_postgres:
            return any("Ready to accept connections" in line for line in tail(self.folder))
        with contextlib.suppress(OSError, IndexError):
            return (self.folder / "data" / "postmaster.pid").read_text().split()[-1] == "ready"
        return False

    def _last_words(self) -> str:
        return " / ".join(tail(self.folder)[-3:]) or f"no sign of life within {START_SECONDS:g} s"


def _works(command: list[str], **identity: Any) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=10, **identity).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return listener.getsockname()[1]


def say(report: dict[str, Any]) -> None:
    """Report to the parent, which may be gone."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(report).encode() + b"\n")


def main() -> None:
    """Run until the parent lets go of stdin, or the server ends."""
    options = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = options.pop("sys_path")  # modules are found where the parent finds them
    if options["kind"] == "program":
        from support.program_keeper import ProgramKeeper as Kind
    elif options["guest_of"]:
        from support.guest_keeper import GuestKeeper as Kind
    else:
        Kind = Keeper
    keeper = Kind(options)

    def watch() -> None:
        while os.read(0, 1):
            pass
        keeper.end()

    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=keeper.end).start())
    threading.Thread(target=watch, daemon=True).start()
    keeper.run()


if __name__ == "__main__":
    main()
