"""Chapters as a whole: run twice in one kernel, the command that executes them, and their scripts.

Strict nbval runs the notebooks themselves, as items of the same pytest run: see
tests/tools/strict_nbval.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from support import start_postgres, start_redis, start_upstream
from tests.tools import execute
from tests.tools.isolation import ROOT, chapters
from tests.tools.rules import numbered


def test_strict_nbval_runs_every_chapter(request: pytest.FixtureRequest) -> None:
    collected = {item.path for item in request.session.items}
    if not collected >= set(ROOT.glob("tests/test_*.py")):
        pytest.skip("only some of the tests run")
    asked = "start pytest as `make test` does, with `-p tests.tools.strict_nbval tests notebooks`"
    assert request.config.option.nbval, asked
    assert collected >= set(chapters()), asked


@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_runs_twice_in_one_kernel(path: Path) -> None:
    """What a second run finds left by the first fails each time; a stall of this machine does not."""
    try:
        execute.check(path)
    except execute.ChapterError as error:
        warnings.warn(f"{path.stem} is checked once more: {error}", stacklevel=1)
        execute.check(path)


# --- The command that executes a chapter ------------------------------------------------

SCRIPT = """# %% [markdown]
# # A chapter

# %% tags=["widget", "nbval-ignore-output"]
import ipywidgets
_ = ipywidgets.interact(lambda n: print(n * "x"), n=3)

# %% tags=["raises-exception"]
import json
json.loads("{")
"""


def script(folder: Path, text: str) -> Path:
    path = folder / "chapter.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_executing_again_changes_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "chapter.ipynb"
    assert execute.main([str(path), "--from", str(script(tmp_path, SCRIPT))]) == 0
    first = path.read_bytes()
    assert execute.main([str(path)]) == 0
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.glob("*.part")] == []
    _, widget, error = nbformat.read(path, as_version=4).cells
    # What the widget held stands in its place; a traceback tells no path of this machine.
    assert [dict(one) for one in widget.outputs] == [{"output_type": "stream", "name": "stdout", "text": "xxx\n"}]
    assert (widget.execution_count, error.execution_count) == (1, 2)
    assert "json/decoder.py" in "".join(error.outputs[0].traceback).replace("\\", "/")
    assert sys.prefix not in path.read_text() and str(Path.home()) not in path.read_text()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("x = 1 / 0", "cell 2 ('x = 1 / 0') raises ZeroDivisionError: division by zero"),
        ("import warnings\nwarnings.warn('old')", "cell 2 ('import warnings') writes to stderr: "),
        (
            "import asyncio\nt = asyncio.get_running_loop().call_later(0.1, print, 'late')\n"
            "# %%\nawait asyncio.sleep(0.3)",
            "cell 2 ('import asyncio') prints after its end",
        ),
        ("await __import__('asyncio').sleep(60)", "runs for more than 1 s."),
    ],
    ids=["error", "stderr", "late", "hung"],
)
def test_a_chapter_that_fails_is_not_stored(
    code: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = tmp_path / "chapter.ipynb", f"# %%\nfirst = 1\n# %%\n{code}\n"
    path.write_text(nbformat.writes(nbformat.v4.new_notebook()), encoding="utf-8")
    before = path.read_bytes()
    arguments = [str(path), "--from", str(script(tmp_path, text)), "--seconds", "1"]
    assert execute.main(arguments) == 1
    assert sentence in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_missing_notebook_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute.main(["no.ipynb"]) == 1
    assert "There is no notebook no.ipynb: give its cells with --from." in capsys.readouterr().err


def test_cells_that_did_not_change_keep_their_id(tmp_path: Path) -> None:
    def ids(text: str, old: NotebookNode | None) -> tuple[list[str], NotebookNode]:
        nb = execute.cells_from_script(script(tmp_path, text), old)
        execute.normalise(nb)
        return [cell["id"] for cell in nb.cells], nb

    first, nb = ids("# %%\na = 1\n# %%\nb = 2\n# %%\nc = 3\n", None)
    edited, nb = ids("# %%\na = 1\n# %%\nb = 22\n# %%\nc = 3\n", nb)
    assert edited == first
    grown, nb = ids("# %%\nnew = 0\n# %%\na = 1\n# %%\nb = 22\n# %%\nc = 3\n", nb)
    assert grown[1:] == first
    assert len(set(grown)) == 4


def test_the_stored_form() -> None:
    shown = [
        new_output("stream", name="stdout", text="a\n"),
        new_output("stream", name="stdout", text="b\n"),
        new_output("display_data", {"text/plain": "picture"}),
        new_output("stream", name="stdout", text="c\n"),
        new_output("execute_result", {"text/plain": "5"}, execution_count=77),
    ]
    cell = new_code_cell("x", outputs=shown, execution_count=77)
    cell.metadata = {"tags": [], "execution": {"at": "1"}, "jupyter": {"outputs_hidden": True}}
    nb = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    execute.normalise(nb)
    assert [one.get("text") for one in cell.outputs] == ["a\nb\n", None, "c\n", None]
    assert (cell.execution_count, cell.outputs[-1].execution_count) == (1, 1)
    assert set(nb.metadata) == {"kernelspec", "language_info"}
    assert "execution" not in cell.metadata and "tags" not in cell.metadata


# --- scripts to take away -----------------------------------------------------------------


def scripts(nb: NotebookNode) -> list[str]:
    """The whole programs that stand in the prose, as opposed to snippets of a few lines."""
    fences = [re.findall(r"^```python\n(.+?)^```", cell.source, re.DOTALL | re.MULTILINE) for _, cell in numbered(nb, "markdown")]
    return [source for found in fences for source in found if 'if __name__ == "__main__":' in source]


def run_with_urls(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with three URLs of a practice upstream: a good one, an error, and a body of 2 MB."""
    (folder / "script.py").write_text(source, encoding="utf-8")
    server = start_upstream()
    try:
        urls = [server.url_for(path) for path in ("/item/1", "/status/503", "/big/2000000")]
        command = [sys.executable, str(folder / "script.py"), *urls]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        server.stop()


