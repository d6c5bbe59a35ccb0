"""The lag probe and the watchdog. What must hold on a busy machine is counted, or the best of several tries."""

from __future__ import annotations

import asyncio
import gc
import json
import queue
import sys
import threading
import time

import pytest

from support import occupy_loop, simulate
from support.watch import LagProbe, Watchdog


def planted(seconds: float) -> float:
    """Holds the thread; returns when it began."""
    began = time.perf_counter()
    time.sleep(seconds)
    return began


def run(main):
    """Run main() and prove that nothing is left of it: no thread, no gc callback."""
    threads, callbacks = threading.active_count(), list(gc.callbacks)
    result = asyncio.run(main())
    assert (threading.active_count(), gc.callbacks) == (threads, callbacks)
    return result


# --- The lag probe, where time is exact -------------------------------------------------------------


def test_a_probe_reads_the_block_less_the_wait_for_its_next_beat():
    async def main() -> LagProbe:
        async with LagProbe(0.02) as probe:
            await asyncio.sleep(0.105)  # 5 ms after a beat
            occupy_loop(0.2)
            await asyncio.sleep(0.1)
        return probe

    probe = simulate(main)
    assert probe.max == pytest.approx(0.185)
    assert [round(due, 3) for due, late in probe.beats if late] == [0.12]
    assert [round(due, 3) for due, _ in probe.beats][5:8] == [
        0.12,
        0.32,
        0.34,
    ]  # the next one is on the grid, and not late
    assert (probe.count, probe.quantile(0.5)) == (11, 0.0)
    assert probe.quantile(1) == probe.max


@pytest.mark.parametrize(("start", "seen"), [(0.105, 0.0), (0.115, 0.005)])
def test_a_block_shorter_than_the_period_is_seen_by_luck(start, seen):
    async def main() -> float:
        async with LagProbe(0.02) as probe:
            await asyncio.sleep(start)
            occupy_loop(0.01)
            await asyncio.sleep(0.1)
        return probe.max

    assert simulate(main) == pytest.approx(seen, abs=1e-9)


def test_a_probe_sees_a_block_right_before_its_end_and_remembers_a_bounded_number():
    async def main() -> LagProbe:
        async with LagProbe(0.02, keep=3) as probe:
            await asyncio.sleep(1.01)
            occupy_loop(0.5)
        await asyncio.sleep(1)
        return probe

    probe = simulate(main)
    assert probe.max == pytest.approx(0.49)
    assert (len(probe.beats), probe.count) == (3, 51)


def test_a_probe_tells_each_beat_and_goes_on_after_an_error_of_who_is_told():
    async def main() -> tuple[list[float], list[object]]:
        told, errors = [], []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))

        def tell(late: float) -> None:
            told.append(round(late, 3))
            if late:
                raise KeyError("planted")

        async with LagProbe(0.02, on_beat=tell):
            await asyncio.sleep(0.05)
            occupy_loop(0.1)
            await asyncio.sleep(0.035)
        return told, [type(error) for error in errors]

    assert simulate(main) == ([0, 0, 0.09, 0, 0], [KeyError])


def test_a_probe_on_a_real_loop_reads_at_least_the_block_less_one_period():
    async def main() -> LagProbe:
        async with LagProbe(0.01) as probe:
            await asyncio.sleep(0.03)
            planted(0.1)
        return probe

    assert run(main).max > 0.09


# --- The watchdog ----------------------------------------------------------------------------------


def test_names_function_file_and_line_of_a_block_while_it_lasts():
    async def main():
        found = []
        async with Watchdog(0.05) as dog:
            for _ in range(4):
                await asyncio.sleep(0.03)
                began = planted(0.1)
                await asyncio.sleep(0.03)
                found.append((began, dog.blocks[-1] if dog.blocks else None))
        return found, dog

    found, dog = run(main)
    assert dog.count == len(dog.blocks) == 4, [str(block.place) for block in dog.blocks]
    for _, block in found:
        assert (block.place.function, block.place.file, block.place.library) == ("planted", __file__, "")
        assert str(block.place).endswith(
            "time.sleep(seconds)"
        ) and f"line {planted.__code__.co_firstlineno + 3}:" in str(block.place)
        assert block.over and block.seconds > 0.07
    assert min(block.named_at - began for began, block in found) < 0.15


