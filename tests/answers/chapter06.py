"""Right and wrong answers to the exercises of chapter 06.

Every wrong answer names the property that its check must report as missing.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import heapq
import json
import math
import secrets
import time

from answers.register import Register
from redis.exceptions import LockError, RedisError

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

RUNS = "runs without an error"

# --- 6.1 single flight ---------------------------------------------------------------------------

ONE = "one load for all who wait"
EVERYONE = "everyone gets the value"
LEAVER = "one who leaves hurts nobody else"
ORPHAN = "when the last one leaves, the load is cancelled"
RESTART = "one who comes after the last has left starts anew"
KEEPS_NONE = "keeps nothing when a load is over"
NO_CACHE = "loads again when the load is over"
ERRORS = "an error reaches everyone who waits"
NOT_KEPT = "an error is not kept"
KEYS = "keys do not wait for each other"
CANCEL = "passes a cancellation on"


@stub("6.1")
class FlightStub:
    def __init__(self):
        raise NotImplementedError

    async def get(self, key, load):
        raise NotImplementedError


@right("6.1")
class SingleFlight:
    def __init__(self):
        self.flights = {}

    async def get(self, key, load):
        flight = self.flights.get(key)
        if flight is None:
            flight = self.flights[key] = [asyncio.create_task(load()), 0]
            flight[0].add_done_callback(lambda _: self.forget(key, flight))
        flight[1] += 1
        try:
            return await asyncio.shield(flight[0])
        finally:
            flight[1] -= 1
            if flight[1] == 0 and not flight[0].done():
                self.forget(key, flight)
                flight[0].cancel()

    def forget(self, key, flight):
        if self.flights.get(key) is flight:
            del self.flights[key]


@right("6.1")
class FlightOfFutures:
    """Each caller waits for a future of its own; a task hands the outcome to all of them."""

    def __init__(self):
        self.waiting = {}

    async def get(self, key, load):
        if key not in self.waiting:
            waiters = set()
            self.waiting[key] = (waiters, asyncio.create_task(self.run(key, waiters, load)))
        waiters, task = self.waiting[key]
        future = asyncio.get_running_loop().create_future()
        waiters.add(future)
        try:
            return await future
        finally:
            waiters.discard(future)
            if not waiters and not task.done():
                if self.waiting.get(key, (None,))[0] is waiters:
                    del self.waiting[key]
                task.cancel()

    async def run(self, key, waiters, load):
        outcome, error = None, None
        try:
            outcome = await load()
        except Exception as caught:
            error = caught
        finally:
            if self.waiting.get(key, (None,))[0] is waiters:
                del self.waiting[key]
        for future in waiters:
            if not future.done():
                future.set_exception(error) if error else future.set_result(outcome)


@right("6.1")
class FlightOfWaiters(SingleFlight):
    """No shield: `asyncio.wait` leaves the load alone when its caller is cancelled."""

    async def get(self, key, load):
        if key not in self.flights:
            self.flights[key] = [asyncio.ensure_future(load()), 0]
        flight = self.flights[key]
        flight[1] += 1
        try:
            await asyncio.wait([flight[0]])
            return flight[0].result()
        finally:
            flight[1] -= 1
            if not flight[1]:
                self.forget(key, flight)
                flight[0].cancel()


@wrong("6.1", ONE)
class FlightWithoutSharing(SingleFlight):
    async def get(self, key, load):
        return await load()


@wrong("6.1", ONE)
class FlightWithALockPerKey(SingleFlight):
    async def get(self, key, load):
        async with self.flights.setdefault(key, asyncio.Lock()):
            return await load()


@wrong("6.1", KEYS)
class FlightOneAtATime(SingleFlight):
    def __init__(self):
        super().__init__()
        self.lock = asyncio.Lock()

    async def get(self, key, load):
        async def alone():
            async with self.lock:
                return await load()

        return await super().get(key, alone)


@wrong("6.1", LEAVER)
class FlightWithoutShield(SingleFlight):
    async def get(self, key, load):
        if key not in self.flights:
            self.flights[key] = asyncio.create_task(load())
            self.flights[key].add_done_callback(lambda task: self.forget(key, task))
        return await self.flights[key]


@wrong("6.1", LEAVER)
class FlightOfTheLeader(SingleFlight):
    """The first caller does the work itself; the others wait for its future."""

    async def get(self, key, load):
        if key in self.flights:
            return await asyncio.shield(self.flights[key])
        future = self.flights[key] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(await load())
        except BaseException as error:
            future.set_exception(ConnectionError("the leader left")) if isinstance(
                error, asyncio.CancelledError
            ) else future.set_exception(error)
            future.exception()
            raise
        finally:
            self.forget(key, future)
        return future.result()


@wrong("6.1", LEAVER)
class FlightOfFuturesThatMayBeDone(FlightOfFutures):
    """It sets the future of one who was cancelled a step ago, which raises: the next ones wait for ever."""

    async def run(self, key, waiters, load):
        outcome, error = None, None
        try:
            outcome = await load()
        except Exception as caught:
            error = caught
        finally:
            if self.waiting.get(key, (None,))[0] is waiters:
                del self.waiting[key]
        for future in waiters:
            future.set_exception(error) if error else future.set_result(outcome)


@wrong("6.1", ORPHAN)
class FlightThatGoesOnForNobody(SingleFlight):
    async def get(self, key, load):
        if key not in self.flights:
            self.flights[key] = asyncio.create_task(load())
            self.flights[key].add_done_callback(lambda task: self.forget(key, task))
        return await asyncio.shield(self.flights[key])


@wrong("6.1", ORPHAN)
class FlightThatCountsLeaversOnce(SingleFlight):
    async def get(self, key, load):
        if key not in self.flights:
            self.flights[key] = [asyncio.create_task(load()), 1]
            self.flights[key][0].add_done_callback(lambda _, flight=self.flights[key]: self.forget(key, flight))
        flight = self.flights[key]
        try:
            return await asyncio.shield(flight[0])
        except asyncio.CancelledError:
            flight[1] += 1
            if flight[1] == 1:
                flight[0].cancel()
            raise


@wrong("6.1", RESTART)
class FlightJoinsTheDying(SingleFlight):
    async def get(self, key, load):
        flight = self.flights.get(key)
        if flight is None:
            flight = self.flights[key] = [asyncio.create_task(load()), 0]
            flight[0].add_done_callback(lambda _: self.forget(key, flight))
        flight[1] += 1
        try:
            return await asyncio.shield(flight[0])
        finally:
            flight[1] -= 1
            if flight[1] == 0:
                flight[0].cancel()


@wrong("6.1", NO_CACHE)
class FlightIsACache(SingleFlight):
    def forget(self, key, flight):
        if flight[0].done() and not flight[0].cancelled() and not flight[0].exception():
            return
        super().forget(key, flight)


@wrong("6.1", NOT_KEPT)
class FlightKeepsErrors(SingleFlight):
    def forget(self, key, flight):
        if flight[0].done() and not flight[0].cancelled() and flight[0].exception():
            return
        super().forget(key, flight)


@wrong("6.1", NOT_KEPT)
class FlightForgetsOnSuccessOnly(SingleFlight):
    async def get(self, key, load):
        flight = self.flights.get(key)
        if flight is None:
            flight = self.flights[key] = [asyncio.create_task(load()), 0]
        flight[1] += 1
        try:
            value = await asyncio.shield(flight[0])
            self.forget(key, flight)
            return value
        finally:
            flight[1] -= 1
            if flight[1] == 0 and not flight[0].done():
                self.forget(key, flight)
                flight[0].cancel()


@wrong("6.1", KEEPS_NONE)
class FlightKeepsKeys(SingleFlight):
    async def get(self, key, load):
        self.seen = getattr(self, "seen", set())
        self.seen.add(key)
        return await super().get(key, load)


@wrong("6.1", KEEPS_NONE)
class FlightKeepsTheLastValue(SingleFlight):
    async def get(self, key, load):
        self.last = await super().get(key, load)
        return self.last


@wrong("6.1", ERRORS)
class FlightAnswersErrorsWithNone(SingleFlight):
    async def get(self, key, load):
        async def quiet():
            with contextlib.suppress(Exception):
                return await load()

        return await super().get(key, quiet)


@wrong("6.1", CANCEL)
class FlightSwallowsCancellation(SingleFlight):
    async def get(self, key, load):
        try:
            return await super().get(key, load)
        except asyncio.CancelledError:
            return None


@wrong("6.1", EVERYONE)
class FlightAsksWhetherItIsTrue(SingleFlight):
    async def get(self, key, load):
        return await super().get(key, load) or "nothing"


# --- 6.2 bounded in time and bytes ---------------------------------------------------------------

GONE = "never serves one whose time is up"
SPREAD = "spreads expiries by the jitter"
NEGATIVE = "negative entries have their own, shorter time"
NEWER = "a newer value lives its own time"
BOUND = "holds no more than max_bytes"
LRU = "drops what was used least recently"
ABSENT = "tells absent from empty"


@stub("6.2")
class TTLStub:
    def __init__(self, ttl, negative_ttl, jitter, max_bytes, clock, uniform):
        raise NotImplementedError

    def get(self, key):
        raise NotImplementedError


@right("6.2")
class TTLCache:
    def __init__(self, ttl, negative_ttl, jitter, max_bytes, clock, uniform):
        self.ttl, self.negative_ttl, self.jitter, self.max_bytes = ttl, negative_ttl, jitter, max_bytes
        self.clock, self.uniform = clock, uniform
        self.entries, self.used = collections.OrderedDict(), 0

    def get(self, key):
        entry = self.entries.get(key)
        if entry is None:
            return False, None
        if self.clock() >= entry[0]:
            self.drop(key)
            return False, None
        self.entries.move_to_end(key)
        return True, entry[2]

    def put(self, key, value):
        self.store(key, value, len(key) + len(value), self.ttl)

    def put_negative(self, key):
        self.store(key, None, len(key), self.negative_ttl)

    def store(self, key, value, size, ttl):
        self.drop(key)
        if size > self.max_bytes:
            return
        while self.used + size > self.max_bytes:
            self.drop(next(iter(self.entries)))
        self.entries[key] = (self.clock() + self.life(ttl), size, value)
        self.used += size

    def life(self, ttl):
        return ttl * self.uniform(1 - self.jitter, 1 + self.jitter)

    def drop(self, key):
        if key in self.entries:
            self.used -= self.entries.pop(key)[1]


@right("6.2")
class TTLSweeping(TTLCache):
    """It throws out what has expired before it throws out what is used."""

    def store(self, key, value, size, ttl):
        for old in [each for each, entry in self.entries.items() if entry[0] <= self.clock()]:
            self.drop(old)
        super().store(key, value, size, ttl)

    def life(self, ttl):
        return ttl + self.uniform(-self.jitter, self.jitter) * ttl


@right("6.2")
class TTLOfPlainDicts:
    """No OrderedDict: a dict keeps the order of insertion. The sizes are added up anew."""

    def __init__(self, ttl, negative_ttl, jitter, max_bytes, clock, uniform):
        self.lives, self.jitter, self.max_bytes = (ttl, negative_ttl), jitter, max_bytes
        self.clock, self.uniform, self.found = clock, uniform, {}

    def get(self, key):
        found, end, value = self.found.pop(key, (0, -math.inf, None))
        if end <= self.clock():
            return False, None
        self.found[key] = (found, end, value)
        return True, value

    def put(self, key, value, negative=False):
        self.found.pop(key, None)
        size = len(key) + (0 if negative else len(value))
        if size > self.max_bytes:
            return
        while sum(each[0] for each in self.found.values()) + size > self.max_bytes:
            del self.found[next(iter(self.found))]
        life = self.lives[negative] * self.uniform(1 - self.jitter, 1 + self.jitter)
        self.found[key] = (size, self.clock() + life, value)

    def put_negative(self, key):
        self.put(key, None, negative=True)


@wrong("6.2", GONE)
class TTLByTheWallClock(TTLCache):
    def __init__(self, *settings):
        super().__init__(*settings)
        self.clock = lambda: time.time()


@wrong("6.2", GONE)
class TTLWithoutEnd(TTLCache):
    def get(self, key):
        entry = self.entries.get(key)
        return (True, entry[2]) if entry else (False, None)


@wrong("6.2", GONE)
class TTLSliding(TTLCache):
    def get(self, key):
        found, value = super().get(key)
        if found:
            _, size, value = self.entries[key]
            self.entries[key] = (self.clock() + self.ttl, size, value)
        return found, value


@wrong("6.2", SPREAD)
class TTLWithoutJitter(TTLCache):
    def life(self, ttl):
        return ttl


@wrong("6.2", SPREAD)
class TTLJitterOfOneDraw(TTLCache):
    def __init__(self, *settings):
        super().__init__(*settings)
        self.factor = self.uniform(1 - self.jitter, 1 + self.jitter)

    def life(self, ttl):
        return ttl * self.factor


@wrong("6.2", SPREAD)
class TTLJitterOnlyEarlier(TTLCache):
    def life(self, ttl):
        return ttl * self.uniform(1 - self.jitter, 1)


@wrong("6.2", SPREAD)
class TTLJitterInSeconds(TTLCache):
    def life(self, ttl):
        return ttl + self.uniform(-self.jitter, self.jitter)


@wrong("6.2", GONE)
class TTLJitterAtEachRead(TTLCache):
    def store(self, key, value, size, ttl):
        super().store(key, value, size, ttl)
        if key in self.entries:
            self.entries[key] = (self.clock(), size, value, ttl)

    def get(self, key):
        entry = self.entries.get(key)
        if entry is None or self.clock() - entry[0] > self.life(2.5 * entry[3]):
            return False, None
        return True, entry[2]


@wrong("6.2", NEGATIVE)
class TTLNegativeAsLong(TTLCache):
    def put_negative(self, key):
        self.store(key, None, len(key), self.ttl)


@wrong("6.2", "remembers that there is nothing")
class TTLNegativeNotKept(TTLCache):
    def put_negative(self, key):
        self.drop(key)


@wrong("6.2", NEWER)
class TTLTimerOfTheOld(TTLCache):
    """Each put plans an end, and the end of an old value removes the new one."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.ends = []  # a heap

    def store(self, key, value, size, ttl):
        super().store(key, value, size, ttl)
        if key in self.entries:
            heapq.heappush(self.ends, (self.entries[key][0], key))

    def get(self, key):
        while self.ends and self.ends[0][0] <= self.clock():
            self.drop(heapq.heappop(self.ends)[1])
        return super().get(key)


