"""A real balancer in front of several servers of this machine: HAProxy, or nginx where that is what there is."""

from __future__ import annotations

import asyncio
import csv
import http.client
import os
import shutil
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from support.program_base import Program, expect, launch
from support.service_process import HOST, POLL_SECONDS

CHECK_MILLISECONDS = 100  # between two health checks of a server
STATUS_PATH = "/_balancer"
ALGORITHMS = {"leastconn": "least_conn;", "roundrobin": "", "random(2)": "random two least_conn;"}  # HAProxy's: nginx's
_MORE_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")

_HAPROXY = """
global
    maxconn 2000
    nbthread 1
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout check 2s
    retries {retries}
    option redispatch 1
listen course
    bind 127.0.0.1:{port}
    balance {algorithm}
    option httpchk
    http-check send meth GET uri {health} ver HTTP/1.1 hdr Host balancer
    http-check expect status 200
    stats enable
    stats uri {status}
    {cookie}
    default-server check inter {inter}ms fall 2 rise 1
{servers}
"""
_STICKY = "cookie replica insert indirect nocache httponly"
_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream course {{
        {algorithm}
{servers}
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://course;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream_tries {tries};
        }}
    }}
}}
"""


class Balancer(Program):
    """A running balancer: as a Program, and what it knows of its servers.

    checks_health: whether it asks each server for its health. nginx does not: it takes a server
        out for a second when a request to it failed.
    """

    checks_health = True
    _servers: list[str] = []

    def serving(self) -> list[str]:
        """The urls of the servers that get requests now. Raises RuntimeError without health checks."""
        if not self.checks_health:
            raise RuntimeError("nginx does not know the health of its servers: install HAProxy to see it.")
        self._expect_alive()
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", f"{STATUS_PATH};csv", headers={"connection": "close"})
            rows = list(csv.DictReader(connection.getresponse().read().decode().lstrip("# ").splitlines()))
        finally:
            connection.close()
        up = {row["svname"] for row in rows if row["status"].startswith("UP")}
        return [url for number, url in enumerate(self._servers) if f"server{number}" in up]

    async def notices(self, url: str, *, serving: bool, within: float = 5.0) -> None:
        """Wait until the balancer sends requests to that server, or with serving=False no longer does.

        Raises ValueError for a url that is not one of its servers, TimeoutError when nothing changes in that time.
        """
        expect(url in self._servers, f"The balancer has no server {url!r}: take one of {', '.join(self._servers)}.")
        deadline = time.monotonic() + within
        while (url in self.serving()) != serving:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The balancer did not notice {url} within {within:g} s.")
            await asyncio.sleep(POLL_SECONDS)


def start_balancer(urls: Sequence[str], *, algorithm: str = "leastconn", health: str = "/ready", retries: int = 0,
                   must_check: bool = False, sticky: bool = False, name: str = "balancer") -> Balancer | None:  # fmt: skip
    """Start HAProxy in front of servers of this machine, or nginx where there is no HAProxy; return when it listens.

    Where there is neither, print what is skipped and how to install one, and return None.

    algorithm: leastconn, roundrobin or random(2), which asks two servers at random and takes the one with less to do.
    health: a server that twice does not answer this path with 200 gets no request until it does. It is asked ten times
        a second.
    retries: how often a request whose server refused the connection is tried at another server.
    must_check: only HAProxy will do, because nginx asks no server for its health.
    sticky: a visitor gets a cookie that names his server, and comes back to it while it serves. Only HAProxy will do.
    Raises ValueError for bad input, RuntimeError with the reason when it does not start.
    """
    given = [urls] if isinstance(urls, str) else list(urls)
    for url in given:
        expect(_is_local(url), f"A server must be given as 'http://127.0.0.1:8000', not {url!r}.")
    expect(bool(given), "start_balancer() needs at least one url of a server.")
    expect(algorithm in ALGORITHMS, f"algorithm must be one of {', '.join(ALGORITHMS)}, not {algorithm!r}.")
    expect(isinstance(health, str) and health.startswith("/") and health.split() == [health],
           f"health must be a path such as '/ready', not {health!r}.")  # fmt: skip
    expect(
        type(retries) is int and 0 <= retries <= 10, f"retries must be a whole number from 0 to 10, not {retries!r}."
    )
    addresses = [urlsplit(url).netloc for url in given]
    if haproxy := find("haproxy"):
        mark = " cookie server{}".format if sticky else lambda number: ""
        servers = "\n".join(
            f"    server server{number} {address}{mark(number)}" for number, address in enumerate(addresses)
        )
        config = _HAPROXY.format(port="{port}", retries=retries, algorithm=algorithm, health=health, status=STATUS_PATH,
                                 inter=CHECK_MILLISECONDS, servers=servers, cookie=_STICKY if sticky else "")  # fmt: skip
        command, file, checks = [haproxy, "-db", "-f", "haproxy.cfg"], "haproxy.cfg", True
    elif not (must_check or sticky) and (nginx := find("nginx")):
        servers = "\n".join(f"        server {address} max_fails=1 fail_timeout=1s;" for address in addresses)
        config = _NGINX.format(port="{port}", folder="{folder}", algorithm=ALGORITHMS[algorithm], servers=servers,
                               tries=retries + 1)  # fmt: skip
        command, file, checks = [nginx, "-p", "{folder}", "-c", "nginx.conf", "-e", "stderr"], "nginx.conf", False
    else:
        print("There is no HAProxy on this machine, so what needs a balancer is skipped here.\n"
              "To see it, install one, as with apt install haproxy, or brew install haproxy.")  # fmt: skip
        return None
    balancer = launch(Balancer, name, "balancer", command, 0, files={file: config})
    balancer._servers, balancer.checks_health = [url.rstrip("/") for url in given], checks
    return balancer


def find(program: str) -> str | None:
    """Where a program is installed, also in the folders that an ordinary user's PATH leaves out."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *_MORE_FOLDERS]))


def _is_local(url: object) -> bool:
    if not isinstance(url, str):
        return False
    parts = urlsplit(url)
    try:
        return (
            parts.scheme == "http"
            and parts.hostname in (HOST, "localhost")
            and parts.port is not None
            and parts.path in ("", "/")
        )
    except ValueError:
        return False
