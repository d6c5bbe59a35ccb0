"""What an operator can set: one frozen object, checked when it is made, or read from the environment."""

from __future__ import annotations

import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self
from urllib.parse import urlsplit

PREFIX = "GATEWAY_"
_CAN_BE_NONE = ("deadline", "breaker", "bulkhead", "retry_budget", "hedge", "cache", "shed", "rate")
_OTHERWISE_OFF = {"shared_client": False, "partial": False, "retries": 0}
_MAY_BE_ZERO = ("retries", "bulkhead_queue", "shed_queue", "drain", "reserve", "retry_wait", "cache_negative")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the gateway behaves. Times are in seconds, sizes in bytes.

    Each protection is one field, and None (or False, or 0 retries) takes that one away and nothing else:
    ``shared_client``, ``deadline``, ``partial``, ``bulkhead``, ``retries``, ``retry_budget``, ``breaker``,
    ``cache``, ``hedge``, ``shed``, ``rate``.

    Of these, ``partial``, ``retries``, ``retry_budget``, ``cache`` and ``hedge`` hold for an aggregate only: it is made
    of GETs, which may be sent twice, kept and shared. A request to /proxy goes out once.

    Raises ValueError for a value that makes no sense, in a sentence that names the field.
    """

    upstreams: Mapping[str, str]  # name -> URL: clients name a service, they never give an address; no query in it
    # The client
    shared_client: bool = True  # one session for all requests; False opens one for each call of an aggregate
    connections: int = 400  # of the session, at most; without a bulkhead only, for that is a limit by itself
    connections_per_host: int = 100  # to one host and port, likewise: upstreams at one address share them
    connect: float = 1.0  # a connection takes longer than this: the upstream is unavailable
    ca_file: str | None = None  # PEM file with certificates to trust beside those of the system
    public_only: bool = False  # connect to public addresses only, checked when the connection is made
    # Time, of an aggregate; proxy_seconds is below
    deadline: float | None = 1.0  # where the client names none; None: no deadline, not even a client's
    deadline_max: float = 5.0  # nobody gets more
    upstream_timeout: float = 10.0  # of a call, its wait for a place and its retries, where there is no deadline
    attempt: float | None = None  # of one attempt; a retry may then still be in time. None: all the time that is left
    reserve: float = 0.02  # kept from the deadline, for the gateway's own answer; at most a tenth of it. Of /proxy, too
    # The answer
    partial: bool = True  # 207 with the parts that came; False: an error when one is missing
    services: int = 10  # names in one request, at most
    # Each upstream
    breaker: int | None = 5  # failures in a row that open it: timeouts, no connection, 5xx, no JSON; not a 404
    breaker_rest: float = 1.0  # until one probe may try again
    bulkhead: int | None = 64  # calls at once, those of /proxy among them; a hedge shares the place of its call
    bulkhead_queue: int = 64  # calls that wait for a place; more are refused
    retries: int = 1  # after a first attempt that found no connection, got 502, 503 or 504, or took too long
    retry_wait: float = 0.02  # before a retry, at most; doubles each time
    retry_budget: float | None = 0.1  # retries and hedges per call, in the long run; None: no bound
    # No answer after this: ask once more, take the first good answer, cancel the other call. Choose the upstream's
    # 95th percentile, so that one call in 20 is made twice. With no spare in the budget there is no second call.
    hedge: float | None = None
    # All upstreams
    # How long a part is served from memory, to one tenant, and while it is fetched all who ask wait for one call. Not
    # with an Authorization, nor when its Cache-Control says no-store, private or no-cache; max-age is not read.
    cache: float | None = 1.0  # None: no cache, and no single flight
    cache_negative: float = 0.1  # how long a failure is; timeouts and refusals of our own are not kept
    cache_bytes: int = 16 << 20  # of all that is kept
    shed: int | None = 200  # requests at once, to /aggregate and /proxy
    shed_queue: int = 100  # requests that wait, until their deadline; more are refused with 503
    rate: float | None = None  # requests a second for each tenant, in this process; more get 429
    keys: Mapping[str, str] = field(default_factory=dict)  # X-API-Key -> tenant; empty: everyone may ask
    # Sizes, and streams
    answer_bytes: int = 1 << 20  # of one part, unpacked
    body_bytes: int = 10 << 20  # of a proxied body, in either direction
    proxy_seconds: float = 30.0  # of a proxied request, the lines included; X-Deadline-Ms may name less
    proxy_idle: float = 5.0  # without a byte
    # The process
    access_log: bool = False  # one line of JSON for each request: to the logger gateway.access, or else to stderr
    drain: float = 0.0  # from SIGTERM, while /ready says no and requests are still served; then the server stops

    def __post_init__(self) -> None:
        object.__setattr__(self, "upstreams", types.MappingProxyType(_checked_upstreams(self.upstreams)))
        object.__setattr__(self, "keys", types.MappingProxyType(_checked_names("keys", self.keys)))
        hints = typing.get_type_hints(type(self))
        for each in fields(self):
            if each.name not in ("upstreams", "keys"):
                _check(each.name, getattr(self, each.name), hints[each.name])
        if self.deadline is not None and self.deadline > self.deadline_max:
            raise ValueError(f"deadline must not be above deadline_max, {self.deadline_max}, and is {self.deadline}.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read GATEWAY_UPSTREAMS, a JSON object of names and URLs, and GATEWAY_<FIELD> for each other field.

        A value is JSON (``0.5``, ``true``, ``{"key": "tenant"}``); ``off`` and ``null`` take a protection away.
        Raises ValueError in a sentence that names the variable, also for one that no field has.
        """
        environment = os.environ if environment is None else environment
        known = {PREFIX + each.name.upper(): each.name for each in fields(cls)}
        given: dict[str, Any] = {}
        for variable, text in environment.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in known:
                raise ValueError(f"{variable} is no setting of the gateway; it has {', '.join(sorted(known))}.")
            given[known[variable]] = _parsed(variable, text)
        if "upstreams" not in given:
            raise ValueError(
                f'Set {PREFIX}UPSTREAMS to a JSON object such as {{"users": "http://127.0.0.1:9000/users"}}.'
            )
        try:
            return cls(**given)
        except ValueError as error:
            raise ValueError(f"In the environment ({PREFIX}...): {error}") from None

    @classmethod
    def naive(cls, upstreams: Mapping[str, str], **others: Any) -> Self:
        """All protections off: where a ladder begins. ``others`` are fields, such as those that it adds."""
        chosen: dict[str, Any] = {"upstreams": upstreams} | dict.fromkeys(_CAN_BE_NONE) | _OTHERWISE_OFF | others
        return cls(**chosen)


