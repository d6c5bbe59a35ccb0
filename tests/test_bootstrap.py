"""The set-up: its steps, how it repairs itself, and the sentence that each failure gives.

The installers are replaced by a record of their calls, so nothing here needs a network.
"""

import ast
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "support" / "bootstrap.py"
POSIX = pytest.mark.skipif(os.name == "nt", reason="uses POSIX programs, signals or pipes")
UV_PIN = "uv==0.13.9 \\\n    --hash=sha256:bb\n"
LOCK = f"six==1.17 \\\n    --hash=sha256:aa\n{UV_PIN}yarl==1.2 \\\n    --hash=sha256:cc\n"


# The start of a program that has the set-up of the course folder in its first argument.
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("bootstrap", sys.argv[1])
bootstrap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bootstrap)
"""


class Course:
    """A course folder of its own, with its copy of the set-up and installers that only pretend."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "support").mkdir(parents=True)
        (root / "support" / "bootstrap.py").write_bytes(SOURCE.read_bytes())
        (root / "requirements.lock").write_text(LOCK)
        (root / "pyproject.toml").write_text("[project]\n")
        self.bootstrap = self.load()
        self.calls: list[list[str]] = []
        self.failures: dict[int, BaseException] = {}

    def load(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location(
            "bootstrap", self.root / "support" / "bootstrap.py"
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.run = self.run
        module.subprocess = FakeSubprocess()
        return module

    def run(self, command: list[str]) -> None:
        """Stands for `bootstrap.run`: notes the call, fails if told to, else leaves a file."""
        self.calls.append(command)
        if failure := self.failures.pop(len(self.calls), None):
            raise failure
        if command[1:3] == ["-m", "venv"]:
            python = Path(self.bootstrap.PYTHON)
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
            (self.venv / "pyvenv.cfg").touch()

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def steps(self) -> list[str]:
        """The calls since the last look, each by the word that tells it apart."""
        words = ("venv", "--only-binary", "sync", "--editable", "install")
        found = [next(word for word in words if word in call) for call in self.calls]
        self.calls.clear()
        return found


class FakeSubprocess:
    """Answers the one direct question of the set-up: which Python the environment has."""

    def check_output(self, command: list[str]) -> bytes:
        return "{}.{}\n".format(*sys.version_info).encode()


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Course:
    monkeypatch.delenv("PYTHON", raising=False)
    return Course(tmp_path / "a course é")


WHOLE = ["venv", "--only-binary", "sync", "--editable"]


def test_the_first_call_takes_every_step_and_the_second_none(
    course: Course, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    course.bootstrap.set_up()
    assert course.steps() == WHOLE
    shown = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in shown] == ["Setti", "[1/4]", "[2/4]", "[3/4]", "[4/4]", "Set u"]
    monkeypatch.setattr(course.bootstrap, "try_to_lock", None)  # not even the guard is taken
    course.bootstrap.set_up()
    assert course.steps() == []
    assert capsys.readouterr().out == ""


def test_only_the_locked_uv_is_installed_with_pip(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    course.bootstrap.set_up()
    pip = course.calls[1]
    assert "--require-hashes" in pip
    assert Path(pip[-1]).read_text() == UV_PIN
    sync = course.calls[2]
    assert sync[-2:] == ["--require-hashes", str(course.root / "requirements.lock")]
    assert {"--no-deps", "--no-build-isolation"} < set(course.calls[3]), "or it needs a network"


def test_what_python_will_not_keep_is_compiled_once(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    course.bootstrap.set_up()
    assert course.calls[2][-1] == "--compile-bytecode"


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), SystemExit(9)])
def test_a_set_up_that_was_cut_short_is_made_anew(
    course: Course, step: int, failure: BaseException
) -> None:
    course.failures[step] = failure
    with pytest.raises(type(failure)):
        course.bootstrap.set_up()
    half_made = course.venv / "lib"
    half_made.mkdir()
    (half_made / "half-written.py").touch()
    course.steps()
    course.bootstrap.set_up()
    assert course.steps() == WHOLE
    assert not half_made.exists()
    course.bootstrap.set_up()
    assert course.steps() == []


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml", "support/bootstrap.py"])
def test_a_changed_list_of_packages_brings_the_environment_up_to_date(
    course: Course, name: str
) -> None:
    course.bootstrap.set_up()
    course.steps()
    with (course.root / name).open("a") as file:
        file.write("# changed\n")
    course.bootstrap.set_up()
    assert course.steps() == WHOLE[1:], "the environment itself is kept"
    course.bootstrap.set_up()
    assert course.steps() == []


def test_an_update_that_was_cut_short_is_made_anew(course: Course) -> None:
    course.bootstrap.set_up()
    (course.root / "pyproject.toml").write_text("# changed\n")
    course.failures[len(course.calls) + 2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        course.bootstrap.set_up()
    course.steps()
    course.bootstrap.set_up()
    assert course.steps() == WHOLE


def test_a_moved_folder_is_set_up_again(course: Course, tmp_path: Path) -> None:
    course.bootstrap.set_up()
    course.steps()
    course.root = course.root.rename(tmp_path / "elsewhere")
    course.bootstrap = course.load()
    course.bootstrap.set_up()
    assert course.steps() == WHOLE


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", '{"inputs"'])
def test_a_damaged_stamp_or_a_vanished_python_is_repaired(course: Course, content: str) -> None:
    course.bootstrap.set_up()
    Path(course.bootstrap.STAMP).write_text(content)
    course.steps()
    course.bootstrap.set_up()
    assert course.steps() == WHOLE
    Path(course.bootstrap.PYTHON).unlink()
    course.bootstrap.set_up()
    assert course.steps() == WHOLE


def test_another_python_counts_only_when_the_reader_names_it(
    course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    course.bootstrap.set_up()
    stamp = Path(course.bootstrap.STAMP)
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"python": "3.99"}))
    course.steps()
    course.bootstrap.set_up()
    assert course.steps() == []
    monkeypatch.setenv("PYTHON", "python3")
    course.bootstrap.set_up()
    assert course.steps() == WHOLE


