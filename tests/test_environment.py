"""The reader's check of their own set-up: silent when all is well, one plain sentence a problem."""

from __future__ import annotations

import socket
from importlib import metadata

import pytest

from support import environment


def test_this_environment_is_complete(capsys):
    environment.check_environment()
    assert list(environment.problems()) == []
    assert capsys.readouterr().out.endswith("You are ready.\n")


def test_a_missing_package_and_an_old_one_are_named(monkeypatch, capsys):
    versions = {"aiohttp": None, "fastapi": "0.1"}
    real = metadata.version

    def version(name: str) -> str:
        if name in versions:
            if versions[name] is None:
                raise metadata.PackageNotFoundError(name)
            return versions[name]
        return real(name)

    monkeypatch.setattr(environment.metadata, "version", version)
    environment.check_environment()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0] == "- The package aiohttp is missing: run `make lab` once more."
    assert lines[1].startswith("- The package fastapi is version 0.1, and the course needs >=")


def test_a_course_that_is_not_installed_is_said_to_be(monkeypatch):
    monkeypatch.setattr(environment, "PROJECT", "no-such-project")
    assert list(environment.problems()) == ["The course itself is not installed: start the lab with `make lab`."]


def test_a_closed_loopback_is_named(monkeypatch):
    def refuse(*_: object, **__: object) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(environment.socket, "create_server", refuse)
    (sentence,) = environment.problems()
    assert (
        sentence
        == "A server on 127.0.0.1 cannot be reached (Operation not permitted): allow connections to this machine itself."
    )


def test_an_old_python_and_a_tight_limit_are_named(monkeypatch):
    monkeypatch.setattr(environment.sys, "version_info", type("V", (tuple,), {"major": 3, "minor": 10})((3, 10)))
    monkeypatch.setattr(environment, "_open_files", lambda: 64)
    first, second = environment.problems()
    assert first.startswith("Python 3.10 is too old")
    assert second.startswith("Only 64 files may be open at once")


@pytest.mark.parametrize("name", ["record", "simulate", "predict", "check", "start_upstream", "show", "theory"])
def test_what_a_reader_types_is_there(name):
    import support

    assert getattr(support, name) is not None


def test_an_unknown_name_lists_the_known_ones():
    import support

    with pytest.raises(AttributeError, match="support has no 'recrod'; it has .*record"):
        _ = support.recrod
