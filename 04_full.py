# %% [markdown]
# # Where does your handler really run?
#
# After this chapter you can say which code of a FastAPI service runs on the event loop, which in a thread, and what waits for what; find the handler that stops all others, and test a service as its clients meet it.
#
# You need chapters 01 to 03. You need no FastAPI and no web server: the notebook starts its own.

# %% tags=["setup"]
import asyncio, contextlib, contextvars, functools, io, itertools, json, math, pathlib, random, re, statistics, tempfile, time, timeit, warnings
from concurrent.futures import Future
from typing import Annotated, Any
from urllib.parse import urljoin

import aiohttp, httpx, psutil
import ipywidgets as widgets
import numpy as np
from asgi_lifespan import LifespanManager
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.sse import EventSourceResponse
from support import (check, close_chapter, figures, load, new_figure, occupy_loop, open_chapter, predict, probes, rivals, run_script,
    score, serve, show, simulate, theory)
with warnings.catch_warnings(action="ignore"):  # it would rather have httpx2, the successor of httpx
    from fastapi.testclient import TestClient

open_chapter("04_fastapi")
load.start()
print("Started: a load generator in a process of its own, on 127.0.0.1. The servers of this chapter start when they are measured.")

# %% [markdown]
# ## 1. What reaches your function?
#
# Between a server and a Python web framework stands *ASGI*: an application is an async function of three arguments. `scope` says what the request is, `receive()` waits for the client, `send()` answers. A FastAPI object is such a function, and so is each of its middlewares. You can call it by hand.

# %% tags=["experiment"]
async def bare(scope: dict, receive, send) -> None:  # a complete ASGI application
    message = await receive()  # a piece of the body; or, later, that the client has gone
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": f"{scope['method']} {scope['path']}: ".encode() + message["body"]})

async def call(app, *messages: dict, **scope) -> list[dict]:  # what a server does for each request
    inbox, sent = iter(messages), []
    async def receive() -> dict: return next(inbox, {"type": "http.disconnect"})
    async def send(message: dict) -> None: sent.append(message)
    await app({"asgi": {"version": "3.0"}, "headers": [], "query_string": b"", **scope}, receive, send)
    return sent
print(*await call(bare, {"type": "http.request", "body": b"Ada"}, type="http", method="POST", path="/users"), sep="\n")

# %% tags=["predict"]
@contextlib.asynccontextmanager
async def lifespan(app: FastAPI): yield {"database": "open"}  # before the yield: what all requests share is opened; after it, closed
app = FastAPI(lifespan=lifespan)
@app.get("/slow")
async def slow(request: Request) -> str: return await asyncio.sleep(0.2, request.state.database)
transport_guess = predict("04.1", "A test of this app uses httpx.AsyncClient(transport=ASGITransport(app), timeout=0.05). What does its GET /slow meet?", {
    "a": "What a user meets: the lifespan has run, and the client times out.",
    "b": "The lifespan has run, but nothing times out.",
    "c": "No lifespan: the handler finds no database. But a timeout that works.",
    "d": "No lifespan and no timeout: the transport calls the app by hand, as we did.",
}, guess="")

# %% tags=["experiment"]
async def ask(client, url: str = "http://test/slow", seconds: float = 0.05) -> str:
    try: return (client.get(url) if isinstance(client, TestClient) else await client.get(url, timeout=seconds)).json()
    except (AttributeError, httpx.TimeoutException) as error: return type(error).__name__

print("A server's first call is for the lifespan:", [sent["type"] for sent in await call(app, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}, type="lifespan", state={})])
with TestClient(app) as started, serve(app, in_process=True) as server:
    async with LifespanManager(app) as alive, httpx.AsyncClient(transport=httpx.ASGITransport(app)) as bare_client, httpx.AsyncClient(transport=httpx.ASGITransport(alive.app)) as managed, httpx.AsyncClient() as client:
        found = {"ASGITransport(app)": await ask(bare_client), "... in LifespanManager": await ask(managed), "TestClient(app)": await ask(TestClient(app)), "with TestClient(app)": await ask(started),
                 "a server": await ask(client, server.url + "/slow"), "... with a timeout of 5 s": await ask(client, server.url + "/slow", 5)}
print(*[f"{name:27s}{answer}" for name, answer in found.items()], sep="\n")
assert (found["a server"], found["... with a timeout of 5 s"]) == ("ReadTimeout", "open")
transport_guess.settle({("open", "ReadTimeout"): "a", ("open", "open"): "b", ("AttributeError", "ReadTimeout"): "c"}.get((found["ASGITransport(app)"], found["... in LifespanManager"]), "d"), "only a server did both by itself")

# %% [markdown]
# ## 2. A users API
#
# Two models, three routes, a docs page for nothing: most first services look like this one, and it works. We send it what the world sends, and count. Then a better one stands beside it. At last a program reads the schema of each, and tries to break its promises.

# %% tags=["predict"]
race_guess = predict("04.2", "POST /users awaits a check of the address, then appends a user with id max(ids) + 1. 100 clients post at once. How many ids are distinct? And when the same await stands after max(ids) + 1?", {
    "a": "100 and 100: one thread, so one request after the other.",
    "b": "Fewer than 100 both times: reading, then writing is a race.",
    "c": "100, then far fewer: other requests get in at an await, and nowhere else.",
    "d": "1 and 1: they all read the same list.",
}, guess="")

# %% tags=["experiment"]
# %%module users_read
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
class UserCreate(BaseModel): name: str; email: str
class User(UserCreate): id: int
app, users = FastAPI(), [User(id=n, name=f"user {n}", email=f"user{n}@example.org") for n in range(1, 10_001)]  # it has some history
@app.get("/users")
async def get_users(limit: int | None = None): return users[:limit]  # who thinks of the limit?
app.get("/annotated", response_model=list[User])(get_users)  # the same function, and FastAPI is told what it returns
@app.get("/users/{user_id}")
async def get_user(user_id: int):
    if not (found := next((user for user in users if user.id == user_id), None)): raise HTTPException(404)
    return found

# %% tags=["experiment"]
# %%module users_naive
import asyncio
from users_read import User, UserCreate, app, users
async def checked(email: str) -> str: return await asyncio.sleep(0.02, email)  # another service looks at it
@app.post("/users")
async def create_user(user: UserCreate):
    user.email = await checked(user.email)
    users.append(User(id=max(known.id for known in users) + 1, **dict(user)))
    return users[-1]
@app.post("/users/moved")
async def create_moved(user: UserCreate):  # the same, but for the place of the await
    users.append(User(id=max(known.id for known in users) + 1, name=user.name, email=await checked(user.email)))
    return users[-1]

# %% tags=["experiment"]
async def post(server, path: str, number: int) -> dict:
    async with session.post(server.url + path, json={"name": f"new {number}", "email": f"new{number}@example.org"}) as answer: return await answer.json()

async def same(server, user: dict) -> str:
    async with session.get(f"{server.url}/users/{user['id']}") as answer: return "404" if answer.status == 404 else "the user" if await answer.json() == user else "another user"

one, two = await asyncio.gather(*[asyncio.to_thread(serve, "users_naive:app", name=f"worker {n}") for n in (1, 2)])
async with aiohttp.ClientSession() as session:
    to = random.Random(5).choices((one, two), k=48)  # a load balancer
    made = [await post(to[n], "/users", n) for n in range(24)]
    read_back = [await same(server, user) for server, user in zip(to[24:], made)]
    distinct = [len({user["id"] for user in await asyncio.gather(*[post(one, path, n) for n in range(100)])}) for path in ("/users", "/users/moved")]
print(f"two workers gave {len({user['id'] for user in made})} distinct ids to 24 users; read back:", {kind: read_back.count(kind) for kind in sorted(set(read_back))})
race_guess.settle("a" if min(distinct) == 100 else "d" if max(distinct) == 1 else "c" if distinct[0] == 100 and distinct[1] < 60 else "b", f"as written {distinct[0]} of 100; with the await moved {'fewer' if distinct[1] < 60 else 'no fewer'} than 60")

# %% tags=["experiment"]
import users_naive
CASES = {"a user": {}, "the same again": {}, "no e-mail address": {"email": "Ada"}, "an empty name": {"name": ""}, "a name of 20 kB": {"name": 20_000 * "x"}, "7 as a name": {"name": 7}}
async def answers(url: str) -> dict[str, str]:  # what POST /users answers
    found = {}
    for case, change in CASES.items():
        async with aiohttp.request("POST", url + "/users", json={"name": "Ada", "email": "ada@example.org"} | change) as answer: found[case] = f"{answer.status} {answer.headers.get('Location', '')}"
    return found
with serve(users_naive.app, in_process=True) as server:
    kept, users_naive.users[:] = users_naive.users[:], []
    on_empty, users_naive.users[:] = await answers(server.url), kept
    before = await answers(server.url)
print(f"{'POST':20s}without users   with 10,000", *[f"{case:20s}{on_empty[case]:16s}{before[case]}" for case in CASES], sep="\n")