SHOP = """
import contextlib, fastapi
@contextlib.asynccontextmanager
async def lifespan(app): yield {"stock": 3}
app = fastapi.FastAPI(lifespan=lifespan)
@app.get("/stock")
async def stock(request: fastapi.Request): return request.state.stock
@app.get("/broken")
async def broken(): raise ValueError("on purpose")
"""


def run_with_app(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script on an application of two routes, of which one fails, and which needs its lifespan."""
    (folder / "script.py").write_text(source, encoding="utf-8")
    (folder / "shop.py").write_text(SHOP, encoding="utf-8")
    command = [sys.executable, "script.py", "shop:app"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def run_with_database(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with two arguments and a database of its own."""
    (folder / "script.py").write_text(source, encoding="utf-8")
    postgres = start_postgres()
    try:
        command = [sys.executable, str(folder / "script.py"), "first job", "second job"]
        environment = {**os.environ, "DATABASE_URL": postgres.fresh_database("take_away")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    finally:
        postgres.stop()


def run_with_deadline(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with two seconds and four URLs: a good one, an error, a body of 2 MB, and one that never answers."""
    (folder / "script.py").write_text(source, encoding="utf-8")
    server = start_upstream()
    try:
        urls = [server.url_for(path) for path in ("/item/1", "/status/503", "/big/2000000", "/stall")]
        command = [sys.executable, str(folder / "script.py"), "2", *urls]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        server.stop()


def run_twice_with_redis(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script twice, as two machines would, with a command that says so; returns the second, with the first's text."""
    (folder / "script.py").write_text(source, encoding="utf-8")
    redis = start_redis()
    try:
        command = [sys.executable, str(folder / "script.py"), "report", "60", sys.executable, "-c", "print('mailed')"]
        environment = {**os.environ, "REDIS_URL": redis.url}
        first, second = (subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60) for _ in "12")
        return subprocess.CompletedProcess(command, first.returncode or second.returncode, first.stdout + second.stdout,
                                           first.stderr + second.stderr)  # fmt: skip
    finally:
        redis.stop()


RUN = {
    "04_fastapi": run_with_app, "07_monitoring": run_with_app, "05_connection_pools": run_with_database,
    "09_api_gateway": run_with_deadline, "10_many_processes": run_twice_with_redis,
}  # fmt: skip


WITH_SCRIPTS = [path for path in chapters() if scripts(nbformat.read(path, as_version=4))]


def test_most_chapters_have_a_script() -> None:
    assert {path.stem for path in chapters()} - {path.stem for path in WITH_SCRIPTS} <= {"00_start_here", "01_event_loop", "11_your_numbers"}


@pytest.mark.parametrize("path", WITH_SCRIPTS, ids=lambda path: path.stem)
def test_a_script_to_take_away_runs(path: Path, tmp_path: Path) -> None:
    for source in scripts(nbformat.read(path, as_version=4)):
        done = RUN.get(path.stem, run_with_urls)(source, tmp_path)
        if path.stem == "04_fastapi":
            assert (done.returncode, done.stderr) == (1, ""), done.stderr  # one route is broken
            assert sorted(done.stdout.splitlines()) == ["200 /stock", "500 /broken"]
            continue
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        if path.stem == "07_monitoring":
            told = ["GET /broken 5xx 1", "GET /stock 2xx 1", "GET unmatched 4xx 1"]
            assert done.stdout.splitlines() == told, done.stdout
            continue
        if path.stem == "05_connection_pools":
            assert done.stdout == "doing first job\ndoing second job\n"
            continue
        if path.stem == "09_api_gateway":
            told = {line.rsplit("/", 2)[-2]: line.rsplit(maxsplit=1)[0].strip() for line in done.stdout.splitlines()}
            size = told.pop("item")
            assert told == {"status": "status 503", "big": "too large", done.stdout.rsplit("/", 2)[-2]: "late"}, done.stdout
            assert re.fullmatch(r"[1-9]\d* bytes", size), done.stdout
            continue
        if path.stem == "10_many_processes":
            assert done.stdout == "mailed\nanother one has it\n"
            continue
        told = {line.split()[0].split("/", 3)[3]: "failed" in line for line in done.stdout.splitlines()}
        assert told.keys() == {"item/1", "status/503", "big/2000000"}, done.stdout
        assert (told["item/1"], told["status/503"]) == (False, True), done.stdout


def test_a_script_that_does_not_run_is_found(tmp_path: Path) -> None:
    broken = 'import sys\nif __name__ == "__main__":\n    print(len(sys.argv), nothing)\n'
    nb = new_notebook(cells=[new_markdown_cell(f"Look:\n\n```python\nx = 1\n```\n\n```python\n{broken}```\n")])
    assert scripts(nb) == [broken]
    assert run_with_urls(broken, tmp_path).returncode == 1
