"""Right and wrong answers to exercise 9.4, deadline propagation."""

from __future__ import annotations

import asyncio
import contextlib

from answers.register import Register

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

TOLD = "tells each attempt what is left of the budget"
BUDGET = "attempts, pauses and body together keep to the budget"
ALL_OF_IT = "an attempt may use all that is left"
RETRIES = "tries again while there is time"
AT_MOST = "at most three attempts, 0.1 s apart"
TRANSIENT = "tries again only after a lost connection, 502, 503 and 504"
FIRST_BYTE = "no retry after the first byte"
NO_SLEEP = "does not sleep into the deadline"
GIVES_UP = "giving up, passes on the last reply or error"
ONE_REPLY = "the client gets one reply, whole"
STREAMS = "passes each piece on as it comes"
CLOSES = "closes each reply before the next attempt"
SPENT = "makes no attempt when nothing is left"
CANCELS = "passes a cancellation on"
NO_TASKS = "leaves no task behind"
BUSY = (502, 503, 504)


@stub("9.4")
async def forward_stub(send, write, budget_ms):
    """Pass one reply on."""
    raise NotImplementedError


@stub("9.4")
async def forward_pass(send, write, budget_ms): ...


@right("9.4")
async def forward(send, write, budget_ms):
    loop = asyncio.get_running_loop()
    deadline = loop.time() + budget_ms / 1000
    if budget_ms <= 0:
        raise TimeoutError("nothing is left of the budget")
    async with asyncio.timeout_at(deadline):
        for number in (1, 2, 3):
            begun = False

            def another(number=number):
                return number < 3 and loop.time() + 0.1 < deadline

            try:
                async with send({"x-deadline-ms": str(int(1000 * (deadline - loop.time())))}) as reply:
                    if reply.status not in BUSY or not another():
                        async for piece in reply:
                            begun = True
                            await write(piece)
                        return reply.status
            except ConnectionError:
                if begun or not another():
                    raise
            await asyncio.sleep(0.1)


@right("9.4")
async def forward_wait_for(send, write, budget_ms):
    """An inner function under wait_for, a list of failures, and the pause before an attempt."""
    loop = asyncio.get_running_loop()
    end, wrote = loop.time() + budget_ms / 1000, []

    async def attempt(is_last):
        async with send({"x-deadline-ms": f"{1000 * (end - loop.time()):.0f}"}) as reply:
            if reply.status in BUSY and not is_last():
                return None
            async for piece in reply:
                wrote.append(piece)
                await write(piece)
            return reply.status

    async def attempts():
        for left in (2, 1, 0):

            def is_last(left=left):
                return not left or end - loop.time() <= 0.1

            try:
                if (status := await attempt(is_last)) is not None:
                    return status
            except OSError:
                if wrote or is_last():
                    raise
            await asyncio.sleep(0.1)

    if end <= loop.time():
        raise TimeoutError
    return await asyncio.wait_for(attempts(), end - loop.time())


@right("9.4")
async def forward_recursive(send, write, budget_ms, attempt=1):
    """Each level gets what is left; one timeout a level, all of the same moment."""
    loop = asyncio.get_running_loop()
    end, passed_on = loop.time() + budget_ms / 1000, 0
    if budget_ms <= 0:
        raise TimeoutError
    async with asyncio.timeout(budget_ms / 1000):
        try:
            async with send({"x-deadline-ms": str(round(budget_ms))}) as reply:
                final = attempt == 3 or loop.time() + 0.1 > end
                if reply.status not in BUSY or final:
                    async for piece in reply:
                        passed_on += 1
                        await write(piece)
                    return reply.status
        except ConnectionError:
            if attempt == 3 or passed_on or loop.time() + 0.1 > end:
                raise
        await asyncio.sleep(0.1)
        return await forward_recursive(send, write, 1000 * (end - loop.time()), attempt + 1)


def _forward(
    *,
    busy=BUSY,
    attempts=3,
    pause=0.1,
    least=0.1,
    lost=ConnectionError,
    told=lambda budget_ms, left: str(int(1000 * left)),
    scope=lambda deadline: asyncio.timeout_at(deadline),
    each=lambda budget_ms: contextlib.nullcontext(),
    flag_first=True,
    spent=True,
    retry_anyway=False,
):
    """The right answer with one thing changed."""

    async def forward(send, write, budget_ms):
        loop = asyncio.get_running_loop()
        deadline = loop.time() + budget_ms / 1000
        if spent and budget_ms <= 0:
            raise TimeoutError
        async with scope(deadline):
            for number in range(1, attempts + 1):
                begun = False

                def another(number=number):
                    return number < attempts and loop.time() + least < deadline

                try:
                    headers = {"x-deadline-ms": told(budget_ms, deadline - loop.time())}
                    async with each(budget_ms), send(headers) as reply:
                        if not (reply.status in busy and another()):
                            async for piece in reply:
                                begun = flag_first
                                await write(piece)
                                begun = True
                            return reply.status
                except lost:
                    if (begun and not retry_anyway) or not another():
                        raise
                await asyncio.sleep(pause)

    return forward


def _variant(lacking, name, **change):
    answer = _forward(**change)
    answer.__name__ = answer.__qualname__ = name
    wrong("9.4", lacking)(answer)