# %% tags=["experiment"]
async def timed(path: str) -> tuple[float, float]:  # when it was asked for, and how long it took
    start = time.perf_counter()
    async with session.get(one.url + path) as answer: await answer.read()
    return start, time.perf_counter() - start

async def beside(path: str) -> list[tuple[float, float]]:  # GET path once, and GET /users/1 every 5 ms
    tasks = [asyncio.create_task(timed(path))]
    while not tasks[0].done() or len(tasks) < 12:
        await asyncio.sleep(0.005)
        tasks.append(asyncio.create_task(timed("/users/1")))
    return await asyncio.gather(*tasks)
async with aiohttp.ClientSession() as session:
    runs = {path: min([await beside(path) for _ in range(3)], key=lambda run: run[0][1]) for path in ("/users", "/annotated", "/users?limit=50")}

# %% tags=["figure"]
figure, axes = new_figure()
for path, name, mark, colour in (("/users?limit=50", "50 users", "^", figures.OTHER), ("/annotated", "10,000 users, return type declared", "s", figures.MEASURED), ("/users", "10,000 users", "o", figures.BLOCKED)):
    (asked, took), *others = runs[path]
    axes.plot([1000 * (start - asked) for start, _ in others], [1000 * seconds for _, seconds in others], mark, color=colour, label=f"beside a list of {name}")
axes.plot((0, 1000 * took), (1000 * took, 0), "--", color=figures.THEORY, zorder=1, label="theory: T - t, when the list is ready at T")
axes.set(title="Who waits while somebody lists all users?", xlabel="t: when GET /users/1 was sent, since the list was asked for (ms)", ylabel="until its answer came (ms)")
axes.legend(reverse=True)
show(figure, alt="Latency of GET /users/1 against when it was sent. Beside a list of 10,000 users it falls along the line T - t, from the whole time of the list to 0; beside the other two lists it stays near 0.")
residual = statistics.median(seconds / (asked + took - start) - 1 for start, seconds in others if start < asked + 0.5 * took)
first, last = (min(timeit.repeat(lambda: next(user for user in users_naive.users if user.id == sought), number=9)) for sought in (1, 10_000))
assert abs(residual) < 0.25 and (took / runs["/annotated"][0][1]) > 8 and (took / runs["/users?limit=50"][0][1]) > 20 and last > 100 * first
print("A list holds up everybody. Return type declared: over 8 times faster; 50 users: over 20 times. To find the last of\n10,000 users takes over 100 times as long as to find the first: the handler looks at one after the other.")

# %% tags=["experiment"]
# %%module user_model
from typing import Annotated
from email_validator import SPECIAL_USE_DOMAIN_NAMES
from fastapi import Path, Query
from pydantic import BaseModel, EmailStr, Field, StringConstraints
RESERVED = {"not": {"pattern": rf"[.@]({'|'.join(SPECIAL_USE_DOMAIN_NAMES)})$"}}  # EmailStr refuses these domains: clients should know
class UserCreate(BaseModel):
    name: Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"\S")]
    email: Annotated[EmailStr, Field(max_length=254, json_schema_extra=RESERVED)]
class User(UserCreate): id: int
class Problem(BaseModel): detail: str
Id, After, Limit = Annotated[int, Path(ge=1)], Annotated[int, Query(ge=0)], Annotated[int, Query(ge=1, le=200)]

# %% tags=["experiment"]
# %%module user_store
import itertools
from user_model import User, UserCreate
class EmailTaken(Exception): """Another user has this address."""
class Users:  # a repository: in memory here, and behind the same three methods in a database
    def __init__(self) -> None: self._ids, self._by_id, self._emails = itertools.count(1), {}, set()
    async def add(self, user: UserCreate) -> User:  # no await in here: nothing comes between the question and the deed
        if user.email.casefold() in self._emails: raise EmailTaken
        self._emails.add(user.email.casefold())
        return self._by_id.setdefault(new := next(self._ids), User(id=new, **dict(user)))
    async def get(self, user_id: int) -> User | None: return self._by_id.get(user_id)
    async def page(self, after: int, limit: int) -> list[User]:
        return [self._by_id[number] for number in range(after + 1, after + limit + 1) if number in self._by_id]

# %% tags=["experiment"]
# %%module users_app
import contextlib
from typing import Annotated
from fastapi import Depends, FastAPI, Request
from user_model import After, Limit, User
from user_store import Users
@contextlib.asynccontextmanager
async def lifespan(app: FastAPI): yield {"users": Users()}
app = FastAPI(title="Users", lifespan=lifespan, max_body_size=10_000, docs_url=None, redoc_url=None, swagger_ui_oauth2_redirect_url=None)
async def users_of(request: Request) -> Users: return request.state.users  # a dependency: a test may put another in its place
Store = Annotated[Users, Depends(users_of)]
@app.get("/users")
async def get_users(store: Store, after: After = 0, limit: Limit = 50) -> list[User]: return await store.page(after, limit)

# %% tags=["experiment"]
# %%module users_api
from fastapi import HTTPException, Response
from user_model import Id, Problem, User, UserCreate
from users_app import Store, app
@app.get("/users/{user_id}", responses={404: {"model": Problem}})
async def get_user(user_id: Id, store: Store) -> User:
    if not (user := await store.get(user_id)): raise HTTPException(404, f"There is no user {user_id}.")
    return user
@app.post("/users", status_code=201, responses=dict.fromkeys((400, 409, 413), {"model": Problem}))
async def create_user(user: UserCreate, store: Store, response: Response) -> User:
    new = await store.add(user)
    response.headers["Location"] = f"/users/{new.id}"
    return new

# %% tags=["experiment"]
# %%module users_web
from fastapi.responses import JSONResponse
from fastapi_swagger import patch_fastapi
from user_store import EmailTaken
from users_api import app
@app.exception_handler(EmailTaken)
async def taken(request, error) -> JSONResponse: return JSONResponse({"detail": "Another user has this address."}, 409)
@app.exception_handler(405)
async def wrong_method(request, error) -> JSONResponse:  # Starlette's Allow has the methods of one route, not those of the path
    documented = app.openapi()["paths"].get(request.scope["route"].path, ())
    return JSONResponse({"detail": error.detail}, 405, {"Allow": ", ".join(documented).upper() or error.headers["Allow"]})
patch_fastapi(app, redirect_from_root_to_docs=False)  # /docs, with Swagger UI out of a Python package

# %% tags=["experiment"]
import users_web
async def docs(url: str) -> tuple[list[str], list[int]]:  # other hosts that the page names; how the files of its own host answer
    async with httpx.AsyncClient() as client:
        page = (await client.get(url + "/docs")).text
        files = [link for link in re.findall(r'(?:src|href)="(.+?)"', page) if urljoin(url, link).startswith(url)]
        return sorted(set(re.findall(r"//([\w.-]+)", page)) - {"127.0.0.1"}), [(await client.get(urljoin(url, file))).status_code for file in files]
with serve(users_naive.app, in_process=True, name="naive") as naive, serve(users_web.app, in_process=True, name="finished") as server:
    after = await answers(server.url)
    (elsewhere, _), (nowhere, own) = await docs(naive.url), await docs(server.url)
assert own == [200, 200, 200] and not nowhere
print(*[f"{case:20s}{before[case]} -> {after[case]}" for case in CASES], f"/docs loads from {elsewhere} -> from its own server only: {len(own)} files, all there", sep="\n")
_ = one.stop(), two.stop()

# %% tags=["experiment"]
async def tested(*urls: str) -> list[dict]:  # Schemathesis reads a schema, makes up requests, and holds the answers against the schema
    with tempfile.TemporaryDirectory() as folder:  # it writes files where it runs
        options = ["--generation-deterministic", "--max-examples=10", "--suppress-health-check=all"]
        calls = [f"with contextlib.suppress(SystemExit): schemathesis({['run', url + '/openapi.json', *options, f'--report-json-path={n}.json']})" for n, url in enumerate(urls)]
        _ = await run_script("\n".join(["import contextlib, os", "from schemathesis.cli import schemathesis", f"os.chdir({folder!r})", *calls]), timeout=55)
        return [json.loads(pathlib.Path(folder, f"{n}.json").read_text("utf-8")) for n in range(len(urls))]
with serve(users_naive.app, in_process=True, name="naive") as naive, serve(users_web.app, in_process=True, name="finished") as finished:
    kept, users_naive.users[:] = users_naive.users[:], []
    reports, users_naive.users[:] = await tested(naive.url, finished.url), kept
for name, report in zip(("naive", "finished"), reports):
    assert report["complete"] and not report["errors"] and report["test_cases"]["generated"] > 100 and bool(report["failures"]) == (name == "naive")
    print(f"{name:9s} over 100 requests, failures:", sorted(failure["title"] for failure in report["failures"]) or "none")

# %% [markdown]
# ## 3. Is FastAPI as fast as Node and Go?
#
# "FastAPI performs close to Node.js and Go." Two routes decide. One says hello at once; one waits 100 ms, as a route that asks a database does. `support/rivals.py` starts the other servers, Node and Go where they are on PATH, and tells what CPU time a server has used: on a shared machine, the number to trust.

