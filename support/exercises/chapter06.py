"""Chapter 06, caching: single flight, a cache bounded in time and bytes, early refresh, two levels with Redis."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import random
import statistics
import weakref
from collections.abc import Callable
from typing import Any

from .engine import Exercise, three_hints
from .faults import CANCELS, Calls, Injected
from .harness import NO_ERROR, SEEDS, Failed, Prove, call, observe, plain, prove_clean
from .levels06 import check_levels
from .xfetch06 import check_xfetch

__all__ = ["EXERCISES"]


class Key:
    """A key that says, by a weak reference, whether anybody still keeps it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and other.name == self.name

    def __repr__(self) -> str:
        return self.name


# --- 6.1 single flight ---------------------------------------------------------------------------

ONE = "one load for all who wait"
LEAVER = "one who leaves hurts nobody else"
ORPHAN = "when the last one leaves, the load is cancelled"
RESTART = "one who comes after the last has left starts anew"
KEEPS_NONE = "keeps nothing when a load is over"
CLEANUP = 0.05  # simulated seconds that a cancelled load needs


class _Loads:
    """Loads of one second, counted by key. Those of `failing` raise."""

    def __init__(self, value: Any = "value", failing: bool = False) -> None:
        self.calls, self.value, self.failing = Calls(), value, failing

    def of(self, key: Any, seconds: float = 1.0) -> Callable[[], Any]:
        async def load() -> Any:
            await self.calls.job(f"load of {key}", seconds, cleanup=CLEANUP)()
            if self.failing:
                raise Injected(f"the load of {key} failed")
            return self.value

        return load


def _check_flight(answer: Any, prove: Prove) -> None:
    for scene in (_hundred, _errors, _no_cache, _keys, _leavers, _last_moment, _all_leave, _comes_back, _memory):
        run = observe(functools.partial(scene, answer, prove))
        run.result()
        prove_clean(prove, run)


async def _gathered(answers: Any) -> list[Any]:
    got = await asyncio.gather(*answers, return_exceptions=True)
    for one in got:
        if isinstance(one, (NotImplementedError, Failed)):
            raise one
    return got


async def _hundred(answer: Any, prove: Prove) -> None:
    loop = asyncio.get_running_loop()
    for value in ("value", None, 0, "", []):
        flight, loads, start = answer(), _Loads(value), loop.time()
        got = await asyncio.gather(*(flight.get("k", loads.of("k")) for _ in range(100)))
        count = len(loads.calls.started)
        prove(ONE, count == 1, f"100 callers waited for one key, and {count} loads were started.")
        wrong = [one for one in got if one is not value]
        prove(
            "everyone gets the value",
            not wrong,
            f"The load returned {value!r}, and a caller got {plain(repr(wrong[:1]))}.",
        )
        took = loop.time() - start
        prove(ONE, took < 1.01, f"The load takes 1 s, and 100 callers took {took:g} s.")


async def _errors(answer: Any, prove: Prove) -> None:
    flight, loads = answer(), _Loads(failing=True)
    got = await _gathered(flight.get("k", loads.of("k")) for _ in range(20))
    failed = sum(isinstance(one, Injected) for one in got)
    told = f"The one load failed: {failed} of 20 callers got its error, with {len(loads.calls.started)} loads."
    prove("an error reaches everyone who waits", failed == 20 and len(loads.calls.started) == 1, told)
    loads.failing = False
    got = (await _gathered([flight.get("k", loads.of("k"))]))[0]
    told = f"After a load that failed, the next get ended with {plain(repr(got))}, without a new load."
    prove("an error is not kept", got == "value" and len(loads.calls.started) == 2, told)


async def _no_cache(answer: Any, prove: Prove) -> None:
    flight, loads = answer(), _Loads()
    for number in (1, 2, 3):
        await flight.get("k", loads.of("k"))
        told = f"Three gets, one after the other, made {len(loads.calls.started)} loads: a flight is no cache."
        prove("loads again when the load is over", len(loads.calls.started) == number, told)


