"""Set up the course in `.venv`, then run one of its commands. Standard library only.

    python support/bootstrap.py COMMAND [arguments]

Commands: setup, lab, test, notebook CHAPTER, reset CHAPTER, bench, lock.

Every command first makes `.venv` ready. When it already is, that takes some milliseconds and no
network. A stamp is written last, so a set-up that was cut short is seen and done again.

An old Python must be able to read this file and say that it is too old. So its syntax is that of
Python 2.7: no f-strings, and types in comments.
"""

from __future__ import print_function

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

MINIMUM = (3, 11)
# Tried in this order when `python3` is too old. 3.15 is last: one dependency is built from source.
NEWER_PYTHONS = ["python3.14", "python3.13", "python3.12", "python3.11", "python3.15"]
FULL_SET_UP_MB = 800  # the environment takes 750
UPDATE_MB = 200

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PROGRAMS = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(PROGRAMS, "python.exe" if os.name == "nt" else "python")
UV = os.path.join(PROGRAMS, "uv.exe" if os.name == "nt" else "uv")
STAMP = os.path.join(VENV, "complete.json")
GUARD = os.path.join(VENV, "one-set-up-at-a-time")
REQUIREMENTS = os.path.join(ROOT, "requirements.lock")
# A change in one of these brings the environment up to date.
INPUTS = [REQUIREMENTS, os.path.join(ROOT, "pyproject.toml"), os.path.abspath(__file__)]

# What installers and system calls say, and what that means for the reader. The first match counts.
NO_NETWORK = "The packages cannot be downloaded: connect to the network or check the proxy"
MEANINGS = [
    ("A disk is full: make room on the one that the log names",
     ["no space left", "os error 28", "not enough space", "disk quota"]),
    ("This Python cannot make environments: install its venv package (on Debian and Ubuntu: apt"
     " install python{}.{}-venv)".format(*sys.version_info[:2]),
     ["ensurepip is not available", "no module named venv", "no module named ensurepip"]),
    ("A file cannot be written: look in the log which one, change its permissions or close what"
     " uses it",
     ["permission denied", "read-only file system", "access is denied"]),
    (NO_NETWORK,
     ["name resolution", "name or service not known", "nodename nor servname", "getaddrinfo failed",
      "dns error", "failed to establish a new connection", "connection refused", "timed out",
      "network is unreachable", "connection broken", "connection reset", "are you offline",
      "error sending request", "failed to fetch", "max retries exceeded", "connect to proxy"]),
    ("The set-up has failed: read the log", [""]),
]  # fmt: skip


class SetupError(Exception):
    """A set-up that cannot go on. Its text is one sentence that says what to do."""


class StepFailed(Exception):
    """A program that the set-up ran has failed. Its text is what the program printed."""


def meaning(output):
    # type: (str) -> str
    """What to do about a failed installer or system call, from what it said."""
    text = " ".join(output.split()).lower()
    return next(advice for advice, signs in MEANINGS if any(sign in text for sign in signs))


def explain(output):
    # type: (str) -> SetupError
    """The error to show for a failure. The full output goes to a file, which the error names."""
    log = "no file could be written"
    for folder in (VENV, tempfile.gettempdir()):
        path = os.path.join(folder, "async-python-measured-setup.log")
        with contextlib.suppress(OSError):
            with open(path, "w", encoding="utf-8") as handle:
                handle.write(output)
            log = path
            break
    advice = "{}, and run the same command again (full log: {}).".format(meaning(output), log)
    return SetupError(advice)


# --- what is there, and what is missing --------------------------------------------------------


def version_text(version):
    # type: (tuple[int, ...]) -> str
    """`3.11.7` from a version tuple."""
    return ".".join(str(part) for part in version[:3])


def find_newer_python():
    # type: () -> str
    """A Python that is new enough: that of `.venv`, or one on PATH. Raises SetupError if none."""
    test = "import sys, venv; sys.exit(sys.version_info[:2] < {!r})".format(MINIMUM)
    # A Python that the reader named is not overruled.
    for name in [] if os.environ.get("PYTHON") else [PYTHON] + NEWER_PYTHONS:
        with open(os.devnull, "w") as devnull:
            try:
                if subprocess.call([name, "-c", test], stdout=devnull, stderr=devnull) == 0:
                    return name
            except OSError:
                continue
    raise SetupError(
        "Python {} or newer is needed, and this is Python {}: install a newer one, or name the"
        " one to use, as in `make lab PYTHON=/path/to/python3.12`.".format(
            version_text(MINIMUM), version_text(sys.version_info)
        )
    )


