"""What the reader has done, kept in a file of their own.

One line of JSON per event, only ever appended: two notebooks at once lose nothing, a crash in
the middle of a line costs that line, and a damaged line is skipped and stays where it is.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

_FILE = "events.jsonl"


class Score(NamedTuple):
    """One number that the reader's machine gave, and what they had predicted, in ``unit``."""

    value: float
    unit: str
    predicted: float | str | None


def folder() -> Path:
    """The reader's folder: COURSE_PROGRESS, else my_work/.progress in the course, else temporary.

    Raises OSError when COURSE_PROGRESS names a folder that cannot be written.
    """
    if chosen := os.environ.get("COURSE_PROGRESS"):
        try:
            return _usable(Path(chosen))
        except OSError as error:
            raise OSError(
                f"COURSE_PROGRESS names {chosen!r}, which cannot be written ({error.strerror}): "
                f"set it to a folder of your own, or unset it."
            ) from None
    course = Path(__file__).resolve().parents[2]
    if (course / "notebooks").is_dir():
        try:
            return _usable(course / "my_work" / ".progress")
        except OSError:
            pass  # a course that is installed read-only
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "reader"
    return _usable(Path(tempfile.gettempdir()) / f"async-python-measured-{user}")


def _usable(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    with open(path / _FILE, "ab"):
        return path


def record(kind: str, key: str, **facts: Any) -> None:
    """Append one event. One write call, so that no other process can write into the line."""
    line = json.dumps({"kind": kind, "key": key, **facts})
    # The leading newline parts it from a line that a crash left unfinished.
    with open(folder() / _FILE, "ab", buffering=0) as file:
        file.write(f"\n{line}\n".encode())


def events(kind: str, key: str | None = None) -> list[dict[str, Any]]:
    """The events of one kind, oldest first; damaged lines are left out."""
    found = []
    for line in (folder() / _FILE).read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if (
            isinstance(event, dict)
            and event.get("kind") == kind
            and key in (None, event.get("key"))
        ):
            found.append(event)
    return found


def score(key: str, value: float, unit: str = "", predicted: float | str | None = None) -> None:
    """Keep a number that this machine gave, and what the reader predicted, for the scoreboard.

    The last value of a key counts. Prints nothing. Raises ValueError for a value that is no
    finite number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"score({key!r}) needs a finite number as value, not {value!r}.")
    record("score", key, value=value, unit=unit, predicted=predicted)


def scores() -> dict[str, Score]:
    """The numbers kept by ``score``, by key."""
    kept = [event for event in events("score") if "value" in event]
    return {e["key"]: Score(e["value"], e.get("unit", ""), e.get("predicted")) for e in kept}


def checked() -> dict[str, str]:
    """The best state of each exercise that was ever checked: "passed" or "failed"."""
    best: dict[str, str] = {}
    for event in events("check"):
        if best.get(event["key"]) != "passed":
            best[event["key"]] = event.get("state", "failed")
    return best


def predicted() -> dict[str, str]:
    """The last outcome of each prediction: "right", "wrong" or "no guess"."""
    return {event["key"]: event.get("outcome", "") for event in events("prediction")}


def progress() -> None:
    """Draw which exercises are passed, and how the predictions went. Displays a figure."""
    from .. import figures
    from .engine import exercises

    best, known = checked(), exercises()
    chapters = sorted({exercise.chapter for exercise in known})
    figure, axes = figures.new_figure(height=1.1 + 0.45 * len(chapters))
    for row, chapter in enumerate(chapters):
        for column, exercise in enumerate(e for e in known if e.chapter == chapter):
            state = best.get(exercise.id, "")
            fill = {"passed": figures.THEORY, "failed": figures.WAITING}.get(state, "white")
            axes.barh(row, 0.92, left=column, height=0.8, color=fill, edgecolor="#777777")
            axes.text(
                column + 0.46,
                row,
                f"{exercise.id} {'✓' if state == 'passed' else 'tried' if state else ''}",
                color="white" if state == "passed" else "black",
                ha="center",
                va="center",
            )
    axes.set_yticks(range(len(chapters)), [f"chapter {chapter:02d}" for chapter in chapters])
    widest = max(6, *Counter(exercise.chapter for exercise in known).values())  # boxes in a row
    axes.set(xticks=[], xlim=(0, widest), title="Which exercises have you solved?")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    counted = Counter(predicted().values())
    words = {"right": "right", "wrong": "wrong", "no guess": "not guessed"}
    outcomes = ", ".join(f"{counted[name]} {word}" for name, word in words.items() if counted[name])
    axes.set_xlabel(f"predictions: {outcomes or 'none yet'}", loc="left")
    # The same words for every reader, because a figure's text is compared in tests.
    figures.show(
        figure, alt="A row per chapter with a box per exercise; filled with a tick is passed."
    )