def test_names_the_block_before_it_ends():
    async def main():
        named = threading.Event()
        async with Watchdog(0.03, on_block=lambda block: named.set()) as dog:
            await asyncio.sleep(0)
            while_it_lasts = named.wait(5)  # holds the loop
        return while_it_lasts, dog

    while_it_lasts, dog = run(main)
    assert while_it_lasts and dog.count == 1
    assert dog.blocks[0].place.function.endswith("main")
    assert dog.blocks[0].place.library == "threading.Condition.wait"


class LooksByOrder:
    """Stands in for what the watchdog's thread waits on: it looks when it is told to, and not by the clock."""

    def __init__(self) -> None:
        self._orders: queue.Queue[bool] = queue.Queue()
        self._looked: queue.Queue[None] = queue.Queue()

    def acquire(self, timeout: float) -> bool:
        self._looked.put(None)  # the look before this is over
        return self._orders.get()

    def release(self) -> None:
        self._orders.put(True)

    def look(self) -> None:
        self._orders.put(False)
        self._looked.get(timeout=5)


def test_collections_within_a_block_do_not_hide_it():
    """Code that makes objects makes the collector run, again and again: here each look finds it at work."""

    def makes_objects(dog: Watchdog, looks: LooksByOrder) -> None:
        for _ in range(8):
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass
            dog._on_gc("start", {})
            looks.look()
            dog._on_gc("stop", {})

    async def main():
        gc.disable()  # only what this test says is a collection
        try:
            async with Watchdog(0.05) as dog:
                dog._running, waits = LooksByOrder(), dog._running
                while dog._running._looked.empty():  # one more look by the clock, which finds the loop idle
                    await asyncio.sleep(0.01)
                dog._running._looked.get()
                makes_objects(dog, dog._running)
                await asyncio.sleep(0)
                dog._running.look()
        finally:
            gc.enable()
        assert waits.locked()
        return dog

    dog = run(main)
    assert dog.count == 1, (list(dog.blocks), dog.pauses)
    assert 0.1 < dog.blocks[0].seconds and all(place.file == __file__ for place in dog.blocks[0].places)


def test_names_a_call_that_keeps_the_interpreter_lock():
    numbers = [n * 7919 % 1_000_003 for n in range(1_000_003)]

    def planted_in_c() -> int:
        first = sorted(numbers)[0]
        return first

    async def main():
        async with Watchdog(0.02) as dog:
            for _ in range(3):
                await asyncio.sleep(0.03)
                planted_in_c()
        return dog

    places, start = [block.place for block in run(main).blocks], planted_in_c.__code__.co_firstlineno
    assert places
    for place in places:  # from 3.13 on it can be the line after the call: where the lock changes hands
        assert place.function.endswith("planted_in_c") and start < place.line <= start + 2, place


def test_a_library_function_is_named_with_the_line_that_called_it():
    async def main():
        async with Watchdog(0.02) as dog:
            await asyncio.sleep(0.03)
            json.JSONEncoder(indent=1).encode(list(range(250_000)))  # written in Python where there is an indent
        return dog

    blocks = run(main).blocks
    assert any(place.library.startswith("json.encoder.") for block in blocks for place in block.places), blocks


def test_no_false_alarm_over_idle_gc_timers_and_short_steps():
    async def main():
        keep = [[] for _ in range(300_000)]  # here: to make them is work of its own, and long on a busy machine
        async with Watchdog(0.05) as dog:
            await asyncio.sleep(1)
            for _ in range(3):
                gc.collect()
                await asyncio.sleep(0.01)
            end = time.perf_counter() + 0.5
            while time.perf_counter() < end:
                time.sleep(0.005)
                await asyncio.sleep(0)
        assert len(keep) == 300_000  # all that time there was something to look through
        return dog

    dog = run(main)
    assert not dog.blocks, [str(block.place) for block in dog.blocks]


