"""Linear layers whose weights are stored in the order that oneDNN computes in, on a CPU.

A plain linear layer reorders its weight at every call or streams it badly; packed once, the same product takes
a half to a third of the time at the few rows of a decode step. Inductor's freezing does the same to a compiled
graph; these are the operators it emits, used without a compiler in between. They are private to torch, so
packing is tried out on one layer first, and dropped where it is missing, wrong or slower.
"""

import logging
import time

import torch
from torch import nn

log = logging.getLogger(__name__)

# Rows that the layout is made for: a decode step of a few sessions.
ROWS = 8
_DTYPES = (torch.float32, torch.bfloat16)
# Smaller layers cost more to call than to compute.
_MIN_WEIGHTS = 2**14
_TRIES = 9


class PackedLinear(nn.Module):
    """`[..., in] -> [..., out]` as the `nn.Linear` it was made from; holds no plain copy of the weight."""

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
    ]
    if not found or not _pays(max((child for _, _, child in found), key=lambda c: c.weight.numel())):
        return 0
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    return len(found)


def _pays(linear: nn.Linear) -> bool:
    """Whether packing gives this layer's result, sooner, at one row and at `ROWS` rows together."""
    try:
        packed = PackedLinear(linear)
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
    log.info("packed linear layers take %.2f of the plain ones' time", packed_s / plain_s)
    return packed_s < plain_s


def _best_s(layer: nn.Module, batch: torch.Tensor) -> float:
    times = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        layer(batch)
        times.append(time.perf_counter() - started)
    return min(times)
