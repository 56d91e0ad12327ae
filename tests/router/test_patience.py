"""A limit in the loop's own steps: silence ends it, lateness of one's own does not, and who leaves is not held."""

import asyncio
import time

import pytest
from stagemesh.services.router.cache.patience import STEPS, patiently

LIMIT_S = 0.2


async def forever():
    answer = asyncio.get_running_loop().create_future()
    return await patiently(answer, answer.cancel, LIMIT_S)


async def test_silence_ends_it():
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await forever()
    assert time.monotonic() - started >= 0.9 * LIMIT_S
    assert not asyncio.current_task().cancelling()


async def test_an_answer_that_came_while_the_loop_was_late_is_taken():
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    def late(turns):
        """Turns of twice the limit each; the answer is there after a few of them."""
        time.sleep(2 * LIMIT_S)
        loop.call_soon(late, turns - 1) if turns else answer.set_result("it")

    loop.call_soon(late, STEPS - 3)
    assert await patiently(answer, answer.cancel, LIMIT_S) == "it"


async def test_who_leaves_is_not_told_of_a_limit():
    for leaves_after_s in (0, LIMIT_S / 2):
        task = asyncio.create_task(forever())
        await asyncio.sleep(leaves_after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_who_leaves_in_the_moment_of_the_limit_leaves():
    answer = asyncio.get_running_loop().create_future()

    def give_up():
        answer.cancel()
        task.cancel()

    async def asked():
        await patiently(answer, give_up, LIMIT_S)

    task = asyncio.create_task(asked())
    with pytest.raises(asyncio.CancelledError):
        await task
