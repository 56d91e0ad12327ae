"""Checks of a stateless inference's tensors before anything is allocated. Pure; every error names the field."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stagemesh.errors import InvalidArgument, OutOfRange
from stagemesh.tensor import ITEM_BYTES, MAX_RANK
from stagemesh.v1 import inference_pb2, tensor_pb2
from stagemesh.v1.registry_pb2 import ModelSpec, TensorSpec

from .bounds import surely_below
from .forms import WHOLE_ROWS, Form, as_they_come
from .given import Input
from .lossless import BITS, convert
from .micro_batch import MicroBatch, output_bytes
from .signature import IDS, MASK, MASK_RULE, Signature, signature_of

MAX_DIMENSION = 2**31 - 1


class Batch(NamedTuple):
    """Checked inputs of B samples.

    `by_token`: inputs are [B, T, ...] without the mask, which became `lengths` [B] (tokens of each sample); else
    inputs are [B, ...] and `lengths` are ones. `fixed`: the model takes this batch as a whole or not at all. `whole` is
    all of it as one micro-batch, where that is known.
    """

    inputs: list[Input]
    lengths: list[int]
    outputs: list[TensorSpec]
    by_token: bool
    fixed: bool = False
    whole: MicroBatch | None = None

    @property
    def width(self) -> int:
        """T, padding included; 1 where a row is a sample."""
        return self.inputs[0].shape[1] if self.by_token else 1

    @property
    def row_bytes(self) -> int:
        """What one sample's inputs or outputs take at most, by the larger of the two."""
        given = sum(math.prod(each.shape) * ITEM_BYTES[each.dtype] for each in self.inputs)
        given //= len(self.lengths)
        return max(given, output_bytes(self.outputs, self.by_token, 1, self.width), 1)


def check_infer(request: inference_pb2.InferRequest, spec: ModelSpec, *, max_output_bytes: int) -> Batch:
    """Turn a request into a batch; raises `InvalidArgument` or `OutOfRange` naming the field.

    What follows from names, dtypes and shapes alone is found once for requests that are alike in them.
    """
    signature = signature_of(spec)
    known = signature.forms.find(request, max_output_bytes)
    if known is not None:
        form, given = known
        return _batch(given, form.where, form.outputs, spec, signature, form.whole)
    batch, given = _check(request, spec, signature, max_output_bytes)
    if (plain := as_they_come(request.inputs, given)) is not None:
        where = {each.name: f"inputs[{index}]" for index, each in enumerate(plain)}
        whole = None
        if len(batch.lengths) <= WHOLE_ROWS and not (signature.by_token and MASK in given):
            lengths = tuple(batch.lengths)
            whole = MicroBatch.of(batch.inputs, lengths, batch.outputs, spec, by_token=batch.by_token)
        asked = list(request.outputs)
        form = Form(plain, where, asked, batch.outputs, whole, max_output_bytes)
        signature.forms.keep(request, form)
    return batch


def _check(
    request: inference_pb2.InferRequest, spec: ModelSpec, signature: Signature, max_output_bytes: int
) -> tuple[Batch, dict[str, Input]]:
    """The batch, and what each input is computed as, the mask as well."""
    known = signature.takes
    given: dict[str, Input] = {}
    where: dict[str, str] = {}
    converted = 0
    for index, tensor in enumerate(request.inputs):
        field = f"inputs[{index}]"
        name = tensor.name
        rule = known.get(name)
        if rule is None:
            raise InvalidArgument(
                f"{field}.name: no input {name[:80]!r}; model {spec.name!r} takes {', '.join(known)}",
                field=f"{field}.name",
            )
        if name in given:
            raise InvalidArgument(f"{field}.name: {name!r} is given twice", field=f"{field}.name")
        shape, data = check_tensor(tensor, field, rule)
        made = Input(name, tensor.dtype, tuple(shape), data)
        native = rule.dtypes[0] if rule.dtypes and rule is not MASK_RULE else tensor.dtype
        if native != tensor.dtype:
            converted += math.prod(shape) * ITEM_BYTES[native]
            if converted > max_output_bytes:
                raise OutOfRange(
                    f"{field}.data: takes {converted} bytes as {native}, more than the {max_output_bytes} of one "
                    "message; send fewer rows",
                    field=f"{field}.data",
                )
            array = convert(made.array, tensor.dtype, native, f"{field}.data")
            made = Input(name, native, made.shape, array=array)
        given[name], where[name] = made, field
    for name, rule in known.items():
        if name not in given and not rule.optional:
            raise InvalidArgument(f"inputs: {name} is missing", field="inputs")
    _check_agreement(given, where, signature)
    outputs = _outputs(request.outputs, spec, signature)
    batch = _batch(given, where, outputs, spec, signature)
    rows = len(batch.lengths)
    total = output_bytes(outputs, signature.by_token, rows, rows * batch.width)
    if total > max_output_bytes:
        raise OutOfRange(
            f"inputs: the answer would take {total} bytes, more than the {max_output_bytes} of one message; "
            "send fewer rows",
            field="inputs",
        )
    return batch, given


