"""Where a package is cut, what is refused and why, and when its batch is fixed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.pipelining import SplitPoint, pipe_split, pipeline

from stagemesh.errors import InvalidArgument
from stagemesh.packaging.manifest import Manifest
from stagemesh.packaging.package import package
from tests.packaging.modules import tensors
from tests.packaging.test_models import agrees, load, made, outputs_of, serve

torch.set_num_threads(1)


class Wrapped(nn.Module):
    """A function of tensors as a module, with a layer so that it has a parameter."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(self.layer(x))


def wrapped(function: object, folder: Path, batch: int = 3, **options: object) -> Manifest:
    torch.manual_seed(0)
    return package(Wrapped(function).eval(), (torch.randn(batch, 4),), folder / "p", **options)


def names_of(manifest: Manifest, folder: Path) -> list[set[str]]:
    from stagemesh.checkpoint_files import read_header

    return [set(read_header(folder / piece.weights)) if piece.weights else set() for piece in manifest.pieces]


def test_importing_stagemesh_and_reading_a_manifest_needs_no_torch(tmp_path: Path) -> None:
    package(made("MLP"), tensors(1, 2, "MLP"), tmp_path / "p")
    code = (
        "import sys, pathlib, stagemesh\n"
        "from stagemesh.packaging.manifest import read_manifest\n"
        f"print(read_manifest(pathlib.Path({str(tmp_path / 'p')!r})).signature.rows)\n"
        "assert not {'torch', 'safetensors', 'transformers'} & set(sys.modules)\n"
        "stagemesh.package\n"
        "assert 'torch' in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "sample\n"


def test_named_cuts_agree_with_torchs_own_pipeline(tmp_path: Path) -> None:
    module, inputs = made("TwoByTwo"), tensors(1, 3, "TwoByTwo")
    pipe = pipeline(
        module, inputs, split_spec={"second": SplitPoint.BEGINNING, "third": SplitPoint.BEGINNING}
    )
    manifest = package(module, inputs, tmp_path / "p", cuts=["second", "third"])
    assert manifest.layers == pipe.num_stages == 3
    for index, names in enumerate(names_of(manifest, tmp_path / "p")):
        assert names == set(dict(pipe.get_stage_module(index).named_parameters()))
    agrees(serve(load(tmp_path / "p", 3), manifest, inputs), list(pipe(*inputs)))


def test_torchs_own_pipeline_keeps_the_batch_of_its_example(tmp_path: Path) -> None:
    # Why packages are not made with it: it exports without dynamic shapes.
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).view(x.shape[0], 2, 2))

    pipe = pipeline(Views(), (torch.randn(3, 4),), split_spec={"two": SplitPoint.BEGINNING})
    with pytest.raises(RuntimeError):
        pipe(torch.randn(5, 4))
    assert package(Views(), (torch.randn(3, 4),), tmp_path / "p", cuts=["two"]).dynamic


def test_a_cut_after_a_submodule(tmp_path: Path) -> None:
    manifest = package(made("MLP"), tensors(1, 2, "MLP"), tmp_path / "p", cuts={"layers.0": SplitPoint.END})
    assert names_of(manifest, tmp_path / "p")[0] == {"layers.0.weight", "layers.0.bias"}


