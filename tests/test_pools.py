"""Worker processes and the stop button."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from support import deaf_to_stop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to block")


def after_stop(inside: contextlib.AbstractContextManager[None]) -> int | None:
    """The exit code of a child that was started in this block and then sent SIGINT; None: it runs on."""
    program = "import signal, sys; print('up', flush=True); sys.stdin.read()"
    with inside:
        child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL)  # fmt: skip
    with child:
        assert child.stdout.readline() == b"up\n"
        os.kill(child.pid, signal.SIGINT)
        try:
            return child.wait(0.5)
        except subprocess.TimeoutExpired:
            return None
        finally:
            child.kill()


def test_a_child_that_was_started_in_the_block_does_not_hear_the_stop_button() -> None:
    assert after_stop(deaf_to_stop()) is None
    assert after_stop(contextlib.nullcontext()) == -signal.SIGINT


def test_the_process_itself_hears_it_again_after_the_block_even_one_that_failed() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(ValueError), deaf_to_stop():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise ValueError
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
