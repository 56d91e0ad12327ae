"""Packages served in stages give what their modules give, at any batch."""

from pathlib import Path

import pytest
import torch
from stagemesh.services.stage.partition.graph import GraphPartition, load_graph
from stagemesh.services.stage.partition.interface import Activations, Batch
from stagemesh.services.stage.tensors import from_view, to_view
from torch import nn

from stagemesh.packaging.manifest import Manifest, read_manifest
from stagemesh.packaging.package import package
from tests.packaging.modules import MODULES, tensors

torch.set_num_threads(1)
CPU = torch.device("cpu")


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[kind]().eval()


def load(folder: Path, stages: int) -> list[GraphPartition]:
    """The package's pieces on so many stages."""
    layers = read_manifest(folder).layers
    ends = [layers * (stage + 1) // stages for stage in range(stages)]
    return [
        load_graph(folder, first=first, end=end, device=CPU)
        for first, end in zip([0, *ends], ends, strict=False)
    ]


def over_a_link(given: Activations) -> Activations:
    def sent(tensor: torch.Tensor) -> torch.Tensor:
        view = to_view(tensor)
        copy = memoryview(bytes(view.data))
        return from_view(type(view)(view.dtype, view.shape, copy, view.name), CPU)

    return Activations(sent(given.hidden), {name: sent(side) for name, side in given.sides.items()})


def serve(
    parts: list[GraphPartition], manifest: Manifest, inputs: tuple[torch.Tensor, ...]
) -> list[torch.Tensor]:
    rows = inputs[0].shape[0]
    views = {spec.name: to_view(tensor) for spec, tensor in zip(manifest.inputs, inputs, strict=True)}
    done = parts[0].forward(Batch([], inputs=parts[0].inputs_of(views, [1] * rows)))
    for part in parts[1:]:
        done = part.forward(Batch([], given=part.check(rows, over_a_link(done))))
    return [parts[-1].output(spec.name, done, [1] * rows) for spec in manifest.outputs]


def outputs_of(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        result = module(*(tensor.clone() for tensor in inputs))
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result.values()) if isinstance(result, dict) else list(result)


def agrees(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MODULES)
def test_any_batch_in_one_two_and_three_stages(kind: str, tmp_path: Path) -> None:
    module = made(kind)
    manifest = package(module, tensors(1, 3, kind), tmp_path / "p")
    assert manifest.dynamic, manifest.fixed_because
    for stages in (1, 2, 3):
        parts = load(tmp_path / "p", min(stages, manifest.layers))
        for batch in (1, 2, 3, 8):
            inputs = tensors(batch, batch, kind)
            agrees(serve(parts, manifest, inputs), outputs_of(module, inputs))


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("kind", MODULES)
def test_as_many_pieces_as_asked_for(kind: str, stages: int, tmp_path: Path) -> None:
    module = made(kind)
    manifest = package(module, tensors(1, 2, kind), tmp_path / "p", stages=stages)
    assert manifest.layers == stages
    inputs = tensors(5, 5, kind)
    agrees(serve(load(tmp_path / "p", stages), manifest, inputs), outputs_of(module, inputs))


def test_every_contiguous_range_is_a_partition(tmp_path: Path) -> None:
    module = made("Tied")
    manifest = package(module, tensors(1, 2, "Tied"), tmp_path / "p")
    assert manifest.layers >= 3
    inputs = tensors(4, 4, "Tied")
    for cut in range(1, manifest.layers):
        parts = [
            load_graph(tmp_path / "p", first=0, end=cut, device=CPU),
            load_graph(tmp_path / "p", first=cut, end=manifest.layers, device=CPU),
        ]
        agrees(serve(parts, manifest, inputs), outputs_of(module, inputs))
        assert [part.weight_bytes for part in parts] == [
            manifest.partition_bytes(0, cut),
            manifest.partition_bytes(cut, manifest.layers),
        ]


def test_a_tied_weight_lies_in_one_file_and_once_in_memory(tmp_path: Path) -> None:
    manifest = package(made("Tied"), tensors(1, 2, "Tied"), tmp_path / "p", stages=3)
    shared = 20 * 8 * 4
    assert sum(piece.parameter_bytes for piece in manifest.pieces) == manifest.partition_bytes(0, 3)
    assert manifest.pieces[-1].borrows[0].bytes == shared
    assert manifest.partition_bytes(0, 3) == sum(manifest.layer_bytes) - shared


def test_pieces_of_even_layers_are_even(tmp_path: Path) -> None:
    sizes = package(made("MLP"), tensors(1, 2, "MLP"), tmp_path / "p", stages=2).layer_bytes
    assert max(sizes) < 1.7 * min(sizes)


def test_a_size_that_no_tensor_has_is_sent(tmp_path: Path) -> None:
    manifest = package(made("Flattens"), tensors(1, 3, "Flattens"), tmp_path / "p", cuts=["two"])
    assert [spec.dtype for spec in manifest.takes(1)] == ["F32", "I64"]
    assert manifest.takes(1)[1].shape == ()


def test_one_value_of_a_wider_row_crosses_a_link() -> None:
    one = torch.arange(4.0).reshape(1, 4)[:, 2]
    assert one.stride() == (4,)
    assert bytes(to_view(one).data) == torch.tensor([2.0]).numpy().tobytes()


def test_the_canary_has_harmless_values_of_every_piece(tmp_path: Path) -> None:
    package(made("Recommender"), tensors(1, 3, "Recommender"), tmp_path / "p")
    for part in load(tmp_path / "p", 3):
        for rows in (1, 4):
            from stagemesh.services.stage.partition.ragged import Segment

            segments = [Segment(0, rows, 0, None)]
            batch = part.probe(segments)
            assert torch.isfinite(part.forward(batch).hidden.float()).all()
