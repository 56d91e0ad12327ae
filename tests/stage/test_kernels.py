"""The compiled kernels against torch, at odd sizes too. Without a compiler they are absent, and so are these tests."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.stage.partition.kernels import PANEL, Kernels, load_kernels
from stagemesh.services.stage.partition.memory import LARGE_PAGE, LargePages

from stagemesh.prefix import BLOCK

pytestmark = pytest.mark.skipif(load_kernels(torch.float32) is None, reason="the kernels were not built")

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
FAST = settings(max_examples=40, deadline=None)


def kernels_for(dtype: torch.dtype) -> Kernels:
    found = load_kernels(dtype)
    assert found is not None
    return found


def random(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    tolerance = 2e-5 if found.dtype == torch.float32 else 2e-2
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found.float(), wanted.float(), rtol=tolerance, atol=tolerance * scale)


@given(DTYPES, st.integers(1, 40), st.integers(1, 40), st.integers(1, 100), st.booleans(), st.integers(1, 2))
@FAST
def test_linear(dtype: torch.dtype, rows: int, half: int, columns: int, bias: bool, threads: int) -> None:
    kernels = kernels_for(dtype)
    weight, inputs = random(dtype, columns, 2 * half), random(dtype, rows, 2 * half, seed=1)
    added = random(dtype, columns, seed=2) if bias else None
    panels = torch.full((-(-columns // PANEL) * PANEL * 2 * half,), torch.nan, dtype=dtype)
    kernels.pack_panels(weight, panels)
    found = kernels.linear(inputs, panels, added, columns, threads)
    wanted = torch.nn.functional.linear(
        inputs.double(), weight.double(), None if added is None else added.double()
    )
    assert_near(found, wanted)


@given(DTYPES, st.integers(1, 5), st.integers(1, 70), st.booleans())
@FAST
def test_norm(dtype: torch.dtype, rows: int, width: int, add: bool) -> None:
    hidden, weight = random(dtype, rows, width), random(dtype, width, seed=1)
    delta = random(dtype, rows, width, seed=2) if add else None
    summed = hidden if delta is None else hidden + delta
    scale = torch.rsqrt(summed.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    wanted = weight * (summed.float() * scale).to(dtype)
    assert_near(kernels_for(dtype).add_rms_norm(hidden, delta, weight, 1e-6), wanted)
    assert torch.equal(hidden, summed)


@given(DTYPES, st.integers(1, 4), st.integers(1, 90))
@FAST
def test_silu_mul(dtype: torch.dtype, rows: int, width: int) -> None:
    gate_up = random(dtype, rows, 2 * width) * 20
    gate, up = gate_up.split(width, dim=1)
    assert_near(kernels_for(dtype).silu_mul(gate_up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    kernels = kernels_for(torch.float32)
    broken = torch.ones(1, 64)
    broken[0, 5] = value
    assert not kernels.add_rms_norm(broken.clone(), None, torch.ones(64), 1e-6).isfinite().all()
    assert not kernels.silu_mul(broken).isfinite().all()
    panels = torch.empty(PANEL * 64)
    kernels.pack_panels(torch.ones(PANEL, 64), panels)
    assert not kernels.linear(broken, panels, None, PANEL, 1).isfinite().any()


@given(DTYPES, st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 16, 64]), st.booleans())
@FAST
def test_rope_and_store(dtype: torch.dtype, kv_heads: int, group: int, head_dim: int, norm: bool) -> None:
    rows, heads = 3, kv_heads * group
    qkv = random(dtype, rows, (heads + 2 * kv_heads) * head_dim)
    angle = random(torch.float32, rows, head_dim // 2, seed=1).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    norms = (random(dtype, head_dim, seed=3), random(dtype, head_dim, seed=4), 1e-6) if norm else None
    arena = (random(dtype, 8, kv_heads, head_dim, seed=5), random(dtype, 8, kv_heads, head_dim, seed=6))
    before = tuple(half.clone() for half in arena)
    slots = torch.tensor([5, 0, 7])

    def rotated(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
            x = weight * (x.float() * scale).to(dtype)
        low, high = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]

    heads_of = qkv.unflatten(1, (-1, head_dim)).clone()
    query = rotated(heads_of[:, :heads], norms[0] if norms else None)
    key = rotated(heads_of[:, heads : heads + kv_heads], norms[1] if norms else None)
    value = heads_of[:, heads + kv_heads :]
    kernels_for(dtype).rope_store(qkv, cos, sin, norms, slots, arena, heads, kv_heads)
    assert_near(qkv.unflatten(1, (-1, head_dim)), torch.cat((query, key, value), dim=1))
    for half, old, wanted in zip(arena, before, (key, value), strict=True):
        assert_near(half[slots], wanted)
        untouched = [slot for slot in range(8) if slot not in slots.tolist()]
        assert torch.equal(half[untouched], old[untouched])


@given(
    DTYPES,
    st.lists(st.integers(1, 70), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([8, 64, 128]),
    st.integers(1, 3),
)
@FAST
def test_paged_decode(
    dtype: torch.dtype, lengths: list[int], kv_heads: int, group: int, head_dim: int, threads: int
) -> None:
    heads, count = kv_heads * group, len(lengths)
    width = -(-max(lengths) // BLOCK)
    # Blocks in no order, and more rows of queries than are asked for.
    tables = torch.randperm(count * width, generator=torch.Generator().manual_seed(1)).reshape(count, width)
    arena = tuple(random(dtype, count * width * BLOCK, kv_heads, head_dim, seed=s) for s in (2, 3))
    query = random(dtype, count + 2, heads * head_dim + 6)
    out = torch.zeros(count + 2, heads * head_dim, dtype=dtype)
    rows = torch.arange(count) + 1
    kernels_for(dtype).paged_decode(
        query,
        out,
        (arena[0], arena[1]),
        rows,
        tables.to(torch.int32),
        torch.tensor(lengths),
        max(lengths),
        0.3,
        threads,
    )
    assert not out[0].any()
    assert not out[-1].any()
    for index, length in enumerate(lengths):
        positions = (tables[index][:, None] * BLOCK + torch.arange(BLOCK)).flatten()[:length]
        keys, values = (half[positions].transpose(0, 1).float() for half in arena)
        queries = query[index + 1, : heads * head_dim].reshape(heads, 1, head_dim).float()
        wanted = torch.nn.functional.scaled_dot_product_attention(
            queries[None], keys[None], values[None], scale=0.3, enable_gqa=True
        )
        assert_near(out[index + 1], wanted.flatten())


def test_large_pages_are_handed_out_once() -> None:
    memory = LargePages()
    parts = [memory.empty(n, torch.float32) for n in (5, 1000, 20 * 2**20, 7, 3 * 2**20)]
    for number, part in enumerate(parts):
        part.fill_(number)
    assert [float(part.max()) for part in parts] == [0, 1, 2, 3, 4]
    assert all(float(part.min()) == number for number, part in enumerate(parts))
    assert all(part.data_ptr() % 64 == 0 for part in parts)
    assert parts[2].data_ptr() % LARGE_PAGE == 0


@given(
    DTYPES,
    st.integers(1, 90),
    st.integers(0, 150),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([32, 64, 128]),
    st.booleans(),
    st.integers(1, 2),
)
@FAST
def test_chunk_attention(
    dtype: torch.dtype,
    rows: int,
    position: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    causal: bool,
    threads: int,
) -> None:
    """As torch's over float32, for any place of a chunk, with queries and keys that lie among others."""
    kernels = kernels_for(dtype)
    heads, length = kv_heads * group, position + rows
    wide = random(dtype, rows, (heads + 2) * head_dim)
    keys, values = (random(dtype, length, kv_heads + 1, head_dim, seed=i)[:, :kv_heads] for i in (1, 2))
    out = torch.full((rows, heads * head_dim), torch.nan).to(dtype)
    kernels.chunk(wide, out, keys, values, position, causal, 0.2, threads)
    queries = wide[:, : heads * head_dim].unflatten(1, (heads, head_dim)).transpose(0, 1).float()
    mask = torch.ones(rows, length, dtype=torch.bool).tril(position) if causal else None
    k, v = (half.transpose(0, 1).float().repeat_interleave(group, 0) for half in (keys, values))
    wanted = torch.nn.functional.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=0.2)
    assert_near(out, wanted.transpose(0, 1).flatten(1).to(dtype))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_chunk_attention_hides_nothing_that_is_not_finite(value: float) -> None:
    kernels = kernels_for(torch.float32)
    query = random(torch.float32, 9, 64)
    keys, values = (random(torch.float32, 70, 1, 64, seed=i) for i in (1, 2))
    keys[64, 0, 0] = value
    out = torch.zeros(9, 64)
    kernels.chunk(query, out, keys, values, 61, True, 0.1, 1)
    assert torch.isfinite(out[:3]).all(), "rows before it do not see it"
    if value != value:
        assert out[3:].isnan().all()
    else:
        assert not torch.isfinite(out[3:]).all()
