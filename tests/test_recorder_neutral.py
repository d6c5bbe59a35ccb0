"""The recorder changes nothing: random programs, run bare and recorded, see the same things in the same order."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest

from support.clock import simulate
from support.recorder import record

from .random_programs import Program

PROGRAMS = 1000


@pytest.fixture(autouse=True)
def quick_collections():
    """Every program ends with a collection; let it not visit what the test session has imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_a_thousand_random_programs_cannot_tell_that_they_are_recorded():
    steps = kinds = 0
    for seed in range(PROGRAMS):
        bare = simulate(Program(seed).run, contextlib.nullcontext())
        recorder = record()
        recorded = simulate(Program(seed).run, recorder)
        assert recorded == bare, f"program {seed}"
        steps += len(bare)
        kinds += any(entry[3:4] == ("raised",) for entry in bare[:-2])
    assert steps > 20 * PROGRAMS  # the programs do something
    assert 0.05 * PROGRAMS < kinds < 0.95 * PROGRAMS  # some end in an error and some do not


def test_the_comparison_can_fail():
    class Meddler:
        """A recorder as it must not be: it lets the last in line go first."""

        def __enter__(self) -> None:
            loop = asyncio.get_running_loop()
            plain = loop._call_soon

            def jump_the_queue(callback, args, context):
                handle = plain(callback, args, context)
                loop._ready.rotate(1)
                return handle

            loop._call_soon = jump_the_queue

        def __exit__(self, *_: object) -> None:
            del asyncio.get_running_loop()._call_soon

    assert any(
        simulate(Program(seed).run, contextlib.nullcontext()) != simulate(Program(seed).run, Meddler())
        for seed in range(20)
    )


@pytest.mark.parametrize("seed", range(20))
def test_what_is_recorded_adds_up(seed):
    timelines = []

    class Keep(record):
        def __enter__(self):
            timelines.append(super().__enter__())
            return timelines[-1]

    simulate(Program(seed).run, Keep())
    (timeline,) = timelines
    for lane in timeline.lanes:
        pieces = [piece for piece in timeline.slices if piece.lane == lane.index]
        end = timeline.makespan if lane.ended is None else lane.ended - timeline.origin
        # Slices of a lane touch each other and cover its whole life.
        assert [p.start for p in pieces[1:]] == pytest.approx([p.end for p in pieces[:-1]])
        assert sum(p.duration for p in pieces) == pytest.approx(end - (lane.born - timeline.origin))
    path = timeline.critical_path()
    assert all(later.start == pytest.approx(earlier.end) for earlier, later in zip(path, path[1:], strict=False))
