"""Chapter 09, the gateway: a guard against hostile URLs, a proxy that streams, bulkheads, one deadline for all attempts."""

from __future__ import annotations

from . import bulkhead09, deadline09, guard09, relay09

EXERCISES = [*guard09.EXERCISES, *relay09.EXERCISES, *bulkhead09.EXERCISES, *deadline09.EXERCISES]
