"""What an encoder's partition refuses, by name; and it computes on."""

import json
from pathlib import Path

import pytest
import torch
from stagemesh.services.stage.partition.interface import Activations
from stagemesh.services.stage.partition.pooling import Pooling, read_pooling
from stagemesh.services.stage.tensors import to_view

from stagemesh.checkpoint import inspect
from stagemesh.errors import CheckpointError, InternalError, InvalidArgument, OutOfRange
from tests.parity.encoders import FAMILIES, VOCAB
from tests.stage.encoder_samples import load, samples_of, through


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    FAMILIES["bert"](folder)
    return folder


IDS = torch.tensor([4, 5, 6])


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({}, "input_ids"),
        ({"input_ids": torch.tensor([4, VOCAB, 6])}, "input_ids"),
        ({"input_ids": torch.tensor([4, -1, 6])}, "input_ids"),
        ({"input_ids": torch.tensor([4, 5])}, "input_ids"),
        ({"input_ids": torch.ones(3)}, "input_ids"),
        ({"input_ids": IDS, "token_type_ids": torch.tensor([0, 1, 2])}, "token_type_ids"),
        ({"input_ids": IDS, "pixel_values": torch.ones(3)}, "inputs"),
    ],
)
def test_text(bert: Path, inputs: dict[str, torch.Tensor], field: str) -> None:
    part = load(bert, [0, 2])[0]
    with pytest.raises(InvalidArgument) as caught:
        part.inputs_of({name: to_view(tensor, name) for name, tensor in inputs.items()}, [2, 1])
    assert caught.value.field == field
    assert part.inputs_of({"input_ids": to_view(IDS, "input_ids")}, [2, 1])["input_ids"].tolist() == [4, 5, 6]


def test_a_text_longer_than_the_context(bert: Path) -> None:
    part = load(bert, [0, 2])[0]
    ids = to_view(torch.full((67,), 5), "input_ids")
    with pytest.raises(OutOfRange) as caught:
        part.inputs_of({"input_ids": ids}, [67])
    assert caught.value.field == "input_ids"
    assert part.inputs_of({"input_ids": ids}, [66, 1])["input_ids"].shape == (67,)


@pytest.mark.parametrize("shape", [(1, 3, 24, 16), (1, 1, 24, 24), (2, 3, 24, 24), (1, 3, 24)])
def test_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    FAMILIES["vit"](tmp_path)
    part = load(tmp_path, [0, 2])[0]
    with pytest.raises(InvalidArgument) as caught:
        part.inputs_of({"pixel_values": to_view(torch.zeros(shape), "pixel_values")}, [1])
    assert caught.value.field == "pixel_values"


def test_audio_too_short_for_its_convolutions(tmp_path: Path) -> None:
    FAMILIES["wav2vec2"](tmp_path)
    parts = load(tmp_path, [0, 2, 4])
    inputs, segments = samples_of(inspect(tmp_path))
    before = through(parts, inputs, segments, ["last_hidden_state"])
    with pytest.raises(InvalidArgument) as caught:
        through(parts, {"input_values": torch.zeros(3, 4)}, segments, ["last_hidden_state"])
    assert caught.value.field == "inputs"
    after = through(parts, inputs, segments, ["last_hidden_state"])
    assert torch.equal(before["last_hidden_state"], after["last_hidden_state"])


def test_unknown_output_and_wrong_frames(bert: Path) -> None:
    first, last = load(bert, [0, 2, 4])
    rows = torch.zeros(3, first.hidden_size)
    with pytest.raises(InvalidArgument) as caught:
        last.output("logits", Activations(rows), [3])
    assert caught.value.field == "outputs"
    for given in (Activations(rows[:2]), Activations(rows[:, 1:]), Activations(rows, {"input_ids": IDS})):
        with pytest.raises(InternalError):
            last.check(3, given)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", [2.0, 5.0]),
        ("cls", [1.0, 5.0]),
        ("last", [3.0, 5.0]),
        ("max", [3.0, 5.0]),
        ("mean_sqrt_len", [6 / 3**0.5, 5.0]),
        ("weightedmean", [14 / 6, 5.0]),
    ],
)
def test_pooling(mode: str, expected: list[float]) -> None:
    hidden = torch.tensor([[1.0], [2.0], [3.0], [5.0]])
    assert Pooling((mode,))(hidden, [3, 1])[:, 0].tolist() == pytest.approx(expected)


def test_pooling_files(tmp_path: Path) -> None:
    FAMILIES["gemma3-embedding"](tmp_path)
    pooling = read_pooling(tmp_path)
    assert pooling.modes == ("mean",)
    assert len(pooling.then) == 2
    pooled = pooling(torch.randn(5, 48), [2, 3])
    assert pooled.shape == (2, 20)
    assert torch.allclose(pooled.norm(dim=-1), torch.ones(2))
    (tmp_path / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
    )
    assert read_pooling(tmp_path).modes == ("cls", "mean")
    revision = inspect(tmp_path).revision
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    assert read_pooling(tmp_path).modes == ("last",)
    assert inspect(tmp_path).revision != revision


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": False}),
        ("1_Pooling/config.json", {"pooling_mode_something_else": True, "pooling_mode_cls_token": True}),
        ("2_Dense/config.json", {"activation_function": "os.system"}),
        ("modules.json", [{"type": "x.Pooling", "path": "../elsewhere"}]),
        ("modules.json", [{"type": "x.LSTM", "path": "1_Pooling"}]),
        ("modules.json", {}),
    ],
)
def test_pooling_files_that_cannot_be_used(tmp_path: Path, file: str, content: object) -> None:
    FAMILIES["gemma3-embedding"](tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        read_pooling(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert-classify", {"id2label": {"1": "a"}}, "id2label"),
        ("clip-classify", {"architectures": ["CLIPModel"]}, "two towers"),
        ("vit", {"image_size": "large"}, "pixel_values"),
        ("bert", {"max_position_embeddings": 0}, "max_position_embeddings"),
    ],
)
def test_checkpoints_that_cannot_be_used(tmp_path: Path, name: str, change: dict, message: str) -> None:
    FAMILIES[name](tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        inspect(tmp_path)


def test_an_architecture_of_another_family(tmp_path: Path) -> None:
    FAMILIES["bert-classify"](tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "architectures": ["ViTForImageClassification"]})
    )
    with pytest.raises(CheckpointError, match="is not one of"):
        load(tmp_path, [0, 4])
