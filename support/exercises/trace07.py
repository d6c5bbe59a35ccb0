"""The checker of exercise 7.4, a tracer: who is whose parent, across tasks, threads, executors and later work."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .engine import Exercise, three_hints
from .harness import NO_TASKS_LEFT, REAL_LIMIT, Failed, Prove, call, plain, tell

RECORDS = "records (name, parent) of each span in ended"
NESTED = "a span's parent is the span around it"
OPEN = "a span ends with its block, and not before"
ERRORS = "an error ends the span, and passes"
AFTER = "after a span, the one around it is current again"
TASKS = "tasks side by side keep apart"
CHILDREN = "a task is a child of the span in which it was made"
THREADS = "asyncio.to_thread keeps the span"
PASSES_ON = "carry passes arguments, result and error on"
EXECUTOR = "carry takes the span into an executor"
LATER = "carry takes the span to work that runs later"
COROUTINES = "carry works for async def too"
MANY = "a carried function may run in two threads at once"
LEAVES = "carry leaves nothing behind where it ran"
CANCEL = "a cancellation reaches carried work"

Parents = dict[str, str | None]


class _Bench:
    """A tracer at work. ``work`` and ``later`` are one span each, to be run anywhere."""

    def __init__(self, answer: Any, prove: Prove) -> None:
        self.prove = prove
        self.tracer = answer()
        if inspect.iscoroutine(self.tracer):
            self.tracer.close()
        good = all(callable(getattr(self.tracer, name, None)) for name in ("span", "carry"))
        told = f"Tracer() gave {plain(repr(self.tracer))}: write a class with span(name), carry(function) and ended."
        prove(RECORDS, good, told)
        self.ended()

    def ended(self) -> list[tuple[str, str | None]]:
        """The reader's records, if they are pairs."""
        found = getattr(self.tracer, "ended", None)
        good = isinstance(found, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in found)
        self.prove(RECORDS, good, f"tracer.ended is {plain(repr(found))}: keep a list of (name, parent) pairs in it.")
        return list(found)

    def names(self) -> list[str]:
        return [name for name, _ in self.ended()]

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A span of the reader's, and a look at when it ends."""
        manager = self.tracer.span(name)
        good = hasattr(type(manager), "__enter__") and hasattr(type(manager), "__exit__")
        told = f"tracer.span({name!r}) gave {plain(repr(manager))}: decorate it with contextlib.contextmanager."
        self.prove(RECORDS, good, told)
        with manager:
            yield
            told = f"The span {name!r} is in tracer.ended while its block still runs: add it when the block ends."
            self.prove(OPEN, name not in self.names(), told)

    def work(self, name: str, value: Any = None, error: Exception | None = None) -> Any:
        with self.span(name):
            if error:
                raise error
        return value

    async def later(self, name: str, value: Any = None, error: Exception | None = None) -> Any:
        with self.span(name):
            await asyncio.sleep(0)
            if error:
                raise error
        return value

    def parents(self, lacking: str, scene: str, expected: Parents) -> None:
        """Each of these spans has ended once, and has this parent."""
        ended = self.ended()
        for name, parent in expected.items():
            found = [its for span, its in ended if span == name]
            told = f"{scene}, the span {name!r} is {len(found)} times in tracer.ended, and should be there once."
            self.prove(RECORDS, len(found) == 1, told)
            told = f"{scene}, the parent of {name!r} is {found[0]!r}, and should be {parent!r}."
            self.prove(lacking, found[0] == parent, told)


def check_tracer(answer: Any, prove: Prove) -> None:
    """Checks Tracer of exercise 7.4: first in one thread, then in tasks, threads and later."""
    for scenario in (
        _nested, _after_errors, _side_by_side, _children,
        _executor, _later, _coroutines, _at_once, _cancelled,
    ):  # fmt: skip
        run = call(_judged, scenario, answer, prove)
        if isinstance(run.error, Failed):
            raise run.error
        run.result()


def _judged(scenario: Callable[[_Bench], Any], answer: Any, prove: Prove) -> None:
    async def judged() -> None:
        await scenario(_Bench(answer, prove))
        left = len(asyncio.all_tasks()) - 1
        prove(NO_TASKS_LEFT, not left, "It left a task running: await what you create.")

    asyncio.run(judged())


async def _nested(bench: _Bench) -> None:
    with bench.span("request"):
        with bench.span("query"):
            bench.work("parse")
        bench.work("render")
    bench.work("next request")
    expected = {"parse": "query", "query": "request", "request": None}
    bench.parents(NESTED, "With spans in spans", expected)
    bench.parents(AFTER, "After a span in a span", {"render": "request", "next request": None})
    told = f"The spans ended in the order {', '.join(bench.names())}: an inner span ends before the one around it."
    order = ["parse", "query", "render", "request", "next request"]
    bench.prove(OPEN, bench.names() == order, told)


