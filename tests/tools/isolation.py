"""Settings that keep a kernel or a lab away from what its user has in the home folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"


def settings(folder: Path) -> dict[str, str]:
    """Environment variables that put progress, configuration, history and run-time
    files under `folder`. Kernels are then those of the running interpreter, too."""
    names = {
        "COURSE_PROGRESS": "progress",
        "IPYTHONDIR": "ipython",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "lab-settings",
        "JUPYTERLAB_WORKSPACES_DIR": "lab-workspaces",
    }
    for name in names.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    return {variable: str(folder / name) for variable, name in names.items()}


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This process's environment, with `settings(folder)` and `more` on top."""
    return {**os.environ, **settings(folder), **more}


def chapters() -> list[Path]:
    """The notebooks of the course, in order."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def listen_on_files(manager: Any) -> None:
    """Have a kernel that is yet to start listen on files of its own, where the system has such.

    Its client finds free TCP ports before the kernel takes them: another program that starts in
    between can take one, and then the kernel dies.
    """
    if os.name == "posix":
        folder = tempfile.mkdtemp()  # short: the path of such a file may have about 100 characters
        weakref.finalize(manager, shutil.rmtree, folder, ignore_errors=True)
        manager.transport, manager.ip = "ipc", os.path.join(folder, "kernel")