def test_pip_takes_over_where_uv_has_no_wheel(course: Course) -> None:
    no_wheel = "ERROR: No matching distribution found for uv==0.13.9"
    course.failures[2] = course.bootstrap.StepFailed(no_wheel)
    course.bootstrap.set_up()
    assert [call[0] for call in course.calls[2:]] == [course.bootstrap.PYTHON] * 2
    assert "--require-hashes" in course.calls[2]
    assert course.steps() == ["venv", "--only-binary", "install", "--editable"]


# What the installers really say, shortened.
PIP_OFFLINE = """
WARNING: Retrying (Retry(total=1, connect=None, read=None)) after connection broken by
'NewConnectionError: Failed to establish a new connection: [Errno -3] Temporary failure in name
resolution': /simple/uv/
ERROR: Could not find a version that satisfies the requirement uv==0.13.9 (from versions: none)
ERROR: No matching distribution found for uv==0.13.9
"""
UV_OFFLINE = """
error: Failed to fetch: `some address`
  cause: error sending request for url
  cause: client error (Connect)
  cause: dns error
"""
UV_FULL = """
error: Failed to install: jupyterlab-4.6.6-py3-none-any.whl (jupyterlab==4.6.6)
  cause: failed to copy file from a to b: No space left on device (os error 28)
"""
PIP_FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
DEBIAN = """
The virtual environment was not created successfully because ensurepip is not
available.  On Debian/Ubuntu systems, you need to install the python3-venv
package using the following command.
"""
READ_ONLY = "OSError: [Errno 30] Read-only file system: '.venv'"


