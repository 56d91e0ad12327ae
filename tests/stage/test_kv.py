import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.stage.partition.kv import KVPool

from stagemesh.errors import ResourceExhausted


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=60))
def test_the_budget_is_never_exceeded_and_comes_back(actions: list[tuple[bool, int]]) -> None:
    pool = KVPool(budget_bytes=1000, token_bytes=10, layers=1)
    held = []
    for reserve, number in actions:
        if reserve:
            room = pool.budget_bytes - pool.used_bytes
            if number * 10 <= room:
                held.append(pool.reserve(number))
            else:
                with pytest.raises(ResourceExhausted):
                    pool.reserve(number)
        elif held:
            pool.release(held.pop(number % len(held)))
        assert pool.used_bytes == sum(kv.capacity * 10 for kv in held) <= 1000
    for kv in held:
        pool.release(kv)
    assert pool.used_bytes == 0


def test_what_was_written_is_read_back() -> None:
    kv = KVPool(10**6, 16, 2).reserve(8)
    first = torch.arange(12.0).reshape(2, 3, 2)
    keys, _ = kv.extend(1, 0, first, first)
    assert torch.equal(keys, first)
    more = torch.ones(2, 1, 2)
    keys, values = kv.extend(1, 3, more, -more)
    assert torch.equal(keys, torch.cat([first, more], 1))
    assert torch.equal(values[:, 3:], -more)
    assert kv.length == 4
