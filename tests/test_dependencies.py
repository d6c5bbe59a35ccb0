"""One list of dependencies: pyproject.toml, requirements.lock and environment.yml agree."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.bootstrap import NO_NETWORK, meaning

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK_TEXT = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
DECLARED = [Requirement(text) for text in PYPROJECT["dependencies"]]


def locked() -> list[tuple[Requirement, int]]:
    """Each entry of the lock, and how many hashes it has."""
    entries = re.split(r"\n(?=\S)", LOCK_TEXT.replace("\\\n", " ").strip())
    return [
        (Requirement(entry.split(" --hash")[0]), entry.count("--hash=sha256:")) for entry in entries
    ]


def environments() -> dict[str, dict[str, str]]:
    """The marker values of every system and Python that the course supports."""
    systems = {
        "Linux": ("linux", "posix", ("x86_64", "aarch64")),
        "Darwin": ("darwin", "posix", ("x86_64", "arm64")),
        "Windows": ("win32", "nt", ("AMD64", "ARM64")),
    }
    return {
        f"{system} {machine} {python}": {
            "sys_platform": sys_platform,
            "platform_system": system,
            "platform_machine": machine,
            "os_name": os_name,
            "python_version": python,
            "python_full_version": f"{python}.9",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "extra": "",
        }
        for system, (sys_platform, os_name, machines) in systems.items()
        for machine in machines
        for python in ("3.11", "3.12", "3.13", "3.14", "3.15")
    }


def applies(marker: Marker | None, environment: dict[str, str]) -> bool:
    return marker is None or marker.evaluate(environment)


@pytest.mark.parametrize("name", environments())
def test_the_lock_pins_what_pyproject_asks_on_every_system(name: str) -> None:
    environment = environments()[name]
    pins: dict[str, str] = {}
    for entry, _ in locked():
        if applies(entry.marker, environment):
            project = canonicalize_name(entry.name)
            (pin,) = entry.specifier
            assert pin.operator == "==" and project not in pins, entry
            pins[project] = pin.version
    for wanted in DECLARED:
        if applies(wanted.marker, environment):
            version = pins.get(canonicalize_name(wanted.name))
            assert version, f"{wanted} is not in requirements.lock: run `make lock`"
            assert wanted.specifier.contains(version, prereleases=True), (wanted, version)


def test_every_pin_has_hashes_for_every_system() -> None:
    counts = {entry.name: hashes for entry, hashes in locked()}
    assert min(counts.values()) >= 1
    compiled = {"aiohttp": 40, "pyzmq": 20, "pydantic-core": 40, "psutil": 10}
    assert {name: counts[name] >= least for name, least in compiled.items()} == dict.fromkeys(
        compiled, True
    )


def test_the_lock_names_no_address_and_no_machine() -> None:
    assert not re.search(r"://|--index|--extra|--find-links|file:|#|(^|\s)/", LOCK_TEXT)


def test_environment_yml_is_python_pip_and_this_project() -> None:
    *conda, pip = ENVIRONMENT["dependencies"]
    assert ENVIRONMENT["name"] == PYPROJECT["name"]
    assert conda == [f"python {PYPROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-e ."]}


def test_the_set_up_installs_itself_from_the_same_list() -> None:
    """With what builds the project in the list, installing it needs no network."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    listed = [str(requirement) for requirement in DECLARED]
    assert {str(Requirement(text)) for text in build["requires"]} < set(listed)
    assert any(requirement.name == "uv" for requirement in DECLARED)


def imported_modules(path: Path) -> set[str]:
    """The top-level modules that a Python file or a notebook imports."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        text = "".join(TransformerManager().transform_cell(re.sub(r"^%%module .*", "", cell)) for cell in code)
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_every_import_is_in_the_list() -> None:
    """What the course imports itself must not hang on another package's dependencies."""
    declared = {canonicalize_name(requirement.name) for requirement in DECLARED}
    projects = importlib.metadata.packages_distributions()
    own = {"support", *(path.stem for path in [*ROOT.glob("*"), *ROOT.glob("tests/*")])}
    undeclared = {}
    for folder, pattern in [("support", "**/*.py"), ("tests", "**/*.py"), ("notebooks", "*.ipynb")]:
        for path in (ROOT / folder).glob(pattern):
            cells = set(re.findall(r"%%module +(\w+)", path.read_text(encoding="utf-8")))
            for module in imported_modules(path) - set(sys.stdlib_module_names) - own - cells:
                names = {canonicalize_name(name) for name in projects.get(module, [module])}
                if not names & declared:
                    undeclared.setdefault(module, []).append(str(path.relative_to(ROOT)))
    assert undeclared == {}


