"""Linear layers whose weights are stored in the order in which they are computed, on a CPU.

A plain linear layer reorders its weight at every call or streams it badly. Two forms are known here: panels for the
compiled kernels, and oneDNN's own order (the operators that inductor's freezing emits, private to torch). Each is
tried out on one layer first; the first that is right and sooner than the plain layer is used.
"""

import logging
import time
from collections.abc import Callable

import torch
from torch import nn

from .kernels import PANEL, Kernels, load_kernels
from .memory import LargePages

log = logging.getLogger(__name__)

# Rows that the layout is made for: a decode step of a few sessions.
ROWS = 8
_DTYPES = (torch.float32, torch.bfloat16)
# Smaller layers cost more to call than to compute.
_MIN_WEIGHTS = 2**14
_TRIES = 9


class PanelLinear(nn.Module):
    """`[..., in] -> [..., out]` as the `nn.Linear` it was made from; holds no plain copy of the weight."""

    def __init__(self, linear: nn.Linear, kernels: Kernels, memory: LargePages) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self._kernels = kernels
        columns = -(-linear.out_features // PANEL) * PANEL
        self._panels = memory.empty(columns * linear.in_features, linear.weight.dtype)
        kernels.pack_panels(linear.weight.detach().contiguous(), self._panels)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply by the packed weight and add the bias."""
        flat = inputs.reshape(-1, self.in_features).contiguous()
        out = self._kernels.linear(flat, self._panels, self.bias, self.out_features, torch.get_num_threads())
        return out if inputs.dim() == 2 else out.view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As `nn.Linear`'s."""
        return f"in_features={self.in_features}, out_features={self.out_features}, panels"


class PackedLinear(nn.Module):
    """The same in oneDNN's order."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply by the packed weight and add the bias."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        """As `nn.Linear`'s."""
        return f"in_features={self.in_features}, out_features={self.out_features}, packed"


@torch.inference_mode()
def pack_linears(model: nn.Module) -> int:
    """Replace the linear layers of a loaded model in place, where that pays on this machine.

    Returns:
        How many were replaced; 0 when packing does not work here or is not faster.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
        and child.weight.device.type == "cpu"
        and child.weight.dtype in _DTYPES
        and child.weight.numel() >= _MIN_WEIGHTS
        and child.in_features % 2 == 0
    ]
    if not found:
        return 0
    largest = max((child for _, _, child in found), key=lambda c: c.weight.numel())
    for form in _forms(largest.weight.dtype):
        if _pays(largest, form):
            for parent, name, child in found:
                setattr(parent, name, form(child))
            return len(found)
    return 0


def _forms(dtype: torch.dtype) -> list[Callable[[nn.Linear], nn.Module]]:
    """The ways to pack, best first."""
    forms: list[Callable[[nn.Linear], nn.Module]] = [PackedLinear]
    kernels = load_kernels(dtype)
    if kernels is not None:
        memory = LargePages()
        forms.insert(0, lambda linear: PanelLinear(linear, kernels, memory))
    return forms


def _pays(linear: nn.Linear, form: Callable[[nn.Linear], nn.Module]) -> bool:
    """Whether packing gives this layer's result, sooner, at one row and at `ROWS` rows together."""
    try:
        packed = form(linear)
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(rows, linear.in_features, generator=generator).to(linear.weight.dtype)
            for rows in (1, ROWS)
        ]
        tolerance = 1e-3 if linear.weight.dtype == torch.float32 else 2e-2
        for batch in inputs:
            if not torch.allclose(packed(batch), linear(batch), rtol=tolerance, atol=tolerance):
                log.warning("packed linear layers give other results on this machine: not used")
                return False
        plain_s, packed_s = (sum(_best_s(layer, batch) for batch in inputs) for layer in (linear, packed))
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        log.info("linear layers cannot be packed here: %s", str(error).splitlines()[0])
        return False
    log.info("%s layers take %.2f of the plain ones' time", type(packed).__name__, packed_s / plain_s)
    return packed_s < plain_s


def _best_s(layer: nn.Module, batch: torch.Tensor) -> float:
    times = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        layer(batch)
        times.append(time.perf_counter() - started)
    return min(times)
