"""What a checker does to an answer: break every call in turn, cancel it at every await in turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from typing import Any

from .harness import NO_TASKS_LEFT, Prove, Run, observe, plain, tell

CANCELS = "passes a cancellation on"


class Injected(Exception):
    """The failure that a checker puts into a call."""


class Calls:
    """Counts what an answer does with the work it is given, and can break the n-th call.

    ``started``, ``finished``, ``failed``, ``cancelled`` and ``abandoned`` (destroyed without
    being cancelled) hold names in order; ``peak`` is the most that were in flight at once.
    """

    def __init__(self, *, fail_at: int = 0) -> None:
        self.started: list[str] = []
        self.finished: list[str] = []
        self.failed: list[str] = []
        self.cancelled: list[str] = []
        self.abandoned: list[str] = []
        self.in_flight = self.peak = 0
        self.injected: Injected | None = None
        self.injected_at = 0.0
        self._fail_at = fail_at

    @contextlib.contextmanager
    def one(self, name: str) -> Iterator[None]:
        """Put around the body of one call. The injected failure comes at the end of the body."""
        self.started.append(name)
        number = len(self.started)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            yield
            if number == self._fail_at:
                self.injected = Injected(f"failure injected into {name}")
                self.injected_at = asyncio.get_running_loop().time()
                raise self.injected
            self.finished.append(name)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        except GeneratorExit:
            self.abandoned.append(name)
            raise
        except BaseException:
            self.failed.append(name)
            raise
        finally:
            self.in_flight -= 1

    def job(
        self, name: str, seconds: float, result: Any = None, *, cleanup: float = 0.0
    ) -> Callable[[], Awaitable[Any]]:
        """A coroutine function that waits and returns; cancelled, it needs ``cleanup`` seconds."""

        async def job() -> Any:
            with self.one(name):
                try:
                    await asyncio.sleep(seconds)
                except asyncio.CancelledError:
                    await asyncio.sleep(cleanup)
                    raise
            return result

        job.__name__ = job.__qualname__ = name
        return job


class Canceller:
    """Cancels the current task at the n-th suspension of the awaitable that it drives.

    moment: "suspended", as soon as it waits, or "woken", when what it waited for is done and the
    task has not run yet: the moment at which results and permits get lost.
    """

    def __init__(self, at: int, moment: str = "suspended") -> None:
        self.at, self.moment = at, moment
        self.fired, self.time, self._seen = False, 0.0, 0

    async def drive(self, awaitable: Awaitable[Any]) -> Any:
        """Await ``awaitable`` and cancel it at its moment."""
        return await _Driven(awaitable, self._suspended)

    def _suspended(self, waiting_for: Any) -> None:
        self._seen += 1
        if self._seen != self.at:
            return
        task, loop = asyncio.current_task(), asyncio.get_running_loop()

        def fire(_: Any = None) -> None:
            self.fired, self.time = True, loop.time()
            task.cancel()

        if self.moment == "woken" and waiting_for is not None:
            waiting_for.add_done_callback(fire)
        else:
            fire()

    def __str__(self) -> str:
        return f"await number {self.at}" + (", just woken" if self.moment == "woken" else "")


class _Driven:
    def __init__(self, awaitable: Awaitable[Any], suspended: Callable[[Any], None]) -> None:
        self._awaitable, self._suspended = awaitable, suspended

    def __await__(self) -> Generator[Any, Any, Any]:
        steps, error = self._awaitable.__await__(), None
        while True:
            try:
                waiting_for = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as stop:
                return stop.value
            self._suspended(waiting_for)
            try:
                error = None
                yield waiting_for
            except BaseException as thrown:
                error = thrown


Scenario = Callable[..., Awaitable[Any]]


def error_sweep(scenario: Scenario, *args: Any) -> Iterator[tuple[Run, Calls]]:
    """Run ``scenario(calls, *args)`` with a failure in its first call, its second, and so on."""
    for number in itertools.count(1):
        calls = Calls(fail_at=number)
        run = observe(scenario, calls, *args)
        if calls.injected is None:
            return
        yield run, calls


def cancel_sweep(
    scenario: Scenario, moments: Sequence[str] = ("suspended", "woken")
) -> Iterator[tuple[Run, Calls, Canceller]]:
    """Run ``scenario(calls, drive)`` cancelled at its first await, its second, and so on.

    The scenario says what is cancelled: ``await drive(answer(...))``.
    """
    for moment in moments:
        for number in itertools.count(1):
            calls, canceller = Calls(), Canceller(number, moment)
            run = observe(scenario, calls, canceller.drive)
            if not canceller.fired:
                break
            yield run, calls, canceller


def prove_cancelled(
    prove: Prove, run: Run, calls: Calls, canceller: Canceller, grace: float
) -> None:
    """After a cancellation: it came out, within ``grace`` seconds, and nothing goes on."""
    where = f"Cancelled at {canceller},"
    told = f"it raised {tell(run.error)}" if run.error else f"it returned {plain(run.value)}"
    prove(
        CANCELS,
        run.was_cancelled,
        f"{where} {told}: let CancelledError through, or raise it again.",
    )
    prove(
        NO_TASKS_LEFT,
        not run.left_over,
        f"{where} it left {', '.join(run.left_over)} running: cancel and await them.",
    )
    late = run.elapsed - canceller.time
    prove(CANCELS, late <= grace + 1e-9, f"{where} it took {late:g} s more: stop at once.")
    lost = ", ".join(sorted(calls.abandoned))
    prove(
        NO_TASKS_LEFT, not lost, f"{where} it dropped {lost} in the middle, without cancelling it."
    )
