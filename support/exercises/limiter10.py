"""The checker of exercise 10.1: one limit for four processes, kept in a real Redis.

The four are four limiters with a client each, in one process: they share nothing but Redis. The clock
of each of them is wrong by a different amount. What happens in time is judged from when a question
was sent and when its answer came: the decision lies between, so that a verdict is certain or is not
given, and a slow machine can hide a mistake, for which the scene is repeated, but invent none.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from .engine import Exercise, three_hints
from .harness import Failed, Prove, Run, call, tell
from .levels06 import _end as end_scene
from .levels06 import _redis as redis_url

PROCESSES = 4
LONG, SHORT, LIMIT = 30.0, 0.3, 20  # seconds of a window that no scene outlives, and of one that it does; a window
ROUNDING = 0.003  # seconds: Redis may count in milliseconds
TOLERANCE = 0.05  # of the limit, and of the window
ABOVE = "four processes at once: never above the limit"
BURST = "an idle limiter lets the whole limit in at once"
EXPIRES = "every key expires, even when the process dies between two commands"
PREFIX = "every key in Redis begins with key"
ONE_TRIP = "one round trip for each decision"
CLOCK = "the clock is that of Redis"
WINDOW = "never above the limit in any window"
NEED = "refuses nobody without need"
IN_REDIS = "the count is in Redis"
APART = "keys have limits of their own"
SCRIPTS = "works after Redis has forgotten its scripts"
LEFT = "leaves no task behind"

_ahead: contextvars.ContextVar[float] = contextvars.ContextVar("_ahead", default=0.0)  # seconds, of the local clock


@dataclass
class _Wire:
    """What the clients send: how often, and after how many times the process is dead."""

    sent: int = 0
    dies_after: int | None = None


@dataclass(frozen=True)
class _Asked:
    """One question. Redis decided after ``sent`` and before ``answered``, in seconds of the checker's clock."""

    sent: float
    answered: float
    let_in: bool


def check_limiter(answer: Any, prove: Prove) -> None:
    url, prefix = redis_url(), f"exercise:{secrets.token_hex(4)}:"
    scenes = (_at_once, _dies, _kept, _clocks, _trips, _forgotten, _in_time)
    for number, scene in enumerate(scenes):
        run = _run(scene, answer, prove, url, f"{prefix}{number}:")
        if isinstance(run.error, Failed):
            raise run.error
        left = run.result()
        prove(LEFT, not left, f"{', '.join(left)} was still running after the last decision.")


def _run(scene: Any, answer: Any, prove: Prove, url: str, prefix: str) -> Run:
    """Run a scene on a loop of its own. An interrupt may come at any point of it: a thread, which it cannot reach,
    closes the connections."""
    wire = _Wire()
    clients = [_client(url, wire) for _ in range(PROCESSES)]
    loop = asyncio.new_event_loop()
    try:
        return call(lambda: loop.run_until_complete(_scene(scene, answer, prove, clients, prefix, wire)))
    finally:
        wire.dies_after = None
        closing = threading.Thread(target=end_scene, args=(loop, clients, prefix))
        closing.start()
        closing.join()


def _client(url: str, wire: _Wire) -> Any:
    import redis.asyncio
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    # Without retries: a process that is dead does not try again.
    client = redis.asyncio.from_url(url, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))
    pool = client.connection_pool

    class Watched(pool.connection_class):  # type: ignore[name-defined, misc]
        async def send_packed_command(self, *args: Any, **options: Any) -> Any:
            if wire.dies_after is not None and wire.sent >= wire.dies_after:
                raise redis.ConnectionError("this process is dead")
            wire.sent += 1
            return await super().send_packed_command(*args, **options)

    pool.connection_class = Watched
    return client


class _Stage:
    """Four limiters for each key, and what they have in common."""

    def __init__(self, answer: Any, clients: list[Any], prefix: str, wire: _Wire) -> None:
        self.answer, self.clients, self.prefix, self.wire = answer, clients, prefix, wire
        self.last = 0

    def limiters(self, limit: int, window: float, key: str = "") -> list[Any]:
        """One for each process, all with one key: the given one, or one that was not used before."""
        self.last += not key
        return [self.answer(client, key or f"{self.prefix}{self.last}", limit, window) for client in self.clients]

    @property
    def key(self) -> str:
        return f"{self.prefix}{self.last}"

    async def lives(self) -> dict[str, float]:
        """The keys in Redis and their time to live in seconds, -1 for those that have none."""
        client = self.clients[0]
        names = [name async for name in client.scan_iter(f"{self.prefix}*")]
        lives = {name.decode(): await client.pttl(name) for name in names}
        return {name: life / 1000 if life > 0 else life for name, life in lives.items() if life != -2}


