"""Ids within a vocabulary, by one long integer, against numpy."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stagemesh.services.router.bounds import MOST_BYTES, surely_below


@st.composite
def tensors(draw):
    """Integers around the edges of their type and of a bound."""
    size = draw(st.sampled_from([1, 2, 4, 8]))
    highest = 2 ** (8 * size - 1)
    bound = draw(st.one_of(st.integers(1, 2 * highest), st.integers(1, 300)))
    near = [value for edge in (0, bound, highest, 2 * highest) for value in (edge - 1, edge, edge + 1)]
    inside = [value for value in near if 0 <= value < 2 * highest]
    value = st.one_of(
        st.sampled_from(inside), st.integers(0, min(bound, 2 * highest) - 1), st.integers(0, 2 * highest - 1)
    )
    return np.array(draw(st.lists(value, max_size=40)), dtype=f"<u{size}"), bound


@given(tensors())
@example((np.array([255, 0], "<u1"), 1))
@example((np.array([5, 127], "<u1"), 200))
@example((np.array([2**63, 2**63], "<u8"), 2**63))
@example((np.array([-1, 0], "<i8").view("<u8"), 1))
def test_it_says_yes_to_what_is_below_the_bound_and_to_nothing_else(tensor):
    values, bound = tensor
    signed = values.view(f"<i{values.itemsize}")
    below = all(0 <= int(value) < bound for value in signed)
    assert surely_below(values.tobytes(), values.itemsize, bound) is below


def test_what_is_large_or_has_no_bound_takes_another_look():
    assert surely_below(bytes(MOST_BYTES), 8, 1)
    assert not surely_below(bytes(MOST_BYTES + 8), 8, 1)
    assert not surely_below(bytes(8), 8, 0)


@pytest.mark.parametrize("place", [0, 255, 511])
def test_one_id_among_many_is_enough(place):
    ids = np.full(512, 99, np.int64)
    assert surely_below(ids.tobytes(), 8, 100)
    ids[place] = 100
    assert not surely_below(ids.tobytes(), 8, 100)
    ids[place] = -1
    assert not surely_below(ids.tobytes(), 8, 100)
