"""Right and wrong answers to exercise 7.2, the honest load generator.

Every wrong answer names the property that its check must report as missing.
"""

from __future__ import annotations

import asyncio
import contextlib

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

ALL = "sends every request that is due"
ON_TIME = "sends each request when it is due"
UNLIMITED = "waits for no answer before it sends"
NO_DRIFT = "keeps to its schedule when the loop was held"
FROM_DUE = "counts from the time when the request was due"
ONE_EACH = "one outcome for each request, in the order in which they were due"
TAIL = "p99 within 5 % of the formula on a server that stalls"
ERRORS = "an error is the outcome of its request, and stops no other"
NO_TASKS = "leaves no task behind"


@stub("7.2")
async def open_loop_stub(send, rate, seconds):
    """Return the outcomes."""


@stub("7.2")
async def open_loop_stub_raising(send, rate, seconds):
    raise NotImplementedError


async def timed(send, due):
    try:
        await send()
    except Exception as error:
        return error
    return asyncio.get_running_loop().time() - due


@right("7.2")
async def scheduled_tasks(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []
    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(due - loop.time())
            tasks.append(group.create_task(timed(send, due)))
    return [task.result() for task in tasks]


@right("7.2")
async def tasks_that_wait_for_their_time(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(due):
        await asyncio.sleep(max(0.0, due - loop.time()))
        return await timed(send, due)

    return list(await asyncio.gather(*(one(start + number / rate) for number in range(round(rate * seconds)))))


@right("7.2")
async def timers_and_slots(send, rate, seconds):
    """The loop's own timers start the requests."""
    loop = asyncio.get_running_loop()
    start, count = loop.time(), round(rate * seconds)
    outcomes, tasks, done = [None] * count, set(), asyncio.Event()

    async def one(number, due):
        outcomes[number] = await timed(send, due)
        if None not in outcomes[-1:] and all(one is not None for one in outcomes):
            done.set()

    def begin(number, due):
        task = loop.create_task(one(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    timers = [loop.call_at(start + n / rate, begin, n, start + n / rate) for n in range(count)]
    try:
        await done.wait()
    finally:
        for timer in timers:
            timer.cancel()
        for task in (left := list(tasks)):
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    return outcomes


@wrong("7.2", ON_TIME)
async def closed_workers(send, rate, seconds):
    loop, outcomes = asyncio.get_running_loop(), []
    left = round(rate * seconds)

    async def worker():
        nonlocal left
        while left > 0:
            left -= 1
            outcomes.append(await timed(send, loop.time()))

    await asyncio.gather(*(worker() for _ in range(10)))
    return outcomes


@wrong("7.2", TAIL)
async def paced_closed_workers(send, rate, seconds):
    """Each worker keeps to its part of the schedule while the server does."""
    loop = asyncio.get_running_loop()
    start, outcomes = loop.time(), [None] * round(rate * seconds)

    async def worker(first):
        for number in range(first, len(outcomes), 10):
            await asyncio.sleep(start + number / rate - loop.time())
            outcomes[number] = await timed(send, loop.time())

    await asyncio.gather(*(worker(first) for first in range(10)))
    return outcomes


@wrong("7.2", UNLIMITED)
async def semaphore_inside(send, rate, seconds):
    """Counts from the due time, but never has more than 500 unanswered."""
    loop, room = asyncio.get_running_loop(), asyncio.Semaphore(500)
    start, tasks = loop.time(), []

    async def one(due):
        async with room:
            return await timed(send, due)

    for number in range(round(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(due - loop.time())
        tasks.append(asyncio.create_task(one(due)))
    return list(await asyncio.gather(*tasks))


@wrong("7.2", UNLIMITED)
async def one_after_the_other(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, outcomes = loop.time(), []
    for number in range(round(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(due - loop.time())
        outcomes.append(await timed(send, due))
    return outcomes


@wrong("7.2", ALL)
async def late_ones_dropped(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []
    for number in range(round(rate * seconds)):
        due = start + number / rate
        if due < loop.time() - 1 / rate:
            continue
        await asyncio.sleep(due - loop.time())
        tasks.append(asyncio.create_task(timed(send, due)))
    return list(await asyncio.gather(*tasks))


@wrong("7.2", FROM_DUE)
async def from_the_actual_send(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []
    for number in range(round(rate * seconds)):
        await asyncio.sleep(start + number / rate - loop.time())
        tasks.append(asyncio.create_task(timed(send, loop.time())))
    return list(await asyncio.gather(*tasks))


@wrong("7.2", NO_DRIFT)
async def relative_sleeps(send, rate, seconds):
    loop, tasks = asyncio.get_running_loop(), []
    for _ in range(round(rate * seconds)):
        tasks.append(asyncio.create_task(timed(send, loop.time())))
        await asyncio.sleep(1 / rate)
    return list(await asyncio.gather(*tasks))


@wrong("7.2", NO_DRIFT)
async def moved_schedule(send, rate, seconds):
    """After a hold, the rest of the schedule is moved back."""
    loop = asyncio.get_running_loop()
    due, tasks = loop.time(), []
    for _ in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, due - loop.time()))
        due = max(due, loop.time())
        tasks.append(asyncio.create_task(timed(send, due)))
        due += 1 / rate
    return list(await asyncio.gather(*tasks))


@wrong("7.2", ON_TIME)
async def a_burst_every_second(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []
    for number in range(round(rate * seconds)):
        due = start + int(number / rate)
        await asyncio.sleep(max(0.0, due - loop.time()))
        tasks.append(asyncio.create_task(timed(send, due)))
    return list(await asyncio.gather(*tasks))


@wrong("7.2", ALL)
async def one_too_many(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []
    while (due := start + len(tasks) / rate) <= start + seconds:
        await asyncio.sleep(due - loop.time())
        tasks.append(asyncio.create_task(timed(send, due)))
    return list(await asyncio.gather(*tasks))


@wrong("7.2", ONE_EACH)
async def in_the_order_of_answers(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, outcomes = loop.time(), []

    async def one(due):
        outcomes.append(await timed(send, due))

    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(due - loop.time())
            group.create_task(one(due))
    return outcomes


@wrong("7.2", ERRORS)
async def errors_lost(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, outcomes = loop.time(), []

    async def one(due):
        with contextlib.suppress(Exception):
            await send()
            return loop.time() - due

    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(due - loop.time())
            outcomes.append(group.create_task(one(due)))
    return [task.result() for task in outcomes if task.result() is not None]


@wrong("7.2", ERRORS)
async def errors_have_a_latency(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []

    async def one(due):
        with contextlib.suppress(Exception):
            await send()
        return loop.time() - due

    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(due - loop.time())
            tasks.append(group.create_task(one(due)))
    return [task.result() for task in tasks]


@wrong("7.2", ERRORS)
async def the_first_error_ends_the_run(send, rate, seconds):
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []

    async def one(due):
        await send()
        return loop.time() - due

    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(due - loop.time())
            tasks.append(group.create_task(one(due)))
    return [task.result() for task in tasks]


@wrong("7.2", NO_TASKS)
async def cancelled_it_goes_on(send, rate, seconds):
    """Nobody cancels the requests that are in flight when it is cancelled itself."""
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []
    for number in range(round(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(due - loop.time())
        tasks.append(asyncio.create_task(timed(send, due)))
    return [await asyncio.shield(task) for task in tasks]


@wrong("7.2", ONE_EACH)
async def returns_at_the_end_of_the_schedule(send, rate, seconds):
    """What has no answer yet when the time is up is not waited for."""
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []
    for number in range(round(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(due - loop.time())
        tasks.append(asyncio.create_task(timed(send, due)))
    await asyncio.sleep(0.001)
    return [task.result() for task in tasks if task.done()]
