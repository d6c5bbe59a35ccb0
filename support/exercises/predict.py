"""Predictions: the reader commits to an answer, and the measurement says which one holds."""

from __future__ import annotations

import textwrap
from typing import Any

from . import store

_WIDTH = 88


def _wrapped(text: str, lead: str = "") -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False
    )


class Prediction:
    """A question with its options and the reader's guess; made by ``predict``."""

    def __init__(self, key: str, question: str, options: dict[str, str], guess: str) -> None:
        self.key, self.question, self.options, self.guess = key, question, options, guess

    def __repr__(self) -> str:
        return f"Prediction({self.key!r}, guess={self.guess!r})"

    def settle(self, measured: str, because: str = "") -> None:
        """Print what the measurement supports, and how the guess fared; keep both.

        measured: the letter of the option, chosen by the measuring code. because: what was
        measured, in a sentence. Raises ValueError for a letter that is no option.
        """
        if measured not in self.options:
            raise ValueError(
                f"settle() of {self.key!r} got {measured!r}, which is none of the options "
                f"{', '.join(self.options)}."
            )
        if not self.guess:
            outcome, comment = "no guess", "You had not guessed."
        elif self.guess == measured:
            outcome, comment = "right", f"You guessed {self.guess}: right."
        else:
            outcome, guessed = "wrong", self.options[self.guess].rstrip(".")
            comment = f"You guessed {self.guess}) {guessed}. It is {measured}."
        print(_wrapped(self.options[measured], f"Measured: {measured}) "))
        if because:
            print(_wrapped(because, " " * len("Measured: ")))
        print(_wrapped(comment))
        store.record("prediction", self.key, guess=self.guess, measured=measured, outcome=outcome)


def predict(key: str, question: str, options: dict[str, str], guess: str = "") -> Prediction:
    """Put a question, and hold the reader's guess until ``settle`` answers it.

    key: its name in the reader's progress. options: letter to text. guess: one of the letters;
    empty is fine. Raises ValueError for a guess that is none of the options.
    """
    if not (isinstance(options, dict) and options and all(isinstance(o, str) for o in options)):
        raise ValueError(f"predict({key!r}) needs options such as {{'a': '...'}}, not {options!r}.")
    letter = _letter(key, options, guess)
    print(_wrapped(question, "Predict: "))
    for option, text in options.items():
        print(_wrapped(text, f"  {option}) "))
    if letter:
        print(f"Your guess: {letter}")
    else:
        print(
            f'Your guess: none yet. Write guess="{next(iter(options))}" above, or run on and see.'
        )
    return Prediction(key, question, options, letter)


def _letter(key: str, options: dict[str, str], guess: Any) -> str:
    letter = guess.strip().strip(")").lower() if isinstance(guess, str) else guess
    matching = [option for option in options if option.lower() == letter]
    if letter == "" or matching:
        return matching[0] if matching else ""
    raise ValueError(
        f"The guess {guess!r} for {key!r} is none of the options {', '.join(options)}: "
        f'write one of them in quotes, or "".'
    )
