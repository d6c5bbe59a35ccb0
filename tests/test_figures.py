"""The drawings: few artists however many slices, nothing lost that could be seen, words for every picture."""

from __future__ import annotations

import asyncio
import base64
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from support import figures, swimlanes
from support.clock import occupy_loop, simulate
from support.recorder import record
from support.timeline import Timeline


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata=None: shown.append((data, metadata)))
    return shown


async def some_work(jobs: int, steps: int, title: str = "some work") -> Timeline:
    gate = asyncio.Semaphore(2)

    async def job(number: int) -> None:
        for _ in range(steps):
            async with gate:
                occupy_loop(0.001 * (number + 1))
                await asyncio.sleep(0.01)

    with record(title, block_ms=4) as timeline:
        async with asyncio.TaskGroup() as group:
            for number in range(jobs):
                group.create_task(job(number), name=f"job {number}")
    return timeline


def drawn(timeline: Timeline, **options):
    axes = Figure(figsize=(8, 4)).subplots()
    swimlanes.draw(axes, timeline, **options)
    return axes


def test_a_picture_comes_with_its_words_in_three_places(displayed):
    figure, axes = figures.new_figure()
    axes.plot([0, 1], [0, 1])
    figures.show(figure, "A line that rises from <zero> to one.")
    (picture, metadata), (words, _) = displayed
    assert base64.b64decode(picture["image/png"])[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture["text/plain"] == metadata["image/png"]["alt"] == "A line that rises from <zero> to one."
    assert (
        words["text/html"]
        == "<details><summary>The figure in words</summary>A line that rises from &lt;zero&gt; to one.</details>"
    )


def test_the_corner_of_a_figure_tells_what_it_was_measured_on():
    assert re.fullmatch(r"measured on Python 3\.\d+\.\S+, \w+, \d+ cores", figures.footnote())


def test_a_picture_without_words_is_refused(displayed):
    figure, _ = figures.new_figure()
    with pytest.raises(ValueError, match=r"show\(alt='plot'\): describe"):
        figures.show(figure, "plot")
    assert displayed == []


def test_the_residual_is_the_worst_distance_of_a_median_from_the_theory():
    _, axes = figures.new_figure()
    residual = figures.measured_against_theory(
        axes, [1, 2], [[1.0, 1.1, 1.3], [2.0, 2.0, 9.0]], [1.0, 2.5], formula="x"
    )
    assert residual == pytest.approx(0.2)
    assert [line.get_label() for line in axes.get_lines()][0] == "theory: x"
    with pytest.raises(ValueError, match="2 x values, 1 groups of runs and 2 theory values"):
        figures.measured_against_theory(axes, [1, 2], [[1.0]], [1.0, 2.0], formula="x")


def test_bars_and_ladders_say_their_values_and_mark_the_theory():
    _, axes = figures.new_figure()
    figures.bars(axes, {"one": 1.0, "two": 1.9}, unit="x", theory={"one": 1.0, "two": 2.0})
    assert {text.get_text() for text in axes.texts} == {"1.00 x", "1.90 x"}
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[1.0, 1.0], [2.0, 2.0]]
    _, axes = figures.new_figure()
    figures.ladder(axes, {"short": [1.0, 2.0, 3.0], "long": [200.0]}, unit="us")
    assert axes.get_xscale() == "log" and {text.get_text() for text in axes.texts} == {"2 us", "200 us"}


def test_the_bar_of_a_group_is_its_median_with_the_middle_half_on_it():
    _, axes = figures.new_figure()
    figures.medians(axes, {"one": [1.0, 2.0, 3.0, 4.0, 90.0], "two": [7.0]}, unit="x", digits=0)
    assert [bar.get_width() for bar in axes.patches] == [3.0, 7.0]
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[2.0, 4.0], [7.0, 7.0]]
    assert {text.get_text() for text in axes.texts} == {"3 x", "7 x"}


def test_a_block_of_the_loop_is_as_wide_as_it_is_high():
    _, axes = figures.new_figure()
    figures.lag_trace(axes, [10.0, 20.0], [0.0, 300.0])
    corners = axes.collections[0].get_paths()[1].vertices
    assert corners[:, 0].max() - corners[:, 0].min() == corners[:, 1].max() == 300


def test_a_cdf_ends_at_one():
    _, axes = figures.new_figure()
    figures.latency_cdf(axes, {"a": [3, 1, 2]})
    line = axes.get_lines()[0]
    assert list(line.get_xdata()) == [1, 2, 3] and list(line.get_ydata()) == pytest.approx([1 / 3, 2 / 3, 1])