async def _keys(answer: Any, prove: Prove) -> None:
    loop, flight, loads = asyncio.get_running_loop(), answer(), _Loads()
    start = loop.time()
    await asyncio.gather(*(flight.get(f"key {n % 10}", loads.of(n % 10)) for n in range(50)))
    took, count = loop.time() - start, len(loads.calls.started)
    prove(
        "keys do not wait for each other",
        took < 1.01,
        f"10 keys of 1 s each took {took:g} s: is there one lock for all?",
    )
    prove(ONE, count == 10, f"50 callers of 10 keys started {count} loads.")


async def _leave(task: asyncio.Task[Any], prove: Prove, who: str) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    task.cancel()
    await asyncio.wait([task])
    late = loop.time() - start
    prove(CANCELS, task.cancelled(), f"The {who} was cancelled, and no CancelledError came out.")
    prove(CANCELS, late <= CLEANUP + 1e-9, f"The {who} was cancelled, and left {late:g} s later: go at once.")


async def _leavers(answer: Any, prove: Prove) -> None:
    for who, number in (("first caller", 0), ("third caller", 2)):
        flight, loads = answer(), _Loads()
        tasks = [asyncio.create_task(flight.get("k", loads.of("k"))) for _ in range(5)]
        await asyncio.sleep(0.5)
        await _leave(tasks.pop(number), prove, who)
        got = await _gathered(tasks)
        wrong = [one for one in got if one != "value"]
        told = f"The {who} left, and another one got {plain(repr(wrong[0])) if wrong else 'its value'}"
        prove(LEAVER, not wrong, f"{told}: shield the load from each of them.")
        count = len(loads.calls.started)
        prove(
            LEAVER,
            count == 1,
            f"The {who} left, and the load was started {count} times: the others still wait for the first.",
        )


async def _last_moment(answer: Any, prove: Prove) -> None:
    """One leaves in the very step in which the load ends: it may get the value or not, but nobody else may lose it."""
    loop = asyncio.get_running_loop()
    for number in range(3):
        for planned_first in (True, False):
            flight, loads, start, tasks = answer(), _Loads(), loop.time(), []
            if planned_first:
                loop.call_at(start + 1, lambda tasks=tasks, number=number: tasks[number].cancel())
            tasks += [asyncio.create_task(flight.get("k", loads.of("k"))) for _ in range(3)]
            await asyncio.sleep(0.5)
            if not planned_first:
                loop.call_at(start + 1, tasks[number].cancel)
            await asyncio.wait(tasks, timeout=5)
            others = [task for task in tasks if task is not tasks[number]]
            got = [task.result() for task in others if task.done() and not task.cancelled() and not task.exception()]
            told = f"One of three callers left in the moment when the load ended, and {len(got)} of the others got the value."
            prove(LEAVER, got == ["value"] * 2 and len(loads.calls.started) == 1, told)
            await asyncio.gather(*tasks, return_exceptions=True)


async def _all_leave(answer: Any, prove: Prove) -> None:
    for callers in (1, 5):
        flight, loads = answer(), _Loads()
        tasks = [asyncio.create_task(flight.get("k", loads.of("k", 60))) for _ in range(callers)]
        await asyncio.sleep(0.5)
        for number, task in enumerate(tasks, 1):
            prove(
                LEAVER,
                not loads.calls.cancelled,
                f"{number - 1} of {callers} callers had left, and the load was cancelled.",
            )
            await _leave(task, prove, "caller")
        await asyncio.sleep(1)
        told = f"All {callers} callers had left, and the load went on for nobody: count who waits."
        prove(ORPHAN, loads.calls.in_flight == 0 and len(loads.calls.cancelled) == 1, told)


