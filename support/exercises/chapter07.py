"""Chapter 07, monitoring: a watchdog, an honest load generator, percentiles that merge, a trace that holds."""

from __future__ import annotations

from . import merge07, open_loop07, trace07, watch07

EXERCISES = [*watch07.EXERCISES, *open_loop07.EXERCISES, *merge07.EXERCISES, *trace07.EXERCISES]