def _batch(
    given: Mapping[str, Input],
    where: Mapping[str, str],
    outputs: list[TensorSpec],
    spec: ModelSpec,
    signature: Signature,
    whole: MicroBatch | None = None,
) -> Batch:
    """Of inputs whose names, dtypes and shapes are right: what they hold is checked here."""
    mask = given.get(MASK) if signature.by_token else None
    inputs = [given[name] for name in signature.takes if name in given and given[name] is not mask]
    if not inputs:
        raise InvalidArgument("inputs: give at least one", field="inputs")
    rows = inputs[0].shape[0]
    width = inputs[0].shape[1] if signature.by_token else 1
    lengths = [width] * rows if mask is None else mask_lengths(mask.array, f"{where[MASK]}.data")
    if signature.by_token:
        _check_tokens(given, where, spec, lengths)
    return Batch(inputs, lengths, outputs, signature.by_token, signature.fixed_batch > 0, whole)


def token_batch(columns: dict[str, Sequence[Sequence[int]]], spec: ModelSpec, output: str) -> Batch:
    """Token rows of different lengths, by input name, as a padded batch that gives `output`."""
    signature = signature_of(spec)
    lengths = [len(row) for row in next(iter(columns.values()))]
    inputs = []
    for rule in signature.inputs:
        if (rows := columns.get(rule.name)) is None:
            continue
        native = rule.dtypes[0] if rule.dtypes else "I64"
        padded = np.zeros((len(lengths), max(lengths)), dtype=BITS[native])
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        inputs.append(Input(rule.name, native, padded.shape, array=padded))
    return Batch(inputs, lengths, _outputs([output], spec, signature), by_token=True)


def check_tensor(tensor: tensor_pb2.Tensor, field: str, rule: TensorSpec) -> tuple[list[int], bytes]:
    """Check dtype, rank, every dimension, their product and the byte length; shape and payload of the tensor."""
    if tensor.dtype not in (rule.dtypes or ITEM_BYTES):
        raise InvalidArgument(
            f"{field}.dtype: {tensor.dtype[:20]!r} is not one of {', '.join(rule.dtypes or ITEM_BYTES)}",
            field=f"{field}.dtype",
        )
    if tensor.dtype not in ITEM_BYTES:
        raise InvalidArgument(f"{field}.dtype: {tensor.dtype[:20]!r} cannot be sent", field=f"{field}.dtype")
    if tensor.encoding or tensor.HasField("shared"):
        raise InvalidArgument(f"{field}.encoding: must be raw bytes in `data`", field=f"{field}.encoding")
    shape = list(tensor.shape)
    if len(shape) > MAX_RANK:
        raise InvalidArgument(
            f"{field}.shape: {len(shape)} dimensions are more than {MAX_RANK}", field=f"{field}.shape"
        )
    if len(shape) != len(rule.shape):
        raise InvalidArgument(
            f"{field}.shape: must have {len(rule.shape)} dimensions, not {len(shape)}", field=f"{field}.shape"
        )
    if any(size < 1 or size > MAX_DIMENSION for size in shape):
        raise InvalidArgument(
            f"{field}.shape: every dimension of {shape} must be between 1 and {MAX_DIMENSION}",
            field=f"{field}.shape",
        )
    if rule.shape[0] > 0 and shape[0] != rule.shape[0]:
        raise InvalidArgument(
            f"{field}.shape: the model takes batches of exactly {rule.shape[0]}, not of {shape[0]}",
            field=f"{field}.shape",
        )
    if any(size != wanted for size, wanted in zip(shape, rule.shape, strict=True) if wanted >= 0):
        wanted = ", ".join("any" if size < 0 else str(size) for size in rule.shape)
        raise InvalidArgument(
            f"{field}.shape: {tensor.name} must be [{wanted}], not {shape}", field=f"{field}.shape"
        )
    expected = math.prod(shape) * ITEM_BYTES[tensor.dtype]
    if expected >= 2**63:
        raise InvalidArgument(f"{field}.shape: the product of {shape} overflows", field=f"{field}.shape")
    data = tensor.data  # each look at it is a copy
    if len(data) != expected:
        raise InvalidArgument(
            f"{field}.data: {tensor.dtype} of shape {shape} takes {expected} bytes, not {len(data)}",
            field=f"{field}.data",
        )
    if tensor.dtype == "BOOL" and data.strip(b"\x00\x01"):
        raise InvalidArgument(f"{field}.data: BOOL must be bytes of 0 or 1", field=f"{field}.data")
    return shape, data


