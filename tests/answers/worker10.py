"""Right and wrong answers to exercise 10.2, an idempotent worker."""

from __future__ import annotations

import asyncio
import contextlib

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

DONE = "every job is done, and acknowledged"
ONE_KEY = "one key, one effect"
RETRIES = "what failed is tried again"
TRIES = "a failing job is tried as often as stated, then it is a dead letter"
DEADLY = "a job that kills its worker becomes a dead letter too"
LOST = "killed at any step, it loses no job"
DOUBLED = "killed at any step, it doubles no effect"
TWO = "two workers with the same job, one effect"
CANCELS = "passes a cancellation on"


@stub("10.2")
async def work_stub(queue, store, handle, tries):
    raise NotImplementedError


@stub("10.2")
async def work_pass(queue, store, handle, tries):
    pass


async def in_one_transaction(store, handle, job):
    async with store.transaction() as db:
        if await db.add_key(job.key):
            await handle(job, db)


@right("10.2")
async def dead_letter_before_the_work(queue, store, handle, tries):
    while True:
        job = await queue.take()
        if job.deliveries > tries:
            await queue.dead_letter(job)
            continue
        try:
            async with store.transaction() as db:
                if await db.add_key(job.key):
                    await handle(job, db)
        except Exception:
            continue
        await queue.ack(job)


class SomebodyElse(Exception):
    pass


@right("10.2")
async def effect_then_key_and_roll_back(queue, store, handle, tries):
    """The key comes last, and one that is there undoes the effect. The last failure buries the job at once."""
    while True:
        job = await queue.take()
        if job.deliveries > tries:
            await queue.dead_letter(job)
            continue
        try:
            async with store.transaction() as db:
                await handle(job, db)
                if not await db.add_key(job.key):
                    raise SomebodyElse
        except SomebodyElse:
            await queue.ack(job)
        except Exception:
            if job.deliveries == tries:
                await queue.dead_letter(job)
        else:
            await queue.ack(job)


@right("10.2")
async def a_quick_look_first(queue, store, handle, tries):
    """The look without a transaction saves work; what decides is add_key."""

    async def one(job):
        if job.deliveries > tries and not await store.has_key(job.key):
            return await queue.dead_letter(job)
        with contextlib.suppress(Exception):
            if not await store.has_key(job.key):
                await in_one_transaction(store, handle, job)
            await queue.ack(job)

    while True:
        await one(await queue.take())


def worker(one):
    """A worker that buries jobs before the work, and does `one` with the others."""

    async def work(queue, store, handle, tries):
        while True:
            job = await queue.take()
            if job.deliveries > tries:
                await queue.dead_letter(job)
                continue
            with contextlib.suppress(Exception):
                await one(queue, store, handle, job)

    work.__name__ = work.__qualname__ = one.__name__
    return work


@wrong("10.2", RETRIES)
@worker
async def ack_before_the_work(queue, store, handle, job):
    await queue.ack(job)
    await in_one_transaction(store, handle, job)


@wrong("10.2", LOST)
@worker
async def ack_inside_the_transaction(queue, store, handle, job):
    async with store.transaction() as db:
        if await db.add_key(job.key):
            await handle(job, db)
        await queue.ack(job)


@wrong("10.2", TWO)
@worker
async def look_outside_of_the_transaction(queue, store, handle, job):
    if not await store.has_key(job.key):
        async with store.transaction() as db:
            await handle(job, db)
            await db.add_key(job.key)
    await queue.ack(job)


@wrong("10.2", TWO)
@worker
async def look_inside_of_the_transaction(queue, store, handle, job):
    async with store.transaction() as db:
        if not await db.has_key(job.key):
            await handle(job, db)
            await db.add_key(job.key)
    await queue.ack(job)


@wrong("10.2", RETRIES)
@worker
async def mark_before_the_effect(queue, store, handle, job):
    if await store.add_key(job.key):
        await handle(job, store)
    await queue.ack(job)


@wrong("10.2", LOST)
async def mark_before_the_effect_but_not_again(queue, store, handle, tries):
    """It remembers which keys it has marked itself: after its death nobody does, and the effect never comes."""
    mine = set()
    while True:
        job = await queue.take()
        if job.deliveries > tries:
            await queue.dead_letter(job)
            continue
        with contextlib.suppress(Exception):
            if job.key in mine or await store.add_key(job.key):
                mine.add(job.key)
                await handle(job, store)
                mine.discard(job.key)
            await queue.ack(job)


@wrong("10.2", DOUBLED)
@worker
async def mark_after_the_effect(queue, store, handle, job):
    if not await store.has_key(job.key):
        await handle(job, store)
        await store.add_key(job.key)
    await queue.ack(job)


