"""The closing page: what is kept, what is read back, and what is drawn and exported from it."""

from __future__ import annotations

import csv
import math

import pytest

from support import figures, kernel, scoreboard
from support.exercises import predict, score, store


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setattr(kernel, "chapter", "02_semaphores")
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: None)


def law(title: str, measured: list[float], theory: list[float]) -> None:
    """Draw a comparison and show it, as a chapter does."""
    figure, axes = figures.new_figure()
    axes.set(title=title)
    figures.measured_against_theory(axes, range(len(theory)), [[one] for one in measured], theory, formula="f")
    figures.show(figure, alt="a line and some points beside it")


def test_a_shown_comparison_is_kept_with_its_chapter_and_its_ratios() -> None:
    law("Does it hold?", [1.1, 4.0], [1.0, 5.0])
    (kept,) = scoreboard.comparisons()
    assert (kept.chapter, kept.name) == ("02_semaphores", "Does it hold?")
    assert kept.ratios == pytest.approx([1.1, 0.8]) and kept.at == [0, 1]


def test_the_last_run_of_a_comparison_counts_and_others_stay() -> None:
    law("Does it hold?", [2.0], [1.0])
    law("And here?", [3.0], [1.0])
    law("Does it hold?", [1.5], [1.0])
    assert {one.name: one.ratios for one in scoreboard.comparisons()} == {"Does it hold?": [1.5], "And here?": [3.0]}


def test_a_title_that_counts_is_the_same_comparison_and_a_label_that_does_is_another() -> None:
    law("Seen: 15 of 30", [2.0], [1.0])
    law("Seen: 16 of 30", [3.0], [1.0])
    figure, axes = figures.new_figure()
    axes.set(title="Late?")
    for label in ("hedged at p95", "hedged at p80"):
        figures.measured_against_theory(axes, [1], [[1.0]], [1.0], formula="f", label=label)
    figures.show(figure, alt="two laws with a point each")
    names = [one.name for one in scoreboard.comparisons()]
    assert names == ["Seen: 16 of 30", "Late? hedged at p95", "Late? hedged at p80"]


def test_outside_a_chapter_nothing_is_kept(monkeypatch) -> None:
    monkeypatch.setattr(kernel, "chapter", "")
    law("Does it hold?", [2.0], [1.0])
    assert scoreboard.comparisons() == []


def test_points_without_a_ratio_are_left_out_and_many_are_thinned() -> None:
    law("Some cannot be compared", [1.0, math.nan, 3.0, 4.0], [1.0, 1.0, -1.0, 8.0])
    law("Many", [1.0] * 500, [1.0] * 500)
    some, many = sorted(scoreboard.comparisons(), key=lambda one: len(one.at))
    assert some.at == [0, 3] and some.ratios == [1.0, 0.5]
    assert len(many.at) <= scoreboard.MOST_POINTS and (many.at[0], many.at[-1]) == (0, 499)


def test_two_laws_on_one_axes_have_names_of_their_own() -> None:
    figure, axes = figures.new_figure()
    axes.set(title="Two?")
    for label in ("held", "opened"):
        figures.measured_against_theory(axes, [1], [[1.0]], [1.0], formula="f", label=label)
    figures.show(figure, alt="two laws with a point each")
    assert [one.name for one in scoreboard.comparisons()] == ["Two? held", "Two? opened"]


def test_a_damaged_event_costs_only_itself() -> None:
    law("Does it hold?", [2.0], [1.0])
    store.record("compared", "x", chapter="02", name="no points")
    store.record("compared", "y", chapter="02", name="zero", at=[1], measured=[1], theory=[0])
    store.record("compared", "z", chapter="02", name="uneven", at=[1], measured=[1, 2], theory=[1])
    assert [one.name for one in scoreboard.comparisons()] == ["Does it hold?"]


