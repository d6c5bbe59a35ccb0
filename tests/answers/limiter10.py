"""Exercise 10.1, the distributed limiter: answers the check must accept, answers it must reject and why, and stubs."""

from __future__ import annotations

import asyncio
import collections
import secrets
import time

from answers.register import Register

from support.exercises.harness import NO_ERROR
from support.exercises.limiter10 import (
    ABOVE,
    APART,
    BURST,
    CLOCK,
    EXPIRES,
    IN_REDIS,
    LEFT,
    NEED,
    ONE_TRIP,
    PREFIX,
    SCRIPTS,
    WINDOW,
)

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub


@stub("10.1")
class LimiterStub:
    def __init__(self, redis, key, limit, window):
        raise NotImplementedError

    async def admit(self):
        raise NotImplementedError


@stub("10.1")
class LimiterEmpty:
    def __init__(self, redis, key, limit, window): ...

    async def admit(self): ...


# --- right ---------------------------------------------------------------------------------------

SORTED = """
local t = redis.call('time')
local now = t[1] * 1000000 + t[2]
redis.call('zremrangebyscore', KEYS[1], '-inf', now - ARGV[2] * 1000)
if redis.call('zcard', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('zadd', KEYS[1], now, ARGV[3])
redis.call('pexpire', KEYS[1], ARGV[2])
return 1
"""


@right("10.1")
class Limiter:
    """A sorted set of the times of those who were let in."""

    script = SORTED

    def __init__(self, redis, key, limit, window):
        self.redis, self.key, self.limit, self.window_ms = redis, key, limit, round(1000 * window)

    async def admit(self):
        answer = await self.redis.eval(self.script, 1, self.key, self.limit, self.window_ms, secrets.token_hex(8))
        return answer == 1


@right("10.1")
class LimiterOnAList(Limiter):
    """The time of the one who was let in `limit` times ago decides."""

    script = """
    local t = redis.call('time')
    local now, window = t[1] * 1000000 + t[2], tonumber(ARGV[2]) * 1000
    local oldest = redis.call('lindex', KEYS[1], tonumber(ARGV[1]) - 1)
    if oldest and tonumber(oldest) > now - window then return 0 end
    redis.call('lpush', KEYS[1], string.format('%.0f', now))
    redis.call('ltrim', KEYS[1], 0, ARGV[1] - 1)
    return redis.call('pexpire', KEYS[1], ARGV[2])
    """

    def __init__(self, redis, key, limit, window):
        super().__init__(redis, key, limit, window)
        self.decide = redis.register_script(self.script)  # EVALSHA, and EVAL when Redis does not know it

    async def admit(self):
        return bool(await self.decide(keys=[self.key], args=[self.limit, self.window_ms]))


@right("10.1")
class LimiterInBuckets(Limiter):
    """Counts in a hash, one for each fortieth of a window, and lets no count go before all of it is too old."""

    script = """
    local t = redis.call('time')
    local slot_us = tonumber(ARGV[2]) * 1000 / 40
    local slot = math.floor((t[1] * 1000000 + t[2]) / slot_us)
    local held, all = 0, redis.call('hgetall', KEYS[1])
    for i = 1, #all, 2 do
        if tonumber(all[i]) < slot - 40 then redis.call('hdel', KEYS[1], all[i]) else held = held + all[i + 1] end
    end
    if held >= tonumber(ARGV[1]) then return 0 end
    redis.call('hincrby', KEYS[1], string.format('%.0f', slot), 1)
    redis.call('pexpire', KEYS[1], math.ceil(ARGV[2] * 41 / 40))
    return 1
    """


@right("10.1")
class LimiterThatRemembersRefusals(Limiter):
    """A refusal says for how long: until then nobody has to ask Redis."""

    script = SORTED.replace(
        "then return 0 end",
        """then
        local oldest = redis.call('zrange', KEYS[1], 0, 0, 'withscores')
        return -math.max(1, math.floor((tonumber(oldest[2]) + ARGV[2] * 1000 - now) / 1000))
    end""",
    )
    until = float("-inf")

    async def admit(self):
        now = asyncio.get_running_loop().time()
        if now < self.until:
            return False
        answer = await self.redis.eval(self.script, 1, self.key, self.limit, self.window_ms, secrets.token_hex(8))
        if answer < 0:
            self.until = now - answer / 1000 / 2  # the half: the clocks may run apart
        return answer > 0