def mask_lengths(mask: np.ndarray, field: str) -> list[int]:
    """Tokens per row of a mask [B, T] of ones, then zeros; `InvalidArgument` for any other mask."""
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidArgument(f"{field}: {MASK} must hold only 0 and 1", field=field)
    if bool((np.diff(mask.astype(np.int8), axis=1) > 0).any()):
        raise InvalidArgument(f"{field}: {MASK} must be padded on the right (ones, then zeros)", field=field)
    lengths = [int(length) for length in mask.sum(axis=1)]
    if 0 in lengths:
        raise InvalidArgument(f"{field}: row {lengths.index(0)} of {MASK} has no token", field=field)
    return lengths


def _check_agreement(given: Mapping[str, Input], where: Mapping[str, str], signature: Signature) -> None:
    """All inputs have the same B, and the same T where a row is a token."""
    if len(given) < 2:
        return
    first = next((name for name in signature.takes if name in given), "")
    same = 2 if signature.by_token else 1
    for name, each in given.items():
        if each.shape[:same] != given[first].shape[:same]:
            raise InvalidArgument(
                f"{where[name]}.shape: {name} is {list(each.shape)} but {first} is {list(given[first].shape)}",
                field=f"{where[name]}.shape",
            )


def _check_tokens(
    given: Mapping[str, Input], where: Mapping[str, str], spec: ModelSpec, lengths: Sequence[int]
) -> None:
    """What holds for a model of text."""
    if IDS in given:
        _check_ids(given[IDS], spec, f"{where[IDS]}.data")
    types = given.get("token_type_ids")
    if types is not None and bool((types.array < 0).any()):
        field = f"{where['token_type_ids']}.data"
        raise InvalidArgument(f"{field}: a token type is negative", field=field)
    if spec.context_length and max(lengths) > spec.context_length:
        field = f"{next(iter(where.values()))}.shape"
        if IDS in where:
            field = f"{where[IDS]}.shape"
        raise OutOfRange(
            f"{field}: {max(lengths)} tokens exceed the context of {spec.context_length}", field=field
        )


def _check_ids(ids: Input, spec: ModelSpec, field: str) -> None:
    if surely_below(ids.data, ITEM_BYTES[ids.dtype], spec.vocab_size):
        return
    low, high = int(ids.array.min()), int(ids.array.max())
    if low < 0 or (spec.vocab_size and high >= spec.vocab_size):
        raise InvalidArgument(
            f"{field}: token id {low if low < 0 else high} is outside the vocabulary of {spec.vocab_size}",
            field=field,
        )


def _outputs(wanted: Sequence[str], spec: ModelSpec, signature: Signature) -> list[TensorSpec]:
    """Those asked for; without any the first of a model of text, and all of any other."""
    known = signature.gives
    for index, name in enumerate(wanted):
        field = f"outputs[{index}]"
        if name not in known:
            raise InvalidArgument(
                f"{field}: no output {name[:80]!r}; model {spec.name!r} has {', '.join(known)}", field=field
            )
        if name in wanted[:index]:
            raise InvalidArgument(f"{field}: {name!r} is asked for twice", field=field)
    if wanted:
        return [known[name] for name in wanted]
    return list(signature.outputs[:1] if signature.by_token else signature.outputs)
