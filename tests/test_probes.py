"""The measuring devices and the sandbox: they measure what they say, and leave nothing behind."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import aiohttp
import psutil
import pytest

from support import probes
from support.clock import simulate
from support.sandbox import run_cells, run_script
from support.servers import serve


def test_the_stopwatch_and_the_cost_of_one():
    async def main() -> tuple[float, float]:
        return await probes.seconds(asyncio.sleep(0.05)), await probes.cost_us(lambda: asyncio.sleep(0.002), 5)

    took, cost = asyncio.run(main())
    assert took >= 0.049
    assert cost >= 1900
    with pytest.raises(ValueError, match="positive whole number of times, not 0"):
        asyncio.run(probes.cost_us(lambda: asyncio.sleep(0), 0))


def test_a_heartbeat_sees_a_block_and_ends_with_the_work():
    async def main() -> tuple[float, float, int]:
        free = max(late for _, late in await probes.lag_beside(lambda: asyncio.sleep(0.1)))
        held = max(late for _, late in await probes.lag_beside(lambda: time.sleep(0.5)))
        return free, held, len(asyncio.all_tasks())

    free, held, tasks = asyncio.run(main())
    assert held > 400 > 2 * free
    assert tasks == 1


def test_a_heartbeat_ends_when_the_work_fails():
    async def main() -> int:
        async def fails() -> None:
            raise ValueError

        with pytest.raises(ValueError):
            await probes.lag_beside(fails)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1


def test_work_on_the_loop_makes_it_late_and_sleep_costs_no_processor_time():
    async def spins() -> None:
        while time.process_time() < end:
            pass

    end = time.process_time() + 0.2
    lag, wall, cpu = asyncio.run(probes.lag_of(spins))
    assert cpu > 150
    assert wall > 0.9 * cpu
    assert lag > 0.5 * cpu
    lag, wall, cpu = asyncio.run(probes.lag_of(lambda: asyncio.sleep(0.3)))
    assert wall > 290
    assert cpu < 150

    async def fails() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(probes.lag_of(fails))


def test_the_processor_seconds_of_other_processes_are_theirs_alone():
    spin = "import sys, time; print(flush=True); sys.stdin.readline()\nwhile time.process_time() < 0.4: pass\nprint(flush=True); sys.stdin.read()"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for code in (spin, "import sys; print(flush=True); sys.stdin.read()")
    ]
    try:
        for process in both:
            process.stdout.readline()
        busy, idle = (process.pid for process in both)

        async def main() -> list[tuple[object, float]]:
            def work() -> bytes:
                both[0].stdin.write(b"\n")
                both[0].stdin.flush()
                return both[0].stdout.readline()

            at_work = probes.process_seconds([busy, idle], asyncio.create_task(asyncio.to_thread(work)))
            return [
                await at_work,
                await probes.process_seconds([busy, idle], asyncio.sleep(0.2, "slept")),
                await probes.process_seconds([idle, 2**22 + 1], asyncio.sleep(0, "elsewhere")),
            ]

        (_, worked), (slept, rested), (elsewhere, unknown) = asyncio.run(main())
    finally:
        for process in both:
            process.communicate()
    assert 0.2 < worked < 0.45
    assert (slept, elsewhere) == ("slept", "elsewhere")
    assert rested < 0.05 and math.isnan(unknown)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processor time is counted in steps of 10 ms")
def test_what_a_process_does_after_its_answer_is_counted_too():
    tail = "import sys\nfor line in sys.stdin:\n print(flush=True)\n sum(range(300_000))"
    with subprocess.Popen(
        [sys.executable, "-c", tail], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def ask() -> None:
            print(file=child.stdin, flush=True)
            child.stdout.readline()

        async def main() -> list[float]:
            await asyncio.to_thread(ask)  # its imports
            return [(await probes.process_seconds([child.pid], asyncio.to_thread(ask)))[1] for _ in range(10)]

        used = asyncio.run(main())
    assert min(used) > 0.5 * max(used), used


def test_a_sleeping_loop_asks_rarely_and_a_polling_one_often():
    async def sleeps() -> None:
        await asyncio.gather(*[asyncio.sleep(seconds) for seconds in (0.02, 0.04, 0.06)])

    async def polls() -> None:
        for _ in range(5000):
            await asyncio.sleep(0)

    async def main() -> list[tuple[int, float]]:
        return [await probes.count_selects(sleeps), await probes.count_selects(polls)]

    (calm, _), (busy, _) = asyncio.run(main())
    assert calm <= 30
    assert busy >= 5000


def test_parked_tasks_are_weighed_and_gone():
    assert 500 < simulate(probes.parked_bytes, 500) < 5000


def test_a_slow_file_makes_its_reader_wait():
    start = time.monotonic()
    assert probes.read_slow_file(0.1) == "late"
    assert time.monotonic() - start >= 0.1


def test_a_script_runs_in_a_process_of_its_own():
    assert asyncio.run(run_script("import os; print(os.getpid())")) != f"{os.getpid()}\n"
    assert asyncio.run(run_script("print('ü')\nif __name__ == '__main__': print('main')")) == "ü\nmain\n"


def test_a_script_that_fails_or_hangs_is_an_error_of_one_sentence():
    with pytest.raises(RuntimeError, match=r"^run_script: the script failed: ValueError: no$"):
        asyncio.run(run_script("raise ValueError('no')"))
    with pytest.raises(TimeoutError, match=r"^run_script: the script was still running after 0.5 s and was stopped\.$"):
        asyncio.run(run_script("import time; time.sleep(60)", timeout=0.5))
    assert psutil.Process().children(recursive=True) == []


def test_a_script_dies_with_its_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent("""
            import asyncio
            from support.sandbox import run_script
            print(asyncio.run(run_script("import time; time.sleep(60)")))
        """)], start_new_session=True,
    )  # fmt: skip
    child = None
    deadline = time.monotonic() + 20
    while child is None and time.monotonic() < deadline:
        child = next(iter(psutil.Process(parent.pid).children()), None)
        time.sleep(0.02)
    assert child is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_cells_in_a_fresh_kernel_answer_or_do_not():
    async def main() -> list[list[str]]:
        hangs, fails = ["import asyncio; await asyncio.sleep(0.01)", "while True: pass"], ["1 / 0", "1"]
        return await asyncio.gather(run_cells(hangs, timeout=1.5), run_cells(fails))

    assert asyncio.run(main()) == [["ok", "no answer"], ["error", "aborted"]]
    assert psutil.Process().children(recursive=True) == []


def test_the_peak_of_memory_is_counted_from_the_start_of_the_watch():
    kept = bytearray(3_000_000)
    with probes.traced_memory() as memory:
        dropped = bytearray(5_000_000)
        del dropped
    assert 5_000_000 <= memory.peak < 5_500_000 and len(kept) == 3_000_000


def test_two_traces_at_once_would_spoil_each_other():
    with (
        probes.traced_memory(),
        pytest.raises(RuntimeError, match=r"^traced_memory\(\): memory is being traced already"),
        probes.traced_memory(),
    ):
        pass
    with probes.traced_memory():  # and the first one ended all the same
        pass


def test_a_writer_waits_for_a_reader_that_stalls():
    lines, threads = 2000, threading.active_count()
    started = time.perf_counter()
    with probes.stalled_reader(0.3) as file:
        for number in range(lines):
            print(f"{number:100}", file=file, flush=True)  # 200 kB: more than a pipe holds
        blocked = time.perf_counter() - started
    assert blocked >= 0.25 and threading.active_count() == threads


def test_a_short_message_does_not_wait_for_the_reader():
    started = time.perf_counter()
    with probes.stalled_reader(60) as file:
        print("short", file=file)
    assert time.perf_counter() - started < 30


GROWING = """
import asyncio, time
held = []
async def app(scope, receive, send):
    if scope["path"] == "/grow":
        held.append(b"x" * 50_000_000)
    if scope["path"] == "/stall":
        time.sleep(0.4)
    await send({"type": "http.response.start", "status": 503 if scope["path"] == "/broken" else 200, "headers": []})
    await send({"type": "http.response.body", "body": b"pong"})
