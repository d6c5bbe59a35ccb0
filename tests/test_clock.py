"""The virtual clock: exact, ordered, repeatable, and honest about what it cannot do."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from functools import partial

import aiolimiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clock import Simulation, VirtualLoop, occupy_loop, simulate
from support.guard import RealTimeLimit, SimulationError


def now() -> float:
    return asyncio.get_running_loop().time()


# --- time ----------------------------------------------------------------------------------------


def test_time_starts_at_zero_and_jumps_to_each_timer():
    async def main():
        seen = [now()]
        for seconds in (1, 0.25, 86_400 * 365):
            await asyncio.sleep(seconds)
            seen.append(now())
        return seen

    started = time.monotonic()
    assert simulate(main) == [0.0, 1.0, 1.25, 31_536_001.25]
    assert time.monotonic() - started < 60  # a simulated year


def test_arguments_and_result_pass_through():
    async def main(a, *, b):
        return a, b

    assert simulate(main, 1, b=2) == (1, 2)
    assert simulate(partial(main, 3), b=4) == (3, 4)
    assert simulate(lambda: main(5, b=6)) == (5, 6)


def test_three_tenths_is_the_same_instant_as_0_3():
    async def main():
        order = []

        async def thrice():
            for _ in range(3):
                await asyncio.sleep(0.1)
            order.append(("thrice", now()))

        async def once():
            await asyncio.sleep(0.3)
            order.append(("once", now()))

        async def later():
            await asyncio.sleep(0.300001)
            order.append(("later", now()))

        await asyncio.gather(later(), thrice(), once())
        return order

    # thrice set its last timer at 0.2 s, after once set its only one
    assert simulate(main) == [("once", 0.3), ("thrice", 0.3), ("later", 0.300001)]


def test_a_thousand_tenths_are_a_hundred():
    async def main():
        for _ in range(1000):
            await asyncio.sleep(0.1)
        return now()

    assert simulate(main) == 100.0


@pytest.mark.parametrize("parts", [3, 7, 11])
def test_fractions_that_are_no_decimals_add_up(parts):
    async def main():
        for _ in range(parts):
            await asyncio.sleep(1 / parts)
        return now()

    assert simulate(main) == 1.0


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.7, 1.0]), max_size=40))
def test_equal_timers_fire_in_the_order_they_were_set(delays):
    async def main():
        fired = []
        loop = asyncio.get_running_loop()
        for number, delay in enumerate(delays):
            loop.call_later(delay, fired.append, (delay, number))
        await asyncio.sleep(2)
        return fired

    assert simulate(main) == sorted((delay, number) for number, delay in enumerate(delays))


def test_cancelled_timers_do_not_move_the_clock():
    async def main():
        try:
            async with asyncio.timeout(1000):
                await asyncio.sleep(1)
        except TimeoutError:
            pytest.fail("no timeout is due")
        for _ in range(500):
            asyncio.get_running_loop().call_later(50, print).cancel()
        await asyncio.sleep(1)
        return now()

    assert simulate(main) == 2.0


def test_timeouts_fire_exactly():
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(10), 0.25)
        return now()

    assert simulate(main) == 0.75


def test_clock_still_moves_after_three_simulated_centuries():
    async def main():
        await asyncio.sleep(1e10)
        ticks = 0
        for _ in range(5):
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert simulate(main) == 5


def test_two_runs_are_equal():
    async def main():
        queue, log = asyncio.Queue(3), []

        async def producer(name):
            for i in range(20):
                await asyncio.sleep(0.01 * (i % 4))
                await queue.put((name, i))

        async def consumer():
            while True:
                log.append((now(), await queue.get()))
                await asyncio.sleep(0.004)

        task = asyncio.create_task(consumer())
        await asyncio.gather(*map(producer, "abc"))
        task.cancel()
        return log

    assert simulate(main) == simulate(main)


def test_occupied_time_delays_everyone_by_the_rest_of_the_block():
    async def main():
        async def sleeper():
            await asyncio.sleep(0.01)
            return now()

        async def neighbour(hold):
            hold(0.2)

        first = await asyncio.gather(sleeper(), neighbour(occupy_loop), sleeper())
        second = await asyncio.gather(sleeper(), neighbour(time.sleep))
        return first, second

    assert simulate(main) == ([0.2, None, 0.21], [0.41, None])


def test_occupied_time_is_reported_with_the_line_that_holds():
    blocks = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.on_occupied = lambda *block: blocks.append(block)
        await asyncio.sleep(1)
        occupy_loop(0.5)
        time.sleep(0.25)
        loop.on_occupied = None
        occupy_loop(9)

    simulate(main)
    (start, end, frame), (start_of_sleep, end_of_sleep, sleep_frame) = blocks
    assert (start, end, frame.f_code.co_name) == (1.0, 1.5, "main")
    assert (start_of_sleep, end_of_sleep, sleep_frame.f_code.co_name) == (1.5, 1.75, "main")


def test_occupy_loop_burns_processor_time_on_a_real_loop():
    async def main():
        wall, cpu = time.perf_counter(), time.thread_time()
        occupy_loop(0.05)
        return time.perf_counter() - wall, time.thread_time() - cpu

    wall, cpu = asyncio.run(main())
    assert wall >= 0.05
    assert cpu > 0.001  # spun, did not sleep; how much depends on who else is busy


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_occupy_loop_refuses_nonsense(seconds):
    with pytest.raises(
        ValueError, match=rf"occupy_loop\(\) needs seconds from 0 up, not {seconds}"
    ):
        occupy_loop(seconds)


def test_time_sleep_is_the_real_one_again_afterwards_and_in_other_threads():
    real = time.sleep
    elsewhere = []

    def other_thread():
        started = time.monotonic()
        time.sleep(0.02)
        elsewhere.append(time.monotonic() - started)

    async def main():
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        time.sleep(100)
        return now()

    assert simulate(main) == 100.0
    assert elsewhere[0] >= 0.019
    assert time.sleep is real


# --- what goes in and comes out ------------------------------------------------------------------


def test_exceptions_come_out_unchanged_with_their_traceback():
    error = ValueError("mine")

    async def failing_line():
        await asyncio.sleep(1)
        raise error

    async def main():
        await failing_line()

    for run in (simulate, Simulation(real_limit=60).run):
        with pytest.raises(ValueError) as caught:
            run(main)
        assert caught.value is error
        assert "failing_line" in [entry.name for entry in caught.traceback]


def test_context_variables_of_the_caller_are_seen_and_not_changed():
    colour = contextvars.ContextVar("colour", default="none")
    colour.set("blue")

    async def main():
        seen = colour.get()
        colour.set("red")
        return seen

    async def in_a_running_loop():
        return simulate(main)

    assert simulate(main) == "blue"
    assert asyncio.run(in_a_running_loop()) == "blue"
    assert colour.get() == "blue"


def test_works_inside_a_running_loop_and_inside_a_simulation():
    async def inner():
        await asyncio.sleep(10)
        return threading.current_thread(), now()

    async def outer():
        await asyncio.sleep(0.01)
        return simulate(inner), now()

    (thread, elapsed), outer_now = simulate(outer)
    assert (elapsed, outer_now) == (10.0, 0.01)
    assert thread is not threading.main_thread()
    (thread, elapsed), _ = asyncio.run(outer())
    assert elapsed == 10.0


def test_tasks_left_behind_are_cancelled_and_generators_closed():
    log, kept = [], []

    async def stubborn():
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
            log.append(("cancelled", now()))
            raise

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(1)
            log.append(("generator closed", now()))

    async def main():
        task, generator = asyncio.create_task(stubborn()), numbers()
        kept.append(generator)
        await anext(generator)
        return task

    task = simulate(main)
    assert task.cancelled()
    assert log == [("cancelled", 1.0), ("generator closed", 2.0)]


def test_a_coroutine_object_is_refused_by_name():
    async def fetch_all():
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            TypeError, match=r"got the coroutine fetch_all\(\.\.\.\): write simulate\(fetch_all"
        ):
            simulate(fetch_all())
        gc.collect()


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (42, "not 42"),
        (None, "not None"),
        (lambda: 7, "returned 7"),
        (time.monotonic, "monotonic returned"),
    ],
)
def test_what_is_no_coroutine_function_is_refused(thing, words):
    with pytest.raises(TypeError, match=words):
        simulate(thing)


# --- what cannot be simulated --------------------------------------------------------------------


async def connect():
    await asyncio.open_connection("127.0.0.1", 9)


async def look_up():
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)


async def use_a_thread():
    await asyncio.to_thread(print)


async def start_a_process():
    await asyncio.create_subprocess_exec(sys.executable, "-V")


async def watch_a_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        asyncio.get_running_loop().add_reader(ours, print)


async def read_a_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await asyncio.get_running_loop().sock_recv(ours, 1)


@pytest.mark.parametrize(
    ("program", "call"),
    [
        (connect, "create_connection"),
        (look_up, "getaddrinfo"),
        (use_a_thread, "run_in_executor"),
        (start_a_process, "subprocess_exec"),
        (watch_a_socket, "add_reader"),
        (read_a_socket, "sock_recv"),
    ],
)
def test_the_real_world_is_refused_by_name(program, call):
    name = program.__name__
    words = rf"^simulate\({name}\) cannot run loop\.{call}\(\), called in {name} \(line \d+\): "
    with pytest.raises(SimulationError, match=words):
        simulate(program)

    async def careless():
        while True:
            try:
                await program()
            except Exception:
                await asyncio.sleep(1)

    with pytest.raises(SimulationError, match=rf"simulate\(careless\) cannot run loop\.{call}"):
        simulate(careless)

    async def grouped():
        async with asyncio.TaskGroup() as group:
            group.create_task(program())

    with pytest.raises(SimulationError, match=call):
        simulate(grouped)


def test_every_call_of_the_abstract_loop_is_decided():
    """A method that a loop may offer is either written for the virtual loop or refused."""
    known = {
        "shutdown_default_executor",
        "set_event_loop",
        "get_child_watcher",
        "set_child_watcher",
    }
    for name in dir(asyncio.AbstractEventLoop):
        if name.startswith("_") or name in known:
            continue
        assert getattr(VirtualLoop, name) is not getattr(asyncio.AbstractEventLoop, name), name


def test_a_deadlock_names_the_tasks_and_what_they_wait_for():
    async def worker(permits):
        async with permits:
            pass

    async def main():
        permits = asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(worker(permits))
            await asyncio.sleep(2.5)

    with pytest.raises(SimulationError) as caught:
        simulate(main)
    text = str(caught.value)
    assert text.startswith("simulate(main) is stuck at 2.5 s: no task is ready and no timer is set")
    line = worker.__code__.co_firstlineno + 1
    assert f"3 x worker (line {line}), which waits for: semaphore" in text
    assert "which waits for: child tasks" in text
    assert text.count("\n") == 0


@pytest.mark.parametrize(
    "wait", [lambda: asyncio.get_running_loop().create_future(), lambda: asyncio.sleep(math.inf)]
)
def test_waiting_for_ever_is_noticed(wait):
    async def main():
        await wait()

    with pytest.raises(
        SimulationError, match=r"is stuck at 0 s: .* can wake main \(line \d+\), which waits for: "
    ):
        simulate(main)


def test_a_task_that_refuses_to_be_cancelled_is_noticed():
    async def never():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    async def main():
        asyncio.create_task(never())
        await asyncio.sleep(1)
        return "result"

    with pytest.raises(SimulationError, match=r"stuck at 1 s.*never \(line"):
        simulate(main)


def test_the_first_failure_is_the_one_reported():
    async def main():
        try:
            await asyncio.to_thread(print)
        except Exception:
            await asyncio.sleep(0)
        finally:
            await asyncio.Event().wait()

    with pytest.raises(SimulationError, match=r"cannot run loop\.run_in_executor"):
        simulate(main)


def test_spinning_on_sleep_0_is_noticed():
    async def main():
        while True:
            try:
                await asyncio.sleep(0)
            except Exception:
                pass

    with pytest.raises(
        SimulationError, match="the loop turned 5000 times while the clock stood still"
    ):
        Simulation(standstill=5000).run(main)


def test_simulated_time_can_be_limited():
    async def main():
        while True:
            await asyncio.sleep(1)

    with pytest.raises(
        SimulationError, match=r"has not ended after 100 simulated seconds; still waiting: main"
    ):
        Simulation(limit=100).run(main)


def test_real_time_can_be_limited_also_without_any_await():
    async def main():
        while True:
            pass

    before = threading.active_count()
    with pytest.raises(RealTimeLimit, match=r"stopped after 0\.2 s of real time"):
        Simulation(real_limit=0.2).run(main)
    assert threading.active_count() == before


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to itself")
@pytest.mark.parametrize("body", ["await asyncio.sleep(0)", "await asyncio.sleep(1)", "pass"])
@pytest.mark.parametrize("start", ["simulate(main)", "asyncio.run(in_a_loop())"])
def test_an_interrupt_stops_code_that_never_ends(body, start):
    program = f"""
    import asyncio, os, signal, threading, time
    from support.clock import simulate, Simulation

    async def main():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            {body}

    async def in_a_loop():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        simulate(main)

    def simulate(main):
        return Simulation(standstill=10**12).run(main)

    try:
        {start}
    except KeyboardInterrupt:
        left = [t.name for t in threading.enumerate() if t.name == "simulation"]
        print("interrupted", left)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("interrupted []\n", "")


