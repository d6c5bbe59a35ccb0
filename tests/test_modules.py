"""`%%module`: a cell that is a file, in a real kernel, in a process of its own, and after a kill."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import modules, serve
from tests.tools.live import LiveKernel

APP = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": {body!r}}})
"""


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    modules.forget()


def folders() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob(f"{modules.PREFIX}*")}


def answer(app: str) -> bytes:
    with serve(app) as server, urllib.request.urlopen(server.url, timeout=10) as reply:
        return reply.read()


def test_a_process_of_its_own_serves_it_and_a_new_version_of_the_same_size() -> None:
    answers = []
    for body in (b"one", b"two", b"one"):
        modules.write_module("shop_of_this_test", APP.format(body=body))
        answers.append(answer("shop_of_this_test:app"))
    assert answers == [b"one", b"two", b"one"]


def test_one_that_imports_another_sees_its_new_version() -> None:
    modules.write_module("ground_of_this_test", "level = 1")
    modules.write_module("roof_of_this_test", "from ground_of_this_test import level")
    modules.write_module("ground_of_this_test", "level = 2")
    assert importlib.import_module("roof_of_this_test").level == 2


def test_a_mistake_leaves_the_version_from_before() -> None:
    path = modules.write_module("shop_of_this_test", "open = True")
    with pytest.raises(SyntaxError):
        modules.write_module("shop_of_this_test", "open = ")
    with pytest.raises(ZeroDivisionError):
        modules.write_module("other_of_this_test", "1 / 0")
    assert importlib.import_module("shop_of_this_test").open and path.read_text() == "open = True"
    assert not path.with_name("other_of_this_test.py").exists()


@pytest.mark.parametrize("name", ["", "two words", "a.b", "class", "../up", "3d"])
def test_a_name_that_no_import_could_use(name: str) -> None:
    with pytest.raises(ValueError, match="needs a name such as users_api, not"):
        modules.write_module(name, "")


@pytest.mark.parametrize("name", ["asyncio", "support", "fastapi", "__main__"])
def test_the_name_of_another_module(name: str) -> None:
    loaded = sys.modules.get(name)
    with pytest.raises(ValueError, match=f"there is a module '{name}' already"):
        modules.write_module(name, "")
    assert sys.modules.get(name) is loaded


def test_forgetting_leaves_nothing() -> None:
    before = list(sys.path)
    path = modules.write_module("shop_of_this_test", "")
    assert str(path.parent) in sys.path and "shop_of_this_test" in sys.modules
    for _ in range(2):
        modules.forget()
    assert sys.path == before and "shop_of_this_test" not in sys.modules and not path.parent.exists()


def test_the_folder_goes_with_the_process_and_that_of_a_killed_one_at_the_next_start() -> None:
    def run(last_words: str) -> str:
        source = f"from support import modules; print(modules.folder().name, flush=True); {last_words}"
        return subprocess.run([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True).stdout.strip()

    assert run("pass") not in folders()
    killed = run("import os, signal; os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))")
    assert killed in folders()
    own = modules.folder().name
    assert killed not in folders() and own in folders()
    run("pass")
    assert own in folders()  # this process is alive


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_worker_leaves_the_folder_alone() -> None:
    own = modules.folder()
    if (child := os.fork()) == 0:
        modules.forget(os.getppid())
        os._exit(0)
    os.waitpid(child, 0)
    assert own.is_dir()


def test_the_magic_in_a_kernel(tmp_path: Path) -> None:
    with LiveKernel(tmp_path) as kernel:
        said = kernel.run("from support import open_chapter, close_chapter\nopen_chapter('99_test')")
        assert said.status == "ok", said.traceback
        for level in (1, 2):
            assert kernel.run(f"%%module shop_of_this_test\nlevel = {level}").status == "ok"
            assert kernel.run("import shop_of_this_test\nprint(shop_of_this_test.level)").printed == f"{level}\n"
        assert "NameError" in "".join(kernel.run("%%module other_of_this_test\nprint(close_chapter)").traceback)
        assert "needs a name such as" in "".join(kernel.run("%%module\nlevel = 1").traceback)
        before = folders()
        assert kernel.run("from support import modules; print(modules.folder().name)").printed.strip() in before
        assert kernel.run("close_chapter()").printed.startswith("tasks left: 0, threads left: 0")
        assert len(before - folders()) == 1