@pytest.mark.parametrize(
    ("step", "output", "advice"),
    [
        (2, PIP_OFFLINE, "connect to the network"),
        (3, UV_OFFLINE, "connect to the network"),
        (3, UV_FULL, "A disk is full: make room"),
        (3, PIP_FULL, "A disk is full: make room"),
        (1, DEBIAN, "apt install python{}.{}-venv".format(*sys.version_info)),
        (1, READ_ONLY, "change its permissions"),
        (3, "error: something new", "The set-up has failed: read the log"),
    ],
)
def test_each_failure_is_one_sentence_that_names_the_log(
    course: Course, capsys: pytest.CaptureFixture[str], step: int, output: str, advice: str
) -> None:
    course.failures[step] = course.bootstrap.StepFailed(output)
    assert course.bootstrap.main(["lab"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert advice in message and "run the same command again" in message
    log = course.venv / "async-python-measured-setup.log"
    assert f"(full log: {log})." in message
    assert log.read_text() == output
    course.steps()
    course.bootstrap.set_up()
    assert course.steps() == WHOLE


def test_a_nearly_full_disk_stops_the_set_up_before_it_starts(
    course: Course, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(0, 0, 300 * 10**6)
    monkeypatch.setattr(course.bootstrap.shutil, "disk_usage", lambda path: usage)
    assert course.bootstrap.main(["lab"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "needs 800 MB" in message and "has 300 MB free" in message
    assert course.calls == []


def test_a_folder_that_cannot_be_written_is_one_sentence(
    course: Course, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, exist_ok: bool) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(course.bootstrap.os, "makedirs", refuse)
    assert course.bootstrap.main(["lab"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "change its permissions" in message


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_venv_that_is_something_else_is_left_alone(
    course: Course, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    if kind == "file":
        course.venv.write_text("mine")
    else:
        course.venv.mkdir()
        (course.venv / "mine.txt").write_text("mine")
    assert course.bootstrap.main(["lab"]) == 1
    assert "is not a virtual environment: move it away" in capsys.readouterr().err
    assert course.calls == []
    assert (course.venv if kind == "file" else course.venv / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_missing_file_is_named(
    course: Course, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (course.root / name).unlink()
    assert course.bootstrap.main(["lab"]) == 1
    assert f"{course.root / name} is missing" in capsys.readouterr().err


# --- the commands -----------------------------------------------------------------------------


def test_a_command_runs_in_the_environment(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(course.bootstrap, "hand_over", lambda *both: handed.append(both) or 5)
    monkeypatch.setenv("PYTHONHOME", "elsewhere")
    monkeypatch.chdir(ROOT)
    assert course.bootstrap.main(["test", "-x", "tests"]) == 5, "the exit code is pytest's"
    ((command, environment),) = handed
    assert command[:3] == [course.bootstrap.PYTHON, "-m", "pytest"]
    assert command[-2:] == ["-x", "tests"]
    assert environment["VIRTUAL_ENV"] == str(course.venv)
    assert environment["PATH"].split(os.pathsep)[0] == course.bootstrap.PROGRAMS
    assert "PYTHONHOME" not in environment
    assert Path.cwd() == course.root


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["tst"], 'There is no command "tst": use one of setup, lab, test,'),
        (["notebook"], "make notebook CHAPTER=01_event_loop"),
        (["reset"], "make reset CHAPTER=01_event_loop"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_sets_nothing_up(
    course: Course, capsys: pytest.CaptureFixture[str], arguments: list[str], advice: str
) -> None:
    assert course.bootstrap.main(arguments) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and advice in message
    assert course.calls == [] and not course.venv.exists()


@POSIX
def test_the_environment_can_be_made_anew_by_its_own_python(course: Course) -> None:
    """As when the reader has activated `.venv`, and a set-up in it was cut short."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", course.venv], check=True)
    program = LOAD + "bootstrap.run = print; bootstrap.make_empty_venv()"
    shown = subprocess.check_output(
        [course.bootstrap.PYTHON, "-c", program, course.root / "support" / "bootstrap.py"],
        text=True,
    )
    assert not Path(course.bootstrap.PYTHON).exists()
    maker, *rest = ast.literal_eval(shown)
    assert rest == ["-m", "venv", str(course.venv)]
    assert subprocess.call([maker, "-c", ""]) == 0


@POSIX
def test_make_is_a_thin_front() -> None:
    def line(*arguments: str) -> str:
        make = ["make", "--dry-run", "--no-print-directory", "PYTHON=any", *arguments]
        return subprocess.check_output(make, cwd=ROOT, text=True).strip()

    assert line("lab", "LAB_ARGS=--no-browser") == "any support/bootstrap.py lab --no-browser"
    assert line("test", "TEST_ARGS=-x") == "any support/bootstrap.py test -x"
    assert line("notebook", "CHAPTER=01") == "any support/bootstrap.py notebook 01"
    assert line("reset", "CHAPTER=01") == "any support/bootstrap.py reset 01"
    assert line("lock", "LOCK_ARGS=--upgrade") == "any support/bootstrap.py lock --upgrade"
    assert "my_work" not in line("clean")


@POSIX
def test_ci_runs_make_test_and_ends_with_its_exit_code(tmp_path: Path) -> None:
    for name, line in {"make": 'echo "$@"; exit 7', "chromium": "", "haproxy": "", "python3": ""}.items():
        write_program(tmp_path / name, line)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    done = subprocess.run(
        ["bash", ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "--no-print-directory test\n", "nothing comes after pytest's last line"


# --- old Pythons ------------------------------------------------------------------------------


def test_an_old_python_can_read_the_set_up() -> None:
    tree = ast.parse(SOURCE.read_text())
    for node in ast.walk(tree):
        modern = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.AsyncFunctionDef, ast.Match)
        assert not isinstance(node, (*modern, ast.Nonlocal)), ast.unparse(node)
        if isinstance(node, ast.arg):
            assert node.annotation is None, node.arg
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            assert node.returns is None and not arguments.kwonlyargs, node.name
            assert not arguments.posonlyargs, node.name
        if isinstance(node, ast.Raise):
            assert node.cause is None, "`raise ... from` is not in Python 2"
        if isinstance(node, (ast.List, ast.Tuple, ast.Dict)):
            parts = node.keys if isinstance(node, ast.Dict) else node.elts
            assert not any(part is None or isinstance(part, ast.Starred) for part in parts)
    assert SOURCE.read_bytes().isascii(), "Python 2 reads no other characters without a mark"


def run_as_old_python(course: Course, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the set-up in a Python that believes it is 3.8, with only `programs` on its PATH."""
    source = str(course.root / "support" / "bootstrap.py")
    program = (
        "import runpy, sys, contextlib, hashlib, json, shutil, subprocess, tempfile;"
        "sys.version_info = (3, 8, 18, 'final', 0);"
        f"sys.argv = [{source!r}, 'lab', '--no-browser'];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environment["PATH"] = str(course.root / "programs")
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )


def write_program(path: Path, line: str) -> None:
    """A shell script with one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@POSIX
def test_an_old_python_says_so_in_one_sentence(course: Course) -> None:
    done = run_as_old_python(course)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Python 3.11 or newer is needed, and this is Python 3.8.18: install a newer one, or name"
        " the one to use, as in `make lab PYTHON=/path/to/python3.12`.\n"
    )


@POSIX
def test_an_old_python_hands_over_to_a_newer_one_that_works(course: Course) -> None:
    says = '[ "$1" = -c ] || echo "$0 got $@"'
    write_program(course.root / "programs" / "python3.13", "exit 127")
    newer = course.root / "programs" / "python3.12"
    write_program(newer, says)
    source = course.root / "support" / "bootstrap.py"
    done = run_as_old_python(course)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{newer} got {source} lab --no-browser\n"

    refused = run_as_old_python(course, PYTHON="python3.8")
    assert refused.returncode == 1, "the reader's own choice is not overruled"
    assert "this is Python 3.8.18" in refused.stderr

    own = Path(course.bootstrap.PYTHON)
    write_program(own, says)
    done = run_as_old_python(course)
    assert done.stdout == f"{own} got {source} lab --no-browser\n", "its own Python comes first"


# --- two at once ------------------------------------------------------------------------------

HOLDER = """
with bootstrap.only_one_set_up():
    print("in", flush=True)
    if len(sys.argv) > 2:  # an installer that runs until somebody writes to this pipe
        bootstrap.run([sys.executable, "-c", "import sys; open(sys.argv[1]).read()", sys.argv[2]])
"""


@POSIX
def test_a_second_set_up_waits_for_the_first_even_if_that_is_killed(course: Course) -> None:
    pipe = str(course.root / "pipe")
    os.mkfifo(pipe)
    program = [sys.executable, "-c", LOAD + HOLDER, str(course.root / "support" / "bootstrap.py")]
    first = subprocess.Popen([*program, pipe], stdout=subprocess.PIPE, text=True)
    assert first.stdout and first.stdout.readline() == "in\n"
    end_of_installer = os.open(pipe, os.O_WRONLY)  # returns when the installer reads: it runs
    second = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    try:
        assert second.stdout and second.stdout.readline().startswith("Another set-up is running")
        first.send_signal(signal.SIGKILL)
        first.wait()
        with open(course.bootstrap.GUARD, "a") as guard:
            assert not course.bootstrap.try_to_lock(guard), "its installer still writes"
        os.close(end_of_installer)
        assert second.stdout.readline() == "in\n"
        assert second.wait() == 0
    finally:
        second.kill()
        second.wait()
        second.stdout.close()
        first.stdout.close()
