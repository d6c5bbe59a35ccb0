"""JupyterLab on a copy of the notebooks, and what a reader does in it with a browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil

from support import workspace
from tests.tools.isolation import environment

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

BROWSER_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
]  # fmt: skip
LAB_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # Every cell is in the page, also those that are out of sight.
    "notebook-extension/tracker": {"windowingMode": "none"},
}
START_SECONDS = 60
PAGE_PIXELS = {"width": 1300, "height": 1400}
SHOTS = 40


def find_browser() -> str | None:
    """The path of a Chromium: the environment variable CHROMIUM, or the usual names."""
    names = ["chromium", "chromium-browser", "google-chrome", "chrome"]
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, names)]
    return next((path for path in found if path), None)


@contextlib.contextmanager
def running_lab(notebooks: Path, folder: Path) -> Iterator[str]:
    """JupyterLab on copies of a folder of notebooks; gives its address. Each is there
    twice: under its name, not yet run, and in the folder `stored` as it is committed.

    Raises RuntimeError, with the lab's log, if it does not start in `START_SECONDS`.
    """
    work, env = folder / "work", environment(folder / "private")
    shutil.copytree(notebooks, work)
    shutil.copytree(notebooks, work / "stored")
    for path in work.glob("*.ipynb"):
        nbformat.write(_not_yet_run(path), path)
    for name, values in LAB_SETTINGS.items():
        file = Path(env["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", f"{name}.jupyterlab-settings")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--LabApp.app_settings_dir={workspace.LAB_SETTINGS}"]
    command += ["--ip=127.0.0.1", "--port=0", "--IdentityProvider.token=", f"--notebook-dir={work}"]
    log = folder / "lab.log"
    with log.open("w") as sink:
        lab = subprocess.Popen(command, env=env, cwd=work, stdout=sink, stderr=subprocess.STDOUT)
    try:
        yield _address(lab, Path(env["JUPYTER_RUNTIME_DIR"]), log)
    finally:
        family = psutil.Process(lab.pid).children(recursive=True) if lab.poll() is None else []
        lab.terminate()
        lab.wait(timeout=30)
        for left in psutil.wait_procs(family, timeout=10)[1]:
            left.kill()


def _not_yet_run(path: Path) -> Any:
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nb


def _address(lab: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    """The address that the lab writes down once it listens on a free port."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and lab.poll() is None:
        # The lab says that it runs before its note is written to the end.
        with contextlib.suppress(ValueError):
            if any("is running at" in line for line in log.read_text().splitlines()):
                (server,) = runtime.glob("jpserver-*.json")
                return json.loads(server.read_text())["url"]
        time.sleep(0.05)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}")