@wrong("6.2", ABSENT)
class TTLAsksWhetherItIsTrue(TTLCache):
    def get(self, key):
        _, value = super().get(key)
        return (True, value) if value else (False, None)


@wrong("6.2", BOUND)
class TTLCountsEntries(TTLCache):
    def store(self, key, value, size, ttl):
        super().store(key, value, 1, ttl)


@wrong("6.2", BOUND)
class TTLNegativesAreFree(TTLCache):
    def put_negative(self, key):
        self.store(key, None, 0, self.negative_ttl)


@wrong("6.2", LRU)
class TTLFirstInFirstOut(TTLCache):
    def get(self, key):
        entry = self.entries.get(key)
        if entry is None or self.clock() >= entry[0]:
            self.drop(key)
            return False, None
        return True, entry[2]


@wrong("6.2", "counts a replaced value once")
class TTLCountsReplacedTwice(TTLCache):
    def store(self, key, value, size, ttl):
        self.entries.pop(key, None)
        super().store(key, value, size, ttl)

    def drop(self, key):
        if key in self.entries:
            self.used -= self.entries.pop(key)[1]
        self.used = max(self.used, 0) if self.entries else 0


@wrong("6.2", "a value too large drops no other")
class TTLEmptiesForTheLarge(TTLCache):
    def store(self, key, value, size, ttl):
        if size > self.max_bytes:
            for old in list(self.entries):
                self.drop(old)
        super().store(key, value, size, ttl)