# --- wrong ---------------------------------------------------------------------------------------


@wrong("10.1", ABOVE)
class LimiterInThisProcess:
    """A deque in each process."""

    def __init__(self, redis, key, limit, window):
        self.times, self.limit, self.window = collections.deque(), limit, window

    async def admit(self):
        now = time.monotonic()
        while self.times and self.times[0] <= now - self.window:
            self.times.popleft()
        if len(self.times) >= self.limit:
            return False
        self.times.append(now)
        return True


@wrong("10.1", ABOVE)
class LimiterGetThenIncr(Limiter):
    async def admit(self):
        if int(await self.redis.get(self.key) or 0) >= self.limit:
            return False
        await self.redis.incr(self.key)
        await self.redis.pexpire(self.key, self.window_ms)
        return True


@wrong("10.1", ABOVE)
class LimiterGetThenIncrUnderALock(Limiter):
    """The lock is that of one process."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.lock = asyncio.Lock()

    async def admit(self):
        async with self.lock:
            if int(await self.redis.get(self.key) or 0) >= self.limit:
                return False
            async with self.redis.pipeline() as both:
                await both.incr(self.key).pexpire(self.key, self.window_ms).execute()
            return True


@wrong("10.1", ABOVE)
class LimiterOneTooMany(Limiter):
    script = SORTED.replace(">=", ">")


@wrong("10.1", ABOVE)
class LimiterNamesByMilliseconds(Limiter):
    """Those who come in the same millisecond are one member of the set."""

    script = SORTED.replace("ARGV[3]", "string.format('%.0f', math.floor(now / 1000))")


@wrong("10.1", ABOVE)
class LimiterInWholeSeconds(Limiter):
    """EXPIRE with less than a second is a deletion. Of a long window in hours, too."""

    script = SORTED.replace(
        "redis.call('pexpire', KEYS[1], ARGV[2])", "redis.call('expire', KEYS[1], math.floor(ARGV[2] / 3600000))"
    )


@wrong("10.1", EXPIRES)
class LimiterIncrThenExpire(Limiter):
    async def admit(self):
        count = await self.redis.incr(self.key)
        if count == 1:
            await self.redis.pexpire(self.key, self.window_ms)
        return count <= self.limit


@wrong("10.1", EXPIRES)
class LimiterForEver(Limiter):
    script = SORTED.replace("redis.call('pexpire', KEYS[1], ARGV[2])", "")


@wrong("10.1", EXPIRES)
class LimiterForADay(Limiter):
    script = SORTED.replace("ARGV[2])\nreturn", "86400000)\nreturn")


@wrong("10.1", CLOCK)
class LimiterByTheLocalClock(Limiter):
    script = SORTED.replace("local t = redis.call('time')", "").replace("t[1] * 1000000 + t[2]", "ARGV[4] * 1000000")

    def now(self):
        return time.time()

    async def admit(self):
        name = secrets.token_hex(8)
        return bool(await self.redis.eval(self.script, 1, self.key, self.limit, self.window_ms, name, self.now()))


@wrong("10.1", CLOCK)
class LimiterByTheLoopsClock(LimiterByTheLocalClock):
    def now(self):
        return asyncio.get_running_loop().time()


@wrong("10.1", CLOCK)
class LimiterByTheCalendar(Limiter):
    """A key for each window of the local calendar."""

    async def admit(self):
        key = f"{self.key}:{time.time_ns() // 1_000_000 // self.window_ms}"
        async with self.redis.pipeline() as both:
            count, _ = await both.incr(key).pexpire(key, self.window_ms).execute()
        return count <= self.limit


@wrong("10.1", ONE_TRIP)
class LimiterAsksTheTimeFirst(LimiterByTheLocalClock):
    """Redis's clock, and atomic; but two trips."""

    async def admit(self):
        seconds, microseconds = await self.redis.time()
        now, name = seconds + microseconds / 1e6, secrets.token_hex(8)
        return bool(await self.redis.eval(self.script, 1, self.key, self.limit, self.window_ms, name, now))


