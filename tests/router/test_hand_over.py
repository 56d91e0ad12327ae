"""The scope that ends requests when their router goes: who was cancelled by whom."""

import asyncio

import pytest
from stagemesh.services.router.hand_over import HandOver

from stagemesh.errors import Unavailable


async def scoped(hand_over, body):
    with hand_over.scope():
        return await body


async def test_what_runs_ends_and_what_ended_does_not_care():
    hand_over = HandOver()
    assert await scoped(hand_over, asyncio.sleep(0, "done")) == "done"
    running = [asyncio.create_task(scoped(hand_over, asyncio.sleep(60))) for _ in range(3)]
    await asyncio.sleep(0)
    assert "3 running" in repr(hand_over)
    hand_over.begin()
    hand_over.begin()
    for task in running:
        with pytest.raises(Unavailable, match="go on at another one"):
            await task
    assert "0 running" in repr(hand_over)


async def test_what_comes_afterwards_ends_at_its_first_wait():
    hand_over = HandOver()
    hand_over.begin()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(scoped(hand_over, asyncio.sleep(60)), 5)
    with hand_over.scope():
        pass  # it waits for nothing, and is done
    await asyncio.sleep(0)
    assert not asyncio.current_task().cancelling()


async def test_a_caller_who_leaves_is_no_shutdown():
    hand_over = HandOver()
    task = asyncio.create_task(scoped(hand_over, asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_leaves_in_the_moment_of_the_shutdown_has_left():
    hand_over = HandOver()
    task = asyncio.create_task(scoped(hand_over, asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()
    hand_over.begin()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_body_stays_what_it_is():
    hand_over = HandOver()

    async def fails():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise KeyError("while it was ended") from None

    task = asyncio.create_task(scoped(hand_over, fails()))
    await asyncio.sleep(0)
    hand_over.begin()
    with pytest.raises(KeyError):
        await task
    assert not task.cancelling()
