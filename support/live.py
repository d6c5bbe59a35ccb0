"""A figure that is redrawn in its place while a run goes on, and stays as a plain picture afterwards.

    figure, axes = new_figure()
    (line,) = axes.plot([], [])
    async with live(figure, lambda: line.set_data(times, rates), alt="Requests per second against time."):
        await the_run()

The data changes on the loop, where it belongs: ``draw`` brings the artists up to date, and is cheap.
The pixels are made in a thread of their own, one picture at a time, while nothing else touches the
figure. Each picture is paid for with a pause, so that drawing takes a bounded share of one core: on
a busy machine there are fewer pictures, and the run is not slower.
"""

from __future__ import annotations

import asyncio
import base64
import html
import io
import math
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from matplotlib.figure import Figure

from .figures import png

SHARE = 0.25  # of one core, at most, for drawing
SHORTEST, LONGEST = 0.05, 60.0  # seconds between two pictures


class LiveFigure:
    """What ``live`` returns. It counts its ``pictures``, and the seconds of its ``longest_draw`` on the loop."""

    def __init__(self, figure: Figure, draw: Callable[[], object], alt: str, seconds: float) -> None:
        self.pictures = 0
        self.longest_draw = 0.0
        self._figure, self._draw, self._alt, self._seconds = figure, draw, alt, seconds
        self._place = {
            "raw": True,
            "metadata": {"image/png": {"alt": alt}},
            "display_id": f"live-{uuid.uuid4().hex}",
        }
        self._shown = _in_notebook()
        self._used = False
        self._thread: ThreadPoolExecutor | None = None
        self._drawing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._used:
            raise RuntimeError("This live figure was used before: make another with live(...).")
        self._used = True
        self._update()
        if self._shown:
            self._first()
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="live figure")
            if math.isfinite(self._seconds):
                self._drawing = asyncio.create_task(self._keep_drawing(), name="live figure")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = None
        try:
            if self._drawing is not None:
                self._drawing.cancel()
                await asyncio.wait([self._drawing])
                failed = None if self._drawing.cancelled() else self._drawing.exception()
        finally:
            if self._thread is not None:
                self._thread.shutdown()  # a picture under way is finished first: it reads the figure
            try:
                if failed is None:
                    self._last()
            finally:
                if pyplot := sys.modules.get("matplotlib.pyplot"):
                    pyplot.close(self._figure)  # nothing to do for a figure of new_figure()
        if failed is not None and error is None:
            raise failed

    async def refresh(self) -> None:
        """Bring the picture up to date now, if there is a notebook to show it in.

        The drawing in the background needs no such call, and must not be under way: it is for a
        run that says itself when there is something new, with ``seconds=math.inf``.
        """
        self._update()
        if self._shown:
            data = await asyncio.get_running_loop().run_in_executor(self._thread, self._pixels)
            self._show(data)

    async def _keep_drawing(self) -> None:
        pause = self._seconds
        while True:
            await asyncio.sleep(pause)
            start = time.perf_counter()
            await self.refresh()
            took = time.perf_counter() - start
            pause = max(self._seconds - took, took / SHARE - took)

    def _update(self) -> None:
        start = time.perf_counter()
        self._draw()
        self.longest_draw = max(self.longest_draw, time.perf_counter() - start)

    def _pixels(self) -> str:
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 1})
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    def _first(self) -> None:
        """Show the picture, with its corner note, and its words: the same two outputs as ``figures.show``."""
        from IPython.display import display

        self.pictures += 1
        display(self._output(png(self._figure)), **self._place)
        words = f"<details><summary>The figure in words</summary>{html.escape(self._alt)}</details>"
        display({"text/html": words, "text/plain": ""}, raw=True)

    def _show(self, data: str) -> None:
        from IPython.display import update_display

        self.pictures += 1
        update_display(self._output(data), **self._place)

    def _last(self) -> None:
        self._update()
        if self._shown:
            self._show(self._pixels())

    def _output(self, data: str) -> dict[str, str]:
        return {"image/png": data, "text/plain": self._alt}


def live(figure: Figure, draw: Callable[[], object], *, alt: str, seconds: float = 0.25) -> LiveFigure:
    """``async with live(figure, draw, alt=...)``: show ``figure`` now, and keep it up to date until the block ends.

    Outside a notebook nothing is shown; ``draw`` is then called at the start and at the end.

    Args:
        figure: as ``new_figure`` makes it; its artists exist, and its axes have their titles.
        draw: brings the artists up to date, as with ``line.set_data``. It is called on the loop, so
            it must be short, and it must add nothing that it does not take away. Its error ends the
            drawing, and comes out at the end of the block.
        alt: what is to be seen in the last picture.
        seconds: between two pictures at least; ``math.inf``: only ``refresh`` and the end draw.

    Raises:
        ValueError: ``alt`` is shorter than 20 characters, or ``seconds`` is out of range.
        TypeError: ``figure`` is not a figure, or ``draw`` cannot be called.
    """
    if not isinstance(figure, Figure):
        raise TypeError(f"live() needs a figure, as new_figure() returns it, not {figure!r}.")
    if not callable(draw):
        raise TypeError(f"live() needs a function that brings the figure up to date, not {draw!r}.")
    if not isinstance(alt, str) or len(alt.strip()) < 20:
        raise ValueError(f"live(alt={alt!r}): describe in a sentence what is to be seen in the figure.")
    if not isinstance(seconds, (int, float)) or not (SHORTEST <= seconds <= LONGEST or seconds == math.inf):
        raise ValueError(
            f"live(seconds={seconds!r}): from {SHORTEST:g} to {LONGEST:g} between two pictures, or math.inf."
        )
    return LiveFigure(figure, draw, alt, seconds)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None
