"""The checker of 4.3: a session that is committed and closed before the background work begins."""

from __future__ import annotations

import asyncio
from typing import Any

from .harness import AWAITS_ALL, NO_ERROR, Failed, Prove, Run, call, tell
from .web04 import Client, Exchange, made, observe_app, prove_all_gone, prove_answered, settled, turns

STORES = "stores the order and answers with its id"
VISIBLE = "committed before the answer"
TOLD = "an order that fails is no 200"
FREE = "the request's session is closed before the delivery begins"
OWN = "the delivery has an open session of its own"
ONE = "one connection at a time"
NO_WAIT = "the client does not wait for the delivery"
ONCE = "delivers each stored order once"
KEPT = "commits what the delivery did"
ROLLBACK = "nothing of a failed order is stored"
ROLLBACK_DELIVERY = "a failed delivery is rolled back, its order stays"
NOT_DELIVERED = "delivers nothing that was not stored"
ALL_CLOSED = "closes every session"


class _Session:
    """What an ORM's async session is to a route: it holds a connection from enter to exit."""

    def __init__(self, database: _Database) -> None:
        self._database = database
        self.state = "new"
        self.used_for: set[str] = set()
        self._orders: dict[int, str] = {}
        self._delivered: set[int] = set()

    async def __aenter__(self) -> _Session:
        if self.state != "new":
            raise RuntimeError(f"sessions() makes a session for one use, and this one is {self.state}")
        await asyncio.sleep(0)
        self.state = "open"
        self._database.open.append(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.state = "closed"
        self._database.open.remove(self)
        await self.rollback()

    def _require_open(self) -> None:
        if self.state != "open":
            raise RuntimeError(f"the session is {self.state}")

    async def add(self, name: str) -> int:
        """Store an order, and return its number. Not to be seen by others before commit()."""
        self._require_open()
        self.used_for.add("order")
        number = self._database.next_number = self._database.next_number + 1
        self._orders[number] = name
        await turns(3)
        if name == "slow":
            self._database.adding.set()
            await asyncio.Event().wait()
        if name == "bad":
            raise ValueError("there is no such dish")
        return number

    async def deliver(self, number: int) -> None:
        """Note that an order is delivered."""
        self._require_open()
        await turns(3)
        self._delivered.add(number)

    async def commit(self) -> None:
        """Make it last. Raises ConnectionError when the database refuses."""
        self._require_open()
        await turns(3)
        if self._database.refuses_commits:
            raise ConnectionError("commit failed")
        self._database.orders.update(self._orders)
        self._database.delivered |= self._delivered
        await self.rollback()

    async def rollback(self) -> None:
        """Forget what was not committed. Closing does it too."""
        self._orders, self._delivered = {}, set()


class _Database:
    def __init__(self) -> None:
        self.orders: dict[int, str] = {}
        self.delivered: set[int] = set()
        self.open: list[_Session] = []
        self.made: list[_Session] = []
        self.next_number = 0
        self.refuses_commits = False
        self.adding = asyncio.Event()

    def sessions(self) -> _Session:
        """A new session, for ``async with``. Until it is closed, it holds a connection."""
        self.made.append(_Session(self))
        return self.made[-1]


class _Delivery:
    """deliver(session, number), as the reader gets it: it notes what it meets, and can be held."""

    def __init__(self, database: _Database) -> None:
        self._database = database
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun: list[int] = []
        self.fails = False
        self.alone = True  # no other request is under way, or has left a session open
        self.problems: dict[str, str] = {}

    async def deliver(self, session: Any, number: int) -> None:
        self.begun.append(number)
        state = getattr(session, "state", None)
        others = [each for each in self._database.open if each is not session]
        if state is None:
            self.problems.setdefault(OWN, "deliver() got no session: call deliver(session, number).")
        elif "order" in session.used_for:
            told = "deliver() got the session that the route had used: it holds its connection until the delivery ends."
            if state == "closed":
                told = "deliver() got the route's session, which was closed by then: open a new one in the task."
            self.problems.setdefault(OWN, told)
        elif state != "open":
            self.problems.setdefault(OWN, f"deliver() got a {state} session: enter it with async with.")
        if others and self.alone:
            told = "When the delivery began, the request still held its session: a dependency with yield ends after "
            told += 'the background tasks, unless it has scope="function".'
            self.problems.setdefault(FREE, told)
        if number not in self._database.orders:
            told = f"deliver() was called for order {number}, and no such order was committed."
            self.problems.setdefault(NOT_DELIVERED, told)
        await self.gate.wait()
        await session.deliver(number)
        if self.fails:
            raise ValueError("the courier is ill")


def check_session(answer: Any, prove: Prove) -> None:
    """Checks orders_app(sessions, deliver) of exercise 4.3."""
    database = _Database()
    delivery, seen = _Delivery(database), {}
    app = made(prove, call(answer, database.sessions, delivery.deliver), "orders_app(sessions, deliver)")
    run: Run = observe_app(app, lambda client: _orders(client, database, delivery, seen))
    run.result()
    prove_answered(prove, STORES, seen["order"], {"id": 1})
    told = f"The order was answered, and the database had {seen['stored']}: was there a commit?"
    prove(STORES, seen["stored"] == {1: "tea"}, told)
    told = (
        "When the answer began, the order was not committed: a client that asks at once does not find it, and a commit "
    )
    told += 'that fails can no longer be told. Code after yield comes before the answer with scope="function" only.'
    prove(VISIBLE, seen["at the answer"] == {1: "tea"}, told)
    told = "The answer came only when the delivery had ended: leave it to a background task."
    prove(NO_WAIT, seen["answered first"], told)
    lost = ", ".join(run.never_awaited)
    prove(AWAITS_ALL, not lost, f"The coroutine {lost} was made and never awaited: give add_task the async def itself.")
    for what, status, stored in seen["failed"]:
        told = f"{what}, and its order was stored nevertheless: commit only where nothing has failed."
        prove(ROLLBACK, not stored, told)
        prove(TOLD, status != 200, f"{what}, and the client got a 200.")
    for lacking in (NOT_DELIVERED, OWN, FREE):
        prove(lacking, lacking not in delivery.problems, delivery.problems.get(lacking, ""))
    if seen["order"].error is not None:
        raise Failed(NO_ERROR, f"After the answer, the background raised {tell(seen['order'].error)}.")
    told = "The order was stored and answered, and deliver() was never called."
    prove(ONCE, bool(delivery.begun), told)
    told = f"One request held {seen['most']} connections at once: in a pool that is used up, each waits for the other."
    prove(ONE, seen["most"] <= 1, told)
    told = f"Orders {seen['expected']} were stored, and deliver() was called for {sorted(delivery.begun)}."
    prove(ONCE, sorted(delivery.begun) == seen["expected"], told)
    prove(KEPT, seen["delivered"] == {1}, "deliver() had ended, and what it did was not committed.")
    told = "The delivery of an order failed. "
    told += "What it had done was committed all the same." if seen["half delivered"] else "The order itself was lost."
    prove(ROLLBACK_DELIVERY, not seen["half delivered"] and seen["order stays"], told)
    prove(ROLLBACK_DELIVERY, seen["late status"] == 200, "The delivery of an order failed, after a 200 was due.")
    for after, count in seen["open"].items():
        told = f"After {after}, {count} of the sessions were still open: async with closes them in every case."
        prove(ALL_CLOSED, not count, told)
    prove_all_gone(prove, run, 0)


async def _orders(client: Client, database: _Database, delivery: _Delivery, seen: dict[str, Any]) -> None:
    open_after: dict[str, int] = {}
    seen.update({"failed": [], "open": open_after, "at the answer": None, "most": 0})
    most_open = asyncio.create_task(_watch(database, seen))

    async def order(name: str) -> Exchange:
        exchange = await client.ask(f"/orders/{name}", "POST")
        await turns()
        return exchange

    # An order whose delivery takes long.
    delivery.gate.clear()
    first = client.start("/orders/tea", "POST", lambda: seen.update({"at the answer": dict(database.orders)}))
    await settled(
        lambda: (len(delivery.begun), first.answered),
        lambda: bool(first.task and first.task.done()) or bool(delivery.begun),
    )
    await turns()
    seen["answered first"] = first.answered
    delivery.gate.set()
    await client.finish([first])
    await turns()
    most_open.cancel()
    seen.update(order=first, stored=dict(database.orders), delivered=set(database.delivered))
    open_after["an order"] = len(database.open)

    # Orders that fail, each in its own place.
    for what, name in (("storing failed", "bad"), ("the commit failed", "late"), ("the request was cancelled", "slow")):
        database.refuses_commits = name == "late"
        delivery.alone = not database.open
        if name == "slow":
            exchange = client.start("/orders/slow", "POST")
            await settled(database.adding.is_set, database.adding.is_set)
            exchange.cancel()
            await client.finish([exchange])
        else:
            exchange = await order(name)
        database.refuses_commits = False
        await turns()
        seen["failed"].append((what[0].upper() + what[1:], exchange.status, name in database.orders.values()))
        open_after[what] = len(database.open)

    # A delivery that fails, and then two orders at once.
    delivery.fails, delivery.alone = True, not database.open
    seen["late status"] = (await order("cake")).status
    delivery.fails = False
    numbers = [number for number, name in database.orders.items() if name == "cake"]
    seen["order stays"], seen["half delivered"] = bool(numbers), bool(set(numbers) & database.delivered)
    open_after["a delivery that failed"] = len(database.open)
    delivery.alone = False
    pair = [client.start(f"/orders/{name}", "POST") for name in ("milk", "rice")]
    await client.finish(pair)
    await turns()
    seen["expected"] = sorted(database.orders)
    open_after["two orders at once"] = len(database.open)


async def _watch(database: _Database, seen: dict[str, Any]) -> None:
    """Note the most sessions that one request holds open, turn by turn."""
    while True:
        seen["most"] = max(seen["most"], len(database.open))
        await asyncio.sleep(0)
