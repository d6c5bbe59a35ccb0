# %% [markdown]
# # What does a cache do when its answer expires?
#
# After this chapter you can predict a cache's hit ratio and the load that it leaves to its backend, stop a stampede, choose a TTL, and share a cache between processes, with stale answers only where you allow them.
#
# You need chapters 01 to 03: tasks, `shield`, cancellation. You need no Redis server: the chapter starts its own.

# %% tags=["setup"]
import asyncio, contextlib, functools, itertools, json, logging, math, os, random, secrets, statistics, time, weakref
from collections import Counter, OrderedDict
from urllib.parse import quote

import aiocache, aiohttp, async_lru, cachetools, cashews, yarl
import ipywidgets as widgets
import numpy as np
from cachetools import TTLCache
from fastapi import FastAPI
from redis.asyncio import Redis
from redis.exceptions import RedisError
from support import (check, close_chapter, figures, new_figure, open_chapter, predict, probes, score, serve, show, simulate, start_redis,
    start_upstream, theory)

open_chapter("06_caching")
upstream, redis = start_upstream(), start_redis()
os.environ.update(ORIGIN=upstream.url, CACHE=redis.url)  # where the servers of this chapter find them
print("Started: the practice upstream and a Redis, both on 127.0.0.1.")

# %% [markdown]
# ## 1. What is a hit worth?
#
# A *cache* keeps answers. A read that finds one is a *hit*, and h, the *hit ratio*, is their share. If a hit takes t1 and a miss t2, the mean read takes h t1 + (1 - h) t2. An entry ends after its *time to live*, the TTL. Here is the usual cached endpoint, on a slow upstream.

# %% tags=["predict"]
gain_guess = predict("06.1", "A hit is over a hundred times faster than a miss. Nine of ten reads hit. How much faster is the mean read than without a cache?", {
    "a": "Over a hundred times: that is what a cache gains.",
    "b": "About ninety times, or more: nine tenths of that.",
    "c": "About ten times: the misses decide.",
}, guess="")
naive_guess = predict("06.2", "(1) 100 requests for the same new key come together. (2) Another key's answer is [], and it is read ten times, one after the other. How many calls reach the upstream?", {
    "a": "1 and 1: that is what the cache is for.",
    "b": "1 and 10: an empty answer is not kept.",
    "c": "100 and 1: nobody waits for the first, and one entry serves the ten.",
    "d": "100 and 10.",
}, guess="")

# %% tags=["experiment"]
app, cache = FastAPI(), cachetools.TTLCache(maxsize=1000, ttl=300)  # entries, seconds
async def fetch(path: str, **query) -> dict:
    async with aiohttp.request("GET", upstream.url_for(path, **query), raise_for_status=True) as response: return await response.json()

@app.get("/cached-data/{resource_id}")
async def cached_data(resource_id: str, part: str = "") -> dict:
    if data := cache.get(resource_id): return {"data": data, "from_cache": True}
    item = await fetch(f"/item/{resource_id}", delay=0.03)
    data = cache[resource_id] = item.get(part, []) if part else item
    return {"data": data, "from_cache": False}
@app.get("/cache-stats")
async def cache_stats() -> dict: return {name: getattr(cache, name, 0) for name in ("hits", "misses")}

# %% tags=["experiment"]
async def calls_for(reads) -> tuple[int, list]:  # FastAPI calls the function above once for each request, and so do we
    upstream.reset()
    answers = await reads
    return upstream.stats()["requests"], answers
async def in_turn(read, times: int) -> list: return [await read() for _ in range(times)]

cache.clear()
together, _ = await calls_for(asyncio.gather(*[cached_data("17") for _ in range(100)]))
alone, answers = await calls_for(in_turn(lambda: cached_data("18", part="reviews"), 10))
naive_guess.settle({(1, 1): "a", (1, 10): "b", (100, 1): "c"}.get((together, alone), "d"), f"counted by the upstream: {together} and {alone}; of the ten, from the cache: {sum(answer['from_cache'] for answer in answers)}")
print("asked for the reviews of 17, got", list((await cached_data("17", part="reviews"))["data"]), "- after these 111 reads /cache-stats says", await cache_stats())

