"""What counts as a hang: a thread that stands still or computes without end, and not one on a busy machine."""

import random

import pytest
from stagemesh.services.stage.watchdog import Limits, PassTimes, Usage, Watch

LIMITS = Limits(still_s=3.0, busy_s=30.0, first_s=60.0, factor=20.0, busy_factor=100.0)
STEP = 0.5


class Thread:
    """A thread with a clock of its own: what it does in each step is told."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.faults = 0

    def runs(self, share: float) -> Usage:
        self.cpu_s += share * STEP
        return Usage(True, self.cpu_s, self.faults)

    def waits_for_a_cpu(self) -> Usage:
        return Usage(True, self.cpu_s, self.faults)

    def stands(self) -> Usage:
        return Usage(False, self.cpu_s, self.faults)

    def pages(self) -> Usage:
        self.faults += 1
        return Usage(False, self.cpu_s, self.faults)


def seconds_until(watch: Watch, usages: object, expected_s: float | None, most_s: float = 1000) -> float:
    """Seconds of one pass until it is called a hang."""
    steps = 0
    while not watch.look(7, usages(), STEP, expected_s):  # type: ignore[operator]
        steps += 1
        assert steps * STEP < most_s, "never"
    return steps * STEP


def never(watch: Watch, usages: object, expected_s: float | None, for_s: float = 600) -> bool:
    return not any(watch.look(7, usages(), STEP, expected_s) for _ in range(int(for_s / STEP)))  # type: ignore[operator]


def test_a_thread_that_stands_still_hangs_after_the_floor() -> None:
    assert seconds_until(Watch(LIMITS), Thread().stands, 0.01) == 3.0


def test_what_usually_takes_long_may_stand_still_for_long() -> None:
    assert seconds_until(Watch(LIMITS), Thread().stands, 2.0) == 40.0


def test_the_first_passes_may_stand_still_for_a_minute() -> None:
    assert seconds_until(Watch(LIMITS), Thread().stands, None) == 60.0


@pytest.mark.parametrize("expected_s", [0.001, 0.1, None])
def test_on_an_overloaded_machine_nothing_hangs(expected_s: float | None) -> None:
    """A pass that gets two percent of a CPU for minutes, in pieces or not at all for a while, is slow and no more."""
    rng = random.Random(1)
    thread = Thread()
    assert never(
        Watch(LIMITS),
        lambda: thread.runs(rng.choice([0, 0.02, 0.05])) if rng.random() < 0.5 else thread.waits_for_a_cpu(),
        expected_s,
    )


def test_a_thread_whose_memory_comes_from_a_disk_does_not_hang() -> None:
    assert never(Watch(LIMITS), Thread().pages, 0.001)


def test_a_thread_that_computes_without_end_hangs() -> None:
    thread = Thread()
    assert seconds_until(Watch(LIMITS), lambda: thread.runs(1), 0.001) == pytest.approx(30, abs=1)
    thread = Thread()
    assert seconds_until(Watch(LIMITS), lambda: thread.runs(1), 2.0) == pytest.approx(200, abs=1)


def test_a_thread_that_runs_while_it_waits_for_a_device_is_no_sign_of_life() -> None:
    thread = Thread()
    assert seconds_until(Watch(LIMITS, spins=True), lambda: thread.runs(1), 0.001) == 3.0
    assert seconds_until(Watch(LIMITS, spins=True), Thread().stands, 0.001) == 3.0
    assert never(Watch(LIMITS, spins=True), Thread().waits_for_a_cpu, 0.001)


def test_each_pass_counts_for_itself() -> None:
    """Passes of two seconds, one after another, each standing still all the time."""
    watch = Watch(LIMITS)
    for number in range(1, 200):
        assert not any(watch.look(number, Thread().stands(), STEP, 0.001) for _ in range(4))
    assert never(watch, lambda: Thread().stands(), None, for_s=59)


def test_nothing_is_counted_between_passes() -> None:
    watch = Watch(LIMITS)
    for _ in range(100):
        assert not any(watch.look(5, Thread().stands(), STEP, 0.001) for _ in range(6))
        assert not watch.look(0, None, STEP, None)


def test_without_anything_known_of_the_thread_only_the_long_limit_holds() -> None:
    assert seconds_until(Watch(LIMITS), lambda: None, 0.001) == 30.0


def test_a_verdict_says_how_long_and_what_is_usual() -> None:
    watch = Watch(LIMITS)
    said = next(why for _ in range(100) if (why := watch.look(1, Thread().stands(), STEP, 0.02)))
    assert said == "it has stood still for 3.0 s, where 0.02 s are usual"


def test_a_size_that_was_never_seen_may_take_as_much_more_as_it_is_larger() -> None:
    times = PassTimes()
    assert times.expected_s((3, 5)) is None
    for _ in range(50):
        times.observe((3, 5), 0.01)
    assert times.expected_s((3, 5)) == pytest.approx(0.01)
    assert times.expected_s((5, 5)) == pytest.approx(0.04)
    assert times.expected_s((5, 8)) == pytest.approx(0.32)
    # A smaller one takes no less than what is known to be possible.
    assert times.expected_s((1, 2)) == pytest.approx(0.01)
    # A first prompt after single tokens does not get hours to hang in.
    assert times.expected_s((12, 20)) == 6.0
    times.observe((9, 9), 40.0)
    assert times.expected_s((12, 20)) == 40.0


def test_the_usual_time_follows_the_machine() -> None:
    times = PassTimes()
    for _ in range(50):
        times.observe((3, 5), 0.01)
    for _ in range(50):
        times.observe((3, 5), 0.1)
    assert times.expected_s((3, 5)) == pytest.approx(0.1, rel=0.01)
