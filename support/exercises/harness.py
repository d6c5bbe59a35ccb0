"""How a checker runs an answer: guarded, under the virtual clock, with everything counted.

A checker is a function ``check(answer, prove)``. It runs the answer in small scenarios with
``observe`` (or ``call``, for plain functions), and states what must hold with
``prove(property, ok, sentence)``. The first that does not hold ends the check. ``faults`` holds
what breaks and cancels the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from ..clock import Simulation
from ..guard import RealTimeLimit, SimulationError, call_in_thread
from ..waits import is_reader_code

SEEDS = (1, 2, 3)
SIMULATED_LIMIT = 100_000.0  # simulated seconds for one run
REAL_LIMIT = 10.0  # real seconds for one run: only a guard, never a measurement
NO_ERROR = "runs without an error"
ENDS = "comes to an end"
NO_TASKS_LEFT = "leaves no task behind"
AWAITS_ALL = "awaits every coroutine"
NO_LOST_ERRORS = "loses no error"


class Failed(Exception):
    """The answer lacks a property; ``sentence`` guesses the mistake."""

    def __init__(self, lacking: str, sentence: str) -> None:
        super().__init__(lacking, sentence)
        self.lacking, self.sentence = lacking, sentence


class NotAttempted(Exception):
    """The answer is still the stub."""


class Printed(io.StringIO):
    """What an answer prints. A sweep runs it a hundred times: only the last run is of interest."""

    def forget(self) -> None:
        """Start a new run."""
        self.seek(0)
        self.truncate()


class Prove:
    """``prove(property, ok, sentence)``: one claim about the answer. Keeps the names proven."""

    def __init__(self) -> None:
        self.proven: dict[str, None] = {}

    def __call__(self, lacking: str, ok: bool, sentence: str) -> None:
        if not ok:
            raise Failed(lacking, sentence)
        self.proven[lacking] = None


@dataclass
class Run:
    """What one run of an answer did. Times are in simulated seconds."""

    value: Any = None
    error: BaseException | None = None
    elapsed: float = 0.0
    left_over: list[str] = field(default_factory=list)  # tasks alive when the answer returned
    loop_errors: list[str] = field(default_factory=list)  # what asyncio would have logged
    never_awaited: list[str] = field(default_factory=list)
    slept: float = 0.0  # seconds asked of time.sleep; only ``call`` fills it

    @property
    def was_cancelled(self) -> bool:
        return isinstance(self.error, asyncio.CancelledError)

    def result(self) -> Any:
        """The value, or Failed with the learner's own exception in a sentence."""
        if self.error is not None:
            raise Failed(NO_ERROR, f"It raised {tell(self.error)}.") from self.error
        return self.value

    def raised(self, error: BaseException) -> bool:
        """True when ``error`` came out, alone or in an exception group."""
        return any(each is error for each in _each(self.error))


def tell(error: BaseException) -> str:
    """Type, message and place of an exception, the same in every run."""
    first = next(_each(error))
    text = type(first).__name__ + (f": {plain(first)}" if str(first) else "")
    steps = [(f.f_code, line) for f, line in traceback.walk_tb(first.__traceback__)]
    own = [(code, line) for code, line in steps if is_reader_code(code.co_filename)]
    where = f" (in {own[-1][0].co_name}, line {own[-1][1]})" if own else ""
    return text + where + (" in an exception group" if first is not error else "")


def plain(thing: object) -> str:
    """The text of ``thing`` on one line, without memory addresses, cut where it gets long."""
    text = " ".join(re.sub(r" ?\bat 0x[0-9a-fA-F]+", "", str(thing)).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def observe(scenario: Callable[..., Awaitable[Any]], *args: Any) -> Run:
    """Await ``scenario(*args)`` on a virtual loop, in a guarded thread, and count everything.

    Raises NotAttempted for a stub, and Failed for code that never ends or leaves the simulation.
    """
    run = Run()

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: run.loop_errors.append(_told(context)))
        try:
            awaitable = scenario(*args)
            if not isinstance(awaitable, Awaitable):
                raise Failed("is a coroutine function", "It cannot be awaited: write async def.")
            run.value = await awaitable
        except (Failed, NotAttempted, KeyboardInterrupt):
            raise  # the scenario's own finding, or the reader's
        except BaseException as error:
            run.error = error
        run.elapsed = loop.time()
        own = asyncio.current_task()
        run.left_over = sorted(_coroutine_name(t) for t in asyncio.all_tasks() if t is not own)

    watched.__name__ = getattr(scenario, "__name__", "answer")
    with _watching(run):
        try:
            Simulation(limit=SIMULATED_LIMIT, real_limit=REAL_LIMIT).run(watched)
        except RealTimeLimit:
            raise _overran() from None
        except SimulationError as error:
            _attempted(run)
            raise Failed(ENDS, plain(error)) from None
    return _attempted(run)


def call(function: Callable[..., Any], *args: Any) -> Run:
    """Call a plain function in a guarded thread. Its time.sleep is counted and takes no time."""
    run, others, sleep = Run(), set(threading.enumerate()), time.sleep

    def counted_sleep(seconds: float) -> None:
        if threading.current_thread() in others:
            return sleep(seconds)
        run.slept += seconds

    def work() -> None:
        try:
            run.value = function(*args)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            run.error = error

    with _watching(run), mock.patch("time.sleep", counted_sleep):
        try:
            call_in_thread(work, real_limit=REAL_LIMIT)
        except RealTimeLimit:
            raise _overran() from None
    return _attempted(run)


def _overran() -> Failed:
    return Failed(
        ENDS,
        f"It was still running after {REAL_LIMIT:g} s of real time and was stopped: is there a "
        f"loop that never awaits, or that never ends?",
    )


def _attempted(run: Run) -> Run:
    if run.value is Ellipsis or any(isinstance(e, NotImplementedError) for e in _each(run.error)):
        raise NotAttempted
    return run


def _each(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _each(inner)
    elif error is not None:
        yield error


def _told(context: dict[str, Any]) -> str:
    error = context.get("exception")
    what = context["message"].partition("(")[0]  # in brackets asyncio prints what differs per run
    return what + (f" ({tell(error)})" if error else "")


def _coroutine_name(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__name__", "task")


@contextlib.contextmanager
def _watching(run: Run) -> Iterator[None]:
    if isinstance(sys.stdout, Printed):
        sys.stdout.forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", "coroutine .* was never awaited", RuntimeWarning)
        yield
        if run.error is not None:  # its frames would keep lost tasks alive, and unreported
            traceback.clear_frames(run.error.__traceback__)
        gc.collect()  # cheap: the engine froze what was there before
    names = (re.search(r"'(.*)'", str(warning.message)) for warning in caught)
    run.never_awaited = [found[1].rpartition(".")[2] for found in names if found]


def prove_clean(prove: Prove, run: Run) -> None:
    """When the answer returned, nothing went on, nothing was lost and nothing was forgotten."""
    left, lost = ", ".join(run.left_over), ", ".join(run.never_awaited)
    prove(NO_TASKS_LEFT, not left, f"It returned while {left} was still running.")
    prove(AWAITS_ALL, not lost, f"The coroutine {lost} was made and never awaited.")
    errors = "; ".join(run.loop_errors)
    prove(NO_LOST_ERRORS, not errors, f"asyncio had to log what nobody noticed: {errors}.")