def test_marks_in_the_modules_own_code(tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        pipe_split()
        return x.cos()

    assert wrapped(function, tmp_path).layers == 2


def test_no_operation_between_its_results_is_split_off(tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        one, two = x.split(2, dim=1)
        pipe_split()
        return one.cos() + two

    manifest = wrapped(function, tmp_path)
    assert manifest.layers == 2
    assert len(manifest.takes(1)) == 2


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = made("Conv").train()
    module.norm.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    package(module, tensors(1, 2, "Conv"), tmp_path / "p", cuts=["two"])
    assert module.training
    assert not module.norm.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_inputs_by_name_and_names_of_ones_own(tmp_path: Path) -> None:
    module = made("TwoByTwo")
    left, right = tensors(1, 3, "TwoByTwo")
    manifest = package(
        module, {"right": right, "left": left}, tmp_path / "p", output_names=["value", "best.class"]
    )
    assert {spec.name for spec in manifest.inputs} == {"left", "right"}
    assert [output.name for output in manifest.signature.outputs] == ["value", "best.class"]
    given = tuple({"left": left, "right": right}[spec.name] for spec in manifest.inputs)
    agrees(serve(load(tmp_path / "p", 2), manifest, given), outputs_of(module, (left, right)))


def test_an_example_of_one_sample_is_enough(tmp_path: Path) -> None:
    module = made("MLP")
    manifest = package(module, tensors(1, 1, "MLP"), tmp_path / "p")
    assert manifest.dynamic
    agrees(
        serve(load(tmp_path / "p", 1), manifest, (inputs := tensors(2, 6, "MLP"))), outputs_of(module, inputs)
    )


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x - x.mean(0), "depend on one another"),
        (lambda x: x.cumsum(0), "depend on"),
        (lambda x: x.reshape(3, 4), "torch.export"),
        (lambda x: x * torch.arange(3.0)[:, None], "torch.export"),
        (lambda x: x.squeeze(), "depend on one another"),
    ],
    ids=["mean", "cumsum", "reshape", "constant", "squeeze"],
)
def test_a_batch_that_cannot_be_dynamic_is_fixed_and_says_why(
    function: object, why: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="batch of this package is fixed"):
        manifest = wrapped(function, tmp_path)
    assert not manifest.dynamic
    assert why in manifest.fixed_because
    assert [spec.shape[0] for spec in (*manifest.inputs, *manifest.outputs)] == [3, 3]
    part = load(tmp_path / "p", 1)[0]
    with pytest.raises(InvalidArgument, match=r"x: needs F32 \[3, 4\], got F32 \[2, 4\]"):
        serve([part], manifest, (torch.randn(2, 4),))


def test_a_fixed_batch_may_be_asked_for(tmp_path: Path) -> None:
    manifest = wrapped(torch.cos, tmp_path, dynamic_batch=False)
    assert manifest.signature.inputs[0].shape == (3, 4)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x + self.calls


def branch(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else -x


@pytest.mark.filterwarnings("ignore:the batch of this package")
@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: torch.rand_like(x) + x, "draws random numbers"),
        (lambda x: nn.functional.dropout(x, 0.5, training=True), "random"),
        (lambda x: torch.linalg.matrix_exp(x[:, :2, None] * x[:, None, :2]), "not among the operators"),
        (branch, "torch.export cannot follow it"),
        (lambda x: x.sum(), "must have the batch"),
        (lambda x: (x, 3), "returns a int"),
        (lambda x: torch.complex(x, x), "complex64"),
    ],
    ids=["random", "dropout", "unknown", "branch", "scalar", "number", "complex"],
)
def test_what_cannot_be_served_is_refused_by_name(function: object, why: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=why):
        wrapped(function, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:the batch of this package")
def test_a_module_with_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="calls"):
        package(Counts(), (torch.randn(2, 4),), tmp_path / "p")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"stages": 0}, "stages"),
        ({"stages": 2, "cuts": ["head"]}, "stages"),
        ({"stages": 1000}, "stages"),
        ({"cuts": ["nothing"]}, "cuts"),
        ({"cuts": ["layers.0"]}, "cuts"),
        ({"input_names": ["a", "b"]}, "input_names"),
        ({"output_names": ["a/b"]}, "output_names"),
    ],
)
def test_arguments_are_checked(options: dict[str, object], field: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        package(made("MLP"), tensors(1, 2, "MLP"), tmp_path / "p", **options)
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


def test_examples_are_checked(tmp_path: Path) -> None:
    module = made("TwoByTwo")
    for given in ((), (1, 2), "x", (torch.randn(2, 6), torch.randn(3, 4)), (torch.tensor(1.0),)):
        with pytest.raises(InvalidArgument, match="example_inputs"):
            package(module, given, tmp_path / "p")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine").touch()
    with pytest.raises(InvalidArgument, match="out_dir"):
        package(made("MLP"), tensors(1, 2, "MLP"), tmp_path / "p")


def test_the_revision_is_that_of_the_content(tmp_path: Path) -> None:
    first, second = (package(made("MLP"), tensors(1, 2, "MLP"), tmp_path / name) for name in "ab")
    assert first.revision == second.revision
    module = made("MLP")
    with torch.no_grad():
        module.head.bias[0] += 1
    assert package(module, tensors(1, 2, "MLP"), tmp_path / "c").revision != first.revision
