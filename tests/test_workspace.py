"""The reader's own copy: what follows the course, what stays, and that no line is ever lost."""

import itertools
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import workspace as workspace_module
from support.workspace import Workspace, WorkspaceError, main, text_hash

CHAPTERS = ("00_start_here", "01_event_loop")


def notebook(*sources: str, output: str = "", count: int | None = 1) -> bytes:
    """A small notebook with one code cell for each source."""
    cells = [
        {
            "cell_type": "code",
            "source": source.splitlines(keepends=True),
            "execution_count": count,
            "metadata": {},
            "outputs": [{"output_type": "stream", "name": "stdout", "text": output}],
        }
        for source in sources
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A course with two chapters, not copied yet."""
    (tmp_path / "notebooks").mkdir()
    made = Workspace(tmp_path)
    for name in CHAPTERS:
        (made.course / f"{name}.ipynb").write_bytes(notebook(f"# {name}", "guess = None"))
    return made


def course_file(workspace: Workspace, name: str = CHAPTERS[1]) -> Path:
    return workspace.course / f"{name}.ipynb"


def my_file(workspace: Workspace, name: str = CHAPTERS[1]) -> Path:
    return workspace.copies / f"{name}.ipynb"


def visible(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.copies.iterdir() if path.name[0] != ".")


def test_the_first_sync_copies_every_chapter(workspace: Workspace) -> None:
    assert workspace.sync() == [f"{name}: new in my_work" for name in CHAPTERS]
    for name in CHAPTERS:
        assert my_file(workspace, name).read_bytes() == course_file(workspace, name).read_bytes()


def test_a_second_sync_does_nothing_and_says_nothing(workspace: Workspace) -> None:
    workspace.sync()
    before = {path: path.stat().st_mtime_ns for path in workspace.copies.glob("*.ipynb")}
    assert workspace.sync() == []
    assert {path: path.stat().st_mtime_ns for path in workspace.copies.glob("*.ipynb")} == before


def test_a_chapter_added_later_appears(workspace: Workspace) -> None:
    workspace.sync()
    (workspace.course / "02_semaphores.ipynb").write_bytes(notebook("# 02"))
    assert workspace.sync() == ["02_semaphores: new in my_work"]


def test_a_copy_that_was_only_run_follows_the_course(workspace: Workspace) -> None:
    workspace.sync()
    ran = notebook("# 01_event_loop", "guess = None", output="mine", count=7)
    my_file(workspace).write_bytes(ran)
    assert workspace.sync() == []
    assert my_file(workspace).read_bytes() == ran, "no newer version, so the reader's outputs stay"

    course_file(workspace).write_bytes(notebook("# better"))
    assert workspace.sync() == ["01_event_loop: brought up to date (you had not edited it)"]
    assert my_file(workspace).read_bytes() == course_file(workspace).read_bytes()
    assert visible(workspace) == ["00_start_here.ipynb", "01_event_loop.ipynb"]


def test_new_stored_outputs_reach_only_a_copy_that_was_never_touched(workspace: Workspace) -> None:
    workspace.sync()
    ran = notebook("# 01_event_loop", "guess = None", output="mine", count=7)
    my_file(workspace).write_bytes(ran)
    for name in CHAPTERS:
        course_file(workspace, name).write_bytes(
            notebook(f"# {name}", "guess = None", output="stored anew")
        )
    assert workspace.sync() == []
    assert my_file(workspace).read_bytes() == ran
    assert b"stored anew" in my_file(workspace, CHAPTERS[0]).read_bytes()


def test_a_guess_is_an_edit_and_is_kept(workspace: Workspace) -> None:
    workspace.sync()
    edited = notebook("# 01_event_loop", 'guess = "3 s"')
    my_file(workspace).write_bytes(edited)
    assert workspace.sync() == [], "the course has nothing newer to offer"

    course_file(workspace).write_bytes(notebook("# better"))
    assert workspace.sync() == [
        "01_event_loop: your edited copy stays as it is; the new version is 01_event_loop.new.ipynb"
    ]
    assert my_file(workspace).read_bytes() == edited
    beside = workspace.copies / "01_event_loop.new.ipynb"
    assert beside.read_bytes() == course_file(workspace).read_bytes()

    beside.unlink()
    assert workspace.sync() == [], "a version that the reader threw away is not offered again"
    assert not beside.exists()


def test_a_newer_offer_replaces_the_older_one_unless_it_was_edited(workspace: Workspace) -> None:
    workspace.sync()
    my_file(workspace).write_bytes(notebook("mine"))
    beside = workspace.copies / "01_event_loop.new.ipynb"
    for version in ("second", "third"):
        course_file(workspace).write_bytes(notebook(version))
        workspace.sync()
        assert beside.read_bytes() == notebook(version)
    beside.write_bytes(notebook("third", "and my line in it"))
    course_file(workspace).write_bytes(notebook("fourth"))
    assert "01_event_loop.new-2.ipynb" in workspace.sync()[0]
    assert beside.read_bytes() == notebook("third", "and my line in it")
    assert (workspace.copies / "01_event_loop.new-2.ipynb").read_bytes() == notebook("fourth")


def test_an_offer_never_replaces_a_damaged_file(workspace: Workspace) -> None:
    workspace.sync()
    my_file(workspace).write_bytes(notebook("mine"))
    damaged = workspace.copies / "01_event_loop.new.ipynb"
    damaged.write_bytes(b"half a notebook of the reader's")
    course_file(workspace).write_bytes(notebook("second"))
    assert "01_event_loop.new-2.ipynb" in workspace.sync()[0]
    assert damaged.read_bytes() == b"half a notebook of the reader's"


def test_taking_over_the_new_version_ends_the_matter(workspace: Workspace) -> None:
    workspace.sync()
    my_file(workspace).write_bytes(notebook("mine"))
    course_file(workspace).write_bytes(notebook("second"))
    workspace.sync()
    os.replace(workspace.copies / "01_event_loop.new.ipynb", my_file(workspace))
    assert workspace.sync() == []
    course_file(workspace).write_bytes(notebook("third"))
    assert workspace.sync() == ["01_event_loop: brought up to date (you had not edited it)"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"cells": [{"cell_type": "code", "sou',
        b"[1, 2]",
        b'{"cells": [{"a": 1}]}',
        b"\xff\xfe",
    ],
)
def test_a_copy_that_is_not_a_notebook_is_kept(workspace: Workspace, content: bytes) -> None:
    assert text_hash(content) is None
    workspace.sync()
    my_file(workspace).write_bytes(content)
    course_file(workspace).write_bytes(notebook("second"))
    (line,) = workspace.sync()
    assert "cannot be read as a notebook" in line and "make reset CHAPTER=01_event_loop" in line
    assert my_file(workspace).read_bytes() == content
    assert "01_event_loop.old.ipynb" in workspace.reset("01_event_loop")
    assert (workspace.copies / "01_event_loop.old.ipynb").read_bytes() == content
    assert workspace.sync() == []


@pytest.mark.parametrize("note", [None, b"", b"[]", b'{"01_event_loop": 3}', b"{"])
def test_a_lost_note_makes_copies_count_as_edited(workspace: Workspace, note: bytes | None) -> None:
    workspace.sync()
    workspace.note.unlink()
    if note is not None:
        workspace.note.write_bytes(note)
    course_file(workspace).write_bytes(notebook("second"))
    (line,) = workspace.sync()
    assert line.startswith("01_event_loop: your edited copy stays")
    assert my_file(workspace).read_bytes() == notebook("# 01_event_loop", "guess = None")


def test_reset_keeps_every_old_copy_under_its_own_name(workspace: Workspace) -> None:
    workspace.sync()
    for number, expected in enumerate(["old", "old-2", "old-3"]):
        my_file(workspace).write_bytes(notebook(f"try {number}"))
        assert f"01_event_loop.{expected}.ipynb" in workspace.reset("01_event_loop")
        kept = workspace.copies / f"01_event_loop.{expected}.ipynb"
        assert kept.read_bytes() == notebook(f"try {number}")
        assert my_file(workspace).read_bytes() == course_file(workspace).read_bytes()
    assert workspace.reset("01_event_loop").endswith("already as the course has it")
    course_file(workspace).write_bytes(notebook("second"))
    assert workspace.sync() == ["01_event_loop: brought up to date (you had not edited it)"]


@pytest.mark.parametrize("name", ["01", "01_event_loop", "01_event_loop.ipynb"])
def test_reset_understands_short_names_and_works_before_a_sync(
    workspace: Workspace, name: str
) -> None:
    assert workspace.reset(name) == "01_event_loop: new in my_work"
    assert visible(workspace) == ["01_event_loop.ipynb"]


@pytest.mark.parametrize("name", ["", "0", "7", "01_event_lop", "../notebooks/01_event_loop"])
def test_reset_of_an_unknown_chapter_names_the_chapters(workspace: Workspace, name: str) -> None:
    with pytest.raises(WorkspaceError) as caught:
        workspace.reset(name)
    assert str(caught.value) == (
        f'"{name}" is not a chapter: the chapters are 00_start_here, 01_event_loop.'
    )


def test_no_chapters_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="restore the folder with git"):
        Workspace(tmp_path).sync()


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.sync()
    old = my_file(workspace).read_bytes()
    course_file(workspace).write_bytes(notebook("second"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(workspace_module.os, "fsync", full)
    monkeypatch.setattr(workspace_module, "Workspace", lambda: workspace)
    assert main(["sync"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "No space left on device" in message and "make room" in message
    assert my_file(workspace).read_bytes() == old
    assert not list(workspace.copies.glob(".writing-*")), "nothing half-written is left behind"


def test_a_wrong_command_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["rset", "01"], ["reset"], ["sync", "01"]):
        assert main(arguments) == 1
        message = capsys.readouterr().err
        assert "use lab, sync, or reset CHAPTER" in message
        assert message.startswith(f'"{" ".join(arguments)}" is not a command')


def test_the_lab_opens_the_copies_here_only_without_news(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(workspace_module, "Workspace", lambda: workspace)
    monkeypatch.setattr(workspace_module, "hand_over", lambda line: started.append(line) or 0)
    assert main(["lab", "--no-browser"]) == 0
    assert visible(workspace) == ["00_start_here.ipynb", "01_event_loop.ipynb"]
    (line,) = started
    assert line[-1] == "--no-browser"
    assert "--ServerApp.ip=127.0.0.1" in line
    assert f"--ServerApp.root_dir={workspace.copies}" in line
    assert "--LabApp.default_url=/lab/tree/00_start_here.ipynb" in line
    assert "--LabApp.news_url=None" in line
    assert not any("token" in option or "password" in option for option in line)


# --- no line is ever lost ---------------------------------------------------------------------

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write a line"), st.integers(0, 4)),
        st.tuples(st.just("only run it"), st.integers(0, 4)),
        st.tuples(st.just("take over the new version"), st.just(0)),
        st.tuples(st.just("git pull"), st.integers(0, 2)),
        st.tuples(st.just("git pull outputs"), st.just(0)),
        st.tuples(st.just("sync"), st.just(0)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("crash in sync"), st.integers(0, 5)),
        st.tuples(st.just("crash in reset"), st.integers(0, 5)),
        st.tuples(st.just("lose the note"), st.just(0)),
    ),
    min_size=2,
    max_size=14,
)


class Crash(BaseException):
    """The machine stops."""


@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS)
def test_no_sequence_of_events_loses_a_line(actions: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        workspace = Workspace(Path(folder))
        workspace.course.mkdir()
        published = course_file(workspace)
        published.write_bytes(notebook("version 0"))
        workspace.sync()
        mine, written, numbers = my_file(workspace), set(), itertools.count(1)
        steps_left = [-1]

        def count_down(step):
            def wrapper(*args, **kwargs):
                if steps_left[0] == 0:
                    raise Crash
                steps_left[0] -= 1
                return step(*args, **kwargs)

            return wrapper

        # Each moment at which the disk changes is a place to crash.
        patch.setattr(os, "fsync", count_down(lambda handle: None))
        patch.setattr(os, "replace", count_down(os.replace))

        for action, number in actions:
            copies = sorted(workspace.copies.glob("*.ipynb"))
            if action in ("write a line", "only run it"):
                path = copies[number % len(copies)]
                content = json.loads(path.read_bytes())
                if action == "write a line":
                    line = f"my line {next(numbers)};"
                    written.add(line)
                    content["cells"][-1]["source"].append(line)
                content["cells"][0]["outputs"] = [{"text": f"run {next(numbers)}"}]
                path.write_text(json.dumps(content))
            elif action == "take over the new version":
                if (offered := workspace.copies / "01_event_loop.new.ipynb").exists():
                    kept = workspace.copies / f"01_event_loop.mine-{next(numbers)}.ipynb"
                    mine.rename(kept)
                    offered.rename(mine)
            elif action == "git pull":
                published.write_bytes(notebook(f"version {number}"))
            elif action == "git pull outputs":
                content = json.loads(published.read_bytes())
                content["cells"][0]["outputs"] = [{"text": f"stored {next(numbers)}"}]
                published.write_text(json.dumps(content))
            elif action == "lose the note":
                workspace.note.unlink(missing_ok=True)
            else:
                steps_left[0] = number if action.startswith("crash") else -1
                try:
                    workspace.sync() if action.endswith("sync") else workspace.reset("01")
                except Crash:
                    pass
                steps_left[0] = -1
            everything = "".join(
                path.read_text() for path in workspace.copies.glob("*.ipynb") if path.is_file()
            )
            assert all(line in everything for line in written), (action, number)
            assert mine.exists()
        workspace.sync()
        assert workspace.sync() == [], "a sync leaves nothing to do for the next one"
