"""The cell magic `%%module NAME`: a cell that is a file, so that a process of its own can import it.

    %%module users_api
    from fastapi import FastAPI
    app = FastAPI()

The cell's body is written as `users_api.py` into a folder of this kernel and run once, so that a
mistake shows at once. `serve("users_api:app")` or `import users_api` in another cell then takes it.
The names of the cell stay in the module: those of the notebook are not visible in it, nor the other
way round. Running the cell again replaces the module, and those that imported it are read again.

The folder goes with the chapter or the kernel. A killed kernel leaves it, and the next one to open
a chapter removes it.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import keyword
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from support.kernel import at_close

PREFIX = "course-modules-"
_folder: Path | None = None


def folder() -> Path:
    """Return this process's folder of modules, which is on `sys.path`. It is made at the first call."""
    global _folder
    if _folder is None or not _folder.is_dir():
        _remove_those_of_the_dead()
        started = round(psutil.Process().create_time())  # process numbers are used again
        _folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-{started}-"))
        sys.path.append(str(_folder))  # last: a cell can hide no module that is installed
        atexit.register(forget, os.getpid())
    at_close("modules", forget)
    return _folder


def forget(owner: int | None = None) -> None:
    """Remove the modules of this process, the loaded ones and the files. Twice is no error."""
    global _folder
    if _folder is None or (owner and owner != os.getpid()):  # a forked worker leaves its parent's folder alone
        return
    _drop_loaded()
    shutil.rmtree(_folder, ignore_errors=True)
    sys.path[:] = [entry for entry in sys.path if entry != str(_folder)]
    _folder = None


def write_module(name: str, source: str) -> Path:
    """Write `source` as the module `name`, run it once, and return its file.

    When it fails, the error is raised and the module of that name from before stays.
    Raises ValueError for a name that no import could use, or that another module has.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"%%module needs a name such as users_api, not {name!r}.")
    own = folder()
    path = own / f"{name}.py"
    if _found_elsewhere(name, own):
        raise ValueError(f"%%module {name}: there is a module {name!r} already, so take another name.")
    before = path.read_bytes() if path.exists() else None
    changed = path.stat().st_mtime if before is not None else 0.0
    path.write_text(source, encoding="utf-8")
    # Python compares the compiled file's time in whole seconds: each version needs a second of its own.
    os.utime(path, times=(later := max(path.stat().st_mtime, changed + 1), later))
    _drop_loaded()
    importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except BaseException:
        _drop_loaded()
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
            os.utime(path, times=(later + 1, later + 1))
        raise
    return path


def register(shell: Any) -> None:
    """Make `%%module` known to an IPython shell. Again is no error."""

    def module(line: str, cell: str) -> None:
        write_module(line.strip(), cell)

    shell.register_magic_function(module, magic_kind="cell", magic_name="module")


def _drop_loaded() -> None:
    """Forget every loaded module of the folder: one may have imported another that changed."""
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == _folder:
            del sys.modules[name]


def _found_elsewhere(name: str, own: Path) -> bool:
    if name in sys.modules and Path(getattr(sys.modules[name], "__file__", None) or "/").parent == own:
        return False
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        return True
    return found is not None and Path(found.origin or "/").parent != own


def _remove_those_of_the_dead() -> None:
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        number, _, rest = left.name.removeprefix(PREFIX).partition("-")
        try:
            alive = round(psutil.Process(int(number)).create_time()) == int(rest.partition("-")[0])
        except (psutil.NoSuchProcess, psutil.AccessDenied, ValueError):
            alive = False
        if not alive:
            shutil.rmtree(left, ignore_errors=True)