async def _comes_back(answer: Any, prove: Prove) -> None:
    flight, loads = answer(), _Loads()
    first = asyncio.create_task(flight.get("k", loads.of("k")))
    await asyncio.sleep(0.5)
    first.cancel()
    await asyncio.sleep(CLEANUP / 2)  # the load is being cancelled now
    got = (await _gathered([flight.get("k", loads.of("k"))]))[0]
    await asyncio.wait([first])
    told = f"The only caller left, another came while the load was being cancelled, and got {plain(repr(got))}."
    prove(RESTART, got == "value" and len(loads.calls.started) == 2, told)
    got = await asyncio.gather(*(flight.get("k", loads.of("k")) for _ in range(20)))
    count = len(loads.calls.started)
    prove(RESTART, count == 3, f"After that, 20 callers of one key started {count - 2} loads.")


async def _memory(answer: Any, prove: Prove) -> None:
    flight = answer()
    for how in ("succeeded", "failed", "was cancelled"):
        key, loads = Key(how), _Loads(Key("value"), failing=how == "failed")
        task = asyncio.create_task(flight.get(key, loads.of(key)))
        if how == "was cancelled":
            await asyncio.sleep(0.5)
            task.cancel()
        await asyncio.wait([task])
        if how == "failed":
            task.exception()
        await asyncio.sleep(1)
        kept = [weakref.ref(key), weakref.ref(loads.value)]
        del key, loads, task
        gc.collect()
        what = [name for name, one in zip(("key", "value"), kept, strict=True) if one() is not None]
        prove(KEEPS_NONE, not what, f"A load {how}, and its {' and its '.join(what)} stayed in memory: forget it then.")


# --- 6.2 a cache bounded in time and in bytes ----------------------------------------------------

