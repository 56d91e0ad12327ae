import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.stage.partition.kv import KVLayout, KVPool, PrefixMissing, SessionKV

from stagemesh.errors import ResourceExhausted
from stagemesh.prefix import BLOCK, digests

LAYOUT = KVLayout(layers=2, kv_heads=1, head_dim=2, dtype=torch.float32, device=torch.device("cpu"))
BLOCK_BYTES = BLOCK * LAYOUT.token_bytes


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100)), max_size=60))
def test_the_budget_is_never_exceeded_and_comes_back(actions: list[tuple[bool, int]]) -> None:
    pool = KVPool(10 * BLOCK_BYTES + 5, LAYOUT)
    held: list[SessionKV] = []
    for reserve, number in actions:
        if reserve:
            needed = -(-number // BLOCK) * BLOCK_BYTES
            if pool.used_bytes + needed <= pool.budget_bytes:
                held.append(pool.reserve(number))
            else:
                with pytest.raises(ResourceExhausted):
                    pool.reserve(number)
        elif held:
            pool.release(held.pop(number % len(held)))
        assert pool.used_bytes == sum(-(-kv.capacity // BLOCK) * BLOCK_BYTES for kv in held)
    for kv in held:
        pool.release(kv)
    assert pool.used_bytes == 0


def test_scattered_blocks_read_as_one() -> None:
    pool = KVPool(5 * BLOCK_BYTES, LAYOUT)
    held = [pool.reserve(BLOCK) for _ in range(5)]
    for index in (3, 0, 1):
        pool.release(held[index])
    kv = pool.reserve(3 * BLOCK)
    assert kv.blocks == [0, 1, 3]
    arena = pool.arena(1)[0]
    rows = torch.arange(40.0)[:, None, None].expand(40, 1, 2)
    arena.index_copy_(0, torch.tensor(kv.slots(0, 40)), rows)
    assert torch.equal(kv.read(arena, 40), rows)
    assert kv.slots(30, 4) == [30, 31, 48, 49]


def test_a_prefix_is_taken_over_and_shared() -> None:
    pool = KVPool(8 * BLOCK_BYTES, LAYOUT)
    prefix = digests(range(40))
    first = pool.reserve(48, prefix)
    with pytest.raises(PrefixMissing):
        pool.reserve(48, prefix, 32)  # nothing was written yet
    first.length = 40
    first.name_blocks()
    second = pool.reserve(48, prefix, 32)
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert second.length == 32
    assert pool.used_bytes == 4 * BLOCK_BYTES
    pool.release(first)
    pool.release(second)
    assert pool.used_bytes == 0
    assert pool.reserve(48, prefix, 16).blocks[0] == first.blocks[0]


def test_only_whole_blocks_are_taken_over() -> None:
    pool = KVPool(8 * BLOCK_BYTES, LAYOUT)
    with pytest.raises(PrefixMissing):
        pool.reserve(48, digests(range(40)), 17)
