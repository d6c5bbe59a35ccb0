"""What the gateway tells about itself: metrics with a bounded set of labels, and an access log in JSON."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from support.gateway.answer import ABANDONED, REASONS

access = logging.getLogger("gateway.access")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)  # seconds


class Metrics:
    """Counters by route template, never by path, and by upstream name, which the registry bounds."""

    def __init__(self, upstreams: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        names = tuple(upstreams)
        self.requests = Counter("gateway_requests", "Requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "gateway_request_seconds", "Time to answer", ["route"], buckets=BUCKETS, registry=self.registry
        )
        self.in_flight = Gauge("gateway_in_flight", "Requests that are being answered", registry=self.registry)
        self.open = Gauge(
            "gateway_breaker_open", "1 while the breaker lets nothing through", ["upstream"], registry=self.registry
        )
        calls = Counter("gateway_upstream_calls", "Calls", ["upstream", "outcome"], registry=self.registry)
        took = Histogram(
            "gateway_upstream_seconds", "Time of a call", ["upstream"], buckets=BUCKETS, registry=self.registry
        )
        # Looked up once: to find a child by its labels costs more than to count.
        self._calls = {(name, word): calls.labels(name, word) for name in names for word in (*REASONS, ABANDONED)}
        self._took = {name: took.labels(name) for name in names}
        self._requests: dict[tuple[str, int], Counter] = {}
        self._seconds: dict[str, Histogram] = {}

    def call(self, name: str, outcome: str, seconds: float) -> None:
        """Count a call to an upstream."""
        self._calls[name, outcome].inc()
        self._took[name].observe(seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request. ``route`` is a template."""
        if (route, status) not in self._requests:
            self._requests[route, status] = self.requests.labels(route, str(status))
            self._seconds[route] = self.seconds.labels(route)
        self._requests[route, status].inc()
        self._seconds[route].observe(seconds)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)


def open_access_log() -> Callable[[], None]:
    """Let the access log be seen: at INFO, and on stderr where no logging is set up. Returns what undoes it."""
    before, own = access.level, None if access.hasHandlers() else logging.StreamHandler()
    access.setLevel(logging.INFO)
    if own:
        access.addHandler(own)

    def undo() -> None:
        access.setLevel(before)
        if own:
            access.removeHandler(own)

    return undo


def log_access(**known: object) -> None:
    """One line of JSON. JSON also keeps a line break in a path from beginning a line of its own."""
    access.info(json.dumps({"time": round(time.time(), 3), **known}))
