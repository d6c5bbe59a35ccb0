"""What a middleware keeps of many paths is seen, of both kinds of middleware; and what keeps nothing shows nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support.scan import memory_by_path

MODULE = """
kept = []
class Keeps:
    def __init__(self, app): self.app = app
    async def __call__(self, scope, receive, send):
        kept.append(bytearray(10_000))
        await self.app(scope, receive, send)
class Forgets(Keeps):
    async def __call__(self, scope, receive, send): await self.app(scope, receive, send)
async def keeps(request, call_next):
    kept.append(bytearray(10_000))
    assert (await call_next(request)).status_code == 404
"""


def test_memory_is_what_a_middleware_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scanned_here.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    async def grown(name: str) -> list[float]:
        return await memory_by_path(f"scanned_here:{name}", 2000, 500)

    async def main() -> list[list[float]]:
        return await asyncio.gather(*map(grown, ("Keeps", "keeps", "Forgets")))

    for_class, for_function, nothing = asyncio.run(main())
    for grew in (for_class, for_function):
        assert len(grew) == 5 and grew[0] == 0 and grew == sorted(grew)
        assert 0.9 * 19 < grew[-1] < 1.2 * 19  # 2000 times 10,000 bytes
    assert max(nothing) < 1


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="not 'Watch'"):
        asyncio.run(memory_by_path("Watch", 10, 1))
    with pytest.raises(ValueError, match="step=0"):
        asyncio.run(memory_by_path("asgi_watch:Watch", 10, 0))
