"""A partition of a model without sessions: encoders of text, images and audio, and embedding models of any kind."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import InternalError, InvalidArgument
from stagemesh.tensor import TensorView

from .encoder_attention import Samples, running
from .encoder_build import Cut, build_encoder
from .encoder_inputs import InputRules
from .encoder_parts import Reached
from .interface import Activations, Batch
from .kv import KVLayout
from .packed import pack_linears
from .pooling import Pooling, read_pooling
from .ragged import Segment
from .skeleton import read_config
from .weights import Locate, load_weights

IDS = "input_ids"
_POOLED = "sentence_embedding"
_STATES = "last_hidden_state"


class EncoderPartition:
    """Layers `first` to `end` of a model that keeps nothing between passes. See `interface.Partition`.

    Of text a row is a token and hidden states are `[tokens, hidden]`; otherwise a row is a sample and they are
    `[samples, positions, hidden]`.
    """

    generates = False

    def __init__(
        self,
        cut: Cut,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        weight_bytes: int,
        packed: int,
        pooling: Pooling | None,
    ) -> None:
        self._cut = cut
        self._plan = cut.plan
        skeleton = cut.skeleton
        self.first_layer = skeleton.first
        self.end_layer = skeleton.end
        self.is_first = skeleton.first == 0
        self.is_last = skeleton.end == skeleton.total
        self.dtype = dtype
        self.device = device
        self.weight_bytes = weight_bytes
        self.ragged = True
        # Linear layers whose weights are packed.
        self.packed = packed
        self.kv_layout = KVLayout(0, 1, 1, dtype, device)
        self.hidden_size = checkpoint.hidden_size
        self.vocab_size = checkpoint.vocab_size
        self.default_outputs = tuple(output.name for output in checkpoint.outputs[:1])
        self._outputs = {output.name: output for output in checkpoint.outputs}
        self._text = checkpoint.rows == "token"
        types = int(getattr(cut.holder.config, "type_vocab_size", 0) or 0)
        self._rules = InputRules(checkpoint, dtype, device, types)
        self._pooling = pooling
        self._accepts = frozenset(inspect.signature(cut.holder.forward).parameters)

    def __repr__(self) -> str:
        return f"<EncoderPartition {self.first_layer}..{self.end_layer} of {self._cut.skeleton.total}>"

    # ---- what comes in ----

    def inputs_of(self, tensors: Mapping[str, TensorView], lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        """Token ids `[tokens]`, or images and audio `[samples, ...]`, as the model's signature has them."""
        return self._rules.check(tensors, lengths)

    def check(self, rows: int, given: Activations) -> Activations:
        """Hidden states in this partition's dtype, with the token ids beside them where they are needed."""
        shape, wanted = given.hidden.shape, (2 if self._text else 3)
        if len(shape) != wanted or shape[0] != rows or shape[-1] != self.hidden_size:
            raise InternalError("a frame's tensor does not fit its steps")
        needed = {IDS} if self._plan.ids_at_end else set()
        if set(given.sides) != needed or any(
            side.shape != (rows,) or side.dtype != torch.int64 for side in given.sides.values()
        ):
            raise InternalError("a frame's side tensors are not those of the partition before")
        if given.hidden.dtype != self.dtype:
            given.hidden = given.hidden.to(self.dtype)
        return given

    def probe(self, segments: list[Segment]) -> Batch:
        """Ones, or values drawn from a fixed seed."""
        rows = sum(segment.rows for segment in segments)
        if self.is_first:
            return Batch(segments, inputs=self._rules.probe(rows))
        generator = torch.Generator().manual_seed(0)
        positions = () if self._text else (self._rules.positions(self._cut.holder.config),)
        hidden = torch.randn(rows, *positions, self.hidden_size, generator=generator)
        sides = (
            {IDS: torch.ones(rows, dtype=torch.int64, device=self.device)} if self._plan.ids_at_end else {}
        )
        return Batch(segments, given=Activations(hidden.to(self.device, self.dtype), sides))

    # ---- what is computed ----

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Activations:
        """Hidden states after this partition's layers, before what the model does after its last one."""
        inputs = batch.inputs or {}
        given = batch.given
        sides = {} if given is None else given.sides
        if self._plan.ids_at_end and given is None:
            sides = {IDS: inputs[IDS]}
        hidden = None if given is None else given.hidden
        lengths = [segment.rows for segment in batch.segments]
        if not self._text:
            return Activations(self._layers(inputs, hidden), sides)
        if self._plan.ragged:
            flat = {name: tensor[None] for name, tensor in inputs.items()}
            with running(Samples(lengths)):
                done = self._layers(flat, None if hidden is None else hidden[None], lengths)
            return Activations(done[0], sides)
        out: torch.Tensor | None = None
        for rows, shape in _by_length(lengths, self.device):
            some = {name: tensor[rows].view(shape) for name, tensor in inputs.items()}
            done = self._layers(some, None if hidden is None else hidden[rows].view(*shape, -1)).flatten(0, 1)
            if out is None:
                out = done.new_empty((sum(lengths), done.shape[1]))
            out[rows] = done
        assert out is not None
        return Activations(out, sides)

    def _layers(
        self, inputs: dict[str, torch.Tensor], hidden: torch.Tensor | None, lengths: Sequence[int] = ()
    ) -> torch.Tensor:
        """`[samples, rows, hidden]` of samples of one length, or `[1, rows, hidden]` of all when `lengths` are given."""
        cut = self._cut
        cut.given.hidden = hidden
        arguments = self._arguments(inputs, hidden, lengths)
        try:
            cut.holder(**arguments)
        except Reached as reached:
            return reached.hidden
        except ValueError as error:  # of the model: a sample too short for its convolutions, for example
            raise InvalidArgument(f"inputs: {str(error).splitlines()[0][:200]}", field="inputs") from error
        except RuntimeError as error:
            if self.is_first and "size" in str(error) and not self._text:
                message = "inputs: the model cannot compute with tensors of this size"
                raise InvalidArgument(message, field="inputs") from error
            raise
        finally:
            cut.given.hidden = None
        raise InternalError("the model ended before this partition's last layer")

    def _arguments(
        self, inputs: dict[str, torch.Tensor], hidden: torch.Tensor | None, lengths: Sequence[int]
    ) -> dict[str, Any]:
        """What the model is called with; where hidden states are given nobody looks at the inputs' values."""
        arguments: dict[str, Any] = dict(inputs)
        if not self._text:
            if hidden is not None:
                arguments = self._rules.stand_in(hidden.shape[0])
            return arguments
        if IDS not in arguments:
            assert hidden is not None
            arguments[IDS] = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=self.device)
        ids = arguments[IDS]
        if "token_type_ids" in self._accepts and "token_type_ids" not in arguments:
            arguments["token_type_ids"] = torch.zeros_like(ids)
        if "use_cache" in self._accepts:
            arguments["use_cache"] = False
        if lengths and "position_ids" in self._accepts:
            arguments["position_ids"] = self._positions(ids, lengths, hidden is None)
        return arguments

    def _positions(self, ids: torch.Tensor, lengths: Sequence[int], embeds: bool) -> torch.Tensor:
        """`[1, tokens]`, each sample's own; where they depend on padding ids as the model counts them."""
        embeddings: Any = getattr(self._cut.holder, "embeddings", None)
        count = getattr(embeddings, "create_position_ids_from_input_ids", None)
        if embeds and count is not None:
            padding = embeddings.padding_idx
            return torch.cat([count(sample, padding) for sample in ids.split(list(lengths), dim=1)], dim=1)
        return torch.cat([torch.arange(length, device=self.device) for length in lengths])[None]

    # ---- what comes out ----

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raises `ValueError`: nothing is sampled from these models."""
        raise ValueError("this model does not generate")

    @torch.inference_mode()
    def output(self, name: str, done: Activations, lengths: Sequence[int]) -> torch.Tensor:
        """One of the checkpoint's outputs, float32: `[rows, ...]` per token, else `[samples, ...]`."""
        if name not in self._outputs or not self.is_last:
            raise InvalidArgument(f"outputs: the model has no output {name[:40]!r}", field="outputs")
        if name == _POOLED and self._pooling is not None:
            return self._pooling(self.output(_STATES, done, lengths), lengths)
        if name == _STATES and self._plan.final:
            return done.hidden.float()
        if not self._text:
            return self._rest(name, done.hidden, None).float()
        ids = done.sides.get(IDS)
        per_token = self._outputs[name].per_token
        if per_token and self._plan.ragged:  # what comes after the layers looks at each token alone
            return self._rest(name, done.hidden[None], None if ids is None else ids[None])[0].float()
        out: torch.Tensor | None = None
        for rows, shape, samples in _with_samples(lengths, self.device):
            hidden = done.hidden[rows].view(*shape, -1)
            some = self._rest(name, hidden, None if ids is None else ids[rows].view(shape)).float()
            if per_token:
                some, samples = some.flatten(0, 1), rows
            if out is None:
                out = some.new_empty((len(done.hidden) if per_token else len(lengths), *some.shape[1:]))
            out[samples] = some
        assert out is not None
        return out

    def _rest(self, name: str, hidden: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """What the model makes of hidden states `[samples, rows, hidden]` after its layers."""
        cut = self._cut
        whole = cut.holder if name in (_STATES, "pooler_output") else cut.model
        arguments = self._arguments({} if ids is None else {IDS: ids}, hidden, ())
        if whole is not cut.holder and "token_type_ids" in arguments:
            del arguments["token_type_ids"]
        with cut.no_layers(hidden):
            answer = whole(**arguments)
        found: torch.Tensor | None = answer.get(name)
        if found is None:
            raise InvalidArgument(f"outputs: the model gives no {name[:40]!r}", field="outputs")
        return found


def _by_length(lengths: Sequence[int], device: torch.device) -> list[tuple[torch.Tensor, tuple[int, int]]]:
    """For each length: the rows of all samples that have it, and their shape `(samples, length)`."""
    return [(rows, shape) for rows, shape, _ in _with_samples(lengths, device)]


def _with_samples(
    lengths: Sequence[int], device: torch.device
) -> list[tuple[torch.Tensor, tuple[int, int], torch.Tensor]]:
    groups: dict[int, tuple[list[int], list[int]]] = {}
    start = 0
    for index, length in enumerate(lengths):
        rows, samples = groups.setdefault(length, ([], []))
        rows.extend(range(start, start + length))
        samples.append(index)
        start += length
    return [
        (torch.tensor(rows, device=device), (len(samples), length), torch.tensor(samples, device=device))
        for length, (rows, samples) in groups.items()
    ]


def load_encoder(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    task: str,
    first: int,
    end: int,
    dtype: torch.dtype,
    device: torch.device,
    locate: Locate,
    fast: bool,
) -> EncoderPartition:
    """Build and load one partition of a model without sessions. See `load.load_partition`."""
    config = read_config(folder)
    cut = build_encoder(config, checkpoint, first, end, dtype)
    weight_bytes = load_weights(cut.skeleton, checkpoint, locate, device)
    cut.install()
    packed = pack_linears(cut.model) if fast and device.type == "cpu" else 0
    pooled = task == "embed" and end == checkpoint.layers
    return EncoderPartition(
        cut,
        checkpoint,
        dtype=dtype,
        device=device,
        weight_bytes=weight_bytes,
        packed=packed,
        pooling=read_pooling(folder, locate) if pooled else None,
    )
