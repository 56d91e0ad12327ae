"""Where a model may be cut, by its configuration alone."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemesh.checkpoint_cuts import legal_cuts, nearest_cuts

FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = [SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL]


@pytest.mark.parametrize(
    ("config", "layers", "expected"),
    [
        ({}, 4, [1, 2, 3]),
        ({}, 1, []),
        # Layers 5 and 6 take from 3, layer 7 from 4.
        ({"layer_types": KINDS, "num_kv_shared_layers": 3}, 8, [1, 2, 3]),
        # Layer 7 alone, from layer 4: 5 and 6 only need to be between them.
        ({"layer_types": KINDS, "num_kv_shared_layers": 1}, 8, [1, 2, 3, 4]),
        ({"layer_types": KINDS, "num_kv_shared_layers": 0}, 8, [1, 2, 3, 4, 5, 6, 7]),
        ({"text_config": {"layer_types": KINDS, "num_kv_shared_layers": 3}}, 8, [1, 2, 3]),
        # Types as the family has them: every fifth layer is a full one, 19 and 18 are the last that share theirs.
        ({"model_type": "gemma3n_text", "num_kv_shared_layers": 10}, 30, list(range(1, 19))),
        ({"indexer_types": ["full", "shared", "full", "shared", "shared"]}, 5, [2]),
        ({"index_topk_pattern": "FSFSS"}, 5, [2]),
        ({"index_topk_freq": 2}, 6, [1, 3, 5]),
        ({"model_type": "hy_v4"}, 7, [1, 5]),
        # Nothing in a configuration is to be relied on.
        ({"num_kv_shared_layers": "3", "indexer_types": 5, "text_config": 1}, 3, [1, 2]),
        ({"num_kv_shared_layers": 99}, 3, [1, 2]),
    ],
)
def test_legal_cuts(config: dict[str, Any], layers: int, expected: list[int]) -> None:
    assert legal_cuts(config, layers) == expected


@given(st.integers(1, 40), st.data())
def test_nearest_cuts_are_allowed_ones_in_order(layers: int, data: st.DataObject) -> None:
    allowed = sorted(data.draw(st.sets(st.integers(1, max(1, layers - 1)), max_size=layers - 1)))
    stages = data.draw(st.integers(1, len(allowed) + 1))
    cuts = nearest_cuts(allowed, layers, stages)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, layers, stages + 1)
    assert set(cuts[1:-1]) <= set(allowed)
    assert all(first < end for first, end in pairwise(cuts))


def test_nearest_cuts_are_even_where_they_may() -> None:
    assert nearest_cuts([1, 2, 3, 4, 5], 6, 3) == [0, 2, 4, 6]
    assert nearest_cuts([1, 2, 3], 8, 3) == [0, 2, 3, 8]


def test_too_many_stages() -> None:
    with pytest.raises(ValueError, match="3 stages with 1 cuts"):
        nearest_cuts([2], 4, 3)
