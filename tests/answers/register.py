"""Where a chapter's answers are kept: right ones, wrong ones with what they lack, and stubs."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

Keep = Callable[[Any], Any]


class Register:
    """Decorators that file an answer under its exercise, and the three tables that they fill."""

    def __init__(self) -> None:
        self.RIGHT: dict[str, list[Any]] = collections.defaultdict(list)
        self.WRONG: dict[str, list[tuple[Any, str]]] = collections.defaultdict(list)
        self.STUBS: dict[str, list[Any]] = collections.defaultdict(list)

    def right(self, exercise_id: str) -> Keep:
        """The check must accept it."""
        return lambda answer: self.RIGHT[exercise_id].append(answer) or answer

    def wrong(self, exercise_id: str, lacking: str) -> Keep:
        """The check must reject it, and name this property as missing."""
        return lambda answer: self.WRONG[exercise_id].append((answer, lacking)) or answer

    def stub(self, exercise_id: str) -> Keep:
        """The check must call it "not attempted"."""
        return lambda answer: self.STUBS[exercise_id].append(answer) or answer
