"""The canaries: small notebooks, each of which breaks one rule. A gate that lets one
pass is broken. `python -m tests.tools.canaries` writes them into tests/canaries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from tests.tools.execute import normalise, write

FOLDER = Path(__file__).resolve().parents[1] / "canaries"

# A picture of one black pixel, in the PNG format.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABAQAAAAA3bvkkAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
OPEN = "from support.kernel import open_chapter\n\nopen_chapter('canary')"
OPENED = "Chapter canary is open. Its last cell closes it, and reports what was left running.\n"
SHOW = """from IPython.display import display
display({{"image/png": "{png}", "text/plain": "{alt}"}}, raw=True,
        metadata={{"image/png": {{"alt": "{alt}"}}}})
display({{"text/html": "<details><summary>The figure in words</summary>{alt}</details>", "text/plain": ""}}, raw=True)"""


@dataclass(frozen=True)
class Canary:
    """One notebook: its cells, the gate that must stop it, and the words of that gate."""

    gate: str  # "rules", "nbval" or "twice"; "none" for the healthy one
    reason: str
    cells: list[NotebookNode]


def code(source: str, printed: str = "", *outputs: Any, tags: list[str] | None = None) -> Any:
    """A code cell that has run."""
    stored = [new_output("stream", name="stdout", text=printed)] if printed else []
    return new_code_cell(source, outputs=[*stored, *outputs], metadata={"tags": tags or []})


def picture(alt: str, png: str = PIXEL) -> list[Any]:
    words = f"<details><summary>The figure in words</summary>{alt}</details>"
    return [
        new_output("display_data", {"image/png": png, "text/plain": alt}, metadata={"image/png": {"alt": alt}}),
        new_output("display_data", {"text/html": words, "text/plain": ""}),
    ]


def stripped(cell: Any) -> Any:
    cell.metadata["stripped"] = True
    return cell


CANARIES = {
    "healthy": Canary(
        "none",
        "",
        [
            code(OPEN, OPENED, tags=["setup"]),
            code("total = 1 + 2\nprint(total)", "3\n"),
            # The stored picture has other pixels: they are not compared.
            code(
                SHOW.format(alt="A dark pixel", png=PIXEL),
                "",
                *picture("A dark pixel", "iVBORw0KGgo="),
                tags=["figure"],
            ),
            code(
                "from support.kernel import close_chapter\n\nclose_chapter()",
                "tasks left: 0, threads left: 0, child processes left: 0, sockets left: 0\n",
                tags=["cleanup"],
            ),
        ],
    ),
    "exception_group": Canary(
        "nbval",
        "Cell execution caused an exception",
        [
            code(OPEN, OPENED, tags=["setup"]),
            code("error = ValueError('one')\nraise ExceptionGroup('two', [error])"),
        ],
    ),
    "silent_exception_group": Canary(
        "nbval",
        "sent no error message",
        [
            code(
                "error = ValueError('one')\nraise ExceptionGroup('two', [error])",
                tags=["nbval-ignore-output"],
            )
        ],
    ),
    "changed_output": Canary("nbval", "Cell outputs differ", [code("total = 1 + 2\nprint(total)", "4\n")]),
    "changed_alt_text": Canary(
        "nbval",
        "Cell outputs differ",
        [code(SHOW.format(alt="A dark pixel", png=PIXEL), "", *picture("A bright pixel"))],
    ),
    "hung_cell": Canary(
        "nbval",
        "Timeout of ",
        [
            code(OPEN, OPENED, tags=["setup"]),
            code("import asyncio\nawait asyncio.sleep(3600)"),
        ],
    ),
    "late_output": Canary(
        "nbval",
        "An earlier cell printed after its end",
        [
            code(
                "import asyncio\n"
                "async def talk():\n"
                "    await asyncio.sleep(0.1)\n"
                "    print('late')\n"
                "task = asyncio.create_task(talk())"
            ),
            code("await task\nprint('done')", "done\n"),
        ],
    ),
    "leak": Canary(
        "nbval",
        "tasks left: 1",
        [
            code(OPEN, OPENED, tags=["setup"]),
            code("import asyncio\ntask = asyncio.create_task(asyncio.sleep(3600))"),
            code(
                "from support.kernel import close_chapter\n\nclose_chapter()",
                "tasks left: 0, threads left: 0, child processes left: 0, sockets left: 0\n",
                tags=["cleanup"],
            ),
        ],
    ),
    "second_run": Canary(
        "twice",
        "shows something else in run 2",
        [code("runs = globals().get('runs', 0) + 1\nprint(runs)", "1\n")],
    ),
    "stripped_output": Canary(
        "rules",
        "execution count None",
        # nbval compares nothing where a cell seems never to have run.
        [stripped(code("total = 1 + 2\nprint(total)"))],
    ),
    "missing_alt_text": Canary(
        "rules",
        "image without alt text",
        [code(SHOW.format(alt="", png=PIXEL), "", *picture(""), tags=["figure"])],
    ),
    "raw_time": Canary(
        "rules",
        "shows a raw time, '0.1034 s'",
        [code("seconds = 0.1034\nprint(f'It took {seconds} s.')", "It took 0.1034 s.\n")],
    ),
    "stderr": Canary(
        "rules",
        "writes to stderr",
        [
            code(
                "import sys\nprint('a warning', file=sys.stderr)",
                "",
                new_output("stream", name="stderr", text="a warning\n"),
            )
        ],
    ),
    "unknown_tag": Canary(
        "rules",
        "has the tag 'nbval-skip', which is not on the list",
        [code("total = 1 + 2\nprint(total)", "3\n", tags=["nbval-skip"])],
    ),
}


def build(name: str) -> NotebookNode:
    """The notebook of one canary, in the form in which chapters are stored."""
    canary = CANARIES[name]
    title = new_markdown_cell(f"# {name.replace('_', ' ').capitalize()}")
    nb = NotebookNode(cells=[title, *canary.cells], metadata={}, nbformat=4, nbformat_minor=5)
    unrun = [cell for cell in nb.cells if cell.metadata.get("stripped")]
    for position, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{position}"
    normalise(nb)
    for cell in unrun:
        cell.execution_count = None
    return nb


if __name__ == "__main__":
    for each in CANARIES:
        write(build(each), FOLDER / f"{each}.ipynb")
