"""What goes into one message of a stream: several small frames, one, or a part of a large one. Pure.

A message costs a gRPC stream about as much as the copying of a few hundred KiB, so frames that wait for it share one, as
long as it stays below a few MiB. A frame that is larger by itself is slower than its parts: copies that fit into a core's
cache are cheaper, and both ends work on it at the same time. Only between ends that speak `parcels` (`handshake.py`); on a Unix
socket a message costs next to nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from stagemesh.errors import InvalidArgument
from stagemesh.v1.stage_pb2 import Frame, FramePart
from stagemesh.wire import key, read_varint, split, varint

# Frames that wait are put together up to that many bytes: two of 1 MiB with what is around them (bench/NOTES.md).
JOINED_BYTES = 2**21 + 2**16
# Larger frames go in even parts, of no more than that.
WHOLE_BYTES = 3 * 2**19
PART_BYTES = 2**20

# A serialised frame as pieces to join.
Pieces = Sequence[bytes | memoryview]

_JOINED = key(Frame.FRAMES_FIELD_NUMBER)
_PART = key(Frame.PART_FIELD_NUMBER)
_PART_DATA = key(FramePart.DATA_FIELD_NUMBER)
_KEY_BYTES = len(_JOINED)


def size_of(pieces: Pieces) -> int:
    """Bytes of the frame."""
    return sum([len(each) if isinstance(each, bytes) else each.nbytes for each in pieces])


def joined(frames: Sequence[Pieces]) -> bytes:
    """The message that holds all of these frames; one alone is a message as it is."""
    if len(frames) == 1:
        return b"".join(frames[0])
    together: list[bytes | memoryview] = []
    for pieces in frames:
        together += (_JOINED, varint(size_of(pieces)), *pieces)
    return b"".join(together)


def parts(pieces: Pieces, size: int = PART_BYTES) -> Iterator[bytes]:
    """The messages that a frame is cut into, of about equal size and at most `size` bytes of it each; made when asked for."""
    total = size_of(pieces)
    size = -(-total // -(-total // size))
    head = FramePart(total=total).SerializeToString()
    rest = iter(pieces)
    piece = memoryview(b"")
    sent = 0
    while sent < total:
        wanted = length = min(size, total - sent)
        body: list[bytes | memoryview] = []
        while wanted:
            if not piece:
                piece = memoryview(next(rest)).cast("B")
            body.append(piece[:wanted])
            wanted -= len(body[-1])
            piece = piece[len(body[-1]) :]
        inner = head + _PART_DATA + varint(length)
        yield b"".join((_PART, varint(len(inner) + length), inner, *body))
        sent, head = sent + length, b""


@dataclass(frozen=True, slots=True)
class Found:
    """A whole serialised frame: `data[begin:end]`."""

    data: bytes | memoryview
    begin: int
    end: int


class Assembly:
    """The receiver's end: finds the frames in the messages of one stream.

    Args:
        largest: bytes of a frame that is put together.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._whole: np.ndarray | None = None
        self._got = 0

    def __repr__(self) -> str:
        total = 0 if self._whole is None else self._whole.nbytes
        return f"<Assembly {self._got} of {total} bytes>"

    @property
    def begun(self) -> bool:
        """Whether parts of a frame are here that is not whole yet."""
        return self._whole is not None

    def frames(self, data: bytes) -> Iterator[Found]:
        """Those that are whole with this message.

        Raises:
            DecodeError: the message is cut off or holds what does not belong there.
            InvalidArgument: a part that does not fit to those before it; the error names the field.
        """
        first = data[:_KEY_BYTES]
        if first == _PART:
            if self._add(data):
                assert self._whole is not None
                whole, self._whole = self._whole, None
                yield Found(whole.data.toreadonly(), 0, whole.nbytes)
        elif self._whole is not None:
            raise InvalidArgument("frame.part: the rest of a frame is missing", field="frame.part")
        elif first == _JOINED:
            yield from _apart(data)
        else:
            yield Found(data, 0, len(data))

    def _add(self, data: bytes) -> bool:
        """Take a part in; whether it was the last one."""
        rest, begin, end = split(data, 0, len(data), Frame.PART_FIELD_NUMBER)
        if rest:
            raise DecodeError("something else beside a part of a frame")
        rest, begin, end = split(data, begin, end, FramePart.DATA_FIELD_NUMBER)
        total, length = FramePart.FromString(rest).total, end - begin
        if self._whole is None:
            if not 0 < total <= self._largest:
                raise InvalidArgument(
                    f"frame.part.total: must be 1 to {self._largest} bytes, not {total}",
                    field="frame.part.total",
                )
            self._whole, self._got = np.empty(total, np.uint8), 0
        elif total:
            raise InvalidArgument(
                "frame.part.total: given again before the frame is whole", field="frame.part.total"
            )
        if not 0 < length <= self._whole.nbytes - self._got:
            raise InvalidArgument(
                f"frame.part.data: {length} bytes, {self._whole.nbytes - self._got} are missing",
                field="frame.part.data",
            )
        self._whole.data[self._got : self._got + length] = memoryview(data)[begin:end]
        self._got += length
        return self._got == self._whole.nbytes


def _apart(data: bytes) -> Iterator[Found]:
    at, end = 0, len(data)
    while at < end:
        if data[at : at + _KEY_BYTES] != _JOINED:
            raise DecodeError("something else beside frames that share a message")
        length, at = read_varint(data, at + _KEY_BYTES, end)
        if at + length > end:
            raise DecodeError("truncated frame")
        yield Found(data, at, at + length)
        at += length
