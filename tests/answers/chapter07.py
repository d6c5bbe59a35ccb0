"""Right and wrong answers to the exercises of chapter 07, one file an exercise."""

from answers import merge07, open_loop07, trace07, watch07

PARTS = (watch07, open_loop07, merge07, trace07)
RIGHT, WRONG, STUBS = [
    {exercise: answers for part in PARTS for exercise, answers in getattr(part, kind).items()}
    for kind in ("RIGHT", "WRONG", "STUBS")
]
