"""A function in this Python and in a free-threaded one: sent as its source, its answer or its error comes back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from support import other_python
from support.other_python import free_threaded, in_each_python

HERE = "with the GIL" if getattr(sys, "_is_gil_enabled", lambda: True)() else "without"


def answer() -> list[int]:
    import math

    return [math.factorial(4)]


def fails() -> None:
    raise LookupError("no such part")


def needs(one: int) -> int:
    return one


def stands_in(folder: Path, monkeypatch: pytest.MonkeyPatch, gil: bool) -> None:
    """Let a program on the PATH be the free-threaded Python: this one, which says that it has no GIL."""
    program = folder / other_python.FREE_THREADED[-1]
    program.write_text(
        f"#!/bin/sh\nshift 2\nexec '{sys.executable}' -c \"import sys; sys._is_gil_enabled = lambda: {gil}\n$1\"\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_answer_comes_from_a_process_of_its_own() -> None:
    assert in_each_python(answer)[HERE] == [24]


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_a_free_threaded_python_on_the_path_is_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stands_in(tmp_path, monkeypatch, gil=False)
    monkeypatch.setattr(other_python, "FREE_THREADED", other_python.FREE_THREADED[-1:])
    assert free_threaded() == str(tmp_path / other_python.FREE_THREADED[-1])
    assert in_each_python(answer) == {HERE: [24], "without": [24]}


def test_without_one_there_is_one_answer_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(other_python, "free_threaded", lambda: None)
    assert in_each_python(answer) == {HERE: [24]}
    assert "uv python install 3.14t" in capsys.readouterr().out


def test_the_one_that_is_found_has_no_gil() -> None:
    if not free_threaded():
        pytest.skip("there is no free-threaded Python on this machine")
    assert in_each_python(answer)["without"] == [24]


def test_an_error_there_is_told_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_python, "free_threaded", lambda: None)
    with pytest.raises(RuntimeError, match=r"fails\(\) failed in .*: LookupError: no such part"):
        in_each_python(fails)


@pytest.mark.parametrize("wrong", [needs, len, "answer", lambda: 1])
def test_bad_input_is_named(wrong: object) -> None:
    with pytest.raises(TypeError, match="in_each_python\\(\\) takes a function"):
        in_each_python(wrong)
