"""Right and wrong answers to the exercises of chapter 09, one file an exercise."""

from answers import bulkhead09, deadline09, guard09, relay09

PARTS = (guard09, relay09, bulkhead09, deadline09)
RIGHT, WRONG, STUBS = [
    {exercise: answers for part in PARTS for exercise, answers in getattr(part, kind).items()}
    for kind in ("RIGHT", "WRONG", "STUBS")
]
