"""Right and wrong answers to the exercises of chapter 10, one file an exercise."""

from answers import drain10, limiter10, plan10, worker10

PARTS = (limiter10, worker10, plan10, drain10)
RIGHT, WRONG, STUBS = [
    {exercise: answers for part in PARTS for exercise, answers in getattr(part, kind).items()}
    for kind in ("RIGHT", "WRONG", "STUBS")
]
