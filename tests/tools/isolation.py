"""Settings that keep a kernel or a lab away from what its user has in the home folder."""

from __future__ import annotations

import os
from pathlib import Path

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
