"""A partition of a causal language model: hidden states, keys and values, logits."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import CheckpointError, InternalError, InvalidArgument
from stagemesh.tensor import TensorView

from ..tensors import from_view
from .attention import NAME, running
from .boundary import Boundary
from .cache import PartCache, own_layout
from .families import Family, family_of
from .from_packed import contents, fill, is_fused, named, place
from .fused import FAMILIES, FusedLayer, fuse_layers, replace_layers
from .interface import Activations, Batch
from .kernels import Kernels, load_kernels
from .kv import KVLayout
from .logits import head_of
from .packed import pack_linears
from .packed_file import Packed
from .plans import plan_of
from .ragged import Ragged, Segment
from .skeleton import Skeleton, compact, prune, read_config
from .weights import Locate, load_weights, own_memory


class CausalPartition:
    """Layers `first` to `end` of a causal language model. See `interface.Partition`."""

    generates = True
    default_outputs: tuple[str, ...] = ("logits",)

    def __init__(
        self,
        skeleton: Skeleton,
        family: Family,
        *,
        dtype: torch.dtype,
        device: torch.device,
        weight_bytes: int,
        ragged: bool,
        packed: int,
        kernels: Kernels | None,
        made: Packed | None = None,
    ) -> None:
        self._skeleton = skeleton
        self._base = skeleton.base
        self._family = family
        self.first_layer = skeleton.first
        self.end_layer = skeleton.end
        self.is_first = skeleton.first == 0
        self.is_last = skeleton.end == skeleton.total
        self.dtype = dtype
        self.device = device
        self.weight_bytes = weight_bytes
        self.ragged = ragged
        # Linear layers whose weights are packed.
        self.packed = packed
        # What a packed file of it has; None where it came from one, or cannot.
        self.made = made
        # Whether decoder layers were replaced by fused ones.
        self.fused = isinstance(skeleton.layers[0], FusedLayer)
        self._kernels = kernels
        text = family.text
        self.hidden_size: int = text.hidden_size
        self.vocab_size: int = text.vocab_size
        layers = skeleton.end - skeleton.first
        self.kv_layout = (
            _arenas(text, layers, dtype, device) if ragged else KVLayout(layers, 0, 0, dtype, device)
        )
        self._accepts = frozenset(inspect.signature(self._base.forward).parameters)
        # Fused layers are not run by the model's own forward.
        run = None if self.fused else skeleton.layers
        self._boundary = Boundary(self._base, run, family, self.is_first, self.is_last)
        family.attach(self._base, self.first_layer, self.end_layer)
        self._row_shape = family.row_shape()  # looked up in the config each time
        # What comes beside hidden states: name -> shape of a row and dtype.
        self._sides = {name: (shape, dtype) for name, shape in family.sides(self.first_layer).items()}
        if self._boundary.looks_at_ids and not self.is_first:
            self._sides["input_ids"] = ((), torch.int64)
        self._head = head_of(skeleton, plain=text.model_type in FAMILIES) if self.is_last else None
        if not ragged:
            self.kv_layout = own_layout(self._try, self.kv_layout)

    def __repr__(self) -> str:
        return f"<CausalPartition {self.first_layer}..{self.end_layer} of {self._skeleton.total}>"

    @property
    def layers(self) -> int:
        """How many layers this partition has."""
        return self.end_layer - self.first_layer

    # ---- what comes in ----

    def inputs_of(self, tensors: Mapping[str, TensorView], lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        """Token ids `[sum(lengths)]`."""
        total = sum(lengths)
        for name in tensors:
            if name != "input_ids":
                raise InvalidArgument(f"inputs: unknown tensor {name[:40]!r}", field="inputs")
        if "input_ids" not in tensors:
            raise InvalidArgument("inputs: input_ids is missing", field="input_ids")
        view = tensors["input_ids"]
        if view.dtype != "I64" or view.shape != (total,):
            raise InvalidArgument(
                f"input_ids: needs I64 [{total}], got {view.dtype} {list(view.shape)}", field="input_ids"
            )
        ids = from_view(view, self.device, "input_ids")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            raise InvalidArgument("input_ids: an id is outside the vocabulary", field="input_ids")
        return {"input_ids": ids}

    def check(self, rows: int, given: Activations) -> Activations:
        """Hidden states `[rows, ...]` and the family's sides, in the dtypes they are computed in."""
        if not self._sides and not given.sides and given.hidden.shape == (rows, *self._row_shape):
            if given.hidden.dtype != self.dtype:
                given.hidden = given.hidden.to(self.dtype)
            return given
        shapes = {name: (rows, *shape) for name, (shape, _) in self._sides.items()}
        found = {name: tuple(side.shape) for name, side in given.sides.items()}
        if given.hidden.shape != (rows, *self._row_shape) or shapes != found:
            raise InternalError("a frame's tensor does not fit its steps")
        for name, (_, dtype) in self._sides.items():
            side = given.sides[name]
            if side.dtype != dtype and not (dtype.is_floating_point and side.is_floating_point()):
                raise InternalError("a frame's tensor does not fit its steps")
            given.sides[name] = side.to(dtype)
        ids = given.sides.get("input_ids")
        if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise InternalError("a frame's token id is outside the vocabulary")
        if given.hidden.dtype != self.dtype:
            given.hidden = given.hidden.to(self.dtype)
        return given

    def probe(self, segments: list[Segment]) -> Batch:
        """Ones, or hidden states drawn from a fixed seed."""
        rows = sum(segment.rows for segment in segments)
        if self.is_first:
            ids = torch.ones(rows, dtype=torch.int64, device=self.device)
            return Batch(segments, inputs={"input_ids": ids})
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, *self._family.row_shape(), generator=generator)
        sides = {
            name: torch.ones(rows, *shape, dtype=dtype, device=self.device)
            for name, (shape, dtype) in self._sides.items()
        }
        return Batch(segments, given=Activations(hidden.to(self.device, self.dtype), sides))

    # ---- what is computed ----

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Activations:
        """Hidden states `[tokens, ...]` after this partition's layers (`[tokens, hidden]` after the final norm)."""
        if self.ragged:
            ragged = Ragged(batch.segments, True, self.device, self._kernels)
            if self.fused:
                hidden = self._forward_fused(batch, ragged)
            else:
                with running(ragged):
                    hidden = self._call(batch, slice(None), ragged.positions, None).hidden
            ragged.done(batch.segments)
            return Activations(hidden)
        out = [self._forward_alone(batch, segment) for segment in batch.segments]
        return _joined(out)

    def _forward_fused(self, batch: Batch, ragged: Ragged) -> torch.Tensor:
        """The same as the model library's own forward, layer by fused layer."""
        base: Any = self._base
        hidden = base.embed_tokens(_ids(batch)) if self.is_first else _given(batch).hidden.clone()
        cos, sin = base.rotary_emb(hidden[None], ragged.positions[None])
        delta: torch.Tensor | None = None
        for layer in base.layers:
            delta = layer(hidden, delta, (cos[0], sin[0]), ragged)
        if self.is_last and self._kernels is not None:
            return self._kernels.add_rms_norm(hidden, delta, base.norm.weight, base.norm.variance_epsilon)
        return hidden.add_(delta)

    def _forward_alone(self, batch: Batch, segment: Segment) -> Activations:
        """One session with transformers' own cache: slower, for architectures the ragged path does not fit."""
        positions = torch.arange(segment.position, segment.end, device=self.device)
        rows = slice(segment.start, segment.start + segment.rows)
        if segment.kv is None:
            return self._call(batch, rows, positions, None)
        if segment.kv.own is None:
            segment.kv.own = self._family.cache(self.first_layer, self.end_layer)
        cache = segment.kv.own
        assert isinstance(cache, PartCache)
        if self._family.one_by_one and segment.position and segment.rows > 1:
            done = self._one_by_one(batch, segment, cache)
        else:
            done = self._call(batch, rows, positions, cache)
        segment.kv.length = cache.seen = segment.end
        return done

    @torch.inference_mode()
    def _try(self, rows: int) -> PartCache:
        """A session's cache after so many rows."""
        cache = self._family.cache(self.first_layer, self.end_layer)
        batch = self.probe([Segment(0, rows, 0)])
        self._call(batch, slice(None), torch.arange(rows, device=self.device), cache)
        return cache

    def _one_by_one(self, batch: Batch, segment: Segment, cache: PartCache) -> Activations:
        """Rows of a session in passes of their own."""
        done = []
        for row in range(segment.rows):
            cache.seen = segment.position + row
            start = segment.start + row
            position = torch.tensor([cache.seen], device=self.device)
            done.append(self._call(batch, slice(start, start + 1), position, cache))
        return _joined(done)

    def _call(
        self, batch: Batch, rows: slice, positions: torch.Tensor, cache: PartCache | None
    ) -> Activations:
        inputs: dict[str, object] = {
            "position_ids": positions[None],
            "use_cache": cache is not None,
            "past_key_values": cache,
            # What state-space models call it.
            "cache_params": cache,
        }
        inputs = {name: value for name, value in inputs.items() if name in self._accepts}
        if self.is_first:
            ids: torch.Tensor | None = _ids(batch)[rows]
            hidden = self._boundary.run(ids, None, inputs)
        else:
            given = _given(batch)
            sides = {name: side[rows] for name, side in given.sides.items()}
            ids = sides.get("input_ids")
            self._family.take(sides)
            hidden = self._boundary.run(ids, given.hidden[rows], inputs)
        sides = {} if self.is_last else self._family.give()
        if self._boundary.looks_at_ids and not self.is_last and ids is not None:
            sides["input_ids"] = ids
        return Activations(hidden, sides)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[rows, hidden]` after the final norm -> float32 `[rows, vocab]`; on the last partition."""
        if self._head is None:
            raise ValueError("this partition has no head")
        out: torch.Tensor = self._head(hidden)
        return out.float()

    def output(self, name: str, done: Activations, lengths: Sequence[int]) -> torch.Tensor:
        """`logits` `[tokens, vocab]` or `last_hidden_state` `[tokens, hidden]`, float32."""
        if name == "last_hidden_state":
            return done.hidden.float()
        if name == "logits":
            return self.logits(done.hidden)
        raise InvalidArgument(f"outputs: the model has no output {name[:40]!r}", field="outputs")


def _joined(parts: list[Activations]) -> Activations:
    """Rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0].sides
    return Activations(
        torch.cat([part.hidden for part in parts]),
        {name: torch.cat([part.sides[name] for part in parts]) for name in names},
    )


def _ids(batch: Batch) -> torch.Tensor:
    if batch.inputs is None:
        raise ValueError("the batch has no token ids")
    return batch.inputs["input_ids"]


def _given(batch: Batch) -> Activations:
    if batch.given is None:
        raise ValueError("the batch has no hidden states")
    return batch.given


def _arenas(config: PreTrainedConfig, layers: int, dtype: torch.dtype, device: torch.device) -> KVLayout:
    """Keys and values of `layers` layers of a family on the ragged path."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVLayout(layers, heads, head_dim, dtype, device)


def load_causal(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    first: int,
    end: int,
    dtype: torch.dtype,
    device: torch.device,
    locate: Locate,
    fast: bool,
    before: Packed | None = None,
) -> CausalPartition:
    """Build and load one partition of a causal language model. See `load.load_partition`."""
    config = read_config(folder)
    for cut in {first, end} & set(range(1, checkpoint.layers)):
        if cut not in checkpoint.cuts:
            raise CheckpointError(
                f"the model may not be cut after {cut} layers: the layers that follow share states"
            )
    family = family_of(read_config(folder))
    ragged = _full_attention(config)
    skeleton = build_causal(config, first, end, dtype, ragged)
    packs = fast and device.type == "cpu"
    kernels = load_kernels(dtype) if packs and ragged else None
    if before is not None and kernels is not None and config.model_type in FAMILIES:
        weight_bytes = fill(skeleton, before, device)
    else:
        before = None
        weight_bytes = load_weights(skeleton, checkpoint, locate, device, mapped=packs)
    names = named(skeleton)
    compact(skeleton, family.caches)
    packed, fused, made, base = 0, False, None, skeleton.base
    if before is not None and kernels is not None:
        if is_fused(before):
            replace_layers(skeleton.layers, kernels)
        packed = place(skeleton, before, kernels)
    elif packs:
        if kernels is not None and config.model_type in FAMILIES:
            layout = _arenas(config, end - first, dtype, device)
            fused = fuse_layers(skeleton.layers, base.get_submodule("rotary_emb"), layout, kernels)
        packed = pack_linears(skeleton.model)
        own_memory(skeleton)
        if kernels is not None and config.model_type in FAMILIES:
            made = contents(skeleton, names, weight_bytes=weight_bytes, fused=fused)
    return CausalPartition(
        skeleton,
        family,
        dtype=dtype,
        device=device,
        weight_bytes=weight_bytes,
        ragged=ragged,
        packed=packed,
        kernels=kernels,
        made=made,
    )


def build_causal(
    config: PreTrainedConfig, first: int, end: int, dtype: torch.dtype, ragged: bool
) -> Skeleton:
    """The skeleton of layers `first` to `end`; `config` becomes that of the partition when it is compacted.

    Raises:
        CheckpointError: the architecture has no plan, or the layer range is outside the model.
    """
    with torch.device("meta"):
        model = _from_config(config, dtype, NAME if ragged else "sdpa")
    model.eval()
    # Of models whose name is that of a part of a larger one it is the model itself.
    base = model.base_model if model.base_model is not model else model.model
    plan, family = plan_of(config, base), family_of(config)
    before, after = (_present(base, names) for names in (family.before, family.after))
    return prune(
        model, base, replace(plan, before=plan.before + before, after=plan.after + after), first, end
    )


def _present(base: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if hasattr(base, name))


def _from_config(config: PreTrainedConfig, dtype: torch.dtype, attention: str) -> Any:
    """The whole model; attention is the model's own where it does not take the one asked for."""
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    except ValueError:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")


# Causal families whose attention goes through transformers' interface with plain keys and values.
_RAGGED = FAMILIES


def _full_attention(config: PreTrainedConfig) -> bool:
    """Whether every layer attends to everything before it, in a family known to fit the ragged path."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return config.model_type in _RAGGED and kinds == {"full_attention"} and not window
