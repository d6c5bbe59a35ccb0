"""What the checkers of 8.2 and 9.3 share: a call through something that lets in, lets wait, or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .harness import NO_ERROR, Failed, Prove, plain, tell

PASSES_ON = "a call's value or error comes out unchanged"
ONCE = "calls the work once, and waits for it"
NOW = "refuses at once, and before any work"


async def through(
    prove: Prove, enter: Callable[[], Any], begun: list[Any], value: object, error: BaseException | None, *,
    at_once: float, late: str, refused: str, drive: Callable[[Any], Awaitable[Any]] | None = None,
) -> str:  # fmt: skip
    """Await ``enter()``, and prove what may be said of any call: "ok", "failed" or "refused".

    Args:
        prove: tells the checker's reader what held.
        enter: sends the work in; raises asyncio.QueueFull to refuse.
        begun: has an item for each time that the work was called.
        value, error: what the work returns, or raises.
        at_once: seconds in which a refusal must come.
        late, refused: what to say of a refusal that came late, and of who must be refused, as "X raises QueueFull".
        drive: awaits what ``enter`` returned; without it, it is awaited here.

    Raises:
        asyncio.CancelledError, Failed: as the call does.
        NotImplementedError: the answer is a stub.
    """
    loop = asyncio.get_running_loop()
    came = loop.time()
    try:
        got = enter()
        got = await (drive(got) if drive else got)
    except asyncio.QueueFull as caught:
        if caught is error:
            return "failed"
        prove(NOW, not begun, "It began the work, and raised QueueFull all the same.")
        prove(NOW, loop.time() - came <= at_once, late)
        return "refused"
    except (asyncio.CancelledError, NotImplementedError, Failed):
        raise
    except Exception as caught:
        if caught is not error:
            prove(PASSES_ON if begun else NO_ERROR, False, f"A call ended with {tell(caught)}.")
        return "failed"
    if got is Ellipsis:
        raise NotImplementedError
    named = repr(value) if isinstance(value, str | int | float | None) else "its value"
    told = f"The work returned {named}, and run returned {plain(repr(got))}."
    if not begun:
        told = f"It did not call the work, and returned {plain(repr(got))}: {refused}."
    prove(PASSES_ON, got is value and error is None, told if error is None else f"It hid {tell(error)}.")
    prove(ONCE, len(begun) == 1, f"The work of a call was called {len(begun)} times.")
    return "ok"