def _parsed(variable: str, text: str) -> Any:
    if variable == PREFIX + "CA_FILE":
        return text or None
    if text.strip().lower() in ("off", "none"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{variable} must be JSON, such as 0.5, true or off, not {text[:60]!r}.") from None


def _check(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError unless ``value`` suits the field: a number from 0 up, a whole one where an int is expected."""
    kinds = set(typing.get_args(hint)) or {hint}
    if value is None:
        if type(None) in kinds:
            return
        raise ValueError(f"{name} cannot be switched off.")
    if bool in kinds or str in kinds:
        if not isinstance(value, bool if bool in kinds else str):
            raise ValueError(f"{name} must be {'true or false' if bool in kinds else 'a path'}, not {value!r}.")
        return
    whole = int in kinds
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, not {value!r}.")
    if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
        raise ValueError(f"{name} must be {'0 or more' if name in _MAY_BE_ZERO else 'above 0'}, not {value!r}.")


def _checked_upstreams(given: Mapping[str, str]) -> dict[str, str]:
    upstreams = _checked_names("upstreams", given)
    if not upstreams:
        raise ValueError("upstreams must name at least one service.")
    for name, url in upstreams.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"upstreams: a name is made of letters, digits, - and _, not {name!r}.")
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            good = False
        if good and parts.query:
            raise ValueError(
                f"upstreams: the URL of {name!r} must have no query, for /proxy sends the client's: {url!r}."
            )
        if not good or parts.fragment:
            raise ValueError(f"upstreams: {name!r} needs a URL such as http://127.0.0.1:9000/users, not {url!r}.")
    return upstreams


def _checked_names(field_name: str, given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for pair in given.items() for text in pair):
        raise ValueError(f"{field_name} must be a mapping of text to text, not {given!r}.")
    return dict(given)
