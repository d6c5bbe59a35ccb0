"""A kernel that a test talks to, cell by cell, and may interrupt or kill."""

from __future__ import annotations

import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from types import TracebackType
from typing import Any, Self

import psutil
from jupyter_client.manager import KernelManager

from tests.tools.isolation import environment, listen_on_files

MARK = "COURSE_TEST_KERNEL"


@dataclass
class Answer:
    """What one cell brought: the status of its reply, what it printed, and its error."""

    status: str
    printed: str = ""
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def traceback(self) -> str:
        return "\n".join(line for error in self.errors for line in error["traceback"])


class LiveKernel:
    """A kernel of the running interpreter, with its private files under `folder`.

    Each process that it starts inherits a mark, so that `family()` finds even those
    that left its process group or lost their parent.
    """

    def __init__(self, folder: Path, cwd: Path | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self._manager = KernelManager(kernel_name="python3")
        listen_on_files(self._manager)
        env = environment(folder, **{MARK: self.mark})
        self._manager.start_kernel(env=env, cwd=str(cwd or folder), stderr=subprocess.DEVNULL)
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        for process in self.family():
            process.kill()

    def send(self, code: str) -> str:
        """Have a cell run; `wait` tells what came of it."""
        return self._client.execute(code)

    def wait_until(self, request: str, kind: str, seconds: float = 30) -> None:
        """Return at the first message of that kind: "execute_input" when the kernel takes
        the cell, "stream" when the cell prints. Raises queue.Empty if there is none."""
        while True:
            message = self._client.get_iopub_msg(timeout=seconds)
            if self._is_of(message, request) and message["msg_type"] == kind:
                return

    def wait(self, request: str, seconds: float = 60) -> Answer:
        """The outcome of a cell. Raises TimeoutError if there is none in time."""
        deadline = time.monotonic() + seconds
        reply, idle, printed, errors = None, False, "", []
        while reply is None or not idle:
            channel = self._client.get_shell_msg if idle else self._client.get_iopub_msg
            try:
                message = channel(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise TimeoutError(f"no answer within {seconds:g} s") from None
            if not self._is_of(message, request):
                continue
            content = message["content"]
            if message["msg_type"] == "execute_reply":
                reply = content["status"]
            elif message["msg_type"] == "status":
                idle = content["execution_state"] == "idle"
            elif message["msg_type"] == "stream":
                printed += content["text"]
            elif message["msg_type"] == "error":
                errors.append(content)
        return Answer(reply, printed, errors)

    def run(self, code: str, seconds: float = 60) -> Answer:
        return self.wait(self.send(code), seconds)

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()

    def kill(self) -> None:
        """As `kill -9` of the kernel's process alone."""
        process = next(one for one in self.family() if one.pid == self._manager.provisioner.pid)
        process.kill()

    def family(self) -> list[psutil.Process]:
        """The kernel, and every process that was started by it, at any distance."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:  # it ended, or is not ours to ask
                continue
        return found

    def family_after(self, seconds: float) -> list[psutil.Process]:
        """Who is left, at the latest after `seconds`."""
        deadline = time.monotonic() + seconds
        while (left := self.family()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    @staticmethod
    def _is_of(message: dict[str, Any], request: str) -> bool:
        return message["parent_header"].get("msg_id") == request
