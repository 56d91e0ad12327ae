"""A loop outlives what its steps raise, and says what it was."""

import asyncio
import logging

import pytest
from stagemesh.services.registry.again import again_and_again
from stagemesh.services.registry.leadership import Fenced

from stagemesh.errors import Unavailable


async def test_every_fault_is_logged_and_the_next_step_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    faults = [None, Fenced("over"), Unavailable("etcd is away"), ValueError("a bug")]
    begun, through, steps = asyncio.Event(), asyncio.Event(), 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps > len(faults):
            through.set()
        elif (fault := faults[steps - 1]) is not None:
            raise fault

    with caplog.at_level(logging.WARNING):
        task = asyncio.create_task(again_and_again("rollout", step, 0.001, begun))
        await asyncio.sleep(0.05)
        assert steps == 0, "nothing is known yet"
        begun.set()
        async with asyncio.timeout(20):
            await through.wait()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    told = [(each.levelno, each.getMessage()) for each in caplog.records]
    assert told == [
        (logging.WARNING, "rollout.fenced: over"),
        (logging.WARNING, "rollout.step_failed: etcd is away"),
        (logging.ERROR, "rollout.step_failed"),
    ]
    assert "a bug" in caplog.text