# --- for real ---------------------------------------------------------------------------------

SOLVE = """
import asyncio, json, os, sys
from rattler import Channel, Gateway, MatchSpec, solve

async def main():
    channel, cache, *specs = sys.argv[1:]
    found = await solve(
        [Channel(channel)], [MatchSpec(spec) for spec in specs], Gateway(cache_dir=cache),
        platforms=["linux-64", "noarch"],
    )
    return {record.name.normalized: str(record.version) for record in found}

try:
    print(json.dumps(asyncio.run(main())), flush=True)
except Exception as problem:
    print(json.dumps(f"{type(problem).__name__}: {problem}"), flush=True)
os._exit(0)  # py-rattler's threads can crash the interpreter while it shuts down
"""


def solve_for_conda(folder: Path, *pythons: str) -> object:
    """Solve environment.yml against a channel of stub packages in `folder`, with no network."""
    subdir = folder / "channel" / "noarch"
    subdir.mkdir(parents=True)
    stub = {"build": "0", "build_number": 0, "depends": [], "subdir": "noarch", "size": 1}
    packages = {
        f"{name}-{version}-0.conda": stub
        | {"name": name, "version": version, "md5": "0" * 32, "sha256": "0" * 64}
        for name, version in [*(("python", version) for version in pythons), ("pip", "26.1")]
    }
    index = {"info": {"subdir": "noarch"}, "packages": {}, "packages.conda": packages}
    (subdir / "repodata.json").write_text(json.dumps(index))
    specs = [spec for spec in ENVIRONMENT["dependencies"] if isinstance(spec, str)]
    channel = (folder / "channel").as_uri()
    command = [sys.executable, "-c", SOLVE, channel, str(folder / "cache"), *specs]
    return json.loads(subprocess.check_output(command, text=True))


def test_conda_can_solve_environment_yml(tmp_path: Path) -> None:
    newest = solve_for_conda(tmp_path / "new", "3.10.9", "3.11.4", "3.13.1")
    assert newest == {"python": "3.13.1", "pip": "26.1"}
    refused = solve_for_conda(tmp_path / "old", "3.10.9")
    assert str(refused).startswith("SolverError") and "python >=3.11" in str(refused)


IMPORTS = ["aiohttp", "fastapi", "httpx", "jupyterlab", "matplotlib", "nbval", "nest_asyncio"]


@pytest.mark.timeout(300)  # a cold cache has to download every package once
def test_a_fresh_environment_gets_everything_from_environment_yml(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv has no program for this system")
    course = tmp_path / "course"
    shutil.copytree(
        ROOT / "support", course / "support", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "LICENSE", "requirements.lock"):
        shutil.copy(ROOT / name, course)
    subprocess.run(
        [uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env"], check=True
    )
    python = next(path for path in tmp_path.glob("env/*/python*") if path.stem == "python")
    (asked,) = ENVIRONMENT["dependencies"][-1]["pip"]
    install = [uv, "pip", "install", "--no-progress", "--python", str(python), *asked.split()]
    install += ["--constraints", "requirements.lock"]
    # The cache first: that is quick, and works without a network.
    for options in (["--offline"], []):
        done = subprocess.run([*install, *options], cwd=course, capture_output=True, text=True)
        if done.returncode == 0:
            break
    if done.returncode != 0 and meaning(done.stderr) == NO_NETWORK:
        pytest.skip("no network, and the package cache lacks something")
    assert done.returncode == 0, done.stderr

    ask = (
        "import importlib, importlib.metadata as metadata, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "import support\n"
        "found = {d.name: d.version for d in metadata.distributions()}\n"
        "print(json.dumps([support.__file__, found]))"
    )
    answer = subprocess.check_output([python, "-c", ask, *IMPORTS], cwd=tmp_path, text=True)
    support_file, installed = json.loads(answer)
    assert Path(support_file).parent == course / "support", "editable: a change counts at once"
    installed = {canonicalize_name(name): version for name, version in installed.items()}
    assert installed.pop(PYPROJECT["name"]) == PYPROJECT["version"]
    expected = {
        canonicalize_name(entry.name): next(iter(entry.specifier)).version
        for entry, _ in locked()
        if entry.marker is None or entry.marker.evaluate()
    }
    assert installed == expected
