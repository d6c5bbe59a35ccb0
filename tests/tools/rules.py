"""The rules of a chapter as checks: each takes a notebook and yields violations.

A violation is one sentence that names the cell and says what to do. `violations` runs
every rule that applies to a notebook; `python -m tests.tools.rules FILE...` prints them.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import nbformat
from nbformat import NotebookNode

# --- Limits, all in one place ----------------------------------------------------------

TAGS = {
    "setup", "predict", "experiment", "figure", "widget", "spot", "exercise", "check",
    "solution", "hide-cell", "raises-exception", "nbval-ignore-output", "cleanup",
}  # fmt: skip
CODE_LINES = range(2, 13)
# Kinds of cells whose whole idea is one call, and those that hold a little more.
MAY_BE_ONE_LINE = {"setup", "predict", "experiment", "figure", "widget", "check", "cleanup"}
LONGEST_BY_TAG = {"setup": 20, "solution": 30, "exercise": 20}
CODE_WIDTH, COUNTED_OF_A_TEXT = 140, 40  # characters of a line; of a text in it, however long the text is
PROSE_WORDS = 60
CELLS = range(40, 81)
UNCOMPARED_CELLS = 6
OUTPUT_BYTES = 200_000
NOTEBOOK_BYTES = 2_000_000
EXERCISES, HINTS_PER_EXERCISE, SNIPPETS_WITH_A_BUG = 4, 3, 2
HEADINGS = ("Try it", "Spot the bug", "Exercises", "Recap", "Roads not taken", "Further reading")
# Not chapters of the subject: they have no exercises, and are shorter.
WITHOUT_ANATOMY = {"00_start_here", "11_your_numbers"}

# What no two runs, or no two machines, have in common.
VARYING = {
    "a raw time": r"\b\d+\.\d{3,} ?(?:s|sec|seconds)\b"
    r"|\b\d+\.\d+ ?(?:ms|us|µs|μs|ns|milliseconds|microseconds)\b|\b\d+\.\d{6,}\b",
    "an address": r"\b(?!127\.0\.0\.1\b)\d{1,3}(?:\.\d{1,3}){3}\b",
    "a port": r"\bport\W{0,3}\d{2,5}\b|(?<=\w):\d{4,5}\b",
    "a process number": r"\b(?:pid|process number)\W{0,3}\d+",
    "a date": r"\b20\d\d-\d\d-\d\d\b|\b\d{1,2}:\d\d:\d\d\b",
    "a path": r"(?<![\w.:/])/(?:home|root|usr|Users|tmp|var|opt|work|private|mnt|etc)/\w"
    r"|\b[A-Z]:\\\w|site-packages|~/\.",
    "an object address": r"\b0x[0-9a-fA-F]{5,}",
    "a bare object repr": r"<(?:\w+\.)*\w+ object at"
    r"|<(?:coroutine|function|generator|Task|Future) ",
}

Rule = Callable[[NotebookNode, Path], Iterator[str]]


def violations(path: Path, rules: list[Rule] | None = None) -> list[str]:
    """Every broken rule of the notebook in `path`, in the order of the rules: those
    given, or all that apply to a notebook of this name."""
    nb = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    if rules is None:
        rules = CELL_RULES if path.stem in WITHOUT_ANATOMY else CELL_RULES + ANATOMY_RULES
    return [sentence for rule in rules for sentence in rule(nb, path)]


# --- Reading a notebook ----------------------------------------------------------------


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def numbered(nb: NotebookNode, kind: str = "code") -> list[tuple[str, NotebookNode]]:
    """The cells of one kind, each with words that let an author find it."""
    found = []
    for position, cell in enumerate(nb.cells, start=1):
        if cell.cell_type == kind:
            start = next((line for line in cell.source.splitlines() if line.strip()), "")
            found.append((f"cell {position} ({start.strip()[:40]!r})", cell))
    return found


def tagged(nb: NotebookNode, tag: str) -> list[tuple[str, NotebookNode]]:
    return [(name, cell) for name, cell in numbered(nb) if tag in tags(cell)]


def module_of(source: str) -> str:
    """The name of the module that a cell is the file of, or nothing."""
    found = re.match(r"%%module +(\w+) *(?:\n|$)", source)
    return found[1] if found else ""


def prose_of(markdown: str) -> str:
    """A prose cell without what is not read as a paragraph: code, tables, headings,
    list items that are links, and what is folded away."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    return re.sub(r"^(?:\s*\||#|\s*[-*] \[).*$", "", text, flags=re.MULTILINE)


def headings(nb: NotebookNode, level: int) -> list[str]:
    text = "\n\n".join(cell.source for _, cell in numbered(nb, "markdown"))
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"^#{{{level}}} +(.+)$", text, flags=re.MULTILINE)


