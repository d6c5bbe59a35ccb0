"""Exercises: ``check`` an answer, ``predict`` before measuring, see ``hint`` and ``progress``."""

from .chapter01 import Pause
from .chapter03 import BreakerOpen
from .engine import Exercise, Verdict, check, evaluate, exercises, hint
from .pool05 import PoolBusy
from .predict import Prediction, predict
from .store import Score, progress, score, scores

__all__ = [
    "BreakerOpen",
    "Exercise",
    "Pause",
    "PoolBusy",
    "Prediction",
    "Score",
    "Verdict",
    "check",
    "evaluate",
    "exercises",
    "hint",
    "predict",
    "progress",
    "score",
    "scores",
]
