"""Places in a segment never overlap, come back in any order, and are used whenever there is room."""

import itertools

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stagemesh.services.stage.shared_memory_places import ALIGNMENT, Places

BEGIN, END, SLOTS = 64, 64 + 1000, 6


class PlacesMachine(RuleBasedStateMachine):
    """Against the plainest model: the places of all payloads under way by number."""

    def __init__(self) -> None:
        super().__init__()
        self.places = Places(BEGIN, END, SLOTS)
        self.model: dict[int, tuple[int, int]] = {}
        self.sent = 0

    @rule(length=st.integers(1, 1100))
    def send(self, length: int) -> None:
        at = self.places.find(length)
        assert at == self.places.find(length)  # looking takes nothing
        assert at == self.lowest_gap(length)
        if at is None:
            return
        assert self.places.take(at, length) == self.sent
        self.model[self.sent] = (at, at + length)
        self.sent += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model)))
        self.places.free(number)
        del self.model[number]

    def lowest_gap(self, length: int) -> int | None:
        """The lowest aligned position where `length` bytes meet no other place."""
        if any(number % SLOTS == self.sent % SLOTS for number in self.model):
            return None
        for at in range(BEGIN, END - length + 1, ALIGNMENT):
            if all(at + length <= begin or at >= end for begin, end in self.model.values()):
                return at
        return None

    @invariant()
    def no_overlap(self) -> None:
        taken = sorted(self.model.values())
        assert all(begin >= BEGIN and end <= END and begin % ALIGNMENT == 0 for begin, end in taken)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(taken))
        assert list(self.places.taken) == sorted(self.model)


TestPlaces = PlacesMachine.TestCase


def test_with_few_frames_under_way_the_same_place_is_used_again() -> None:
    places = Places(0, 2**20, 8)
    for number in range(100):
        assert places.find(4096) == 0
        assert places.take(0, 4096) == number
        places.free(number)
    assert repr(places) == "<Places next=100 taken=0 bytes=0>"
