"""What the recorder costs: ``make bench``. Prints; asserts nothing, because a busy machine would lie.

Every figure is CPU time of the loop's thread, the least of several repeats.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

from matplotlib.figure import Figure

from support.figures import WIDTH, use_style
from support.recorder import record
from support.swimlanes import draw

STEPS, REPEATS = 20_000, 7


async def yielding(steps: int) -> None:
    """The bare step: give the loop a turn."""
    for _ in range(steps):
        await asyncio.sleep(0)


async def ping_pong(steps: int) -> None:
    """Two tasks that wake each other through events: every step is a real suspension."""
    here, there = asyncio.Event(), asyncio.Event()

    async def side(mine: asyncio.Event, other: asyncio.Event) -> None:
        for _ in range(steps // 2):
            await mine.wait()
            mine.clear()
            other.set()

    here.set()
    await asyncio.gather(side(here, there), side(there, here))


async def _cost(program: Callable[[int], Awaitable[None]], around: Callable[[], Any], steps: int) -> float:
    """Microseconds of CPU a step, the least of the repeats."""
    best = float("inf")
    for _ in range(REPEATS):
        with around():
            start = time.thread_time()
            await program(steps)
            best = min(best, time.thread_time() - start)
    return best / steps * 1e6


def cost_of_a_step(program: Callable[[int], Awaitable[None]]) -> dict[str, float]:
    """Microseconds a step: bare, recorded, under viztracer where there is one, in debug mode."""
    try:
        from viztracer import VizTracer
    except ImportError:  # it has no wheels for some systems
        VizTracer = None  # noqa: N806

    with tempfile.TemporaryDirectory() as folder:

        def traced() -> Any:
            return VizTracer(output_file=os.path.join(folder, "trace.json"), verbose=0, tracer_entries=2_000_000)

        async def quiet() -> dict[str, float]:
            costs = {"bare": await _cost(program, nullcontext, STEPS), "record()": await _cost(program, record, STEPS)}
            if VizTracer is not None:
                costs["viztracer"] = await _cost(program, traced, STEPS // 10)
            return costs

        costs = asyncio.run(quiet())
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        costs["debug mode"] = asyncio.run(_cost(program, nullcontext, STEPS // 10), debug=True)
    return costs


async def drawing_time(slices: int, lanes: int) -> tuple[int, float]:
    """Slices recorded, and CPU seconds from the raw log to the PNG."""
    with record() as timeline:
        await asyncio.gather(*[yielding(slices // lanes // 2) for _ in range(lanes)])
    start = time.process_time()
    use_style()
    figure = Figure(figsize=(WIDTH, 6), layout="constrained")
    draw(figure.subplots(), timeline)
    figure.savefig(io.BytesIO(), format="png")
    return len(timeline.slices), time.process_time() - start


def main() -> None:
    """Print both tables."""
    print(f"CPU time per step, {STEPS} steps, least of {REPEATS} runs")
    for program in (yielding, ping_pong):
        costs = cost_of_a_step(program)
        for name, cost in costs.items():
            print(f"  {program.__name__:10s} {name:11s} {cost:8.2f} us   {cost / costs['bare']:6.2f} x bare")
    print("CPU time to draw, from the recorder's log to the PNG")
    for slices in (1_000, 10_000, 100_000):
        for lanes in (20, 500):
            count, seconds = asyncio.run(drawing_time(slices, lanes))
            print(f"  {count:7d} slices in {lanes:4d} lanes   {seconds:6.2f} s")


if __name__ == "__main__":
    main()
