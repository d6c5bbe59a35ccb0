"""Exercises: find one, run its checker on an answer, say what happened."""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from . import store
from .harness import Failed, NotAttempted, Printed, Prove, plain
from .predict import _wrapped

PRINTED_LINES = 12
# What the body of a stub compiles to, whether it says pass, ..., or nothing but a docstring.
_EMPTY_BODY = {
    "RESUME", "NOP", "POP_TOP", "LOAD_CONST", "LOAD_CONST_IMMORTAL", "RETURN_CONST", "RETURN_VALUE",
    "RETURN_GENERATOR", "CALL_INTRINSIC_1", "RERAISE",
}  # fmt: skip


@dataclass(frozen=True)
class Exercise:
    """One exercise. ``signature``: how the reader writes it. ``arguments``: how it is called."""

    id: str
    title: str
    signature: str
    arguments: tuple[str, ...]
    hints: tuple[str, str, str]
    check: Callable[[Any, Prove], None]

    @property
    def chapter(self) -> int:
        """The number before the dot."""
        return int(self.id.partition(".")[0])


def three_hints(text: str) -> tuple[str, str, str]:
    """Three paragraphs: a question, a pointer, half the code."""
    first, second, third = (" ".join(part.split()) for part in text.strip().split("\n\n"))
    return first, second, third


@dataclass(frozen=True)
class Verdict:
    """state: "passed", "failed" or "not attempted". ``lacking`` names the property that failed."""

    exercise: Exercise
    state: str
    lacking: str = ""
    sentence: str = ""
    proven: tuple[str, ...] = ()
    printed: str = ""


@functools.cache
def exercises() -> tuple[Exercise, ...]:
    """Every exercise of every chapter module beside this file, in order."""
    found: list[Exercise] = []
    for module in pkgutil.iter_modules([__file__.rpartition("engine")[0]]):
        if re.fullmatch(r"chapter\d\d", module.name):
            found += importlib.import_module(f"{__package__}.{module.name}").EXERCISES
    return tuple(sorted(found, key=lambda e: (e.chapter, int(e.id.partition(".")[2]))))


def _find(exercise_id: str) -> Exercise:
    known = {exercise.id: exercise for exercise in exercises()}
    if not isinstance(exercise_id, str) or exercise_id not in known:
        raise ValueError(f"There is no exercise {exercise_id!r}; there are {', '.join(known)}.")
    return known[exercise_id]


def check(exercise_id: str, answer: Any) -> None:
    """Check an answer and print the verdict: what is proven, or what is missing and a hint.

    Raises ValueError for an unknown exercise, and TypeError for what cannot be an answer.
    """
    verdict = evaluate(exercise_id, answer)
    exercise, name = verdict.exercise, f"{exercise_id} {verdict.exercise.title}"
    if verdict.state == "not attempted":
        print(f"{name}: not attempted.")
        return
    # A chapter's own solution, run by Run All, is not the reader's progress.
    if not getattr(answer, "__name__", "").lower().endswith("solution"):
        store.record("check", exercise_id, state=verdict.state, lacking=verdict.lacking)
    if verdict.state == "passed":
        print(f"{name}: passed.")
        print(_wrapped("; ".join(verdict.proven) + ".", "Proven: "))
        return
    print(f"{name}: not yet.")
    print(_wrapped(verdict.lacking + ".", "Missing: "))
    print(_wrapped(verdict.sentence))
    shown = _hints_shown(exercise)
    print(_wrapped(exercise.hints[shown - 1], f"Hint {shown} of {len(exercise.hints)}: "))
    if verdict.printed:
        print("Your code printed, in the run that failed:")
        lines = verdict.printed.splitlines()
        more = [f"... and {len(lines) - PRINTED_LINES} lines more"] * (len(lines) > PRINTED_LINES)
        print("\n".join(f"  {line}" for line in lines[:PRINTED_LINES] + more))


def hint(exercise_id: str) -> None:
    """Print the hints so far and one more. A failed check shows one more too."""
    exercise = _find(exercise_id)
    store.record("hint", exercise_id)
    for number in range(1, _hints_shown(exercise) + 1):
        print(_wrapped(exercise.hints[number - 1], f"Hint {number} of {len(exercise.hints)}: "))


def _hints_shown(exercise: Exercise) -> int:
    failed = sum(event.get("state") == "failed" for event in store.events("check", exercise.id))
    return max(1, min(len(exercise.hints), failed + len(store.events("hint", exercise.id))))


def evaluate(exercise_id: str, answer: Any) -> Verdict:
    """Run the checker of an exercise on an answer, print and keep nothing."""
    exercise = _find(exercise_id)
    _require_answer(exercise, answer)
    if _is_stub(answer):
        return Verdict(exercise, "not attempted")
    prove = Prove()
    with _contained() as printed:
        try:
            exercise.check(answer, prove)
        except NotAttempted:
            return Verdict(exercise, "not attempted")
        except Failed as failed:
            return Verdict(
                exercise,
                "failed",
                failed.lacking,
                failed.sentence,
                tuple(prove.proven),
                printed.getvalue().strip(),
            )
    return Verdict(exercise, "passed", proven=tuple(prove.proven))


def _require_answer(exercise: Exercise, answer: Any) -> None:
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError(
            f"check({exercise.id!r}) needs the function itself and got the coroutine "
            f"{answer.__name__}(...): write check({exercise.id!r}, {answer.__name__})."
        )
    if not callable(answer):
        raise TypeError(
            f"check({exercise.id!r}) needs your {exercise.signature}, not {plain(repr(answer))}."
        )
    try:
        inspect.signature(answer).bind(*exercise.arguments)
    except TypeError as error:
        raise TypeError(
            f"check({exercise.id!r}) calls your answer as {exercise.signature}, which "
            f"{getattr(answer, '__name__', 'it')} does not accept: {error}."
        ) from None
    except ValueError:
        pass  # no signature to look at: the call itself will tell


def _is_stub(answer: Any) -> bool:
    functions = [answer]
    if inspect.isclass(answer):
        functions = [f for f in vars(answer).values() if isinstance(f, FunctionType)]
    codes = [getattr(f, "__code__", None) for f in functions]
    return bool(codes) and all(
        code and {step.opname for step in dis.get_instructions(code)} <= _EMPTY_BODY
        for code in codes
    )


@contextlib.contextmanager
def _contained() -> Iterator[Printed]:
    """Keep the answer's prints, complaints and garbage apart from the notebook's."""
    printed, hook = Printed(), sys.unraisablehook
    gc.freeze()  # what is here now is not the answer's: the collections of the checker skip it
    sys.unraisablehook = lambda _: None
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield printed
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about coroutines that a failed check left unawaited
            gc.collect()
        sys.unraisablehook = hook
        gc.unfreeze()
