"""PgBouncer in front of a Postgres: many client connections on few server connections, one transaction at a time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from support.balancer import find
from support.program_base import Program, expect, launch
from support.service_process import HOST, UNPRIVILEGED, _works

MOST_CLIENTS, MOST_SERVER_CONNECTIONS, MOST_PREPARED = 500, 50, 10_000
FIRST_TO_PREPARE = (1, 21)  # the version of PgBouncer that brought max_prepared_statements
SSL_MODES = ("disable", "allow", "prefer", "require")

# An unknown startup parameter would be refused: extra_float_digits is what many drivers send.
_PGBOUNCER = """
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {size}
max_client_conn = {clients}
server_tls_sslmode = {ssl}
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
"""


class _Parts(NamedTuple):
    host: str
    port: int
    database: str
    user: str
    password: str
    ssl: str


class Pooler(Program):
    """A running PgBouncer in transaction mode: as a Program, and `url`, `version`, `can_prepare`.

    version: PgBouncer's, such as (1, 21). can_prepare: whether that one can keep prepared statements.
    """

    version: tuple[int, int] = (0, 0)
    _login = _database = ""

    @property
    def url(self) -> str:
        """The database of the url that it was started with, by way of the pooler, as clients take it."""
        return f"postgresql://{self._login}@{HOST}:{self.port}/{self._database}"

    @property
    def can_prepare(self) -> bool:
        return self.version >= FIRST_TO_PREPARE


def start_pooler(database_url: str, *, server_connections: int = 2, prepared: int = 0, name: str = "pooler") -> Pooler | None:  # fmt: skip
    """Start PgBouncer in front of a Postgres, in transaction mode; return when it listens on 127.0.0.1.

    Where there is none, or the url lacks what it needs, print what is skipped and why, and return None.

    database_url: postgresql://user:password@host/database, or with ?host= the folder of a socket file. PgBouncer logs in
        with this password, which its clients must give as well.
    server_connections: the most that it opens to Postgres for this user and database; further clients wait for one.
    prepared: how many prepared statements it keeps on each of them (`max_prepared_statements`); 0 for none.
    Raises ValueError for bad input, RuntimeError with the reason when it does not start, or when it is asked to keep
    prepared statements and is older than 1.21.
    """
    server = _parts(database_url)
    for what, value, least, most in (("server_connections", server_connections, 1, MOST_SERVER_CONNECTIONS),
                                     ("prepared", prepared, 0, MOST_PREPARED)):  # fmt: skip
        expect(type(value) is int and least <= value <= most,
               f"{what} must be a whole number from {least} to {most:,}, not {value!r}.")  # fmt: skip
    program = find("pgbouncer") if os.name == "posix" else None
    if program is None:
        print("There is no PgBouncer on this machine, so what needs a pooler is skipped here.\n"
              "To see it, install it, as with apt install pgbouncer, or brew install pgbouncer.")  # fmt: skip
        return None
    if not all(server) or "," in server.host or server.ssl not in SSL_MODES:
        print("The url of your Postgres lacks a user, a password, a database or a single host, or asks for a check of its\n"
              "certificate, so what needs a pooler is skipped here.\n"
              "To see it, set DATABASE_URL to postgresql://user:password@host/database.")  # fmt: skip
        return None
    version = _version(program)
    if prepared and version < FIRST_TO_PREPARE:
        raise RuntimeError(f"PgBouncer {'.'.join(map(str, version))} cannot keep prepared statements: "
                           "install 1.21 or newer, or leave prepared at 0.")  # fmt: skip
    host = server.host.replace("'", "''")
    config = _PGBOUNCER.replace("{server}", f"host='{host}' port={server.port}").replace("{ssl}", server.ssl)
    config = config.replace("{size}", str(server_connections)).replace("{clients}", str(MOST_CLIENTS))
    if version >= FIRST_TO_PREPARE:  # an older one does not know the word; since 1.24 it is 200 unless it is given
        config += f"max_prepared_statements = {prepared}\n"
    # The folder of a program is open to its user alone, and so is this file in it.
    users = " ".join('"' + word.replace('"', '""') + '"' for word in (server.user, server.password)) + "\n"
    prefix, name_of_user = _as_ordinary_user()
    config += f"user = {name_of_user}\n" if name_of_user else ""
    pooler = launch(Pooler, name, "pooler", [*prefix, program, "pgbouncer.ini"], 0,
                    files={"pgbouncer.ini": config, "users.txt": users})  # fmt: skip
    pooler.version, pooler._database = version, quote(server.database, "")
    pooler._login = f"{quote(server.user, '')}:{quote(server.password, '')}"
    return pooler


def _as_ordinary_user() -> tuple[list[str], str]:
    """PgBouncer refuses to run as root, as Postgres does: the words that show it another user, or one for it to become."""
    if os.geteuid() != 0:
        return [], ""
    unshare = [shutil.which("unshare") or "", "--user", f"--map-user={UNPRIVILEGED}"]
    if unshare[0] and _works(
        [*unshare, "true"]
    ):  # files of root, such as a Postgres's socket, stay open to it this way
        return unshare, ""
    import pwd

    try:
        return [], pwd.getpwuid(UNPRIVILEGED).pw_name
    except KeyError:
        raise RuntimeError(f"PgBouncer does not run as root, and no user has the number {UNPRIVILEGED}.") from None


def _version(program: str) -> tuple[int, int]:
    """PgBouncer's version, as (1, 18). Raises RuntimeError when it does not tell."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"PgBouncer does not run: {error}") from None
    found = re.search(r"PgBouncer (\d+)\.(\d+)", told)
    if not found:
        raise RuntimeError("PgBouncer does not tell its version: install another one.")
    return int(found[1]), int(found[2])


def _parts(url: Any) -> _Parts:
    """What a url says, as libpq and asyncpg read it. Raises ValueError for one that is not of a Postgres."""
    wanted = "database_url must look like postgresql://user:password@host/database"
    expect(isinstance(url, str) and url.startswith(("postgresql://", "postgres://")), f"{wanted}.")
    expect(not re.search(r"[\r\n\0]", unquote(url)), f"{wanted}, without line breaks.")
    parts = urlsplit(url)
    more = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    try:
        port = int(parts.port or more.get("port") or 5432)
    except ValueError:
        raise ValueError(f"{wanted}, with a number as its port.") from None
    host = more.get("host") or unquote(parts.hostname or "")
    return _Parts(
        host, port, unquote(parts.path.removeprefix("/")), more.get("user") or unquote(parts.username or ""),
        more.get("password") or unquote(parts.password or ""),
        more.get("sslmode", "disable" if host.startswith("/") else "prefer"))  # fmt: skip
