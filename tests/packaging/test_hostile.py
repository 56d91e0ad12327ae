"""Folders from strangers: whatever is in them, loading gives a `CheckpointError` that names the place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stagemesh.services.stage.partition.graph import load_graph
from stagemesh.services.stage.partition.interface import Activations
from stagemesh.services.stage.tensors import to_view

from stagemesh.errors import CheckpointError, InternalError, InvalidArgument
from stagemesh.packaging.graph_form import parse_graph
from stagemesh.packaging.load import example_name
from stagemesh.packaging.manifest import read_manifest
from stagemesh.packaging.operators import resolve
from stagemesh.packaging.package import package
from stagemesh.packaging.program import Program
from stagemesh.packaging.write import save_tensors, seal
from tests.packaging.modules import tensors
from tests.packaging.test_models import CPU, load, made, serve

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "p"
    package(made("TwoByTwo"), tensors(1, 3, "TwoByTwo"), folder, stages=2)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "p"))


def load_all(folder: Path) -> None:
    load_graph(folder, first=0, end=2, device=CPU)


def change(folder: Path, edit: Callable[[dict[str, Any]], object], name: str = "manifest.json") -> None:
    """Edit a JSON file and make the manifest agree with all files, as an attacker would."""
    raw = json.loads((folder / name).read_text())
    edit(raw)
    (folder / name).write_text(json.dumps(raw))
    seal(folder, json.loads((folder / "manifest.json").read_text()))


def put(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    def edit(raw: Any) -> None:
        *path, last = [int(part) if part.isdigit() else part for part in key.split(" ")]
        for part in path:
            raw = raw[part]
        raw[last] = value

    return edit


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("format", "torch", "format"),
        ("version", 2, "version"),
        ("name", "../x", "name"),
        ("batch", None, "batch: must be an object"),
        ("batch dynamic", 1, "batch.dynamic"),
        ("batch example", 0, "batch.example"),
        ("dtype", "F31", "dtype"),
        ("inputs 0 name", "", r"inputs\[0\].name"),
        ("inputs 0 dtype", "C64", r"inputs\[0\].dtype"),
        ("inputs 0 shape", [-2, 6], r"inputs\[0\].shape"),
        ("inputs 0 shape", [-1] * 20, r"inputs\[0\].shape"),
        ("inputs 0 shape", [3, 6], r"pieces\[0\].takes: must be the inputs"),
        ("inputs 0 example", [2**39, 2**39], r"inputs\[0\].example"),
        ("inputs", {}, "inputs: must be a list"),
        ("outputs", [], "outputs: must not be empty"),
        ("outputs 0 shape", [-1, -1], r"outputs\[0\].shape"),
        ("pieces", [], "pieces: must not be empty"),
        ("pieces 0 graph", "../../etc/passwd", r"pieces\[0\].graph"),
        ("pieces 0 graph", "piece-9.graph.json", r"pieces\[0\].graph: is not among"),
        ("pieces 1 graph", "piece-0.graph.json", "same file"),
        ("pieces 0 weights", "/dev/zero", r"pieces\[0\].weights"),
        ("pieces 0 parameter_bytes", -1, r"pieces\[0\].parameter_bytes"),
        ("pieces 0 flops", True, r"pieces\[0\].flops"),
        (
            "pieces 1 borrows",
            [{"file": "piece-1.safetensors", "tensor": "x", "bytes": 1}],
            r"pieces\[1\].borrows",
        ),
        ("pieces 1 takes 0 name", "other", "takes: is not what the manifest says|gives: is not what"),
    ],
)
def test_a_changed_manifest_names_its_field(key: str, value: object, where: str, folder: Path) -> None:
    change(folder, put(key, value))
    with pytest.raises(CheckpointError, match=where):
        load_all(folder)


def test_a_manifest_that_nobody_sealed(folder: Path) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    raw["pieces"][0]["flops"] += 1
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="revision"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"x"', b"[" * 100_000, b"\xff"])
def test_a_manifest_that_is_no_json(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["piece-0.graph.json", "piece-1.safetensors", "examples.safetensors"])
def test_missing_truncated_and_altered_files(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{name} is not what the manifest was made with"):
        load_all(folder)
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=f"{name} has"):
        load_all(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        load_all(folder)


def node(op: str, *args: object, **kwargs: object) -> dict[str, object]:
    return {"name": "evil", "op": op, "args": list(args), "kwargs": kwargs}


LEFT = {"value": "left"}


@pytest.mark.parametrize(
    "evil",
    [
        node("aten.from_file.default", "/etc/passwd", False, 10),
        node("aten.add_.Tensor", LEFT, 1),
        node("aten.set_.source_Tensor", LEFT, LEFT),
        node("aten.resize_.default", LEFT, [2**40]),
        node("aten.empty.memory_format", [10]),
        node("aten.rand.default", [10]),
        node("aten.dropout.default", LEFT, 0.5, True),
        node("aten.scaled_dot_product_attention.default", LEFT, LEFT, LEFT, None, 0.5),
        node("aten.lstm.input", LEFT, [LEFT, LEFT], [LEFT], False, 1, 0.5, True, False, False),
        node("aten.fbgemm_linear_fp16_weight.default", LEFT, LEFT, LEFT),
        node("aten._sparse_coo_tensor_unsafe.default", LEFT, LEFT, [1]),
        node("aten.sym_storage_offset.default", LEFT),
        node("aten.embedding_dense_backward.default", LEFT, LEFT, 1, 1, False),
        node("aten.add"),
        node("aten.add.nothing", LEFT, 1),
        node("aten.__class__.default"),
        node("aten.add.__class__"),
        node("prims.device_put.default", LEFT),
        node("pippy._pipe_split.default"),
        node("os.system.default", "true"),
        node("eval", "1"),
        node("size.pow", 2, 2**40),
    ],
    ids=lambda evil: str(evil["op"]),
)
def test_only_allowed_operators_load(evil: dict[str, object], folder: Path) -> None:
    change(folder, lambda raw: raw["nodes"].insert(0, evil), "piece-0.graph.json")
    with pytest.raises(CheckpointError, match=r"piece-0\.graph\.json: operator '.*' is refused"):
        load_all(folder)


@pytest.mark.parametrize(
    ("evil", "where"),
    [
        ({"name": "a b", "op": "aten.cos.default", "args": [LEFT], "kwargs": {}}, r"nodes\[0\].name"),
        (
            {"name": "left", "op": "aten.cos.default", "args": [LEFT], "kwargs": {}},
            "two values are named 'left'",
        ),
        (node("aten.cos.default; import os", LEFT), r"nodes\[0\].op"),
        (node("aten.cos.default", {"value": "later"}), r"nodes\[0\].args\[0\]: uses 'later'"),
        (node("aten.cos.default", {"value": "evil"}), r"nodes\[0\].args\[0\]: uses 'evil'"),
        (node("aten.cos.default", {"code": "x"}), r"nodes\[0\].args\[0\]"),
        (node("aten.cos.default", {"dtype": "C64"}), r"nodes\[0\].args\[0\]"),
        (node("aten.cos.default", {"value": ["left"]}), r"nodes\[0\].args\[0\]"),
        (node("aten.cos.default", 2**70), r"nodes\[0\].args\[0\]"),
        (node("aten.cos.default", "x" * 2000), r"nodes\[0\].args\[0\]"),
        (node("aten.cos.default", [[[[[[[[[[1]]]]]]]]]]), r"nodes\[0\].args\[0\]"),
        ({"name": "evil", "op": "aten.cos.default", "args": LEFT, "kwargs": {}}, r"nodes\[0\].args"),
        ([], r"nodes\[0\]: must be an object"),
    ],
)
def test_a_malformed_node_is_named(evil: object, where: str, folder: Path) -> None:
    change(folder, lambda raw: raw["nodes"].insert(0, evil), "piece-0.graph.json")
    with pytest.raises(CheckpointError, match=where):
        load_all(folder)


@pytest.mark.parametrize(
    "evil",
    [
        node("size.mul", LEFT, LEFT),
        node("size.mul", "ab", 3),
        node("size.mul", 2**62, 2**62),
        node("getitem", "abc", 0),
        node("size.to_tensor", LEFT),
        node("aten.mm.default", LEFT, LEFT),
        node("aten.full.default", [2**50], 1.0),
        node("aten.cos.default", 1, 2, 3),
    ],
    ids=lambda evil: str(evil["op"]),
)
def test_arguments_that_an_operator_cannot_take_fail_the_load(evil: dict[str, object], folder: Path) -> None:
    change(folder, lambda raw: raw["nodes"].insert(0, evil), "piece-0.graph.json")
    with pytest.raises(CheckpointError, match="example fails"):
        load_all(folder)


def test_a_graph_may_only_name_weights_of_its_own(folder: Path) -> None:
    def steal(raw: dict[str, Any]) -> None:
        raw["weights"]["p_first_weight"] = {"file": "../secret.safetensors", "tensor": "x"}

    change(folder, steal, "piece-0.graph.json")
    with pytest.raises(CheckpointError, match="neither its own nor borrowed"):
        load_all(folder)


def test_other_weights_with_honest_digests_are_found_by_the_example(folder: Path) -> None:
    path = folder / "piece-0.safetensors"
    save_tensors(path, {name: tensor + 1 for name, tensor in load_file(path).items()})
    change(folder, lambda raw: None)
    with pytest.raises(CheckpointError, match="computes something else here"):
        load_all(folder)


def test_examples_of_another_shape_are_refused(folder: Path) -> None:
    path = folder / "examples.safetensors"
    save_tensors(path, load_file(path) | {example_name(0, "left"): torch.zeros(3, 7)})
    change(folder, lambda raw: None)
    with pytest.raises(CheckpointError, match="'left' is not as in the manifest"):
        load_all(folder)


@pytest.mark.parametrize(
    "raw", [{}, {"format": "stagemesh.graph"}, {"format": "stagemesh.graph", "version": 1}]
)
def test_a_graph_without_its_fields(raw: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"g\.json"):
        parse_graph(raw, "g.json")


def test_every_overload_of_torch_is_judged_and_no_writer_is_allowed() -> None:
    allowed = []
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        try:
            function = resolve(f"{space}.{base}.{overload or 'default'}", [], {"train": False})
        except CheckpointError:
            continue
        allowed.append(function)
    assert 200 < len(allowed) < 700
    for function in allowed:
        assert function.namespace == "aten"
        assert not function._schema.is_mutable
        assert not function._schema.name.startswith(("aten::from_file", "aten::empty", "aten::rand"))


# ---- requests ----


def test_requests_of_other_dtypes_and_shapes_are_refused_by_name(folder: Path) -> None:
    parts = load(folder, 2)
    manifest = read_manifest(folder)
    left, right = tensors(1, 3, "TwoByTwo")
    for bad, field in (
        ((left.double(), right), "left"),
        ((left, right[:2]), "right"),
        ((left, right[:, :3]), "right"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            serve(parts, manifest, bad)
        assert caught.value.field == field
    with pytest.raises(InvalidArgument, match="right is missing"):
        parts[0].inputs_of({"left": to_view(left)}, [1, 1, 1])


def test_an_index_beyond_a_table_is_the_callers_fault_and_the_stage_lives(tmp_path: Path) -> None:
    module = made("Recommender")
    manifest = package(module, tensors(1, 3, "Recommender"), tmp_path / "p")
    parts = load(tmp_path / "p", 2)
    user, history, dense = tensors(1, 3, "Recommender")
    with pytest.raises(InvalidArgument, match=r"aten\.embedding\.default cannot compute"):
        serve(parts, manifest, (user + 1000, history, dense))
    assert len(serve(parts, manifest, (user, history, dense))) == 2


def test_frames_that_do_not_fit_are_refused(folder: Path) -> None:
    one, two = load(folder, 2)
    done = one.forward(one.example())
    name = next(iter(done.sides))
    for wrong in (
        Activations(done.hidden, {}),
        Activations(done.hidden, done.sides | {"more": done.hidden}),
        Activations(done.hidden, done.sides | {name: done.sides[name].to(torch.float16)}),
        Activations(done.hidden[:, :1], done.sides),
    ):
        with pytest.raises(InternalError):
            two.check(3, wrong)


def test_a_graph_that_gives_no_tensor_fails() -> None:
    raw = {
        "format": "stagemesh.graph",
        "version": 1,
        "takes": {"x": "x"},
        "weights": {},
        "nodes": [{"name": "n", "op": "aten.sym_size.int", "args": [{"value": "x"}, 0], "kwargs": {}}],
        "gives": {"n": "n"},
    }
    program = Program(parse_graph(raw, "g"), {}, CPU)
    with pytest.raises(CheckpointError, match="gives no tensor"):
        program({"x": torch.zeros(2)})