def test_one_collection_a_look_however_many_slices():
    few, many = simulate(some_work, 3, 1), simulate(some_work, 3, 400)
    assert len(many.slices) > 100 * len(few.slices) / 2
    assert len(drawn(many).collections) == len(drawn(few).collections) <= 7


def test_the_picture_names_lanes_reasons_and_the_line_that_blocks():
    timeline = simulate(some_work, 5, 1)
    axes = drawn(timeline)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "main",
        *(f"job {n}" for n in range(5)),
        "event loop",
    ]
    key = {text.get_text() for text in axes.figure.legends[0].get_texts()}
    assert {
        "running: holds the loop",
        "suspended: sleep",
        "suspended: semaphore, child tasks",
        "blocks the loop",
    } <= key
    (label,) = {text.get_text() for text in axes.texts if "line" in text.get_text()}
    assert (
        "some_work.<locals>.job, line" in label
        and "occupy_loop(0.001 * (number + 1))" in label
        and "holds the loop 5 ms" in label
    )
    assert axes.get_xlabel() == "virtual time since start (ms)"


def test_arrows_on_demand_go_from_the_waker_to_the_woken():
    timeline = simulate(some_work, 4, 1)
    arrows = [
        text
        for text in drawn(timeline, wakes=True).texts
        if isinstance(text, Annotation) and text.arrow_patch is not None
    ]
    woken = [p for p in timeline.slices if p.state == "suspended" and p.woken_by >= 0]
    assert len(arrows) == len(woken) > 0
    assert not [text for text in drawn(timeline).texts if getattr(text, "arrow_patch", None)]


def test_lanes_beyond_a_screenful_are_one_band_that_says_so():
    axes = drawn(simulate(some_work, 100, 1))
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(labels) == swimlanes.MOST_LANES + 2
    assert labels[-2] == f"{101 - swimlanes.MOST_LANES} more lanes:\nshare in each state"
    assert len(drawn(simulate(some_work, 100, 1), only=["main", "job 99"]).get_yticklabels()) == 3


def test_a_lane_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="no lane called 'job 9'; the lanes are main, job 0"):
        drawn(simulate(some_work, 1, 1), only=["job 9"])