async def _after_errors(bench: _Bench) -> None:
    for error in (ValueError("of the body"), asyncio.CancelledError(), GeneratorExit()):
        kind, caught = type(error).__name__, None
        with bench.span(f"around {kind}"):
            try:
                with bench.tracer.span(f"fails with {kind}"):
                    raise error
            except BaseException as out:
                caught = out
            bench.work(f"after {kind}")
        bench.work(f"next after {kind}")
        told = f"The block raised {tell(error)}, and "
        told += f"{tell(caught)} came out." if caught else "nothing came out: the span must not swallow it."
        bench.prove(ERRORS, caught is error, told)
        told = f"A block that raised {kind} left no span in tracer.ended: record it in finally."
        bench.prove(ERRORS, f"fails with {kind}" in bench.names(), told)
        expected = {f"after {kind}": f"around {kind}", f"next after {kind}": None}
        bench.parents(AFTER, f"After a block that raised {kind}", expected)


async def _side_by_side(bench: _Bench) -> None:
    everyone = asyncio.Barrier(3)

    async def request(name: str) -> None:
        await everyone.wait()
        with bench.span(name):
            await everyone.wait()
            with bench.span(f"{name}, query"):
                await everyone.wait()
            with bench.span(f"{name}, render"):
                await asyncio.sleep(0)

    names = ["request 1", "request 2", "request 3"]
    await asyncio.gather(*(request(name) for name in names))
    expected: Parents = dict.fromkeys(names)
    for name in names:
        expected |= {f"{name}, query": name, f"{name}, render": name}
    bench.parents(TASKS, "With three requests at once", expected)


async def _children(bench: _Bench) -> None:
    with bench.span("request"):
        with bench.span("fan-out"):
            await asyncio.gather(*(bench.later(f"child {number}") for number in range(3)))
        slow = asyncio.create_task(bench.later("slow child"))
    with bench.span("next request"):
        await slow
    expected = {"child 0": "fan-out", "child 1": "fan-out", "child 2": "fan-out"}
    bench.parents(CHILDREN, "With tasks made in a span", expected)
    told = "With a task that was made in a span and ran after it had ended"
    bench.parents(CHILDREN, told, {"slow child": "request", "next request": None})
    with bench.span("report"):
        await asyncio.gather(*(asyncio.to_thread(bench.work, f"thread {number}") for number in range(2)))
        await asyncio.to_thread(bench.work, "thread 2")
    bench.parents(THREADS, "With asyncio.to_thread", {f"thread {number}": "report" for number in range(3)})


async def _executor(bench: _Bench) -> None:
    loop, value, error = asyncio.get_running_loop(), object(), OSError("of the work")
    with ThreadPoolExecutor(1) as pool:
        with bench.span("request"):
            got = await loop.run_in_executor(pool, bench.tracer.carry(bench.work), "in the executor", value)
            told = f"carry(work)('name', value) should return what work returns, and returned {plain(repr(got))}."
            bench.prove(PASSES_ON, got is value, told)
            with bench.span("query"):
                await loop.run_in_executor(pool, bench.tracer.carry(lambda: bench.work("in a lambda")))
            await loop.run_in_executor(pool, bench.tracer.carry(bench.work), "again")
            got = None
            try:
                await loop.run_in_executor(pool, bench.tracer.carry(bench.work), "failing", None, error)
            except OSError as caught:
                got = caught
            bench.prove(PASSES_ON, got is error, "The carried function raised an error, and it did not come out.")
            by_name = functools.partial(bench.tracer.carry(bench.work), name="by name", value=value)
            try:
                got = await loop.run_in_executor(pool, by_name)
            except TypeError as caught:
                got = caught
            told = (
                "carry(work)(name=..., value=...) should pass arguments on that are given by name: take **kwargs too."
            )
            bench.prove(PASSES_ON, got is value, told)
        await loop.run_in_executor(pool, bench.work, "after")
    expected = {"in the executor": "request", "in a lambda": "query", "again": "request", "failing": "request"}
    expected["by name"] = "request"
    bench.parents(EXECUTOR, "With run_in_executor and carry", expected)
    bench.parents(LEAVES, "In the thread of the executor, without carry", {"after": None})