FRESH = "serves a value until its time is up"
GONE = "never serves one whose time is up"
SPREAD = "spreads expiries by the jitter"
NEGATIVE = "negative entries have their own, shorter time"
NEWER = "a newer value lives its own time"
BOUND = "holds no more than max_bytes"
LRU = "drops what was used least recently"
KEEP = (True, "value")


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Blob:
    """A value of `size` bytes, as len() tells."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class _Bench:
    """A cache, its clock, and calls that read as sentences."""

    def __init__(self, answer: Any, ttl: float = 100.0, negative: float = 10.0, jitter: float = 0.0,
                 most: int = 10**6, seed: int = 1) -> None:  # fmt: skip
        self.clock = _Clock()
        self.cache = answer(ttl, negative, jitter, most, self.clock, random.Random(seed).uniform)

    def get(self, key: str) -> tuple[bool, Any]:
        got = self.cache.get(key)
        if not (isinstance(got, tuple) and len(got) == 2 and isinstance(got[0], bool)):
            raise Failed(NO_ERROR, f"get returned {plain(repr(got))}, and should return (found, value).")
        return got


def _check_ttl(answer: Any, prove: Prove) -> None:
    for scene in (_fresh, _boundaries, _spread, _negative, _newer, _bytes, _recent, _odd_sizes, _freed):
        run = call(scene, answer, prove)
        if isinstance(run.error, Failed):
            raise run.error
        run.result()


def _fresh(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer)
    got = bench.get("k")
    prove(
        "tells absent from empty",
        got == (False, None),
        f"For a key that was never put, get returned {plain(repr(got))}.",
    )
    for value in ("value", "", [], b"", Blob(3)):
        bench.cache.put("k", value)
        found, got = bench.get("k")
        told = f"put {plain(repr(value))}, and get returned {plain(repr((found, got)))}: do not ask whether a value is true."
        prove("tells absent from empty", found and got is value, told)


def _boundaries(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer)
    bench.cache.put("k", "value")
    bench.clock.now += 99.99
    prove(FRESH, bench.get("k") == KEEP, "99.99 s after put, with ttl=100 and by clock(), it was gone.")
    bench.clock.now += 0.02
    prove(GONE, bench.get("k") == (False, None), "100.01 s after put, with ttl=100 and by clock(), it was served.")
    bench.cache.put("k", "value")
    for _ in range(30):
        bench.clock.now += 9
        found = bench.get("k")[0]
    prove(GONE, not found, "A value that is read every 9 s never expired: reading makes nothing younger.")


def _spread(answer: Any, prove: Prove) -> None:
    for seed in SEEDS:
        for ttl, jitter in ((100.0, 0.2), (10.0, 0.5)):
            bench, ends = _Bench(answer, ttl, 1.0, jitter, seed=seed), {}
            alive = {f"key {n}" for n in range(300)}
            for key in alive:
                bench.cache.put(key, "value")
            for step in range(1, 201):
                bench.clock.now = 1000 + step * ttl / 100
                gone = {key for key in alive if not bench.get(key)[0]}
                alive -= gone
                ends |= dict.fromkeys(gone, step / 100)
            shown = f"With ttl={ttl:g} and jitter={jitter:g}, 300 entries put at once ended"
            prove(GONE, not alive, f"{shown}, but for {len(alive)} that outlived twice the ttl.")
            early, late, spread = min(ends.values()), max(ends.values()), statistics.pstdev(ends.values())
            prove(SPREAD, early >= 1 - jitter - 1e-9 and late <= 1 + jitter + 0.011,
                  f"{shown} after {early:g} to {late:g} times the ttl.")  # fmt: skip
            even = jitter / math.sqrt(3)
            prove(SPREAD, 0.8 * even < spread < 1.2 * even,
                  f"{shown} with a standard deviation of {spread:.0%} of the ttl; {even:.0%} is that of an even spread.")  # fmt: skip


def _negative(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, jitter=0.2)
    bench.cache.put_negative("k")
    got = bench.get("k")
    prove(
        "remembers that there is nothing", got == (True, None), f"After put_negative, get returned {plain(repr(got))}."
    )
    bench.clock.now += 7.9
    prove(NEGATIVE, bench.get("k")[0], "7.9 s after put_negative, with negative_ttl=10 and jitter=0.2, it was gone.")
    bench.clock.now += 4.2
    prove(
        NEGATIVE, not bench.get("k")[0], "12.1 s after put_negative, with negative_ttl=10 and jitter=0.2, it was there."
    )
    bench.cache.put_negative("k")
    bench.cache.put("k", "value")
    bench.clock.now += 20
    prove(NEWER, bench.get("k") == KEEP, "put_negative, then put: 20 s later the value was gone, with ttl=100.")
    bench.cache.put_negative("k")
    got = bench.get("k")
    prove(NEWER, got == (True, None), f"put, then put_negative: get returned {plain(repr(got))}.")


def _newer(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer)
    bench.cache.put("k", "old")
    bench.clock.now += 90
    bench.cache.put("k", "value")
    for later in (20, 70):
        bench.clock.now += later
        told = "A value was put at 0 s and a newer one at 90 s, with ttl=100: the end of the first removed the second."
        prove(NEWER, bench.get("k") == KEEP, told)
    bench.clock.now += 11
    prove(GONE, not bench.get("k")[0], "A value put at 90 s was served at 191 s, with ttl=100.")


def _bytes(answer: Any, prove: Prove) -> None:
    bench, kept = _Bench(answer, most=1000), []
    for number in range(60):
        blob = Blob(97)
        kept.append(weakref.ref(blob))
        bench.cache.put(f"k{number:02}", blob)  # 3 bytes of key
        del blob
        held = sum(ref() is not None for ref in kept)
        if held > 10:  # what it dropped may be in a cycle
            gc.collect()
            held = sum(ref() is not None for ref in kept)
        prove(BOUND, held <= 10, f"With max_bytes=1000, it held {held} values of 97 bytes and their keys of 3.")
    prove(
        "uses the bytes that it has",
        held == 10,
        f"max_bytes=1000 has room for 10 entries of 100 bytes, and it held {held}.",
    )
    for number in range(1000):
        bench.cache.put_negative(f"n{number:03}")
    held = sum(bench.get(f"n{number:03}")[0] for number in range(1000))
    prove(BOUND, held <= 250, f"With max_bytes=1000, it held {held} negative entries with keys of 4 bytes.")


def _recent(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, most=500)
    for number in range(5):
        bench.cache.put(f"k{number:02}", Blob(97))
    for number in range(5, 40):
        bench.get("k00")
        bench.cache.put(f"k{number:02}", Blob(97))
    told = "A key that is read before every put was dropped, and others that nobody read were kept."
    prove(LRU, bench.get("k00")[0], told)
    prove(
        LRU, all(bench.get(f"k{number}")[0] for number in range(36, 40)), "One of the four newest entries was dropped."
    )
    for _ in range(50):
        bench.cache.put("k00", Blob(97))
    left = sum(bench.get(f"k{number}")[0] for number in range(36, 40))
    prove("counts a replaced value once", left == 4, f"Putting one key 50 times dropped {4 - left} other entries.")


def _odd_sizes(answer: Any, prove: Prove) -> None:
    bench = _Bench(answer, most=500)
    bench.cache.put("k01", Blob(97))
    bench.cache.put("k02", Blob(97))
    bench.cache.put("k02", Blob(501))
    told = "A value larger than max_bytes must not be kept, nor must the one that it replaces."
    prove(BOUND, not bench.get("k02")[0], told)
    prove("a value too large drops no other", bench.get("k01")[0], "A value larger than max_bytes emptied the cache.")
    bench.cache.put("k03", Blob(497))
    prove(
        BOUND, bench.get("k03")[0] and not bench.get("k01")[0], "An entry of exactly max_bytes takes the whole cache."
    )


def _freed(answer: Any, prove: Prove) -> None:
    bench, blob = _Bench(answer), Blob(97)
    kept = weakref.ref(blob)
    bench.cache.put("k", blob)
    del blob
    bench.clock.now += 101
    bench.get("k")
    gc.collect()
    prove(
        "frees what a read finds expired", kept() is None, "An expired value was still in memory after get had seen it."
    )


EXERCISES = [
    Exercise(
        "6.1", "single flight", "SingleFlight()", (),
        three_hints("""
            The first caller starts the load. To whom does it belong when that caller leaves?

            A task for the load, kept by key; every caller awaits asyncio.shield(task). Count who waits, and
            forget the task when it is done.

            try: return await asyncio.shield(flight.task), finally: flight.waiting -= 1, and if nobody is
            left and the task is not done: remove the flight from the dict, then cancel the task.
        """),
        _check_flight,
    ),
    Exercise(
        "6.2", "bounded in time and bytes", "TTLCache(ttl, negative_ttl, jitter, max_bytes, clock, uniform)",
        ("ttl", "negative_ttl", "jitter", "max_bytes", "clock", "uniform"),
        three_hints("""
            When does an entry have to be gone: when its time is up, or when somebody asks?

            Keep (end, size, value) in an OrderedDict, and look at the end in get. Draw the jitter once, in
            put. A sentinel, not None, stands for nothing.

            end = clock() + ttl * uniform(1 - jitter, 1 + jitter); move_to_end(key) in get; in put, first take
            the old entry's size off, then popitem(last=False) while the new one does not fit.
        """),
        _check_ttl,
    ),
    Exercise(
        "6.3", "refresh before the end", "XFetch(load, ttl, beta, random)", ("load", "ttl", "beta", "random"),
        three_hints("""
            A popular entry must be refreshed before it ends, by one or two of its many readers. How does a
            reader decide alone?

            Refresh when now - beta * delta * log(1 - random()) >= end, with the delta that the last load
            took. The reader has a value: the refresh goes into a task, kept in a set.

            early = -beta * entry.delta * math.log(1 - random()); if now + early >= entry.end: start a task
            that measures loop.time() around await load(key), and stores (value, now + ttl, delta).
        """),
        check_xfetch,
    ),
    Exercise(
        "6.4", "two levels with Redis", "TwoLevel(redis, load, prefix, ttl, local_ttl, lease, fallback)",
        ("redis", "load", "prefix", "ttl", "local_ttl", "lease", "fallback"),
        three_hints("""
            Four processes miss at once. What do all of them see, and who may remove it?

            SET lock token NX PX lease: who gets it loads, the others look again until the value is there.
            A script deletes the lock only if it still holds one's own token.

            if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end; and around
            everything: except RedisError, then async with asyncio.Semaphore(fallback): await load(key).
        """),
        check_levels,
    ),
]  # fmt: skip