class _Page(HTMLParser):
    """The text of an HTML output, and the alt text of its images."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.alts: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.alts.append((dict(attrs).get("alt") or "").strip())


def alts(cell: NotebookNode) -> list[str]:
    """The alt text of every image that a cell shows; "" where there is none.

    A picture has its text in its metadata, where converters look, and in an output of
    words behind it, because JupyterLab shows no alt text of metadata. See figures.show.
    """
    found = []
    for position, output in enumerate(cell.outputs):
        data = output.get("data", {})
        if "text/html" in data:
            found += _Page(data["text/html"]).alts
            continue
        words = "".join(one.get("data", {}).get("text/html", "") for one in cell.outputs[position + 1 : position + 2])
        for kind in data:
            if kind.startswith("image/"):
                alt = output.get("metadata", {}).get(kind, {}).get("alt", "").strip()
                found.append(alt if alt and alt in "".join(_Page(words).text) else "")
    return found


def texts(output: NotebookNode) -> Iterator[str]:
    """Every text of an output that is shown, compared or stored."""
    yield output.get("text", "")
    yield output.get("evalue", "")
    yield re.sub(r"\x1b\[[\d;]*m", "", "\n".join(output.get("traceback", [])))
    for kind, data in output.get("data", {}).items():
        if kind == "text/html":
            page = _Page(data)
            yield " ".join(page.text + page.alts)
        elif kind.startswith("text/"):
            yield data


# --- Rules for every notebook ----------------------------------------------------------


def form(nb: NotebookNode, path: Path) -> Iterator[str]:
    if (nb.nbformat, nb.nbformat_minor) != (4, 5):
        yield f"the format is {nb.nbformat}.{nb.nbformat_minor}: save it as 4.5."
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3: choose Python 3."
    for key in set(nb.metadata) - {"kernelspec", "language_info"}:
        yield f"the notebook carries {key!r} metadata: run tests.tools.execute."
    if path.exists() and path.stat().st_size > NOTEBOOK_BYTES:
        yield f"the file is over {NOTEBOOK_BYTES:,} bytes: draw fewer or smaller figures."
    ids = [cell.get("id") for cell in nb.cells]
    for twice in {one for one in ids if ids.count(one) > 1}:
        yield f"the cell id {twice!r} is there {ids.count(twice)} times: run tests.tools.execute."


def one_title(nb: NotebookNode, path: Path) -> Iterator[str]:
    found = headings(nb, 1)
    first = nb.cells[0].source if nb.cells else ""
    if len(found) != 1 or not first.startswith("# "):
        yield f"there are {len(found)} H1 headings: the first cell holds the only one."


def cell_metadata(nb: NotebookNode, path: Path) -> Iterator[str]:
    for name, cell in numbered(nb) + numbered(nb, "markdown"):
        for tag in sorted(tags(cell) - TAGS):
            yield f"{name} has the tag {tag!r}, which is not on the list."
        for key in set(cell.metadata) - {"tags", "jupyter"}:
            yield f"{name} carries {key!r} metadata: run tests.tools.execute."
        if "NBVAL_" in cell.source or "PYTEST_VALIDATE" in cell.source:
            yield f"{name} steers nbval by a comment: use a tag."


def counts(nb: NotebookNode, path: Path) -> Iterator[str]:
    for expected, (name, cell) in enumerate(numbered(nb), start=1):
        if cell.execution_count != expected:
            yield f"{name} has the execution count {cell.execution_count}, not {expected}: run all."


def code_size(nb: NotebookNode, path: Path) -> Iterator[str]:
    for name, cell in numbered(nb):
        lines = len([line for line in cell.source.splitlines() if line.strip()])
        lines -= bool(module_of(cell.source))  # the line that says which file the cell is
        longest = max([LONGEST_BY_TAG.get(tag, 0) for tag in tags(cell)] + [CODE_LINES[-1]])
        shortest = 1 if tags(cell) & MAY_BE_ONE_LINE else CODE_LINES[0]
        if not shortest <= lines <= longest:
            yield f"{name} has {lines} lines of code: {shortest} to {longest} are allowed."
        if cell.source.rstrip().endswith(";"):
            yield f"{name} silences its result with a semicolon: use `_ =`."


def widths(source: str) -> list[int]:
    """How long each line is, when at most COUNTED_OF_A_TEXT characters of each text in quotes count."""
    found, f_strings = [len(line) for line in source.splitlines()], []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind, start, end = tokenize.tok_name[token.type], token.start, token.end
        if kind == "FSTRING_START":  # one token for each part, from Python 3.12 on
            f_strings.append(start)
        elif kind == "FSTRING_END":
            start = f_strings.pop()
        if kind in ("STRING", "FSTRING_END") and start[0] == end[0] and not f_strings:
            found[start[0] - 1] -= max(0, end[1] - start[1] - COUNTED_OF_A_TEXT)
    return found


def code_width(nb: NotebookNode, path: Path) -> Iterator[str]:
    for name, cell in numbered(nb):
        source = cell.source.partition("\n")[2] if module_of(cell.source) else cell.source
        widest = max(widths(source), default=0)
        if widest > CODE_WIDTH:
            yield f"{name} has a line of {widest} characters, long texts shortened: at most {CODE_WIDTH}."


def prose_size(nb: NotebookNode, path: Path) -> Iterator[str]:
    for name, cell in numbered(nb, "markdown"):
        words = len(prose_of(cell.source).split())
        if words > PROSE_WORDS:
            yield f"{name} has {words} words of prose: at most {PROSE_WORDS}."


def outputs(nb: NotebookNode, path: Path) -> Iterator[str]:
    for name, cell in numbered(nb):
        streams = [output.get("name", "") for output in cell.outputs]
        if "stderr" in streams:
            yield f"{name} writes to stderr: nothing may."
        if any(one and one == after for one, after in pairwise(streams)):
            yield f"{name} stores its prints in pieces: run tests.tools.execute."
        raised = any(output.output_type == "error" for output in cell.outputs)
        if raised and "raises-exception" not in tags(cell):
            yield f"{name} stores an error: mend it, or tag it raises-exception."
        if not raised and "raises-exception" in tags(cell):
            yield f"{name} is tagged raises-exception, but stores no error."
        for output in cell.outputs:
            if (size := len(str(output))) > OUTPUT_BYTES:
                yield f"{name} stores an output of {size:,} bytes: at most {OUTPUT_BYTES:,}."


def nothing_varies(nb: NotebookNode, path: Path) -> Iterator[str]:
    for name, cell in numbered(nb):
        ignored = "nbval-ignore-output" in tags(cell)
        # A path of the author's machine is wrong in any output, compared or not.
        wanted = {"a path": VARYING["a path"]} if ignored else VARYING
        for text in (text for output in cell.outputs for text in texts(output)):
            for what, pattern in wanted.items():
                if found := re.search(pattern, text):
                    yield f"{name} shows {what}, {found[0]!r}: it differs in the next run."
    uncompared = len(tagged(nb, "nbval-ignore-output"))
    if uncompared > UNCOMPARED_CELLS:
        yield f"{uncompared} cells are tagged nbval-ignore-output: at most {UNCOMPARED_CELLS}."


def figures(nb: NotebookNode, path: Path) -> Iterator[str]:
    for name, cell in numbered(nb):
        if "" in alts(cell):
            yield f"{name} shows an image without alt text: show it with support.figures.show."
        if "figure" in tags(cell) and not alts(cell):
            yield f"{name} is tagged figure, but stores no image."
    for name, cell in numbered(nb, "markdown"):
        if re.search(r"!\[\s*\]\(|<img(?![^>]*alt=)", cell.source):
            yield f"{name} shows an image without alt text: write it between the brackets."


def widgets(nb: NotebookNode, path: Path) -> Iterator[str]:
    for name, cell in numbered(nb):
        stored = {kind for output in cell.outputs for kind in output.get("data", {})}
        if any("jupyter.widget" in kind for kind in stored):
            yield f"{name} stores a widget that is dead without a kernel: run tests.tools.execute."
        if "widget" in tags(cell) and not (alts(cell) and "nbval-ignore-output" in tags(cell)):
            yield f"{name} is a widget: it needs a stored figure, and the tag nbval-ignore-output."


CELL_RULES: list[Rule] = [
    form, one_title, cell_metadata, counts, code_size, code_width, prose_size, outputs, nothing_varies,
    figures, widgets,
]  # fmt: skip


# --- Rules for chapters of the subject -------------------------------------------------


def parts(nb: NotebookNode, path: Path) -> Iterator[str]:
    if len(nb.cells) not in CELLS:
        yield f"there are {len(nb.cells)} cells: {CELLS[0]} to {CELLS[-1]} make a chapter."
    code = [cell for _, cell in numbered(nb)]
    for tag, place, word in (("setup", 0, "first"), ("cleanup", -1, "last")):
        if len(tagged(nb, tag)) != 1 or tag not in tags(code[place]):
            yield f"the {word} code cell, and no other, must be tagged {tag}."
    least = {"predict": 1, "figure": 1, "widget": 1, "spot": SNIPPETS_WITH_A_BUG}
    least |= {"exercise": EXERCISES, "check": EXERCISES, "solution": EXERCISES}
    for tag, wanted in least.items():
        if len(tagged(nb, tag)) < wanted:
            yield f"{len(tagged(nb, tag))} cells are tagged {tag}: at least {wanted}."
    titles = " / ".join(headings(nb, 2) + headings(nb, 3)).lower()
    for heading in HEADINGS:
        if heading.lower() not in titles:
            yield f"there is no heading {heading!r}."
    everything = "\n".join(cell.source for cell in nb.cells)
    if 'if __name__ == "__main__":' not in everything or "asyncio.run(" not in everything:
        yield 'no snippet stands in its script form: `if __name__ == "__main__": asyncio.run(...)`.'


def exercises(nb: NotebookNode, path: Path) -> Iterator[str]:
    def checked(tag: str) -> set[str]:
        sources = "\n".join(cell.source for _, cell in tagged(nb, tag))
        return set(re.findall(r"""\bcheck\(\s*["']([^"']+)["']""", sources))

    for one in sorted(checked("check") - checked("solution")):
        yield f"exercise {one} has no solution cell that runs through the same check."
    for one in sorted(checked("solution") - checked("check")):
        yield f"exercise {one} has a solution, but no cell tagged check."
    for name, cell in tagged(nb, "solution"):
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden")
        if "hide-cell" not in tags(cell) or not hidden:
            yield f"{name} shows its solution: tag it hide-cell, and set jupyter.source_hidden."
    for name, cell in tagged(nb, "hide-cell"):
        if "solution" not in tags(cell):
            yield f"{name} is hidden, but is no solution."
    hints = sum(cell.source.count("<details>") for _, cell in numbered(nb, "markdown"))
    if hints < HINTS_PER_EXERCISE * len(checked("check")):
        yield f"{hints} hints are folded away: {HINTS_PER_EXERCISE} for each exercise."


ANATOMY_RULES: list[Rule] = [parts, exercises]


def main(files: list[str]) -> int:
    found = [f"{file}: {sentence}" for file in files for sentence in violations(Path(file))]
    print("\n".join(found) or "No rule is broken.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