class Reader:
    """Someone with one notebook open in the browser."""

    def __init__(self, page: Page, lab: str, notebook: str) -> None:
        self.page = page
        self.outside: list[str] = []
        page.set_viewport_size(PAGE_PIXELS)
        page.on("request", self._note_request)
        self._lab = lab
        # A workspace of its own for each page: no other notebook is open in it.
        space = re.sub(r"\W", "-", notebook)
        page.goto(f"{lab}lab/workspaces/{space}/tree/{notebook}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)

    def _note_request(self, request: Any) -> None:
        local = (self._lab, self._lab.replace("http", "ws", 1), "data:", "blob:")
        if not request.url.startswith(local):
            self.outside.append(request.url)

    def cell(self, position: int) -> Locator:
        """A cell by its position in the notebook, from 0."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(position)

    def run_all(self, cells: int, errors: int, seconds: float) -> None:
        """Press "restart and run all", and wait until all code cells have run, or one
        error more than `errors` is shown. Raises playwright's TimeoutError."""
        self._restart_and_run()
        self.page.wait_for_function(
            """([cells, errors]) => {
                const code = [...document.querySelectorAll('.jp-CodeCell')];
                // The number of a cell with folded code is not in the page.
                const numbers = code.map(cell => cell.querySelector('.jp-InputArea-prompt'));
                const waiting = numbers.filter(one => one && !/\\[\\d+\\]/.test(one.innerText));
                const failed = document.querySelectorAll('[data-mime-type$="jupyter.stderr"]');
                return failed.length > errors || (code.length == cells && !waiting.length);
            }""",
            arg=[cells, errors],
            timeout=seconds * 1000,
        )

    def _restart_and_run(self, presses: int = 3) -> None:
        """Press the button until a cell has run: on a busy machine the lab may restart the kernel
        and forget the rest, or its new kernel never starts, and then a reader presses again."""
        from playwright.sync_api import TimeoutError as NothingHappened

        for _ in range(presses):
            with contextlib.suppress(NothingHappened):
                # Pressed while the first kernel still starts, the button restarts it, and runs nothing.
                idle = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
                self.page.wait_for_selector(idle, timeout=40_000)
            self.page.click('[data-command="notebook:restart-run-all"]')
            self.page.click(".jp-Dialog .jp-mod-accept")
            with contextlib.suppress(NothingHappened):
                self.page.wait_for_function(
                    """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].some(
                        prompt => /\\[\\d+\\]/.test(prompt.innerText))""",
                    timeout=30_000,
                )
                return
        raise RuntimeError(f"No cell ran after {presses} times restart and run all.")

    def errors(self) -> list[str]:
        """What is shown in red: JupyterLab draws tracebacks as it draws stderr."""
        return self.page.locator('[data-mime-type$="jupyter.stderr"]').all_inner_texts()

    def figures(self) -> list[tuple[str, int]]:
        """The words behind each figure shown in an output, and its width in pixels."""
        return [
            tuple(one)
            for one in self.page.evaluate(
                """() => [...document.querySelectorAll('.jp-OutputArea img')].map(
                    image => {
                        const after = image.closest('.jp-OutputArea-child').nextElementSibling;
                        const words = after && after.querySelector('details');
                        return [words ? words.textContent.trim() : '', image.naturalWidth];
                    })"""
            )
        ]

    def wait_for_figures(self, count: int) -> None:
        """Return once `count` figures are loaded. Raises playwright's TimeoutError."""
        self.page.wait_for_function(
            """count => [...document.querySelectorAll('.jp-OutputArea img')].filter(
                image => image.complete).length >= count""",
            arg=count,
        )

    def source(self, position: int) -> str:
        """The code that stands in a cell's editor."""
        lines = self.cell(position).locator(".cm-line").all_inner_texts()
        return "\n".join(line.rstrip("\n") for line in lines)

    def text(self, position: int) -> str:
        """What a code cell shows."""
        return "\n".join(self.cell(position).locator(".jp-OutputArea-output").all_inner_texts())

    def move(self, position: int) -> None:
        """Press a key on the first slider of a cell, and wait for its figure to change."""
        cell = self.cell(position)
        picture = cell.locator(".jp-OutputArea img").last
        before = picture.get_attribute("src")
        cell.locator(".noUi-handle").first.focus()
        self.page.keyboard.press("ArrowRight")
        self.page.wait_for_function(
            """([position, before]) => {
                const cell = document.querySelectorAll('.jp-Notebook .jp-Cell')[position];
                const images = cell.querySelectorAll('.jp-OutputArea img');
                return images.length && images[images.length - 1].src !== before;
            }""",
            arg=[position, before],
            timeout=30_000,
        )

    def write(self, position: int, source: str) -> None:
        """Replace the code of a cell by typing."""
        self.cell(position).locator(".cm-content").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.press("Delete")
        for number, line in enumerate(source.splitlines()):
            if number:
                self.page.keyboard.press("Enter")
                # The editor indents by itself, and the line brings its own spaces.
                self.page.keyboard.press("Shift+Home")
                self.page.keyboard.press("Delete")
            self.page.keyboard.type(line)

    def run(self, position: int, seconds: float = 60) -> None:
        """Run one cell, and wait until it has a new number."""
        cell = self.cell(position)
        prompt = cell.locator(".jp-InputArea-prompt").first
        before = prompt.inner_text()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_function(
            """([position, before]) => {
                const cell = document.querySelectorAll('.jp-Notebook .jp-Cell')[position];
                const text = cell.querySelector('.jp-InputArea-prompt').innerText;
                return /\\[\\d+\\]/.test(text) && text !== before;
            }""",
            arg=[position, before],
            timeout=seconds * 1000,
        )

    def photograph(self, folder: Path, name: str) -> None:
        """Store what a reader sees, screen by screen, for people to judge."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{name}-*.png"):
            old.unlink()
        self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 0)")
        for number in range(1, SHOTS + 1):
            self.page.screenshot(path=folder / f"{name}-{number:02}.png")
            more = self.page.evaluate(
                """() => {
                    const panel = document.querySelector('.jp-WindowedPanel-outer');
                    const before = panel.scrollTop;
                    panel.scrollBy(0, panel.clientHeight - 60);
                    return panel.scrollTop > before;
                }"""
            )
            if not more:
                return
