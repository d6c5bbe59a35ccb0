"""The reader's own copy of the chapters: `my_work/`, which git ignores.

    python -m support.workspace lab [JupyterLab options]   bring the copies up to date, open them
    python -m support.workspace sync                       only bring them up to date
    python -m support.workspace reset CHAPTER              start a chapter afresh

The rule is that no line of a reader is ever lost. A copy counts as edited when the text of a cell
differs from the version that was copied; outputs do not count, because a run makes them again.
A copy that was not edited follows the course. An edited one stays, and the course's new version
is put beside it. A file that cannot be read as a notebook is taken for edited.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from support.bootstrap import hand_over

ROOT = Path(__file__).resolve().parent.parent
LAB_SETTINGS = Path(__file__).parent / "lab_settings"
FIRST_CHAPTER = "00_start_here"


class WorkspaceError(Exception):
    """Something the reader has to change. Its text is one sentence that says what."""


def text_hash(content: bytes) -> str | None:
    """A hash of a notebook's cells without their outputs, or None if it is not a notebook."""
    try:
        cells = json.loads(content)["cells"]
        texts = [[cell["cell_type"], "".join(cell["source"])] for cell in cells]
    except (ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def write_whole(file: IO[bytes], content: bytes) -> None:
    """Write and close an open file, so that the content is on the disk when this returns."""
    with file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_safely(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a crash leaves the old one or the new one, whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        write_whole(os.fdopen(handle, "wb"), content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_beside(path: Path, label: str, content: bytes) -> Path:
    """Write a new file next to `path`, such as `01_event_loop.old.ipynb`. Overwrites nothing."""
    number = 1
    while True:
        suffix = label if number == 1 else f"{label}-{number}"
        beside = path.with_name(f"{path.stem}.{suffix}.ipynb")
        try:
            file = beside.open("xb")
        except FileExistsError:
            number += 1
            continue
        try:
            write_whole(file, content)
        except BaseException:
            beside.unlink()
            raise
        return beside


class Workspace:
    """The chapters of a course folder, and the reader's copies of them.

    `root` is the folder that holds `notebooks/`. The copies are in `root/my_work/`. What was
    copied is noted in `my_work/.copies.json`; if that note is lost, every copy that differs
    from the course counts as edited.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.course = root / "notebooks"
        self.copies = root / "my_work"
        self.note = self.copies / ".copies.json"

    def chapters(self) -> list[str]:
        """The names of the chapters, in order. Raises WorkspaceError when there are none."""
        names = sorted(path.stem for path in self.course.glob("*.ipynb"))
        if not names:
            raise WorkspaceError(
                f"There are no chapters in {self.course}: restore the folder with git."
            )
        return names

    def _read_note(self) -> dict[str, dict[str, Any]]:
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return {name: dict(entry) for name, entry in note.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _write_note(self, note: dict[str, dict[str, Any]]) -> None:
        write_safely(self.note, json.dumps(note, indent=1, sort_keys=True).encode())

    def sync(self) -> list[str]:
        """Bring the copies up to date. Returns one line for the reader for each that changed.

        Raises WorkspaceError when there are no chapters, and OSError when a file cannot be
        read or written.
        """
        chapters = self.chapters()
        self.copies.mkdir(exist_ok=True)
        note = self._read_note()
        lines = [self._sync_one(name, note.setdefault(name, {})) for name in chapters]
        self._write_note(note)
        return [line for line in lines if line]

    def _sync_one(self, name: str, entry: dict[str, Any]) -> str:
        """Bring one copy up to date, and keep the note of it. Returns a line, or nothing.

        In `entry`, `text` and `file` are hashes of the version that the copy began as, and
        `offered` is the text hash of the last version that was put beside an edited copy.
        """
        theirs = (self.course / f"{name}.ipynb").read_bytes()
        mine = self.copies / f"{name}.ipynb"
        new_text, new_file = text_hash(theirs), hashlib.sha256(theirs).hexdigest()
        old = mine.read_bytes() if mine.exists() else None
        old_text = text_hash(old) if old is not None else None
        line = ""
        if old is not None and old_text is None:
            # Not a notebook, perhaps half-saved. It is kept, and nothing can be compared with it.
            return (
                f"{name}: your copy cannot be read as a notebook; `make reset CHAPTER={name}`"
                " puts a fresh one in its place, and keeps it"
            )
        if old is None:
            line = f"{name}: new in my_work"
        elif old_text == new_text:
            # The same text. Its outputs follow the course only if the reader never ran it.
            if hashlib.sha256(old).hexdigest() != entry.get("file"):
                entry["text"] = new_text
                return ""
        elif old_text == entry.get("text"):
            line = f"{name}: brought up to date (you had not edited it)"
        elif new_text in (entry.get("text"), entry.get("offered")):
            return ""  # edited, and nothing newer to offer
        else:
            beside = self._offer(mine, theirs, {new_text, entry.get("offered")} - {None})
            entry["offered"] = new_text
            return f"{name}: your edited copy stays as it is; the new version is {beside.name}"
        if old != theirs:
            write_safely(mine, theirs)
        entry.update(text=new_text, file=new_file)
        return line

    def _offer(self, mine: Path, theirs: bytes, known_texts: set[str | None]) -> Path:
        """Put the course's version beside an edited copy. Returns its path.

        An earlier offer is replaced if its text is one of `known_texts`: nobody edited it.
        """
        for beside in sorted(self.copies.glob(f"{mine.stem}.new*.ipynb")):
            if text_hash(beside.read_bytes()) in known_texts:
                write_safely(beside, theirs)
                return beside
        return write_beside(mine, "new", theirs)

    def reset(self, chapter: str) -> str:
        """Start a chapter afresh and keep the old copy. Returns a line for the reader.

        `chapter` is a name such as `01_event_loop`, its start, or the name of its file. Raises
        WorkspaceError for a chapter that does not exist.
        """
        chapters = self.chapters()
        asked = chapter.removesuffix(".ipynb")
        matches = [name for name in chapters if asked and name.startswith(asked)]
        if asked in chapters:
            matches = [asked]
        if len(matches) != 1:
            known = ", ".join(chapters)
            raise WorkspaceError(f'"{chapter}" is not a chapter: the chapters are {known}.')
        name = matches[0]
        self.copies.mkdir(exist_ok=True)
        theirs = (self.course / f"{name}.ipynb").read_bytes()
        mine = self.copies / f"{name}.ipynb"
        line = f"{name}: new in my_work"
        if mine.exists():
            old = mine.read_bytes()
            if old == theirs:
                return f"{name}: your copy is already as the course has it"
            kept = write_beside(mine, "old", old)
            line = f"{name}: as new in my_work; your old copy is {kept.name}"
        write_safely(mine, theirs)
        note = self._read_note()
        note[name] = {"text": text_hash(theirs), "file": hashlib.sha256(theirs).hexdigest()}
        self._write_note(note)
        return line


def lab_command(copies: Path) -> list[str]:
    """The command that opens the copies in JupyterLab, on this machine only, without its news."""
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={copies}"]
    command += [f"--LabApp.default_url=/lab/tree/{FIRST_CHAPTER}.ipynb"]
    command += ["--Application.log_level=WARN", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += [f"--LabApp.app_settings_dir={LAB_SETTINGS}"]  # long lines of code are wrapped
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command += ["--allow-root"]
    return command


def main(arguments: list[str]) -> int:
    """Run one command. Returns the exit code."""
    workspace = Workspace()
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command == "reset" and len(rest) == 1:
            print(workspace.reset(rest[0]))
        elif command == "lab" or (command == "sync" and not rest):
            for line in workspace.sync():
                print(line)
        else:
            raise WorkspaceError(
                f'"{" ".join(arguments)}" is not a command: use lab, sync, or reset CHAPTER.'
            )
    except WorkspaceError as problem:
        print(problem, file=sys.stderr)
        return 1
    except OSError as problem:
        print(
            f"Your copies in {workspace.copies} cannot be brought up to date ({problem.strerror}:"
            f" {problem.filename}): make room or change the permissions, and try again.",
            file=sys.stderr,
        )
        return 1
    if command != "lab":
        return 0
    print("Opening JupyterLab. Control-C here, twice, closes it.")
    return hand_over(lab_command(workspace.copies) + rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
