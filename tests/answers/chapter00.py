"""Right and wrong answers to the warm-up. Every wrong one names the property that its check must report."""

from __future__ import annotations

import asyncio
import collections

RIGHT: dict[str, list] = collections.defaultdict(list)
WRONG: dict[str, list] = collections.defaultdict(list)
STUBS: dict[str, list] = collections.defaultdict(list)


def right(answer):
    RIGHT["0.1"].append(answer)
    return answer


def wrong(lacking):
    return lambda answer: WRONG["0.1"].append((answer, lacking)) or answer


async def stub(fetch):
    raise NotImplementedError


STUBS["0.1"].append(stub)


@right
async def double(fetch):
    return 2 * await fetch()


@right
async def double_by_a_task(fetch):
    return 2 * await asyncio.create_task(fetch())


@right
async def double_by_a_group(fetch):
    async with asyncio.TaskGroup() as group:
        task = group.create_task(fetch())
    return task.result() + task.result()


@wrong("runs without an error")
async def forgets_to_await(fetch):
    return 2 * fetch()


@wrong("calls fetch once")
async def calls_twice(fetch):
    return await fetch() + await fetch()


@wrong("returns twice the number")
async def returns_the_number(fetch):
    return await fetch()


@wrong("returns twice the number")
async def squares(fetch):
    return (await fetch()) ** 2


@wrong("returns twice the number")
async def prints_only(fetch):
    print(2 * await fetch())


@wrong("returns twice the number")
async def answers_in_text(fetch):
    return str(2 * await fetch())


@wrong("waits for fetch")
async def starts_and_leaves(fetch):
    asyncio.create_task(fetch())
    await asyncio.sleep(0)
    return 42


@wrong("calls fetch once")
async def never_calls(fetch):
    number = 21
    return 2 * number


@wrong("is a coroutine function")
def is_not_async(fetch):
    number = 21
    return 2 * number


@wrong("lets a failure out")
async def swallows_failures(fetch):
    try:
        return 2 * await fetch()
    except Exception:
        return 0


@wrong("passes a cancellation on")
async def swallows_cancellation(fetch):
    try:
        return 2 * await fetch()
    except asyncio.CancelledError:
        return 0


@wrong("passes a cancellation on")
async def shields_the_call(fetch):
    task = asyncio.ensure_future(fetch())
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
    return 2 * task.result()


@wrong("leaves no task behind")
async def leaves_a_task(fetch):
    asyncio.create_task(asyncio.sleep(9))
    return 2 * await fetch()
