"""Chapter 08, resources: a pipeline that is bounded, a door that sheds, a copy in little memory, a leak."""

from __future__ import annotations

from . import copy08, leak08, pipeline08, shedder08

EXERCISES = [*pipeline08.EXERCISES, *shedder08.EXERCISES, *copy08.EXERCISES, *leak08.EXERCISES]
