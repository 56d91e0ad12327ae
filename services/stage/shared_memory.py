"""The shared-memory lane of a link: payloads lie in a segment of this host, the stream carries their headers.

1. The sender makes a segment (`shared_memory_segment.py`) and offers it in its hello.
2. The receiver maps it and says so; the name is removed. One that cannot gets bytes in the stream.
3. Each frame's payload is copied once, to the lowest free place (`shared_memory_places.py`); the receiver computes
   on a view of it. A payload that is small, or finds no room, travels in the stream as before.
4. When the last user of that view has let go of it, whoever that is, the receiver marks the payload as done in the
   segment, and its place is free again. Credits are a matter of their own: they come back later, and not in order.
"""

import logging
import os
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np

from stagemesh.tensor import Place, TensorView, decode_frame, frame_pieces
from stagemesh.v1.stage_pb2 import Frame, SharedMemoryOffer

from . import metrics
from .shared_memory_places import Places
from .shared_memory_segment import FOLDER, HEADER_BYTES, SLOTS, MappedSegment, Segment, map_segment

log = logging.getLogger(__name__)

# Smaller payloads are as fast in the stream (bench/NOTES.md).
LEAST_BYTES = 2**16


class SendingLane:
    """The sender's end: encodes the frames of one link, in order.

    Args:
        nbytes: size of the segment; 0 is no lane, then every payload goes in the stream.
        folder: where shared memory is.
    """

    def __init__(self, nbytes: int, folder: Path = FOLDER) -> None:
        self._segment: Segment | None = None
        self._agreed = False
        if nbytes:
            try:
                self._segment = Segment(nbytes + HEADER_BYTES, folder)
            except OSError as error:
                log.info("shared_memory.none: %s", os.strerror(error.errno or 0))
        self._places = Places(HEADER_BYTES, nbytes + HEADER_BYTES, SLOTS)
        self._shared = metrics.TENSOR_FRAMES.labels("shared")
        self._bytes = metrics.TENSOR_FRAMES.labels("bytes")
        self._fallback = metrics.TENSOR_FRAMES.labels("fallback")

    def __repr__(self) -> str:
        return f"<SendingLane {'agreed' if self._agreed else 'off'} {self._places!r}>"

    @property
    def offer(self) -> SharedMemoryOffer | None:
        """What the hello says; None when there is nothing to offer."""
        if self._segment is None:
            return None
        return SharedMemoryOffer(
            segment=self._segment.name, length=self._segment.nbytes, cookie=self._segment.cookie
        )

    def answered(self, accepted: bool) -> None:
        """The receiver's hello came: it has mapped the segment, or wants bytes."""
        if self._segment is not None and accepted:
            self._segment.unlink()
            self._agreed = True
        else:
            self.close()

    def waits(self, tensor: TensorView | None) -> bool:
        """Whether a frame should wait a moment for a place, although it may go as bytes.

        The receiver has two other payloads to compute on until then.
        """
        if not self._agreed or tensor is None:
            return False
        length = tensor.data.nbytes
        if not LEAST_BYTES <= length <= self._places.capacity or len(self._places.taken) < 2:
            return False
        return self._find(length) is None

    def encode(self, frame: Frame, tensor: TensorView | None) -> bytes:
        """The message for a frame that is sent now."""
        return b"".join(self.pieces(frame, tensor))

    def pieces(self, frame: Frame, tensor: TensorView | None) -> tuple[bytes | memoryview, ...]:
        """What `encode` joins; a payload that does not lie in shared memory is the last, uncopied."""
        if tensor is None:
            return frame_pieces(frame, None)
        length = tensor.data.nbytes
        if not self._agreed or length < LEAST_BYTES:
            self._bytes.inc()
            return frame_pieces(frame, tensor)
        offset = self._find(length)
        assert self._segment is not None
        if offset is None or not self._segment.reserve(offset + length):
            self._fallback.inc()
            return frame_pieces(frame, tensor)
        self._segment.write(offset, tensor.data)
        self._places.take(offset, length)
        self._shared.inc()
        return frame_pieces(frame, tensor, Place(offset, length))

    def _find(self, length: int) -> int | None:
        assert self._segment is not None
        for number in self._places.taken:
            if self._segment.is_done(number):
                self._places.free(number)
        return self._places.find(length)

    def close(self) -> None:
        """Let go of the segment; what is sent from now on goes as bytes."""
        self._agreed = False
        if self._segment is not None:
            self._segment.close()
            self._segment = None


class ReceivingLane:
    """The receiver's end: decodes the frames of one stream, in order. Without a segment, all come as bytes."""

    def __init__(self, segment: MappedSegment | None) -> None:
        self._segment = segment
        self._number = 0
        # What is in use; a weak reference only calls back while it exists itself.
        self._used: dict[int, weakref.ref[np.ndarray]] = {}

    def __repr__(self) -> str:
        state = "off" if self._segment is None else "on"
        return f"<ReceivingLane {state} received={self._number} used={len(self._used)}>"

    @classmethod
    def accept(cls, offer: SharedMemoryOffer, folder: Path = FOLDER) -> "ReceivingLane":
        """Map what is offered, if that is possible."""
        return cls(map_segment(offer.segment, offer.length, offer.cookie, folder))

    @property
    def accepted(self) -> bool:
        """Whether payloads may come through shared memory."""
        return self._segment is not None

    def decode(
        self, data: bytes | memoryview, begin: int = 0, end: int | None = None
    ) -> tuple[Frame, TensorView | None]:
        """Read the frame `data[begin:end]`; its tensor may be a view of shared memory, which is kept as long as the view is.

        Raises:
            DecodeError: not a Frame message.
            InvalidArgument: the tensor does not fit together or lies elsewhere; the error names the field.
        """
        if self._segment is None:
            return decode_frame(data, None, begin, end)
        frame, tensor = decode_frame(data, self._segment.memory, begin, end)
        if tensor is not None and tensor.data.nbytes and tensor.data.obj is self._segment.memory.obj:
            tensor = self._watched(tensor, self._segment)
        return frame, tensor

    def _watched(self, tensor: TensorView, segment: MappedSegment) -> TensorView:
        number, used = self._number, self._used
        self._number += 1
        # Views of a view keep this array, whatever library makes them.
        payload = np.frombuffer(tensor.data, np.uint8)

        def unused(_: object) -> None:
            segment.done(number)
            used.pop(number, None)

        used[number] = weakref.ref(payload, unused)
        return replace(tensor, data=payload.data)
