"""Packed linear layers: the same results, and only where they work and pay."""

import pytest
import torch
from stagemesh.services.stage.partition import packed
from stagemesh.services.stage.partition.kernels import load_kernels
from stagemesh.services.stage.partition.memory import LargePages
from stagemesh.services.stage.partition.packed import PackedLinear, PanelLinear, pack_linears
from torch import nn


def pack(form: str, linear: nn.Linear) -> nn.Module:
    if form == "onednn":
        return PackedLinear(linear)
    kernels = load_kernels(linear.weight.dtype)
    if kernels is None:
        pytest.skip("the kernels were not built")
    return PanelLinear(linear, kernels, LargePages())


@pytest.fixture
def only_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "load_kernels", lambda dtype: None)


@pytest.mark.parametrize("form", ["panels", "onednn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 128), (8, 128), (1, 7, 128), (64, 128)])
@torch.inference_mode()
def test_the_product_is_the_same(form: str, dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    linear = nn.Linear(128, 192, bias=bias, dtype=dtype)
    inputs = torch.randn(*shape, dtype=dtype)
    out = pack(form, linear)(inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out, linear(inputs), rtol=tolerance, atol=tolerance)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 256), nn.Sequential(nn.Linear(256, 256)), nn.Linear(2, 2))


@pytest.mark.usefixtures("only_onednn")
def test_layers_large_enough_are_replaced_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_pays", lambda linear, form: True)
    net = model()
    expected = net[1](torch.ones(1, 256))
    assert pack_linears(net) == 2
    assert isinstance(net[0], PackedLinear)
    assert isinstance(net[1][0], PackedLinear)
    assert isinstance(net[2], nn.Linear)
    torch.testing.assert_close(net[1](torch.ones(1, 256)), expected)


@pytest.mark.usefixtures("only_onednn")
def test_nothing_changes_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        packed, "_best_s", lambda layer, batch: 2.0 if isinstance(layer, PackedLinear) else 1.0
    )
    net = model()
    assert pack_linears(net) == 0
    assert type(net[0]) is nn.Linear


@pytest.mark.usefixtures("only_onednn")
def test_nothing_changes_where_results_differ_or_the_operator_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PackedLinear, "forward", lambda self, inputs: torch.zeros(len(inputs), 256))
    assert pack_linears(model()) == 0

    def missing(self: PackedLinear, inputs: torch.Tensor) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(PackedLinear, "forward", missing)
    assert pack_linears(model()) == 0
