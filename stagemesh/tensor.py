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

from stagemesh.errors import InvalidArgument
from stagemesh.v1 import stage_pb2, tensor_pb2
from stagemesh.wire import key, split, varint

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
    if shape and min(shape) < 0:
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


_DATA_KEY = key(_TENSOR_DATA)
_TENSOR_KEY = key(_FRAME_TENSOR)


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
        head += _DATA_KEY + varint(nbytes)
    return _TENSOR_KEY + varint(len(head) + nbytes), head


def encode_frame(frame: stage_pb2.Frame, tensor: TensorView | None, place: Place | None = None) -> bytes:
    """Serialise `frame` (whose own `tensor` is unset) with `tensor` as its payload: one copy of the data.

    With `place` the payload is already in shared memory, and only says where.
    """
    return b"".join(frame_pieces(frame, tensor, place))


def frame_pieces(
    frame: stage_pb2.Frame, tensor: TensorView | None, place: Place | None = None
) -> tuple[bytes | memoryview, ...]:
    """The wire bytes of `encode_frame`, as pieces to join; the payload is the last, uncopied."""
    head = frame.SerializeToString()
    if tensor is None:
        return (head,)
    if place is not None:
        shared = tensor_pb2.SharedMemory(offset=place.offset, length=place.length)
        body = tensor_pb2.Tensor(
            name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, shared=shared
        ).SerializeToString()
        return head, _TENSOR_KEY, varint(len(body)), body
    field, tensor_head = _tensor_head(tensor.name, tensor.dtype, tensor.shape, tensor.data.nbytes)
    return head, field, tensor_head, tensor.data


def decode_tensor(
    data: bytes | memoryview, field: str = "tensor", segment: memoryview | None = None
) -> TensorView:
    """Parse a Tensor message; `data` of the result is a view into the given bytes, or into `segment`.

    Raises:
        DecodeError: not a Tensor message.
        InvalidArgument: dtype, shape and payload length do not fit together, or the payload is said to lie
            outside `segment`.
    """
    return _decode_tensor(data, 0, len(data), field, segment)


def decode_frame(
    data: bytes | memoryview, segment: memoryview | None = None, begin: int = 0, end: int | None = None
) -> tuple[stage_pb2.Frame, TensorView | None]:
    """Parse the Frame message `data[begin:end]`; its tensor comes apart, as a view into `data`, or into `segment`.

    Raises:
        DecodeError: not a Frame message.
        InvalidArgument: the tensor's dtype, shape and payload length do not fit together, or the payload is
            said to lie outside `segment`.
    """
    rest, start, stop = split(data, begin, len(data) if end is None else end, _FRAME_TENSOR)
    frame = stage_pb2.Frame.FromString(rest)
    return frame, _decode_tensor(data, start, stop, "tensor", segment) if start else None


def _decode_tensor(
    data: bytes | memoryview, begin: int, end: int, field: str, segment: memoryview | None
) -> TensorView:
    rest, at, stop = split(data, begin, end, _TENSOR_DATA)
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
