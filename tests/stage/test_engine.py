"""Passes run in order, one at a time: short ones on the loop's thread, long ones never."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from stagemesh.services.stage.engine import Engine
from stagemesh.services.stage.jobs import Outcome
from stagemesh.services.stage.schedule import MAX_ROWS
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


class Part:
    """A pass that may run as one with others: it gives its name, or fails."""

    def __init__(self, name: object, rows: int = 1) -> None:
        self.name, self.rows = name, rows
        self.ran_with: list[list[object]] = []

    def alone(self) -> object:
        self.ran_with.append([self.name])
        return self.name

    def joined(self, others: Sequence["Part"]) -> tuple[Callable[[], list[object]], tuple[int, int]]:
        names = [each.name for each in (self, *others)]

        def run() -> list[object]:
            time.sleep(0.02)
            for each in (self, *others):
                each.ran_with.append(names)
            return [ValueError("no") if name == "fails" else name for name in names]

        return run, OTHER


async def held_up(
    engine: Engine, parts: Sequence[Part | None], pause: float = 0.05
) -> list[tuple[object, Outcome]]:
    """What became of these, which all came while a pass ran; None is a pass that others may not join."""
    ended: list[tuple[object, Outcome]] = []
    engine.submit(sleeping(pause), lambda _: None)
    await asyncio.sleep(0.01)
    for part in parts:
        name = None if part is None else part.name
        engine.submit(
            sleeping(0) if part is None else part.alone,
            lambda outcome, name=name: ended.append((name, outcome)),
            SIZE,
            part,
        )
    async with asyncio.timeout(5):
        while engine.waiting:
            await asyncio.sleep(0.001)
    return ended


async def test_passes_that_wait_one_behind_the_other_run_as_one() -> None:
    engine = Engine("e")
    parts = [Part(name) for name in "abc"]
    ended = await held_up(engine, parts)
    assert [(name, outcome.result) for name, outcome in ended] == [("a", "a"), ("b", "b"), ("c", "c")]
    assert all(part.ran_with == [["a", "b", "c"]] for part in parts)
    assert (engine.passes, engine.joined, engine.begun) == (2, 2, 2)
    timings = [outcome.timing for _, outcome in ended]
    assert all(timing.sharing == 3 and timing.compute_us == timings[0].compute_us for timing in timings)
    # Its time is counted once, and nothing stood still between those that ran at the same time.
    assert 70_000 <= engine.computed_us < 70_000 + timings[0].compute_us
    assert [timing.idle_us(0) for timing in timings[1:]] == [0, 0]
    engine.close()


async def test_what_others_may_not_join_keeps_its_place() -> None:
    engine = Engine("e")
    a, b, c = Part("a"), Part("b"), Part("c")
    ended = await held_up(engine, [a, None, b, c])
    assert [name for name, _ in ended] == ["a", None, "b", "c"]
    assert a.ran_with == [["a"]]
    assert b.ran_with == c.ran_with == [["b", "c"]]
    engine.close()


async def test_no_more_rows_together_than_a_head_puts_into_a_pass() -> None:
    engine = Engine("e")
    large, fits, over = Part("large", MAX_ROWS - 1), Part("fits"), Part("over")
    await held_up(engine, [large, fits, over])
    assert large.ran_with == fits.ran_with == [["large", "fits"]]
    assert over.ran_with == [["over"]]
    engine.close()


async def test_one_of_those_that_run_as_one_may_fail() -> None:
    engine = Engine("e")
    ended = await held_up(engine, [Part("a"), Part("fails"), Part("b")])
    assert [outcome.result for _, outcome in ended] == ["a", None, "b"]
    assert [type(outcome.error) for _, outcome in ended] == [type(None), ValueError, type(None)]
    assert isinstance((await one(engine, sleeping(0))).result, int)
    engine.close()


async def test_all_of_them_fail_with_what_ran_them() -> None:
    class Broken(Part):
        def joined(self, others: Sequence[Part]) -> tuple[Callable[[], list[object]], tuple[int, int]]:
            def run() -> list[object]:
                raise OSError("gone")

            return run, OTHER

    engine = Engine("e")
    ended = await held_up(engine, [Broken("a"), Part("b")])
    assert [type(outcome.error) for _, outcome in ended] == [OSError, OSError]
    engine.close()


async def test_closing_fails_those_that_would_have_run_as_one() -> None:
    engine = Engine("e")
    outcomes: list[Outcome] = []
    engine.submit(sleeping(0.05), lambda _: None)
    await asyncio.sleep(0.01)
    parts = [Part("a"), Part("b")]
    for part in parts:
        engine.submit(part.alone, outcomes.append, SIZE, part)
    engine.close()
    assert [type(outcome.error) for outcome in outcomes] == [Unavailable, Unavailable]
    await asyncio.sleep(0.1)
    assert engine.waiting == 0
    assert not any(part.ran_with for part in parts)


async def test_closing_fails_also_what_the_thread_has_looked_at_already() -> None:
    engine = Engine("e")
    large, over = Part("large", MAX_ROWS), Part("over")
    outcomes: list[Outcome] = []
    engine.submit(sleeping(0.02), lambda _: None)
    await asyncio.sleep(0.005)
    engine.submit(sleeping(0.05), outcomes.append, SIZE, large)
    engine.submit(over.alone, outcomes.append, SIZE, over)
    await asyncio.sleep(0.03)  # the large one runs, and `over` did not fit beside it
    engine.close()
    async with asyncio.timeout(5):
        while engine.waiting:
            await asyncio.sleep(0.001)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), Unavailable]
    assert not over.ran_with
