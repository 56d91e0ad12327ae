"""What a model takes and gives in a stateless inference: its spec's lists, or what its task has always meant. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stagemesh.errors import FailedPrecondition
from stagemesh.v1.registry_pb2 import ModelSpec, RowKind, TensorSpec

from .forms import Forms

IDS = "input_ids"
MASK = "attention_mask"
# Whatever the model itself makes of a mask: here it says where the padding is.
MASK_RULE = TensorSpec(name=MASK, dtypes=["I64", "I32", "BOOL", "U8", "I8"], shape=[-1, -1], optional=True)
_IDS_RULE = TensorSpec(name=IDS, dtypes=["I64", "I32"], shape=[-1, -1])
KEPT = 256
"""Models whose signatures are kept ready."""
_TYPES = TensorSpec(name="token_type_ids", dtypes=["I64", "I32"], shape=[-1, -1], optional=True)


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs in the spec's order.

    `by_token`: a row is a token, inputs are [B, T, ...] and right-padded, and `MASK` is among them; else a row is a
    sample and every tensor is [B, ...]. `fixed_batch` is the only B there is, or 0 where any will do. `takes` are the
    inputs by name, in their order, and `gives` the outputs. `forms` is for whoever checks requests.
    """

    by_token: bool
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    fixed_batch: int
    takes: Mapping[str, TensorSpec] = field(init=False)
    gives: Mapping[str, TensorSpec] = field(init=False)
    forms: Forms = field(init=False, default_factory=Forms, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "takes", {each.name: each for each in self.inputs})
        object.__setattr__(self, "gives", {each.name: each for each in self.outputs})


# By model: the spec it was made of, which is replaced and never written to, and the signature.
_kept: dict[str, tuple[ModelSpec, Signature]] = {}


def signature_of(spec: ModelSpec) -> Signature:
    """Raises `FailedPrecondition` for a model that says neither what it takes nor what it is for.

    Made once for each spec that is deployed: requests bring the same object.
    """
    known = _kept.get(spec.name)
    if known is not None and known[0] is spec:
        return known[1]
    signature = _made_of(spec)
    if len(_kept) >= KEPT:
        _kept.clear()
    _kept[spec.name] = spec, signature
    return signature


def _made_of(spec: ModelSpec) -> Signature:
    inputs: Sequence[TensorSpec] = spec.inputs or _inputs_of_task(spec.task)
    outputs: Sequence[TensorSpec] = spec.outputs or _outputs_of_task(spec)
    if not inputs or not outputs:
        raise FailedPrecondition(f"model: {spec.name!r} does not say which tensors it takes", field="model")
    by_token = spec.rows == RowKind.ROW_KIND_TOKEN or (
        spec.rows == RowKind.ROW_KIND_UNSPECIFIED and any(each.name == IDS for each in inputs)
    )
    if by_token:
        inputs = [MASK_RULE if each.name == MASK else each for each in inputs]
        if MASK_RULE not in inputs:
            inputs.append(MASK_RULE)
    dimensions = 2 if by_token else 1
    if small := next((each for each in inputs if len(each.shape) < dimensions), None):
        raise FailedPrecondition(f"model: {spec.name!r} says no shape of {small.name}", field="model")
    fixed = next((each.shape[0] for each in inputs if each.shape and each.shape[0] > 0), 0)
    return Signature(by_token, tuple(inputs), tuple(outputs), fixed)


def _inputs_of_task(task: str) -> Sequence[TensorSpec]:
    return {"generate": (_IDS_RULE, MASK_RULE), "embed": (_IDS_RULE, MASK_RULE, _TYPES)}.get(task, ())


def _outputs_of_task(spec: ModelSpec) -> Sequence[TensorSpec]:
    hidden, vocabulary = spec.hidden_size or -1, spec.vocab_size or -1
    if spec.task == "generate":
        return (TensorSpec(name="logits", dtypes=["F32"], shape=[-1, -1, vocabulary], per_token=True),)
    if spec.task == "embed":
        return (
            TensorSpec(name="sentence_embedding", dtypes=["F32"], shape=[-1, hidden]),
            TensorSpec(name="last_hidden_state", dtypes=["F32"], shape=[-1, -1, hidden], per_token=True),
        )
    return ()