@wrong("6.2", BOUND)
class TTLKeepsTheOldForTheLarge(TTLCache):
    def store(self, key, value, size, ttl):
        if size <= self.max_bytes:
            super().store(key, value, size, ttl)


@wrong("6.2", "frees what a read finds expired")
class TTLKeepsExpired(TTLCache):
    def get(self, key):
        entry = self.entries.get(key)
        if entry is None or self.clock() >= entry[0]:
            return False, None
        self.entries.move_to_end(key)
        return True, entry[2]


# --- 6.3 refresh before the end ------------------------------------------------------------------

COUNT = "recomputations per cycle near e^(1/beta)"
LEAD = "refreshes as early as the load is slow"
CHANCE = "each read refreshes with a chance of e^(-left / (beta delta))"
NEVER_STALE = "serves no value past its time"
NO_WAIT = "a reader with a value never waits"


@stub("6.3")
class XFetchStub:
    def __init__(self, load, ttl, beta, random):
        raise NotImplementedError

    async def get(self, key):
        raise NotImplementedError


@right("6.3")
class XFetch:
    def __init__(self, load, ttl, beta, random):
        self.load, self.ttl, self.beta, self.random = load, ttl, beta, random
        self.entries, self.tasks = {}, set()

    async def get(self, key):
        now, entry = asyncio.get_running_loop().time(), self.entries.get(key)
        if entry is None or now >= entry[1]:
            return await self.refresh(key)
        if now + self.early(entry) >= entry[1]:
            self.spawn(key)
        return entry[0]

    def early(self, entry):
        return -self.beta * entry[2] * math.log(1 - self.random())

    def spawn(self, key):
        task = asyncio.create_task(self.refresh(key))
        self.tasks.add(task)
        task.add_done_callback(self.done)

    def done(self, task):
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the value is still there; the next read tries again

    async def refresh(self, key):
        loop = asyncio.get_running_loop()
        start = loop.time()
        value = await self.load(key)
        self.entries[key] = (value, loop.time() + self.ttl, self.delta(loop.time() - start))
        return value

    def delta(self, seconds):
        return seconds

    async def close(self):
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@right("6.3")
class XFetchByExponential(XFetch):
    """The wait before an event of rate 1 / (beta delta), drawn from the same numbers."""

    def early(self, entry):
        return math.log(1 / (1 - self.random())) * self.beta * entry[2]

    async def close(self):
        await asyncio.gather(*self.tasks, return_exceptions=True)


