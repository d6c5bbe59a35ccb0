"""An interrupt in the middle of an import leaves no half module, or the half is mended."""

from __future__ import annotations

import ast
import importlib
import signal
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from support.imports import import_whole, name_submodules
from tests.tools.isolation import chapters
from tests.tools.rules import numbered

SLOW = "import time, runs\nruns.count += 1\ntime.sleep(0.5)\nvalue = 'whole'\n"


@pytest.fixture
def slow(tmp_path: Path, monkeypatch) -> str:
    (tmp_path / "slow_module.py").write_text(SLOW, encoding="utf-8")
    (tmp_path / "runs.py").write_text("count = 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "slow_module"
    for name in ("slow_module", "runs"):
        sys.modules.pop(name, None)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no interval timers")
def test_an_interrupted_import_goes_on_and_the_next_one_waits_for_it(slow: str) -> None:
    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            import_whole(slow)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert importlib.import_module(slow).value == "whole"
    assert sys.modules["runs"].count == 1


def test_an_import_that_fails_says_so(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module_here"):
        import_whole("no_such_module_here")


def test_what_is_there_already_starts_no_thread(monkeypatch) -> None:
    monkeypatch.setattr("threading.Thread", None)
    import_whole("signal", "sys")


@pytest.fixture
def halfway(tmp_path: Path, monkeypatch) -> str:
    """A package whose first import is interrupted when its module `part` is there."""
    folder = tmp_path / "halfway"
    folder.mkdir()
    (folder / "part.py").write_text("value = 'part'\n", encoding="utf-8")
    (folder / "__init__.py").write_text(
        "import sys\nfrom halfway.part import value\n"
        "if not hasattr(sys, 'halfway_ran'):\n    sys.halfway_ran = True\n    raise KeyboardInterrupt\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "halfway"
    for name in ("halfway", "halfway.part"):
        sys.modules.pop(name, None)
    vars(sys).pop("halfway_ran", None)


def test_a_package_gets_back_what_an_interrupted_import_left_out(halfway: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(halfway)
    package = importlib.import_module(halfway)
    assert not hasattr(package, "part")  # what Python leaves: a module that is loaded, and not to be had by its name
    assert "halfway.part" in name_submodules()
    assert package.part.value == "part"
    assert "halfway.part" not in name_submodules()


def test_a_name_that_the_package_uses_itself_is_left_alone(monkeypatch) -> None:
    package = ModuleType("taken")
    package.part = "its own"
    monkeypatch.setitem(sys.modules, "taken", package)
    monkeypatch.setitem(sys.modules, "taken.part", ModuleType("taken.part"))
    assert "taken.part" not in name_submodules()
    assert package.part == "its own"


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_set_up_cell_imports_support_before_other_packages(path: Path) -> None:
    """Then numpy, of which half an import cannot be repeated, is imported whole."""
    _, cell = next(iter(numbered(nbformat.read(path, as_version=4))))
    firsts = []
    for node in ast.parse(cell.source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.names[0].name if isinstance(node, ast.Import) else node.module
            firsts.append(module.partition(".")[0])
    others = [name for name in firsts if name not in sys.stdlib_module_names]
    assert others == sorted(others, key=lambda name: name != "support")


def test_every_room_is_imported_whole(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("support.import_whole", lambda *names: asked.extend(names))
    import support

    assert support.__getattr__("new_figure") and support.__getattr__("theory")  # asked once, they are attributes
    assert asked == ["support.figures", "support.theory"]