async def _later(bench: _Bench) -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def consumer() -> None:
        for number in range(3):
            job = await queue.get()
            with bench.span(f"consumer {number}"):
                job(f"job {number}")
                bench.work(f"consumer {number}, own")

    task = asyncio.create_task(consumer())
    with bench.span("request"):
        queue.put_nowait(bench.tracer.carry(bench.work))
        with bench.span("query"):
            queue.put_nowait(bench.tracer.carry(bench.work))
    queue.put_nowait(bench.tracer.carry(bench.work))
    await task
    expected: Parents = {"request": None, "job 0": "request", "job 1": "query", "job 2": None}
    scene = "With jobs that were carried in a request, or in no span, and that a consumer ran later in its own span"
    bench.parents(LATER, scene, expected)
    told = "In a consumer, after a carried job"
    bench.parents(LEAVES, told, {f"consumer {number}, own": f"consumer {number}" for number in range(3)})


async def _coroutines(bench: _Bench) -> None:
    value, got = object(), []
    with bench.span("request"):
        job = bench.tracer.carry(bench.later)
    with bench.span("consumer"):
        for number in range(2):
            started = job(f"job {number}", value)
            good = inspect.isawaitable(started)
            told = f"carry(job)(...) of an async def gave {plain(repr(started))}: it must give something to await."
            bench.prove(COROUTINES, good, told)
            got.append(await started)
        try:
            got.append(await job(name="job by name", value=value))
        except TypeError as caught:
            got.append(caught)
        bench.work("own")
        with contextlib.suppress(ValueError):
            await job("failing job", None, ValueError("of the job"))
        bench.work("own again")
    expected = {"job 0": "request", "job 1": "request", "failing job": "request"}
    told = "With an async def that was carried in a request, and that a consumer awaited later in its own span"
    bench.parents(COROUTINES, told, expected)
    told = f"Awaiting a carried async def should give what it returns, and gave {plain(repr(got[0]))}."
    bench.prove(PASSES_ON, got[:2] == [value, value], told)
    told = "Of an async def too, carry should pass arguments on that are given by name: take **kwargs too."
    bench.prove(PASSES_ON, got[2] is value, told)
    bench.parents(LEAVES, "In a consumer, after a carried async def", {"own": "consumer", "own again": "consumer"})


async def _at_once(bench: _Bench) -> None:
    both, met = threading.Barrier(2, timeout=REAL_LIMIT / 2), []

    def meets(name: str) -> None:
        with bench.span(name), contextlib.suppress(threading.BrokenBarrierError):
            met.append(both.wait())

    with bench.span("request"):
        carried = bench.tracer.carry(meets)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(carried, f"thread {number}") for number in range(2)]
        await asyncio.to_thread(concurrent.futures.wait, futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        both.abort()
        errors = [future.exception() for future in futures]
    for error in errors:
        if isinstance(error, Failed):
            raise error
        told = f"Two threads ran one carried function at the same time, and it raised {tell(error)}: " if error else ""
        bench.prove(MANY, error is None, told + "a Context can be entered once at a time, so each call needs a copy.")
    told = "Two threads called one carried function, and one waited until the other was done: it needs no lock."
    bench.prove(MANY, len(met) == 2, told)
    bench.parents(MANY, "With one carried function in two threads", {f"thread {n}": "request" for n in range(2)})


async def _cancelled(bench: _Bench) -> None:
    begun, seen = asyncio.Event(), []

    async def waits(name: str) -> None:
        with bench.span(name):
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                seen.append(name)
                raise

    with bench.span("request"):
        carried = bench.tracer.carry(waits)

    async def consumer() -> None:
        await carried("job")

    task = asyncio.create_task(consumer())
    task.add_done_callback(lambda _: begun.set())  # also when the job could not begin
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    told = "Who awaited a carried job was cancelled, and the job went on: it must be cancelled too."
    bench.prove(CANCEL, task.cancelled() and seen == ["job"], told)
    bench.parents(CANCEL, "After a carried job was cancelled", {"job": "request"})


EXERCISES = [
    Exercise(
        "7.4",
        "trace through threads and background",
        "class Tracer",
        (),
        three_hints("""
            What is a variable that each task has its own copy of, and which of the four ways, a task, to_thread, an
            executor, a queue, hands that copy on?

            A ContextVar holds the name of the current span: span() sets it, and resets it in finally. carry() must look
            when it is called, and not when the function runs; contextvars.copy_context() is such a look.

            In span: token = self.current.set(name), then try: yield, and in finally: self.current.reset(token) and
            self.ended.append((name, parent)). In carry: parent = self.current.get() now; around the function, later,
            set it and reset it the same way, once for def and once for async def.
        """),
        check_tracer,
    )
]