def test_two_timelines_share_one_scale(displayed, monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "png", lambda figure: seen.append([axes.get_xlim() for axes in figure.axes]) or "")
    short, long = simulate(some_work, 2, 1, "short"), simulate(some_work, 2, 3, "long")
    short.plot(beside=long)
    assert seen[0][0] == seen[0][1]
    alt = displayed[0][0]["text/plain"]
    assert (
        alt.startswith("Timeline of short: 3 lanes (3 finished); suspended on")
        or "Timeline of short: 3 lanes (2 finished" in alt
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1), st.floats(0, 0.2)), min_size=1, max_size=200))
def test_boxes_left_out_are_covered_by_boxes_drawn(found):
    """Every pixel that a box touches is still touched by a box of the same lane."""
    rows = [(float(lane), start, min(start + length, 1.0), 0.3) for lane, start, length in found]
    axes = Figure().subplots()
    swimlanes._add_boxes(axes, rows, 1.0, figures.RUNNING, "")
    (collection,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    touched = {(row, pixel) for row, start, end, _ in rows for pixel in (int(start * 2000), int(end * 2000))}
    kept = np.zeros((3, 2002), dtype=bool)
    for path in collection.get_paths():
        x, y = path.vertices[:, 0] / 1000, path.vertices[:, 1]
        kept[round(float(y.min() + 0.3)), int(x.min() * 2000 + 1e-9) : int(x.max() * 2000 + 1e-9) + 1] = True
    assert all(kept[int(row), max(pixel - 1, 0) : pixel + 2].any() for row, pixel in touched)


def test_a_png_is_small_and_has_no_date():
    figure = Figure(figsize=(8, 4), layout="constrained")
    swimlanes.draw(figure.subplots(), simulate(some_work, 10, 20))
    data = base64.b64decode(figures.png(figure))
    assert len(data) < 150_000
    assert b"Software" not in data
    width = struct.unpack(">I", data[16:20])[0]
    assert width == 800


KNEE = ([1, 4, 16], [[9.0, 10.0, 12.0], [38.0], [50.0]], [[0.1], [0.1, 0.125, 0.3], [0.32]])


def test_a_knee_has_both_bounds_and_says_where_it_is():
    figure, pair = figures.new_figure(columns=2)
    residuals = figures.knee(pair, *KNEE, service_time=0.1, capacity=50)
    assert residuals == (pytest.approx(0.05), pytest.approx(0.25))
    for axes, at_knee, word in zip(pair, (50, 100), ("X = min", "R = max"), strict=True):
        theory, knee = axes.get_lines()[0], axes.get_lines()[-1]
        drawn = dict(zip(theory.get_xdata(), theory.get_ydata(), strict=True))
        assert drawn[5] == pytest.approx(at_knee)  # the corner of the line, though N = 5 was not measured
        assert word in theory.get_label() and list(knee.get_xdata()) == [5, 5]
        assert [text.get_text() for text in axes.texts] == ["knee\nN* = μS = 5"]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4", "16"]
    medians = [axes.containers[0].lines[0].get_ydata() for axes in pair]
    assert list(medians[0]) == [10, 38, 50] and list(medians[1]) == pytest.approx([100, 125, 320])
    with pytest.raises(ValueError, match="knee: 2 concurrencies, 3 groups of throughputs and 3 of latencies"):
        figures.knee(pair, KNEE[0][:2], *KNEE[1:], service_time=0.1, capacity=50)


def test_a_storm_names_each_variant_where_no_other_name_is():
    figure, axes = figures.new_figure()
    times, up, down = [0.5, 1.5, 2.5], [7.0, 0.0, 7.0], [7.0, 0.0, 0.0]
    figures.storm(axes, times, {"none": up, "two\nlines": up, "retries": down}, stall=(1, 2), load=7, capacity=10)
    figure.canvas.draw()
    texts = {text.get_text(): text for text in axes.texts}
    assert set(texts) == {"stall", "capacity μ = 10", "load λ = 7", "● none", "■ two\nlines", "▲ retries"}
    boxes = [text.get_window_extent() for name, text in texts.items() if name[0] in "●■▲"]
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)
    lines = [line for line in axes.get_lines() if line.get_marker() != "None"]
    assert [list(line.get_ydata()) for line in lines] == [up, up, down]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 3
    (band,) = axes.patches
    assert (band.get_x(), band.get_width()) == (1, 1)
    with pytest.raises(ValueError, match="storm: 3 times and 2 values of 'none' do not match"):
        figures.storm(axes, times, {"none": [1, 2]}, stall=(1, 2), load=7, capacity=10)
    with pytest.raises(ValueError, match="storm: 5 variants are too many"):
        figures.storm(axes, times, dict.fromkeys("abcde", up), stall=(1, 2), load=7, capacity=10)


def test_a_storm_plane_shows_the_line_and_counts_what_it_gets_wrong():
    _, axes = figures.new_figure()
    stuck = [[False, False, True], [False, True, True]]  # 0 and 1 retries; wrong: no retries at 80
    assert figures.storm_plane(axes, [0, 1], [20, 60, 80], stuck, capacity=100) == 1
    recovers, down, line = axes.get_lines()
    assert list(recovers.get_xdata()) == pytest.approx([0.2, 0.6, 0.2]) and list(recovers.get_ydata()) == [0, 0, 1]
    assert list(down.get_xdata()) == pytest.approx([0.8, 0.6, 0.8]) and list(down.get_ydata()) == [0, 1, 1]
    assert recovers.get_markerfacecolor() == "none" != down.get_markerfacecolor()
    assert line.get_xdata() * (1 + line.get_ydata()) == pytest.approx(1)
    assert [text.get_text() for text in axes.texts] == ["λ(1 + r) = μ"]
    with pytest.raises(ValueError, match=r"storm_plane: 2 rows of 3 are needed, .* has the shape \(1, 3\)"):
        figures.storm_plane(axes, [0, 1], [20, 60, 80], stuck[:1], capacity=100)


