"""Open Inference Protocol tensors to and from this project's. Pure; every error names the field."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stagemesh.errors import InvalidArgument
from stagemesh.oip import open_inference_pb2 as oip
from stagemesh.v1 import tensor_pb2

DTYPES = {
    "BOOL": "BOOL",
    "UINT8": "U8",
    "UINT16": "U16",
    "UINT32": "U32",
    "UINT64": "U64",
    "INT8": "I8",
    "INT16": "I16",
    "INT32": "I32",
    "INT64": "I64",
    "FP16": "F16",
    "BF16": "BF16",
    "FP32": "F32",
    "FP64": "F64",
}
NAMES = {ours: theirs for theirs, ours in DTYPES.items()}

# Field of InferTensorContents, and what its values become on the wire.
_CONTENTS = {
    "BOOL": ("bool_contents", "?"),
    "UINT8": ("uint_contents", "u1"),
    "UINT16": ("uint_contents", "<u2"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "INT8": ("int_contents", "i1"),
    "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
}

RAW_OUTPUTS = "binary_data_output"
# Read by `scheduling`, or set by clients of the protocol for servers that keep state for them.
_NOT_OF_TENSORS = ("priority", "timeout", "sequence_id", "sequence_start", "sequence_end")


def uses_raw(request: oip.ModelInferRequest) -> bool:
    """Whether the request's payloads are raw; `InvalidArgument` when there is not one for each input."""
    raw = len(request.raw_input_contents)
    if raw and raw != len(request.inputs):
        raise InvalidArgument(
            f"raw_input_contents: has {raw} entries for {len(request.inputs)} inputs",
            field="raw_input_contents",
        )
    if raw and any(tensor.HasField("contents") for tensor in request.inputs):
        raise InvalidArgument(
            "raw_input_contents: excludes inputs[].contents; use one of them", field="raw_input_contents"
        )
    return bool(raw)


def to_tensors(request: oip.ModelInferRequest) -> list[tensor_pb2.Tensor]:
    """Inputs as this project's tensors; shapes and lengths are checked where every tensor's are."""
    raw = uses_raw(request)
    tensors = []
    for index, given in enumerate(request.inputs):
        field = f"inputs[{index}]"
        if given.datatype not in DTYPES:
            raise InvalidArgument(
                f"{field}.datatype: {given.datatype[:20]!r} does not fit input {given.name[:80]!r}",
                field=f"{field}.datatype",
            )
        _check_shape(given.shape, field)
        data = request.raw_input_contents[index] if raw else _contents_bytes(given, field)
        tensors.append(
            tensor_pb2.Tensor(name=given.name, dtype=DTYPES[given.datatype], shape=given.shape, data=data)
        )
    return tensors


def read_texts(request: oip.ModelInferRequest, index: int) -> list[str]:
    """The texts of a BYTES input of shape [N]."""
    given = request.inputs[index]
    field = f"inputs[{index}]"
    if given.datatype != "BYTES":
        raise InvalidArgument(f"{field}.datatype: {given.name} must be BYTES", field=f"{field}.datatype")
    _check_shape(given.shape, field)
    if uses_raw(request):
        items = _split_bytes(request.raw_input_contents[index], f"raw_input_contents[{index}]")
    else:
        items = list(given.contents.bytes_contents)
    if math.prod(given.shape) != len(items):
        raise InvalidArgument(
            f"{field}.shape: {list(given.shape)} does not fit {len(items)} texts", field=f"{field}.shape"
        )
    try:
        return [item.decode("utf-8") for item in items]
    except UnicodeDecodeError:
        raise InvalidArgument(f"{field}: is not UTF-8", field=field) from None