# %% tags=["predict"]
rival_guess = predict("04.3", "FastAPI as `pip install fastapi uvicorn` gives it, against the leanest of a bare ASGI function, Node and Go: what does a hello cost in CPU? "
                      "And with 30 connections, does the route that waits 100 ms reach 70 % of the 300 requests per second of Little's law?", {
    "a": "At most twice the CPU, and yes: the claim holds.",
    "b": "Over twice the CPU, and yes.",
    "c": "Over twice the CPU, and so no.",
    "d": "At most twice the CPU, but no: one thread waits for one request at a time.",
}, guess="")

# %% tags=["experiment"]
# %%module hello_layers
import asyncio, json, fastapi
from starlette import applications, responses, routing

framework, HELLO, HEADERS = fastapi.FastAPI(), {"message": "hello"}, [(b"content-type", b"application/json"), (b"content-length", b"20")]
@framework.get("/")
async def hello() -> dict[str, str]: return HELLO
@framework.get("/wait")
async def wait() -> dict[str, str]: return await asyncio.sleep(0.1, HELLO)
async def plain(request): return responses.JSONResponse(HELLO)
starlette = applications.Starlette(routes=[routing.Route("/starlette", plain)])
async def app(scope, receive, send):  # bare ASGI: two messages, and a path to each framework
    if scope.get("path") != "/raw": return await (starlette if scope.get("path") == "/starlette" else framework)(scope, receive, send)
    for part in ({"type": "http.response.start", "status": 200, "headers": HEADERS}, {"type": "http.response.body", "body": json.dumps(HELLO).encode()}): await send(part)

# %% tags=["experiment"]
hows = [("h11", {"loop": "asyncio", "http": "h11"}), ("httptools", {"loop": "asyncio", "http": "httptools"}), ("uvicorn", {})]  # {}: the best that is installed
starts = {name: functools.partial(serve, "hello_layers:app", name=name, **how) for name, how in hows} | {"granian": lambda: rivals.start_granian("hello_layers:app")} | rivals.present()
servers = dict(zip(starts, await asyncio.gather(*map(asyncio.to_thread, starts.values()))))

async def hello(name: str, path: str = "/", requests: int = 300) -> tuple[float, float, float]:  # CPU us, requests per second, client's busy share
    before = rivals.cpu_seconds(servers[name])
    run = await load.closed_loop(servers[name].url + path, concurrency=16, requests=requests)
    return 1e6 * (rivals.cpu_seconds(servers[name]) - before) / run.completed, run.rate, run.busy
async def httpx_us(client: httpx.AsyncClient, name: str, path: str) -> float:  # CPU time per request of httpx, here in the kernel
    before = time.process_time()
    for _ in range(6): await asyncio.gather(*[client.get(servers[name].url + path) for _ in range(16)])
    return 1e6 * (time.process_time() - before) / (6 * 16)
for name in rivals.present(): await hello(name, requests=6000)  # for so long its compiler learns

# %% tags=["figure"]
rows = {"FastAPI, asyncio + h11": ("h11", "/"), "FastAPI, asyncio + httptools": ("httptools", "/"), "FastAPI, uvloop + httptools": ("uvicorn", "/"),
        "FastAPI, granian": ("granian", "/"), "Starlette": ("uvicorn", "/starlette"), "bare ASGI": ("uvicorn", "/raw")} | {name: (name, "/") for name in rivals.present()}
runs = {name: [] for name in rows}
for name in [*rows] * 5: runs[name].append(await hello(*rows[name]))
cpu, rate = {name: min(runs[name])[0] for name in rows}, {name: max(run[1] for run in runs[name]) for name in rows}
client_s = min(busy / per_second for each in runs.values() for _, per_second, busy in each)  # the generator's own CPU time per request
figure, (left, right) = new_figure(height=3.4, columns=2, sharey=True)
for panel, values, unit in ((left, cpu, "µs"), (right, rate, "/s")): figures.bars(panel, values, unit=unit, digits=0)
right.axvline(1 / client_s, color=figures.BLOCKED, linestyle=":"); left.invert_yaxis()  # both panels have turned their common axis over
left.set(title="What does one hello cost the server?", xlabel="CPU per request (µs), best of 5 runs" + "".join(f"\n{name} is not on PATH: left out" for name in rivals.absent()))
right.set(title="What does a client see?", xlabel="requests per second, best of 5 runs\ndotted: what the client's own core can send", xlim=(0, 1.3 / client_s))
show(figure, alt="Two sets of bars. CPU per hello: FastAPI on h11 the most, about half on httptools, less with uvloop, then Starlette and bare ASGI, with Node, where present, about as low. Requests per second: the cheap servers come near a dotted line, the client's own limit.")

# %% tags=["experiment"]
reasons = [("FastAPI, asyncio + h11", 1.3, "FastAPI, asyncio + httptools", "h11 parses HTTP in Python, httptools in C"),
           ("FastAPI, asyncio + h11", 1.1, "FastAPI, granian", "granian parses in Rust, in threads beside the loop"),
           ("FastAPI, uvloop + httptools", 1.15, "Starlette", "FastAPI: dependencies, validation, serialisation"),
           ("Starlette", 1, "bare ASGI", "Starlette: router, request object, error handling")]
for dear, times, cheap, why in reasons + [("FastAPI, asyncio + h11", 1.5, name, "") for name in rivals.present()]: assert cpu[dear] > times * cpu[cheap], (dear, cheap, cpu)
print(*[f"{dear:28s}> {cheap:30s}{why}" for dear, times, cheap, why in reasons], sep="\n")
slow, fast, parser, uvloop = cpu["FastAPI, asyncio + h11"], cpu["bare ASGI"], *(cpu[f"FastAPI, {dear}"] - cpu[f"FastAPI, {cheap}"] for dear, cheap in (("asyncio + h11", "asyncio + httptools"), ("asyncio + httptools", "uvloop + httptools")))
async with httpx.AsyncClient() as client: costs = {"httpx": min([await httpx_us(client, *rows["bare ASGI"]) for _ in range(3)]), "generator": 1e6 * client_s}
by = {client: max(own, slow) / max(own, fast) for client, own in costs.items()} | {"CPU": slow / fast}  # who is slower, client or server, sets the pace
assert by["httpx"] == 1 and by["generator"] > 1.5 and by["CPU"] > 2.5, (by, costs)
print("httptools instead of h11 gains more than uvloop adds:", parser > uvloop, "\nFastAPI on h11 over bare ASGI, in CPU: over 2.5. The most that a client with one core can see of it:",
      "\nthe generator over 1.5; httpx nothing: a request costs httpx more than it costs either server")

# %% tags=["figure"]
AT_ONCE, WAIT_S = (10, 30, 100), 0.1  # connections c, each with one request at a time
async def waiting(name: str) -> list[list[float]]:
    return [[(await load.closed_loop(servers[name].url + "/wait", concurrency=c, requests=2 * c, warm_up=0.05)).rate] for c in AT_ONCE]
figure, axes = new_figure(height=3.2)
_ = figures.measured_against_theory(axes, AT_ONCE, rates := await waiting("h11"), [c / WAIT_S for c in AT_ONCE], formula="Little, X = c / 0.1 s", label="FastAPI, asyncio + h11")
for name, look in zip(rivals.present(), "x+"): axes.plot(AT_ONCE, await waiting(name), look, color=figures.BLOCKED, markersize=10, label=name)
axes.plot(AT_ONCE, [c / (WAIT_S + c * (cpu["FastAPI, asyncio + h11"] / 1e6 + client_s)) for c in AT_ONCE], ":", color=figures.OTHER, label="X = c / (0.1 s + c CPU), FastAPI's and the client's")
axes.set(title="And while the handler waits?", xlabel="connections c, each with one request that waits 100 ms", ylabel="requests per second", xticks=AT_ONCE, ylim=0); axes.legend(loc="upper left")
show(figure, alt="Requests per second against 10, 30 and 100 connections. FastAPI and, where present, Node and Go lie at Little's law, c over 0.1 seconds; at 100 connections below it, where a dotted line adds the CPU of c requests to the 0.1 seconds.")
rival_guess.settle({(False, True): "a", (True, True): "b", (True, False): "c"}.get((by["CPU"] > 2, rates[1][0] > 0.7 * AT_ONCE[1] / WAIT_S), "d"), "a wait takes connections, not CPU; a hello is nothing but CPU")
for server in servers.values(): server.stop()

# %% [markdown]
# ## 4. Four ways to wait
#
# A route waits S seconds, for a driver or another service. `async def` runs on the event loop, and must not hold it. `def` runs in a thread of anyio's pool, which sync dependencies and sync background tasks share. Where L requests can wait at once, a burst of N takes ceil(N/L) S, plus c for each request.

# %% tags=["predict"]
wait_guess = predict("04.4", "Each request calls a driver that blocks for 30 ms. 100 come at once. Which kind of route has answered them all first, and when?", {
    "a": "async def with the call in it: async def is always faster.",
    "b": "def, after about 30 ms: def means a thread for each request.",
    "c": "def, after about 90 ms: it has 40 threads, and asyncio.to_thread fewer.",
    "d": "async def with asyncio.to_thread, after about 30 ms: it awaits.",
}, guess="")

