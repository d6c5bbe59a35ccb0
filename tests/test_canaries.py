"""Each canary breaks one rule, and the gate of that rule must say so."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import nbformat
import pytest

from tests.tools import rules
from tests.tools.canaries import CANARIES, FOLDER, build
from tests.tools.execute import ChapterError, Runner
from tests.tools.isolation import ROOT

HUNG_AFTER_SECONDS = 10  # long enough for a setup cell on a busy machine


def of_gate(*gates: str) -> list[str]:
    return [name for name, canary in CANARIES.items() if canary.gate in gates]


@pytest.fixture(scope="module")
def nbval_failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What strict nbval says of each canary that it must judge, in one run."""
    report = tmp_path_factory.mktemp("canaries") / "report.xml"
    # Kernels start in parallel: the healthy canary shows that this alone breaks nothing.
    command = [sys.executable, "-m", "pytest", "-p", "tests.tools.strict_nbval", "--color=no"]
    command += ["-n", "2", "--dist", "loadscope", "-p", "no:cacheprovider", "-q"]
    command += [f"--nbval-cell-timeout={HUNG_AFTER_SECONDS}", f"--junitxml={report}"]
    command += [str(FOLDER / f"{name}.ipynb") for name in of_gate("nbval", "none")]
    outside = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
    run = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True)
    assert report.exists(), run.stdout + run.stderr
    failures: dict[str, list[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        name = case.get("classname", "").removesuffix(".ipynb").split(".")[-1]
        found = [part.text or "" for part in case if part.tag in ("failure", "error")]
        failures.setdefault(name, []).extend(found)
    return failures


def test_stored_as_described() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(CANARIES)
    for name in CANARIES:
        stored = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        assert stored == build(name), f"run `python -m tests.tools.canaries`: {name} is stale"


@pytest.mark.parametrize("name", of_gate("nbval"))
def test_nbval_stops(name: str, nbval_failures: dict[str, list[str]]) -> None:
    found = nbval_failures[name]
    assert len(found) == 1, found
    assert CANARIES[name].reason in found[0]


@pytest.mark.parametrize("name", of_gate("rules"))
def test_rules_stop(name: str) -> None:
    found = rules.violations(FOLDER / f"{name}.ipynb", rules.CELL_RULES)
    assert len(found) == 1, found
    assert CANARIES[name].reason in found[0]


@pytest.mark.parametrize("name", [*of_gate("twice"), "silent_exception_group"])
def test_second_run_stops(name: str) -> None:
    nb = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    reason = CANARIES[name].reason if name in of_gate("twice") else "raises ExceptionGroup: two"
    with pytest.raises(ChapterError, match=re.escape(reason)):
        asyncio.run(Runner(nb, FOLDER).run(passes=2))


def test_the_healthy_one_passes_every_gate(nbval_failures: dict[str, list[str]]) -> None:
    assert nbval_failures["healthy"] == []
    assert rules.violations(FOLDER / "healthy.ipynb", rules.CELL_RULES) == []
    nb = nbformat.read(FOLDER / "healthy.ipynb", as_version=4)
    asyncio.run(Runner(nb, FOLDER).run(passes=2))