_variant(ALL_OF_IT, "fixed_timeout_per_hop", each=lambda _: asyncio.timeout(1), lost=(ConnectionError, TimeoutError))
_variant(ALL_OF_IT, "budget_shared_out_evenly", each=lambda ms: asyncio.timeout(ms / 3000), lost=(OSError,))
_variant(
    BUDGET,
    "budget_restarted_per_attempt",
    scope=lambda _: contextlib.nullcontext(),
    each=lambda ms: asyncio.timeout(ms / 1000),
)
_variant(BUDGET, "no_deadline_at_all", scope=lambda _: contextlib.nullcontext())
_variant(TOLD, "tells_the_whole_budget", told=lambda ms, left: str(int(ms)))
_variant(TOLD, "tells_seconds", told=lambda ms, left: str(int(left)))
_variant(TOLD, "tells_a_number_and_no_text", told=lambda ms, left: int(1000 * left))
_variant(FIRST_BYTE, "retry_after_the_first_byte", retry_anyway=True)
_variant(FIRST_BYTE, "flag_set_after_the_write", flag_first=False)
_variant(TRANSIENT, "retry_of_4xx", busy=range(400, 600))
_variant(TRANSIENT, "retry_of_500", busy=range(500, 600))
_variant(TRANSIENT, "retry_of_429", busy=(429, *BUSY))
_variant(TRANSIENT, "retry_of_every_exception", lost=Exception)
_variant(RETRIES, "statuses_are_never_retried", busy=())
_variant(RETRIES, "no_retry_of_504", busy=(502, 503))
_variant(RETRIES, "no_last_attempt", attempts=2)
_variant(RETRIES, "gives_up_long_before_the_end", least=0.5)
_variant(AT_MOST, "four_attempts", attempts=4)
_variant(AT_MOST, "no_pause", pause=0)
_variant(AT_MOST, "a_longer_pause", pause=0.3)
_variant(NO_SLEEP, "sleeps_into_the_deadline", least=0)
_variant(SPENT, "an_attempt_without_budget", spent=False)
_variant(CANCELS, "takes_a_cancellation_for_a_lost_connection", lost=(ConnectionError, asyncio.CancelledError))


@wrong("9.4", ONE_REPLY)
async def forward_length_for_a_moment(send, write, budget_ms):
    """Takes the budget for a moment on the clock of the loop, which began long ago."""
    async with asyncio.timeout_at(budget_ms / 1000):
        return await _forward()(send, write, budget_ms)


@wrong("9.4", STREAMS)
async def forward_whole_bodies(send, write, budget_ms):
    """It could be tried again to the end, but nothing is passed on before it is complete."""
    pieces = []

    async def keep(piece):
        pieces.append(piece)

    status = await _forward()(send, keep, budget_ms)
    for piece in pieces:
        await write(piece)
    return status


@wrong("9.4", RETRIES)
async def forward_no_retry(send, write, budget_ms):
    """One attempt, and whatever it says."""
    async with asyncio.timeout(budget_ms / 1000), send({"x-deadline-ms": str(budget_ms)}) as reply:
        async for piece in reply:
            await write(piece)
        return reply.status


@wrong("9.4", ONE_REPLY)
async def forward_errors_too(send, write, budget_ms):
    """Writes what the busy upstream said, and then the reply."""
    for _ in range(3):
        with contextlib.suppress(ConnectionError):
            async with send({"x-deadline-ms": str(budget_ms)}) as reply:
                async for piece in reply:
                    await write(piece)
                if reply.status not in BUSY:
                    return reply.status
        await asyncio.sleep(0.1)


@wrong("9.4", BUDGET)
async def forward_headers_only(send, write, budget_ms):
    """The deadline ends with the headers; a body may take for ever."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + budget_ms / 1000

    @contextlib.asynccontextmanager
    async def limited(headers):
        sending = send(headers)
        async with asyncio.timeout_at(deadline):
            reply = await sending.__aenter__()
        try:
            yield reply
        finally:
            await sending.__aexit__(None, None, None)

    return await _forward(scope=lambda _: contextlib.nullcontext())(limited, write, budget_ms)


@wrong("9.4", CANCELS)
async def forward_timeout_for_all(send, write, budget_ms):
    """A client that leaves is no timeout."""
    try:
        return await _forward()(send, write, budget_ms)
    except asyncio.CancelledError:
        raise TimeoutError from None


@wrong("9.4", NO_TASKS)
async def forward_shielded(send, write, budget_ms):
    """The attempts go on when their caller has left."""
    return await asyncio.shield(asyncio.ensure_future(_forward()(send, write, budget_ms)))


@wrong("9.4", GIVES_UP)
async def forward_always_a_timeout(send, write, budget_ms):
    """What really happened is lost."""
    try:
        return await _forward()(send, write, budget_ms)
    except ConnectionRefusedError as lost:
        raise TimeoutError from lost


@wrong("9.4", CLOSES)
async def forward_leaves_replies_open(send, write, budget_ms):
    """Enters the next reply inside the one before."""
    async with contextlib.AsyncExitStack() as stack:

        @contextlib.asynccontextmanager
        async def kept(headers):
            yield await stack.enter_async_context(send(headers))

        return await _forward()(kept, write, budget_ms)
