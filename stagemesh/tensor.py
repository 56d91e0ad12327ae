"""Tensors on the wire: checks, numpy conversion, and a codec that never copies a payload twice.

`protos/stagemesh/v1/tensor.proto` is the contract. This file writes and reads the same protobuf wire format by
hand around the payload (https://protobuf.dev/programming-guides/encoding/): encoding copies the payload once,
into the message; decoding gives a view of the received bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from stagemesh.errors import InvalidArgument
from stagemesh.v1 import stage_pb2, tensor_pb2

# Bytes per element of safetensors' dtype names.
ITEM_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
# numpy has no bfloat16, so BF16 has no entry here.
NUMPY_DTYPES: dict[str, str] = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "I64": "<i8",
    "U64": "<u8",
    "F64": "<f8",
}
_NAME_OF = {np.dtype(code): name for name, code in NUMPY_DTYPES.items()}

MAX_RANK = 16
MAX_ELEMENTS = 2**40

_FRAME_TENSOR = stage_pb2.Frame.TENSOR_FIELD_NUMBER
_TENSOR_DATA = tensor_pb2.Tensor.DATA_FIELD_NUMBER
_LENGTH_DELIMITED = 2


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor whose payload is a view of somebody else's bytes: row-major, little-endian.

    `data` has exactly `prod(shape) * ITEM_BYTES[dtype]` bytes once `check_layout` passed.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    name: str = ""


def check_layout(dtype: str, shape: Sequence[int], nbytes: int, field: str = "tensor") -> None:
    """Check dtype, rank, every dimension, the product and the byte length, before anything is allocated.

    Raises:
        InvalidArgument: naming `field` and the part of it that is wrong.
    """
    if dtype not in ITEM_BYTES:
        raise InvalidArgument(
            f"{field}.dtype: {dtype[:20]!r} is not one of {', '.join(ITEM_BYTES)}", field=f"{field}.dtype"
        )
    if len(shape) > MAX_RANK:
        raise InvalidArgument(f"{field}.shape: rank {len(shape)} is above {MAX_RANK}", field=f"{field}.shape")
    if any(size < 0 for size in shape):
        raise InvalidArgument(f"{field}.shape: negative dimension in {list(shape)}", field=f"{field}.shape")
    elements = math.prod(shape)
    if elements > MAX_ELEMENTS:
        raise InvalidArgument(f"{field}.shape: {elements} elements are too many", field=f"{field}.shape")
    if elements * ITEM_BYTES[dtype] != nbytes:
        raise InvalidArgument(
            f"{field}.data: {dtype} {list(shape)} needs {elements * ITEM_BYTES[dtype]} bytes, got {nbytes}",
            field=f"{field}.data",
        )


def to_numpy(tensor: tensor_pb2.Tensor, field: str = "tensor") -> np.ndarray:
    """Return a read-only array over the message's payload.

    Raises:
        InvalidArgument: naming `field` when dtype, shape and length do not fit, or the dtype has no numpy
            counterpart (BF16), or the payload lies in shared memory or in an unknown encoding.
    """
    if tensor.encoding or tensor.HasField("shared"):
        raise InvalidArgument(
            f"{field}.encoding: only raw payloads are accepted here", field=f"{field}.encoding"
        )
    check_layout(tensor.dtype, tensor.shape, len(tensor.data), field)
    if tensor.dtype not in NUMPY_DTYPES:
        raise InvalidArgument(
            f"{field}.dtype: {tensor.dtype} has no numpy counterpart", field=f"{field}.dtype"
        )
    return np.frombuffer(tensor.data, NUMPY_DTYPES[tensor.dtype]).reshape(tuple(tensor.shape))


def from_numpy(name: str, array: np.ndarray) -> tensor_pb2.Tensor:
    """Copy an array into a message.

    Raises:
        InvalidArgument: when the array's dtype has no name on the wire.
    """
    little = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
    dtype = _NAME_OF.get(np.dtype(little))
    if dtype is None:
        raise InvalidArgument(f"{name}: numpy dtype {array.dtype} cannot be sent", field=name)
    data = np.ascontiguousarray(array, dtype=little).tobytes()
    return tensor_pb2.Tensor(name=name, dtype=dtype, shape=array.shape, data=data)


# ---- the hand codec ----


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise DecodeError("truncated or overlong varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _key(number: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED)


_DATA_KEY = _key(_TENSOR_DATA)
_TENSOR_KEY = _key(_FRAME_TENSOR)


def encode_tensor(view: TensorView) -> list[bytes | memoryview]:
    """The wire bytes of a Tensor message, as pieces to join; the payload is the last, uncopied."""
    head = tensor_pb2.Tensor(name=view.name, dtype=view.dtype, shape=view.shape).SerializeToString()
    if not view.data.nbytes:
        return [head]
    return [head, _DATA_KEY, _varint(view.data.nbytes), view.data]


def _split(data: memoryview, number: int) -> tuple[list[memoryview], memoryview | None]:
    """Cut a message into the spans without field `number`, and that field's (last) content.

    Raises:
        DecodeError: when the top level is not protobuf wire format.
    """
    rest: list[memoryview] = []
    found: memoryview | None = None
    at = kept_from = 0
    while at < len(data):
        start = at
        key, at = _read_varint(data, at)
        wire_type = key & 7
        if wire_type == 0:
            _, at = _read_varint(data, at)
        elif wire_type == 1:
            at += 8
        elif wire_type == 5:
            at += 4
        elif wire_type == _LENGTH_DELIMITED:
            length, at = _read_varint(data, at)
            if key >> 3 == number:
                if at + length > len(data):
                    raise DecodeError("truncated field")
                found = data[at : at + length]
                rest.append(data[kept_from:start])
                kept_from = at + length
            at += length
        else:
            raise DecodeError(f"wire type {wire_type} is not supported")
        if at > len(data):
            raise DecodeError("truncated field")
    rest.append(data[kept_from:])
    return rest, found


def decode_tensor(data: bytes | memoryview, field: str = "tensor") -> TensorView:
    """Parse a Tensor message; `data` of the result is a view into the given bytes.

    Raises:
        DecodeError: not a Tensor message.
        InvalidArgument: dtype, shape and payload length do not fit together.
    """
    rest, payload = _split(memoryview(data), _TENSOR_DATA)
    head = tensor_pb2.Tensor.FromString(b"".join(rest))
    if head.encoding or head.HasField("shared"):
        raise InvalidArgument(
            f"{field}.encoding: {head.encoding[:20]!r} is not spoken", field=f"{field}.encoding"
        )
    view = TensorView(
        head.dtype, tuple(head.shape), memoryview(b"") if payload is None else payload, head.name
    )
    check_layout(view.dtype, view.shape, view.data.nbytes, field)
    return view


def encode_frame(frame: stage_pb2.Frame, tensor: TensorView | None) -> bytes:
    """Serialise `frame` (whose own `tensor` is unset) with `tensor` as its payload: one copy of the data."""
    head = frame.SerializeToString()
    if tensor is None:
        return head
    pieces = encode_tensor(tensor)
    length = sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in pieces)
    return b"".join((head, _TENSOR_KEY, _varint(length), *pieces))


def decode_frame(data: bytes) -> tuple[stage_pb2.Frame, TensorView | None]:
    """Parse a Frame message; its tensor comes apart, as a view into `data`.

    Raises:
        DecodeError: not a Frame message.
        InvalidArgument: the tensor's dtype, shape and payload length do not fit together.
    """
    rest, body = _split(memoryview(data), _FRAME_TENSOR)
    frame = stage_pb2.Frame.FromString(b"".join(rest))
    return frame, None if body is None else decode_tensor(body)