def fingerprint():
    # type: () -> dict[str, str]
    """What an environment made now would be made from: the input files, the folder, the Python."""
    digest = hashlib.sha256()
    for path in INPUTS:
        if not os.path.isfile(path):
            raise SetupError(
                "{} is missing: restore it with git, or fetch the course again.".format(path)
            )
        with open(path, "rb") as handle:
            digest.update(handle.read())
    python = "{}.{}".format(*sys.version_info[:2])
    return {"inputs": digest.hexdigest(), "folder": ROOT, "python": python}


def state_of_venv():
    # type: () -> str
    """`ready`, `outdated` (a sync is enough) or `missing` (absent, half-made, moved)."""
    wanted = fingerprint()
    try:
        with open(STAMP, encoding="utf-8") as handle:
            found = dict(json.load(handle))
    except (OSError, ValueError, TypeError):
        return "missing"
    # A healthy environment keeps its Python, whichever one runs this file, unless told otherwise.
    other_python = os.environ.get("PYTHON") and found.get("python") != wanted["python"]
    moved = found.get("folder") != ROOT
    if other_python or moved or not os.path.exists(PYTHON):
        return "missing"
    return "ready" if found.get("inputs") == wanted["inputs"] else "outdated"


def try_to_lock(handle):
    # type: (io.IOBase) -> bool
    """Take the guard file for this process and its children. False when another has it."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            # Inherited on purpose: an installer that outlives a killed set-up holds the guard.
            os.set_inheritable(handle.fileno(), True)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # some network drives have no locks: go on without
    return True


@contextlib.contextmanager
def only_one_set_up():
    """Hold the guard: of two set-ups at once, the second waits for the first."""
    is_ours = os.path.exists(GUARD) or os.path.exists(os.path.join(VENV, "pyvenv.cfg"))
    if os.path.isfile(VENV) or (os.path.isdir(VENV) and os.listdir(VENV) and not is_ours):
        advice = "{} is not a virtual environment: move it away and run the same command again."
        raise SetupError(advice.format(VENV))
    os.makedirs(VENV, exist_ok=True)
    with open(GUARD, "a") as handle:
        if not try_to_lock(handle):
            print("Another set-up is running in this folder: waiting for it.", flush=True)
            while not try_to_lock(handle):
                time.sleep(0.2)
        yield


# --- the steps --------------------------------------------------------------------------------


def say(text):
    # type: (str) -> None
    """One line of progress, shown at once."""
    print(text, flush=True)


def run(command):
    # type: (list[str]) -> None
    """Run an installer quietly. Raises StepFailed, with what it printed, when it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, close_fds=False, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        raise StepFailed(" ".join(command) + "\n" + done.stdout.decode("utf-8", "replace"))