"""


def test_a_server_is_watched_from_outside_while_work_runs(tmp_path, monkeypatch):
    (tmp_path / "growing.py").write_text(GROWING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    async def main() -> None:
        async with aiohttp.ClientSession(raise_for_status=True) as session:

            async def ask(path: str) -> None:
                async with session.get(server.url + path) as answer:
                    await answer.read()

            calm = await probes.server_beside(server, lambda: asyncio.sleep(0.1))
            grown = await probes.server_beside(server, lambda: ask("/grow"))
            stalled = await probes.server_beside(server, lambda: ask("/stall"))
            assert calm.growth < 5_000_000 and 50_000_000 <= grown.growth < 60_000_000
            assert stalled.stall >= 0.3 and len(stalled.waits) == len(stalled.memory) >= 20
            inside = [wait for _, wait in stalled.waits if wait > 0.1]
            assert len(inside) >= 10 and inside[0] > inside[-1] + 0.1  # each one, from when it was due
            with pytest.raises(ExceptionGroup) as failed:
                await probes.server_beside(server, lambda: asyncio.sleep(60), path="/broken")
            assert failed.group_contains(aiohttp.ClientResponseError, match="503")
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    with serve("growing:app") as server:
        asyncio.run(main())
    with pytest.raises(ValueError, match=r"needs a server that runs, and there is no process \d+"):
        asyncio.run(probes.server_beside(server, lambda: None))


def test_a_slow_reader_notes_what_was_sent_and_waits_until_its_leaving_was_heard():
    sent, ended = [7], ["an older one"]

    async def hose(scope, receive, send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("no lifespan")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                sent.append(1000)
                await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
                await asyncio.sleep(0)
                if len(sent) > 100 and (await receive())["type"] == "http.disconnect":
                    break
        finally:
            ended.append("now")

    with serve(hose, in_process=True, name="hose") as server:
        rows = asyncio.run(probes.read_slowly(server.url, 5, sent, ended, size=1000))
    assert ended == ["now"] and [read for _, _, read in rows] == [1000, 2000, 3000, 4000, 5000]
    assert all(read <= gone for _, gone, read in rows) and rows == sorted(rows)