@wrong("10.2", DOUBLED)
@worker
async def effect_outside_of_the_transaction(queue, store, handle, job):
    async with store.transaction() as db:
        if await db.add_key(job.key):
            await handle(job, store)
    await queue.ack(job)


@wrong("10.2", ONE_KEY)
@worker
async def no_key_at_all(queue, store, handle, job):
    async with store.transaction() as db:
        await handle(job, db)
    await queue.ack(job)


@wrong("10.2", ONE_KEY)
@worker
async def the_number_of_the_queue_as_key(queue, store, handle, job):
    async with store.transaction() as db:
        if await db.add_key(job.number):
            await handle(job, db)
    await queue.ack(job)


@wrong("10.2", DONE)
@worker
async def no_ack_at_all(queue, store, handle, job):
    await in_one_transaction(store, handle, job)


@wrong("10.2", DONE)
@worker
async def ack_only_what_is_new(queue, store, handle, job):
    async with store.transaction() as db:
        new = await db.add_key(job.key)
        if new:
            await handle(job, db)
    if new:
        await queue.ack(job)


@wrong("10.2", RETRIES)
@worker
async def error_kept_inside_the_transaction(queue, store, handle, job):
    async with store.transaction() as db:
        if await db.add_key(job.key):
            with contextlib.suppress(Exception):
                await handle(job, db)
    await queue.ack(job)


@wrong("10.2", RETRIES)
async def dead_letter_at_the_first_failure(queue, store, handle, tries):
    while True:
        job = await queue.take()
        try:
            await in_one_transaction(store, handle, job)
            await queue.ack(job)
        except Exception:
            await queue.dead_letter(job)


@wrong("10.2", RETRIES)
async def an_error_ends_the_worker(queue, store, handle, tries):
    while True:
        job = await queue.take()
        await in_one_transaction(store, handle, job)
        await queue.ack(job)


@wrong("10.2", TRIES)
async def no_dead_letter(queue, store, handle, tries):
    while True:
        job = await queue.take()
        with contextlib.suppress(Exception):
            await in_one_transaction(store, handle, job)
            await queue.ack(job)


@wrong("10.2", TRIES)
async def tries_again_for_ever(queue, store, handle, tries):
    while True:
        job = await queue.take()
        while True:
            try:
                await in_one_transaction(store, handle, job)
                break
            except Exception:
                await asyncio.sleep(1)
        await queue.ack(job)


@wrong("10.2", TRIES)
async def one_try_too_few(queue, store, handle, tries):
    while True:
        job = await queue.take()
        if job.deliveries >= tries > 1:
            await queue.dead_letter(job)
            continue
        with contextlib.suppress(Exception):
            await in_one_transaction(store, handle, job)
            await queue.ack(job)


@wrong("10.2", DEADLY)
async def counts_errors_and_no_deaths(queue, store, handle, tries):
    while True:
        job = await queue.take()
        try:
            await in_one_transaction(store, handle, job)
        except Exception:
            if job.deliveries >= tries:
                await queue.dead_letter(job)
        else:
            await queue.ack(job)


@wrong("10.2", TRIES)
async def counts_in_its_own_memory(queue, store, handle, tries):
    """It forgets what it counted when it dies, and others do not know it."""
    failed = {}
    while True:
        job = await queue.take()
        try:
            await in_one_transaction(store, handle, job)
        except Exception:
            failed[job.key] = failed.get(job.key, 0) + 1
            if failed[job.key] > tries:
                await queue.dead_letter(job)
        else:
            await queue.ack(job)


@wrong("10.2", CANCELS)
async def swallows_the_cancellation(queue, store, handle, tries):
    while True:
        job = await queue.take()
        if job.deliveries > tries:
            await queue.dead_letter(job)
            continue
        try:
            await in_one_transaction(store, handle, job)
        except BaseException:
            continue
        await queue.ack(job)


@wrong("10.2", CANCELS)
async def ends_quietly_when_cancelled(queue, store, handle, tries):
    try:
        await dead_letter_before_the_work(queue, store, handle, tries)
    except asyncio.CancelledError:
        return


@wrong("10.2", LOST)
async def acks_in_finally(queue, store, handle, tries):
    while True:
        job = await queue.take()
        if job.deliveries > tries:
            await queue.dead_letter(job)
            continue
        failed = False
        try:
            await in_one_transaction(store, handle, job)
        except Exception:
            failed = True
        finally:
            if not failed:
                await queue.ack(job)


@wrong("10.2", DONE)
async def one_job_and_home(queue, store, handle, tries):
    job = await queue.take()
    await in_one_transaction(store, handle, job)
    await queue.ack(job)