def make_empty_venv():
    # type: () -> None
    """Delete everything in `.venv` but the guard, and make a new environment there."""
    for name in os.listdir(VENV):
        path = os.path.join(VENV, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif path != GUARD:
            os.remove(path)
    # Not sys.executable: that can be the very `.venv/bin/python` that was just deleted.
    run([sys._base_executable, "-m", "venv", VENV])


def install_uv():
    # type: () -> bool
    """Install the locked uv with pip. False where uv has no wheel, so that pip must do."""
    wanted = os.path.join(VENV, "uv.txt")
    with open(REQUIREMENTS, encoding="utf-8") as source, open(wanted, "w") as target:
        inside = False
        for line in source:
            inside = line.startswith("uv==") or (inside and line.startswith(" "))
            target.write(line if inside else "")
    pip = [PYTHON, "-m", "pip", "install", "--no-input", "--retries", "2"]
    try:
        run(pip + ["--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", wanted])
    except StepFailed as failure:
        if "No matching distribution" in str(failure) and meaning(str(failure)) != NO_NETWORK:
            return False
        raise
    return True


def install_everything(has_uv):
    # type: (bool) -> None
    """Install what requirements.lock lists, then this project itself, in editable form."""
    project = ["--no-deps", "--no-build-isolation", "--editable", ROOT]
    say("[3/4] installing the packages of requirements.lock")
    if has_uv:
        sync = [UV, "pip", "sync", "--python", PYTHON, "--require-hashes", REQUIREMENTS]
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            # Python will not keep what it compiles: every kernel and server would compile its libraries again.
            sync.append("--compile-bytecode")
        run(sync)
    else:
        pip = [PYTHON, "-m", "pip", "install", "--no-input"]
        run(pip + ["--require-hashes", "-r", REQUIREMENTS])
    say("[4/4] installing the course's helper package, support")
    run(([UV, "pip", "install", "--python", PYTHON] if has_uv else pip) + project)


def write_stamp():
    # type: () -> None
    """Say that the environment is whole. Renamed into place, so it is never half-written."""
    ask = "import sys; print('{}.{}'.format(*sys.version_info))"
    python = subprocess.check_output([PYTHON, "-c", ask]).decode().strip()
    with open(STAMP + ".new", "w", encoding="utf-8") as handle:
        json.dump(dict(fingerprint(), python=python), handle)
    os.replace(STAMP + ".new", STAMP)


def set_up():
    # type: () -> None
    """Make `.venv` ready. Raises SetupError with one sentence when that is not possible."""
    if state_of_venv() == "ready":
        return
    started = time.monotonic()
    try:
        with only_one_set_up():
            state = state_of_venv()
            if state == "ready":  # made by the set-up that this one waited for
                return
            if os.path.exists(STAMP):
                os.remove(STAMP)
            needed_mb = UPDATE_MB if state == "outdated" else FULL_SET_UP_MB
            free_mb = shutil.disk_usage(ROOT).free // 10**6
            if free_mb < needed_mb:
                raise SetupError(
                    "The disk is too full: the set-up needs {} MB and {} has {} MB free, so make"
                    " room and run the same command again.".format(needed_mb, ROOT, free_mb)
                )
            say("Setting up the course in .venv. The first time takes a minute or two.")
            if state == "missing":
                say("[1/4] making an environment for Python " + version_text(sys.version_info))
                make_empty_venv()
            say("[2/4] installing the installer, uv")
            install_everything(install_uv())
            write_stamp()
    except StepFailed as failure:
        raise explain(str(failure))
    except OSError as problem:
        raise explain("{}: {}".format(type(problem).__name__, problem))
    say("Set up in {:.0f} s.".format(time.monotonic() - started))


# --- the commands -----------------------------------------------------------------------------


def command_line(name, arguments):
    # type: (str, list[str]) -> list[str]
    """The program that a command stands for. Raises SetupError for a command that is wrong."""
    if name in ("notebook", "reset") and len(arguments) != 1:
        raise SetupError(
            "`{0}` needs one chapter, as in `make {0} CHAPTER=01_event_loop`.".format(name)
        )
    chapter = arguments[0] if arguments else ""
    programs = {
        "setup": [],
        "lab": [PYTHON, "-m", "support.workspace", "lab"] + arguments,
        # The plugin also runs the notebooks. It must be named here, not in a settings file.
        "test": [
            PYTHON, "-m", "pytest", "-p", "tests.tools.strict_nbval", "-n", "2", "--dist", "loadscope",
        ] + arguments,
        "notebook": [PYTHON, "-m", "tests.tools.execute", "notebooks/" + chapter + ".ipynb"],
        "reset": [PYTHON, "-m", "support.workspace", "reset", chapter],
        "bench": [PYTHON, "-m", "tests.bench_recorder"] + arguments,
        "lock": [
            UV, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header",
            "--no-annotate", "--no-emit-index-url", "--output-file", "requirements.lock",
            "pyproject.toml",
        ] + arguments,
    }  # fmt: skip
    if name not in programs:
        raise SetupError(
            'There is no command "{}": use one of {}.'.format(name, ", ".join(programs))
        )
    return programs[name]


def hand_over(command, environment=None):
    # type: (list[str], dict[str, str] | None) -> int
    """Run `command` in place of this process, and end with its exit code.

    Windows cannot replace a process: there the command runs as a child, and its exit code is
    returned. Raises OSError when the program cannot be started.
    """
    sys.stdout.flush()
    if os.name != "nt":
        os.execvpe(command[0], command, environment or os.environ)
    child = subprocess.Popen(command, env=environment)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            pass  # Ctrl-C reaches the child as well, and the child decides


def main(arguments):
    # type: (list[str]) -> int
    """Set up if needed, then run the command. Returns the exit code."""
    try:
        command = command_line((arguments or ["setup"])[0], arguments[1:])
        if sys.version_info[:2] < MINIMUM:
            return hand_over([find_newer_python(), os.path.abspath(__file__)] + arguments)
        set_up()
    except SetupError as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command starts the set-up again.", file=sys.stderr)
        return 130
    if not command:
        return 0
    os.chdir(ROOT)
    environment = dict(os.environ, VIRTUAL_ENV=VENV)
    environment.pop("PYTHONHOME", None)
    environment["PATH"] = os.pathsep.join([PROGRAMS, os.environ.get("PATH", os.defpath)])
    return hand_over(command, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