@right("6.3")
class XFetchWithFlights(XFetch):
    """Misses share one load; early refreshes stay independent of each other."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.flights = {}

    async def get(self, key):
        now, entry = asyncio.get_running_loop().time(), self.entries.get(key)
        if entry is not None and now < entry[1]:
            return await super().get(key)
        if key not in self.flights:
            self.flights[key] = asyncio.create_task(self.refresh(key))
            self.flights[key].add_done_callback(lambda _: self.flights.pop(key))
        return await asyncio.shield(self.flights[key])


@wrong("6.3", COUNT)
class XFetchOneRefreshOnly(XFetch):
    """A single flight of refreshes is wise, and is not XFetch."""

    def spawn(self, key):
        if not self.tasks:
            super().spawn(key)


@wrong("6.3", COUNT)
class XFetchUniform(XFetch):
    def early(self, entry):
        return self.beta * 5.5 * entry[2] * self.random()


@wrong("6.3", LEAD)
class XFetchConstantDelta(XFetch):
    def delta(self, seconds):
        return max(1.0, 0 * seconds)


@wrong("6.3", CHANCE)
class XFetchWithoutBeta(XFetch):
    def early(self, entry):
        return super().early(entry) / self.beta


@wrong("6.3", CHANCE)
class XFetchFivePercentLate(XFetch):
    """Too little for the mean of a thousand cycles, and still wrong."""

    def early(self, entry):
        return 0.95 * super().early(entry)


@wrong("6.3", "takes random() == 0 as it comes")
class XFetchLogOfZero(XFetch):
    def early(self, entry):
        u = self.random()
        return -self.beta * entry[2] * math.log(u)


@wrong("6.3", NO_WAIT)
class XFetchReaderWaits(XFetch):
    async def get(self, key):
        now, entry = asyncio.get_running_loop().time(), self.entries.get(key)
        if entry is None or now + self.early(entry) >= entry[1]:
            return await self.refresh(key)
        return entry[0]


@wrong("6.3", NEVER_STALE)
class XFetchServesStale(XFetch):
    async def get(self, key):
        now, entry = asyncio.get_running_loop().time(), self.entries.get(key)
        if entry is None:
            return await self.refresh(key)
        if now + self.early(entry) >= entry[1]:
            self.spawn(key)
        return entry[0]


@wrong("6.3", "refreshes early")
class XFetchNeverEarly(XFetch):
    def early(self, entry):
        return 0.0 * entry[2]


@wrong("6.3", "keeps values")
class XFetchKeepsNothing(XFetch):
    async def get(self, key):
        return await self.refresh(key)


@wrong("6.3", "loses no error")
class XFetchLosesErrors(XFetch):
    def done(self, task):
        self.tasks.discard(task)


@wrong("6.3", "forgets a refresh that is over")
class XFetchKeepsEveryTask(XFetch):
    def done(self, task):
        if not task.cancelled():
            task.exception()


@wrong("6.3", "close ends every refresh")
class XFetchDoesNotClose(XFetch):
    async def close(self):
        self.tasks.clear()


@wrong("6.3", "a refresh that fails costs no reader its value")
class XFetchDropsOnError(XFetch):
    async def refresh(self, key):
        try:
            return await super().refresh(key)
        except Exception:
            self.entries.pop(key, None)
            raise


# --- 6.4 two levels with Redis -------------------------------------------------------------------

ONE_LOAD = "one load for all four processes"
OTHERS_LOCK = "never removes another's lock"
OUTAGE = "Redis down: every get is served"
LIMIT = "Redis down: no more loads at once than fallback"
STALE = "no stale value longer than local_ttl after invalidate"
ENDS = "no copy outlives the value in Redis"
PREFIX = "every key in Redis begins with prefix"
EXPIRES = "every key in Redis expires"
RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"


@stub("6.4")
class LevelsStub:
    def __init__(self, redis, load, prefix, ttl, local_ttl, lease, fallback):
        raise NotImplementedError

    async def get(self, key):
        raise NotImplementedError


@right("6.4")
class TwoLevel:
    def __init__(self, redis, load, prefix, ttl, local_ttl, lease, fallback):
        self.redis, self.load, self.prefix, self.ttl = redis, load, prefix, ttl
        self.local_ttl, self.lease, self.room = local_ttl, lease, asyncio.Semaphore(fallback)
        self.local = {}

    async def get(self, key):
        end, text = self.local.get(key, (0.0, ""))
        if time.monotonic() >= end:
            text = await self.shared(key)
            self.local[key] = (await self.end_of_copy(key, text), text)
        return json.loads(text)

    async def end_of_copy(self, key, text):
        """When a copy of this text ends: with the text in Redis, or sooner."""
        now, name = time.monotonic(), self.prefix + key
        with contextlib.suppress(RedisError):
            there, left_ms = await self.redis.pipeline().get(name).pttl(name).execute()
            same = there is not None and json.loads(there) == json.loads(text)
            return now + min(self.local_ttl, left_ms / 1000) if same else now
        return now + self.local_ttl

    async def shared(self, key):
        try:
            return await self.from_redis(self.prefix + key)
        except RedisError:
            async with self.room:
                return json.dumps(await self.load(key))

    async def from_redis(self, name):
        lock, token = f"{name}:lock", secrets.token_hex(8)
        while True:
            if (text := await self.redis.get(name)) is not None:
                return text
            if await self.redis.set(lock, token, nx=True, px=self.lease_ms()):
                try:
                    if (text := await self.redis.get(name)) is not None:
                        return text
                    text = json.dumps(await self.load(name.removeprefix(self.prefix)))
                    await self.redis.set(name, text, px=round(1000 * self.ttl))
                    return text
                finally:
                    await self.release(lock, token)
            await asyncio.sleep(0.01)

    def lease_ms(self):
        return round(1000 * self.lease)

    async def release(self, lock, token):
        await self.redis.eval(RELEASE, 1, lock, token)

    async def invalidate(self, key):
        self.local.pop(key, None)
        with contextlib.suppress(RedisError):
            await self.redis.delete(self.prefix + key)


@right("6.4")
class TwoLevelWithFlights(TwoLevel):
    """One task for each key in a process, and the lock of the client library."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.flights = {}

    async def shared(self, key):
        if key not in self.flights:
            self.flights[key] = asyncio.create_task(super().shared(key))
            self.flights[key].add_done_callback(lambda _: self.flights.pop(key))
        return await asyncio.shield(self.flights[key])

    async def release(self, lock, token):
        script = self.redis.register_script(RELEASE)
        await script(keys=[lock], args=[token])