def test_a_long_collection_is_a_pause_and_no_block():
    class Slow:
        def __del__(self) -> None:
            time.sleep(0.1)

    async def main():
        async with Watchdog(0.03) as dog:
            await asyncio.sleep(0.05)
            slow = Slow()
            slow.me = slow
            del slow
            gc.collect()
            await asyncio.sleep(0.05)
        return dog

    dog = run(main)
    assert dog.count == 0 and len(dog.pauses) == 1 and dog.pauses[0] > 0.099


def test_a_starved_process_is_no_block(monkeypatch):
    """While others have the processor the loop's thread stands at one line, and uses no time of its own."""
    real = time.perf_counter
    monkeypatch.setattr("support.watch._queued", lambda native: real())  # all that passes is spent in the queue

    async def main():
        async with Watchdog(0.03) as dog:
            await asyncio.sleep(0.01)
            planted(0.2)
        return dog

    assert run(main).count == 0


def test_costs_under_one_per_cent_of_a_processor():
    async def share() -> float:
        before, start = time.process_time(), time.perf_counter()
        await asyncio.sleep(0.5)
        return (time.process_time() - before) / (time.perf_counter() - start)

    async def main():
        async with Watchdog(0.05):
            return [await share() for _ in range(3)]

    assert min(run(main)) < 0.01


def test_an_idle_loop_is_not_woken_by_the_watchdog():
    async def main():
        loop, woken = asyncio.get_running_loop(), []
        plain = loop._selector.select
        loop._selector.select = lambda timeout=None: woken.append(timeout) or plain(timeout)
        async with Watchdog(0.02):
            await asyncio.sleep(0.3)
        return len(woken)

    assert run(main) < 8


def test_two_on_one_loop_and_one_after_the_other():
    async def main():
        dog = Watchdog(0.03)
        async with dog, Watchdog(0.03) as other:
            with pytest.raises(RuntimeError, match="This Watchdog is running"):
                dog.start()
            await asyncio.sleep(0.02)
            planted(0.1)
        dog.stop()
        async with dog:
            await asyncio.sleep(0.02)
            planted(0.1)
        return dog.count, other.count

    assert run(main) == (2, 1)


def test_ends_with_a_loop_that_was_closed_without_stop():
    async def main():
        Watchdog(0.02).start()
        await asyncio.sleep(0.05)

    before = list(gc.callbacks)
    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name == "support-watchdog":
            thread.join(5)
    assert gc.callbacks == before


def test_an_error_in_on_block_goes_to_the_loop_and_the_watch_goes_on():
    def fail(block) -> None:
        raise KeyError("planted")

    async def main():
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        async with Watchdog(0.03, on_block=fail) as dog:
            for _ in range(2):
                await asyncio.sleep(0.02)
                planted(0.1)
                await asyncio.sleep(0.02)
        return told, dog.count

    told, count = run(main)
    assert count == 2 and [type(error) for error in told] == [KeyError] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not for Windows")
def test_on_uvloop():
    uvloop = pytest.importorskip("uvloop")

    async def main():
        async with Watchdog(0.05) as dog, LagProbe() as probe:
            await asyncio.sleep(0.5)
            idle = dog.count
            planted(0.15)
            await asyncio.sleep(0.05)
        return idle, [block.place.function for block in dog.blocks], probe.max

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        idle, names, late = runner.run(main())
    assert idle == 0 and names == ["planted"] and late > 0.1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LagProbe(0), "period=0: give a positive"),
        (lambda: LagProbe(keep=0), "keep=0: give a positive whole"),
        (lambda: Watchdog(-1), "threshold=-1: give a positive"),
        (lambda: Watchdog("1"), "threshold='1'"),
        (lambda: LagProbe().quantile(99), "give a share from 0 to 1"),
    ],
)
def test_bad_input_is_named(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_needs_a_running_loop_and_a_real_one():
    for kind in (LagProbe, Watchdog):
        with pytest.raises(RuntimeError, match=f"{kind.__name__} found no running event loop"):
            kind().start()

    async def main() -> None:
        Watchdog().start()

    with pytest.raises(RuntimeError, match="use LagProbe"):
        simulate(main)