def test_the_loop_is_what_the_recorder_needs():
    async def main():
        loop = asyncio.get_running_loop()
        timer = loop.call_at(5, print)
        timer.cancel()
        return loop.is_virtual, type(timer), timer.when(), loop._selector.select(0)

    assert simulate(main) == (True, asyncio.TimerHandle, 5.0, [])


def test_no_file_descriptor_and_no_loop_is_left():
    loops = []

    async def main():
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await asyncio.sleep(1)
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_files = {simulate(main) for _ in range(20)}
        gc.collect()
    assert len(open_files) == 1
    assert [loop() for loop in loops] == [None] * 20


def test_a_remainder_of_rounding_is_slept_away():
    async def main():
        loop = asyncio.get_running_loop()
        await asyncio.sleep(1.2)
        end = math.nextafter(loop.time(), math.inf)
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(left)
        return loop.time()

    assert 1.2 < simulate(main) < 1.2 + 1e-8


def test_a_limiter_that_sleeps_for_what_is_left_comes_to_an_end():
    async def main():
        limiter, loop = aiolimiter.AsyncLimiter(10, 1), asyncio.get_running_loop()

        async def caller():
            async with limiter:
                return loop.time()

        return await asyncio.gather(*[caller() for _ in range(40)])

    expected = [0.0] * 10 + [0.1 * number for number in range(1, 31)]
    assert simulate(main) == pytest.approx(expected, abs=1e-7)
