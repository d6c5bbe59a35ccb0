"""A steady load that runs beside a cell: evenly sent, whatever the cell does; failures counted; nothing left."""

from __future__ import annotations

import asyncio
import threading
import time

import psutil
import pytest
from matplotlib.figure import Figure

from support import servers
from support.steady import Steady, steady_load


async def app(scope, receive, send) -> None:
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    status = 503 if scope["path"] == "/busy" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


@pytest.fixture(scope="module")
def url():
    with servers.serve(app, in_process=True) as server:
        yield server.url


def test_requests_go_on_while_the_cell_blocks_and_end_with_the_block(url: str) -> None:
    before, sockets = set(threading.enumerate()), len(psutil.Process().net_connections("tcp"))
    with steady_load(f"{url}/", rate=100) as seen:
        assert seen.answered or seen.failed  # the first answer is there
        time.sleep(0.5)  # as a cell that waits for a program
        seen.mark("half")
        until = seen.now
    sent = sorted(seen.answered)
    assert not seen.failed and sent == [
        number / 100 for number in range(len(sent))
    ]  # each when it was due, none left out
    assert until - 0.05 <= sent[-1] <= seen.now and seen.marks[0][1] == "half"
    assert set(threading.enumerate()) == before
    deadline = time.monotonic() + 5
    while len(psutil.Process().net_connections("tcp")) > sockets and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(psutil.Process().net_connections("tcp")) <= sockets


def test_failures_are_counted_by_reason_and_by_mark(url: str) -> None:
    with steady_load(f"{url}/busy", rate=50) as seen:
        seen.mark("one")
        time.sleep(0.1)
    assert not seen.answered and set(seen.reasons) == {"503"} and seen.failed_after(0)["503"] >= 1
    with steady_load("http://127.0.0.1:9/", rate=50) as seen:  # nothing listens there
        time.sleep(0.05)
    assert not seen.answered and seen.reasons.total() >= 1 and "ClientConnectorError" in seen.reasons
    with steady_load(f"{url}/slow", rate=20, timeout=0.05) as seen:
        pass
    assert set(seen.reasons) <= {"TimeoutError", "ServerTimeoutError", "ConnectionTimeoutError"} and seen.failed

    told = Steady()
    told.failed = [(0.0, 0.1, "500"), (0.8, 1.0, "500"), (1.5, 1.5, "503"), (1.8, 2.0, "503")]
    told.marks = [(1.0, "a"), (2.0, "b")]  # what counts is when it failed
    assert told.failed_after(0) == {"500": 1, "503": 1} and told.failed_after(1) == {"503": 1}


def test_those_under_way_are_waited_for_also_after_an_interrupt(url: str) -> None:
    with pytest.raises(KeyboardInterrupt), steady_load(f"{url}/slow", rate=50) as seen:
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert not seen.failed and len(seen.answered) >= 15  # those of the first 0.3 s, before the first answer, too


def test_the_figure_holds_every_request_and_every_mark() -> None:
    seen = Steady()
    seen.answered, seen.failed, seen.marks = [0.0, 0.1, 0.55, 0.9], [(0.32, 0.5, "503")], [(0.45, "replica 1")]
    axes = Figure().subplots()
    seen.plot(axes, "Who fails?")
    heights = [patch.get_height() for group in axes.containers for patch in group]
    assert [patch.get_x() for patch in axes.containers[1] if patch.get_height()] == [pytest.approx(0.3)]  # when due
    assert sum(heights) == 5 and "Who fails?" in (axes.get_title(), axes.get_title(loc="left"))
    assert [text.get_text().strip() for text in axes.texts] == ["replica 1"]


@pytest.mark.parametrize(
    ("url", "options", "named"),
    [
        ("http://example.org/", {"rate": 10}, "not to 'http://example.org/'"),
        ("http://127.0.0.1:9/", {"rate": 0}, "not 0"),
        ("http://127.0.0.1:9/", {"rate": 501}, "not 501"),
        ("http://127.0.0.1:9/", {"rate": 10, "timeout": -1}, "not -1"),
    ],
)
def test_bad_input_is_named(url: str, options: dict, named: str) -> None:
    with pytest.raises(ValueError) as caught, steady_load(url, **options):
        pass
    assert named in str(caught.value) and "\n" not in str(caught.value)
