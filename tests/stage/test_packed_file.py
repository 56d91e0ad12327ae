"""A packed partition on disk computes what the checkpoint does, and whatever is wrong with the file is found before it is used."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stagemesh.services.stage.partition import fused as fused_module
from stagemesh.services.stage.partition import packed as packed_module
from stagemesh.services.stage.partition.causal import CausalPartition
from stagemesh.services.stage.partition.interface import Activations, Batch
from stagemesh.services.stage.partition.kernels import load_kernels
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.partition.packed import PanelLinear
from stagemesh.services.stage.partition.packed_file import (
    MAKING,
    Packed,
    PackedFileError,
    StoppedError,
    read,
    write,
)
from stagemesh.services.stage.partition.ragged import Segment
from transformers import AutoConfig, AutoModelForCausalLM

from stagemesh.checkpoint import inspect
from tests.checkpoints import make_llama

KERNELS = load_kernels(torch.float32)
if KERNELS is None:
    pytest.skip("the kernels were not built", allow_module_level=True)


@pytest.fixture(params=[True, False], ids=["fused", "plain"])
def packs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Tiny layers are packed and fused although that pays for large ones only."""
    monkeypatch.setattr(packed_module, "_pays", lambda linear, form: True)
    monkeypatch.setattr(packed_module, "_MIN_WEIGHTS", 64)
    monkeypatch.setattr(fused_module, "_pays", lambda plain_s, fused_s: request.param)
    return bool(request.param)


def loaded(folder: Path, first: int, end: int, before: Packed | None = None) -> CausalPartition:
    found = inspect(folder)
    part = load_partition(folder, found, task="generate", first=first, end=end, before=before)
    assert isinstance(part, CausalPartition)
    return part


def computed(part: CausalPartition) -> torch.Tensor:
    """Of five rows; with logits where there are any."""
    segments = [Segment(0, 5, 0)]
    given = inputs = None
    if part.is_first:
        inputs = {"input_ids": torch.arange(3, 8)}
    else:
        given = Activations(torch.randn(5, part.hidden_size, generator=torch.Generator().manual_seed(1)))
    hidden = part.forward(Batch(segments, inputs=inputs, given=given)).hidden
    return part.logits(hidden) if part.is_last else hidden


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("first", "end"), [(0, 2), (1, 3), (2, 4), (0, 4)])
def test_what_is_mapped_computes_the_very_same(
    tmp_path: Path, packs: bool, tied: bool, first: int, end: int
) -> None:
    folder = tmp_path / "model"
    make_llama(folder, layers=4, tied=tied)
    made = loaded(folder, first, end)
    assert made.fused == packs
    assert made.made is not None
    expected = computed(made)
    assert expected.abs().sum() > 0
    write(tmp_path / "one.packed", "key", made.made, KERNELS, threading.Event())
    before = read(tmp_path / "one.packed", "key", KERNELS)
    # Not one tensor comes from the checkpoint.
    for file in folder.glob("*.safetensors"):
        shutil.move(file, tmp_path / file.name)
    found = inspect_of(tmp_path, folder)
    again = load_partition(folder, found, task="generate", first=first, end=end, before=before)
    assert isinstance(again, CausalPartition)
    assert torch.equal(computed(again), expected)
    assert (again.packed, again.fused, again.weight_bytes) == (made.packed, made.fused, made.weight_bytes)
    assert again.made is None


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_biases_and_norms_of_heads_are_among_what_is_mapped(tmp_path: Path, packs: bool, family: str) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3}
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads))
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name.endswith("bias") or "_norm" in name:
                each.copy_(torch.rand_like(each))
    model.eval().save_pretrained(tmp_path)
    made = loaded(tmp_path, 0, 2)
    assert made.made is not None
    write(tmp_path / "one.packed", "key", made.made, KERNELS, threading.Event())
    again = loaded(tmp_path, 0, 2, read(tmp_path / "one.packed", "key", KERNELS))
    assert (again.made, again.fused) == (None, packs)
    assert torch.equal(computed(again), computed(made))


def inspect_of(aside: Path, folder: Path) -> object:
    """The checkpoint's description, while its weights lie elsewhere."""
    files = list(aside.glob("*.safetensors"))
    for file in files:
        shutil.move(file, folder / file.name)
    found = inspect(folder)
    for file in files:
        shutil.move(folder / file.name, file)
    return found


def some() -> Packed:
    generator = torch.Generator().manual_seed(5)
    tensors = {
        "a": torch.randn(33, 7, generator=generator),
        "b": torch.randn(200, generator=generator).to(torch.bfloat16),
        "none": torch.empty(0),
    }
    return Packed(tensors, {"weight_bytes": 1, "words": ["x"]})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.packed"
    write(path, "key", some(), KERNELS, threading.Event())
    return path


def test_everything_comes_back(file: Path) -> None:
    found = read(file, "key", KERNELS)
    for name, tensor in some().tensors.items():
        assert torch.equal(found.tensors[name], tensor)
    assert found.facts == some().facts


def cut(data: bytearray) -> bytearray:
    return data[:-1]


def halved(data: bytearray) -> bytearray:
    return data[: len(data) // 2]


def emptied(data: bytearray) -> bytearray:
    return bytearray()


def zeroed(data: bytearray) -> bytearray:
    data[128:256] = bytes(128)
    return data


def swapped(data: bytearray) -> bytearray:
    data[64:128], data[128:192] = data[128:192], data[64:128]
    return data


def flipped(data: bytearray) -> bytearray:
    data[700] ^= 16
    return data


def described(data: bytearray) -> bytearray:
    data[-60] ^= 1
    return data


def foreign(data: bytearray) -> bytearray:
    data[:8] = b"SMPACK99"
    return data


@pytest.mark.parametrize("damage", [cut, halved, emptied, zeroed, swapped, flipped, described, foreign])
def test_a_damaged_file_is_refused(file: Path, damage: Callable[[bytearray], bytearray]) -> None:
    file.write_bytes(damage(bytearray(file.read_bytes())))
    with pytest.raises(PackedFileError):
        read(file, "key", KERNELS)


def test_another_key_is_refused(file: Path) -> None:
    with pytest.raises(PackedFileError, match="something else"):
        read(file, "other", KERNELS)


def test_writing_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        write(tmp_path / "x.packed", "key", some(), KERNELS, stop)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_making_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the last byte is synced nothing has the name that is looked for."""
    seen: list[list[str]] = []
    monkeypatch.setattr(
        "stagemesh.services.stage.partition.packed_file.os.fsync",
        lambda file: seen.append([path.name for path in tmp_path.iterdir()]),
    )
    write(tmp_path / "x.packed", "key", some(), KERNELS, threading.Event())
    assert len(seen[0]) == 1
    assert seen[0][0].startswith(MAKING)


def test_one_of_another_model_does_not_fit(tmp_path: Path, packs: bool) -> None:
    make_llama(tmp_path / "small", layers=2)
    make_llama(tmp_path / "large", layers=4)
    made = loaded(tmp_path / "small", 0, 2)
    assert made.made is not None
    assert any(isinstance(module, PanelLinear) for module in made._base.modules())
    with pytest.raises(PackedFileError):
        loaded(tmp_path / "large", 1, 3, made.made)
    lacking = Packed(
        {name: each for name, each in made.made.tensors.items() if "norm" not in name}, made.made.facts
    )
    with pytest.raises(PackedFileError, match="lacks"):
        loaded(tmp_path / "small", 0, 2, lacking)
