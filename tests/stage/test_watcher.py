"""The watcher at real threads: a pass that hangs, one that is slow, and a loop that stands."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from stagemesh.services.stage import watcher as watcher_module
from stagemesh.services.stage.engine import Engine
from stagemesh.services.stage.thread_usage import usage_of
from stagemesh.services.stage.watchdog import Limits
from stagemesh.services.stage.watcher import EXIT_HANGS, Watcher

from tests.stage.scripted_stage import eventually

LIMITS = Limits(still_s=0.4, busy_s=60, first_s=0.4)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "STEP_S", 0.04)
    monkeypatch.setattr(watcher_module, "LOOP_LIMITS", Limits(still_s=0.4, busy_s=60, first_s=0))


class Told:
    """An engine that is watched, and what was said of it."""

    def __init__(self, watcher: Watcher) -> None:
        self.engine = Engine("e")
        self.hung: list[str] = []
        self.returned = 0
        self.thread = threading.get_ident()
        watcher.watch(self.engine, False, self._on_hang, self._on_return)

    def _on_hang(self, why: str) -> None:
        assert threading.get_ident() == self.thread
        self.hung.append(why)

    def _on_return(self) -> None:
        assert threading.get_ident() == self.thread
        self.returned += 1


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    made = Watcher(LIMITS, end=lambda why: None)
    yield made
    made.stop()


@pytest.mark.asyncio
async def test_a_pass_that_hangs_is_told_once_and_so_is_its_return(watcher: Watcher) -> None:
    watcher.start()
    told = Told(watcher)
    over = threading.Event()
    told.engine.submit(lambda: over.wait(60), lambda _: None)
    await eventually(lambda: told.hung)
    assert "stood still" in told.hung[0]
    await asyncio.sleep(0.3)
    assert len(told.hung) == 1
    assert not told.returned
    over.set()
    await eventually(lambda: told.returned)
    # And the next one is looked at again.
    over = threading.Event()
    told.engine.submit(lambda: over.wait(60), lambda _: None)
    await eventually(lambda: len(told.hung) == 2)
    over.set()
    told.engine.close()


@pytest.mark.asyncio
async def test_a_pass_that_computes_for_long_does_not_hang(watcher: Watcher) -> None:
    watcher.start()
    told = Told(watcher)

    def compute() -> None:
        end = time.thread_time() + 1.2
        while time.thread_time() < end:
            sum(range(5000))

    await told.engine.run(compute)
    assert not told.hung
    told.engine.close()


@pytest.mark.asyncio
async def test_many_passes_that_wait_are_not_one_that_hangs(watcher: Watcher) -> None:
    watcher.start()
    told = Told(watcher)
    for _ in range(20):
        await told.engine.run(lambda: time.sleep(0.05))
    assert not told.hung
    told.engine.close()


@pytest.mark.asyncio
async def test_who_is_no_longer_watched_is_not_told(watcher: Watcher) -> None:
    watcher.start()
    told = Told(watcher)
    over = threading.Event()
    told.engine.submit(lambda: over.wait(60), lambda _: None)
    watcher.unwatch(told.engine)
    await asyncio.sleep(0.8)
    over.set()
    assert not told.hung
    told.engine.close()


@pytest.mark.asyncio
async def test_a_loop_that_stands_ends_the_process() -> None:
    ended: list[str] = []
    watcher = Watcher(LIMITS, ended.append)
    watcher.start()
    await asyncio.sleep(0.8)
    assert not ended, "a loop that turns does not stand"
    end = time.monotonic() + 20
    while not ended and time.monotonic() < end:
        time.sleep(0.02)
    assert "the event loop hangs: it has stood still" in ended[0]
    watcher.stop()


def test_a_thread_tells_what_it_does() -> None:
    over, ids = threading.Event(), []

    def sleeper() -> None:
        ids.append(threading.get_native_id())
        over.wait(30)

    thread = threading.Thread(target=sleeper)
    thread.start()
    while not ids:
        time.sleep(0.001)
    time.sleep(0.05)
    before = usage_of(ids[0])
    own = usage_of(threading.get_native_id())
    while time.thread_time() < 0.05:
        sum(range(5000))
    after = usage_of(threading.get_native_id())
    over.set()
    thread.join()
    assert before is not None
    assert own is not None
    assert after is not None
    assert not before.runnable
    assert after.runnable
    assert after.cpu_s >= 0.03
    assert usage_of(2**30) is None


SCRIPT = """
import asyncio, time
from stagemesh.services.stage import watcher
from stagemesh.services.stage.watchdog import Limits
watcher.STEP_S = 0.05
watcher.LOOP_LIMITS = Limits(still_s=0.3, busy_s=60, first_s=0)

def stands_here():
    time.sleep(60)

async def main():
    watcher.Watcher(Limits()).start()
    await asyncio.sleep(0.2)
    stands_here()

asyncio.run(main())
"""


def test_the_process_says_where_it_stands_and_ends_with_a_status_of_its_own() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=50)
    assert ran.returncode == EXIT_HANGS
    assert "stagemesh: the event loop hangs: it has stood still for" in ran.stderr
    assert "stands_here" in ran.stderr