def check_parameters(request: oip.ModelInferRequest) -> None:
    """`InvalidArgument` naming a parameter of a tensor inference that would change the answer and is not supported."""
    for name, value in parameter_values(request.parameters).items():
        if name == RAW_OUTPUTS and not isinstance(value, bool):
            raise InvalidArgument(f"parameters.{name}: must be true or false", field=f"parameters.{name}")
        if name not in _NOT_OF_TENSORS and name != RAW_OUTPUTS and not name.startswith("triton_"):
            raise InvalidArgument(f"parameters.{name}: not supported", field=f"parameters.{name}")
    given: tuple[tuple[str, Sequence[Any]], ...] = (("inputs", request.inputs), ("outputs", request.outputs))
    for kind, tensors in given:
        for index, tensor in enumerate(tensors):
            for name in sorted(tensor.parameters):
                field = f"{kind}[{index}].parameters.{name}"
                raise InvalidArgument(f"{field}: not supported", field=field)


def add_outputs(
    response: oip.ModelInferResponse, tensors: Sequence[tensor_pb2.Tensor], request: oip.ModelInferRequest
) -> None:
    """Append the outputs: as `binary_data_output` says, else raw or typed as the request was.

    All of them are raw when one has a dtype without typed contents, since the protocol does not mix the two.
    """
    asked = parameter_values(request.parameters).get(RAW_OUTPUTS, uses_raw(request))
    raw = bool(asked) or any(NAMES[tensor.dtype] not in _CONTENTS for tensor in tensors)
    for tensor in tensors:
        datatype = NAMES[tensor.dtype]
        output = response.outputs.add(
            name=tensor.name, datatype=datatype, shape=[int(n) for n in tensor.shape]
        )
        if raw:
            response.raw_output_contents.append(tensor.data)
        else:
            attribute, code = _CONTENTS[datatype]
            getattr(output.contents, attribute).extend(np.frombuffer(tensor.data, code).tolist())


def add_texts(response: oip.ModelInferResponse, name: str, texts: Sequence[str], *, raw: bool) -> None:
    """Append a BYTES output of shape [texts]."""
    output = response.outputs.add(name=name, datatype="BYTES", shape=[len(texts)])
    encoded = [text.encode() for text in texts]
    if raw:
        response.raw_output_contents.append(b"".join(struct.pack("<I", len(data)) + data for data in encoded))
    else:
        output.contents.bytes_contents.extend(encoded)


def parameter_values(parameters: Mapping[str, oip.InferParameter]) -> dict[str, Any]:
    """Parameters as plain values; one without a value is left out."""
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            values[name] = getattr(parameter, choice)
    return values


def _check_shape(shape: Any, field: str) -> None:
    if any(size < 1 for size in shape):
        raise InvalidArgument(
            f"{field}.shape: every dimension of {list(shape)} must be at least 1", field=f"{field}.shape"
        )


def _contents_bytes(given: oip.ModelInferRequest.InferInputTensor, field: str) -> bytes:
    if given.datatype not in _CONTENTS:
        raise InvalidArgument(
            f"{field}.datatype: {given.datatype} must come as raw_input_contents", field=f"{field}.datatype"
        )
    attribute, code = _CONTENTS[given.datatype]
    values = getattr(given.contents, attribute)
    if any(len(value) and name.name != attribute for name, value in given.contents.ListFields()):
        raise InvalidArgument(
            f"{field}.contents: {given.datatype} belongs in {attribute}", field=f"{field}.contents"
        )
    if math.prod(given.shape) != len(values):
        raise InvalidArgument(
            f"{field}.contents: shape {list(given.shape)} takes {math.prod(given.shape)} values, not {len(values)}",
            field=f"{field}.contents",
        )
    try:
        return np.array(list(values), dtype=code).tobytes()
    except OverflowError:
        raise InvalidArgument(
            f"{field}.contents: a value does not fit {given.datatype}", field=f"{field}.contents"
        ) from None


def _split_bytes(data: bytes, field: str) -> list[bytes]:
    items = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise InvalidArgument(f"{field}: ends inside a length", field=field)
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + length > len(data):
            raise InvalidArgument(f"{field}: ends inside a text", field=field)
        items.append(data[at : at + length])
        at += length
    return items
