"""Short passes on the loop's thread: found by measurement, per size, and taken back when it was wrong."""

from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.stage.partition.ragged import Segment
from stagemesh.services.stage.short import (
    FORGIVEN,
    LONG_MS,
    MAX_PROOF,
    MEMORY,
    PROOF,
    SHORT_MS,
    ShortPasses,
    size_of,
)

SIZE = (1, 5)
times = st.floats(0, 20)


def proven(short: ShortPasses, size: tuple[int, int] = SIZE) -> ShortPasses:
    for _ in range(MAX_PROOF):
        short.observe(size, SHORT_MS)
    assert short.allow(size)
    return short


def test_nothing_is_short_before_it_was_seen_to_be() -> None:
    short = ShortPasses()
    for _ in range(PROOF):
        assert not short.allow(SIZE)
        short.observe(SIZE, SHORT_MS / 2)
    assert short.allow(SIZE)
    assert not short.allow((9, 9))


def test_one_long_pass_is_forgiven_and_two_close_together_are_not() -> None:
    short = proven(ShortPasses())
    short.observe(SIZE, 50)
    assert short.allow(SIZE)
    for _ in range(MEMORY - 1):
        short.observe(SIZE, SHORT_MS)
    short.observe(SIZE, LONG_MS * 1.01)
    assert not short.allow(SIZE)


def test_what_was_wrong_before_takes_longer_to_prove_and_is_forgotten_in_the_end() -> None:
    def proof_of(short: ShortPasses) -> int:
        count = 0
        while not short.allow(SIZE):
            short.observe(SIZE, 0.1)
            count += 1
        return count

    short = ShortPasses()
    proofs = []
    for _ in range(6):
        proofs.append(proof_of(short))
        short.observe(SIZE, 5)
        short.observe(SIZE, 5)
    assert proofs == [4, 8, 16, 32, 64, 64]
    for _ in range(FORGIVEN):
        short.observe(SIZE, 0.1)
    short.observe(SIZE, 5)
    short.observe(SIZE, 5)
    assert proof_of(short) == 2 * PROOF


@given(st.lists(times), st.integers(2, 5))
def test_passes_that_are_long_are_off_the_loop_after_two_whatever_was_before(
    before: list[float], longs: int
) -> None:
    short = ShortPasses()
    for ms in before:
        short.observe(SIZE, ms)
    for _ in range(longs):
        short.observe(SIZE, LONG_MS * 1.5)
    assert not short.allow(SIZE)


@given(st.lists(times), st.lists(times))
def test_sizes_say_nothing_about_one_another(one: list[float], other: list[float]) -> None:
    together, apart = ShortPasses(), ShortPasses()
    for ms in one:
        together.observe(SIZE, ms)
        apart.observe(SIZE, ms)
    for ms in other:
        together.observe((9, 9), ms)
    assert together.allow(SIZE) == apart.allow(SIZE)


def test_a_size_is_its_rows_and_the_positions_they_attend_to() -> None:
    decode = size_of([Segment(0, 1, 30)])
    assert decode == (1, 5)
    assert size_of([Segment(0, 1, 3000)]) != decode
    assert size_of([Segment(0, 1, 15), Segment(1, 1, 15)]) == (2, 6)
    assert size_of([Segment(0, 512, 0)]) == (10, 10)
