"""Exercise 10.4, the graceful drain: answers the check must accept, answers it must reject and why, and stubs."""

from __future__ import annotations

import asyncio
import contextlib

from answers.register import Register

from support.exercises.drain10 import (
    BOUND,
    ENDED,
    FINISHES,
    IN_FLIGHT,
    LET_IN,
    NO_NEW_JOB,
    NOT_LOST,
    NOTICED,
    ONCE,
    PROMPT,
)
from support.exercises.harness import NO_ERROR

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub


@stub("10.4")
async def drain_stub(replica, notice_s, grace_s):
    """Drain the replica."""


@stub("10.4")
async def drain_that_raises(replica, notice_s, grace_s):
    raise NotImplementedError


def now():
    return asyncio.get_running_loop().time()


async def leave(replica, notice_s):
    """The right beginning, for those whose mistake comes later."""
    replica.ready = replica.taking = False
    await asyncio.sleep(notice_s)
    replica.close()


def work_of(replica):
    return {*replica.requests, *replica.jobs.values()}


async def cancelled(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def give_back_all(replica):
    for job in list(replica.jobs):
        replica.give_back(job)


@right("10.4")
async def waits_with_a_timeout(replica, notice_s, grace_s):
    end = now() + grace_s
    await leave(replica, notice_s)
    if work := work_of(replica):
        _, late = await asyncio.wait(work, timeout=end - now())
        await cancelled(late)
    give_back_all(replica)


@right("10.4")
async def a_scope_and_polling(replica, notice_s, grace_s):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await leave(replica, notice_s)
            while replica.requests or any(not task.done() for task in replica.jobs.values()):
                await asyncio.sleep(0.01)
    await cancelled(work_of(replica))
    give_back_all(replica)


@right("10.4")
async def requests_and_jobs_apart(replica, notice_s, grace_s):
    async def jobs():
        replica.taking = False
        if mine := dict(replica.jobs):
            _, late = await asyncio.wait(mine.values(), timeout=grace_s)
            await cancelled(late)
            for job in mine:
                if job in replica.jobs:
                    replica.give_back(job)

    async def requests():
        replica.ready = False
        await asyncio.sleep(notice_s)
        replica.close()
        if replica.requests:
            _, late = await asyncio.wait(list(replica.requests), timeout=grace_s - notice_s)
            await cancelled(late)

    await asyncio.gather(jobs(), requests())


@wrong("10.4", NOTICED)
async def only_closes(replica, notice_s, grace_s):
    replica.close()


@wrong("10.4", PROMPT)
async def only_sleeps(replica, notice_s, grace_s):
    await asyncio.sleep(30)


@wrong("10.4", NOTICED)
async def closes_first(replica, notice_s, grace_s):
    replica.close()
    replica.ready = replica.taking = False
    await requests_and_jobs_apart(replica, notice_s, grace_s)


@wrong("10.4", NOTICED)
async def closes_at_once_after_readiness(replica, notice_s, grace_s):
    await waits_with_a_timeout(replica, 0, grace_s)


@wrong("10.4", NOTICED)
async def readiness_stays_on(replica, notice_s, grace_s):
    replica.taking = False
    await asyncio.sleep(notice_s)
    replica.close()
    _, late = await asyncio.wait({*work_of(replica), asyncio.create_task(asyncio.sleep(0))}, timeout=grace_s - notice_s)
    await cancelled(late)
    give_back_all(replica)


@wrong("10.4", IN_FLIGHT)
async def cancels_at_once(replica, notice_s, grace_s):
    await leave(replica, notice_s)
    await cancelled(work_of(replica))
    give_back_all(replica)


@wrong("10.4", IN_FLIGHT)
async def returns_at_once(replica, notice_s, grace_s):
    await leave(replica, notice_s)


@wrong("10.4", IN_FLIGHT)
async def waits_for_those_of_the_beginning(replica, notice_s, grace_s):
    end, there = now() + grace_s, work_of(replica)
    await leave(replica, notice_s)
    if there:
        await asyncio.wait(there, timeout=end - now())
    await cancelled(work_of(replica))
    give_back_all(replica)


@wrong("10.4", IN_FLIGHT)
async def jobs_only(replica, notice_s, grace_s):
    await leave(replica, notice_s)
    if replica.jobs:
        await asyncio.wait(list(replica.jobs.values()), timeout=grace_s - notice_s)
    await cancelled(work_of(replica))
    give_back_all(replica)


@wrong("10.4", LET_IN)
async def never_closes(replica, notice_s, grace_s):
    end = now() + grace_s
    replica.ready = replica.taking = False
    await asyncio.sleep(notice_s)
    if work := work_of(replica):
        _, late = await asyncio.wait(work, timeout=end - now())
        await cancelled(late)
    give_back_all(replica)


@wrong("10.4", PROMPT)
async def always_the_whole_grace(replica, notice_s, grace_s):
    await leave(replica, notice_s)
    await asyncio.sleep(grace_s - notice_s)
    await cancelled(work_of(replica))
    give_back_all(replica)


@wrong("10.4", BOUND)
async def waits_without_a_bound(replica, notice_s, grace_s):
    await leave(replica, notice_s)
    if work := work_of(replica):
        await asyncio.wait(work)


@wrong("10.4", BOUND)
async def a_new_grace_for_the_jobs(replica, notice_s, grace_s):
    await leave(replica, notice_s)
    for some in (list(replica.requests), list(replica.jobs.values())):
        if some:
            _, late = await asyncio.wait(some, timeout=grace_s)
            await cancelled(late)
    give_back_all(replica)


@wrong("10.4", ENDED)
async def leaves_the_late_ones_running(replica, notice_s, grace_s):
    end = now() + grace_s
    await leave(replica, notice_s)
    if work := work_of(replica):
        await asyncio.wait(work, timeout=end - now())
    give_back_all(replica)


@wrong("10.4", ENDED)
async def does_not_wait_for_the_cleanup(replica, notice_s, grace_s):
    end = now() + grace_s
    await leave(replica, notice_s)
    if work := work_of(replica):
        _, late = await asyncio.wait(work, timeout=end - now())
        for task in late:
            task.cancel()
    give_back_all(replica)


@wrong("10.4", NO_NEW_JOB)
async def goes_on_taking_jobs(replica, notice_s, grace_s):
    end = now() + grace_s
    replica.ready = False
    await asyncio.sleep(notice_s)
    replica.close()
    while (work := work_of(replica)) and now() < end:
        await asyncio.wait(work, timeout=end - now(), return_when=asyncio.FIRST_COMPLETED)
    await cancelled(work_of(replica))
    give_back_all(replica)


@wrong("10.4", NOT_LOST)
async def forgets_the_jobs(replica, notice_s, grace_s):
    end = now() + grace_s
    await leave(replica, notice_s)
    if replica.requests:
        _, late = await asyncio.wait(list(replica.requests), timeout=end - now())
        await cancelled(late)
    if replica.jobs:
        _, late = await asyncio.wait(list(replica.jobs.values()), timeout=end - now())
        await cancelled(late)


@wrong("10.4", ONCE)
async def gives_back_what_still_runs(replica, notice_s, grace_s):
    end = now() + grace_s
    await leave(replica, notice_s)
    give_back_all(replica)
    if replica.requests:
        _, late = await asyncio.wait(list(replica.requests), timeout=end - now())
        await cancelled(late)


@wrong("10.4", ONCE)
async def gives_back_before_the_cleanup(replica, notice_s, grace_s):
    end = now() + grace_s
    await leave(replica, notice_s)
    if work := work_of(replica):
        _, late = await asyncio.wait(work, timeout=end - now())
        for task in late:
            task.cancel()
        give_back_all(replica)
        await asyncio.gather(*late, return_exceptions=True)


@wrong("10.4", FINISHES)
async def gives_all_jobs_back_at_once(replica, notice_s, grace_s):
    end = now() + grace_s
    replica.taking = False
    await cancelled(list(replica.jobs.values()))
    give_back_all(replica)
    await leave(replica, notice_s)
    if replica.requests:
        _, late = await asyncio.wait(list(replica.requests), timeout=end - now())
        await cancelled(late)


@wrong("10.4", NO_ERROR)
async def a_failed_request_ends_it(replica, notice_s, grace_s):
    await leave(replica, notice_s)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*work_of(replica)), grace_s - notice_s)
    give_back_all(replica)
