"""What an upstream answers, what becomes of it, and what the client gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from multidict import MultiMapping

RETRIABLE = frozenset({502, 503, 504})
# What a client may read about a part. Never the text of an exception: it names hosts and ports.
REASONS = (
    "ok", "timeout", "unavailable", "upstream_error", "bad_payload", "too_large", "circuit_open", "busy", "blocked", "failed",
)  # fmt: skip

ABANDONED = "abandoned"  # for the metrics: the client broke it off, and nobody knows

# RFC 9111, 5.2.2: what an upstream says of an answer that is for one client, or for one time. no-cache asks for a
# check before each use, which this cache does not make.
_NOT_SHARED = frozenset({"no-store", "private", "no-cache"})


class UnknownService(ValueError):
    """The request names what is not in the registry, nothing at all, or too much. The text is for the client."""


class Bad(Exception):
    """The request cannot be served. The sentence is for the client."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class UpstreamFailed(Exception):
    """A call that brought no answer. ``reason``: one of REASONS; ``started``: bytes of an answer were there already."""

    def __init__(self, reason: str, *, started: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.started = reason, started


@dataclass(frozen=True, slots=True)
class Reply:
    """What an upstream answered: the whole body, within the limit. ``headers`` are read in any case when they can be."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def shared(self) -> bool:
        """Whether its Cache-Control lets it be kept, and given to others."""
        headers = self.headers
        if "Cache-Control" not in headers:
            return True
        several = headers.getall("Cache-Control") if isinstance(headers, MultiMapping) else [headers["Cache-Control"]]
        said = {each.partition("=")[0].strip().lower() for line in several for each in line.split(",")}
        return said.isdisjoint(_NOT_SHARED)


_HEALTH = {"ok": True, "busy": None, "circuit_open": None, "blocked": None, ABANDONED: None}


@dataclass(frozen=True, slots=True)
class Part:
    """What became of one service. ``body`` is checked JSON when ``ok``; ``code`` the upstream's status, if it had one."""

    name: str
    status: str
    code: int = 0
    body: bytes = b""
    again: bool = False  # a retry may help, and harms nobody
    shared: bool = True  # others may have it, too

    @property
    def ok(self) -> bool:
        """Whether it has data."""
        return self.status == "ok"

    @property
    def healthy(self) -> bool | None:
        """What it says of the upstream: also a 404 is a sign of life, and a long body that a client asked for. None: nothing."""
        if self.status == "upstream_error" or (self.status == "too_large" and self.code):
            return self.code < 500
        return _HEALTH.get(self.status, False)

    def json(self) -> bytes:
        """The part as JSON. The data go through as they came."""
        if self.ok:
            return b'{"status":"ok","data":' + self.body + b"}"
        return json.dumps({"status": self.status} | ({"code": self.code} if self.code else {})).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the client: 200 all, 207 some, 504 all timed out, 502 otherwise; 503 shed, 429 over the limit."""

    status: int
    parts: Mapping[str, Part] = field(default_factory=dict)
    error: str = ""

    def json(self) -> bytes:
        """The body."""
        if self.error:
            return json.dumps({"error": self.error}).encode()
        parts = b",".join(b'"%s":%s' % (name.encode(), part.json()) for name, part in self.parts.items())
        return b'{"parts":{' + parts + b"}}"


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


# Made once: to make a decoder costs as much as to read a small body.
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def checked(name: str, reply: Reply) -> Part:
    """The reply as a part: its body goes into our answer as it is, so it must be JSON, and nothing else."""
    try:
        _decode(reply.body.decode())
    except (ValueError, RecursionError):
        return Part(name, "bad_payload", reply.status, shared=reply.shared)
    return Part(name, "ok", reply.status, reply.body, shared=reply.shared)
