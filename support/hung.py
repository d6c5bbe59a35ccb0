"""A service that hangs, and what each tool says about it: `await diagnose("stuck", "transfer")`.

The service is a process of its own, in a process group of its own, because an interrupt goes to the notebook's whole
group. It waits at a pipe of which only this process holds the other end, so it ends when this process is gone,
however that ended. The tools that look from outside are short-lived children, ended with the diagnosis.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from support import hung_process

LOOP_FILES = {"selectors.py", "selector_events.py", "base_events.py", "events.py"}


async def diagnose(module: str, function: str, *, timeout: float = 30.0) -> dict[str, str]:
    """Start a service that awaits `module.function()`, which hangs, and return which function each tool names.

    The keys: "get_stack" and "chain of awaits" are of a list of the tasks, made on the service's own loop, or "no
    answer" from a loop that is held; "py-spy" is the innermost frame of the main thread, or "refused", or "missing";
    "Watchdog" is support.watch's, or "silent". From Python 3.14 on also "pstree", by `python -m asyncio pstree PID`.

    Args:
        module: a module of a `%%module` cell, or another that can be imported.
        function: the name of a coroutine function in it that takes no arguments and hangs at once.
        timeout: seconds for all of it.

    Raises:
        ValueError: there is no such module, or no such coroutine function in it.
        RuntimeError: the function ended, or the service did.
        TimeoutError: the tools took longer than `timeout`.
    """
    file = _file_of(module, function)
    orders = {"module": module, "function": function, "file": file, "sys_path": [str(part) for part in sys.path]}
    try:
        # By its path, not by its name: the notebook's folder must not decide what is imported.
        async with asyncio.timeout(timeout):
            with _process([sys.executable, "-P", hung_process.__file__]) as service:
                await _ask(service, json.dumps(orders) + "\nlook")
                pid = str(service.pid)
                outside = {"py-spy": _named_by_py_spy(await _output([_py_spy(), "dump", "--json", "--pid", pid]))}
                if sys.version_info >= (3, 14):
                    tree = await _output([sys.executable, "-m", "asyncio", "pstree", pid])
                    outside["pstree"] = _named_by_pstree(tree, file)
                inside = await _ask(service, "tell")
    except TimeoutError:
        raise TimeoutError(f"diagnose: {module}.{function} was not diagnosed within {timeout:g} s.") from None
    if "ended" in inside:
        raise RuntimeError(f"diagnose: {module}.{function} does not hang, {inside['ended']}.")
    said = {tool: inside.get(tool, "no answer") for tool in ("get_stack", "chain of awaits")}
    return said | {"py-spy": outside.pop("py-spy"), "Watchdog": inside.get("Watchdog", "silent")} | outside


def _file_of(module: str, function: str) -> str:
    try:
        found = importlib.import_module(module)
    except ImportError:
        raise ValueError(f"diagnose: there is no module {module!r}: run its %%module cell first.") from None
    if not inspect.iscoroutinefunction(getattr(found, function, None)):
        raise ValueError(f"diagnose: {module} has no coroutine function {function!r}: write it with async def.")
    return str(found.__file__)


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    group = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x200}
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"}, **group)  # fmt: skip
    try:
        yield child
    finally:
        child.kill()  # nothing to do where it has ended; else this also frees a thread that reads
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


async def _ask(service: subprocess.Popen[str], question: str) -> dict[str, str]:
    with contextlib.suppress(OSError):  # it has ended: then there is no answer
        service.stdin.write(question + "\n")
        service.stdin.flush()
    answer = await asyncio.to_thread(service.stdout.readline)
    if not answer:
        raise RuntimeError("diagnose: the service ended before it could be asked.")
    return json.loads(answer)


async def _output(command: list[str]) -> str | None:
    """What a tool prints; empty when it fails, and None when it is not there."""
    try:
        with _process(command) as tool:
            text = await asyncio.to_thread(tool.stdout.read)
            return "" if await asyncio.to_thread(tool.wait) else text
    except FileNotFoundError:
        return None


def _py_spy() -> str:
    return shutil.which("py-spy", path=os.path.dirname(sys.executable)) or shutil.which("py-spy") or "py-spy"


def _named_by_py_spy(dump: str | None) -> str:
    if not dump:
        return "missing" if dump is None else "refused"
    frames = next((thread["frames"] for thread in json.loads(dump) if thread["thread_name"] == "MainThread"), [])
    if not frames:
        return "no answer"
    if os.path.basename(frames[0]["filename"]) in LOOP_FILES:
        return "select"  # the loop waits, or does what it does between two waits
    return frames[0]["name"].rpartition(".")[2]


def _named_by_pstree(tree: str | None, file: str) -> str:
    """The innermost function of `file`: the last one, in lines such as `└──  transfer /somewhere/stuck.py:7`."""
    if not tree:
        return "refused"
    named = re.findall(rf"(\S+) {re.escape(file)}:\d+$", tree, re.MULTILINE)
    return named[-1].rpartition(".")[2] if named else "no answer"