@right("6.4")
class TwoLevelOnTheLibrarysLock(TwoLevel):
    """redis-py's Lock has the token, the lease and the script."""

    async def from_redis(self, name):
        while (text := await self.redis.get(name)) is None:
            lock = self.redis.lock(f"{name}:lock", timeout=self.lease, blocking=False)
            if not await lock.acquire():
                await asyncio.sleep(0.01)
                continue
            try:
                if (text := await self.redis.get(name)) is None:
                    text = json.dumps(await self.load(name.removeprefix(self.prefix)))
                    await self.redis.set(name, text, px=round(1000 * self.ttl))
                return text
            finally:
                with contextlib.suppress(LockError):  # the lease is over, and the lock another's
                    await lock.release()
        return text


@wrong("6.4", ONE_LOAD)
class LevelsWithoutLock(TwoLevel):
    async def from_redis(self, name):
        if (text := await self.redis.get(name)) is not None:
            return text
        text = json.dumps(await self.load(name.removeprefix(self.prefix)))
        await self.redis.set(name, text, px=round(1000 * self.ttl))
        return text


@wrong("6.4", ONE_LOAD)
class LevelsWithALocalLock(TwoLevel):
    def __init__(self, *settings):
        super().__init__(*settings)
        self.lock = asyncio.Lock()

    async def from_redis(self, name):
        async with self.lock:
            if (text := await self.redis.get(name)) is not None:
                return text
            text = json.dumps(await self.load(name.removeprefix(self.prefix)))
            await self.redis.set(name, text, px=round(1000 * self.ttl))
            return text


