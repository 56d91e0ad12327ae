"""Families whose layers pass on more than one hidden state per token, or share states with one another."""

import asyncio
import itertools
from pathlib import Path

import pytest
import torch
from stagemesh.services.stage.compare import run_pass
from stagemesh.services.stage.partition.cache import PartCache, state_bytes
from stagemesh.services.stage.partition.causal import CausalPartition
from stagemesh.services.stage.partition.interface import Activations
from stagemesh.services.stage.partition.kv import KVPool
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.partition.ragged import Segment
from stagemesh.services.stage.verify import even_cuts, verify
from transformers import AutoModelForCausalLM

from stagemesh.checkpoint import inspect
from stagemesh.errors import CheckpointError, InternalError, InvalidArgument
from tests.parity import build, causal
from tests.stage import two_stages

# Streams and token ids; streams, inputs of each layer and shared keys; inputs of each layer; two caches per layer; a
# cache class of its own; shared indices; recurrent states; recurrent states, windows and convolutions in one layer.
FAMILIES = (
    "deepseek_v4",
    "gemma3n_text",
    "gemma4_text",
    "longcat_flash",
    "minimax",
    "glm_moe_dsa",
    "qwen3_next",
    "inkling_text",
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    build.quiet()
    made = {family: tmp_path_factory.mktemp(family) / "model" for family in FAMILIES}
    for family, folder in made.items():
        causal.make(family, folder)
    return made


def load(folder: Path, stages: int, dtype: str = "F32") -> list[CausalPartition]:
    found = inspect(folder)
    cuts = even_cuts(found, stages)
    return [
        load_partition(folder, found, task="generate", first=a, end=b, dtype=dtype)
        for a, b in itertools.pairwise(cuts)
    ]


def pass_through(parts: list[CausalPartition], lengths: list[int]) -> Activations:
    """One pass of prompts of those lengths through all of the partitions."""
    pools = [KVPool(8 * part.kv_layout.sequence_bytes(64), part.kv_layout) for part in parts]
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 128, (length,), generator=generator).tolist() for length in lengths]
    return run_pass(
        parts, prompts, [0] * len(lengths), [[pool.reserve(64) for _ in lengths] for pool in pools]
    )[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_at_every_legal_boundary(family: str, checkpoints: dict[str, Path]) -> None:
    pieces = len(inspect(checkpoints[family]).cuts) + 1
    found = verify(str(checkpoints[family]), pieces, say=lambda _: None)
    assert found.passed, found.reason
    assert found.tokens_compared == 64


@pytest.mark.parametrize(("family", "cut"), [("gemma3n_text", 4), ("gemma4_text", 6), ("glm_moe_dsa", 2)])
def test_a_cut_between_layers_that_share_is_refused(
    family: str, cut: int, checkpoints: dict[str, Path]
) -> None:
    found = inspect(checkpoints[family])
    assert cut not in found.cuts
    for first, end in ((0, cut), (cut, found.layers)):
        with pytest.raises(CheckpointError, match=f"may not be cut after {cut} layers"):
            load_partition(checkpoints[family], found, task="generate", first=first, end=end)
    most = len(found.cuts) + 1
    with pytest.raises(InvalidArgument, match=f"between 1 and {most}") as caught:
        even_cuts(found, most + 1)
    assert caught.value.field == "stages"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_partition_takes_its_probe(family: str, checkpoints: dict[str, Path]) -> None:
    for part in load(checkpoints[family], 3):
        batch = part.probe([Segment(0, 3, 0), Segment(3, 2, 0)])
        if batch.given is not None:
            part.check(5, batch.given)
        assert part.forward(batch).hidden.shape[0] == 5


@pytest.mark.parametrize(
    ("family", "side", "shape"),
    [("deepseek_v4", "input_ids", (7,)), ("gemma3n_text", "per_layer_inputs", (7, 6, 16))],
)
def test_what_crosses_beside_hidden_states_is_checked(
    family: str, side: str, shape: tuple[int, ...], checkpoints: dict[str, Path]
) -> None:
    first, second, *_ = load(checkpoints[family], 3)
    given = pass_through([first], [4, 3])
    assert {name: tuple(value.shape) for name, value in given.sides.items()} == {side: shape}
    assert given.hidden.shape == (7, 4, 64)
    second.check(7, given)
    hidden, value = given.hidden, given.sides[side]
    wrong = [
        Activations(hidden[:, 0], {side: value}),
        Activations(hidden, {}),
        Activations(hidden, {side: value[:-1]}),
        Activations(hidden, {side: value, "more": value}),
        Activations(hidden, {side: value.bool()}),
    ]
    if side == "input_ids":
        wrong += [Activations(hidden, {side: torch.full_like(value, id_)}) for id_ in (-1, second.vocab_size)]
    for one in wrong:
        with pytest.raises(InternalError):
            second.check(7, one)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_takes_no_more_than_it_reserved(family: str, checkpoints: dict[str, Path]) -> None:
    for part in load(checkpoints[family], 2):
        for rows in (1, 3, 8, 17, 64, 100):
            pool = KVPool(2 * part.kv_layout.sequence_bytes(rows), part.kv_layout)
            kv = pool.reserve(rows)
            part.forward(part.probe([Segment(0, rows, 0, kv)]))
            assert isinstance(kv.own, PartCache)
            assert 0 < state_bytes(kv.own) <= pool.used_bytes


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("family", ["deepseek_v4", "gemma3n_text", "qwen3_next"])
def test_other_dtypes(family: str, dtype: str, checkpoints: dict[str, Path]) -> None:
    parts = load(checkpoints[family], 2, dtype)
    done = pass_through(parts, [9, 2])
    assert torch.isfinite(parts[-1].logits(done.hidden)).all()


def whole(folder: Path, prompt: list[int], new: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(new):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.asyncio
@pytest.mark.parametrize("family", ["deepseek_v4", "gemma3n_text", "qwen3_next"])
async def test_over_sockets_in_chunks(
    family: str, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints[family]
    monkeypatch.setattr(two_stages, "CUTS", even_cuts(inspect(folder), 2))
    prompts = [[5, 6, 7], [9], [*range(10, 27)]]
    async with two_stages.route_of(folder, chunk_tokens=5) as route:
        got = await asyncio.gather(
            *(route.generate(prompt, 6, session=number) for number, prompt in enumerate(prompts, 1))
        )
        assert got == [whole(folder, prompt, 6) for prompt in prompts]
        await two_stages.settled(route)
