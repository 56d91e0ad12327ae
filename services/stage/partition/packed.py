"""Linear layers whose weights are stored in the order in which they are computed, on a CPU.

A plain linear layer reorders its weight at every call or streams it badly. Two forms are known here: panels for the
compiled kernels, and oneDNN's own order (the operators that inductor's freezing emits, private to torch). Each is
tried out on one layer first; the first that is right and sooner than the plain layer is used.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

from .kernels import PANEL, Kernels, load_kernels
from .memory import LargePages
from .trials import TRIALS

log = logging.getLogger(__name__)

# Rows that the layout is made for: a decode step of a few sessions.
ROWS = 8
_DTYPES = (torch.float32, torch.bfloat16)
# Smaller layers cost more to call than to compute.
_MIN_WEIGHTS = 2**14
_TRIES = 9


class SideBySide(nn.Module):
    """Linear layers on one input, `[..., in] -> [..., sum of outs]`, whose weights nobody has put together yet."""

    def __init__(self, *parts: nn.Linear) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.in_features = parts[0].in_features
        self.out_features = sum(part.out_features for part in parts)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """One product after the other."""
        return torch.cat([part(inputs) for part in self.parts], -1)

    def joined(self) -> nn.Linear:
        """The same as one layer, with a copy of the weights."""
        weights, biases = [part.weight for part in self.parts], [part.bias for part in self.parts]
        linear = nn.Linear(
            self.in_features, self.out_features, bias=any(b is not None for b in biases), device="meta"
        )
        linear.weight = nn.Parameter(torch.cat(weights), requires_grad=False)  # type: ignore[arg-type]
        if linear.bias is not None:
            found = [
                part.weight.new_zeros(part.out_features) if part.bias is None else part.bias  # type: ignore[operator]
                for part in self.parts
            ]
            linear.bias = nn.Parameter(torch.cat(found), requires_grad=False)
        return linear


# A layer to be packed.
Plain: TypeAlias = "nn.Linear | SideBySide"


class PanelLinear(nn.Module):
    """`[..., in] -> [..., out]` as what it was made from; holds no plain copy of the weight."""

    def __init__(self, plain: Plain, kernels: Kernels, memory: LargePages) -> None:
        super().__init__()
        self.in_features = plain.in_features
        self.out_features = plain.out_features
        self._kernels = kernels
        parts, self.bias = _parts(plain)
        columns = -(-plain.out_features // PANEL) * PANEL
        self.panels = memory.empty(columns * plain.in_features, parts[0].dtype)
        at = 0
        for weight in parts:  # straight from where they lie, which may be a mapped file
            kernels.pack_panels(weight, self.panels[at:])
            at += weight.numel()

    @classmethod
    def of(
        cls, depth: int, columns: int, panels: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels
    ) -> "PanelLinear":
        """`[..., depth]` -> `[..., columns]` with panels that were made before."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = depth, columns
        made._kernels, made.panels = kernels, panels
        made.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return made

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply by the packed weight and add the bias."""
        flat = inputs.reshape(-1, self.in_features).contiguous()
        out = self._kernels.linear(flat, self.panels, self.bias, self.out_features, torch.get_num_threads())
        return out if inputs.dim() == 2 else out.view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As `nn.Linear`'s."""
        return f"in_features={self.in_features}, out_features={self.out_features}, panels"


def _parts(plain: Plain) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Contiguous weights `[out, in]` whose panels can follow one another, and the bias of all."""
    if isinstance(plain, SideBySide):
        parts = list(plain.parts)
        fit = all(part.out_features % PANEL == 0 for part in parts[:-1])  # type: ignore[operator]
        if fit and all(part.bias is None for part in parts):
            return [part.weight.detach().contiguous() for part in parts], None  # type: ignore[operator]
        plain = plain.joined()
    return [plain.weight.detach().contiguous()], plain.bias


class PackedLinear(nn.Module):
    """The same in oneDNN's order."""

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        linear = plain.joined() if isinstance(plain, SideBySide) else plain
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
    apart = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, SideBySide)
    ]
    inside = {id(part) for _, _, child in apart for part in child.parts}
    every: list[tuple[nn.Module, str, Plain]] = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, (nn.Linear, SideBySide)) and id(child) not in inside and _can(child)
    ]
    form = _best_form([child for _, _, child in every])
    for parent, name, child in every if form is not None else ():
        assert form is not None
        setattr(parent, name, form(child))
    for parent, name, child in apart:
        if getattr(parent, name) is child:
            setattr(parent, name, child.joined())
    return len(every) if form is not None else 0


def _can(layer: Plain) -> bool:
    """Whether it is a layer that is worth packing."""
    parts = list(layer.parts) if isinstance(layer, SideBySide) else [layer]
    return (
        all(
            type(part) is nn.Linear and part.weight.device.type == "cpu" and part.weight.dtype in _DTYPES
            for part in parts
        )
        and layer.in_features * layer.out_features >= _MIN_WEIGHTS
        and layer.in_features % 2 == 0
    )


def _best_form(layers: list[Plain]) -> Callable[[Plain], nn.Module] | None:
    """The form to pack in, if one pays; tried on the largest layer."""
    if not layers:
        return None
    largest = max(layers, key=lambda layer: layer.in_features * layer.out_features)
    part = largest.parts[0] if isinstance(largest, SideBySide) else largest
    dtype: torch.dtype = part.weight.dtype  # type: ignore[union-attr, assignment]

    def tried(form: Callable[[Plain], nn.Module]) -> bool:
        return _pays(largest.joined() if isinstance(largest, SideBySide) else largest, form)

    for name, form in _forms(dtype):
        if TRIALS.pays(name, largest.in_features, largest.out_features, dtype, trial=partial(tried, form)):
            return form
    return None


def _forms(dtype: torch.dtype) -> list[tuple[str, Callable[[Plain], nn.Module]]]:
    """The ways to pack, best first, with their names."""
    forms: list[tuple[str, Callable[[Plain], nn.Module]]] = [("onednn", PackedLinear)]
    kernels = load_kernels(dtype)
    if kernels is not None:
        memory = LargePages()
        forms.insert(0, ("panels", lambda plain: PanelLinear(plain, kernels, memory)))
    return forms


def _pays(linear: nn.Linear, form: Callable[[Plain], nn.Module]) -> bool:
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