@wrong("6.4", OTHERS_LOCK)
class LevelsDeleteAnyLock(TwoLevel):
    async def release(self, lock, token):
        await self.redis.delete(lock)


@wrong("6.4", OTHERS_LOCK)
class LevelsWithOneToken(TwoLevel):
    async def from_redis(self, name):
        self.token = "mine"
        return await super().from_redis(name)

    async def release(self, lock, token):
        if await self.redis.exists(lock):
            await self.redis.delete(lock)


@wrong("6.4", OTHERS_LOCK)
class LevelsDeleteAnyLockNowAndThen(TwoLevel):
    """Right three times, and wrong the fourth."""

    releases = 0

    async def release(self, lock, token):
        if lock.rpartition(":lock")[0].endswith("k2"):
            await self.redis.delete(lock)
        await super().release(lock, token)


@wrong("6.4", "when the owner of a lock dies, one of the others loads")
class LevelsImpatientNowAndThen(TwoLevel):
    """In one case of four, who had to wait for another's lock goes on without one."""

    async def from_redis(self, name):
        if not name.endswith("dead2") or not await self.redis.exists(f"{name}:lock"):
            return await super().from_redis(name)
        while await self.redis.exists(f"{name}:lock"):
            await asyncio.sleep(0.01)
        return json.dumps(await self.load(name.removeprefix(self.prefix)))


