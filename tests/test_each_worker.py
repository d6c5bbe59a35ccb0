"""One connection to each worker of a service, and an equal share of the requests through each."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from support import each_worker as room
from support.each_worker import ask_each, each_worker, workers_of
from support.programs import start_workers

APP = """
import os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def who(request): return JSONResponse(os.getpid())
async def broken(request): return JSONResponse("no", 500)
app = Starlette(routes=[Route("/who", who, methods=["GET", "POST"]), Route("/broken", broken)])
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch) -> str:
    (tmp_path / "who_app.py").write_text(APP, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "who_app:app"


@pytest.mark.parametrize("count", [1, 3])
def test_each_worker_answers_its_share(app: str, count: int) -> None:
    async def main() -> Counter:
        async with workers_of(app, count) as each:
            return Counter(await ask_each(each, "/who", 12, "POST"))

    answers = asyncio.run(main())
    assert sorted(answers.values()) == [12 // count] * count


def test_sessions_come_in_the_order_of_the_workers(app: str) -> None:
    async def main(url: str, pids: list[int]) -> list[int]:
        async with each_worker(url, pids) as each:
            return [(await ask_each([one], "/who", 1))[0] for one in each]

    with start_workers(app, 2) as fleet:
        pids = fleet.pids[:0:-1]  # without the supervisor, and turned round
        assert asyncio.run(main(fleet.url, pids)) == pids


def test_shares_that_cannot_be_equal_and_answers_that_are_errors(app: str) -> None:
    async def main() -> None:
        async with workers_of(app, 2) as each:
            with pytest.raises(ValueError, match="3 requests cannot be shared equally by 2 sessions"):
                await ask_each(each, "/who", 3)
            with pytest.raises(aiohttp.ClientResponseError):
                await ask_each(each, "/broken", 2)

    asyncio.run(main())


def test_a_worker_that_is_not_there_is_an_error_and_the_others_go_on(app: str, monkeypatch) -> None:
    monkeypatch.setattr(room, "SEARCH_SECONDS", 1.0)

    async def main(url: str, pids: list[int]) -> None:
        with pytest.raises(RuntimeError, match="Of 2 workers, 1 answered no connection in 1 s"):
            async with each_worker(url, pids):
                pass
        async with each_worker(url, pids[:1]) as each:  # nobody is left suspended
            assert await ask_each(each, "/who", 1) == pids[:1]

    import os

    with start_workers(app, 1) as fleet:
        asyncio.run(main(fleet.url, [fleet.pid, os.getpid()]))
