"""Code that must not touch the reader's kernel: run it in a process, or in a kernel, of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile

# The child watches a pipe that only its parent holds: when the parent is gone, also by kill -9, so is the child.
_WATCH_AND_RUN = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_path(sys.argv[1], run_name="__main__")
"""


async def run_script(source: str, *, timeout: float = 30.0) -> str:
    """Run ``source`` as a script in a fresh Python process; returns what it printed.

    Args:
        source: the text of a Python script.
        timeout: seconds after which the process is killed.

    Raises:
        RuntimeError: the script failed; the message ends with its last line of error output.
        TimeoutError: it was still running after ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "script.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(source)
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCH_AND_RUN, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHON_COLORS": "0"},
        )  # fmt: skip
        pipes = (process.stdout, process.stderr)
        try:
            async with asyncio.timeout(timeout):
                output, errors = await asyncio.gather(
                    *[asyncio.to_thread(pipe.read) for pipe in pipes if pipe is not None]
                )
                await asyncio.to_thread(process.wait)
        except TimeoutError:
            raise TimeoutError(
                f"run_script: the script was still running after {timeout:g} s and was stopped."
            ) from None
        finally:
            process.kill()  # nothing to do where it has ended; else this also frees the reading threads
            process.wait()
            for pipe in (process.stdin, *pipes):
                if pipe is not None:
                    pipe.close()
    if process.returncode:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise RuntimeError(f"run_script: the script failed: {last[0]}")
    return output.decode("utf-8", "replace").replace("\r\n", "\n")


async def run_cells(cells: list[str], *, timeout: float = 5.0) -> list[str]:
    """Send ``cells`` to a fresh notebook kernel all at once, as Run All does.

    Returns one word a cell: "ok", "error", "aborted" where a cell before it failed, or "no answer"
    where the kernel did not reply within ``timeout`` seconds of the last sign of life. The kernel
    is killed at the end.
    """
    from jupyter_client.manager import AsyncKernelManager

    manager = AsyncKernelManager(kernel_name="python3")
    folder = tempfile.TemporaryDirectory()
    if os.name == "posix":  # no TCP ports: one that was found free may be taken by another kernel that starts just now
        manager.transport, manager.ip = "ipc", os.path.join(folder.name, "kernel")
    await manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    answers = ["no answer"] * len(cells)
    try:
        await client.wait_for_ready(timeout=30)
        sent = {client.execute(cell): place for place, cell in enumerate(cells)}
        while sent:
            try:
                reply = await client.get_shell_msg(timeout=timeout)
            except Exception:  # queue.Empty: no sign of life
                break
            place = sent.pop(reply["parent_header"].get("msg_id"), None)
            if place is not None:
                answers[place] = reply["content"]["status"]
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        folder.cleanup()
    return answers
