"""Chapter 10, many processes: a limit that all share, a worker that repeats nothing, a plan, a drain."""

from __future__ import annotations

from . import drain10, limiter10, plan10, worker10

EXERCISES = [*limiter10.EXERCISES, *worker10.EXERCISES, *plan10.EXERCISES, *drain10.EXERCISES]
