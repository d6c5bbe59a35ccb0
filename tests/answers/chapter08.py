"""Right and wrong answers to the exercises of chapter 08, one file an exercise."""

from answers import copy08, leak08, pipeline08, shedder08

PARTS = (pipeline08, shedder08, copy08, leak08)
RIGHT, WRONG, STUBS = [
    {exercise: answers for part in PARTS for exercise, answers in getattr(part, kind).items()}
    for kind in ("RIGHT", "WRONG", "STUBS")
]
