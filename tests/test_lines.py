"""Lines that can be told apart without colour, and logarithmic axes with plain numbers."""

from __future__ import annotations

import math

import pytest

from support import figures
from support.lines import draw_lines, log_ticks


def texts(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_no_two_lines_share_a_style_or_a_colour():
    _, axes = figures.new_figure()
    draw_lines(axes, [1, 2], {name: [1, 2] for name in "abcd"})
    assert len({line.get_linestyle() for line in axes.lines}) == len({line.get_color() for line in axes.lines}) == 4
    assert [line.get_label() for line in axes.lines] == list("abcd")


def test_the_theory_lies_behind_the_lines_with_its_formula():
    _, axes = figures.new_figure()
    draw_lines(axes, [1, 2], {"measured": [1, 2]}, theory=[math.nan, 2], formula="x")
    behind, front = axes.lines
    assert (behind.get_label(), front.get_label()) == ("x", "measured")
    assert behind.get_linewidth() > 2 * front.get_linewidth() and behind.get_alpha() < 1


@pytest.mark.parametrize(
    ("series", "theory", "named"),
    [({name: [1, 2] for name in "abcde"}, None, "5 series"), ({"a": [1]}, None, "'a'"), ({"a": [1, 2]}, [1], "'f'")],
)
def test_what_cannot_be_drawn_is_named(series, theory, named):
    _, axes = figures.new_figure()
    with pytest.raises(ValueError, match=named):
        draw_lines(axes, [1, 2], series, theory=theory, formula="f")
    assert not axes.lines


def test_a_logarithmic_axis_has_the_ticks_it_was_given_in_plain_numbers():
    figure, axes = figures.new_figure()
    axes.plot([0.001, 2000], [1, 2])
    log_ticks(axes, x=(0.001, 0.5, 2000))
    figure.draw_without_rendering()
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert texts(axes.xaxis) == ["0.001", "0.5", "2000"] and not len(axes.xaxis.get_minorticklocs())


def test_a_tick_can_have_a_text_of_its_own():
    figure, axes = figures.new_figure()
    log_ticks(axes, y={2: "p50", 100: "p99"})
    figure.draw_without_rendering()
    assert texts(axes.yaxis) == ["p50", "p99"] and list(axes.yaxis.get_majorticklocs()) == [2, 100]
    assert axes.get_xscale() == "linear"
