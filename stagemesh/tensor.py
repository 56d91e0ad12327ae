"""Tensors on the wire: checks, numpy conversion, and a codec that never copies a payload twice.

`protos/stagemesh/v1/tensor.proto` is the contract. This file writes and reads the same protobuf wire format by
hand around the payload (https://protobuf.dev/programming-guides/encoding/): encoding copies the payload once,
into the message; decoding gives a view of the received bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

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


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a payload lies in the segment that both ends of a stream have mapped; bytes from its start."""

    offset: int
    length: int


def encode_tensor(view: TensorView) -> list[bytes | memoryview]:
    """The wire bytes of a Tensor message, as pieces to join; the payload is the last, uncopied."""
    _, head = _tensor_head(view.name, view.dtype, view.shape, view.data.nbytes)
    return [head, view.data] if view.data.nbytes else [head]


# The shapes of decode passes repeat, so what precedes a payload is made once.
@lru_cache(maxsize=1024)
def _tensor_head(name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> tuple[bytes, bytes]:
    """What precedes a payload of `nbytes`: inside a frame (key and length of the field), and of the tensor."""
    head = tensor_pb2.Tensor(name=name, dtype=dtype, shape=shape).SerializeToString()
    if nbytes:
        head += _DATA_KEY + _varint(nbytes)
    return _TENSOR_KEY + _varint(len(head) + nbytes), head


def encode_frame(frame: stage_pb2.Frame, tensor: TensorView | None, place: Place | None = None) -> bytes:
    """Serialise `frame` (whose own `tensor` is unset) with `tensor` as its payload: one copy of the data.

    With `place` the payload is already in shared memory, and only says where.
    """
    head = frame.SerializeToString()
    if tensor is None:
        return head
    if place is not None:
        shared = tensor_pb2.SharedMemory(offset=place.offset, length=place.length)
        body = tensor_pb2.Tensor(
            name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, shared=shared
        ).SerializeToString()
        return b"".join((head, _TENSOR_KEY, _varint(len(body)), body))
    field, tensor_head = _tensor_head(tensor.name, tensor.dtype, tensor.shape, tensor.data.nbytes)
    return b"".join((head, field, tensor_head, tensor.data))


def _split(data: bytes, at: int, end: int, number: int) -> tuple[bytes, int, int]:
    """Cut the message `data[at:end]` into what is not field `number`, and where that field's (last) content lies.

    The place is (0, 0) when the field is absent; a message cannot begin with its content.

    Raises:
        DecodeError: when the top level is not protobuf wire format.
    """
    kept_from = at
    rest: list[bytes] = []
    begin = stop = 0
    while at < end:
        start = at
        key = data[at]
        at += 1
        if key > 0x7F:
            key, at = _read_varint(data, start, end)
        wire_type = key & 7
        if wire_type == _LENGTH_DELIMITED:
            if at >= end:
                raise DecodeError("truncated field")
            length = data[at]
            at += 1
            if length > 0x7F:
                length, at = _read_varint(data, at - 1, end)
            if key >> 3 == number:
                begin, stop = at, at + length
                if stop > end:
                    raise DecodeError("truncated field")
                rest.append(data[kept_from:start])
                kept_from = stop
            at += length
        elif wire_type == 0:
            while at < end and data[at] > 0x7F:
                at += 1
            at += 1
        elif wire_type == 1:
            at += 8
        elif wire_type == 5:
            at += 4
        else:
            raise DecodeError(f"wire type {wire_type} is not supported")
    if at > end:
        raise DecodeError("truncated field")
    if not rest:
        return data[kept_from:end], begin, stop
    rest.append(data[kept_from:end])
    return b"".join(rest), begin, stop


def decode_tensor(
    data: bytes | memoryview, field: str = "tensor", segment: memoryview | None = None
) -> TensorView:
    """Parse a Tensor message; `data` of the result is a view into the given bytes, or into `segment`.

    Raises:
        DecodeError: not a Tensor message.
        InvalidArgument: dtype, shape and payload length do not fit together, or the payload is said to lie
            outside `segment`.
    """
    whole = data if isinstance(data, bytes) else bytes(data)
    return _decode_tensor(whole, 0, len(whole), field, segment)


def decode_frame(data: bytes, segment: memoryview | None = None) -> tuple[stage_pb2.Frame, TensorView | None]:
    """Parse a Frame message; its tensor comes apart, as a view into `data`, or into `segment`.

    Raises:
        DecodeError: not a Frame message.
        InvalidArgument: the tensor's dtype, shape and payload length do not fit together, or the payload is
            said to lie outside `segment`.
    """
    rest, begin, stop = _split(data, 0, len(data), _FRAME_TENSOR)
    frame = stage_pb2.Frame.FromString(rest)
    return frame, _decode_tensor(data, begin, stop, "tensor", segment) if begin else None


def _decode_tensor(data: bytes, begin: int, end: int, field: str, segment: memoryview | None) -> TensorView:
    rest, at, stop = _split(data, begin, end, _TENSOR_DATA)
    view = memoryview(data)[at:stop]
    head = _read_head(rest) if len(rest) <= _LARGEST_CACHED_HEAD else _read_head.__wrapped__(rest)
    if head.encoding:
        raise InvalidArgument(
            f"{field}.encoding: {head.encoding[:20]!r} is not spoken", field=f"{field}.encoding"
        )
    if head.shared is not None:
        if view.nbytes:
            raise InvalidArgument(f"{field}.data: given beside tensor.shared", field=f"{field}.data")
        view = _in_segment(head.shared, segment, field)
    if view.nbytes != head.nbytes:
        check_layout(head.dtype, head.shape, view.nbytes, field)
    return TensorView(head.dtype, head.shape, view, head.name)


class _Head(NamedTuple):
    """What a Tensor message says beside its payload.

    `nbytes` is the length that the payload must have; -1 leaves the verdict to `check_layout`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: str
    shared: tuple[str, int, int] | None
    nbytes: int


_LARGEST_CACHED_HEAD = 128


@lru_cache(maxsize=1024)
def _read_head(data: bytes) -> _Head:
    message = tensor_pb2.Tensor.FromString(data)
    shape = tuple(message.shape)
    place = message.shared
    shared = (place.segment, place.offset, place.length) if message.HasField("shared") else None
    nbytes = -1
    if message.dtype in ITEM_BYTES and len(shape) <= MAX_RANK:
        nbytes = math.prod(shape) * ITEM_BYTES[message.dtype]
    if nbytes > MAX_ELEMENTS:
        nbytes = -1
    return _Head(message.name, message.dtype, shape, message.encoding, shared, nbytes)


def _in_segment(shared: tuple[str, int, int], segment: memoryview | None, field: str) -> memoryview:
    """The bytes that a header points to, checked before anything is touched."""
    name, offset, length = shared
    # A stream has one segment, agreed on in its hello; a frame that names one means another.
    if segment is None or name:
        raise InvalidArgument(f"{field}.shared: no such segment here", field=f"{field}.shared.segment")
    if offset > segment.nbytes:
        raise InvalidArgument(f"{field}.shared: {offset} is outside", field=f"{field}.shared.offset")
    if length > segment.nbytes - offset:
        raise InvalidArgument(
            f"{field}.shared: {length} bytes from {offset} reach outside", field=f"{field}.shared.length"
        )
    return segment[offset : offset + length]
