"""The shared-memory lane of a link: payloads lie in a segment of this host, the stream carries their headers.

1. The sender makes a segment (`shared_memory_segment.py`) and offers it in its hello.
2. The receiver maps it and says so; the name is removed. One that cannot gets bytes in the stream.
3. Each frame's payload is copied once, to the lowest free place (`shared_memory_places.py`); the receiver computes
   on a view of it. A payload that is small, or finds no room, travels in the stream as before.
4. A credit says that the receiver is done with its oldest frame, and with it the place is free again. So a receiver
   must copy what it keeps beyond the credit (`kept`).
"""

import logging
import os
from dataclasses import replace
from pathlib import Path

from stagemesh.tensor import Place, TensorView, encode_frame
from stagemesh.v1.stage_pb2 import Feedback, Frame, SharedMemoryOffer

from . import metrics
from .shared_memory_places import Places
from .shared_memory_segment import FOLDER, HEADER_BYTES, Segment, map_segment

log = logging.getLogger(__name__)

# Smaller payloads are faster in the stream (bench/NOTES.md).
LEAST_BYTES = 2**15


class SendingLane:
    """The sender's end: encodes every frame of one link, in order.

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
        self._places = Places(HEADER_BYTES, nbytes + HEADER_BYTES)
        self._shared = metrics.FRAMES.labels("shared")
        self._bytes = metrics.FRAMES.labels("bytes")
        self._fallback = metrics.FRAMES.labels("fallback")

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

    def on_feedback(self, feedback: Feedback) -> None:
        """Take the receiver's answer to the hello, and the places of frames it is done with."""
        if not feedback.HasField("hello"):
            self._places.done(feedback.credits)
        elif self._segment is not None:
            if feedback.hello.shared_accepted:
                self._segment.unlink()
                self._agreed = True
            else:
                self.close()

    def encode(self, frame: Frame, tensor: TensorView | None) -> bytes:
        """The message for a frame that is sent now."""
        if tensor is None:
            self._places.sent()
            return encode_frame(frame, None)
        length = tensor.data.nbytes
        if not self._agreed or length < LEAST_BYTES:
            self._bytes.inc()
        elif (offset := self._place_for(length)) is not None:
            assert self._segment is not None
            self._segment.write(offset, tensor.data)
            self._places.sent(offset, length)
            self._shared.inc()
            return encode_frame(frame, tensor, Place(offset, length))
        else:
            self._fallback.inc()
        self._places.sent()
        return encode_frame(frame, tensor)

    def _place_for(self, length: int) -> int | None:
        offset = self._places.find(length)
        if offset is None or self._segment is None or not self._segment.reserve(offset + length):
            return None
        return offset

    def close(self) -> None:
        """Let go of the segment; what is sent from now on goes as bytes."""
        self._agreed = False
        if self._segment is not None:
            self._segment.close()
            self._segment = None


def accept(offer: SharedMemoryOffer, folder: Path = FOLDER) -> memoryview | None:
    """The receiver's end: the offered segment, to be read only; None when payloads must come as bytes."""
    return map_segment(offer.segment, offer.length, offer.cookie, folder)


def kept(tensor: TensorView) -> TensorView:
    """A copy that outlives the frame's credit."""
    return replace(tensor, data=memoryview(bytes(tensor.data)))
