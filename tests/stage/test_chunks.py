"""Chunks of prompts inside a pass: by the compiled kernel where it is right and sooner, else by torch, with one result."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from stagemesh.services.stage.partition import ragged
from stagemesh.services.stage.partition.kernels import Kernels, load_kernels
from stagemesh.services.stage.partition.kv import KVLayout, KVPool
from stagemesh.services.stage.partition.ragged import Ragged, Segment

from stagemesh.prefix import BLOCK

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counting(Kernels):
    """The kernels of a dtype; counts chunks, and gives zeros instead when told so."""

    def __init__(self, kernels: Kernels, wrong: bool = False) -> None:
        self.__dict__.update(kernels.__dict__)
        self.chunks = 0
        self.wrong = wrong

    def chunk(self, query: torch.Tensor, out: torch.Tensor, *rest: Any) -> None:
        self.chunks += 1
        super().chunk(query, out, *rest)
        if self.wrong:
            out.zero_()


def counting(dtype: torch.dtype, wrong: bool = False) -> Counting:
    kernels = load_kernels(dtype)
    if kernels is None:
        pytest.skip("the kernels were not built here")
    return Counting(kernels, wrong)


def attended(dtype: torch.dtype, kernels: Kernels | None) -> torch.Tensor:
    """A long chunk over scattered blocks, a short one, and one at the start of its sequence."""
    layout = KVLayout(1, KV_HEADS, HEAD_DIM, dtype, torch.device("cpu"))
    needed = [4, -(-60 // BLOCK), -(-60 // BLOCK)]
    pool = KVPool(2 * sum(needed) * BLOCK * layout.token_bytes, layout)
    ones = [pool.reserve(BLOCK) for _ in range(2 * sum(needed))]
    for one in ones[::2]:  # every other block is free, so nobody's lie side by side
        pool.release(one)
    scattered, short, fresh = pool.reserve(4 * BLOCK), pool.reserve(60), pool.reserve(60)
    assert scattered._start is None
    generator = torch.Generator().manual_seed(1)
    for half in pool.arena(0):
        half.copy_(torch.randn(half.shape, generator=generator))
    segments = [Segment(0, 30, 21, scattered), Segment(30, 3, 40, short), Segment(33, 9, 0, fresh)]
    query = torch.randn(42, (HEADS + 2 * KV_HEADS) * HEAD_DIM, generator=generator).to(dtype)
    keys, values = (torch.randn(42, KV_HEADS, HEAD_DIM, generator=generator).to(dtype) for _ in range(2))
    batch = Ragged(segments, True, torch.device("cpu"), kernels)
    return batch.attend(0, query, keys, values, HEADS, HEAD_DIM**-0.5)


@DTYPES
def test_a_pass_gives_the_same_with_and_without_the_kernel(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = counting(dtype)
    monkeypatch.setattr(ragged, "_chunk_pays", lambda _: True)  # whatever else this machine does now
    found = attended(dtype, kernels)
    assert kernels.chunks == 2, "the chunk of three rows is torch's"
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, attended(dtype, None), rtol=tolerance, atol=tolerance)


@DTYPES
def test_a_kernel_that_gives_other_results_is_not_used(dtype: torch.dtype) -> None:
    kernels = counting(dtype, wrong=True)
    assert not ragged._chunk_pays(kernels)
    tried = kernels.chunks
    found = attended(dtype, kernels)
    assert kernels.chunks == tried
    torch.testing.assert_close(found, attended(dtype, None))
