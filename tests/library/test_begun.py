"""Work that has begun before anyone awaits it."""

import asyncio

import pytest

from stagemesh.begun import Begun

pytestmark = pytest.mark.asyncio


async def test_the_first_step_runs_at_once_and_the_rest_when_awaited() -> None:
    log: list[str] = []
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        log.append("begun")
        log.append(await answer)
        await asyncio.sleep(0)
        log.append("done")

    begun = Begun(work())
    assert log == ["begun"]
    answer.set_result("answered")
    await begun
    assert log == ["begun", "answered", "done"]


async def test_work_that_needs_no_waiting_is_over_at_once() -> None:
    async def work() -> None:
        pass

    await Begun(work())


async def test_what_the_first_step_raises_is_for_whoever_awaits() -> None:
    async def work() -> None:
        raise ValueError("no")

    begun = Begun(work())
    with pytest.raises(ValueError, match="no"):
        await begun


async def test_what_a_later_step_raises_too() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await Begun(work())


async def test_a_cancelled_wait_cancels_the_work() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def wait() -> None:
        await begun

    begun = Begun(work())
    task = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


async def test_abandoned_work_ends_where_it_stands() -> None:
    ended: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    begun = Begun(work())
    begun.abandon()
    begun.abandon()
    assert ended == [True]