async def _scene(scene: Any, answer: Any, prove: Prove, clients: list[Any], prefix: str, wire: _Wire) -> list[str]:
    own = asyncio.current_task()
    try:
        async with asyncio.timeout(9) as patience:
            connections = LIMIT // 2 if scene is _at_once else 1
            await asyncio.gather(*(client.ping() for client in clients for _ in range(connections)))  # they are open
            with contextlib.suppress(Exception):  # Redis knows the scripts from here on
                await answer(clients[0], f"{prefix}first", 2, LONG).admit()
            await scene(_Stage(answer, clients, prefix, wire), prove)
    except TimeoutError:
        if not patience.expired():  # the answer's own
            raise
        raise Failed("comes to an end", "A decision did not come within 9 s.") from None
    for _ in range(10):
        left = [task for task in asyncio.all_tasks() if task is not own and not task.done()]
        if not left:
            break
        await asyncio.sleep(0.02)
    return sorted({task.get_coro().__name__ for task in left})


async def _at_once(stage: _Stage, prove: Prove) -> None:
    before = {name async for name in stage.clients[0].scan_iter("*")}
    let_in = {}
    for limit in (LIMIT, LIMIT - 1, 1):  # all before any verdict: a race may show at one of them only
        limiters = stage.limiters(limit, LONG)
        decisions = await asyncio.gather(*(each.admit() for each in limiters for _ in range(LIMIT // 2)))
        let_in[limit] = sum(map(bool, decisions))
    asked = f"{PROCESSES} processes asked {PROCESSES * LIMIT // 2} times at once, and"
    prove(ABOVE, all(count <= limit for limit, count in let_in.items()), f"{asked} more than the limit were let in.")
    prove(BURST, all(count == limit for limit, count in let_in.items()), f"{asked} fewer than the limit were let in.")
    made = {name.decode() async for name in stage.clients[0].scan_iter("*")} - {name.decode() for name in before}
    prove(IN_REDIS, bool(made), "It wrote no key into Redis.")
    strange = [name for name in made if not name.startswith(stage.prefix)]
    prove(PREFIX, not strange, "It wrote keys that begin otherwise into Redis, where other keys live too.")
    other = stage.limiters(LIMIT, LONG)
    prove(APART, bool(await other[0].admit()), "One key was full, and the first caller of another key was refused.")


async def _dies(stage: _Stage, prove: Prove) -> None:
    """The process dies after its first command, after its second, and so on."""
    stage.wire.sent = 0
    await stage.limiters(LIMIT, LONG)[0].admit()
    for commands in range(1, stage.wire.sent + 1):
        limiter = stage.limiters(LIMIT, LONG)[0]
        stage.wire.sent, stage.wire.dies_after = 0, commands
        with contextlib.suppress(Exception):  # the caller of a dead process gets no answer
            await limiter.admit()
        stage.wire.dies_after = None
    lives = await stage.lives()
    forever = [name for name, life in lives.items() if life == -1]
    prove(EXPIRES, not forever, "There was a key without a time to live: it stays for ever, and so may its count.")
    told = f"A key for a window of {LONG:g} s lives longer than two of them: Redis keeps what nobody needs."
    prove(EXPIRES, all(life <= 2 * LONG + 1 for life in lives.values()), told)


@contextlib.contextmanager
def _wrong_clocks() -> Iterator[None]:
    """Each process has a clock of its own: `_ahead` says by how much. Only time.time can be behind: timers of the
    loop go by the others."""

    def shifted(read: Any, unit: float, behind: bool) -> Any:
        def clock() -> Any:
            ahead = _ahead.get() if behind else abs(_ahead.get())
            return read() + type(read())(ahead * unit)

        return clock

    names = [(name, suffix) for name in ("time", "monotonic", "perf_counter") for suffix in ("", "_ns")]
    clocks = {
        name + suffix: shifted(getattr(time, name + suffix), 1e9 if suffix else 1, name == "time")
        for name, suffix in names
    }
    with mock.patch.multiple("time", **clocks):
        yield


async def _clocks(stage: _Stage, prove: Prove) -> None:
    async def ask(limiter: Any, ahead: float) -> bool:
        _ahead.set(ahead)
        return bool(await limiter.admit())

    with _wrong_clocks():
        limiters, let_in = stage.limiters(LIMIT // 2, LONG), 0
        for _ in range(LIMIT // 2):
            for limiter, ahead in zip(limiters, (0.0, 1000.0, -1000.0, 500.0), strict=True):
                let_in += await asyncio.create_task(ask(limiter, ahead))
    told = "The clocks of four processes differed by minutes, and together they let more or fewer in than the limit."
    prove(CLOCK, let_in == LIMIT // 2, told)


async def _trips(stage: _Stage, prove: Prove) -> None:
    limiter = stage.limiters(LIMIT, LONG)[0]
    await limiter.admit()
    stage.wire.sent = 0
    for _ in range(LIMIT + LIMIT // 2):
        await limiter.admit()
    told = "One decision after another, some of them refusals: it sent more often to Redis than it decided."
    prove(ONE_TRIP, stage.wire.sent <= LIMIT + LIMIT // 2, told)


async def _kept(stage: _Stage, prove: Prove) -> None:
    limiters = stage.limiters(3, LONG)
    for limiter in limiters:
        await limiter.admit()
    again = stage.limiters(3, LONG, stage.key)[1]
    prove(IN_REDIS, not await again.admit(), "A process was started anew, and let more in than the limit.")
    await stage.clients[0].delete(*await stage.lives())
    again = stage.limiters(3, LONG, stage.key)[2]
    prove(IN_REDIS, bool(await again.admit()), "The keys in Redis were deleted, and the next caller was refused.")


async def _forgotten(stage: _Stage, prove: Prove) -> None:
    """As after a restart of Redis. One of the reader's own is left alone."""
    from ..service_base import services

    limiter = stage.limiters(3, LONG)[0]
    await limiter.admit()
    redis = services.get("redis")
    if redis is None or not redis._guest_of:
        await stage.clients[0].script_flush()
    told = "Redis was restarted, so that it had no scripts, and the next decision raised "
    try:
        let_in = await limiter.admit()
    except Exception as error:
        raise Failed(SCRIPTS, f"{told}{tell(error)}.") from None
    prove(SCRIPTS, bool(let_in), "After a restart of Redis the next decision was a refusal.")


async def _in_time(stage: _Stage, prove: Prove) -> None:
    for _ in range(4):
        asked = await _asked_for_two_windows(stage)
        _judge(asked, prove)
        sent = sorted(each.sent for each in asked)[1:]
        if all(later - earlier < 0.1 * SHORT for earlier, later in zip(sent, sent[1:], strict=False)):
            return  # no pause in which a mistake could hide


async def _asked_for_two_windows(stage: _Stage) -> list[_Asked]:
    """One question in the middle of a window of Redis's clock, then none, then many for one and a half windows."""
    limiters, asked, client = stage.limiters(LIMIT, SHORT), [], stage.clients[0]
    clock = time.perf_counter

    async def ask(limiter: Any) -> None:
        sent = clock()
        let_in = bool(await limiter.admit())
        asked.append(_Asked(sent, clock(), let_in))

    async def ask_on(limiter: Any) -> None:
        while clock() < start + 2.2 * SHORT:
            await ask(limiter)
            await asyncio.sleep(0.001)

    seconds, microseconds = await client.time()
    await asyncio.sleep(SHORT - (seconds + microseconds / 1e6 + SHORT / 2) % SHORT)
    start = clock()
    await ask(limiters[0])
    await asyncio.sleep(start + 0.7 * SHORT - clock())
    await asyncio.gather(*map(ask_on, limiters))
    return asked


def _judge(asked: list[_Asked], prove: Prove) -> None:
    """Only what is certain: a window that held too many wherever the decisions lay, a refusal that none justifies."""
    let_in = [each for each in asked if each.let_in]
    for first in let_in:
        end = first.sent + SHORT - ROUNDING
        within = sum(first.sent <= each.sent and each.answered < end for each in let_in)
        told = "Asked once, and often a little later, it let more than the limit in within one window"
        prove(WINDOW, within <= LIMIT, f"{told}: a border, or a refill, does not belong to every window.")
    for refused in (each for each in asked if not each.let_in):
        begin = refused.sent - (1 + TOLERANCE) * SHORT - ROUNDING
        perhaps = sum(each.answered >= begin and each.sent <= refused.answered for each in let_in)
        told = (
            f"It refused a caller when fewer than {1 - TOLERANCE:.0%} of the limit had been let in within the window."
        )
        prove(NEED, perhaps >= (1 - TOLERANCE) * LIMIT, told)


EXERCISES = [
    Exercise(
        "10.1",
        "Distributed limiter (Lua)",
        "class Limiter",
        ("redis", "key", "limit", "window"),
        three_hints("""
        Four processes ask at the same moment. What must happen as one step, so that none of them decides on what
        another has just changed? And whose clock do they all share?

        One EVAL: a sorted set of the times of those who were let in, by redis.call('time'). Remove what is older
        than the window, count, add if there is room, and set the end of the key in the same script.

        local t = redis.call('time'); local now = t[1] * 1000000 + t[2]; redis.call('zremrangebyscore', KEYS[1],
        '-inf', now - ARGV[2] * 1000); if redis.call('zcard', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end. ARGV[2]:
        the window in milliseconds, as pexpire takes it.
        """),
        check_limiter,
    )
]
