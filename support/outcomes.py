"""What becomes of jobs whose worker is killed: waiting for an answer, a broker's client, and the grid of outcomes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from support import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ASK_AGAIN = 0.01  # seconds between two questions


async def until(question: Callable[[], Awaitable[Any]], wanted: Any, within: float = 20.0) -> None:
    """Ask until the answer is `wanted`. Raises TimeoutError, with the last answer, after `within` seconds."""
    answer: Any = None
    try:
        async with asyncio.timeout(within):
            while (answer := await question()) != wanted:
                await asyncio.sleep(ASK_AGAIN)
    except TimeoutError:
        raise TimeoutError(f"The answer was still {answer!r} after {within:g} s, not {wanted!r}.") from None


@contextlib.asynccontextmanager
async def client_of(broker: Any) -> AsyncIterator[Any]:
    """Open a taskiq broker for a program that sends jobs, and close it.

    A group of workers of a Redis stream sees the jobs from its making on. `startup` makes it: whoever sends must call it.
    """
    try:
        await broker.startup()
        yield broker
    finally:
        await broker.shutdown()


def draw_outcomes(axes: Axes, outcomes: Mapping[str, Mapping[str, tuple[int, int]]], each: int) -> None:
    """Draw a grid of ways (rows) and steps (columns); `outcomes[way][step]` is (lost, doubled), of `each` jobs.

    Colour and shape both tell what happened; the count stands below.
    Raises ValueError when jobs of one place were lost and doubled: one mark cannot say both.
    """
    looks = {"once": ("o", figures.NETWORK), "lost": ("X", figures.BLOCKED), "doubled": ("D", figures.READY)}
    steps = list(next(iter(outcomes.values())))
    for row, (way, ends) in enumerate(outcomes.items()):
        for column, step in enumerate(steps):
            lost, doubled = ends[step]
            if lost and doubled:
                raise ValueError(
                    f"{way!r}, killed {step!r}: {lost} jobs were lost and {doubled} doubled; draw them apart."
                )
            what = "lost" if lost else "doubled" if doubled else "once"
            marker, colour = looks[what]
            axes.scatter(column, row, s=140, marker=marker, color=colour, zorder=3)
            text = f"{lost or doubled or each} of {each} {what}"
            axes.annotate(text, (column, row), (0, -11), textcoords="offset points", ha="center", va="top")
    axes.set(xticks=range(len(steps)), xticklabels=steps, yticks=range(len(outcomes)), yticklabels=list(outcomes),
             xlim=(-0.5, len(steps) - 0.5), ylim=(len(outcomes) - 0.3, -0.5))  # fmt: skip
    axes.grid(False)