def test_a_pool_curve_draws_each_series_with_its_law_and_names_the_regimes():
    _, axes = figures.new_figure()
    series = {
        "many": ({1: [9.0, 10.0, 12.0], 4: [35.0], 64: [90.0]}, lambda size: min(10 * size, 100)),
        "few": ({4: [20.0, 21.0, 24.0]}, lambda _: 20),
    }
    best = figures.pool_curve(axes, series, "K/S", {"the pool limits": (1, 30)}, title="Why?")
    assert best == {"many": {1: 1.2, 4: 0.875, 64: 0.9}, "few": {4: 1.2}}
    laws = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert [law.get_label() == "theory: K/S" for law in laws] == [True, False]
    for law, (low, high) in zip(laws, ((10, 100), (20, 20)), strict=True):
        assert (law.get_ydata().min(), law.get_ydata().max()) == pytest.approx((low, high))
        assert (law.get_xdata()[0], law.get_xdata()[-1]) == pytest.approx((1, 64))
    many, few = (bars.lines[0] for bars in axes.containers)
    assert (list(many.get_xdata()), list(many.get_ydata())) == ([1, 4, 64], [10, 35, 90])
    assert list(few.get_ydata()) == [21] and few.get_marker() != many.get_marker()
    assert [text.get_text() for text in axes.texts] == ["the pool limits"]
    assert (axes.get_yscale(), axes.get_ylim()) == ("log", pytest.approx((2.5, 300)))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4", "64"]
    with pytest.raises(ValueError, match="pool_curve: 'few' has no runs with 4 connections"):
        figures.pool_curve(axes, series | {"few": ({4: []}, float)}, "", {}, title="")
    with pytest.raises(ValueError, match="pool_curve: one or two series can be told apart, not 0"):
        figures.pool_curve(axes, {}, "", {}, title="")
    figures.pool_curve(axes := figures.new_figure()[1], {"slow": ({1: [1.0]}, lambda _: 10)}, "", {}, title="")
    assert axes.get_ylim() == pytest.approx((0.7, 30))  # a run far below its theory stays in the picture


def test_pool_waits_tell_how_far_the_pool_is_from_first_come_first_served():
    _, pair = figures.new_figure(columns=2)
    real = {0.5: [(0.55, 1.1, 1.0), (0.6, 9.0, 1.0)], 0.8: [(1.2, 15.0, 20.0)]}  # the median ratio is 1.1
    apart = figures.pool_waits(
        pair, {0.5: [1.0, 2.0, 9.0], 0.8: [5.0]}, real, lambda load: load / (1 - load), formula="x"
    )
    assert apart == pytest.approx(0.1)
    law, simulated, *asyncpg = pair[0].get_lines()
    assert law.get_ydata() == pytest.approx(law.get_xdata() / (1 - law.get_xdata()))
    assert (list(simulated.get_xdata()), list(simulated.get_ydata())) == ([0.5, 0.8], [2.0, 5.0])
    assert [list(line.get_xdata()) for line in asyncpg] == [[0.55, 0.6], [1.2]]
    assert pair[0].get_xlim()[1] > 1.2 and pair[0].get_ylim()[1] > 15  # overload is no reason to fall off the picture
    assert [list(line.get_xdata()) for line in pair[1].get_lines()[:2]] == [[1.0, 1.0], [20.0]]


def test_waits_have_erlangs_line_only_where_there_is_one():
    for rate, loaded in ((200, False), (500, True)):
        _, axes = figures.new_figure()
        figures.wait_survival(axes, [0.0, 0.0, 0.01, 0.03], rate=rate, service_time=0.01, servers=4)
        steps, *others = axes.get_lines()
        assert list(steps.get_xdata()) == [0, 0, 10, 30] and list(steps.get_ydata()) == [1, 0.75, 0.5, 0.25]
        assert [line.get_label().startswith("theory") for line in others] == ([False] if loaded else [True, False])
        assert ("only grows" in axes.get_title() + axes.get_title(loc="left")) == loaded
    _, axes = figures.new_figure()
    figures.wait_survival(axes, [0.0, 0.02], rate=60, service_time=0.01, servers=1)  # M/M/1: C is the load
    law = axes.get_lines()[1]
    assert law.get_ydata()[0] == pytest.approx(0.6) and law.get_ydata()[-1] == pytest.approx(0.6 * np.exp(-40 * 0.02))


def test_a_tall_sheet_of_words_is_stored_with_a_palette(monkeypatch) -> None:
    import base64
    import io

    from PIL import Image

    def drawn(rows: int) -> tuple[str, int]:
        figure, axes = figures.new_figure(height=0.25 * rows)
        for row in range(rows):
            axes.text(0, row, f"a line of words, number {row}, long enough to take some room in a picture" * 2)
        axes.set_ylim(0, rows)
        picture = base64.b64decode(figures.png(figure))
        return Image.open(io.BytesIO(picture)).mode, len(picture)

    monkeypatch.setattr(figures, "LARGE", 10**9)
    (small, _), (tall, before) = drawn(4), drawn(60)
    assert small == tall == "RGBA"
    monkeypatch.setattr(figures, "LARGE", before // 2)
    (small, _), (tall, after) = drawn(4), drawn(60)
    assert (small, tall) == ("RGBA", "P") and after < before / 2
