"""An interrupt in the middle of an import leaves no half module."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

import pytest

from support.imports import import_whole

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
