"""Live figures: one place, few messages, flat memory, nothing left behind, and a loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import math
import re
import sys
import threading
import time
import tracemalloc

import pytest
from matplotlib.figure import Figure

from support import figures
from support import live as room
from support.live import SHARE, live
from tests.tools.live import LiveKernel
from tests.tools.rules import alts

ALT = "A line that grows while the run goes on."


@pytest.fixture
def shown(monkeypatch):
    """Every message to the notebook: its kind, what is displayed, and its display id."""
    messages = []

    def keep(kind):
        return lambda obj, /, *, raw, metadata=None, display_id=None: messages.append((kind, obj, metadata, display_id))

    monkeypatch.setattr("IPython.display.display", keep("display"))
    monkeypatch.setattr("IPython.display.update_display", keep("update"))
    monkeypatch.setattr(room, "_in_notebook", lambda: True)
    return messages


def small_figure():
    figure = Figure(figsize=(1.5, 1), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    return figure, axes.plot([], [])[0]


@pytest.fixture
def fake_pixels(monkeypatch):
    """Drawing that says when it begins, and lasts until it is let go."""
    begun, go_on = threading.Event(), threading.Event()

    def pixels(self):
        begun.set()
        assert go_on.wait(30)
        return "picture"

    monkeypatch.setattr(room.LiveFigure, "_pixels", pixels)
    monkeypatch.setattr(room, "png", lambda figure: "first")
    return begun, go_on


def test_one_display_is_updated_in_its_place_and_ends_as_a_figure_with_its_words(shown):
    figure, line = small_figure()
    seen = []

    async def run():
        async with live(figure, lambda: line.set_data([0, 1], [0, len(seen)]), alt=ALT, seconds=math.inf) as view:
            for _ in range(3):
                seen.append(1)
                await view.refresh()
        assert view.pictures == 5

    asyncio.run(run())
    kinds = [kind for kind, *_ in shown]
    assert kinds == ["display", "display", "update", "update", "update", "update"]
    pictures = [shown[0], *shown[2:]]
    assert len({display_id for *_, display_id in pictures}) == 1
    for _, output, metadata, _ in pictures:
        assert base64.b64decode(output["image/png"])[:8] == b"\x89PNG\r\n\x1a\n"
        assert output["text/plain"] == metadata["image/png"]["alt"] == ALT
    assert ALT in shown[1][1]["text/html"]


def test_two_figures_do_not_share_a_place(shown):
    async def run():
        for _ in range(2):
            figure, _ = small_figure()
            async with live(figure, lambda: None, alt=ALT, seconds=math.inf):
                pass

    asyncio.run(run())
    places = [display_id for kind, output, _, display_id in shown if "image/png" in output]
    assert len(places) == 4 and len(set(places)) == 2


def test_pictures_leave_no_figure_and_no_artist(shown):
    figure, line = small_figure()

    async def run():
        async with live(figure, lambda: line.set_data(range(50), range(50)), alt=ALT, seconds=math.inf) as view:
            seen = []
            for pictures in (40, 40, 100):  # in the first ones, the caches of fonts and paths fill
                for _ in range(pictures):
                    await view.refresh()
                    shown.clear()
                seen.append(counts())
        _, before, now = seen
        blocks, *things = (after - earlier for earlier, after in zip(before, now, strict=True))
        assert things == [0, 0]
        assert blocks < 300  # what matplotlib still caches; an axes alone is thousands of objects

    def counts():
        gc.collect()
        figures_alive = sum(isinstance(one, Figure) for one in gc.get_objects())
        return sys.getallocatedblocks(), figures_alive, len(figure.findobj())

    asyncio.run(run())


def test_two_hundred_updates_keep_no_memory(shown, monkeypatch):
    figure, _ = small_figure()
    size = 100_000
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(bytes(size)))

    async def run():
        async with live(figure, lambda: None, alt=ALT, seconds=math.inf) as view:
            await updates(view, 20)
            tracemalloc.start()
            try:
                await updates(view, 20)
                before = tracemalloc.get_traced_memory()[0]
                await updates(view, 200)
                assert tracemalloc.get_traced_memory()[0] - before < size / 5
            finally:
                tracemalloc.stop()

    async def updates(view, count):
        for _ in range(count):
            await view.refresh()
            shown.clear()
        gc.collect()

    asyncio.run(run())


def test_the_pixels_are_made_off_the_loop_and_the_data_change_on_it(shown, monkeypatch):
    figure, line = small_figure()
    places = {"draw": set(), "pixels": set()}
    plain_pixels = room.LiveFigure._pixels

    def pixels(self):
        places["pixels"].add(threading.current_thread())
        return plain_pixels(self)

    monkeypatch.setattr(room.LiveFigure, "_pixels", pixels)

    async def run():
        async with live(
            figure, lambda: places["draw"].add(threading.current_thread()), alt=ALT, seconds=math.inf
        ) as view:
            await view.refresh()
            await view.refresh()
            assert threading.main_thread() not in places["pixels"] and len(places["pixels"]) == 1

    asyncio.run(run())
    assert places["draw"] == {threading.main_thread()}
    assert not any(thread.is_alive() for thread in places["pixels"] - {threading.main_thread()})


def test_the_loop_runs_while_a_picture_is_made_and_no_second_one_is_begun(shown, fake_pixels):
    begun, go_on = fake_pixels
    figure, _ = small_figure()
    drawn = []

    async def run():
        async with live(figure, lambda: drawn.append(1), alt=ALT, seconds=0.05):
            while not begun.is_set():
                await asyncio.sleep(0.01)
            updates = len(drawn)
            for _ in range(20):  # a second picture would be due many times over
                await asyncio.sleep(0.01)
            assert len(drawn) == updates == 2  # at the start, and for the picture under way
            assert [kind for kind, *_ in shown] == ["display", "display"]
            go_on.set()

    asyncio.run(run())


def test_slow_pictures_are_paid_for_with_pauses(shown, monkeypatch):
    figure, _ = small_figure()
    made, clock = [], time.perf_counter

    def pixels(self):
        start = clock()
        time.sleep(0.05)
        made.append((start, clock()))
        return "picture"

    monkeypatch.setattr(room.LiveFigure, "_pixels", pixels)

    async def run():
        async with live(figure, lambda: None, alt=ALT, seconds=0.05):
            while len(made) < 4:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    in_background = made[:4]
    for (start, end), (next_start, _) in itertools.pairwise(in_background):
        assert next_start - start >= (end - start) / SHARE - 0.002  # a timer may end a little early


def test_messages_are_bounded_by_the_pace(shown, monkeypatch):
    figure, _ = small_figure()
    monkeypatch.setattr(room.LiveFigure, "_pixels", lambda self: "picture")

    async def run():
        start = time.perf_counter()
        async with live(figure, lambda: None, alt=ALT, seconds=0.1) as view:
            await asyncio.sleep(0.55)
            most = (time.perf_counter() - start) / 0.1 + 2  # the first picture, and the last
        assert 3 <= view.pictures <= most
        assert len(shown) == view.pictures + 1  # the words

    asyncio.run(run())


def test_a_cancelled_run_leaves_no_task_and_no_thread_and_keeps_its_last_picture(shown, fake_pixels):
    begun, go_on = fake_pixels
    figure, _ = small_figure()

    async def cell():
        async with live(figure, lambda: None, alt=ALT, seconds=0.05):
            await asyncio.sleep(60)

    async def run():
        threads = threading.active_count()
        task = asyncio.create_task(cell())
        while not begun.is_set():
            await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        threading.Timer(0.1, go_on.set).start()  # the end of the block waits for the thread
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
        assert threading.active_count() == threads
        assert shown[-1][0] == "update"

    asyncio.run(run())


def test_an_error_of_draw_comes_out_and_does_not_hide_that_of_the_run(shown):
    async def run(own_error):
        figure, _ = small_figure()
        calls = []

        def draw():
            calls.append(1)
            if len(calls) > 1:
                raise ValueError("of draw")

        async with live(figure, draw, alt=ALT, seconds=0.05):
            while len(calls) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
            if own_error:
                raise own_error
        raise AssertionError("the error of draw was lost")

    threads = threading.active_count()
    with pytest.raises(ValueError, match="of draw"):
        asyncio.run(run(None))
    with pytest.raises(KeyError, match="of the run"):
        asyncio.run(run(KeyError("of the run")))
    assert threading.active_count() == threads


def test_without_a_notebook_only_the_data_are_brought_up_to_date(capsys, monkeypatch):
    monkeypatch.setattr(room, "_in_notebook", lambda: False)
    figure, _ = small_figure()
    drawn = []

    async def run():
        threads = threading.active_count()
        async with live(figure, lambda: drawn.append(1), alt=ALT) as view:
            await asyncio.sleep(0.06)
            assert threading.active_count() == threads
            assert len(asyncio.all_tasks()) == 1
        return view

    view = asyncio.run(run())
    assert (len(drawn), view.pictures) == (2, 0)
    assert capsys.readouterr().out == ""


def test_a_figure_of_pyplot_is_closed(shown):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    async def run():
        figure, _ = pyplot.subplots(figsize=(1, 1), layout="constrained")
        assert pyplot.get_fignums()
        async with live(figure, lambda: None, alt=ALT, seconds=math.inf):
            pass

    asyncio.run(run())
    assert not pyplot.get_fignums()


def test_bad_input_is_told_in_a_sentence(shown):
    figure, _ = figures.new_figure()
    for arguments, more, error, words in (
        ((None, print), {"alt": ALT}, TypeError, "needs a figure"),
        ((figure, None), {"alt": ALT}, TypeError, "needs a function"),
        ((figure, print), {"alt": "short"}, ValueError, "describe in a sentence"),
        ((figure, print), {"alt": ALT, "seconds": 0.01}, ValueError, "seconds=0.01"),
        ((figure, print), {"alt": ALT, "seconds": math.nan}, ValueError, "seconds=nan"),
    ):
        with pytest.raises(error, match=re.escape(words)):
            live(*arguments, **more)

    async def twice():
        view = live(figure, lambda: None, alt=ALT, seconds=math.inf)
        async with view:
            pass
        async with view:
            pass

    with pytest.raises(RuntimeError, match="make another"):
        asyncio.run(twice())


CELL = """
import asyncio
from support.figures import new_figure
from support.live import live
figure, axes = new_figure(height=1)
(line,) = axes.plot([], [])
async with live(figure, lambda: line.set_data([0], [0]), alt="A line that grows while the run goes on.", seconds=0.1):
    print("running", flush=True)
    await asyncio.sleep({seconds})