@wrong("10.1", ONE_TRIP)
class LimiterUnderARedisLock(LimiterGetThenIncr):
    """A lock that ends, of Redis itself: atomic, and four trips."""

    async def admit(self):
        token = secrets.token_hex(8)
        while not await self.redis.set(f"{self.key}:lock", token, nx=True, px=5000):
            await asyncio.sleep(0.001)
        try:
            if int(await self.redis.get(self.key) or 0) >= self.limit:
                return False
            async with self.redis.pipeline() as both:
                await both.incr(self.key).pexpire(self.key, self.window_ms).execute()
            return True
        finally:
            await self.redis.delete(f"{self.key}:lock")


@wrong("10.1", ONE_TRIP)
class LimiterWatches(Limiter):
    """WATCH and MULTI: right, and again from the start whenever somebody else was faster."""

    async def admit(self):
        from redis.exceptions import WatchError

        while True:
            async with self.redis.pipeline() as steps:
                await steps.watch(self.key)
                if int(await steps.get(self.key) or 0) >= self.limit:
                    return False
                steps.multi()
                steps.incr(self.key).pexpire(self.key, self.window_ms)
                try:
                    await steps.execute()
                    return True
                except WatchError:
                    await asyncio.sleep(0)


@wrong("10.1", WINDOW)
class LimiterFixedWindow(Limiter):
    """One trip, atomic, Redis's own time; and twice the limit across the border."""

    script = """
    local count = redis.call('incr', KEYS[1])
    if count == 1 then redis.call('pexpire', KEYS[1], ARGV[2]) end
    return count <= tonumber(ARGV[1]) and 1 or 0
    """


@wrong("10.1", WINDOW)
class LimiterFixedWindowInOneTransaction(Limiter):
    """No Lua, one trip; EXPIRE ... NX, so that the window has an end."""

    async def admit(self):
        async with self.redis.pipeline() as both:
            count, _ = await both.incr(self.key).pexpire(self.key, self.window_ms, nx=True).execute()
        return count <= self.limit


@wrong("10.1", WINDOW)
class LimiterByRedisCalendar(Limiter):
    """A new count whenever Redis's clock passes a multiple of the window."""

    script = """
    local t = redis.call('time')
    local number = string.format('%.0f', math.floor((t[1] * 1000 + t[2] / 1000) / ARGV[2]))
    if redis.call('hget', KEYS[1], 'window') ~= number then redis.call('del', KEYS[1]) end
    redis.call('hset', KEYS[1], 'window', number)
    redis.call('pexpire', KEYS[1], ARGV[2])
    return redis.call('hincrby', KEYS[1], 'count', 1) <= tonumber(ARGV[1]) and 1 or 0
    """


@wrong("10.1", WINDOW)
class LimiterTokenBucket(Limiter):
    """A full bucket, and what is refilled meanwhile: nearly twice the limit in a window."""

    script = """
    local t = redis.call('time')
    local now = t[1] * 1000 + t[2] / 1000
    local held, last = unpack(redis.call('hmget', KEYS[1], 'tokens', 'last'))
    local tokens = math.min(ARGV[1], (held or ARGV[1]) + (now - (last or now)) * ARGV[1] / ARGV[2])
    local let_in = tokens >= 1 and 1 or 0
    redis.call('hset', KEYS[1], 'tokens', tokens - let_in, 'last', now)
    redis.call('pexpire', KEYS[1], ARGV[2])
    return let_in
    """


@wrong("10.1", WINDOW)
class LimiterTwoCounters(Limiter):
    """The last window's count by the share of it that is still within reach: as if its callers had come evenly."""

    script = """
    local t = redis.call('time')
    local now = (t[1] * 1000 + t[2] / 1000) / ARGV[2]
    local window = math.floor(now)
    local function count(number) return tonumber(redis.call('hget', KEYS[1], string.format('%.0f', number)) or 0) end
    if count(window) + count(window - 1) * (1 - now + window) > ARGV[1] - 1 then return 0 end
    redis.call('hincrby', KEYS[1], string.format('%.0f', window), 1)
    redis.call('hdel', KEYS[1], string.format('%.0f', window - 2))
    redis.call('pexpire', KEYS[1], 2 * ARGV[2])
    return 1
    """


