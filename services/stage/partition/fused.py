"""Decoder layers of the Llama kind as four matrix products and the compiled kernels between them.

A decode step of a few rows is bound by reading weights, and what else it does costs mainly calls: the model
library's layer makes some 40 of them. Here the projections of queries, keys and values are one product, those of
gate and up another, and norms, residuals, rotary positions, KV writes and attention are one kernel each.
"""

import copy
import logging
import time

import torch
from torch import nn
from transformers.activations import ACT2FN

from .attention import running
from .kernels import Kernels
from .kv import KVLayout, KVPool
from .packed import SideBySide, pack_linears
from .ragged import Ragged, Segment
from .trials import TRIALS

log = logging.getLogger(__name__)

# Families whose layer computes what `FusedLayer` does.
FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
# Rows of the passes that the two forms are compared on.
_PROMPT, _TRIES = 4, 9

_SILU = (nn.SiLU, *({type(ACT2FN["silu"])} - {nn.SiLU}))
Rotary = tuple[torch.Tensor, torch.Tensor]


class FusedLayer(nn.Module):
    """One decoder layer, made from the model library's; shares no weight with it but the norms'."""

    def __init__(self, layer: nn.Module, index: int, kernels: Kernels) -> None:
        super().__init__()
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        self.index = index
        self.head_dim: int = attention.head_dim  # type: ignore[assignment]
        self.scale: float = attention.scaling  # type: ignore[assignment]
        self.qkv: nn.Module = _beside(attention, "q_proj", "k_proj", "v_proj")
        self.out = attention.get_submodule("o_proj")
        self.gate_up: nn.Module = _beside(mlp, "gate_proj", "up_proj")
        self.down = mlp.get_submodule("down_proj")
        self.heads = self.out.in_features // self.head_dim  # type: ignore[operator]
        self.kv_heads = (self.qkv.out_features // self.head_dim - self.heads) // 2
        self.before_attention = layer.get_submodule("input_layernorm")
        self.before_mlp = layer.get_submodule("post_attention_layernorm")
        self.norms: tuple[torch.Tensor, torch.Tensor, float] | None = None
        if hasattr(attention, "q_norm"):
            query, key = attention.get_submodule("q_norm"), attention.get_submodule("k_norm")
            self.norms = (query.weight, key.weight, query.variance_epsilon)  # type: ignore[assignment]
            # So that their weights are among the partition's: counted, and copied out of a mapped file.
            self.of_heads = nn.ModuleList([query, key])
        self._kernels = kernels

    def forward(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, rotary: Rotary, batch: Ragged
    ) -> torch.Tensor:
        """Run the layer.

        Args:
            hidden: `[rows, width]`, changed in place; what the layer before left to be added is added to it.
            delta: what the layer before left to be added.
            rotary: cosines and sines `[rows, head_dim]`.
            batch: the rows' sessions.

        Returns:
            What is still to be added to `hidden`.
        """
        kernels = self._kernels
        normed = kernels.add_rms_norm(hidden, delta, *_norm(self.before_attention))
        qkv = self.qkv(normed)
        arena = batch.arena(self.index)
        kernels.rope_store(qkv, *rotary, self.norms, batch.slots, arena, self.heads, self.kv_heads)
        at, width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        keys = qkv[:, at : at + width].unflatten(1, (self.kv_heads, self.head_dim))
        values = qkv[:, at + width :].unflatten(1, (self.kv_heads, self.head_dim))
        attended = batch.attend(self.index, qkv, keys, values, self.heads, self.scale)
        normed = kernels.add_rms_norm(hidden, self.out(attended), *_norm(self.before_mlp))
        return self.down(kernels.silu_mul(self.gate_up(normed)))  # type: ignore[no-any-return]


def _norm(module: nn.Module) -> tuple[torch.Tensor, float]:
    return module.weight, module.variance_epsilon  # type: ignore[return-value]


def _beside(module: nn.Module, *names: str) -> SideBySide:
    """Linear layers on one input; packing makes one of them, without a copy in between."""
    return SideBySide(*(module.get_submodule(name) for name in names))  # type: ignore[arg-type]


def _fits(layer: nn.Module, layout: KVLayout, kernels: Kernels) -> bool:
    """Whether a layer is built of the parts that `FusedLayer` knows."""
    names = dict(layer.named_modules())
    linears = [f"self_attn.{part}_proj" for part in "qkvo"]
    linears += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    return (
        all(type(names.get(name)) is nn.Linear for name in linears)
        and isinstance(names.get("mlp.act_fn"), _SILU)
        and all(
            hasattr(names.get(n), "variance_epsilon") for n in ("input_layernorm", "post_attention_layernorm")
        )
        and hasattr(names["self_attn"], "scaling")
        and layout.head_dim % 2 == 0
        and layout.head_dim <= kernels.max_head_dim
    )


@torch.inference_mode()
def fuse_layers(layers: nn.ModuleList, rotary: nn.Module, layout: KVLayout, kernels: Kernels) -> bool:
    """Replace the decoder layers of a loaded partition in place, where that gives the same, sooner.

    One layer is tried in both forms before any is replaced, so no more than one is in memory twice.

    Returns:
        Whether they were replaced.
    """
    if not all(_fits(layer, layout, kernels) for layer in layers):
        return False
    fused = FusedLayer(layers[0], 0, kernels)
    width: int = fused.qkv.in_features  # type: ignore[assignment]
    facts = (width, fused.heads, fused.kv_heads, fused.head_dim, fused.down.in_features, layout.dtype)
    if not TRIALS.pays("fused", *facts, trial=lambda: _is_better(layers[0], rotary, layout, kernels)):
        return False
    replace_layers(layers, kernels)
    return True


def replace_layers(layers: nn.ModuleList, kernels: Kernels) -> None:
    """Replace the decoder layers in place; for those that are known to give the same, sooner."""
    for index, layer in enumerate(layers):
        layers[index] = FusedLayer(layer, index, kernels)


def _is_better(plain: nn.Module, rotary: nn.Module, layout: KVLayout, kernels: Kernels) -> bool:
    """Whether the fused form of this layer gives the same, sooner; both as they will be, packed."""
    width: int = plain.get_submodule("self_attn.q_proj").in_features  # type: ignore[assignment]
    fused = FusedLayer(plain, 0, kernels)
    pack_linears(fused)
    plain = copy.deepcopy(plain)
    pack_linears(plain)
    single = KVLayout(1, layout.kv_heads, layout.head_dim, layout.dtype, layout.device)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(rows, width, generator=generator).to(layout.dtype) for rows in (_PROMPT, 1)]
    outputs, last = [], []
    for layer in (plain, fused):
        pool = KVPool(single.token_bytes * 64, single)
        kv = pool.reserve(_PROMPT + 1)
        found = []
        for hidden, position in zip(inputs, (0, _PROMPT), strict=True):
            segments = [Segment(0, len(hidden), position, kv)]
            batch = Ragged(segments, True, layout.device, kernels)
            found.append(_run(layer, hidden, rotary, batch))
        outputs.append(torch.cat(found))
        last.append(batch)
    tolerance = 1e-4 if layout.dtype == torch.float32 else 3e-2
    if not torch.allclose(outputs[0], outputs[1], rtol=tolerance, atol=tolerance):
        log.warning("fused layers give other results on this machine: not used")
        return False
    # In turns: a machine that others use changes its speed meanwhile.
    tries = [
        [_seconds(layer, inputs[1], rotary, batch) for layer, batch in zip((plain, fused), last, strict=True)]
        for _ in range(_TRIES)
    ]
    times = [min(each) for each in zip(*tries, strict=True)]
    log.info("a fused layer takes %.2f of the plain one's time", times[1] / times[0])
    return _pays(*times)


def _pays(plain_s: float, fused_s: float) -> bool:
    return fused_s < plain_s


def _run(layer: nn.Module, hidden: torch.Tensor, rotary: nn.Module, batch: Ragged) -> torch.Tensor:
    """One layer of either form on its own, `[rows, width]` to `[rows, width]`."""
    cos, sin = rotary(hidden[None], batch.positions[None])
    if isinstance(layer, FusedLayer):
        hidden = hidden.clone()
        return hidden + layer(hidden, None, (cos[0], sin[0]), batch)
    with running(batch):
        out = layer(hidden[None], position_embeddings=(cos, sin), position_ids=batch.positions[None])
    return (out[0] if isinstance(out, tuple) else out).reshape(hidden.shape)


def _seconds(layer: nn.Module, hidden: torch.Tensor, rotary: nn.Module, batch: Ragged) -> float:
    started = time.perf_counter()
    _run(layer, hidden, rotary, batch)
    return time.perf_counter() - started