def test_rows_hold_predictions_numbers_and_laws() -> None:
    law("Does it hold?", [2.0], [1.0])
    score("03 plain over hedged", 5.0, "times", predicted="over 3")
    predict("02.1", "Which?", {"a": "one", "b": "two"}, guess="b").settle("a")
    rows = scoreboard.rows()
    assert [tuple(row) for row in rows] == [scoreboard.COLUMNS] * 3
    assert [(row["kind"], row["chapter"], row["measured"], row["predicted"]) for row in rows] == [
        ("number", "03", 5.0, "over 3"),
        ("prediction", "02", "a", "b"),
        ("theory", "02", 2.0, 1.0),
    ]


def words(figure) -> str:
    """All that is written in a figure."""
    figure.canvas.draw()
    ticks = [tick.get_text() for axes in figure.axes for tick in axes.get_yticklabels()]
    return " ".join([text.get_text() for axes in figure.axes for text in axes.texts] + ticks)


def test_the_sheet_says_what_is_missing() -> None:
    assert words(scoreboard.sheet()).count("nothing yet") == 3


def test_the_sheet_names_every_law_number_and_outcome() -> None:
    law("Does it hold?", [9.0], [1.0])  # off the axis
    score("03 plain over hedged", 5.0, "times", predicted=4)
    predict("02.1", "Which?", {"a": "one", "b": "two"}, guess="b").settle("a")
    predict("02.2", "Which?", {"a": "one", "b": "two"}, guess="a").settle("a")
    text = words(scoreboard.sheet())
    for part in ("02  Does it hold?", "03 plain over hedged", "5 times  (predicted 4)", "✓", "✗"):
        assert part in text
    assert "nothing yet" not in text


def test_a_zero_is_on_the_sheet_without_a_bar_and_a_name_ends_with_a_word() -> None:
    score("10 payments lost or doubled", 0, "payments", predicted=0)
    assert "0 payments  (predicted 0)" in words(scoreboard.sheet())
    score("10 a name of many words " + "that goes on " * 6, 2, "times")
    figure = scoreboard.sheet()
    assert "0 payments" in words(figure) and "that goes ..." in words(figure)
    assert len(figure.axes[2].patches) == 1


def test_export_writes_every_row_and_the_sheet(tmp_path) -> None:
    law("Does it hold?", [2.0, 3.0], [1.0, 3.0])
    assert scoreboard.export(tmp_path) == ["your_numbers.csv", "your_numbers.png"]
    with open(tmp_path / "your_numbers.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["at"], row["measured"], row["predicted"]) for row in found] == [
        ("0.0", "2.0", "1.0"),
        ("1.0", "3.0", "3.0"),
    ]
    assert (tmp_path / "your_numbers.png").read_bytes().startswith(b"\x89PNG")
    assert scoreboard.export(tmp_path) == ["your_numbers.csv", "your_numbers.png"]


def test_export_stays_beside_the_reader_s_notebooks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store, "folder", lambda: tmp_path / "my_work" / ".progress")
    (tmp_path / "my_work" / ".progress").mkdir(parents=True)
    (tmp_path / "my_work" / ".progress" / "events.jsonl").touch()
    scoreboard.export()
    assert sorted(path.name for path in (tmp_path / "my_work").glob("*.*")) == [
        ".progress",
        "your_numbers.csv",
        "your_numbers.png",
    ]


def test_export_into_no_folder_names_it(tmp_path) -> None:
    with pytest.raises(NotADirectoryError, match=r"nowhere.*this is no folder; make it, or name another"):
        scoreboard.export(tmp_path / "nowhere")


def test_what_a_chapter_measures_can_be_kept_from_run_to_run(tmp_path) -> None:
    """Chapter 11 is stored with what the chapters before it measured."""
    import nbformat

    from tests.tools.execute import execute

    def run(name: str, source: str) -> list[str]:
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
        execute(path, progress=tmp_path / "kept")
        return [output.text for output in nbformat.read(path, as_version=4).cells[0].outputs]

    assert run("one", "from support import score\nscore('01 a number', 2.0)") == []
    assert run("two", "from support.exercises import scores\nprint(*scores())") == ["01 a number\n"]
