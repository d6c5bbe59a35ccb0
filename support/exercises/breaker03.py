"""The checker of exercise 3.4, a circuit breaker: states, one probe, old calls, cancellations."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from .faults import CANCELS, Calls, cancel_sweep
from .harness import NO_ERROR, SEEDS, Failed, Prove, observe, plain, prove_clean, tell

OPENS = "opens at the last failure allowed, and not before"
FAST = "an open breaker refuses at once, without a call"
WINDOW = "forgets failures older than the window"
PASSES_ON = "a call's value or error comes out unchanged"
PROBES = "probes after the cooldown"
ONE_PROBE = "one probe at a time"
SLOW_PROBE = "refuses the others while a slow probe runs"
CLOSES = "a probe that succeeds closes it"
REOPENS = "a probe that fails opens it for a fresh cooldown"
CANCELLED = "a cancelled call is no failure"
STUCK = "a cancelled probe leaves the next call to probe"
OLD = "a call counts only in the state in which it began"


class BreakerOpen(Exception):
    """A breaker refused the call: the other side is taken to be down."""


class _Bench:
    """A breaker at work: ``call`` sends one job through it and tells how it ended."""

    def __init__(self, answer: Any, prove: Prove, failures: int = 3, window: float = 10, cooldown: float = 5) -> None:
        self.prove, self.calls = prove, Calls()
        self.breaker = answer(failures, window, cooldown)

    async def call(self, fails: bool = False, seconds: float = 0.1, value: Any = "value") -> str:
        """ "ok", "failed" or "refused"; a CancelledError passes."""
        error, name, loop = (
            ConnectionError("no answer"),
            f"call {len(self.calls.started) + 1}",
            asyncio.get_running_loop(),
        )
        begun, called = loop.time(), []

        async def work() -> Any:
            called.append(name)
            await self.calls.job(name, seconds)()
            if fails:
                raise error
            return value

        try:
            got = await self.breaker.call(work)
        except BreakerOpen:
            self.prove(FAST, not called, "It made the call and raised BreakerOpen all the same.")
            waited = loop.time() - begun
            self.prove(FAST, not waited, f"BreakerOpen came {waited:g} s late: a refusal waits for nothing.")
            return "refused"
        except (asyncio.CancelledError, NotImplementedError, Failed):
            raise
        except Exception as caught:
            told = f"The call raised {tell(error)}, and breaker.call raised {tell(caught)}."
            if caught is not error:
                self.prove(PASSES_ON if called else NO_ERROR, False, told if called else f"It raised {tell(caught)}.")
            return "failed"
        told = f"The call returned {value!r}" if not fails else f"The call raised {tell(error)}"
        self.prove(PASSES_ON, not fails and got is value, f"{told}, and breaker.call returned {plain(repr(got))}.")
        return "ok"

    async def expect(self, lacking: str, expected: str, scene: str, **how: Any) -> None:
        """One call now must end as ``expected``."""
        made = len(self.calls.started)
        got = await self.call(**how)
        words = {"refused": "was refused", "ok": "went through", "failed": "went through"}
        told = (
            f"{scene}, the next call {words[got]} and should {'be refused' if expected == 'refused' else 'go through'}."
        )
        self.prove(lacking, got == expected, told)
        self.prove(lacking, len(self.calls.started) - made <= 1, f"{scene}, one call became several: do not retry.")

    async def fail(self, times: int, lacking: str = OPENS, scene: str = "") -> None:
        for number in range(times):
            before = scene or f"With failures=3, after {number} failures"
            await self.expect(lacking, "failed", before, fails=True)

    async def open(self) -> None:
        """Three failures, 0.3 s, and the breaker is open."""
        await self.fail(3)
        await self.expect(OPENS, "refused", "With failures=3, after 3 failures")


def check_breaker(answer: Any, prove: Prove) -> None:
    """The scenarios in order, and then a cancellation at every await of a call and of a probe."""
    for scenario in (
        _closed, _opens, _window, _cooldown, _closes, _reopens, _fifty, _slow_probe, _cancelled, _cancelled_probe,
        _old_calls, _old_calls_and_the_probe, _old_failures_after_closing, _independent, _traffic,
    ):  # fmt: skip
        run = observe(functools.partial(scenario, answer, prove))
        run.result()
        prove_clean(prove, run)
    for state in ("closed", "half-open"):
        for run, _, canceller in cancel_sweep(functools.partial(_sweep, answer, prove, state)):
            told = f"A call through the {state} breaker, cancelled at {canceller}: "
            told += f"it raised {tell(run.error)}." if run.error else "CancelledError did not come out."
            prove(CANCELS, run.error is None and run.value, told)
            prove_clean(prove, run)


async def _closed(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove)
    for value in ("value", None, 0, ""):
        await bench.expect("a closed breaker lets calls through", "ok", "At the start", value=value)
    start = asyncio.get_running_loop().time()
    got = await asyncio.gather(*(bench.call() for _ in range(50)))
    took = asyncio.get_running_loop().time() - start
    told = f"50 calls of 0.1 s at once took {took:g} s, and {got.count('refused')} were refused: hold no lock."
    prove("closed, it holds nobody up", set(got) == {"ok"} and took < 0.1 + 1e-6, told)


async def _opens(answer: Any, prove: Prove) -> None:
    for failures in (1, 3, 5):
        bench = _Bench(answer, prove, failures, 10, 5)
        for number in range(failures):
            await bench.expect(OPENS, "failed", f"With failures={failures}, after {number} failures", fails=True)
            if number < failures - 1:
                await bench.expect(OPENS, "ok", f"With failures={failures}, after {number + 1} failures")
        await bench.expect(
            OPENS, "refused", f"With failures={failures}, after {failures} failures and successes between them"
        )


async def _window(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove, 3, 10, 1000)
    for number in range(6):  # two in 10 s, never three
        await bench.expect(WINDOW, "failed", f"With window=10, after {number} failures, one every 6 s", fails=True)
        await asyncio.sleep(6)
    bench = _Bench(answer, prove, 3, 10, 1000)
    for number in range(3):
        await bench.expect(OPENS, "failed", f"With window=10, after {number} failures, one every 4 s", fails=True)
        await asyncio.sleep(4 if number < 2 else 0)
    await bench.expect(OPENS, "refused", "With window=10, after 3 failures, one every 4 s")


async def _cooldown(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove)
    await bench.open()
    for _ in range(9):
        await asyncio.sleep(0.5)
        await bench.expect("stays open for the cooldown", "refused", "Less than cooldown after it opened")
    prove(FAST, len(bench.calls.started) == 3, "A call was made while the breaker was open.")
    await asyncio.sleep(0.6)
    await bench.expect(PROBES, "ok", "5.1 s after it opened, with cooldown=5 and by loop.time()")
    bench = _Bench(answer, prove)
    await asyncio.gather(*(bench.call(fails=True) for _ in range(20)))
    await bench.expect(OPENS, "refused", "After 20 calls that failed together")
    await asyncio.sleep(5.5)
    await bench.expect(PROBES, "ok", "After 20 calls that failed together, and the cooldown")


async def _closes(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove, 3, 100, 5)
    await bench.open()
    await asyncio.sleep(5.1)
    await bench.expect(CLOSES, "ok", "After the cooldown")
    got = await asyncio.gather(*(bench.call() for _ in range(50)))
    told = f"After a probe that succeeded, {got.count('refused')} of 50 calls at once were refused."
    prove(CLOSES, set(got) == {"ok"}, told)
    for number in range(2):
        scene = f"Closed again by its probe, with failures=3, after {number} new failures"
        await bench.expect("closed again, it counts from 0", "failed", scene, fails=True)
    await bench.expect("closed again, it counts from 0", "ok", "Closed again by its probe, after 2 new failures")
    await bench.fail(1, OPENS, "Closed again by its probe, after 2 new failures")
    await bench.expect(OPENS, "refused", "Closed again by its probe, after 3 new failures")


async def _reopens(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove)
    await bench.open()
    for probe in (1, 2, 3):
        await asyncio.sleep(5.1)
        await bench.expect(REOPENS, "failed", f"After the cooldown before probe {probe}", fails=True, seconds=1)
        for _ in range(2):
            await bench.expect(REOPENS, "refused", f"Right after probe {probe} failed")
            await asyncio.sleep(2.4)
        await bench.expect(REOPENS, "refused", f"4.8 s after probe {probe} failed, with cooldown=5")
    await asyncio.sleep(0.5)
    await bench.expect(CLOSES, "ok", "After three probes that failed, and a cooldown")


async def _fifty(answer: Any, prove: Prove) -> None:
    for fails in (False, True):
        bench = _Bench(answer, prove)
        await bench.open()
        await asyncio.sleep(5.1)
        got = await asyncio.gather(*(bench.call(fails=fails) for _ in range(50)))
        probes = len(bench.calls.started) - 3
        told = f"After the cooldown 50 callers came at once, and {probes} calls were made: one goes, 49 are refused."
        prove(ONE_PROBE, probes == 1 and got.count("refused") == 49, told)


async def _slow_probe(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove)
    await bench.open()
    await asyncio.sleep(5.1)
    probe = asyncio.create_task(bench.call(seconds=30))
    for step in range(28):  # longer than several cooldowns
        await asyncio.sleep(1)
        await bench.expect(SLOW_PROBE, "refused", f"{step + 1} s into a probe of 30 s")
    prove(CLOSES, await probe == "ok", "The slow probe itself was refused.")
    await bench.expect(CLOSES, "ok", "After a slow probe that succeeded")


async def _cancelled(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove)
    tasks = [asyncio.create_task(bench.call(seconds=5)) for _ in range(20)]
    await asyncio.sleep(1)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    swallowed = sum(not isinstance(end, asyncio.CancelledError) for end in ends)
    prove(CANCELS, not swallowed, f"20 calls were cancelled, and {swallowed} ended as if nothing had happened.")
    await bench.expect(CANCELLED, "ok", "After 20 calls that were cancelled")
    await bench.fail(2, CANCELLED, "After 20 calls that were cancelled, and fewer than 3 failures")
    await bench.expect(CANCELLED, "ok", "After 20 calls that were cancelled, and 2 failures")


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _cancelled_probe(answer: Any, prove: Prove) -> None:
    for expected in ("ok", "failed"):
        bench = _Bench(answer, prove)
        await bench.open()
        await asyncio.sleep(5.1)
        for _ in range(2):
            probe = asyncio.create_task(bench.call(seconds=9))
            await asyncio.sleep(1)
            prove(STUCK, not probe.done(), "After a probe that was cancelled, the next call was refused.")
            await bench.expect(SLOW_PROBE, "refused", "1 s into a probe of 9 s")
            await _cancel(probe)
            prove(CANCELS, probe.cancelled(), "A probe was cancelled, and no CancelledError came out.")
        await bench.expect(STUCK, expected, "After a probe that was cancelled", fails=expected == "failed")
        after = "ok" if expected == "ok" else "refused"
        await bench.expect(CLOSES if after == "ok" else REOPENS, after, f"After the second probe ({expected})")


async def _old_calls(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove)
    old = [asyncio.create_task(bench.call(fails=n % 2 == 0, seconds=0.9 + n / 2)) for n in range(8)]
    await asyncio.sleep(0)
    await bench.open()
    for n in range(9):
        await asyncio.sleep(0.5)
        what = "failed" if n % 2 == 0 else "succeeded"
        await bench.expect(OLD, "refused", f"Open, and a call from before the opening has {what}")
    await asyncio.sleep(0.7)
    await bench.expect(OLD, "ok", "5.2 s after it opened, with calls from before that had failed meanwhile")
    await asyncio.gather(*old)


async def _old_calls_and_the_probe(answer: Any, prove: Prove) -> None:
    for how in ("succeeded", "failed", "been cancelled"):
        bench = _Bench(answer, prove)
        old = asyncio.create_task(bench.call(fails=how == "failed", seconds=8 if how != "been cancelled" else 99))
        await asyncio.sleep(0)
        await bench.open()
        await asyncio.sleep(5.2)
        probe = asyncio.create_task(bench.call(seconds=9))
        await asyncio.sleep(3)
        if how == "been cancelled":
            await _cancel(old)
        scene = f"While a probe runs, a call from before the opening has {how}; then"
        await bench.expect(OLD, "refused", scene)
        await asyncio.sleep(5.5)
        await bench.expect(OLD, "refused", scene)
        prove(CLOSES, await probe == "ok", "The probe itself was refused.")
        await bench.expect(OLD, "ok", f"A call from before the opening had {how}; the probe has succeeded")
        await asyncio.wait([old])


async def _old_failures_after_closing(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, prove, 3, 100, 5)
    old = [asyncio.create_task(bench.call(fails=True, seconds=7)) for _ in range(5)]
    await asyncio.sleep(0)
    await bench.open()
    await asyncio.sleep(5.2)
    await bench.expect(CLOSES, "ok", "After the cooldown")
    await asyncio.gather(*old)
    await bench.expect(OLD, "ok", "Closed by its probe, and then 5 calls from before the opening have failed")


async def _independent(answer: Any, prove: Prove) -> None:
    one, other = _Bench(answer, prove), _Bench(answer, prove)
    await one.open()
    await other.expect("each breaker has its own state", "ok", "Another breaker has opened")


async def _traffic(answer: Any, prove: Prove) -> None:
    """A service that is down for 60 s: few calls reach it, and afterwards all do."""
    for seed in SEEDS:
        bench, loop = _Bench(answer, prove, 3, 10, 5 + seed), asyncio.get_running_loop()
        start, reached = loop.time(), 0
        while (now := loop.time() - start) < 100:
            down = 20 <= now < 80
            made = len(bench.calls.started)
            got = await bench.call(fails=down, seconds=0.05)
            reached += down and len(bench.calls.started) > made
            if now < 20 or now > 80 + 6 + seed:
                told = f"The service was down from 20 s to 80 s, and at {now:.0f} s a call was {got}."
                prove(CLOSES, got == "ok", told)
            await asyncio.sleep(0.2)
        most = 3 + 60 // (5 + seed)
        told = f"While the service was down for 60 s, {reached} calls reached it: 3, and a probe per cooldown."
        prove(FAST, reached <= most, told)


async def _sweep(answer: Any, prove: Prove, state: str, calls: Calls, drive: Any) -> bool:
    bench = _Bench(answer, prove, 1)
    if state == "half-open":
        await bench.fail(1, OPENS, "With failures=1")
        await asyncio.sleep(5.1)
    try:
        await drive(bench.breaker.call(calls.job("call", 1.0)))
        cancelled = False
    except asyncio.CancelledError:
        cancelled = True
    await bench.expect(STUCK if state == "half-open" else CANCELLED, "ok", "After a call that was cancelled")
    await bench.expect(CLOSES, "ok", "After a call that was cancelled, and one that succeeded")
    return cancelled
