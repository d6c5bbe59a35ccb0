"""The checker of exercise 7.2: load that comes when it is due, and latencies that count from then.

All of it runs on the virtual clock. Where a generator gets late, a call of ``send`` has held the loop.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from .. import theory
from ..clock import occupy_loop
from .engine import Exercise, three_hints
from .faults import Calls, Injected, cancel_sweep, prove_cancelled
from .harness import NO_ERROR, Failed, Prove, observe, plain, prove_clean

ALL = "sends every request that is due"
ON_TIME = "sends each request when it is due"
UNLIMITED = "waits for no answer before it sends"
NO_DRIFT = "keeps to its schedule when the loop was held"
FROM_DUE = "counts from the time when the request was due"
ONE_EACH = "one outcome for each request, in the order in which they were due"
TAIL = "p99 within 5 % of the formula on a server that stalls"
ERRORS = "an error is the outcome of its request, and stops no other"
LATE_START = 5.0  # seconds on the clock before the load begins: it does not begin at 0


class _Server:
    """One request at a time, ``service`` seconds each, first come, first served; stops once for ``stall`` seconds."""

    def __init__(self, service: float, stall: float = 0.0, at: float = 0.0) -> None:
        self.service, self.stall, self.at = service, stall, at
        self.free = 0.0

    async def send(self) -> None:
        now = asyncio.get_running_loop().time()
        begin = max(now, self.free)
        if self.at <= begin < self.at + self.stall:
            begin = self.at + self.stall
        self.free = begin + self.service
        await asyncio.sleep(self.free - now)


class _Bench:
    """Sends counted: when each began, how many were unanswered at once."""

    def __init__(self, send: Callable[[int], Awaitable[None]]) -> None:
        self._send = send
        self.starts: list[float] = []
        self.in_flight = self.peak = 0

    async def send(self) -> None:
        number = len(self.starts)
        self.starts.append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await self._send(number)
        finally:
            self.in_flight -= 1

    async def run(self, answer: Any, prove: Prove, rate: float, seconds: float) -> list[Any]:
        """The outcomes of a run that begins late on the clock, after the checks that every run must stand."""
        await asyncio.sleep(LATE_START)
        got = await answer(self.send, rate, seconds)
        wanted, sent = round(rate * seconds), len(self.starts)
        how = f"With rate={rate:g} and seconds={seconds:g}, {wanted} requests are due"
        prove(ALL, sent == wanted, f"{how}, and {'fewer' if sent < wanted else 'more'} were sent.")
        if not isinstance(got, list):
            raise Failed(ONE_EACH, f"It returned {plain(repr(got))}: return a list.")
        prove(ONE_EACH, len(got) == wanted, f"{how}, and the list that came back has another length.")
        odd = [one for one in got if not isinstance(one, (int, float, Exception)) or isinstance(one, bool)]
        prove(ONE_EACH, not odd, f"{plain(repr(odd[:1]))} is in the list: put seconds there, or the exception.")
        return got

    def lateness(self, rate: float) -> list[float]:
        return [start - LATE_START - number / rate for number, start in enumerate(self.starts)]


def _seconds(got: list[Any]) -> list[float]:
    for one in got:
        if isinstance(one, Exception):
            raise Failed(NO_ERROR, f"No request failed, and {plain(repr(one))} is among the outcomes.")
    return got


def check_open_loop(answer: Any, prove: Prove) -> None:
    """The scenes in order, then a cancellation at every await."""
    for scene in (_schedule, *_STALLS, _unanswered, _order, _held, _held_often, _failures):
        run = observe(functools.partial(scene, answer, prove))
        run.result()
        prove_clean(prove, run)
    for run, calls, canceller in cancel_sweep(functools.partial(_cancelled, answer)):
        prove_cancelled(prove, run, calls, canceller, 0.2)


async def _schedule(answer: Any, prove: Prove) -> None:
    for rate, seconds in ((10, 3), (0.5, 10), (250, 1)):
        bench = _Bench(lambda _: asyncio.sleep(0.001))
        start = asyncio.get_running_loop().time()
        got = _seconds(await bench.run(answer, prove, rate, seconds))
        off = max(abs(one - start) for one in bench.lateness(rate))
        told = f"With rate={rate:g}, a request was sent {off:.3g} s off its time: request n is due at n / rate."
        prove(ON_TIME, off < 1e-6, told)
        worst = max(abs(one - 0.001) for one in got)
        prove(FROM_DUE, worst < 1e-6, "On an idle server that takes 0.001 s, a latency was not 0.001 s.")


async def _unanswered(answer: Any, prove: Prove) -> None:
    """The server answers nobody until long after the last request."""
    bench = _Bench(lambda _: asyncio.sleep(30))
    got = _seconds(await bench.run(answer, prove, 100, 20))
    late = max(bench.lateness(100))
    told = f"The server answered nobody, and there were never more than {bench.peak} requests unanswered."
    prove(UNLIMITED, bench.peak == 2000 and late < 1e-6, told)
    prove(FROM_DUE, max(abs(one - 30) for one in got) < 1e-6, "Every answer took 30 s, and a latency was not 30 s.")


async def _order(answer: Any, prove: Prove) -> None:
    took = [0.01 * (1 + number * 7 % 20) for number in range(20)]
    bench = _Bench(lambda number: asyncio.sleep(took[number]))
    got = _seconds(await bench.run(answer, prove, 100, 0.2))
    told = "Request 0 took 0.01 s, request 1 0.08 s, and so on, and they came back in another order."
    same = sorted(got) == sorted(took) or max(abs(a - b) for a, b in zip(sorted(got), sorted(took), strict=True)) < 1e-6
    prove(FROM_DUE, same, "On a server that takes 0.01 to 0.2 s, the latencies were others.")
    prove(ONE_EACH, max(abs(a - b) for a, b in zip(got, took, strict=True)) < 1e-6, told)


async def _held(answer: Any, prove: Prove) -> None:
    """One call of send holds the loop for half a second, in which 50 more are due."""

    async def send(number: int) -> None:
        if number == 30:
            occupy_loop(0.5)
        await asyncio.sleep(0.001)

    bench = _Bench(send)
    got = _seconds(await bench.run(answer, prove, 100, 2))
    wrong = [number for number, late in enumerate(bench.lateness(100)) if late > max(0.0, (80 - number) / 100) + 1e-6]
    told = "The loop was held for 0.5 s. What was due meanwhile must go out at once, and the rest when it is due."
    prove(NO_DRIFT, not wrong, told)
    wanted = [0.001 + late for late in bench.lateness(100)]
    wanted[30] += 0.5
    told = "The loop was held for 0.5 s, and the requests that were due meanwhile show nothing of it."
    prove(FROM_DUE, max(abs(a - b) for a, b in zip(got, wanted, strict=True)) < 1e-6, told)


async def _held_often(answer: Any, prove: Prove) -> None:
    """Each call of send holds the loop for a moment, as every request costs its client some time."""

    async def send(_: int) -> None:
        occupy_loop(0.002)
        await asyncio.sleep(0.01)

    bench = _Bench(send)
    await bench.run(answer, prove, 100, 4)
    late = max(bench.lateness(100))
    told = f"Each send held the loop for 0.002 s, and the last of 400 requests went out {late:.2g} s late."
    prove(NO_DRIFT, late < 0.005, told)


async def _stall(service: float, rate: float, seconds: float, stall: float, answer: Any, prove: Prove) -> None:
    server = _Server(service, stall, LATE_START + seconds / 4)
    bench = _Bench(lambda _: server.send())
    got = sorted(_seconds(await bench.run(answer, prove, rate, seconds)))
    p99, wanted = got[int(0.99 * len(got))], theory.stalled_quantile(0.99, stall, seconds, rate * service)
    told = f"The server stopped for {stall:g} s in {seconds:g} s: p99 is {p99:.3g} s, and S - 0.01 T (1 - rho) is {wanted:.3g} s."
    prove(TAIL, abs(p99 / wanted - 1) < 0.05, told)


_STALLS = [functools.partial(_stall, *case) for case in ((0.001, 200, 10, 0.5), (0.004, 200, 5, 1.0))]


async def _failures(answer: Any, prove: Prove) -> None:
    errors: dict[int, Injected] = {}

    async def send(number: int) -> None:
        if number % 4 != 1:
            await asyncio.sleep(0.1)
        if number % 4 in (1, 2):
            errors[number] = Injected(f"request {number} failed")
            raise errors[number]

    bench, told = _Bench(send), "Half of the requests failed"
    try:
        got = await bench.run(answer, prove, 50, 2)
    except (Injected, ExceptionGroup):
        raise Failed(ERRORS, f"{told}, and the first one ended the run.") from None
    except Failed as failed:
        raise Failed(ERRORS, f"{told}. {failed.sentence}") from None
    kept = all(got[number] is error for number, error in errors.items())
    prove(ERRORS, kept, f"{told}, and the list does not hold their exceptions at their places.")
    good = [one for number, one in enumerate(got) if number not in errors]
    fine = all(not isinstance(one, Exception) and abs(one - 0.1) < 1e-6 for one in good)
    prove(ERRORS, fine, f"{told}, and the others no longer have their latencies.")


async def _cancelled(answer: Any, calls: Calls, drive: Any) -> Any:
    numbers = iter(range(100))
    return await drive(answer(lambda: calls.job(f"request {next(numbers)}", 1.0, cleanup=0.1)(), 4, 1))


EXERCISES = [
    Exercise(
        "7.2", "an honest load generator", "async def open_loop(send, rate, seconds)", ("send", "rate", "seconds"),
        three_hints("""
            A server stops for a second. Which of your requests are sent in that second, and from when on does
            the latency of each count?

            Request n is due at start + n / rate, by loop.time(). Sleep until then, give the request a task of
            its own, and go on to the next. A request that is late goes out at once.

            async def one(due): try: await send(); return loop.time() - due; except Exception as error: return
            error. In a TaskGroup: for each due, await asyncio.sleep(due - loop.time()), then create_task(one(due)).
        """),
        check_open_loop,
    ),
]  # fmt: skip
