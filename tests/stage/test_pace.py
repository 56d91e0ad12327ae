"""How large chunks may be: what fits into the time of a plain pass, whatever the machine."""

from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.stage.pace import SMALLEST, Pace


@given(
    plain=st.floats(0.1, 100),
    token=st.floats(0.0001, 10),
    noise=st.lists(st.floats(0.95, 1.05), min_size=60, max_size=60),
)
def test_a_pass_with_a_chunk_settles_at_twice_a_plain_one(
    plain: float, token: float, noise: list[float]
) -> None:
    pace = Pace(stretch=1.0)
    for factor in noise:
        if pace.stale:
            pace.passed(plain * factor, 4, 0)
        else:
            pace.passed((plain + token * pace.chunk) * factor, 4, pace.chunk)
    ideal = plain / token
    assert pace.chunk <= max(SMALLEST, 1.4 * ideal)
    assert pace.chunk >= min(0.6 * ideal - 1, 512)


def test_it_starts_small_and_at_most_doubles() -> None:
    pace = Pace()
    assert (pace.chunk, pace.stale) == (SMALLEST, True)
    pace.passed(10, 4, 0)
    sizes = []
    for _ in range(5):
        sizes.append(pace.chunk)
        pace.passed(10.0, 4, pace.chunk)  # a device on which a few tokens more cost nothing
    assert sizes == [8, 16, 32, 64, 128]


def test_a_disturbed_pass_moves_nothing() -> None:
    pace = Pace(stretch=1.0)
    for _ in range(5):
        pace.passed(10, 4, 0)
        pace.passed(20, 4, 16)
    before = pace.chunk
    pace.passed(500, 4, 0)
    pace.passed(900, 4, 16)
    assert pace.chunk == before == 16


def test_plain_passes_are_measured_again_and_again() -> None:
    pace = Pace()
    pace.passed(10, 4, 0)
    asked = 0
    for _ in range(100):
        asked += pace.stale
        pace.passed(10 if pace.stale else 20, 4, 0 if pace.stale else 10)
    assert 4 <= asked <= 7


def test_the_rest_of_a_prompt_says_nothing() -> None:
    pace = Pace()
    pace.passed(10, 4, 0)
    pace.passed(20, 4, 16)
    before = repr(pace)
    pace.passed(40, 4, 1)
    assert repr(pace) == before
