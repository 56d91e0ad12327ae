"""A loaded partition and what it computes: hidden states, logits, pooled embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import CheckpointError, InvalidArgument

from .attention import NAME, running
from .fused import FAMILIES, FusedLayer, fuse_layers
from .kernels import Kernels, load_kernels
from .kv import KVLayout, SessionKV
from .packed import pack_linears
from .pooling import Pooling, read_pooling
from .ragged import Ragged, Segment
from .skeleton import Skeleton, build, read_config
from .weights import Locate, load_weights

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}


@dataclass(slots=True)
class Batch:
    """Rows that go through a partition together.

    Attributes:
        segments: whose rows they are, in order and without gaps.
        token_ids: `[tokens]` int64, on the first partition.
        hidden: `[tokens, hidden]`, on the others.
        token_types: `[tokens]` int64, for encoders that have them.
    """

    segments: list[Segment]
    token_ids: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    token_types: torch.Tensor | None = None


class PartitionModel:
    """Layers `first` to `end` of a model, on one device, in one dtype. Not thread-safe: one compute thread."""

    def __init__(
        self,
        skeleton: Skeleton,
        *,
        first: int,
        end: int,
        layers: int,
        dtype: torch.dtype,
        device: torch.device,
        weight_bytes: int,
        pooling: Pooling | None,
        ragged: bool,
        packed: int,
        kernels: Kernels | None,
    ) -> None:
        self._skeleton = skeleton
        self.first_layer = first
        self.end_layer = end
        self.is_first = first == 0
        self.is_last = end == layers
        self.dtype = dtype
        self.device = device
        self.weight_bytes = weight_bytes
        self.ragged = ragged
        # Linear layers whose weights are packed.
        self.packed = packed
        layers_here = skeleton.base.get_submodule(skeleton.plan.layers)
        # Whether decoder layers were replaced by fused ones.
        self.fused = isinstance(layers_here[0], FusedLayer)  # type: ignore[index]
        self._kernels = kernels
        self._pooling = pooling
        config = skeleton.model.config
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.type_vocab_size: int = getattr(config, "type_vocab_size", 1)
        self.kv_layout = kv_layout(config, end - first, dtype, device)

    @property
    def causal(self) -> bool:
        """Whether a position sees only those before it."""
        return self._skeleton.task == "generate"

    @property
    def layers(self) -> int:
        """How many layers this partition has."""
        return self.end_layer - self.first_layer

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states `[tokens, hidden]` after this partition's layers (and the final norm on the last)."""
        if self.ragged:
            ragged = Ragged(batch.segments, self.causal, self.device, self._kernels)
            if self.fused:
                hidden = self._forward_fused(batch, ragged)
            else:
                with running(ragged):
                    hidden = self._call(batch, slice(None), ragged.positions, None)
            ragged.done(batch.segments)
            return hidden
        out = [self._forward_alone(batch, segment) for segment in batch.segments]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _forward_fused(self, batch: Batch, ragged: Ragged) -> torch.Tensor:
        """The same as the model library's own forward, layer by fused layer."""
        base = self._skeleton.base
        hidden = base.embed_tokens(_given(batch.token_ids)) if self.is_first else _given(batch.hidden).clone()
        cos, sin = base.rotary_emb(hidden[None], ragged.positions[None])
        delta: torch.Tensor | None = None
        for layer in base.layers:
            delta = layer(hidden, delta, (cos[0], sin[0]), ragged)
        if self.is_last and self._kernels is not None:
            return self._kernels.add_rms_norm(hidden, delta, base.norm.weight, base.norm.variance_epsilon)
        return hidden.add_(delta)

    def _forward_alone(self, batch: Batch, segment: Segment) -> torch.Tensor:
        """One session with transformers' own cache: slower, for architectures the ragged path does not fit."""
        positions = torch.arange(segment.position, segment.position + segment.rows, device=self.device)
        cache = None
        if segment.kv is not None:
            cache = _own_cache(segment.kv, self._skeleton)
            segment.kv.length = segment.position + segment.rows
        return self._call(batch, slice(segment.start, segment.start + segment.rows), positions, cache)

    def _call(self, batch: Batch, rows: slice, positions: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        inputs: dict[str, object] = {"position_ids": positions[None], "use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache
        if self.is_first:
            inputs["input_ids"] = _given(batch.token_ids)[rows][None]
            if batch.token_types is not None:
                inputs["token_type_ids"] = batch.token_types[rows][None]
        else:
            inputs["inputs_embeds"] = _given(batch.hidden)[rows][None]
        if not self.causal:
            inputs.pop("use_cache")
            return self._call_encoder(inputs)
        hidden: torch.Tensor = self._skeleton.base(**inputs).last_hidden_state
        return hidden[0]

    def _call_encoder(self, inputs: dict[str, object]) -> torch.Tensor:
        """Embeddings when first, then the layers: encoders' own forward embeds whatever it is given."""
        base = self._skeleton.base
        positions = inputs.pop("position_ids")
        if self.is_first:
            hidden = base.get_submodule(self._skeleton.plan.before[0])(**inputs, position_ids=positions)
        else:
            hidden = inputs["inputs_embeds"]
        for layer in base.get_submodule(self._skeleton.plan.layers):
            hidden = layer(hidden, None)
        return hidden[0]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[rows, hidden]` after the final norm -> float32 `[rows, vocab]`; on the last partition of a causal LM."""
        head = self._skeleton.head
        if head is None:
            raise ValueError("this partition has no head")
        return head(hidden).float()

    @torch.inference_mode()
    def output(self, name: str, hidden: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """A stateless output of the last partition, float32.

        Args:
            name: "logits" `[tokens, vocab]`, "last_hidden_state" `[tokens, hidden]`, or "sentence_embedding"
                `[samples, hidden]`.
            hidden: `[tokens, hidden]` of all samples, concatenated.
            lengths: rows of each sample.

        Raises:
            InvalidArgument: the model has no such output.
        """
        if name == "last_hidden_state":
            return hidden.float()
        if name == "logits" and self._skeleton.head is not None:
            return self.logits(hidden)
        if name == "sentence_embedding" and self._pooling is not None:
            return self._pooling(hidden.float(), lengths)
        raise InvalidArgument(f"outputs: the model has no output {name[:40]!r}", field="outputs")


def _given(rows: torch.Tensor | None) -> torch.Tensor:
    """Token ids on the first partition, hidden states on the others."""
    if rows is None:
        raise ValueError("the batch has not what this partition begins with")
    return rows


def kv_layout(config: PreTrainedConfig, layers: int, dtype: torch.dtype, device: torch.device) -> KVLayout:
    """What `layers` layers of a model keep of each position."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVLayout(layers, heads, head_dim, dtype, device)


def _own_cache(kv: SessionKV, skeleton: Skeleton) -> Cache:
    if kv.own is None:
        kv.own = DynamicCache(config=skeleton.model.config)
    return kv.own


def load_partition(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    task: str,
    first: int,
    end: int,
    dtype: str = "",
    device: str = "cpu",
    locate: Locate | None = None,
    fast: bool = True,
) -> PartitionModel:
    """Build and load one partition of the checkpoint in `folder`. Blocking: seconds for a large one.

    Args:
        folder: configuration of the whole model.
        checkpoint: what `inspect` found there.
        task: "generate" or "embed".
        first: first layer.
        end: one past the last layer.
        dtype: safetensors' name to compute in; empty is the checkpoint's own on an accelerator, F32 on a CPU.
        device: a torch device.
        locate: finds the checkpoint's weight files; by default they lie in `folder`.
        fast: use what is faster on this device by measurement (packed weights); off is torch as it is.

    Raises:
        CheckpointError: see `build` and `load_weights`.
    """
    name = dtype or ("F32" if device == "cpu" else checkpoint.dtype)
    if name not in TORCH_DTYPES:
        raise CheckpointError(f"dtype {name!r} cannot be computed in; use one of {', '.join(TORCH_DTYPES)}")
    config = read_config(folder)
    ragged = task != "generate" or _full_attention(config)
    skeleton = build(config, task, first, end, attention=NAME if ragged else "sdpa")
    place = torch.device(device)
    weight_bytes = load_weights(skeleton, checkpoint, locate or folder.joinpath, TORCH_DTYPES[name], place)
    packed, kernels = 0, None
    if fast and place.type == "cpu":
        kernels = load_kernels(TORCH_DTYPES[name]) if ragged else None
        if kernels is not None and config.model_type in FAMILIES:
            layout = kv_layout(config, end - first, TORCH_DTYPES[name], place)
            fuse_layers(skeleton.base.layers, skeleton.base.rotary_emb, layout, kernels)
        packed = pack_linears(skeleton.model)
        if skeleton.head is not None:
            skeleton.head = skeleton.model.get_output_embeddings()
    pooling = read_pooling(folder) if task == "embed" and end == checkpoint.layers else None
    return PartitionModel(
        skeleton,
        first=first,
        end=end,
        layers=checkpoint.layers,
        dtype=TORCH_DTYPES[name],
        device=place,
        weight_bytes=weight_bytes,
        pooling=pooling,
        ragged=ragged,
        packed=packed,
        kernels=kernels,
    )


# Causal families whose attention goes through transformers' interface with plain keys and values.
_RAGGED = FAMILIES


def _full_attention(config: object) -> bool:
    """Whether every layer attends to everything before it, in a family known to fit the ragged path."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return getattr(config, "model_type", "") in _RAGGED and kinds == {"full_attention"} and not window
