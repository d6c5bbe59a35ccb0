"""The same function in this Python and in a free-threaded one, where the reader has one."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

FREE_THREADED = tuple(f"python3.{minor}t" for minor in (16, 15, 14, 13))
MOST_SECONDS = 60
_CALL = """
import json, sys
print(json.dumps([getattr(sys, "_is_gil_enabled", lambda: True)(), {name}()]))
"""


def free_threaded() -> str | None:
    """Where a free-threaded Python is installed, the newest on the PATH or among those of uv. None: nowhere."""
    for name in FREE_THREADED:
        if found := shutil.which(name):
            return found
    if uv := shutil.which("uv", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])):
        command = [uv, "python", "find", "--quiet", "--offline", "--no-project", ">=3.13+freethreaded"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS)
        return answer.stdout.strip() or None if answer.returncode == 0 else None
    return None


def in_each_python(function: Callable[[], Any]) -> dict[str, Any]:
    """What `function()` returns in a process of its own: {"with the GIL": ..., "without": ...}.

    Its source is sent to this Python and to a free-threaded one; where there is none, a sentence says how to get one,
    and the second key is missing. So it takes nothing, imports what it needs, and returns what JSON can hold.
    Raises TypeError for what is not a plain function, RuntimeError with its error when it fails there.
    """
    plain = inspect.isfunction(function) and function.__name__ != "<lambda>" and not function.__closure__
    if not plain or inspect.signature(function).parameters:
        raise TypeError(f"in_each_python() takes a function, written with def, without arguments; not {function!r}.")
    source = textwrap.dedent(inspect.getsource(function))
    other, results = free_threaded(), {}
    if other is None:
        print("There is no free-threaded Python on this machine, so what it would do is skipped here.\n"
              "To see it, install one, as with uv python install 3.14t, and run this again.")  # fmt: skip
    for python in filter(None, (sys.executable, other)):
        command = [python, "-I", "-c", source + _CALL.format(name=function.__name__)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS)
        if answer.returncode:
            words = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
            raise RuntimeError(f"{function.__name__}() failed in {os.path.basename(python)}: {words[-1]}")
        gil, value = json.loads(answer.stdout.splitlines()[-1])
        results["with the GIL" if gil else "without"] = value
    return results