# %% tags=["figure"]
READS, RUNS = {0: 2, 50: 4, 80: 10, 90: 20, 99: 200, 100: 1000}, 4  # hit ratio in %: reads in a run, two of them misses; and none at 100 %
async def mean_read(percent: int, reads: int) -> float:
    cache.clear(), await cached_data("17")
    keys = iter([f"new {number}" for number in range(reads - reads * percent // 100)] + ["17"] * reads)
    return await probes.seconds(in_turn(lambda: cached_data(next(keys)), reads)) / reads
runs = [[await mean_read(percent, reads) for percent, reads in READS.items()] for _ in range(RUNS)]
best = dict(zip(READS, map(min, zip(*runs))))  # what else this computer does only adds to a time
(t2, *_, t1), shares, (figure, axes) = best.values(), [*READS][:-1], new_figure(height=3.2)  # without a cache; all hits
residual = figures.measured_against_theory(axes, [100 - h for h in shares], [[t2 / best[h]] for h in shares], [100 / (100 - h + h * t1 / t2) for h in shares],
                                           formula="t2 / (h t1 + (1 - h) t2)", label="best of 4 runs")
axes.set(title="How much faster is the mean read than without a cache?", xlabel="misses (% of the reads)", ylabel="times faster", xscale="log", yscale="log", xlim=(130, 0.8), xticks=(100, 50, 20, 10, 1), xticklabels=(100, 50, 20, 10, 1), yticks=(1, 10, 100), yticklabels=(1, 10, 100)), axes.minorticks_off(), axes.legend()
show(figure, alt="Gain of a cache against the share of misses, both logarithmic. Points on the theory line: 1 without hits, 2 at 50 per cent, 10 at 10 per cent misses, 100 at 1 per cent.")

# %% tags=["experiment"]
assert residual < 0.25 and t2 > 100 * t1
gain_guess.settle("c" if t2 / best[90] < 20 else "b" if t2 / best[90] < 95 else "a", "a hit is over 100 times faster than a miss, and yet halving the misses is what doubles the gain; all points are within 25 % of the line")
score("06 a hit against a miss of 30 ms", t2 / t1, "times faster", predicted="over 100")
ticks = itertools.count()  # a clock that is one second later each time somebody looks at it
brief = cachetools.TTLCache(maxsize=9, ttl=2, timer=ticks.__next__)
brief["17"] = {"price": 5}
try:
    if "17" in brief: brief["17"]
except KeyError as error: print(f"if key in cache: return cache[key] - {error!r}: the entry was there, and expired between the two looks")
_, mine = await cached_data("19"), (await cached_data("19"))["data"]
mine["price"] = 0  # the caller's own copy, or so the caller thinks
print("price of 19, asked again: from the cache", (await cached_data("19"))["data"]["price"], "- from the upstream", (await fetch("/item/19"))["price"])

# %% tags=["experiment"]
MISSING, counted = object(), Counter()  # no upstream answers with this object
async def careful_data(resource_id: str, part: str = "") -> dict:
    text = cache.get(key := (resource_id, part), MISSING)  # one look; the key holds all that the answer depends on, as version and tenant
    counted["misses" if text is MISSING else "hits"] += 1
    if text is MISSING:
        item = await fetch(f"/item/{resource_id}", delay=0.03)
        text = cache[key] = json.dumps(item.get(part, []) if part else item)  # a text: each caller gets a copy
    return {"data": json.loads(text)}

cache.clear()
calls, _ = await calls_for(in_turn(lambda: careful_data("18", part="reviews"), 10))
(await careful_data("19"))["data"]["price"] = 0
print("ten reads of []: calls", calls, "- with one of 19, counted", dict(counted), "- price of 19 unharmed:", (await careful_data("19"))["data"] == await fetch("/item/19"))

# %% [markdown]
# ## 2. One call for all
#
# *Single flight*: the first miss starts a task, and whoever comes meanwhile waits for the same task. It must belong to no caller, for callers get cancelled; so each waits through a `shield`. It stores its answer itself, and is forgotten when it ends. An error goes to all who wait, and is not kept.

# %% tags=["predict"]
leader_guess = predict("06.3", "50 readers wait for one shared task, each with await task. The reader who started it is cancelled. Who gets the value?", {
    "a": "The other 49: cancelling a reader is that reader's affair.",
    "b": "Nobody: the cancellation goes on into the task, and all wait for that.",
    "c": "The other 49, after a second call: the next in line starts again.",
}, guess="")
lru_guess = predict("06.4", "@functools.lru_cache stands on an async def. It is awaited twice, one after the other, with the same argument. The second time?", {
    "a": "A hit: it returns the value.",
    "b": "A miss: lru_cache does nothing for coroutines, so it calls again.",
    "c": "An error: what was kept is the coroutine, and it is used up.",
}, guess="")

# %% tags=["experiment"]
def single_flight(load, hold=asyncio.shield):
    kept, flights = cachetools.TTLCache(maxsize=1000, ttl=60), {}
    async def fill(key: str):
        kept[key] = value = await load(key)  # stored within the flight: no reader comes between its end and the store
        return value
    async def read(key: str):
        if (value := kept.get(key, flights)) is not flights: return value  # flights: an object that is never a value
        if key not in flights:
            flights[key] = asyncio.create_task(fill(key))
            flights[key].add_done_callback(lambda _: flights.pop(key))
        return await hold(flights[key])
    return read

# %% tags=["experiment"]
async def price(key: str, path: str = "/item/17", delay: float = 0.03) -> dict:
    async with aiohttp.request("GET", upstream.url_for(path, delay=delay), raise_for_status=True) as response: return await response.json()
async def broken(key: str) -> dict: return await price(key, "/status/503", delay=0)
async def nothing(key: str) -> None: await price(key, delay=0)

async def crowd(read, readers: int = 50, leaver: bool = False) -> tuple[int, int]:  # calls that the upstream saw, and readers who got an answer
    async def reader(): return await read("17")
    _, tasks = upstream.reset(), [asyncio.create_task(reader()) for _ in range(readers)]
    await asyncio.sleep(0)  # each has made its first step
    if leaver: tasks[0].cancel()  # as its timeout would
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    return (await upstream.settled())["requests"], sum(not isinstance(answer, BaseException) for answer in answers[leaver:])

# %% tags=["experiment"]
def by_hand(load):
    kept = cachetools.TTLCache(maxsize=1000, ttl=60)
    async def read(key: str): return kept[key] if key in kept else kept.setdefault(key, await load(key))
    return read
def in_memory(way: str, **options):
    def decorate(load):
        (own := cashews.Cache()).setup("mem://", check_interval=0)  # 0: without its background task
        return getattr(own, way)(ttl=60, **options)(load)
    return decorate
WAYS = {"cachetools by hand": by_hand, "one task, no shield": functools.partial(single_flight, hold=lambda flight: flight), "single flight": single_flight, "async_lru.alru_cache": async_lru.alru_cache(ttl=60),
        "aiocache.cached": aiocache.cached(ttl=60), "aiocache.cached_stampede": aiocache.cached_stampede(ttl=60), "cashews cache": in_memory("cache"), "cashews cache, lock=True": in_memory("cache", lock=True),
        "cashews early": in_memory("early"), "cashews soft": in_memory("soft"), "functools.lru_cache": functools.lru_cache}

# %% tags=["experiment"]
print(f"{'50 readers of a new key':28}{'calls':>8}{'served':>9}{'calls, if':>12}{'others served, if':>20}{'calls for':>14}\n{'they fail':>57}{'the first leaves':>20}{'None, 3 times':>14}")
table = {}
for name, way in WAYS.items():
    failing, empty = way(broken), way(nothing)
    ended = await crowd(way(price)), await crowd(failing), await crowd(way(price), leaver=True), sum([(await crowd(empty, 1))[0] for _ in range(3)])
    table[name] = *ended[0], ended[1][0], ended[2][1], ended[3], ended[2][0]
    print("{:28}{:8}{:9}{:12}{:20}{:14}".format(name, *table[name]))
for verdict, column, bad in (("stampede", 0, 50), ("let all through when a call fails", 2, 50), ("lose all when the first leaves", 3, 0), ("never keep None", 4, 3)): print(f"{verdict}:", ", ".join(name for name, row in table.items() if row[column] == bad))
once = functools.lru_cache(price)  # lru_cache keeps what the call returns: a coroutine
_, second = [(await asyncio.gather(asyncio.wait_for(once("17"), 5), return_exceptions=True))[0] for _ in range(2)]
leader_guess.settle("b" if (ended := table["one task, no shield"])[3] == 0 else "a" if ended[5] == 1 else "c", "without a shield; behind one, the other 49 are served")
lru_guess.settle("c" if isinstance(second, RuntimeError) else "a" if once.cache_info().hits else "b", f"second time: {second!r}")

# %% tags=["experiment"]
def forgiving(load, good: dict, negative_s: float):
    failed = cachetools.TTLCache(maxsize=1000, ttl=negative_s)  # negative entries: errors, kept for a short time
    async def read(key: str):
        if (error := failed.get(key)) is None:
            try: good[key] = answer = await load(key); return answer  # a miss: the TTL of all we have is over
            except aiohttp.ClientError as caught: failed[key] = error = caught
        if key in good: return good[key]  # stale-if-error: old, and better than nothing
        raise error
    return read
print("the upstream is down, 50 reads in turn. Calls, and readers served:")
for name, read in {"errors forgotten": single_flight(broken), "negative caching": forgiving(broken, {}, 60), "and stale-if-error": forgiving(broken, {"17": "old"}, 60)}.items():
    print(f"  {name:20s}", *map(sum, zip(*[await crowd(read, 1) for _ in range(50)])))

# %% [markdown]
# ## 3. The moment of expiry
#
# A key is read lam times a second, at random; a new value takes delta. Meanwhile all miss: 1 + lam delta calls, a *stampede*. A lock or a flight leaves one. *Stale-while-revalidate* (SWR) serves the old value. *XFetch* renews early: each reader draws U from (0, 1], and calls once now - beta delta ln U reaches the expiry.

# %% tags=["predict"]
stampede_guess = predict("06.5", "50 reads a second, 0.2 s for a new value, one expiry. How many calls does a dictionary with a TTL make? With a lock around the miss it is 1 call: how many readers wait?", {
    "a": "1, as the first one fills the cache. Nobody waits.",
    "b": "About 11. With the lock 1 reader waits, the one who calls.",
    "c": "About 11. With the lock, still about 11 wait.",
    "d": "50, a second's worth. With the lock, 49 wait.",
}, guess="")
early_guess = predict("06.6", "A tutorial on XFetch, with beta = 1: (1) 'exactly one refresh per expiry, for any fleet'; (2) 'a read renews with a chance of 63 % at delta before expiry, 18 % at 5 delta'. Which holds?", {
    "a": "Both.",
    "b": "(1) only: about 37 % and under 1 %.",
    "c": "(2) only: about 2.7 refreshes.",
    "d": "Neither: about 2.7 refreshes; about 37 % and under 1 %.",
}, guess="")

# %% tags=["experiment"]
def now() -> float: return asyncio.get_running_loop().time()
async def read(key, policy: str):
    early = -key.beta * key.delta * math.log(1 - key.dice.random()) if policy == "XFetch" else 0
    if now() + early < key.expires: return  # a hit
    if policy == "SWR": return key.flight()  # not awaited: past this soft TTL, the old value is answer enough
    if policy == "single flight": await key.flight()
    elif policy == "lock":
        async with key.lock:
            if now() >= key.expires: await key.load()  # look again: somebody may have been here
    else: await key.load()  # naive, and XFetch
    key.waiting[-1] += 1
CLOSED = {"naive": (11, 11), "lock": (1, 11), "single flight": (1, 11), "SWR": (1, 0), "XFetch": (math.e, math.e)}  # 11 = 1 + lam delta; e^(1/beta)

# %% tags=["experiment"]
class Key:  # of a cache on the virtual clock: lam reads a second, delta seconds for a new value
    def __init__(self, lam=50.0, delta=0.2, ttl=1.2, beta=1.0) -> None:
        self.lam, self.delta, self.ttl, self.beta, self.expires, self.loading, self.task = lam, delta, ttl, beta, ttl, 0, None
        self.calls, self.waiting, self.lock, self.dice = [], [], asyncio.Lock(), random.Random(1)
    async def load(self) -> None:
        if not self.loading: self.calls.append(0), self.waiting.append(0)  # another expiry
        self.calls[-1], self.loading = self.calls[-1] + 1, self.loading + 1
        await asyncio.sleep(self.delta)
        self.loading, self.expires = self.loading - 1, now() + self.ttl
    def flight(self) -> asyncio.Task:
        if self.task is None or self.task.done(): self.task = asyncio.create_task(self.load())
        return self.task

# %% tags=["figure"]
async def expiries(policy: str, count: int, **knobs: float) -> tuple[float, float, float]:  # for each expiry: calls, readers that waited, seconds to the next
    async with asyncio.TaskGroup() as readers:
        key = Key(**knobs)
        while len(key.calls) <= count:  # the last one is cut short, and left out
            readers.create_task(read(key, policy))
            await asyncio.sleep(key.dice.expovariate(key.lam))
    return statistics.mean(key.calls[:-1]), statistics.mean(key.waiting[:-1]), now() / len(key.calls)
seen, (figure, panels) = {policy: simulate(expiries, policy, 400 if policy == "XFetch" else 60) for policy in CLOSED}, new_figure(height=2.7, columns=2)
for column, (panel, what) in enumerate(zip(panels, ("calls", "readers"))):
    figures.bars(panel, {name: counts[column] for name, counts in seen.items()}, unit="", theory={name: counts[column] for name, counts in CLOSED.items()}, digits=1)
    panel.set(title=("How many calls?", "How many readers wait?")[column], xlabel=f"{what} for each expiry (mean)", xlim=(0, 13.5)), panel.legend(loc="lower right")
show(figure, alt="Calls and waiting readers for each expiry. Naive: 11 and 11. Lock and single flight: 1 call, 11 wait. SWR: 1 and 0. XFetch: 2.7 and 2.7. Theory ticks agree.")

# %% tags=["experiment"]
assert all(abs(one - expected) <= 0.1 * expected for name in CLOSED for one, expected in zip(seen[name], CLOSED[name]))
stampede_guess.settle("a" if seen["naive"][0] < 2 else "d" if seen["naive"][0] > 20 else "c" if seen["lock"][1] > 5 else "b", "simulated, and within 10 % of 1 + lam delta, 1 and e^(1/beta): a lock protects the origin, SWR the readers, too")
def at_expiry(lam: float, delta: float, beta: float, count=1000, seed=1) -> tuple[float, float]:  # the rule of read() for many expiries, each at time 0
    dice, ahead = np.random.default_rng(seed), beta * delta * (math.log(lam * beta * delta) + 9)  # earlier, nobody renews
    reads = dice.exponential(1 / lam, (count, int(1.2 * lam * (ahead + delta)) + 50)).cumsum(axis=1) - ahead
    renews = reads - beta * delta * np.log(1 - dice.random(reads.shape)) >= 0
    first = reads[np.arange(count), renews.argmax(axis=1)]
    return (renews & (reads < first[:, None] + delta)).sum() / count, -first.mean()  # calls; mean lead of the first, in seconds
chance = [100 * np.mean(-np.log(1 - np.random.default_rng(1).random(10**6)) >= deltas) for deltas in (1, 5)]
fleets = [at_expiry(lam, 0.2, 1.0)[0] for lam in (50, 500)]
assert all(abs(calls - math.e) < 0.1 * math.e for calls in fleets) and all(abs(percent - 100 * math.exp(-t)) < 0.1 for percent, t in zip(chance, (1, 5)))

# %% tags=["figure"]
BETAS, LAM, DELTA = (0.5, 0.7, 1.0, 1.4, 2.0), 250, 0.2  # reads per second, seconds
calls, leads = zip(*[zip(*[at_expiry(LAM, DELTA, beta, seed=seed) for seed in (1, 2, 3)]) for beta in BETAS])
figure, panels = new_figure(height=3, columns=2)
for panel, runs, lines, formula in ((panels[0], calls, map(theory.xfetch_recomputations, BETAS), "e^(1 / beta)"),
                                    (panels[1], leads, [theory.xfetch_mean_lead(LAM, DELTA, beta) for beta in BETAS], "beta delta (ln(lam beta delta) + 0.577)")):
    assert figures.measured_against_theory(panel, BETAS, runs, list(lines), formula=formula, label="3 x 1000 expiries: median, range") < 0.1
    panel.set(xlabel="beta", ylim=(0, 1.4 * panel.get_ylim()[1])), panel.legend(loc="upper left")
panels[0].set(title="How many calls for one expiry?", ylabel="calls for each expiry"), panels[1].set(title="How long before it does the first come?", ylabel="lead (s)")
show(figure, alt="Against beta from 0.5 to 2: calls for each expiry fall from 7.4 to 1.6, the lead of the first call grows from 0.4 to 2 s. Points lie on both theory lines.")
early_guess.settle({(True, True): "a", (True, False): "b", (False, True): "c"}.get((fleets[0] < 1.5, chance[1] > 10), "d"),
                   "50 or 500 reads a second, it is e^(1/beta): each delta nearer to the expiry, readers renew that much more often")

# %% [markdown]
# ### Try it
#
# Each move simulates the expiries again. Which knobs change the number of naive calls? Then make the reads rare, and beta small: where does the formula for XFetch fail, and why? On the right, a longer TTL helps everybody. What does it cost?

# %% tags=["widget", "nbval-ignore-output"]
def expiry_knobs(lam: int, delta: float, ttl: float, beta: float) -> None:
    calls = {"naive": 1 + lam * delta, "single flight": 1, "SWR": 1, "XFetch": theory.xfetch_recomputations(beta)}
    waiting = calls | {"single flight": 1 + lam * delta, "SWR": 0}
    seen = {name: simulate(expiries, name, max(20, round(4000 / (lam * ttl))), lam=lam, delta=delta, ttl=ttl, beta=beta) for name in calls}
    a_minute = {name: 60 / seconds for name, (_, _, seconds) in seen.items()}  # expiries
    figure, (left, right) = new_figure(height=2.5, columns=2)
    figures.bars(left, {name: seen[name][0] for name in calls}, unit="", theory=calls, digits=1)
    figures.bars(right, {name: a_minute[name] * seen[name][1] for name in calls}, unit="", theory={name: a_minute[name] * waiting[name] for name in calls}, digits=0)
    left.set(title="How many calls?", xlabel="calls for each expiry; dashed: theory"), right.set(title="How many readers wait?", xlabel="readers in a minute; dashed: theory")
    show(figure, alt=f"Calls for each expiry, and readers that wait in a minute: {lam} reads/s, delta {delta:g} s, TTL {ttl:g} s, beta {beta:g}.")
_ = widgets.interact(expiry_knobs, lam=widgets.IntSlider(50, 5, 100, 5), delta=widgets.FloatSlider(value=0.2, min=0.05, max=0.5, step=0.05),
                     ttl=widgets.FloatSlider(value=2, min=1, max=10, step=0.5), beta=widgets.FloatSlider(value=1, min=0.5, max=2, step=0.1))

# %% [markdown]
# ## 4. How long, and how much?
#
# Entries leave a cache for two reasons: their time is over, or their place is needed. A TTL bounds how old an answer may be, and so the hit ratio. A *size bound* evicts, mostly the entry that was *least recently used* (LRU). And what was stored together expires together, unless each TTL has some *jitter*.

# %% tags=["predict"]
ttl_guess = predict("06.7", "A key is read every 10 s on average, at random. It is kept for 10 s. What is its hit ratio?", {
    "a": "Nearly 0: it is gone when the next read comes.",
    "b": "50 %.",
    "c": "63 %, which is 1 - 1/e: the chance that the next read comes within 10 s.",
    "d": "Nearly 100 %.",
}, guess="")
jitter_guess = predict("06.8", "1000 keys are stored together for 2 s, and read all the time: 1000 misses in the same 50 ms. Now each TTL is 20 % longer or shorter, by chance. The worst 50 ms?", {
    "a": "1000 misses: later, but no fewer.",
    "b": "About 800: 20 % fewer.",
    "c": "Below 100: they spread over 0.8 s.",
}, guess="")
scan_guess = predict("06.9", "An LRU cache has 100 places. A job reads 101 keys, round and round. What is the hit ratio?", {"a": "99 %: 100 of 101 are there.", "b": "About half.", "c": "0 %."}, guess="")

# %% tags=["experiment"]
def hit_share(rates: list[float], ttl: float, seed: int, reads: int = 3000) -> float:  # Poisson reads, rates[k] a second of key k
    clock, dice, hits = 0.0, random.Random(seed), 0
    kept = cachetools.TTLCache(maxsize=math.inf, ttl=ttl, timer=lambda: clock)  # the library takes any clock
    for number, key in enumerate(dice.choices(range(len(rates)), rates, k=2 * reads)):
        clock += dice.expovariate(sum(rates))
        if key not in kept: kept[key] = True
        elif number >= reads: hits += 1  # the first half warms the cache
    return 100 * hits / reads
even = [hit_share([0.1], 10, seed) for seed in range(3)]
ttl_guess.settle(min({"a": 0, "b": 50, "c": 63, "d": 95}.items(), key=lambda option: abs(option[1] - statistics.median(even)))[0], "lam T / (1 + lam T), with lam T = 1: each miss opens a window with one more read in it, on average")

# %% tags=["figure"]
TTLS, WEIGHTS = (0.03, 0.1, 0.3, 1, 3), [1 / (rank + 1) for rank in range(1000)]  # seconds; Zipf's law
ONE, ZIPF = [10.0], [1000 * weight / sum(WEIGHTS) for weight in WEIGHTS]  # reads per second of each key
(figure, axes), residuals = new_figure(height=3.2), []
for rates, name, marker in ((ONE, "one key, 10 reads/s", "o"), (ZIPF, "1000 keys, Zipf, 1000 reads/s", "s")):
    expected = [100 * sum(rate * theory.hit_ratio(rate, ttl) for rate in rates) / sum(rates) for ttl in TTLS]
    runs = [[hit_share(rates, ttl, seed) for seed in range(3)] for ttl in TTLS]
    residuals.append(figures.measured_against_theory(axes, TTLS, runs, expected, formula="lam T / (1 + lam T)" if rates is ONE else "its mean over all reads", label=name, marker=marker))
axes.set(title="How many reads does a TTL save?", xlabel="TTL T (s), logarithmic", ylabel="hit ratio (%)", xscale="log", xticks=TTLS, xticklabels=TTLS, ylim=(0, 100)), axes.minorticks_off(), axes.legend()
show(figure, alt="Hit ratio against the TTL from 0.03 to 3 s, for one key and for 1000 keys by Zipf's law. Both rise along their theory lines.")
assert max(residuals) < 0.1

# %% tags=["experiment"]
def scan(kept, keys: int, rounds: int = 50) -> float:
    hits = 0
    for number in range(keys * rounds):
        if kept.get(number % keys) is None: kept[number % keys] = True
        else: hits += 1
    return 100 * hits / (keys * rounds)
print(f"LRU, 100 places: {scan(cachetools.LRUCache(100), 100):.0f} % hits for 100 keys,", f"{(share := scan(cachetools.LRUCache(100), 101)):.0f} % for 101: each key is thrown out just before it is read again")
scan_guess.settle("a" if share > 90 else "b" if share > 10 else "c", f"evicting at random instead: {'over 90 %' if scan(cachetools.RRCache(100, choice=random.Random(1).choice), 101) > 90 else 'no better'}")
for kept in (cachetools.LRUCache(1000), cachetools.LRUCache(1 << 20, getsizeof=len)):
    for number in range(1000): kept[number] = bytes(20_000)
    print("a bound in", "entries:" if kept.maxsize == 1000 else "bytes:  ", len(kept), "answers of 20 kB kept, in all", round(sum(map(len, kept.values())) / 1e6), "MB")

# %% tags=["figure"]
def misses(spread: float, keys=1000, ttl=2.0, step=0.05):  # all keys are stored at 0, and then read every 50 ms, for 8 s
    clock, dice = 0.0, random.Random(1)
    kept = cachetools.TLRUCache(maxsize=keys, ttu=lambda key, value, now: now + ttl * dice.uniform(1 - spread, 1 + spread), timer=lambda: clock)
    for clock in np.arange(0, 8 + step, step).round(2):
        yield len(gone := [number for number in range(keys) if number not in kept])
        kept.update(dict.fromkeys(gone, True))
(_, *same), (_, *jittered), (figure, axes) = misses(0), misses(0.2), new_figure(height=3)
axes.vlines(0.05 * (1 + np.flatnonzero(same)), 0, 110, color=figures.BLOCKED, linestyle=":", label=f"TTL 2 s: {max(same)}, off the scale")
axes.plot(np.arange(1, 161) * 0.05, jittered, color=figures.MEASURED, label="2 s, 20 % more or less")
axes.hlines([theory.jitter_level(1000, width, 0.05) for width in (0.8, 2)], (1.6, 4), (2.4, 8), color=figures.THEORY, linestyle="--", label="theory: n step / (0.4 T), later n step / T"), axes.legend(ncols=3, loc="upper left", columnspacing=1.2), axes.set(title="How many of 1000 keys are missed at once?", xlabel="time since they were stored (s)", ylabel="misses in 50 ms", ylim=(0, 135), xlim=(0, 8.2))
show(figure, alt="Misses in each 50 ms. With equal TTLs 1000 at 2, 4, 6 and 8 s. With jitter a plateau near 62 around 2 s; later waves run into each other, near 25.")
jitter_guess.settle("c" if max(jittered) < 100 else "a" if max(jittered) > 900 else "b", f"{max(same)} misses in the worst 50 ms become {max(jittered)}, where jitter_peak expects {theory.jitter_peak(1000, 0.8, 0.05):.0f}; the mean of the last 4 s is {np.mean(jittered[80:]):.0f}")

# %% [markdown]
# ## 5. Two levels, the usual way
#
# A process has its own memory, and Redis is shared. So the usual design asks three *levels* in turn: a local dict (L1), Redis (L2), the origin. The obvious code for it is short, and looks right. We serve it with two workers, two processes as in production, and look closely.

# %% tags=["predict"]
usual_guess = predict("06.10", "cache.set(key, value, ttl=300) writes to Redis for 300 s, and to a local cache that keeps everything for 60 s. How old can an answer be? "
                      "And what does a client see while Redis is down?", {
    "a": "60 s; the answer still comes, from the origin.",
    "b": "300 s; the answer still comes, from the origin.",
    "c": "360 s; the answer still comes, from the origin.",
    "d": "360 s; an error.",
}, guess="")

# %% tags=["experiment"]
# %%module usual_cache
import json
import time
from cachetools import TTLCache
class MultiLevelCache:
    def __init__(self, client, local_s=60, clock=time.monotonic): self.client, self.local = client, TTLCache(1000, local_s, clock)
    async def get(self, key):
        if key in self.local: return self.local[key]
        if raw := await self.client.get(key): self.local[key] = json.loads(raw)
        return self.local.get(key)
    async def set(self, key, value, ttl=300):
        self.local[key] = value
        await self.client.set(key, json.dumps(value), px=int(1000 * ttl))

# %% tags=["experiment"]
# %%module usual_app
import aiohttp, os, fastapi, usual_cache
from redis.asyncio import Redis
app, cache = fastapi.FastAPI(), usual_cache.MultiLevelCache(Redis.from_url(os.environ["CACHE"]))
@app.get("/multilevel-cache/{key}")
async def read(key: str):
    if value := await cache.get(key): return {"data": value, "cache_level": "local"}
    async with aiohttp.request("GET", f"{os.environ['ORIGIN']}/item/{key}") as answer: value = await answer.json()
    await cache.set(key, value)
    return {"data": value, "cache_level": "origin"}
@app.get("/cache-stats")
async def stats(): return {"cache_hits": getattr(cache, "hits", 0), "cache_misses": getattr(cache, "misses", 0)}

# %% tags=["experiment"]
from usual_cache import MultiLevelCache
now = [0.0]  # the clock of the local levels, in seconds; Redis has its own
async with Redis.from_url(redis.url) as client:
    writer, reader = (MultiLevelCache(client, local_s=60, clock=lambda: now[0]) for _ in range(2))
    await writer.set("price", 1, ttl=0.4)
    assert await reader.get("price") == 1
    while await client.exists("price"): await asyncio.sleep(0.02)
    ages = {}
    for now[0] in (59, 61): ages[now[0]] = [await each.get("price") for each in (writer, reader)]
print("set(ttl=0.4), and Redis has dropped it. What do writer and reader answer?", *[f"  {at} s later: {seen}" for at, seen in ages.items()], sep="\n")
adds_up = ages == {59: [1, 1], 61: [None, None]}

# %% tags=["experiment"]
redis = start_redis()
with serve("usual_app:app") as worker:  # a process of its own; this notebook is a second one
    async with aiohttp.ClientSession(worker.url) as session, Redis.from_url(redis.url) as client:
        async def ask(path: str):
            async with session.get(path) as answer: return await answer.json() if answer.status == 200 else answer.status
        await (here := MultiLevelCache(client)).set("2", {"price": 2})
        levels, hits = [(await ask(f"/multilevel-cache/{key}"))["cache_level"] for key in (1, 1, 2)], redis.stats()["keyspace_hits"]
        await here.set("1", {"price": "new"})
        shown, stats, _ = (await ask("/multilevel-cache/1"))["data"]["price"], await ask("/cache-stats"), redis.kill()
        outage = [await ask(f"/multilevel-cache/{key}") for key in range(3, 8)]
print(f"levels: {levels}, but Redis had {hits} hit; a new price from elsewhere is shown: {shown == 'new'}", stats, outage, sep="\n")
usual_guess.settle(("d" if 500 in outage else "c") if adds_up else "b", "each copy starts a clock of its own, and nobody catches the error")

# %% [markdown]
# ## 6. What do two levels buy?
#
# With hit ratios h and times t, a read takes T = h1 t1 + (1 - h1)(h2 t2 + (1 - h2) t3), and of lam reads a second the origin sees lam (1 - h1)(1 - h2). A popular key in the memories of W workers misses W/TTL times a second; in one shared Redis, 1/TTL times.

# %% tags=["predict"]
workers_guess = predict("06.11", "16 workers keep a popular key in memory for 10 s. How many origin calls in 10 s? And with Redis behind them, where it lives for 10 s, and in memory for 1 s?", {
    "a": "1 and 1: an in-memory cache works for all workers.",
    "b": "16 and 1.",
    "c": "16 and 16: each worker still fetches its own copy.",
    "d": "16 and 10: the memory forgets each second.",
}, guess="")

# %% tags=["experiment"]
redis, cost_us, sizes = start_redis(), {}, {"100 B": 1, "10 kB": 100, "1 MB": 10_000}
async with Redis.from_url(redis.url) as client, aiohttp.ClientSession(upstream.url) as session:
    async def miss() -> bytes: return await (await session.get("/item/1?delay=0.05")).read()
    for size, count in sizes.items():
        await client.set(size, raw := json.dumps(["x" * 90] * count))
        async def memory_hit() -> list: return json.loads(raw)  # each reader gets a copy of its own
        async def redis_hit() -> list: return json.loads(await client.get(size))
        for name, read in {f"memory, {size}": memory_hit, f"Redis, {size}": redis_hit, "origin": miss}.items():
            cost_us[name] = [await probes.cost_us(read, 1 if read is miss else 10) for _ in range(5)]
cost = {name: min(runs) for name, runs in cost_us.items()}  # a busy machine only adds
assert 10 * cost["memory, 100 B"] < cost["Redis, 100 B"] < cost["origin"] / 10 and cost["Redis, 1 MB"] < 10 * cost["memory, 1 MB"]

# %% tags=["experiment"]
def served(workers: int, local_s: float, redis_s: float, seed: int, lam: float = 40, seconds: float = 400) -> list[int]:
    """How many Poisson reads of one key memory, Redis (redis_s=0: there is none) and the origin answer."""
    dice, now, redis_end, ends, counts = random.Random(seed), 0.0, 0.0, [0.0] * workers, [0, 0, 0]
    while (now := now + dice.expovariate(lam)) < seconds:
        level = 0 if now < ends[who := dice.randrange(workers)] else 1 if now < redis_end else 2
        if level == 2: redis_end = now + redis_s
        if level: ends[who] = min(now + local_s, redis_end) if redis_s else now + local_s  # a copy ends with that in Redis
        counts[level] += 1
    return counts
WORKERS, LAM, TTL_S, LOCAL_S = (1, 2, 4, 8, 16), 40, 10, 1  # reads a second of one key; seconds in Redis, or without it; in memory
alone, both = [[np.array([served(w, *ttls, seed) for seed in range(3)]) for w in WORKERS] for ttls in ((TTL_S, 0), (LOCAL_S, TTL_S))]
calls = [TTL_S * np.median([counts[-1] for counts in runs[-1]]) / 400 for runs in (alone, both)]

# %% tags=["figure"]
figure, (left, right) = new_figure(height=3.7, columns=2)
figures.ladder(left, {name: np.array(cost_us[name]) / 1000 for name in sorted(cost, key=cost.get)}, unit="ms")
for name, runs, law, formula, marker in (("memory only", alone, [w / (1 + w / LAM / TTL_S) for w in WORKERS], "W / (1 + W / (lam TTL))", "o"),
                                         ("memory and Redis", both, [1 / (1 + 1 / LAM / TTL_S)] * 5, "1 / (1 + 1 / (lam TTL))", "s")):
    assert figures.measured_against_theory(right, WORKERS, [each[:, 2] * TTL_S / 400 for each in runs], law, formula=formula, label=name, marker=marker) < 0.05
right.set(title="How often is the origin asked?", xlabel="workers W", ylabel="origin calls per TTL, for one key", xscale="log", yscale="log", xticks=WORKERS, xticklabels=WORKERS, ylim=(0.7, 60))
_ = right.minorticks_off(), right.set_yticks(WORKERS, WORKERS), right.legend(loc="upper left"), left.set_title("What does a read cost, by size?")
show(figure, alt="Left, bars on a logarithmic axis: memory is the cheapest, the origin with its 50 ms the dearest; for 1 MB, memory and Redis lie close together. Right: with memory only, origin calls grow with the workers; with Redis there is one per TTL.")
h1, lost, times = [theory.hit_ratio(LAM / w, LOCAL_S) for w in WORKERS], 1 - theory.hit_ratio(LAM, TTL_S), [cost[name] for name in ("memory, 100 B", "Redis, 100 B", "origin")]
assert all(abs(np.median(runs @ times / runs.sum(1)) / np.dot((h, 1 - h - lost, lost), times) - 1) < 0.05 for h, runs in zip(h1, both)), "lost = (1 - h1)(1 - h2)"
workers_guess.settle({(True, True): "b", (True, False): "d", (False, True): "a"}.get((calls[0] > 10, calls[1] < 5), "c"), f"simulated, on the theory's lines: {calls[0]:.0f} and {calls[1]:.0f}; T within 5 % of its formula")

# %% [markdown]
# ## 7. A cache that holds
#
# Now the finished one, in six small steps. Each mends one of the failures above. First Redis, which may be slow or away: every command has a time limit, and something that stands in for its answer. Keys carry a version, and are quoted, so that no key can pass for another.

# %% tags=["predict"]
flight_guess = predict("06.12", "100 requests for one cold key, 50 in each of two worker processes. Each process has single flight. How many origin calls? "
                       "And what happens when Redis is killed under load?", {
    "a": "1 call: single flight. Then errors, as Redis holds the values.",
    "b": "2 calls: processes share no memory. Then errors.",
    "c": "1 call, if a lease in Redis says who loads. Then no error, if the code expects it.",
    "d": "100 calls. Then the origin gets all the load.",
}, guess="")

# %% tags=["experiment"]
# %%module redis_level
import asyncio
import redis
from urllib.parse import quote
class RedisLevel:
    def __init__(self, client, space="item:v1", limit_s=0.5): self.client, self.space, self.limit_s = client, space, limit_s
    def names(self, key): return [f"{self.space}:{quote(key, safe='')}{end}" for end in ("", ":lease")]
    async def ask(self, command, otherwise):
        try:
            async with asyncio.timeout(self.limit_s): return await command
        except (redis.RedisError, OSError, TimeoutError): return otherwise
    async def invalidate(self, key) -> bool:  # the lease goes too: who loads at this moment must not store what it got
        return bool(await self.ask(self.client.pipeline().delete(*self.names(key)).publish(self.space, key).execute(), False))

# %% tags=["experiment"]
# %%module shared_level
import redis_level, time
GRAB = """local raw = redis.call('get', KEYS[1])  if raw then return {raw, redis.call('pttl', KEYS[1])} end
return {false, redis.call('set', KEYS[2], ARGV[1], 'nx', 'px', ARGV[2]) and 1 or 0}  -- a lease: a lock that ends"""
STORE = """if redis.call('get', KEYS[2]) ~= ARGV[1] then return 0 end  -- it has ended, or is somebody else's by now
if tonumber(ARGV[3]) > 0 then redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3]) end  return redis.call('del', KEYS[2])"""
class SharedLevel(redis_level.RedisLevel):
    async def grab(self, key, token, lease_s=5):  # the value and its end; or None, and whether we are to load it
        asked = time.monotonic()
        raw, number = await self.ask(self.client.eval(GRAB, 2, *self.names(key), token, int(1000 * lease_s)), (None, 1))
        return raw, number if raw is None else asked + number / 1000
    async def store(self, key, token, raw, seconds) -> bool:  # the lease goes back in any case
        return bool(await self.ask(self.client.eval(STORE, 2, *self.names(key), token, raw, int(1000 * seconds)), True))

# %% tags=["experiment"]
# %%module local_level
import asyncio, cachetools, collections, math, shared_level, time
# raw is encoded, so that each reader gets a copy; b"" is: there is none. The times are time.monotonic(), which nobody sets back.
Entry = collections.namedtuple("Entry", "raw fresh_until again_at", defaults=(b"", -math.inf, -math.inf))
class LocalLevel:
    ttl_s, local_s, missing_s, stale_s, load_s, max_bytes, origin_limit = 60, 10, 5, 300, 3, 16 << 20, 4
    def __init__(self, client, load, **settings):
        vars(self).update(settings, load=load, shared=shared_level.SharedLevel(client), flights={}, reads=collections.Counter())
        self.local, self.slots = cachetools.LRUCache(self.max_bytes, lambda entry: len(entry.raw)), asyncio.Semaphore(self.origin_limit)
    def keep(self, key, raw, end, level):  # no longer than Redis does; and not if it was invalidated meanwhile
        end = min(end, time.monotonic() + self.local_s)
        if self.flights.get(key) is asyncio.current_task() and len(raw) < self.max_bytes: self.local[key] = Entry(raw, end, end)
        return raw, level

# %% tags=["experiment"]
# %%module filling
import asyncio, json, local_level, math, random, secrets, time
class Filling(local_level.LocalLevel):
    async def fill(self, key):
        token, began, raw, life_s = secrets.token_hex(8), time.monotonic(), b"", 0
        while (found := await self.shared.grab(key, token)) == (None, 0): await asyncio.sleep(0.02)  # another process loads it
        if found[0] is not None: return self.keep(key, *found, "redis")
        try:
            async with asyncio.timeout(self.load_s), self.slots: raw = json.dumps(await self.load(key)).encode()
            life_s = self.ttl_s * random.uniform(0.8, 1)
        except KeyError: life_s = self.missing_s  # a negative entry, for a shorter time
        finally: mine = await self.shared.store(key, token, raw, began + life_s - time.monotonic())
        return self.keep(key, raw, began + life_s if mine else -math.inf, "origin")

# %% tags=["experiment"]
# %%module flying
import asyncio, filling, time
class Flying(filling.Filling):
    async def fly(self, key, old):  # single flight: the first reader starts a task, which no reader can cancel
        if key not in self.flights:
            self.flights[key] = asyncio.create_task(self.fill(key))
            self.flights[key].add_done_callback(lambda done: self.flights.pop(key) if self.flights.get(key) is done else None)
        try: return await asyncio.shield(self.flights[key])
        except Exception:
            if time.monotonic() > old.fresh_until + self.stale_s: raise
            self.local[key] = old._replace(again_at=time.monotonic() + self.missing_s)  # let the origin rest
            return old.raw, "stale"

# %% tags=["experiment"]
# %%module tiered
import flying, json, local_level, time
class TieredCache(flying.Flying):
    async def get(self, key):  # the value and the level it came from; KeyError if the origin has none
        entry, now = self.local.get(key, local_level.Entry()), time.monotonic()
        if now < entry.again_at: raw, level = entry.raw, "local" if now < entry.fresh_until else "stale"
        else: raw, level = await self.fly(key, entry)
        self.reads[level] += 1
        if not raw: raise KeyError(key)
        return json.loads(raw), level
    def forget(self, key): self.local.pop(key, None), self.flights.pop(key, None)
    async def invalidate(self, key) -> bool:
        return (await self.shared.invalidate(key), self.forget(key))[0]

# %% tags=["experiment"]
# %%module listening
import asyncio, contextlib, redis
async def listen(cache):  # to what others invalidate
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            async with cache.shared.client.pubsub(ignore_subscribe_messages=False) as channel:
                await channel.subscribe(cache.shared.space)
                async for message in channel.listen():
                    if message["type"] == "message": cache.forget(message["data"].decode())
                    else: cache.local.clear(), cache.flights.clear()  # subscribed anew: what was said meanwhile is lost
        await asyncio.sleep(0.1)

# %% tags=["experiment"]
# %%module tiered_life
import aiohttp, asyncio, contextlib, listening, os, tiered, time
from redis.asyncio import Redis
@contextlib.asynccontextmanager
async def lifespan(app):
    async with aiohttp.ClientSession(os.environ["ORIGIN"], raise_for_status=True) as session, Redis.from_url(os.environ["CACHE"]) as client:
        async def load(key: str) -> dict:
            born = time.time()  # so that each answer can tell its age
            async with session.get(f"/item/{key}?delay=0.05") as answer: return {"born": born, **await answer.json()}
        app.state.cache = tiered.TieredCache(client, load, ttl_s=0.8, local_s=0.4)
        listener = asyncio.create_task(listening.listen(app.state.cache))
        yield
        listener.cancel()

# %% tags=["experiment"]
# %%module tiered_app
import time, tiered_life
from fastapi import FastAPI, Path
from typing import Annotated
app = FastAPI(lifespan=tiered_life.lifespan)
@app.get("/cached-data/{key}")
@app.get("/multilevel-cache/{key}")
async def read(key: Annotated[str, Path(pattern="^[a-z0-9-]{1,64}$")]):  # it becomes a part of the origin's URL
    value, level = await app.state.cache.get(key)
    return {"data": value, "cache_level": level, "age": time.time() - value["born"]}
@app.get("/cache-stats")
async def stats(): return dict(app.state.cache.reads)

# %% tags=["experiment"]
redis, _ = start_redis(), upstream.reset()
workers = await asyncio.gather(*[asyncio.to_thread(serve, "tiered_app:app", name=name) for name in ("P", "Q")])
async def ask(session, worker, path: str) -> tuple[int, dict]:
    async with session.get(worker.url + path) as answer: return answer.status, await answer.json() if answer.status < 500 else {}
async with aiohttp.ClientSession() as session:
    answers = await asyncio.gather(*[ask(session, worker, "/multilevel-cache/cold") for worker in workers * 50])
    odd, _ = await ask(session, workers[0], "/cached-data/x%3Fadmin%3D1")  # x?admin=1, which would be a query at the origin
    stats = [(await ask(session, worker, "/cache-stats"))[1] for worker in workers]
calls = upstream.stats()["by_endpoint"]["item"]
print(f"answers: {[status for status, _ in answers].count(200)}, origin calls: {calls}, reads in the statistics: {sum(map(Counter, stats), Counter()).total()}")
print("a key that is no name gets the status", odd)
assert calls == 1

# %% tags=["experiment"]
async def reader(session, seed: int) -> None:
    for key in random.Random(seed).choices(range(40), k=80):
        started, (_, body) = clock(), await ask(session, workers[seed % 2], f"/multilevel-cache/{key}")
        seen.append((clock(), body.get("cache_level", "error"), body.get("age", 0), clock() - started))
        await asyncio.sleep(0.01)
redis, seen, clock, _ = start_redis(), [], time.monotonic, upstream.reset()
async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
    for seed in range(16): group.create_task(reader(session, seed))
    await asyncio.sleep(0.5)
    gone = [clock(), await asyncio.to_thread(redis.kill)]
    await asyncio.sleep(0.3)
    redis, gone[1] = await asyncio.to_thread(start_redis), clock()

# %% tags=["figure"]
(figure, axes), began, TTL_S = new_figure(height=3.4), seen[0][0], 0.8
for level, marker, colour in (("local", ".", figures.WAITING), ("redis", "s", figures.NETWORK), ("origin", "^", figures.BLOCKED)):
    axes.plot(*zip(*[(at - began, age) for at, name, age, _ in seen if name == level]), marker, color=colour, markersize=5, label=level)
axes.axhline(TTL_S, color=figures.THEORY, linestyle="--", label="TTL")
_ = axes.axvspan(*np.subtract(gone, began), color=figures.READY, alpha=0.2), axes.text(sum(gone) / 2 - began, 0.9, "Redis is gone", ha="center")
_ = axes.set(title="How old is each answer, and where did it come from?", xlabel="time (s)", ylabel="age (s)", ylim=(0, 1)), axes.legend(loc="upper left", ncols=4)
show(figure, alt="Each answer as a point, its age against time. All lie below the dashed line, the TTL. While Redis is gone, shaded, answers go on, from local copies and from the origin.")
levels, peak = Counter(name for _, name, *_ in seen), upstream.stats()["peak_in_flight"]
too_old = sum(age - took > TTL_S + 0.1 for *_, age, took in seen)  # 0.1 s, because storing takes time, too
assert any(gone[0] < at < gone[1] and name == "origin" for at, name, *_ in seen) and peak <= 2 * 4
print(f"answers: {len(seen)}, errors: {levels['error']}, older than the TTL: {too_old}; each process had at most 4 calls at the origin at once")
flight_guess.settle({1: "a" if levels["error"] else "c", 2: "b"}.get(calls, "d"), f"origin calls for the 100: {calls}; errors while Redis was gone: {levels['error']}")

# %% tags=["experiment"]
from tiered import TieredCache
redis, calls, stock = start_redis(), Counter(), {"price": 0}
async def origin(key: str): return calls.update([key]) or stock[key]
async with Redis.from_url(redis.url) as client:
    cache = TieredCache(client, origin, ttl_s=0.4)
    for key in ("price", "nothing") * 5:
        with contextlib.suppress(KeyError): await cache.get(key)
    print("5 reads of a price of 0, 5 of what the origin does not have; origin calls:", dict(calls))
    stock, _ = None, await asyncio.sleep(0.5)  # the price is too old now, and the origin fails
    levels = Counter([(await cache.get("price"))[1] for _ in range(100)])
    print("100 reads while the origin fails:", dict(levels), "- origin calls:", calls["price"] - 1)

# %% tags=["experiment"]
for worker in workers: worker.stop()
# Invalidation: what the writer does at a change, and what all other processes do all the time
LOCAL_S, LOOK_S = 0.4, 0.1  # how long a local copy lives; how often the version is looked up
from listening import listen
async def watch_version(cache) -> None:  # one number in Redis is a part of every key
    while True:
        space = f"item:v{int(await cache.shared.client.get('version') or 1)}"
        if cache.shared.space != space: cache.shared.space, _ = space, cache.local.clear()
        await asyncio.sleep(LOOK_S)
WAYS = {"delete": (lambda p: p.shared.client.delete(*p.shared.names("price")), lambda q: asyncio.sleep(9)),
        "raise the version": (lambda p: p.shared.client.set("version", 2), watch_version),
        "delete and publish": (lambda p: p.invalidate("price"), listen)}

# %% tags=["experiment"]
async def window_s(way: str) -> float:  # from the change at p until q shows it
    async with Redis.from_url(redis.url) as one, Redis.from_url(redis.url) as two:
        (change, follow), prices = WAYS[way], [1]
        p, q = (TieredCache(client, lambda key: asyncio.sleep(0, prices[-1]), local_s=LOCAL_S) for client in (one, two))
        _, stop = await one.flushdb(), asyncio.create_task(follow(q)).cancel
        while follow is listen and not (await one.pubsub_numsub(p.shared.space))[0][1]: await asyncio.sleep(0.01)
        _, _, changed, _ = [await each.get("price") for each in (p, q)], prices.append(2), time.perf_counter(), await change(p)
        while (await q.get("price"))[0] == 1: await asyncio.sleep(0.002)
        return (time.perf_counter() - changed, stop())[0]
windows = {way: min([await window_s(way) for _ in range(3)]) for way in WAYS}  # a busy machine only adds
print("The window is shorter than with delete alone:",
      *[f"  {way}, over {times} times: {windows['delete'] > times * windows[way]}" for way, times in (("raise the version", 1.5), ("delete and publish", 4))], sep="\n")

# %% [markdown]
# ## 8. In production: cashews
#
# cashews does most of this as a decorator: `cache.setup("redis://...")`, `lock=True` for one call per fleet, `client_side=True` for copies in memory which Redis itself invalidates. Its traps: `early` is a soft TTL, not XFetch; values are pickles, unsigned without `secret=`; and when Redis fails it logs, and calls your function, without a limit.

# %% tags=["experiment"]
logging.getLogger("cashews").setLevel(logging.CRITICAL)  # or it logs each command that fails, with its traceback
def worker_with(lock: bool):  # the cache and the function that one process has
    (own := cashews.Cache()).setup(redis.url)
    async def load(key: str) -> str: return calls.update([key[:4]]) or await asyncio.sleep(0.1, key)
    return own, own(ttl="10s", key="item:{key}", lock=lock)(load)
redis, calls = start_redis(), Counter()
fleet = {name: [worker_with(name == "lock=True") for _ in range(2)] for name in ("default", "lock=True")}
for name, pair in fleet.items(): await asyncio.gather(*[load(name) for _, load in pair * 50])
redis.kill()
answers = await asyncio.gather(*[fleet["default"][0][1](f"cold{number}") for number in range(30)])
_ = [await own.close() for pair in fleet.values() for own, _ in pair]
print(f"origin calls for 100 reads in two workers: {calls['defa']}, with a lock {calls['lock']}; for {len(answers)} cold keys without Redis: {calls['cold']}")

# %% [markdown]
# ## Spot the bug
#
# Which line? Decide, then run the proof. First a loader. Then a lock around a slow load. Then a cache of pages of 200 kB, in a process with 100 MB, which a job reads from the first page to the last, again and again.
#
# ```python
# 1  async def load(name):
# 2      async with session.get(f"https://api.example.com/items/{name}") as answer:
# 3          return await answer.json()
# ```
#
# ```python
# 1  while not await client.set("lock", "1", nx=True, px=5000):
# 2      await asyncio.sleep(0.02)
# 3  try:
# 4      await client.set(key, await load(key))
# 5  finally:
# 6      await client.delete("lock")
# ```
#
# ```python
# 1  pages = TTLCache(maxsize=1000, ttl=60)
# 2  async def page(number):
# 3      if number not in pages:
# 4          pages[number] = await render(number)
# 5      return pages[number]
# ```

# %% tags=["spot"]
def asked_for(name: str) -> str: return yarl.URL(f"https://api.example.com/items/{name}").raw_path_qs  # as aiohttp reads it
for name in ("lamp", "x?admin=1", "x#part", ".."):
    print(f"{name:10s} pasted: {asked_for(name):20s} quoted: {asked_for(quote(name, safe=''))}")
print("line 2: a key is data, a URL is code. Quote it; and against '..', accept known characters only")

# %% tags=["spot"]
redis = start_redis()
UNLOCK = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
async with Redis.from_url(redis.url) as client:
    async def third_enters(release) -> bool:
        await client.delete("lock")
        await client.set("lock", "A", nx=True, px=20)  # A has it, and is too slow
        while not await client.set("lock", "B", nx=True, px=5000): await asyncio.sleep(0.01)
        await release()  # A is done; B is not
        return bool(await client.set("lock", "C", nx=True, px=5000))
    print("line 6: A deletes the lock of B, and C enters beside B:", await third_enters(lambda: client.delete("lock")))
    print("A deletes it only if it still holds A's token, in one step:", await third_enters(lambda: client.eval(UNLOCK, 1, "lock", "A")))

# %% tags=["spot"]
now, hits, page = [0.0], {}, lambda: np.zeros(200_000, np.uint8)
for numbers in (1000, 1001):
    pages = TTLCache(1000, 60)
    read = [number in pages or pages.update({number: 1}) for number in list(range(numbers)) * 3]
    hits[numbers] = round(100 * read[numbers:].count(True) / (2 * numbers))
print("a job that reads all pages in turn; hits in %, by number of pages:", hits)
pages, small = TTLCache(1000, 60, timer=lambda: now[0]), TTLCache(16 << 20, 60, getsizeof=len)
for number in range(1000): pages[number], small[number] = page(), page()
print("line 1: maxsize counts entries:", sum(map(len, pages.values())) // 10**6, "MB; with getsizeof=len, bytes:", sum(map(len, small.values())) // 10**6, "MB")
last, now[0] = weakref.ref(pages[999]), 61
print("a minute later:", pages.get(999), "- but it is in memory:", last() is not None, "- and after expire():", pages.expire() and last() is not None)

# %% [markdown]
# ## Exercises
#
# 6.1 and 6.3 run on the virtual clock, 6.2 on a clock that it is given, 6.4 on your Redis.
#
# **6.1 Single flight.** Write a class `SingleFlight()`: callers of `get` with the same key share one load. It belongs to none of them: one who leaves must hurt nobody, and when all have left nobody needs it.
#
# <details><summary>Hint 1</summary>The first caller starts the load. To whom does it belong when that caller leaves?</details>
# <details><summary>Hint 2</summary>A task for the load, kept by key; every caller awaits <code>asyncio.shield(task)</code>. Count who waits, and forget the task when it is done.</details>
# <details><summary>Hint 3</summary><code>try: return await asyncio.shield(flight.task)</code>, <code>finally: flight.waiting -= 1</code>, and if nobody is left and the task is not done: remove the flight from the dict, then cancel the task.</details>

# %% tags=["exercise", "check"]
class SingleFlight:
    """One load for all who wait for a key. No cache: when the load is over, nothing is kept."""

    def __init__(self) -> None:
        raise NotImplementedError

    async def get(self, key, load):
        """Return what `await load()` returns, or raise its error, for everyone who waits for `key`.

        A caller that is cancelled leaves at once. When the last one leaves, the load is cancelled;
        who comes after that starts a new one, also while the old one still cleans up.
        """
        raise NotImplementedError

check("6.1", SingleFlight)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
class SingleFlightSolution:
    def __init__(self) -> None:
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

    def forget(self, key, flight) -> None:
        if self.flights.get(key) is flight:
            del self.flights[key]

check("6.1", SingleFlightSolution)

# %% [markdown]
# **6.2 Bounded in time and bytes.** Write a class `TTLCache`. Entries end at different times, "there is none" is remembered too, and memory has a limit in bytes. Nothing runs in the background: look at the time when somebody asks.
#
# <details><summary>Hint 1</summary>When does an entry have to be gone: when its time is up, or when somebody asks?</details>
# <details><summary>Hint 2</summary>Keep (end, size, value) in an OrderedDict, and look at the end in <code>get</code>. Draw the jitter once, in <code>put</code>.</details>
# <details><summary>Hint 3</summary><code>end = clock() + ttl * uniform(1 - jitter, 1 + jitter)</code>; <code>move_to_end(key)</code> in get; in put take the old entry's size off first, then <code>popitem(last=False)</code> while the new one does not fit.</details>

# %% tags=["exercise", "check"]
class TTLCache:
    """clock() is the time in seconds; uniform(a, b) a random number. A life is drawn once, at put:
    evenly from (1 - jitter) to (1 + jitter) times ttl, or times negative_ttl."""

    def __init__(self, ttl: float, negative_ttl: float, jitter: float, max_bytes: int, clock, uniform) -> None:
        raise NotImplementedError

    def get(self, key: str) -> tuple:
        """(True, value), (True, None) after put_negative, or (False, None). Frees what it finds expired."""
        raise NotImplementedError

    def put(self, key: str, value) -> None:
        """An entry takes len(key) + len(value) bytes. The least recently used go first. One that is too
        large for the cache is not kept, nor is the older one of that key."""
        raise NotImplementedError

    def put_negative(self, key: str) -> None:
        """Remember that there is nothing. It takes len(key) bytes."""
        raise NotImplementedError

check("6.2", TTLCache)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
class TTLCacheSolution:
    def __init__(self, ttl: float, negative_ttl: float, jitter: float, max_bytes: int, clock, uniform) -> None:
        self.ttl, self.negative_ttl, self.jitter, self.max_bytes, self.clock, self.uniform = ttl, negative_ttl, jitter, max_bytes, clock, uniform
        self.entries, self.used = OrderedDict(), 0
    def get(self, key: str) -> tuple:
        if key not in self.entries:
            return False, None
        if self.clock() >= self.entries[key][0]:
            self.drop(key)
            return False, None
        self.entries.move_to_end(key)
        return True, self.entries[key][2]
    def put(self, key: str, value) -> None:
        self.store(key, value, len(key) + len(value), self.ttl)
    def put_negative(self, key: str) -> None:
        self.store(key, None, len(key), self.negative_ttl)
    def store(self, key: str, value, size: int, ttl: float) -> None:
        self.drop(key)
        while self.entries and size <= self.max_bytes < self.used + size:
            self.drop(next(iter(self.entries)))
        if size <= self.max_bytes:
            self.entries[key] = (self.clock() + ttl * self.uniform(1 - self.jitter, 1 + self.jitter), size, value)
            self.used += size
    def drop(self, key: str) -> None:
        self.used -= self.entries.pop(key, (0, 0))[1]

check("6.2", TTLCacheSolution)

# %% [markdown]
# **6.3 Refresh before the end.** Write a class `XFetch`. Each reader of a value decides alone, by a random number, whether to refresh it early. The check compares how many do, and when, with the two closed forms of this chapter.
#
# <details><summary>Hint 1</summary>A popular entry must be refreshed before it ends, by one or two of its many readers. How does a reader decide alone?</details>
# <details><summary>Hint 2</summary>Refresh when <code>now - beta * delta * log(1 - random()) &gt;= end</code>, with the delta that the last load took. The refresh goes into a task, kept in a set.</details>
# <details><summary>Hint 3</summary><code>early = -beta * entry.delta * math.log(1 - random())</code>; if <code>now + early &gt;= entry.end</code>, start a task that measures <code>loop.time()</code> around <code>await load(key)</code>.</details>

# %% tags=["exercise", "check"]
class XFetch:
    """load(key) is a coroutine; its value lives ttl seconds from the end of the load, by loop.time().
    random() is from 0.0, included, to 1.0, excluded."""

    def __init__(self, load, ttl: float, beta: float, random) -> None:
        raise NotImplementedError

    async def get(self, key):
        """Return a value whose time is not up; wait for a load only when there is none.

        A refresh runs beside the readers; one that fails costs nobody a value that is still good.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """End every refresh, and return when none is running."""
        raise NotImplementedError

check("6.3", XFetch)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
class XFetchSolution:
    def __init__(self, load, ttl: float, beta: float, random) -> None:
        self.load, self.ttl, self.beta, self.random = load, ttl, beta, random
        self.entries, self.tasks = {}, set()
    async def get(self, key):
        now, (value, end, delta) = asyncio.get_running_loop().time(), self.entries.get(key, (None, -math.inf, 0.0))
        if now >= end:
            return await self.refresh(key)
        if now - self.beta * delta * math.log(1 - self.random()) >= end:
            task = asyncio.create_task(self.refresh(key))
            self.tasks.add(task)
            task.add_done_callback(self.done)
        return value
    def done(self, task) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the next reader will try again
    async def refresh(self, key):
        loop = asyncio.get_running_loop()
        start = loop.time()
        value = await self.load(key)
        self.entries[key] = (value, loop.time() + self.ttl, loop.time() - start)
        return value
    async def close(self) -> None:
        for task in list(self.tasks): task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

check("6.3", XFetchSolution)

# %% [markdown]
# **6.4 Two levels with Redis.** Write a class `TwoLevel` for a service of several processes. They share a Redis and a lock in it, and each keeps a copy for `local_ttl` seconds. The check runs four of them, kills one with the lock in its hand, and takes Redis away.
#
# <details><summary>Hint 1</summary>Four processes miss at once. What do all of them see, and who may remove it?</details>
# <details><summary>Hint 2</summary><code>SET lock token NX PX lease</code>: who gets it loads, the others look again until the value is there. A script deletes the lock only if it still holds one's own token.</details>
# <details><summary>Hint 3</summary>The script: <code>if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end</code>. Around it all, <code>except RedisError</code>, then load under <code>asyncio.Semaphore(fallback)</code>.</details>

# %% tags=["exercise", "check"]
class TwoLevel:
    """redis: a redis.asyncio client. load(key) returns what JSON can hold. Times are in seconds.

    Every key in Redis begins with `prefix` and expires: values after ttl, the lock after lease.
    Redis down: the value comes from load, no more than `fallback` at once, and no error comes out.
    """

    def __init__(self, redis, load, prefix: str, ttl: float, local_ttl: float, lease: float, fallback: int) -> None:
        raise NotImplementedError

    async def get(self, key: str):
        """One load for all processes. An error of load comes out, and is not kept."""
        raise NotImplementedError

    async def invalidate(self, key: str) -> None:
        """This process forgets the value at once, the others within local_ttl."""
        raise NotImplementedError

check("6.4", TwoLevel)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"
class TwoLevelSolution:
    def __init__(self, redis, load, prefix, ttl, local_ttl, lease, fallback) -> None:
        self.redis, self.load, self.prefix, self.ttl, self.local_ttl, self.lease = redis, load, prefix, ttl, local_ttl, lease
        self.local, self.room = {}, asyncio.Semaphore(fallback)
    async def get(self, key: str):
        if self.local.get(key, (0,))[0] <= time.monotonic():
            try: text = await self.shared(key, self.prefix + key)
            except RedisError:
                async with self.room: text = json.dumps(await self.load(key))
            self.local[key] = (time.monotonic() + self.local_ttl, text)
        return json.loads(self.local[key][1])
    async def shared(self, key: str, name: str) -> str:
        lock, token = name + ":lock", secrets.token_hex(8)
        while (text := await self.redis.get(name)) is None:
            if not await self.redis.set(lock, token, nx=True, px=round(1000 * self.lease)):
                await asyncio.sleep(0.01); continue
            try:
                if (text := await self.redis.get(name)) is None:  # nobody was quicker
                    await self.redis.set(name, text := json.dumps(await self.load(key)), px=round(1000 * self.ttl))
                return text
            finally: await self.redis.eval(RELEASE, 1, lock, token)
        return text
    async def invalidate(self, key: str) -> None:
        self.local.pop(key, None)
        with contextlib.suppress(RedisError): await self.redis.delete(self.prefix + key)

check("6.4", TwoLevelSolution)

# %% [markdown]
# ## Recap
#
# | you will meet | what it costs (measured above) | do this instead |
# |---|---|---|
# | look, await, store | 100 misses at once are 100 origin calls | single flight: one task per key, `shield` around it |
# | `if cached:` | `0`, `""`, `[]`, `None` are fetched for ever | a sentinel, one lookup |
# | `if key in cache: return cache[key]` | a `KeyError` when it expires in between | `cache.get(key, MISSING)` |
# | hit and miss counters that nobody raises | `getattr(cache, "hits", 0)` says 0 for ever | count where the answer is given, by level and by class of key |
# | one label for all hits | "local", and Redis had answered | return the level with the value |
# | `set(ttl=...)` that only Redis hears | the local copy outlives it by a minute | local end = what `PTTL` says, or sooner |
# | TTLs of two levels | they add up | count from the load, not from the copy |
# | a memory per worker | W workers ask W times, and disagree for a TTL | a shared level, a short local TTL, invalidation |
# | `DEL` as invalidation | the other processes go on with their copies | publish it, or a version in the key; the TTL is the last resort |
# | a load under way while you invalidate | it stores the old value afterwards | delete its lease as well; store only with a valid lease |
# | Redis as a part you cannot lose | Redis gone: every miss is a 500 | a time limit on each command, the origin instead, few at a time |
# | a fallback without a limit | the cold cache passes all load on: it amplifies the failure | a semaphore around the origin; warm up before traffic |
# | errors that are not remembered | each request asks the dead origin again | stale-if-error, and a pause; negative entries with a short TTL |
# | the cached object itself | a caller changes it for all | keep bytes, decode a copy per hit |
# | one TTL for all that is loaded together | it all expires together | plus or minus 20 % |
# | `maxsize=1000` | it counts entries: 1000 pages of 200 kB are 200 MB | `getsizeof`, a bound in bytes |
# | LRU and a job that reads everything | one entry too many, and no read is a hit | bypass the cache in such jobs, or LFU |
# | expired entries | gone from `len`, still in memory | `expire()` now and then |
# | `time.time()` for ages | a clock that is set back makes values young again | `time.monotonic()` |
# | a timer for each entry | the old timer deletes the new value | look at the end when reading |
# | a cachetools cache in a `def` route | threads corrupt it; some errors stay | a lock, or `async def` only |
# | a key pasted into a URL | `x?admin=1` becomes a query | a pattern at the edge, and quoting |
# | a Redis lock without a token | its slow owner deletes the next one's | token, Lua, and an end: a lease |
# | values that are pickles | reading one runs what its writer wants | JSON, or signed: cashews' `secret=` |
# | `print` on each request | a slow terminal stops the loop (chapter 04) | counters, and a log with levels |
#
# ### Take it with you
#
# ```python
# # cached.py: fetch URLs, each of them once, however often it is named. Use: python cached.py URL URL ...
# import asyncio
# import sys
# import time
#
# import aiohttp
#
# TTL_S, TIMEOUT_S = 60, 5
#
#
# class Cache:
#     """Values for TTL_S seconds, one call for all who wait, errors to all of them and not kept."""
#
#     def __init__(self, load) -> None:
#         self.load, self.kept, self.flights = load, {}, {}
#
#     async def get(self, key: str):
#         value, until = self.kept.get(key, (None, 0.0))
#         if time.monotonic() < until:
#             return value
#         if key not in self.flights:
#             self.flights[key] = asyncio.create_task(self.fill(key))
#             self.flights[key].add_done_callback(lambda _: self.flights.pop(key))
#         return await asyncio.shield(self.flights[key])  # one who leaves takes nobody along
#
#     async def fill(self, key: str):
#         value = await self.load(key)
#         self.kept[key] = value, time.monotonic() + TTL_S  # bound it in bytes before it grows, as above
#         return value
#
#
# async def main(urls: list[str]) -> None:
#     timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
#     async with aiohttp.ClientSession(raise_for_status=True, timeout=timeout) as session:
#
#         async def load(url: str) -> bytes:
#             async with session.get(url) as answer:
#                 return await answer.read()
#
#         cache = Cache(load)
#         for url, body in zip(urls, await asyncio.gather(*map(cache.get, urls), return_exceptions=True)):
#             failed = isinstance(body, BaseException)
#             print(url, f"- failed: {body!r}" if failed else f"- {len(body)} bytes")
#
#
# if __name__ == "__main__":
#     asyncio.run(main(sys.argv[1:]))
# ```
#
# ### Roads not taken
#
# Our cache is *read-through*. *Write-through* writes to cache and database at once, *write-behind* to the database later, and may lose it. HTTP has caches of its own (`Cache-Control`, ETag; hishel for clients). A cache hides a slow query until the first cold start.
#
# ### Further reading
#
# - [Optimal Probabilistic Cache Stampede Prevention](https://cseweb.ucsd.edu/~avattani/papers/cache_stampede.pdf): XFetch
# - [Scaling Memcache at Facebook](https://www.usenix.org/conference/nsdi13/technical-sessions/presentation/nishtala): leases, invalidation, cold clusters
# - [Redis: client-side caching](https://redis.io/docs/latest/develop/reference/client-side-caching/)
# - [Redis: distributed locks](https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/), and [Kleppmann's answer](https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html): why a lease needs a fencing token
# - [RFC 5861](https://www.rfc-editor.org/rfc/rfc5861): stale-while-revalidate, stale-if-error
# - [cashews](https://github.com/Krukov/cashews), [async-lru](https://github.com/aio-libs/async-lru), [cachetools](https://cachetools.readthedocs.io/)
#
# Chapter 07 watches such a service: rates, latencies, and what blocks its loop.

# %% tags=["cleanup"]
close_chapter()