@wrong("6.4", "a lock is a lease")
class LevelsLeaseInTenths(TwoLevel):
    def lease_ms(self):
        return round(100 * self.lease)


@wrong("6.4", EXPIRES)
class LevelsLockForEver(TwoLevel):
    def lease_ms(self):
        return None

    async def release(self, lock, token):
        await asyncio.sleep(0)


@wrong("6.4", "a lock is a lease")
class LevelsLockUntilReleased(TwoLevel):
    def lease_ms(self):
        return max(20_000, round(1000 * self.lease))


@wrong("6.4", EXPIRES)
class LevelsWithoutTTL(TwoLevel):
    async def from_redis(self, name):
        text = await super().from_redis(name)
        await self.redis.persist(name)
        return text


@wrong("6.4", PREFIX)
class LevelsWithoutPrefix(TwoLevel):
    def __init__(self, redis, load, prefix, *settings):
        super().__init__(redis, load, f"cache-of-{prefix}", *settings)


@wrong("6.4", OUTAGE)
class LevelsNeedRedis(TwoLevel):
    async def shared(self, key):
        return await self.from_redis(self.prefix + key)


@wrong("6.4", LIMIT)
class LevelsFallBackWithoutLimit(TwoLevel):
    async def shared(self, key):
        try:
            return await self.from_redis(self.prefix + key)
        except RedisError:
            return json.dumps(await self.load(key))


