"""A blocking library whose threads are counted and held; and the checker of 4.1, a route that calls it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from . import harness
from .harness import Prove, Run, call
from .web04 import Client, alive_after, made, observe_app, prove_all_gone, prove_answered, release, settled

THREADS = 40  # of anyio, for each loop


class Blocking:
    """Counts the threads inside a blocking library, and can hold them there: ``gate``."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.gate = threading.Event()
        self.gate.set()
        self.loop_thread: threading.Thread | None = None
        self.threads: set[threading.Thread] = set()  # the objects: numbers are used again
        self.inside: list[threading.Thread] = []
        self.before: set[threading.Thread] = set()
        self.peak = 0
        self.blocked_loop = False

    def held(self) -> None:
        """What each blocking call does: it sits in its thread until the gate is open."""
        thread = threading.current_thread()
        if thread is self.loop_thread:
            self.blocked_loop = True  # and do not wait: nothing could ever open the gate
            return
        with self.lock:
            self.threads.add(thread)
            self.inside.append(thread)
            self.peak = max(self.peak, len(self.inside))
        self.gate.wait(harness.REAL_LIMIT)
        with self.lock:
            self.inside.remove(thread)

    def let_go(self) -> None:
        """End the wait of every thread that is held."""
        self.gate.set()


def judge(app: Any, library: Blocking, scenario: Callable[[Client], Any]) -> tuple[Run, int]:
    """Run the scenario, and count the threads that are left. Whatever happens, all who wait are let go."""

    async def with_an_open_end(client: Client) -> None:
        library.loop_thread = threading.current_thread()
        try:
            await scenario(client)
        finally:
            library.let_go()

    try:
        run = observe_app(app, with_an_open_end)
    finally:
        library.let_go()
    return run, alive_after(library.threads)


def busy_threads() -> int:
    """The threads of anyio's pool on this loop that have something to do."""
    from anyio.to_thread import current_default_thread_limiter

    return int(current_default_thread_limiter().borrowed_tokens)


# --- 4.1 unblock it ------------------------------------------------------------------------------

REQUESTS = 100
ANSWERS = "answers with what lookup returns"
UNKNOWN = "a KeyError is a 404"
FREE_LOOP = "lookup never runs in the thread of the event loop"
HEALTHY = "/health answers while lookups wait"
ALL_FORTY = "40 lookups run at once"
NO_MORE = "no more than 40 threads"
EACH_ASKS = "each request asks lookup once"


class _Library(Blocking):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def lookup(self, item: str) -> str:
        with self.lock:
            self.asked.append(item)
        self.held()
        if item.startswith("no "):
            raise KeyError(item)
        return _price(item, self.asked.count(item))

    def at_rest(self) -> bool:
        """Every thread that was started since is in a lookup: none is on its way, in or out."""
        new = set(threading.enumerate()) - self.before
        return bool(self.inside) and new <= set(self.inside) and busy_threads() <= len(self.inside)


def check_unblock(answer: Any, prove: Prove) -> None:
    """Checks lookup_app(lookup) of exercise 4.1."""
    library, seen = _Library(), {}
    app = made(prove, call(answer, library.lookup), "lookup_app(lookup)")
    run, left = judge(app, library, lambda client: _burst(client, library, seen))
    del app
    release(library.threads)
    run.result()
    told = (
        "lookup() was called in the thread of the event loop, which then serves nobody: write def, or await a thread."
    )
    prove(FREE_LOOP, not library.blocked_loop, told)
    prove_answered(prove, ANSWERS, seen["one"], _price("tea"))
    missing = seen["missing"]
    told = f"lookup raised KeyError, and {missing.told()}: raise HTTPException(404) there."
    prove(UNKNOWN, missing.status == 404, told)
    prove_answered(prove, EACH_ASKS, seen["again"], _price("tea", 2))
    started = len(library.threads)
    told = (
        f"{REQUESTS} requests used {started} threads, and FastAPI has {THREADS} for all routes: keep them. A pool or "
    )
    told += "limiter that is made for each request limits nothing."
    prove(NO_MORE, max(started, library.peak) <= THREADS, told)
    told = f"{REQUESTS} requests waited and {seen['inside']} lookups ran at once: def routes and anyio.to_thread share "
    told += "40 threads; asyncio.to_thread has only cores + 4, and a lock or limit of your own leaves fewer."
    prove(ALL_FORTY, seen["inside"] == THREADS, told)
    told = f"While {THREADS} lookups waited, /health had no answer: as a def route it queues for the same 40 threads."
    prove(HEALTHY, seen["healthy"], told)
    wrong = [each for n, each in enumerate(seen["burst"]) if (each.status, each.value) != (200, _price(f"item {n}"))]
    told = f"Of {REQUESTS} requests at once, {len(wrong)} went wrong: {wrong[0].told() if wrong else ''}."
    prove(ANSWERS, not wrong, told)
    asked = [item for item in library.asked if item.startswith("item ")]
    prove(EACH_ASKS, len(asked) == REQUESTS, f"{REQUESTS} requests called lookup {len(asked)} times.")
    prove_all_gone(prove, run, left)


def _price(item: str, times: int = 1) -> str:
    return f"price of {item}, as asked {times} times"


async def _burst(client: Client, library: _Library, seen: dict[str, Any]) -> None:
    seen["one"] = await client.ask("/items/tea")
    seen["missing"] = await client.ask("/items/no tea")
    seen["again"] = await client.ask("/items/tea")
    plain_ones = [(seen[name].status, seen[name].value) for name in ("one", "again")]
    if (
        library.blocked_loop
        or plain_ones != [(200, _price("tea")), (200, _price("tea", 2))]
        or seen["missing"].status != 404
    ):
        return
    library.before = set(threading.enumerate()) - library.threads
    library.gate.clear()
    burst = [client.start(f"/items/item {n}") for n in range(REQUESTS)]
    await settled(
        lambda: (len(library.asked), len(library.inside)),
        lambda: library.blocked_loop or library.at_rest(),
    )
    seen["inside"] = len(library.inside)
    health = client.start("/health")
    await settled(lambda: health.answered, lambda: health.answered or library.at_rest())
    seen["healthy"] = (health.answered, health.status) == (True, 200)
    library.gate.set()
    await client.finish([*burst, health])
    seen["burst"] = burst
