"""Right and wrong answers to exercise 7.4, a tracer."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

RECORDS = "records (name, parent) of each span in ended"
NESTED = "a span's parent is the span around it"
OPEN = "a span ends with its block, and not before"
ERRORS = "an error ends the span, and passes"
AFTER = "after a span, the one around it is current again"
TASKS = "tasks side by side keep apart"
CHILDREN = "a task is a child of the span in which it was made"
PASSES_ON = "carry passes arguments, result and error on"
EXECUTOR = "carry takes the span into an executor"
LATER = "carry takes the span to work that runs later"
COROUTINES = "carry works for async def too"
MANY = "a carried function may run in two threads at once"
LEAVES = "carry leaves nothing behind where it ran"
CANCEL = "a cancellation reaches carried work"


@stub("7.4")
class TracerStub:
    def __init__(self):
        raise NotImplementedError


@stub("7.4")
class TracerHalfStub:
    def __init__(self):
        self.ended = []

    def span(self, name):
        raise NotImplementedError

    def carry(self, function):
        raise NotImplementedError


@right("7.4")
class SetAndReset:
    def __init__(self):
        self.ended, self.current = [], contextvars.ContextVar("current span", default=None)

    @contextlib.contextmanager
    def as_current(self, name):
        token = self.current.set(name)
        try:
            yield
        finally:
            self.current.reset(token)

    @contextlib.contextmanager
    def span(self, name):
        parent = self.current.get()
        try:
            with self.as_current(name):
                yield
        finally:
            self.ended.append((name, parent))

    def carry(self, function):
        parent = self.current.get()
        if inspect.iscoroutinefunction(function):

            async def carried(*args, **kwargs):
                with self.as_current(parent):
                    return await function(*args, **kwargs)

        else:

            def carried(*args, **kwargs):
                with self.as_current(parent):
                    return function(*args, **kwargs)

        return carried


@right("7.4")
class CopyOfTheContext(SetAndReset):
    def carry(self, function):
        context = contextvars.copy_context()
        if inspect.iscoroutinefunction(function):

            async def carried(*args, **kwargs):
                return await asyncio.create_task(function(*args, **kwargs), context=context.copy())

            return carried
        return lambda *args, **kwargs: context.copy().run(function, *args, **kwargs)


_current = contextvars.ContextVar("span", default=(None,))


@right("7.4")
class PathInAModuleVariable:
    """A tuple of names as the current path; a span is a class, and carry a callable object."""

    class Span:
        def __init__(self, tracer, name):
            self.tracer, self.name = tracer, name

        def __enter__(self):
            self.path = _current.get()
            _current.set((*self.path, self.name))

        def __exit__(self, *error):
            _current.set(self.path)
            self.tracer.ended.append((self.name, self.path[-1]))

    class Carried:
        def __init__(self, function):
            self.function, self.path = function, _current.get()

        def __call__(self, *args, **kwargs):
            before = _current.get()
            _current.set(self.path)
            try:
                started = self.function(*args, **kwargs)
            finally:
                _current.set(before)
            return self.awaited(started) if inspect.isawaitable(started) else started

        async def awaited(self, started):
            before = _current.get()
            _current.set(self.path)
            try:
                return await started
            finally:
                _current.set(before)

    def __init__(self):
        self.ended = []

    def span(self, name):
        return self.Span(self, name)

    def carry(self, function):
        return self.Carried(function)


@wrong("7.4", TASKS)
class OneForAll(SetAndReset):
    """A global current span."""

    def __init__(self):
        self.ended, self.now = [], None

    @contextlib.contextmanager
    def span(self, name):
        parent, self.now = self.now, name
        try:
            yield
        finally:
            self.now = parent
            self.ended.append((name, parent))

    def carry(self, function):
        return function


@wrong("7.4", TASKS)
class OneForEachThread(SetAndReset):
    def __init__(self):
        self.ended, self.local = [], threading.local()

    @contextlib.contextmanager
    def span(self, name):
        parent, self.local.name = getattr(self.local, "name", None), name
        try:
            yield
        finally:
            self.local.name = parent
            self.ended.append((name, parent))


@wrong("7.4", TASKS)
class SharedStack(SetAndReset):
    """Each task has a copy of the context, and all copies hold the same list."""

    def __init__(self):
        super().__init__()
        self.current.set([])

    @contextlib.contextmanager
    def span(self, name):
        stack = self.current.get()
        parent = stack[-1] if stack else None
        stack.append(name)
        try:
            yield
        finally:
            stack.pop()
            self.ended.append((name, parent))


@wrong("7.4", CHILDREN)
class OneForEachTask(SetAndReset):
    """Keyed by the task: what a task starts does not inherit."""

    def __init__(self):
        self.ended, self.now = [], {}

    @contextlib.contextmanager
    def span(self, name):
        task = asyncio.current_task()
        parent, self.now[task] = self.now.get(task), name
        try:
            yield
        finally:
            self.now[task] = parent
            self.ended.append((name, parent))


@wrong("7.4", EXECUTOR)
class CopiedTooLate(CopyOfTheContext):
    def carry(self, function):
        def carried(*args, **kwargs):
            return contextvars.copy_context().run(function, *args, **kwargs)

        return carried


@wrong("7.4", EXECUTOR)
class NoCopyForTheExecutor(SetAndReset):
    def carry(self, function):
        return function


@wrong("7.4", LATER)
class OnlyIfThereIsASpan(SetAndReset):
    """Work that was carried in no span runs in whatever span is there."""

    def carry(self, function):
        return super().carry(function) if self.current.get() else function


@wrong("7.4", CHILDREN)
class NoParentThatHasEnded(SetAndReset):
    """Later work of a request that was answered becomes a trace of its own."""

    @contextlib.contextmanager
    def span(self, name):
        parent = self.current.get()
        if any(ended == parent for ended, _ in self.ended):
            parent = None
        try:
            with self.as_current(name):
                yield
        finally:
            self.ended.append((name, parent))


@wrong("7.4", AFTER)
class NoResetAfterAnError(SetAndReset):
    @contextlib.contextmanager
    def span(self, name):
        parent = self.current.get()
        token = self.current.set(name)
        try:
            yield
            self.current.reset(token)
        finally:
            self.ended.append((name, parent))


@wrong("7.4", AFTER)
class ResetToNothing(SetAndReset):
    @contextlib.contextmanager
    def as_current(self, name):
        self.current.set(name)
        try:
            yield
        finally:
            self.current.set(None)


@wrong("7.4", ERRORS)
class LosesSpansThatFail(SetAndReset):
    @contextlib.contextmanager
    def span(self, name):
        parent = self.current.get()
        with self.as_current(name):
            yield
        self.ended.append((name, parent))


@wrong("7.4", ERRORS)
class SwallowsErrors(SetAndReset):
    @contextlib.contextmanager
    def span(self, name):
        with contextlib.suppress(Exception), super().span(name):
            yield


@wrong("7.4", OPEN)
class ClosedTooEarly(SetAndReset):
    @contextlib.contextmanager
    def span(self, name):
        self.ended.append((name, self.current.get()))
        with self.as_current(name):
            yield


@wrong("7.4", RECORDS)
class NamesOnly(SetAndReset):
    @contextlib.contextmanager
    def span(self, name):
        with self.as_current(name):
            yield
        self.ended.append(name)


@wrong("7.4", NESTED)
class ParentIsItself(SetAndReset):
    @contextlib.contextmanager
    def span(self, name):
        with self.as_current(name):
            try:
                yield
            finally:
                self.ended.append((name, self.current.get()))


@wrong("7.4", MANY)
class OneContextForAll(CopyOfTheContext):
    def carry(self, function):
        context = contextvars.copy_context()
        if inspect.iscoroutinefunction(function):
            return super().carry(function)
        return lambda *args, **kwargs: context.run(function, *args, **kwargs)


@wrong("7.4", LEAVES)
class SetInTheThread(SetAndReset):
    """The thread of an executor is used again, and still has the span of the last job."""

    def carry(self, function):
        parent = self.current.get()

        def carried(*args, **kwargs):
            self.current.set(parent)
            return function(*args, **kwargs)

        return carried


@wrong("7.4", LEAVES)
class ResetOnlyWhenAllIsWell(SetAndReset):
    def carry(self, function):
        parent, carried = self.current.get(), super().carry(function)
        if inspect.iscoroutinefunction(function):
            return carried

        def careless(*args, **kwargs):
            token = self.current.set(parent)
            result = function(*args, **kwargs)
            self.current.reset(token)
            return result

        return careless


@wrong("7.4", COROUTINES)
class OnlyTheCall(CopyOfTheContext):
    """Calling an async def runs nothing of it: its body runs where it is awaited."""

    def carry(self, function):
        context = contextvars.copy_context()
        return lambda *args, **kwargs: context.copy().run(function, *args, **kwargs)


@wrong("7.4", PASSES_ON)
class ForgetsTheResult(SetAndReset):
    def carry(self, function):
        carried = super().carry(function)
        if inspect.iscoroutinefunction(function):
            return carried

        def forgetful(*args, **kwargs):
            carried(*args, **kwargs)

        return forgetful


@wrong("7.4", PASSES_ON)
class ForgetsNames(SetAndReset):
    def carry(self, function):
        carried = super().carry(function)
        return carried if inspect.iscoroutinefunction(function) else lambda *args: carried(*args)


@wrong("7.4", PASSES_ON)
class ForgetsNamesOfCoroutines(SetAndReset):
    def carry(self, function):
        carried = super().carry(function)
        if not inspect.iscoroutinefunction(function):
            return carried

        async def carried_async(*args):
            return await carried(*args)

        return carried_async


@wrong("7.4", CANCEL)
class Shielded(CopyOfTheContext):
    def carry(self, function):
        context = contextvars.copy_context()
        if inspect.iscoroutinefunction(function):

            async def carried(*args, **kwargs):
                return await asyncio.shield(asyncio.create_task(function(*args, **kwargs), context=context.copy()))

            return carried
        return super().carry(function)


@wrong("7.4", "asyncio.to_thread keeps the span")
class OnlyInTasks(SetAndReset):
    """Threads have no current task, so a span in a thread is taken for a trace of its own."""

    @contextlib.contextmanager
    def span(self, name):
        try:
            asyncio.get_running_loop()
            parent = self.current.get()
        except RuntimeError:
            parent = None
        try:
            with self.as_current(name):
                yield
        finally:
            self.ended.append((name, parent))