@wrong("6.4", "keeps a copy in each process")
class LevelsAskRedisEachTime(TwoLevel):
    async def get(self, key):
        return json.loads(await self.shared(key))


@wrong("6.4", STALE)
class LevelsKeepLocallyForTTL(TwoLevel):
    def __init__(self, redis, load, prefix, ttl, local_ttl, lease, fallback):
        super().__init__(redis, load, prefix, ttl, ttl, lease, fallback)


@wrong("6.4", ENDS)
class LevelsCopiesOutliveRedis(TwoLevel):
    async def end_of_copy(self, key, text):
        return time.monotonic() + self.local_ttl


@wrong("6.4", "the one that invalidates sees the new value")
class LevelsInvalidateRedisOnly(TwoLevel):
    async def invalidate(self, key):
        self.local_ttl = max(self.local_ttl, 1.0)
        with contextlib.suppress(RedisError):
            await self.redis.delete(self.prefix + key)


@wrong("6.4", "hands out no value that the caller can spoil")
class LevelsShareTheObject(TwoLevel):
    async def get(self, key):
        end, value = self.local.get(key, (0.0, None))
        if time.monotonic() >= end:
            value = json.loads(await self.shared(key))
            self.local[key] = (time.monotonic() + 1.0, value)
        return value


@wrong("6.4", "keeps every value, None and 0 too")
class LevelsAskWhetherItIsTrue(TwoLevel):
    async def from_redis(self, name):
        text = await self.redis.get(name)
        if text is not None and not json.loads(text):
            await self.redis.delete(name)
        return await super().from_redis(name)


@wrong("6.4", "an error is not kept")
class LevelsKeepErrors(TwoLevel):
    errors: dict = {}

    async def get(self, key):
        if (self.prefix, key) in self.errors:
            raise self.errors[self.prefix, key]
        try:
            return await super().get(key)
        except Exception as error:
            self.errors[self.prefix, key] = error
            raise


@wrong("6.4", "Redis down: loads do not queue up one by one")
class LevelsFallBackOneByOne(TwoLevel):
    def __init__(self, *settings):
        super().__init__(*settings[:-1], 1)


@wrong("6.4", RUNS)
class LevelsInvalidateNeedsRedis(TwoLevel):
    async def invalidate(self, key):
        self.local.pop(key, None)
        await self.redis.delete(self.prefix + key)