"""


def test_in_a_kernel_an_interrupt_leaves_nothing_and_the_next_run_works(tmp_path):
    setup = "from support import open_chapter; open_chapter('live')"
    left = "import asyncio, threading; print(len(asyncio.all_tasks()) - tasks, threading.active_count() - threads)"
    before = "import asyncio, threading; tasks, threads = len(asyncio.all_tasks()), threading.active_count()"
    with LiveKernel(tmp_path) as kernel:
        kernel.run(setup)
        kernel.run(before)
        request = kernel.send(CELL.format(seconds=60))
        kernel.wait_until(request, "stream")
        kernel.interrupt()
        assert kernel.wait(request).status == "error"
        assert kernel.run(left).printed.split() == ["0", "0"]
        again = kernel.run(CELL.format(seconds=0.3))
        assert (again.status, again.printed) == ("ok", "running\n")
        assert kernel.run(left).printed.split() == ["0", "0"]


def test_a_stored_cell_holds_the_last_picture_once(tmp_path):
    import nbformat

    from tests.tools.execute import execute

    notebook = tmp_path / "live.ipynb"
    script = tmp_path / "live.py"
    script.write_text("# %%" + CELL.format(seconds=0.3), encoding="utf-8")
    execute(notebook, script)
    (cell,) = nbformat.read(notebook, as_version=4).cells
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 and alts(cell) == [ALT]
