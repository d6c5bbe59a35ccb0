"""The recorder: it sees three states, names reasons and lines, and leaves the program alone."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import socket
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.clock import occupy_loop, simulate
from support.recorder import record
from support.timeline import COLLECTED, Timeline


async def jobs_behind_a_semaphore(count: int, permits: int, seconds: float) -> Timeline:
    semaphore = asyncio.Semaphore(permits)

    async def job() -> None:
        async with semaphore:
            await asyncio.sleep(seconds)

    with record("jobs") as timeline:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(job(), name=f"job {number}")
    return timeline


def test_the_sums_are_exact_under_the_virtual_clock():
    timeline = simulate(jobs_behind_a_semaphore, 10, 3, 0.1)
    assert timeline.makespan == pytest.approx(0.4)
    assert timeline.peak("sleep") == 3
    assert timeline.peak("semaphore") == 7
    assert timeline.reasons == pytest.approx({"sleep": 1.0, "semaphore": 3 * 0.1 + 3 * 0.2 + 0.3, "child tasks": 0.4})
    assert [lane.label for lane in timeline.lanes] == ["main", *(f"job {n}" for n in range(10))]
    assert {lane.outcome for lane in timeline.lanes[1:]} == {"finished"}


def test_a_suspended_slice_names_the_line_that_waits():
    timeline = simulate(jobs_behind_a_semaphore, 2, 1, 0.1)
    here = jobs_behind_a_semaphore.__code__.co_firstlineno
    waits = [(p.why, p.line - here) for p in timeline.slices_of("job 1") if p.state == "suspended"]
    assert waits == [("semaphore", 4), ("sleep", 5)]


def test_a_block_shifts_every_timer_that_was_due_by_exactly_the_rest_of_the_block():
    async def main() -> Timeline:
        async def sleeper(seconds: float) -> None:
            await asyncio.sleep(seconds)

        async def blocker() -> None:
            await asyncio.sleep(0.05)
            occupy_loop(0.2)

        with record() as timeline:
            async with asyncio.TaskGroup() as group:
                group.create_task(blocker(), name="blocker")
                for due in (0.04, 0.1, 0.2, 0.3):
                    group.create_task(sleeper(due), name=f"due {due}")
        return timeline

    timeline = simulate(main)
    late = {due: timeline.total("ready", lane=f"due {due}") for due in (0.04, 0.1, 0.2, 0.3)}
    assert late == pytest.approx({0.04: 0, 0.1: 0.15, 0.2: 0.05, 0.3: 0})
    (block,) = timeline.blocks
    assert (block.start, block.end) == pytest.approx((0.05, 0.25))
    assert block.site is not None and block.site.source == "occupy_loop(0.2)"
    assert timeline.all_lanes[block.lane].label == "blocker"


def test_a_real_block_is_found_with_its_line():
    async def main() -> Timeline:
        async def careless() -> None:
            await asyncio.sleep(0.01)
            time.sleep(0.08)

        with record() as timeline:
            await asyncio.gather(careless(), asyncio.sleep(0.02))
        return timeline

    timeline = asyncio.run(main())
    block = timeline.longest_block
    assert block is not None and block.site is not None and block.site.source == "time.sleep(0.08)"
    assert block.duration >= 0.08
    (ready,) = [p for p in timeline.slices_of("sleep") if p.state == "ready" and p.duration > 0.03]
    assert block.start <= ready.start <= block.end  # ready since its timer was due, not since the loop looked


def test_a_block_in_a_plain_callback_has_no_lane():
    async def main() -> Timeline:
        with record() as timeline:
            asyncio.get_running_loop().call_later(0.01, time.sleep, 0.05)
            await asyncio.sleep(0.03)
        return timeline

    assert [block.lane for block in asyncio.run(main()).blocks] == [None]


def test_bytes_that_arrive_during_a_block_make_their_reader_ready_then():
    async def main() -> tuple[Timeline, set[type]]:
        loop, (mine, theirs) = asyncio.get_running_loop(), socket.socketpair()
        mine.setblocking(False)

        async def reads() -> bytes:
            return await loop.sock_recv(mine, 10)

        async def blocks() -> None:
            threading.Timer(0.05, theirs.send, (b"answer",)).start()
            time.sleep(0.3)

        with mine, theirs, record() as timeline:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(reads(), name="reader")
                await asyncio.sleep(0)
                group.create_task(blocks(), name="blocker")
        assert task.result() == b"answer"
        return timeline, {type(h) for key in loop._selector.get_map().values() for h in key.data if h is not None}

    timeline, handles = asyncio.run(main())
    block = timeline.longest_block
    ready = [p for p in timeline.slices_of("reader") if p.state == "ready" and p.duration > 0.1]
    assert [p.end >= block.end > p.start > block.start for p in ready] == [True]
    assert timeline.total("suspended", "network", lane="reader") >= 0.04
    assert handles == {asyncio.Handle}


def test_who_woke_whom():
    async def main() -> Timeline:
        event = asyncio.Event()

        async def waker() -> None:
            await asyncio.sleep(1)
            event.set()

        with record() as timeline:
            async with asyncio.TaskGroup() as group:
                group.create_task(event.wait(), name="woken")
                group.create_task(waker(), name="waker")
        return timeline

    timeline = simulate(main)
    causes = {(r["lane"], r["woken_by"]) for r in _with_ready(timeline)}
    assert ("woken", "waker") in causes
    assert ("waker", "timer") in causes
    assert timeline.order() == ["main", "woken", "waker", "waker", "woken", "main"]


def _with_ready(timeline: Timeline) -> list[dict]:
    names = {lane.index: lane.label for lane in timeline.all_lanes}
    return [
        {"lane": names[i], "woken_by": names.get(waker, {-1: "io", -2: "timer"}.get(waker))}
        for i, _, _, _, waker, _ in timeline._log
    ]


def test_the_critical_path_goes_through_the_task_that_decides():
    async def main() -> Timeline:
        async def stage(seconds: float) -> None:
            await asyncio.sleep(seconds)

        with record() as timeline:
            async with asyncio.TaskGroup() as group:
                group.create_task(stage(1), name="short")
                group.create_task(stage(3), name="long")
            await asyncio.sleep(0.5)
        return timeline

    timeline = simulate(main)
    path = [(timeline.all_lanes[p.lane].label, p.why, p.duration) for p in timeline.critical_path() if p.duration > 0]
    assert path == [("long", "sleep", pytest.approx(3.0)), ("main", "sleep", pytest.approx(0.5))]


def test_outcomes_and_marks():
    async def main() -> Timeline:
        async def fails() -> None:
            await asyncio.sleep(0.1)
            raise ValueError("no")

        async def times_out() -> None:
            async with asyncio.timeout(0.2):
                await asyncio.sleep(9)

        with record() as timeline:
            victim = asyncio.create_task(asyncio.sleep(9), name="victim")
            tasks = [asyncio.create_task(fails(), name="fails"), asyncio.create_task(times_out(), name="slow")]
            await asyncio.gather(*tasks, return_exceptions=True)
            victim.cancel()
            await asyncio.wait([victim])
            left = asyncio.create_task(asyncio.sleep(9), name="left over")
            await asyncio.sleep(0)
        left.cancel()
        return timeline

    timeline = simulate(main)
    ends = {lane.label: (lane.outcome, lane.error) for lane in timeline.lanes[1:]}
    assert ends == {
        "victim": ("cancelled", ""),
        "fails": ("failed", "ValueError"),
        "slow": ("failed", "TimeoutError"),
        "left over": ("pending", ""),
    }
    assert [(what, round(moment, 6)) for moment, what in timeline.lane("slow").marks] == [
        ("timed out", 0.2),
        ("cancel requested", 0.2),
    ]
    assert [what for _, what in timeline.lane("victim").marks] == ["cancel requested"]


def test_a_lost_task_is_still_collected_and_said_to_be():
    async def main() -> Timeline:
        async def waits_on_its_own_future() -> None:
            await asyncio.get_running_loop().create_future()

        with record() as timeline:
            asyncio.create_task(waits_on_its_own_future(), name="lost")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gc.collect()
        return timeline

    messages = []

    async def quiet() -> Timeline:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: messages.append(context["message"]))
        return await main()

    assert asyncio.run(quiet()).lane("lost").outcome == COLLECTED
    assert messages == ["Task was destroyed but it is pending!"]


def test_threads_have_lanes_of_their_own_and_wake_their_callers():
    async def main() -> Timeline:
        with record() as timeline:
            await asyncio.gather(asyncio.to_thread(time.sleep, 0.02), asyncio.to_thread(int, "7"))
            with pytest.raises(ValueError, match="invalid literal"):
                await asyncio.to_thread(int, "x")
        return timeline

    timeline = asyncio.run(main())
    threads = [(lane.label, lane.outcome) for lane in timeline.lanes if lane.kind == "thread"]
    assert threads == [("thread: sleep", "finished"), ("thread: int 1", "finished"), ("thread: int 2", "failed")]
    assert timeline.total("running", lane="thread: sleep") >= 0.02
    assert timeline.total("suspended", why="thread") >= 0.02
    assert not timeline.blocks


def test_code_that_waits_through_async_generators_is_seen():
    async def main() -> Timeline:
        async def ticks():
            for _ in range(3):
                await asyncio.sleep(1)
                yield

        with record() as timeline:
            async for _ in ticks():
                pass
        return timeline

    assert simulate(main).reasons == pytest.approx({"sleep": 3.0})


def test_tasks_that_were_there_before_are_recorded():
    async def main() -> Timeline:
        early = asyncio.create_task(asyncio.sleep(1), name="not started yet")
        parked = asyncio.create_task(asyncio.sleep(2), name="parked")
        await asyncio.sleep(0)
        fresh = asyncio.create_task(asyncio.sleep(1), name="fresh")
        with record() as timeline:
            await asyncio.gather(early, parked, fresh)
        return timeline

    timeline = simulate(main)
    assert {lane.label for lane in timeline.lanes} == {"main", "not started yet", "parked", "fresh"}
    assert timeline.total("suspended", "sleep", lane="parked") == pytest.approx(2)


def test_a_program_with_its_own_task_factory_and_python_tasks_is_recorded_alike():
    async def main() -> tuple[list[str], object]:
        loop = asyncio.get_running_loop()

        def factory(loop, coro, **options):
            return asyncio.tasks._PyTask(coro, loop=loop, **options)

        loop.set_task_factory(factory)
        with record() as timeline:
            await asyncio.gather(asyncio.sleep(1), asyncio.sleep(2))
        return timeline.table(), loop.get_task_factory() is factory

    rows, kept = simulate(main)
    assert kept
    assert [row["suspended"] for row in rows] == pytest.approx([2.0, 1.0, 2.0])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks_are_lanes_and_their_first_step_is_not_charged_to_the_parent():
    async def main() -> Timeline:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        async def child() -> None:
            occupy_loop(0.1)
            await asyncio.sleep(1)

        with record() as timeline:
            await asyncio.gather(child(), child())
        return timeline

    timeline = simulate(main)
    assert timeline.total("running", lane="main") == pytest.approx(0.0)
    assert timeline.total("running") == pytest.approx(0.2)
    assert timeline.makespan == pytest.approx(1.2)


def test_the_loop_is_left_as_it_was_found_also_when_the_body_raises():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before, selector = dict(vars(loop)), dict(vars(loop._selector))
        with pytest.raises(KeyError), record():
            loop.call_later(60, print)
            await asyncio.sleep(0)
            raise KeyError
        assert {
            k: v for k, v in vars(loop).items() if k not in ("_current_handle", "_scheduled", "_timer_cancelled_count")
        } == {k: v for k, v in before.items() if k not in ("_current_handle", "_scheduled", "_timer_cancelled_count")}
        assert vars(loop._selector).keys() == selector.keys()
        assert {type(timer) for timer in loop._scheduled} == {asyncio.TimerHandle}
        assert not [t for t in threading.enumerate() if t.name == "support-recorder"]

    asyncio.run(main())


def test_names_contexts_and_debug_mode_are_untouched():
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def main() -> list:
        seen = []

        async def child(number: int) -> None:
            seen.append((asyncio.current_task().get_name(), variable.get(), type(asyncio.current_task())))
            variable.set(number)
            await asyncio.sleep(0)
            seen.append(variable.get())

        variable.set(-1)
        with record():
            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(child(number), name=f"child {number}")
        return seen

    expected = [(f"child {n}", -1, asyncio.Task) for n in range(3)] + [0, 1, 2]
    assert asyncio.run(main()) == expected
    assert asyncio.run(main(), debug=True) == expected


def test_exceptions_that_nobody_retrieves_are_still_reported():
    messages = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: messages.append(context["message"]))

        async def fails() -> None:
            raise ValueError

        with record() as timeline:
            task = asyncio.create_task(fails())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        del task
        gc.collect()
        assert timeline.lane("fails").error == "ValueError"

    asyncio.run(main())
    assert messages == ["Task exception was never retrieved"]


def test_a_process_pool_keeps_its_function_picklable():
    class Process(ThreadPoolExecutor):  # not a ThreadPoolExecutor to the recorder's eye
        pass

    seen = []

    class Other:
        def submit(self, func, *args):
            seen.append(func)
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(func, *args)

    async def main() -> int:
        with record():
            return await asyncio.get_running_loop().run_in_executor(Other(), abs, -3)

    assert asyncio.run(main()) == 3
    assert seen == [abs]


def test_the_numbers_come_in_plain_forms(tmp_path):
    timeline = simulate(jobs_behind_a_semaphore, 3, 1, 0.1)
    assert json.loads(json.dumps(timeline.records())) == timeline.records()
    columns = timeline.columns()
    assert {len(column) for column in columns.values()} == {len(timeline.slices)}
    path = timeline.save_trace(str(tmp_path / "trace.json"))
    with open(path, encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {"main", "job 0", "job 1", "job 2", "event loop"}
    sleeps = [event for event in events if event["name"] == "sleep"]
    assert [event["dur"] for event in sleeps] == pytest.approx([1e5] * 3)
    with pytest.raises(FileNotFoundError, match="no folder"):
        timeline.save_trace(str(tmp_path / "missing" / "trace.json"))


class TestBadInput:
    def test_outside_a_loop(self):
        with pytest.raises(RuntimeError, match="no running event loop"), record():
            pass

    def test_nested(self):
        async def main() -> None:
            with record(), pytest.raises(RuntimeError, match="already recording"), record():
                pass

        asyncio.run(main())

    def test_uvloop(self):
        uvloop = pytest.importorskip("uvloop")

        async def main() -> None:
            with pytest.raises(RuntimeError, match="cannot see inside uvloop.Loop"), record():
                pass

        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()

    @pytest.mark.parametrize("value", [0, -1, "10"])
    def test_block_ms(self, value):
        with pytest.raises(ValueError, match=f"block_ms={value!r}"):
            record(block_ms=value)

    def test_reading_too_early_and_asking_for_what_is_not_there(self):
        async def main() -> Timeline:
            with record() as timeline:
                with pytest.raises(RuntimeError, match="still recording"):
                    _ = timeline.slices
                await asyncio.sleep(0)
            return timeline

        timeline = simulate(main)
        with pytest.raises(KeyError, match="no lane called 'worker'; the lanes are main"):
            timeline.lane("worker")
        with pytest.raises(ValueError, match="no state called 'idle'"):
            timeline.total("idle")


async def spin(steps: int) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)


def test_a_recorded_step_costs_at_most_three_bare_ones():
    async def main() -> float:
        bare, recorded = [], []
        for _ in range(9):
            start = time.thread_time()
            await spin(4000)
            bare.append(time.thread_time() - start)
            with record():
                start = time.thread_time()
                await spin(4000)
                recorded.append(time.thread_time() - start)
        return min(recorded) / min(bare)

    assert asyncio.run(main()) <= 3.0


def test_a_recorded_slice_takes_less_than_200_bytes():
    async def main() -> float:
        tracemalloc.start()
        with record() as timeline:
            before = tracemalloc.get_traced_memory()[0]
            await spin(5000)
            return (tracemalloc.get_traced_memory()[0] - before) / len(timeline._log)

    try:
        assert asyncio.run(main()) < 200
    finally:
        tracemalloc.stop()
