from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.registry.cuts import even_cuts


def sizes(cuts: list[tuple[int, int]], layers: list[int], embedding: int, head: int) -> list[int]:
    result = [sum(layers[first:end]) for first, end in cuts]
    result[0] += embedding
    result[-1] += head
    return result


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=9),
    st.integers(1, 9),
    st.integers(0, 120),
    st.integers(0, 120),
    st.none() | st.sets(st.integers(0, 9)),
)
def test_no_cut_is_better(
    layers: list[int], stages: int, embedding: int, head: int, allowed: set[int] | None
) -> None:
    places = [cut for cut in range(1, len(layers)) if allowed is None or cut in allowed]
    stages = min(stages, len(places) + 1)
    cuts = even_cuts(layers, stages, embedding_bytes=embedding, head_bytes=head, allowed=allowed)
    assert all(end in places for _, end in cuts[:-1])
    assert [end for _, end in cuts] == [first for first, _ in cuts[1:]] + [len(layers)]
    assert cuts[0][0] == 0
    assert all(first < end for first, end in cuts)

    def cost(cuts: list[tuple[int, int]]) -> tuple[int, int]:
        found = sizes(cuts, layers, embedding, head)
        return max(found), sum(size * size for size in found)

    every = (list(zip((0, *at), (*at, len(layers)), strict=True)) for at in combinations(places, stages - 1))
    assert cost(cuts) == min(cost(other) for other in every)


def test_equal_layers_are_shared_equally() -> None:
    assert even_cuts([5] * 8, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert even_cuts([5] * 6, 2, embedding_bytes=7, head_bytes=7) == [(0, 3), (3, 6)]


def test_a_large_embedding_takes_layers_off_its_stage() -> None:
    assert even_cuts([10] * 8, 2, embedding_bytes=40) == [(0, 2), (2, 8)]


@pytest.mark.parametrize("stages", [0, -1, 4])
def test_impossible_counts(stages: int) -> None:
    with pytest.raises(ValueError):
        even_cuts([1, 1, 1], stages)


def test_layers_that_share_states_stay_together() -> None:
    assert even_cuts([5] * 8, 3, allowed=[1, 2, 7]) == [(0, 2), (2, 7), (7, 8)]
    assert even_cuts([5] * 8, 1, allowed=[]) == [(0, 8)]


def test_more_stages_than_pieces() -> None:
    with pytest.raises(ValueError, match="3 stages for 4 layers in 2 pieces"):
        even_cuts([1] * 4, 3, allowed=[0, 2, 4, 9])


def test_many_layers_are_quick() -> None:
    cuts = even_cuts([100 + layer % 7 for layer in range(128)], 16, embedding_bytes=500, head_bytes=500)
    assert len(cuts) == 16


def test_the_largest_partition_counts_before_evenness() -> None:
    # (0, 2), (2, 3), (3, 4) has the smaller sum of squares, but a partition of 7.
    assert even_cuts([1, 6, 3, 3], 3) == [(0, 1), (1, 2), (2, 4)]