# %% tags=["experiment"]
# %%module waits_api
import asyncio, time, fastapi
app, inside, seen = fastapi.FastAPI(), [], [0]
def slow(seconds: float = 0) -> None:  # blocks its thread, as most drivers do; counts how many are in it at once
    inside.append(1), seen.append(len(inside)), time.sleep(seconds), inside.pop()
async def blocking(seconds: float = 0) -> None: slow(seconds)
async def threaded(seconds: float = 0) -> None: await asyncio.to_thread(slow, seconds)
async def awaited(seconds: float = 0) -> None:
    inside.append(1), seen.append(len(inside)), await asyncio.sleep(seconds), inside.pop()
async def most_at_once() -> int: return [max(seen), seen.clear(), seen.append(0)][0]
for path, route in {"/blocking": blocking, "/to_thread": threaded, "/def": slow, "/await": awaited, "/health": most_at_once}.items():
    app.get(path)(route)

# %% tags=["experiment"]
WAIT_S, REPEATS, CROWD, BURSTS = 0.03, 3, 7, {"blocking": (4, 7), "to_thread": (12, 36), "def": (100, 400), "await": (100, 400)}
waits, runs, most = serve("waits_api:app"), {}, {}
async def burst_s(route: str, requests: int) -> float:
    run = await load.closed_loop(f"{waits.url}/{route}?seconds={WAIT_S}", concurrency=requests, requests=requests)
    return (run.starts + run.latencies).max()
async def alone_s(route: str) -> float: return (await load.closed_loop(f"{waits.url}/{route}", concurrency=1, requests=80)).percentile(50)
async with httpx.AsyncClient(base_url=waits.url) as client:
    for route, sizes in BURSTS.items():
        runs[route], most[route] = [[await burst_s(route, n) for _ in range(REPEATS)] for n in sizes], (await client.get("health")).json()
hop = statistics.median([await alone_s("def") / await alone_s("await") for _ in range(REPEATS)])
print("waiting at once: blocking", most["blocking"], "- def", most["def"], "- to_thread fewer:", most["to_thread"] < 40, "- await over 100:", most["await"] > 100)
print("with nothing to wait for, def takes longer than async def, to a thread and back:", hop > 1.15)

# %% tags=["figure"]
(figure, axes), grid, best, limits = new_figure(height=4.2), np.arange(4, 401), {route: [min(group) for group in runs[route]] for route in runs}, most | {"await": 400}
for (route, sizes), marker, colour in zip(BURSTS.items(), "osD^", (figures.BLOCKED, figures.OTHER, figures.THEORY, figures.RUNNING)):
    above, cost_s, low_s = np.array(runs[route]).max(1) - best[route], (best["await"][1] - WAIT_S) / 400, [theory.waves_time(n, limits[route], WAIT_S) for n in sizes]
    line = axes.plot(grid, [theory.waves_time(int(n), limits[route], WAIT_S) + n * cost_s for n in grid], "--", color=colour)[0].get_ydata()
    axes.errorbar(sizes, best[route], [0 * above, above], color=colour, marker=marker, linestyle="none", capsize=3)
    axes.annotate(f"{route}: L = {most[route] if route != 'await' else 'N'}", (400, line[-1]), (8, 6 if route == "def" else 0), textcoords="offset points", color=colour)
    assert all(took > 0.95 * low for low, took in zip(low_s, best[route])), route  # timers may end a millisecond early
axes.set(title="How long does a burst of N requests take? Best run, and range; dashed: ceil(N/L) S + N c", xscale="log", yscale="log", xlabel="requests at once, N", ylabel="until all are answered (s)")
axes.set(xticks=(4, 10, 40, 100, 400), xticklabels=(4, 10, 40, 100, 400), yticks=(0.03, 0.1, 0.3, 1, 3, 10), yticklabels=(0.03, 0.1, 0.3, 1, 3, 10)), axes.minorticks_off()
show(figure, alt="Time against the size of the burst, both logarithmic. Four dashed lines: blocking is highest, then to_thread and def, in steps, and await, which stays lowest. The points lie close above them.")
per_s = {route: BURSTS[route][1] / best[route][1] for route in ("blocking", "to_thread", "def")}  # requests
wait_guess.settle({"blocking": "a", "to_thread": "d"}.get(max(per_s, key=per_s.get), "c" if most["def"] <= 40 else "b"), f"a second, def answers over 5 times as many as blocking: {per_s['def'] > 5 * per_s['blocking']}. No run beats ceil(N/L) S; what lies above it is the cost of the requests")

# %% tags=["figure"]
async def health(route: str) -> tuple[np.ndarray, np.ndarray]:  # when it was due, and how long it took, in ms
    url, check_up = f"{waits.url}/{route}?seconds={WAIT_S}", load.open_loop(f"{waits.url}/health", rate=100, seconds=0.3, spacing="even")
    _, run = await asyncio.gather(load.closed_loop(url, concurrency=CROWD, requests=CROWD * (1 if route == "blocking" else 7)), check_up)
    return 1000 * run.starts, 1000 * run.latencies
checks, (figure, panels) = {route: await health(route) for route in BURSTS}, new_figure(height=3.1, columns=4, sharey=True)
for axes, (route, took), colour in zip(panels, checks.items(), (figures.BLOCKED, figures.OTHER, figures.THEORY, figures.RUNNING)):
    figures.lag_trace(axes, *took, color=colour)
    axes.axhline(CROWD * 1000 * WAIT_S, linestyle="--", color="#777777"), axes.set(title=f"beside {route}", ylabel="")
_ = waits.stop(), panels[0].set_ylabel("/health takes (ms)"), panels[1].text(0, 1020 * CROWD * WAIT_S, "theory: N S = 210 ms", va="bottom", fontsize=9), figure.suptitle("How long does /health wait beside seven requests of 30 ms?", x=0.01, ha="left", fontsize=11)
show(figure, alt="Four traces of the latency of /health. Beside blocking routes checks wait up to the dashed line at 210 ms. Beside the other three kinds they take a few milliseconds.")
assert checks["blocking"][1].max() > 800 * CROWD * WAIT_S and np.median(checks["blocking"][1]) > 5 * max(np.median(checks[route][1]) for route in ("to_thread", "def", "await"))
print("the first check waits for most of N S; the median one over 5 times as long as beside any other route")

# %% [markdown]
# ## 5. What a dependency holds
#
# Dependencies run before their route, in order, and once a request, however many need them. A sync one takes a thread, and then a `def` route takes another. With `yield`, it keeps what it took until the response is out. `max_concurrency` bounds how many requests are in it at once. Who waits there holds no thread.

# %% tags=["predict"]
hold_guess = predict("04.5", "(1) A route needs three async dependencies; each waits 0.1 s. (2) A sync dependency takes a connection from a blocking pool of 10. 50 requests come at once, "
                     "queries take 10 ms, there are 40 threads. What happens?", {
    "a": "(1) 0.1 s: dependencies run in parallel. (2) All are answered, ten at a time.",
    "b": "(1) 0.3 s. (2) All are answered, ten at a time.",
    "c": "(1) 0.1 s. (2) Most fail.",
    "d": "(1) 0.3 s. (2) Most fail: who has a thread waits for a connection, and who has a connection for a thread.",
}, guess="")

# %% tags=["experiment"]
shop, asked = FastAPI(), []
async def user() -> None: asked.append("user"), await asyncio.sleep(0.1)
async def basket(owner: None = Depends(user)) -> None: asked.append("basket"), await asyncio.sleep(0.1)
async def prices() -> None: asked.append("prices"), await asyncio.sleep(0.1)
@shop.get("/page", dependencies=[Depends(user), Depends(basket), Depends(prices)])
async def page() -> float: return asyncio.get_running_loop().time()
async def one_by_one() -> float:  # on the virtual clock, with the application in this process
    async with httpx.AsyncClient(transport=httpx.ASGITransport(shop), base_url="http://shop") as client: return (await client.get("/page")).json()
async def side_by_side() -> float:  # in the route: what does not need each other
    async with asyncio.TaskGroup() as group: _ = group.create_task(prices()), await user(), await basket()
    return asyncio.get_running_loop().time()
print(f"one by one: {(in_order_s := simulate(one_by_one)):.1f} s, called: {asked}\nside by side, in the route: {simulate(side_by_side):.1f} s")

# %% tags=["experiment"]
# %%module orders_api
import asyncio, contextlib, fastapi, functools, threading, time
pool, burst_of = threading.Semaphore(10), functools.cache(asyncio.Barrier)  # ten connections
async def together(requests: int) -> None: await burst_of(requests).wait()  # a burst starts when all have come
app = fastapi.FastAPI(dependencies=[fastapi.Depends(together)])
def connection():  # holds its thread until one is free
    if not pool.acquire(timeout=0.4): raise TimeoutError("no free connection")
    try: yield
    finally: pool.release()
