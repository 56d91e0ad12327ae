"""The frames that wait for a link, in order, and which of them go out together next. Pure but for the lane."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from stagemesh.tensor import TensorView
from stagemesh.v1.stage_pb2 import Frame

from .parcels import JOINED_BYTES, WHOLE_BYTES, Pieces, joined, size_of
from .shared_memory import SendingLane


@dataclass(slots=True)
class Post:
    """A frame; `sent` is called once, when it has left or never will."""

    frame: Frame
    tensor: TensorView | None
    sent: Callable[[], None]


@dataclass(slots=True)
class Packed:
    """Frames that go out together: in one message, or one frame, of those pieces, in parts."""

    posts: list[Post]
    message: bytes | None
    pieces: Pieces = ()

    def sent(self) -> None:
        """They have left or never will."""
        for post in self.posts:
            post.sent()


class Outbox:
    """What waits, and the credits to send it.

    Attributes:
        credits: frames that may still be sent.
        lane: where large payloads go that do not travel with their frames.
        parcels: whether frames may share a message, and large ones go in parts.
    """

    def __init__(self) -> None:
        self.credits = 0
        self.lane = SendingLane(0)
        self.parcels = False
        self._posts: deque[Post] = deque()

    def __repr__(self) -> str:
        return f"<Outbox {len(self._posts)} credits={self.credits} {self.lane!r}>"

    def __len__(self) -> int:
        return len(self._posts)

    @property
    def ready(self) -> bool:
        """Whether there is a frame, and a credit for it."""
        return self.credits > 0 and bool(self._posts)

    @property
    def first(self) -> Post:
        """The one that goes next."""
        return self._posts[0]

    def add(self, post: Post) -> None:
        """Behind the others."""
        self._posts.append(post)

    def drop(self) -> None:
        """None of them will leave."""
        while self._posts:
            self._posts.popleft().sent()

    def pack(self) -> Packed:
        """The first one, and those behind it that go with it."""
        return self.pack_with(self._posts.popleft())

    def pack_with(self, post: Post) -> Packed:
        """The same for one that did not have to wait."""
        self.credits -= 1
        if not self.parcels:
            return Packed([post], self.lane.encode(post.frame, post.tensor))
        pieces = self.lane.pieces(post.frame, post.tensor)
        size = size_of(pieces)
        if size > WHOLE_BYTES:
            return Packed([post], None, pieces)
        posts, frames = [post], [pieces]
        while self.ready and (payload := _payload(self.first)) <= WHOLE_BYTES:
            size += payload
            if size > JOINED_BYTES or self.lane.waits(self.first.tensor):
                break
            self.credits -= 1
            post = self._posts.popleft()
            posts.append(post)
            frames.append(self.lane.pieces(post.frame, post.tensor))
        return Packed(posts, joined(frames))


def _payload(post: Post) -> int:
    """Its bytes, as far as they count; the rest of a frame is small."""
    return 0 if post.tensor is None else post.tensor.data.nbytes
