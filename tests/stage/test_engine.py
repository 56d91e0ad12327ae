"""Passes run in order, one at a time: short ones on the loop's thread, long ones never."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable

import pytest
from stagemesh.services.stage.engine import Engine, Outcome
from stagemesh.services.stage.short import PROOF

from stagemesh.errors import Unavailable

pytestmark = pytest.mark.asyncio

SIZE = (1, 4)
OTHER = (3, 4)


def sleeping(seconds: float, log: list[object] | None = None, name: object = None) -> Callable[[], int]:
    def work() -> int:
        time.sleep(seconds)
        if log is not None:
            log.append(name)
        return threading.get_ident()

    return work


async def one(engine: Engine, work: Callable[[], object], size: tuple[int, int] | None = SIZE) -> Outcome:
    """Submit a pass; what became of it."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    engine.submit(work, future.set_result, size)
    return await asyncio.wait_for(future, 5)


async def prove(engine: Engine) -> None:
    """Passes until one of SIZE runs on the loop."""
    for _ in range(50 * PROOF):
        if (await one(engine, sleeping(0))).result == threading.get_ident():
            return
        await asyncio.sleep(0)
    raise AssertionError("no pass ever ran on the loop")


async def test_short_passes_come_to_run_on_the_loop_and_others_do_not() -> None:
    engine = Engine("e")
    assert (await one(engine, sleeping(0))).result != threading.get_ident()
    await prove(engine)
    await asyncio.sleep(0)
    assert (await one(engine, sleeping(0.02), OTHER)).result != threading.get_ident()
    assert (await one(engine, sleeping(0), None)).result != threading.get_ident()
    engine.close()


async def test_passes_that_become_long_leave_the_loop() -> None:
    engine = Engine("e")
    await prove(engine)
    on_loop = 0
    for _ in range(10):
        await asyncio.sleep(0)
        on_loop += (await one(engine, sleeping(0.005))).result == threading.get_ident()
    assert on_loop <= 2
    engine.close()


async def test_the_loop_gets_its_turn_between_two_passes_on_it() -> None:
    engine = Engine("e")
    await prove(engine)
    await asyncio.sleep(0)
    threads: list[int] = []
    for _ in range(2):
        engine.submit(sleeping(0), lambda outcome: threads.append(outcome.result), SIZE)
    assert len(threads) == 1
    async with asyncio.timeout(5):
        while len(threads) < 2:
            await asyncio.sleep(0.001)
    assert threads[0] == threading.get_ident() != threads[1]
    engine.close()


async def test_order_holds_whatever_runs_where() -> None:
    engine = Engine("e")
    await prove(engine)
    computed: list[object] = []
    ended: list[object] = []
    for number in range(40):
        engine.submit(
            sleeping(0.002 if number % 7 == 3 else 0, computed, number),
            lambda outcome, number=number: ended.append(number),
            OTHER if number % 7 == 3 else SIZE,
        )
        if number % 3 == 0:
            await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        while engine.waiting:
            await asyncio.sleep(0.001)
    assert computed == ended == list(range(40))
    assert engine.on_loop > 1
    engine.close()


async def test_a_pass_that_fails_says_so_and_the_next_runs() -> None:
    engine = Engine("e")

    def fails() -> None:
        raise ValueError("no")

    assert isinstance((await one(engine, fails)).error, ValueError)
    await prove(engine)
    await asyncio.sleep(0)
    assert isinstance((await one(engine, fails)).error, ValueError)
    assert (await one(engine, sleeping(0))).error is None
    assert engine.waiting == 0
    with pytest.raises(ValueError, match="no"):
        await engine.run(fails)
    engine.close()


async def test_a_caller_that_leaves_does_not_stop_a_pass() -> None:
    engine = Engine("e")
    log: list[object] = []
    task = asyncio.create_task(engine.run(sleeping(0.05, log, "ran")))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await engine.run(lambda: list(log)))[0] == ["ran"]
    engine.close()


async def test_closing_fails_what_waits_and_lets_the_running_pass_end() -> None:
    engine = Engine("e")
    outcomes: list[Outcome] = []
    for _ in range(3):
        engine.submit(sleeping(0.05), outcomes.append)
    await asyncio.sleep(0.01)
    engine.close()
    assert [type(outcome.error) for outcome in outcomes] == [Unavailable, Unavailable]
    async with asyncio.timeout(5):
        while len(outcomes) < 3:
            await asyncio.sleep(0.001)
    assert outcomes[2].error is None
    engine.submit(sleeping(0), outcomes.append)
    assert isinstance(outcomes[3].error, Unavailable)
    assert engine.waiting == 0


async def test_idle_time_is_counted_from_the_end_of_the_pass_before() -> None:
    engine = Engine("e")
    first = (await one(engine, sleeping(0))).timing
    assert first.idle_us(0) == 0
    await asyncio.sleep(0.03)
    second = (await one(engine, sleeping(0))).timing
    assert second.idle_us(0) >= 30_000
    assert second.idle_us(second.started - 0.001) == pytest.approx(1000, abs=2)
    engine.submit(sleeping(0.03), lambda _: None)
    third = (await one(engine, sleeping(0))).timing
    assert third.queue_us >= 30_000 > third.idle_us(0)
    engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux only")
async def test_passes_give_way_to_the_loop_and_its_thread_does_not() -> None:
    engine = Engine("e", nice=3)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    nice, _ = await engine.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert nice == min(before + 3, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
    engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux only")
async def test_as_nice_as_it_gets() -> None:
    engine = Engine("e", nice=19)
    nice, _ = await engine.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert nice == 19
    engine.close()