@app.get("/dependency", dependencies=[fastapi.Depends(connection)])
@app.get("/max_concurrency", dependencies=[fastapi.Depends(connection, max_concurrency=10)])  # share this object: one object, one limit
def query() -> None: time.sleep(0.01)
app.get("/in_body")(contextlib.contextmanager(connection)()(query))  # with connection(): query(), in one thread

# %% tags=["figure"]
THREADS, CONNECTIONS, CROWDS = 40, 10, (10, 30, 49, 50, 70)  # T, K, N
async def answered(route: str, n: int) -> int: return (await load.closed_loop(f"{orders.url}/{route}?requests={n}", concurrency=n, requests=n)).completed
with serve("orders_api:app") as orders:
    ok = {route: [await answered(route, n) for n in CROWDS] for route in ("dependency", "max_concurrency", "in_body")}
(figure, axes), grid = new_figure(), np.arange(10, 75)
axes.plot(grid, grid - THREADS * ((grid - CONNECTIONS) // THREADS), "--", color=figures.THEORY, label="theory: N - T floor((N - K) / T)")  # all T that wait in vain fail
for (route, counts), marker, size, colour in zip(ok.items(), "os^", (7, 10, 5), (figures.BLOCKED, figures.OTHER, figures.RUNNING)):
    axes.plot(CROWDS, counts, marker, color=colour, markersize=size, label=route, fillstyle="none" if marker == "s" else "full")
_ = axes.set(ylim=(0, 75), title="T = 40 threads, K = 10 connections: how many of N requests are answered?", xlabel="requests at once, N", ylabel="answered"), axes.legend()
show(figure, alt="Answered requests against requests at once. With a plain dependency all are answered up to 49; at 50 only 10, as the theory line says. With max_concurrency, and taken in the body, all are answered.")
assert ok["dependency"][:3] == [10, 30, 49] and 0 < ok["dependency"][3] <= 15 and abs(ok["dependency"][4] - 30) <= 10 and ok["max_concurrency"] == ok["in_body"] == list(CROWDS)
hold_guess.settle({(1, 1): "a", (3, 1): "b", (1, 0): "c"}.get((round(10 * in_order_s), ok["dependency"][3] > 25), "d"), "49 = K + T - 1 are all answered; of 50 at most 15 are, by theory 10. With max_concurrency=K, or in the body: all")

# %% [markdown]
# ## 6. Work that outlives its answer
#
# Three routes that many tutorials have: one fans out, one works in bulk, one answers first and works later, with `BackgroundTasks`: functions that the same process calls once the response is out. Then a task fails, a client asks for much, a process dies. A route has no time limit unless you set one, and a thread cannot be cancelled.

# %% tags=["predict"]
later_guess = predict("04.6", "(1) /async-task gathers three calls, with return_exceptions=True. The second raises ValueError. What does the client get? (2) Ten jobs are accepted as "
                      "BackgroundTasks. The mail server hangs, and the process gets a SIGKILL. How many are done after a restart?", {
    "a": "(1) 500. (2) Ten: BackgroundTasks are a job queue.",
    "b": "(1) 500. (2) None.",
    "c": "(1) 200, with {} as the second result. (2) Ten: BackgroundTasks are a job queue.",
    "d": "(1) 200, with {} as the second result. (2) None.",
}, guess="")

# %% tags=["experiment"]
# %%module tasks_api
import asyncio, fastapi
app = fastapi.FastAPI()
async def operation(name: str, fail: str = "") -> str:
    print(f"{name} started")
    if await asyncio.sleep(0.02, fail): raise {"ValueError": ValueError("no such row"), "CancelledError": asyncio.CancelledError()}[fail]
    return print(f"{name} completed") or f"result of {name}"
@app.get("/async-task")
async def async_task(fail: str = ""): return {"results": await asyncio.gather(*[operation(f"task{n}", fail * (n == 2)) for n in (1, 2, 3)], return_exceptions=True)}
@app.get("/bulk-operation")
async def bulk_operation(count: int = 10, fail: str = ""):
    results = [r for r in await asyncio.gather(*[operation(f"operation {n}", fail * (n == 7)) for n in range(count)], return_exceptions=True) if not isinstance(r, Exception)]
    return {"total": count, "successful": len(results), "results": results}

# %% tags=["experiment"]
import tasks_api
paths, ask_docs = ("async-task?fail=ValueError", "bulk-operation?fail=ValueError", "bulk-operation?fail=CancelledError", "bulk-operation?count=-5"), dict(rate=100, spacing="even")
with serve("tasks_api:app") as server:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        fanned, *bulks = [(await client.get(path)).json() for path in paths]
        quiet = await load.open_loop(f"{server.url}/docs", seconds=0.1, **ask_docs)
        beside, _ = await asyncio.gather(load.open_loop(f"{server.url}/docs", seconds=0.4, **ask_docs), client.get("bulk-operation?count=20000"))
with contextlib.redirect_stdout(io.StringIO()), serve(tasks_api.app, in_process=True) as server, probes.stalled_reader(5) as full_pipe, contextlib.redirect_stdout(full_pipe):
    unread = [(await load.closed_loop(f"{server.url}/{path}", concurrency=1, requests=1, timeout=0.2)).completed for path in ("bulk-operation?count=3000", "docs")]
print(f"an exception in task2: {fanned}\nsuccessful of ten, one with a ValueError: {bulks[0]['successful']}; one cancelled: {bulks[1]['successful']}\nof -5: {bulks[2]}")
print("beside count=20000, /docs takes over 10 times as long:", f"{beside.latencies.max() > 10 * np.median(quiet.latencies)}\nwhile nobody reads what is printed, answers to /bulk-operation and to /docs:", *unread)

# %% tags=["experiment"]
# %%module jobs_api
import pathlib, threading
from fastapi import BackgroundTasks
from tasks_api import app
mail_server, SENT = threading.Semaphore(0), pathlib.Path(__file__).with_suffix(".sent")
def send_report(job: int) -> None:  # a plain function: it takes one of the 40 threads until the mail server answers
    if not (job and mail_server.acquire()): raise ValueError(f"there is no report {job}")
    with SENT.open("a") as file: print(job, file=file)
@app.get("/background-task")
async def background_task(job: int, tasks: BackgroundTasks): return tasks.add_task(send_report, job) or {"message": "accepted"}
app.get("/plain")(lambda: "from a thread")
@app.get("/mail-server-answers")  # so that this notebook decides when
async def answers(times: int) -> None: mail_server.release(times)

# %% tags=["experiment"]
import jobs_api
jobs, sent = serve("jobs_api:app"), jobs_api.SENT
async def ask(path: str, times: int = 1, within_s: float = 5) -> int:  # how many are answered
    return (await load.closed_loop(f"{jobs.url}/{path}", concurrency=times, requests=times, timeout=within_s)).completed
_ = sent.write_text(""), await ask("background-task?job=1", 39)
with_39, _, with_40, docs = await ask("plain"), await ask("background-task?job=1"), await ask("plain", within_s=0.3), await ask("docs")
_ = await ask("mail-server-answers?times=40"), await ask("background-task?job=0")  # there is no report 0
while len(done := sent.read_text().split()) < 40: await asyncio.sleep(0.01)
accepted = await ask("background-task?job=2", 10)
_ = psutil.Process(jobs.pid).kill(), jobs.stop()  # a SIGKILL, while the mail server hangs again
print(f"a def route is answered with 39 jobs pending: {with_39}, with 40: {with_40}; an async one with 40: {docs}\nto the client job 0 was accepted; 'ValueError' in the log: {'ValueError' in jobs.log}")
later_guess.settle("abcd"[2 * (fanned["results"][1] == {}) + (sent.read_text().count("2") == 0)], f"{len(done)} of 40 jobs done while the process lived; of the {accepted} before the SIGKILL: {sent.read_text().count('2')}. A durable queue is in chapter 05")

# %% tags=["experiment"]
# %%module bulk_api
import asyncio, fastapi
from tasks_api import app, operation
permits = asyncio.Semaphore(20)  # of all requests together
async def attempt(number: int, fail: str) -> str:
    async with permits: return await operation(f"operation {number}", fail * (number == 7))
@app.get("/bulk")
async def bulk(count: int = fastapi.Query(10, ge=1, le=1000), fail: str = "", deadline_s: float = fastapi.Query(2, gt=0, le=5)) -> dict:
    try:
        async with asyncio.timeout(deadline_s): results = await asyncio.gather(*[attempt(n, fail) for n in range(count)], return_exceptions=True)
    except TimeoutError: raise fastapi.HTTPException(504, "the deadline has passed") from None
    failed = {number: type(result).__name__ for number, result in enumerate(results) if isinstance(result, BaseException)}
    return {"total": count, "failed": failed, "results": [result for result in results if isinstance(result, str)]}

# %% tags=["experiment"]
# %%module reports_api
import asyncio, anyio, fastapi
from bulk_api import app
from jobs_api import send_report
reports, mail_threads = [], anyio.CapacityLimiter(4)  # threads of their own: routes keep their 40
@app.post("/reports", status_code=202, max_body_size=1000)  # in bytes, counted as they come
async def submit(job: int = fastapi.Body()) -> dict:
    reports.append(asyncio.create_task(anyio.to_thread.run_sync(send_report, job, limiter=mail_threads)))
    return {"report": len(reports) - 1}
@app.get("/reports/{number}")
async def state(number: int) -> str:
    if not reports[number].done(): return "running"
    return "sent" if reports[number].exception() is None else f"failed: {reports[number].exception()}"

# %% tags=["experiment"]
import jobs_api, reports_api
jobs_api.SENT.write_text("")
with contextlib.redirect_stdout(io.StringIO()), serve(reports_api.app, in_process=True) as server:
    async with httpx.AsyncClient(base_url=server.url, timeout=5) as client:
        bulks = [await client.get(f"bulk?{query}") for query in ("count=20000", "count=-5", "count=1000&deadline_s=0.1", "fail=ValueError", "fail=CancelledError")]
        posts = [await client.post("reports", content=body) for body in (b"0", b" " * 2000 + b"1", *[b"1"] * 45)]
        states, plain = [(await client.get(f"reports/{n}")).json() for n in (0, 1)], await client.get("plain")
        jobs_api.mail_server.release(45)
        while (await client.get("reports/45")).json() == "running": await asyncio.sleep(0.01)
print("count=20000, count=-5, deadline 0.1 s:", *[answer.status_code for answer in bulks[:3]], "- failed:", *[answer.json()["failed"] for answer in bulks[3:]])
print("report 0:", states[0], "- a body of 2 kB:", posts[1].status_code, "- def route, 45 pending:", plain.status_code, "- then sent:", jobs_api.SENT.read_text().count("1"))
print("a crawler that follows each GET starts a job:", "/background-task" in (links := [path for path, methods in reports_api.app.openapi()["paths"].items() if "get" in methods]), "- a report:", "/reports" in links)

# %% [markdown]
# ## 7. What outlives the response, and what outlives the client?
#
# A background task runs after the response is sent, in the task of the request. A `yield` dependency closes after that: its scope is the request. `scope="function"` closes it when the endpoint has returned. And a client that leaves is only a message, `http.disconnect`. Somebody must read it.

# %% tags=["predict"]
after_guess = predict("04.7", "An endpoint takes a connection by Depends, answers, and leaves a mail of 200 ms to a background task. When is the connection returned? "
                      "And when a client leaves early, what does the server cancel?", {
    "a": "Before the response is sent; the endpoint and what it started.",
    "b": "After the mail; a stream, but neither an endpoint nor a background task.",
    "c": "When the response is sent; nothing at all.",
    "d": "After the mail; an endpoint and a stream, but no background task.",
}, guess="")

# %% tags=["experiment"]
app, moments, HANDLER_S, MAILS_S = FastAPI(), {}, 0.1, (0.0, 0.1, 0.2)
def note(what: str) -> None: moments[what] = time.perf_counter()
def connection(scope: str):
    async def lend():
        note(f"{scope}: taken")
        yield
        note(f"{scope}: returned")
    return Depends(lend, scope=scope)
async def mail(seconds: float) -> None: note("mail begins"); await asyncio.sleep(seconds); note("mail ends")
@app.post("/orders")
async def order(mail_s: float, background: BackgroundTasks, whole=connection("request"), early=connection("function")) -> None:
    background.add_task(mail, mail_s); await asyncio.sleep(HANDLER_S); note("endpoint returns")

# %% tags=["experiment"]
async def place(client: httpx.AsyncClient, mail_s: float) -> dict[str, float]:
    moments.clear(); note("client asks")
    _ = await client.post("/orders", params={"mail_s": mail_s})
    note("client has its answer")
    while "request: returned" not in moments: await asyncio.sleep(0.001)
    return {what: at - moments["client asks"] for what, at in moments.items()}
with serve(app, in_process=True) as server:
    async with httpx.AsyncClient(base_url=server.url, timeout=5) as client:
        orders = [[await place(client, mail_s) for _ in range(2)] for mail_s in MAILS_S]
on_server = [what for what in orders[-1][0] if not what.startswith("client")]
print(" > ".join(on_server[2:]), "\nthe client has its answer before the mail ends:", all(each["client has its answer"] < each["mail ends"] for each in orders[-1]))

# %% tags=["figure"]
figure, (left, right) = new_figure(height=3.2, columns=2)
one = {what: 1000 * at for what, at in orders[-1][0].items()}
lanes = {"client waits": ("client asks", "client has its answer"), "endpoint": ("function: taken", "endpoint returns"), 'connection, "function"': ("function: taken", "function: returned"),
         "mail in background": ("mail begins", "mail ends"), 'connection, "request"': ("request: taken", "request: returned")}
for row, (name, (start, end)) in enumerate(lanes.items()): left.barh(row, one[end] - one[start], left=one[start], height=0.55, color=figures.BLOCKED if "quest" in name else figures.NETWORK, edgecolor="black")
left.set(title="What is open, and until when?", xlabel="time since the client asked (ms)", yticks=range(5), yticklabels=lanes); left.invert_yaxis()
held = {scope: [[each[f"{scope}: returned"] - each[f"{scope}: taken"] for each in group] for group in orders] for scope in ("request", "function")}
for scope, color, marker, theory_s, formula in (("request", figures.BLOCKED, "s", [HANDLER_S + mail_s for mail_s in MAILS_S], "handler + mail"), ("function", figures.MEASURED, "o", [HANDLER_S] * 3, "handler")):
    gap = figures.measured_against_theory(right, [1000 * s for s in MAILS_S], [[1000 * s for s in group] for group in held[scope]], [1000 * s for s in theory_s], formula=formula, label=f'scope="{scope}"', color=color, marker=marker)
    assert gap < 0.5 and all(min(group) > 0.99 * least for group, least in zip(held[scope], theory_s)), (scope, gap)
right.set(title="How long is a connection held?", xlabel="mail in the background (ms)", ylabel="held (ms)", ylim=(0, 480)); right.legend()
show(figure, alt="Left, one request: the client and the connection of scope function are done at about 100 ms, the mail and the connection of scope request at 300. Right: with scope request a connection is held for handler plus mail, with scope function for the handler.")

# %% tags=["experiment"]
app, began, ended, WORK_S, LEAVES_S = FastAPI(), {}, {}, 0.4, 0.1
async def work(name: str) -> None:
    began[name].set_result(time.perf_counter())
    try: fate = await asyncio.sleep(WORK_S, "goes on to its end")
    except asyncio.CancelledError: fate = "is cancelled"; raise
    finally: ended[name].set_result((fate, time.perf_counter()))
@app.get("/endpoint")
async def endpoint(): await work("endpoint")
@app.get("/mail")
async def answer_and_mail(background: BackgroundTasks): background.add_task(work, "mail")
@app.get("/stream", response_class=EventSourceResponse)  # server-sent events: each yield is one
async def stream(): yield await work("stream")

# %% tags=["experiment"]
async def while_connected(request: Request, answer):  # the client leaves: cancel the work, and wait for its clean-up
    async def client_leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect": pass
    job, gone = tasks = asyncio.create_task(answer), asyncio.create_task(client_leaves())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return await job if job.done() else None
    finally:
        for task in tasks: task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
@app.get("/watched")
async def watched(request: Request): return await while_connected(request, work("watched"))

# %% tags=["experiment"]
async def leave_early(name: str, stay: bool = False) -> tuple[str, float, float]:
    began[name], ended[name] = Future(), Future()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET /{name} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    start = await asyncio.wrap_future(began[name])
    if not stay: await asyncio.sleep(LEAVES_S); writer.close()
    left, (fate, end) = math.inf if stay else time.perf_counter(), await asyncio.wrap_future(ended[name])
    writer.close()
    return fate, left - start, end - start
with serve(app, in_process=True) as server:
    fates = dict(zip(names := ("endpoint", "mail", "stream", "watched"), await asyncio.gather(*map(leave_early, names)))) | {"watched, client stays": await leave_early("watched", stay=True)}
print(*[f"{name:22s}{fate}" for name, (fate, *_) in fates.items()], sep="\n")

# %% tags=["figure"]
figure, axes = new_figure(height=2.8)
for row, (name, (fate, left, end)) in enumerate(fates.items()):
    axes.barh(row, 1000 * min(left, end), height=0.5, color=figures.NETWORK, edgecolor="black")
    if left < end: axes.barh(row, 1000 * (end - left), left=1000 * left, height=0.5, color=figures.BLOCKED, edgecolor="black", hatch="///")
    axes.annotate(fate, (1000 * end, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
axes.axvline(1000 * LEAVES_S, color=figures.RUNNING, linestyle=":")
axes.annotate("the client leaves", (1000 * LEAVES_S, 1.5), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
axes.set(title="Who works on when the client has left? (hatched: for nobody)", xlabel="time since the work began (ms)", yticks=range(len(fates)), yticklabels=fates, xlim=(0, 1400 * WORK_S))
axes.invert_yaxis()
show(figure, alt="Five bars. The endpoint and the mail work on to the end, hatched, after their client has left; the stream and the watched endpoint stop at once; the watched endpoint whose client stays ends its work.")
dead, in_order = tuple(fates[name][0] == "is cancelled" for name in names[:3]), on_server.index("request: returned") > on_server.index("mail ends")
after_guess.settle({(True, (False, False, True)): "b", (True, (True, False, True)): "d", (False, (False,) * 3): "c"}.get((in_order, dead), "a"), "a connection of scope request outlives the mail; only who reads http.disconnect is told")

# %% [markdown]
# ## 8. Where is a context variable visible?
#
# A `ContextVar` holds what belongs to one request: a user, a request id. Each task and each thread of a pool runs in a copy of the context. What is set in a copy stays in it. So ask of every layer: does it run in the task of the request, or in a copy?

# %% tags=["experiment"]
user, seen, app = contextvars.ContextVar("user", default="nobody"), {}, FastAPI()
async def pure(inner, *call) -> None: await inner(*call); seen.setdefault("pure ASGI middleware, afterwards", user.get())
app.add_middleware(lambda inner: functools.partial(pure, inner))
@app.middleware("http")  # a BaseHTTPMiddleware: what is inside it runs in a task of its own
async def usual(request: Request, call_next):
    try: return await call_next(request)
    finally: seen["@app.middleware, afterwards"] = user.get()
@app.get("/")
async def endpoint() -> None: user.set("ann"); seen.update({"asyncio.to_thread": await asyncio.to_thread(user.get), "loop.run_in_executor": await asyncio.get_running_loop().run_in_executor(None, user.get)})
with serve(app, in_process=True) as server: _ = httpx.get(server.url)
print("The endpoint has set the user to ann.", *[f"{where:34s}sees {name}" for where, name in seen.items()], sep="\n")

# %% [markdown]
# ## Try it
#
# A burst on the virtual clock, through four kinds of route. How many tokens answer 400 requests in two waves? What do more tokens buy a route that blocks the loop? An application sets them in its lifespan: `anyio.to_thread.current_default_thread_limiter().total_tokens`. More tokens are more threads, and whatever they wait for must bear them.

# %% tags=["widget", "nbval-ignore-output"]
async def burst_takes(requests: int, at_once: int, wait_s: float, holds_loop: bool) -> float:
    tokens = asyncio.Semaphore(at_once)
    async def request() -> None:
        async with tokens: _ = occupy_loop(wait_s) if holds_loop else await asyncio.sleep(wait_s)
    return await asyncio.gather(*[request() for _ in range(requests)]) and asyncio.get_running_loop().time()
def four_ways(requests: int, tokens: int, cpus: int, wait_ms: int) -> None:
    at_once, wait_s = {"async def that blocks": 1, "async def, to_thread": min(32, cpus + 4), "def": tokens, "async def that awaits": requests}, wait_ms / 1000
    took = {kind: simulate(burst_takes, requests, limit, wait_s, limit == 1) for kind, limit in at_once.items()}
    figures.bars((plot := new_figure(height=2.7))[1], took, unit="s", theory={kind: theory.waves_time(requests, limit, wait_s) for kind, limit in at_once.items()})
    plot[1].set(title=f"{requests} requests at once: until when are all answered?", xlabel="seconds; dashed: ceil(N/L) S")
    show(plot[0], alt=f"Four bars for {requests} requests of {wait_ms} ms: " + ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in took.items()))
_ = widgets.interact(four_ways, requests=widgets.IntSlider(100, 1, 400), tokens=widgets.IntSlider(40, 1, 400), cpus=widgets.IntSlider(2, 1, 32), wait_ms=widgets.IntSlider(50, 10, 200, 10))

# %% [markdown]
# ## Spot the bug
#
# Which line? Decide, then run the proofs. A report of three parts, of which one fails:
#
# ```python
# 1  @app.get("/report")
# 2  async def report():
# 3      parts = await asyncio.gather(*map(fetch_part, range(3)), return_exceptions=True)
# 4      return {"parts": parts}
# ```
#
# An order, with a trail of who did what:
#
# ```python
# 1  async def session():
# 2      async with Session() as open_session: yield open_session
# 3  @app.post("/orders")
# 4  async def order(background: BackgroundTasks, db=Depends(session, scope="function")) -> str:
# 5      background.add_task(audit, db)
# 6      return "accepted"
# ```
#
# And who did it:
#
# ```python
# 1  def current_user(authorization: str = Header()) -> None:
# 2      user.set(name_of(authorization))
# 3  @app.get("/me", dependencies=[Depends(current_user)])
# 4  async def me() -> str:
# 5      return f"hello {user.get()}"
# ```

# %% tags=["spot"]
async def fetch_part(number: int) -> str:
    if number == 1: raise ValueError("no such part")
    return f"part {number}"
for annotated in (False, True):  # line 3 makes the error a result; line 2 does not say what a result is
    app = FastAPI()
    @app.get("/report", response_model=dict[str, list[str]] if annotated else None)
    async def report():
        return {"parts": await asyncio.gather(*map(fetch_part, range(3)), return_exceptions=True)}
    with serve(app, in_process=True) as server: answer = httpx.get(server.url + "/report")
    print("return type declared:" if annotated else "no return type:", answer.status_code, answer.text, "- an error in the log:", "Error" in server.log)

# %% tags=["spot"]
async def session(): yield (db := {"open": True}); db["open"] = False
async def audit(db: dict) -> None: assert db["open"], "the session is closed"  # called by line 5, after the scope of line 4 is over
for scope in ("function", "request"):
    app = FastAPI()
    @app.post("/orders")
    async def order(background: BackgroundTasks, db=Depends(session, scope=scope)) -> str:
        background.add_task(audit, db)
        return "accepted"
    with serve(app, in_process=True) as server: answer = httpx.post(server.url + "/orders")
    print(f"scope {scope:9s} the client reads {answer.status_code} {answer.text}, the log says:",
          *[line for line in server.log.splitlines() if line.startswith("AssertionError")] or ["nothing"])

# %% tags=["spot"]
user, app = contextvars.ContextVar("user", default="nobody"), FastAPI()
def in_a_thread(authorization: str = Header()) -> None: user.set(authorization)  # line 1: def runs in a thread, in a copy of the context
async def on_the_loop(authorization: str = Header()) -> None: user.set(authorization)
@app.get("/def", dependencies=[Depends(in_a_thread)])
async def me() -> str: return f"hello {user.get()}"
_ = app.get("/async def", dependencies=[Depends(on_the_loop)])(me)
with serve(app, in_process=True) as server:
    for how in ("def", "async def"): print(f"{how:10s}", httpx.get(f"{server.url}/{how}", headers={"authorization": "ann"}).json())

# %% [markdown]
# ## Exercises
#
# Each check runs your application on a loop of its own, holds it in the middle, and counts threads, connections and tasks.
#
# **4.1 Unblock it.** `lookup` is a library that blocks. Serve it so that the loop stays free:
#
# ```python
# @app.get("/items/{item}")
# async def items(item: str):
#     return lookup(item)
# ```
#
# <details><summary>Hint 1</summary>In which thread does a route written with async def run, and in which one written with def?</details>
# <details><summary>Hint 2</summary>All def routes share 40 threads. A route that must always answer stays out of them.</details>
# <details><summary>Hint 3</summary><code>def items(item: str)</code> with <code>try: return lookup(item)</code> and a 404 for KeyError, and <code>async def health()</code></details>

# %% tags=["exercise", "check"]
def lookup_app(lookup) -> FastAPI:
    """GET /items/{item} answers with what lookup(item) returns, and with 404 when it raises KeyError.

    GET /health answers with 200 at any time, also while 100 requests wait for lookup.
    40 lookups run at once, in no more than 40 threads: those that FastAPI has anyway.
    """
    raise NotImplementedError

check("4.1", lookup_app)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def lookup_app_solution(lookup) -> FastAPI:
    app = FastAPI()

    @app.get("/items/{item}")
    def items(item: str) -> str:
        try:
            return lookup(item)
        except KeyError:
            raise HTTPException(404) from None

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return app

check("4.1", lookup_app_solution)

# %% [markdown]
# **4.2 A dependency that cannot deadlock.** The pool has 10 connections, its `get()` blocks, and 200 requests come at once. Every one gets its answer, no thread waits for a connection, and no connection is lost.
#
# <details><summary>Hint 1</summary>40 threads wait in pool.get(), and ten requests have a connection. Which thread is left for their queries?</details>
# <details><summary>Hint 2</summary>Let requests wait before they take a thread: Depends has max_concurrency. All routes must share one Depends.</details>
# <details><summary>Hint 3</summary><code>Connection = Annotated[Any, Depends(connection, max_concurrency=pool.size)]</code>, where connection() yields between get and put.</details>

# %% tags=["exercise", "check"]
def pool_app(pool) -> FastAPI:
    """GET /rows/{n} and /names/{n}: connection.query("row", n) and query("name", n); LookupError is a 404.

    pool.get() blocks its thread until a connection is free; pool.put(connection) gives it back.
    query blocks too. No more than pool.size requests may be in get(), over both routes together.
    GET /health answers with 200 while all connections are out.
    An error, a client that leaves and a cancelled request all give their connection back.
    """
    raise NotImplementedError

check("4.2", pool_app)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def pool_app_solution(pool) -> FastAPI:
    app = FastAPI(exception_handlers={LookupError: lambda request, error: Response(status_code=404)})

    def connection():
        taken = pool.get()
        try:
            yield taken
        finally:
            pool.put(taken)

    Connection = Annotated[Any, Depends(connection, max_concurrency=pool.size)]

    @app.get("/rows/{n}")
    def rows(n: int, connection: Connection) -> str:
        return connection.query("row", n)

    @app.get("/names/{n}")
    def names(n: int, connection: Connection) -> str:
        return connection.query("name", n)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return app

check("4.2", pool_app_solution)

# %% [markdown]
# **4.3 A session that ends before the background work.** An order is stored, answered, and delivered in the background. While the delivery runs, the request holds no connection; and what the client was told is committed.
#
# <details><summary>Hint 1</summary>The route returns, the session ends, the answer goes out, the task begins. Which order does FastAPI give them?</details>
# <details><summary>Hint 2</summary><code>scope="function"</code> ends a dependency before the answer. The task then opens a session of its own.</details>
# <details><summary>Hint 3</summary><code>async with sessions() as session: yield session; await session.commit()</code>, and the same around deliver.</details>

# %% tags=["exercise", "check"]
def orders_app(sessions, deliver) -> FastAPI:
    """POST /orders/{name} stores: number = await session.add(name), and answers {"id": number}.

    After the answer, await deliver(session, number) runs once, in a session of its own.
    async with sessions() as session: it holds a connection until it is closed.
    await session.commit() makes changes last; closing forgets the others.
    The order is committed before the answer. An error stores nothing, and is not answered with 200.
    A delivery that fails leaves no change of its own behind, and the order stays.
    """
    raise NotImplementedError

check("4.3", orders_app)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def orders_app_solution(sessions, deliver) -> FastAPI:
    async def session_of_the_request():
        async with sessions() as session:
            yield session
            await session.commit()

    async def deliver_later(number: int) -> None:
        async with sessions() as session:
            await deliver(session, number)
            await session.commit()

    Session = Annotated[Any, Depends(session_of_the_request, scope="function")]
    app = FastAPI()

    @app.post("/orders/{name}")
    async def order(name: str, session: Session, background: BackgroundTasks) -> dict[str, int]:
        number = await session.add(name)
        background.add_task(deliver_later, number)
        return {"id": number}

    return app

check("4.3", orders_app_solution)

# %% [markdown]
# **4.4 Stop on disconnect.** A route awaits long work for one client. When that client leaves, the work is stopped within 100 ms and may clean up. For a client that stays, nothing changes. The last checks use real sockets.
#
# <details><summary>Hint 1</summary>The work ends, or the client leaves. What tells you the second, without asking again and again?</details>
# <details><summary>Hint 2</summary>request.receive() returns the client's next message. The first ones are the request itself, the last has the type "http.disconnect".</details>
# <details><summary>Hint 3</summary><code>await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)</code>; a finally cancels both and awaits them with gather.</details>

# %% tags=["exercise", "check"]
async def stop_on_disconnect(request: Request, work):
    """Return what `await work()` returns, and let its errors out.

    When the client leaves first: cancel the work within 100 ms, wait until it has cleaned up,
    and return None. A cancellation of the route itself cancels the work too, and passes on.
    `await request.receive()` is the client's next message, a dict with a "type".
    """
    raise NotImplementedError

check("4.4", stop_on_disconnect)

# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

async def stop_on_disconnect_solution(request: Request, work):
    job, gone = asyncio.create_task(work()), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        job.cancel()
        gone.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)

check("4.4", stop_on_disconnect_solution)

# %% [markdown]
# ## Recap
#
# | you will meet | what it costs (measured above) | do this instead |
# |---|---|---|
# | `max(ids) + 1` | correct as written; duplicates as soon as an await stands between reading and appending | no await in between, `itertools.count`, or `INSERT ... RETURNING` |
# | state in a module's list | two workers give the same ids; reading back finds another user, or 404; a restart forgets all | a database (chapter 05) |
# | code that was never run on an empty database | 500 | start every test empty |
# | `name: str`, `email: str` | anything that is a string is accepted, of any length | `StringConstraints`, `EmailStr`, a uniqueness check with 409, `max_body_size` |
# | a POST that creates, and answers 200 | the client does not know where the new user is | 201 and `Location` |
# | a list without a limit | every other request waits until it is made | `limit` with an upper bound, and `after` |
# | a handler without a return type | the slow encoder: over 8 times the time | `-> list[User]`, or `response_model` |
# | a look at all users for one | time grows with their number, on the loop | a dict, or an index |
# | `/docs` as it comes | blank without the internet | assets of your own: `fastapi-swagger`, or `StaticFiles` |
# | answers that the schema does not name | clients that fail on a 404 or 409 | `responses=`, and Schemathesis in the tests |
# | `ASGITransport` or `TestClient(app)` in a test | no lifespan, no timeouts | `LifespanManager`, `with TestClient(app)`, or a server |
# | `@app.on_event` | deprecated here, gone from Starlette | `lifespan` |
# | `time.sleep` or a blocking library in `async def` | the whole service stops, the health check too | `await`, `def`, or `asyncio.to_thread` |
# | a `def` route | one of 40 threads, shared with dependencies and background tasks | count them; raise the limit in the lifespan if you must |
# | a pool of connections behind a sync dependency with `yield` | all threads wait for a connection, and none is left to give one back | `Depends(max_concurrency=)`, or an async pool |
# | a session from `Depends` in a background task | the connection is held until the task ends | `scope="function"`, a new session in the task |
# | `gather(return_exceptions=True)` into JSON | `{}` and 200 in place of an error | name what failed in the answer |
# | a bulk answer without its failures | `successful: 9`, and not a word on the tenth; a cancelled one counts as done | `ok` and `failed`, each with its item |
# | `count: int` from the client | one GET fills the memory and holds up all routes | `Query(ge=1, le=1000)`, and bounded concurrency |
# | a negative count | 200 and `total: -5` | `ge=1` |
# | `BackgroundTasks` for work that matters | SIGKILL: none of the accepted jobs is done | write it down first: an outbox, chapter 05 |
# | a background task that fails | the client has its 200; no id, no status, no retry | a job with an id and a state |
# | a sync background task | it takes one of the 40 threads: `def` routes wait behind it | `async def`, or a worker |
# | a GET that does something | prefetched, retried, crawled: done again | POST, 202 and a job id |
# | work for a client that has left | it goes on to the end | race it against `receive()`, or stream |
# | `print` in a handler | a reader that stalls stops the service | `QueueHandler`, with a queue that can drop |
#
# ### Take it with you
#
# ```python
# # smoke.py: start an app with its lifespan, call each GET without parameters. Use: python smoke.py module:app
# import asyncio
# import importlib
# import sys
#
# import httpx
# from asgi_lifespan import LifespanManager
#
#
# async def main(name: str) -> int:
#     module, _, attribute = name.partition(":")
#     app = getattr(importlib.import_module(module), attribute)
#     failures = 0
#     async with LifespanManager(app) as alive:
#         transport = httpx.ASGITransport(alive.app, raise_app_exceptions=False)
#         async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
#             for path, methods in app.openapi()["paths"].items():
#                 if "get" in methods and "{" not in path:
#                     async with asyncio.timeout(10):  # the transport has no timeouts of its own
#                         status = (await client.get(path)).status_code
#                     print(status, path)
#                     failures += status >= 500
#     return failures
#
#
# if __name__ == "__main__":
#     sys.path.insert(0, "")
#     sys.exit(asyncio.run(main(sys.argv[1])))
# ```
#
# ### Roads not taken
#
# *Starlette* alone, *Litestar* and *Quart* speak ASGI too; *Django* serves ASGI beside its older WSGI. Servers: *hypercorn* for HTTP/2. gRPC and GraphQL describe an API in other ways than OpenAPI.
#
# ### Further reading
#
# - [The ASGI specification](https://asgi.readthedocs.io/en/latest/specs/main.html)
# - [FastAPI: concurrency and async / await](https://fastapi.tiangolo.com/async/), [lifespan events](https://fastapi.tiangolo.com/advanced/events/), [dependencies with yield](https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/)
# - [Starlette: the thread pool](https://www.starlette.io/threadpool/), [the test client](https://www.starlette.io/testclient/)
# - [uvicorn: settings](https://www.uvicorn.org/settings/), [granian](https://github.com/emmett-framework/granian)
# - [Schemathesis](https://schemathesis.readthedocs.io/), [fastapi-swagger](https://pypi.org/project/fastapi-swagger/), [asgi-lifespan](https://github.com/florimondmanca/asgi-lifespan)
# - [HTTP Semantics, RFC 9110: status codes](https://www.rfc-editor.org/rfc/rfc9110.html#name-status-codes)
#
# Next, chapter 05: a real Postgres takes the place of the list, and its connections are what all requests share.

# %% tags=["cleanup"]
close_chapter()
