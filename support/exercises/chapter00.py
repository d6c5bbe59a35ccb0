"""Chapter 00, start here: one warm-up exercise, to see how checks talk."""

from __future__ import annotations

from typing import Any

from .engine import Exercise, three_hints
from .faults import Calls, cancel_sweep, error_sweep, prove_cancelled
from .harness import Prove, observe, plain, prove_clean, tell


def _check_double(answer: Any, prove: Prove) -> None:
    for number in (21, -3, 0.5):
        calls = Calls()
        run = observe(answer, calls.job("fetch", 0.1, number))
        value = run.result()
        prove("calls fetch once", calls.started == ["fetch"], f"It called fetch {len(calls.started)} times.")
        prove("waits for fetch", calls.finished == ["fetch"], "It returned before fetch was done: await it.")
        told = f"fetch returned {number}, and it returned {plain(value)}."
        prove("returns twice the number", isinstance(value, (int, float)) and value == 2 * number, told)
        prove_clean(prove, run)
    for run, calls in error_sweep(lambda calls: answer(calls.job("fetch", 0.1, 1))):
        out = tell(run.error) if run.error else f"it returned {plain(run.value)}"
        prove("lets a failure out", run.raised(calls.injected), f"{calls.injected}, and out came: {out}.")
    for run, calls, canceller in cancel_sweep(lambda calls, drive: drive(answer(calls.job("fetch", 0.1, 1)))):
        prove_cancelled(prove, run, calls, canceller, 0.0)


EXERCISES = [
    Exercise(
        "0.1",
        "await and double",
        "async def double(fetch)",
        ("fetch",),
        three_hints("""
        fetch is a coroutine function. What does fetch() give you, and what does it take to get
        the number out?

        Write await in front of the call. Only then is there a number to double.

        number = await fetch(), and then return what the exercise asks for.
        """),
        _check_double,
    )
]
