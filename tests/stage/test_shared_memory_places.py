"""Places in a segment never overlap, come back in order, and are used whenever there is room."""

import itertools

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.stage.shared_memory_places import ALIGNMENT, Places

BEGIN, END = 64, 64 + 1000


class PlacesMachine(RuleBasedStateMachine):
    """Against the plainest model: the places of all frames under way, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.places = Places(BEGIN, END)
        self.frames: list[tuple[int, int] | None] = []

    @rule(length=st.integers(1, 1100))
    def send(self, length: int) -> None:
        at = self.places.find(length)
        assert at == self.places.find(length)  # looking takes nothing
        if at is None:
            assert not self.lowest_gap(length)
            self.places.sent()
            self.frames.append(None)
            return
        assert at >= BEGIN
        assert at + length <= END
        assert at % ALIGNMENT == 0
        assert at == self.lowest_gap(length)
        self.places.sent(at, length)
        self.frames.append((at, at + length))

    @rule()
    def send_elsewhere(self) -> None:
        self.places.sent()
        self.frames.append(None)

    @precondition(lambda self: self.frames)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.frames)))
        self.places.done(count)
        del self.frames[:count]

    @rule()
    def too_much_is_done(self) -> None:
        self.places.done(len(self.frames) + 3)
        self.frames.clear()

    def lowest_gap(self, length: int) -> int | None:
        """The lowest aligned position where `length` bytes meet no other place."""
        taken = [frame for frame in self.frames if frame is not None]
        for at in range(BEGIN, END - length + 1, ALIGNMENT):
            if all(at + length <= begin or at >= end for begin, end in taken):
                return at
        return None

    @invariant()
    def no_overlap(self) -> None:
        taken = sorted(frame for frame in self.frames if frame is not None)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(taken))
        assert self.places.frames == len(self.frames)


TestPlaces = PlacesMachine.TestCase


def test_with_few_frames_under_way_the_same_place_is_used_again() -> None:
    places = Places(0, 2**20)
    for _ in range(100):
        assert places.find(4096) == 0
        places.sent(0, 4096)
        places.done(1)
    assert repr(places) == "<Places frames=0 taken=0 bytes=0>"