@wrong("10.1", WINDOW)
class LimiterExpiresWithTheFirst(Limiter):
    """The end of the key is set once: with the first one, all are forgotten."""

    script = SORTED.replace("redis.call('pexpire', KEYS[1], ARGV[2])", "redis.call('pexpire', KEYS[1], ARGV[2], 'nx')")


@wrong("10.1", WINDOW)
class LimiterWithHalfTheWindow(Limiter):
    script = SORTED.replace("now - ARGV[2] * 1000", "now - ARGV[2] * 500")


@wrong("10.1", NEED)
class LimiterCountsTheRefused(Limiter):
    """Whoever is refused and asks again keeps everybody out."""

    script = """
    local t = redis.call('time')
    local now = t[1] * 1000000 + t[2]
    redis.call('zremrangebyscore', KEYS[1], '-inf', now - ARGV[2] * 1000)
    redis.call('zadd', KEYS[1], now, ARGV[3])
    redis.call('pexpire', KEYS[1], ARGV[2])
    return redis.call('zcard', KEYS[1]) <= tonumber(ARGV[1]) and 1 or 0
    """


@wrong("10.1", NEED)
class LimiterFixedWindowThatRestarts(LimiterFixedWindow):
    """Each question moves the end of the window."""

    script = """
    local count = redis.call('incr', KEYS[1])
    redis.call('pexpire', KEYS[1], ARGV[2])
    return count <= tonumber(ARGV[1]) and 1 or 0
    """


@wrong("10.1", NEED)
class LimiterForgetsLate(Limiter):
    """Keeps them for a window and a half, to be safe."""

    script = SORTED.replace("now - ARGV[2] * 1000", "now - ARGV[2] * 1500").replace(
        "ARGV[2])\nreturn", "ARGV[2] * 2)\nreturn"
    )


@wrong("10.1", BURST)
class LimiterPaced(Limiter):
    """One each window / limit: never above the limit, and a burst waits."""

    script = "return redis.call('set', KEYS[1], 1, 'nx', 'px', math.ceil(ARGV[2] / ARGV[1])) and 1 or 0"


@wrong("10.1", BURST)
class LimiterSharesItOut(Limiter):
    """A quarter of the limit for each of the four processes, without asking who asks."""

    def __init__(self, redis, key, limit, window):
        super().__init__(redis, key, max(1, limit // 4), window)


@wrong("10.1", PREFIX)
class LimiterInASpaceOfItsOwn(Limiter):
    def __init__(self, redis, key, limit, window):
        super().__init__(redis, f"limit:{key}", limit, window)


@wrong("10.1", IN_REDIS)
class LimiterOnTheClass(Limiter):
    """What a module keeps looks shared as long as there is one process."""

    times = collections.defaultdict(collections.deque)

    async def admit(self):
        times, now = self.times[self.key], time.monotonic()
        await self.redis.set(self.key, 1, px=self.window_ms)
        while times and times[0] <= now - self.window_ms / 1000:
            times.popleft()
        if len(times) >= self.limit:
            return False
        times.append(now)
        return True


@wrong("10.1", APART)
class LimiterOneForAll(Limiter):
    """The key is the same for all tenants."""

    def __init__(self, redis, key, limit, window):
        super().__init__(redis, f"{key.rpartition(':')[0]}:all:{limit}", limit, window)


@wrong("10.1", SCRIPTS)
class LimiterByDigest(Limiter):
    """SCRIPT LOAD once, EVALSHA for ever."""

    digest = None

    async def admit(self):
        if self.digest is None:
            self.digest = await self.redis.script_load(self.script)
        name = secrets.token_hex(8)
        return bool(await self.redis.evalsha(self.digest, 1, self.key, self.limit, self.window_ms, name))


@wrong("10.1", LEFT)
class LimiterInTheBackground(Limiter):
    """Answers, and cleans up later."""

    async def admit(self):
        self.later = asyncio.create_task(asyncio.sleep(60))
        return await super().admit()


@wrong("10.1", NO_ERROR)
class LimiterRaises(Limiter):
    """Lua has no +=."""

    script = "local count = 0 count += 1 return count"
