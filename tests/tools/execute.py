"""Execute a chapter from a fresh kernel, and store it in the one form that is committed.

    python -m tests.tools.execute notebooks/01_event_loop.ipynb
    python -m tests.tools.execute notebooks/01_event_loop.ipynb --from chapter.py
    python -m tests.tools.execute notebooks/01_event_loop.ipynb --check
    python -m tests.tools.execute notebooks/11_your_numbers.ipynb --progress FOLDER

`--from` takes the cells from a script in percent format; a cell that did not change
keeps its id. `--check` writes nothing: it runs all cells twice in one kernel, and
compares what they print. `--progress` names a folder in which what the chapters measure is
kept from run to run: chapter 11 draws what those before it left there. A cell that raises without the tag raises-exception, writes
to stderr, or prints after its end stops the run with a sentence that names it.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import difflib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete, CellExecutionError, CellTimeoutError
from nbclient.output_widget import OutputWidget
from nbformat import NotebookNode

from tests.tools.isolation import NOTEBOOKS, ROOT, environment, listen_on_files
from tests.tools.pictures import write_pictures
from tests.tools.rules import numbered, tags, violations

CELL_SECONDS = 60
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PICTURE = re.compile(r"data:image/\w+;base64,[A-Za-z0-9+/=\s]+")
# Folders of the author's machine, up to where every machine has the same names.
MACHINE_PATH = re.compile(
    r"(?:~|/|[A-Z]:\\)[^\s:'\"]*?[/\\](?:site-packages|python3\.\d+)[/\\]|" + re.escape(str(ROOT) + os.sep)
)


class ChapterError(Exception):
    """A chapter that does not run as its rules ask. The text names the cell."""


class HeldOutputs(OutputWidget):
    """Keeps what an Output widget shows, without telling the kernel.

    nbclient tells it over the channel on which it waits for the reply of the cell, and
    then, on a busy machine, sleeps through that reply until the time limit.
    """

    def sync_state(self) -> None:
        pass


class Runner(NotebookClient):
    """Runs the cells of one notebook, and notices what nbclient lets pass."""

    def __init__(
        self, nb: NotebookNode, folder: Path, seconds: float = CELL_SECONDS, progress: Path | None = None
    ) -> None:
        super().__init__(
            nb,
            timeout=seconds,
            kernel_name="python3",
            record_timing=False,
            iopub_timeout=30,
            raise_on_iopub_timeout=True,
            resources={"metadata": {"path": str(folder)}},
        )
        self.widget_registry = {"@jupyter-widgets/output": {"OutputModel": HeldOutputs}}
        self.progress = progress
        self.late: list[str] = []
        self._names: dict[str, str] = {}
        self._cell_names = {id(cell): name for name, cell in numbered(nb)}

    def create_kernel_manager(self) -> Any:
        manager = super().create_kernel_manager()
        listen_on_files(manager)
        return manager

    async def _async_poll_output_msg(self, parent: str, cell: NotebookNode, index: int) -> None:
        # As in nbclient, but output of an earlier cell is noted, and not dropped.
        self._names[parent] = self._cell_names[id(cell)]
        while True:
            msg = await self.kc.iopub_channel.get_msg(timeout=None)
            sender = msg["parent_header"].get("msg_id")
            if sender == parent:
                try:
                    self.process_message(msg, cell, index)
                except CellExecutionComplete:
                    return
            elif sender in self._names and msg["msg_type"] in (
                "stream", "display_data", "execute_result", "error",
            ):  # fmt: skip
                self.late.append(f"{self._names[sender]} prints after its end: await its tasks.")

    async def run(self, passes: int = 1) -> None:
        """Run all cells, `passes` times in the same kernel.

        Raises ChapterError for a cell that raises, hangs, writes to stderr or prints
        late, and for a later pass whose texts differ from the first.
        """
        with tempfile.TemporaryDirectory() as scratch:
            env = environment(Path(scratch))
            if self.progress:
                self.progress.mkdir(parents=True, exist_ok=True)
                env["COURSE_PROGRESS"] = str(self.progress.resolve())
            async with self.async_setup_kernel(env=env, stderr=subprocess.DEVNULL):
                first: list[Any] = []
                for number in range(1, passes + 1):
                    await self._run_all()
                    shown = [compared(cell) for _, cell in numbered(self.nb)]
                    first = first or copy.deepcopy(shown)
                    for (name, _), before, now in zip(numbered(self.nb), first, shown, strict=True):
                        if before != now:
                            raise ChapterError(
                                f"{name} shows something else in run {number} of the same "
                                f"kernel:\n{_difference(before, now)}"
                            )

    async def _run_all(self) -> None:
        for index, cell in enumerate(self.nb.cells):
            if cell.cell_type != "code":
                continue
            name = self._cell_names[id(cell)]
            try:
                await self.async_execute_cell(cell, index)
            except CellTimeoutError:
                raise ChapterError(f"{name} runs for more than {self.timeout:g} s.") from None
            except CellExecutionError as error:
                raise ChapterError(f"{name} raises {error.ename}: {error.evalue}") from None
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    raise ChapterError(f"{name} writes to stderr: {output.text.strip()[:500]}")
        if self.late:
            raise ChapterError(self.late[0])


def compared(cell: NotebookNode) -> list[tuple[str, str]]:
    """The texts of a cell that must be the same in each run, in order, by kind."""
    if "nbval-ignore-output" in tags(cell):
        return []
    found: list[tuple[str, str]] = []
    for output in cell.outputs:
        if output.output_type == "error":
            found.append(("error", f"{output.ename}: {output.evalue}"))
        elif output.output_type == "stream" and found and found[-1][0] == output.name:
            found[-1] = (output.name, found[-1][1] + output.text)
        elif output.output_type == "stream":
            found.append((output.name, output.text))
        for kind, text in output.get("data", {}).items():
            if kind.startswith("text/"):
                found.append((kind, PICTURE.sub("(picture)", text)))
    return found


def _difference(before: list[tuple[str, str]], now: list[tuple[str, str]]) -> str:
    lines = [[line for _, text in shown for line in text.splitlines()] for shown in (before, now)]
    return "\n".join(difflib.unified_diff(*lines, "first", "now", lineterm="", n=1))


# --- The form that is committed --------------------------------------------------------


def normalise(nb: NotebookNode, widgets: NotebookClient | None = None) -> None:
    """Leave in the notebook only what is the same after each execution, pictures aside."""
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = NotebookNode(
        kernelspec={
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        language_info={"name": "python"},
    )
    for cell in nb.cells:
        kept = {key: cell.metadata[key] for key in ("tags", "jupyter") if cell.metadata.get(key)}
        kept.get("jupyter", {}).pop("outputs_hidden", None)
        cell.metadata = NotebookNode(kept)
        if cell.cell_type == "code":
            cell.outputs = list(_merged(_without_widgets(cell.outputs, widgets)))
    for count, (_, cell) in enumerate(numbered(nb), start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            if "traceback" in output:
                output.traceback = [MACHINE_PATH.sub("", part) for part in output.traceback]
    _give_ids(nb)


def _merged(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    """Prints that follow each other are one output, however the kernel sent them."""
    last = None
    for output in outputs:
        if last is not None and last.get("name") == output.get("name", ""):
            last.text += output.text
        else:
            yield output
            last = output if output.output_type == "stream" else None


def _without_widgets(outputs: list[NotebookNode], client: Any) -> list[NotebookNode]:
    """Replace each widget, dead without a kernel, by the outputs that it held."""
    found: list[NotebookNode] = []
    for output in outputs:
        view = output.get("data", {}).get(WIDGET_VIEW)
        if view is None:
            found.append(output)
        elif client is not None:
            found += _held_by(view["model_id"], client, set())
    return found


def _held_by(model: str, client: Any, seen: set[str]) -> list[NotebookNode]:
    state = client.widget_state.get(model, {})
    if model in seen:
        return []
    seen.add(model)
    if state.get("_model_name") == "OutputModel":
        return [nbformat.from_dict(output) for output in client.comm_objects[model].outputs]
    if state.get("_model_name") == "HTMLModel":
        return [nbformat.v4.new_output("display_data", {"text/html": state.get("value", "")})]
    children = re.findall(r"IPY_MODEL_(\w+)", str(state.get("children", "")))
    return [output for child in children for output in _held_by(child, client, seen)]


def _give_ids(nb: NotebookNode) -> None:
    """An id for each cell that has none of its own, made from what the cell says."""
    taken: set[str] = set()
    for cell in nb.cells:
        name = cell.get("id", "")
        if not name or name in taken:
            digest = hashlib.sha256(cell.source.encode()).hexdigest()
            name = next(digest[i : i + 8] for i in range(56) if digest[i : i + 8] not in taken)
        cell["id"] = name
        taken.add(name)


def cells_from_script(script: Path, old: NotebookNode | None) -> NotebookNode:
    """The notebook that a script in percent format describes. Cells that are the same
    as in `old`, or stand in the same place between two that are, keep their id."""
    import jupytext

    new = jupytext.read(script, fmt="py:percent")
    for cell in new.cells:
        cell.pop("id", None)
    before = old.cells if old is not None else []
    keys = [[(cell.cell_type, cell.source) for cell in cells] for cells in (before, new.cells)]
    matcher = difflib.SequenceMatcher(None, *keys, autojunk=False)
    for _, start, end, new_start, new_end in matcher.get_opcodes():
        for cell, same in zip(new.cells[new_start:new_end], before[start:end], strict=False):
            if cell.cell_type == same.cell_type and "id" in same:
                cell["id"] = same["id"]
    return new


def write(nb: NotebookNode, path: Path) -> None:
    """Write the notebook in one step: an interrupted run leaves the old one."""
    part = path.with_suffix(".part")
    part.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    part.replace(path)


def execute(
    path: Path, script: Path | None = None, seconds: float = CELL_SECONDS, progress: Path | None = None
) -> None:
    """Run `path`, its cells taken from `script` if there is one, and store the result.

    What the chapter measures is added to what the folder `progress` keeps, or forgotten.

    Raises ChapterError if a cell breaks a rule of running: the file is then unchanged.
    """
    old = nbformat.read(path, as_version=4) if path.exists() else None
    nb = cells_from_script(script, old) if script else old
    if nb is None:
        raise ChapterError(f"There is no notebook {path}: give its cells with --from.")
    runner = Runner(nb, path.parent, seconds, progress)
    asyncio.run(runner.run())
    normalise(nb, runner)
    nbformat.validate(nb)
    write(nb, path)


def check(path: Path, seconds: float = CELL_SECONDS) -> None:
    """Run all cells of `path` twice in one kernel. Raises ChapterError if one fails, or
    shows another text in the second run."""
    nb = nbformat.read(path, as_version=4)
    asyncio.run(Runner(nb, path.parent, seconds).run(passes=2))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.execute", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--from", dest="script", type=Path, help="a script in percent format")
    parser.add_argument("--check", action="store_true", help="run twice, write nothing")
    parser.add_argument("--progress", type=Path, help="a folder that keeps what chapters measure")
    parser.add_argument("--seconds", type=float, default=CELL_SECONDS, help="limit for a cell")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.check:
            check(chosen.notebook, chosen.seconds)
            print(f"{chosen.notebook}: two runs in one kernel show the same.")
            return 0
        execute(chosen.notebook, chosen.script, chosen.seconds, chosen.progress)
    except ChapterError as error:
        print(f"{chosen.notebook}: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.notebook}: executed and stored.")
    if chosen.notebook.resolve().parent == NOTEBOOKS:
        write_pictures()  # README shows one of them
    for sentence in violations(chosen.notebook):
        print(f"  rule broken: {sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
