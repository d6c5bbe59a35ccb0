"""Figures of what grows with the number of workers: what they hold, and what they refuse."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from support import scaling, theory

LAWS = {"memory": ("limit x W", [20, 40, 80]), "Redis": ("limit", [20, 20, 20])}


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_contention_is_never_more_than_the_law_knows() -> None:
    axes = Figure().subplots()
    assert scaling.draw(axes, (1, 2, 4), (100, 99, 80), (120, 120, 120), formula="users / S") == 1
    assert "USL, contention 1.00" in labels(axes)
    assert scaling.draw(Figure().subplots(), (1, 2, 4), (100, 200, 400), (400, 400, 400), formula="f") == 0


def test_laws_on_one_axes_have_dashes_and_labels_of_their_own() -> None:
    axes = Figure().subplots()
    let_in = {"memory": [20, 40, 80], "Redis": [20, 20, 21]}
    assert scaling.draw_laws(axes, (1, 2, 4), let_in, LAWS, label="counted in") == pytest.approx(1 / 20)
    theory = [line for line in axes.lines if line.get_label().startswith("theory")]
    assert len({str(line._dash_pattern) for line in theory}) == len(theory) == 2
    assert [text.get_text() for text in axes.texts] == ["limit x W", "limit"]
    assert {"counted in memory", "counted in Redis"} <= set(labels(axes))
    with pytest.raises(ValueError, match="one to 4 laws, not 0"):
        scaling.draw_laws(axes, (1, 2, 4), {}, {}, label="counted in")
    with pytest.raises(KeyError):
        scaling.draw_laws(axes, (1, 2, 4), {}, LAWS, label="counted in")


def test_the_gain_of_a_cluster_has_both_break_evens() -> None:
    axes = Figure().subplots()
    scaling.draw_gain(axes, (0.5, 5, 40), [[0.2, 0.3], [0.7, 0.8], [1.4, 1.6]], 1.5, 2, 12.0)
    found = {line.get_label(): line.get_xdata()[0] for line in axes.lines if "break-even" in line.get_label()}
    assert found == {"break-even: s = o W / (W - 1)": 3.0, "measured break-even": 12.0}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "5", "40"]
    with pytest.raises(ValueError, match="workers cannot be 1"):
        scaling.draw_gain(axes, (1,), [[1]], 1.0, 1, 1.0)


def test_the_fullest_server_is_drawn_beside_its_laws() -> None:
    axes = Figure().subplots()
    laws = {choices: [theory.most_in_one_bin(n, choices) for n in (10, 100)] for choices in (1, 2)}
    assert scaling.draw_fullest(axes, (10, 100), laws, (5, 9)) == pytest.approx(0)
    assert "random, mean of 5 to 9 runs" in labels(axes) and axes.get_xscale() == "log"
    off = {1: laws[1], 2: [1.1 * one for one in laws[2]]}
    assert scaling.draw_fullest(Figure().subplots(), (10, 100), off, (5, 9)) == pytest.approx(0.1)
    with pytest.raises(KeyError):
        scaling.draw_fullest(axes, (10, 100), {3: laws[1]}, (5, 9))
