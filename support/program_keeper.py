"""What `support.service_process` does differently for a program of `support.programs`.

The program's folder is also its working folder, so that whatever it starts is found there at its
end, also what left its process group.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil

from support.service_process import Keeper


class ProgramKeeper(Keeper):
    """Keeps one program and its children, from the start until none of them is left."""

    def _prepared(self) -> Path:
        return self.folder

    def _spawn(self, command: list[str], **environment: str) -> subprocess.Popen:
        with self._lock, open(self.folder / "log", "ab") as log:
            return subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    env=os.environ | self.options["env"] | environment)  # fmt: skip

    def _command(self, programs: Path, port: int) -> list[str]:
        self._port = port
        for name, text in self.options["files"].items():
            (programs / name).write_text(self._with_port(text))
        return [self._with_port(word) for word in self.options["command"]]

    def _with_port(self, text: str) -> str:
        return text.replace("{port}", str(self._port)).replace("{folder}", str(self.folder))

    def _is_ready(self) -> bool:
        ready = self.options["ready"]
        if isinstance(ready, str):
            log = (self.folder / "log").read_text(errors="replace")
            return log.count(self._with_port(ready)) >= self.options["times"]
        return self._listens(ready or self._port)

    def _listens(self, port: int) -> bool:
        """Whether it is this program that listens there: another may have been faster."""
        try:
            program = psutil.Process(self.server.pid)
            links = [
                link for one in (program, *program.children(recursive=True)) for link in one.net_connections("inet")
            ]
        except psutil.Error:  # a child has ended meanwhile
            return False
        return any(link.status == psutil.CONN_LISTEN and link.laddr.port == port for link in links)

    def _farewell(self) -> tuple[int, ...]:
        return (signal.SIGTERM, signal.SIGCONT) if os.name == "posix" else ()
