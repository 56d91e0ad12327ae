from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stagemesh.services.stage.partition.blocks import Blocks

from stagemesh.prefix import BLOCK, digests

TOTAL = 12


def prompt(kind: int, blocks: int) -> list[bytes]:
    """Digests of a prompt; prompts of one kind share their beginning."""
    return digests([kind] * (blocks * BLOCK))


class Holders(RuleBasedStateMachine):
    """Sessions come and go; what they wrote is tracked beside `Blocks` as block -> digest of its content."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Blocks(TOTAL)
        self.held: list[tuple[list[int], list[bytes], int]] = []
        self.content: dict[int, bytes] = {}

    @rule(kind=st.integers(0, 2), length=st.integers(0, 5), extra=st.integers(0, 3), reuse=st.integers(0, 5))
    def take(self, kind: int, length: int, extra: int, reuse: int) -> None:
        names = prompt(kind, length)
        shared = names[: min(reuse, self.blocks.known(names))]
        before = (self.blocks.used, self.blocks.available)
        got = self.blocks.take(length + extra, shared)
        if got is None:
            assert (self.blocks.used, self.blocks.available) == before
            return
        assert len(got) == length + extra == len(set(got))
        for block, digest in zip(got, shared, strict=False):
            assert self.content[block] == digest  # nobody wrote over it meanwhile
        mine = {b for blocks, _, _ in self.held for b in blocks}
        assert not mine & set(got[len(shared) :])
        for block in got[len(shared) :]:
            self.content[block] = b"in progress"
        self.held.append((got, names, len(shared)))

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 20))
    def write(self, index: int) -> None:
        blocks, names, shared = self.held[index % len(self.held)]
        for block, digest in list(zip(blocks, names, strict=False))[shared:]:
            self.content[block] = digest
            self.blocks.name(block, digest)

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 20))
    def release(self, index: int) -> None:
        blocks, _, _ = self.held.pop(index % len(self.held))
        self.blocks.release(blocks)

    @invariant()
    def counts_fit(self) -> None:
        held = {b for blocks, _, _ in self.held for b in blocks}
        assert self.blocks.used == len(held)
        assert self.blocks.available == TOTAL - len(held)


Holders.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHolders = Holders.TestCase


def test_blocks_side_by_side_are_preferred() -> None:
    blocks = Blocks(6)
    first, second, third = (blocks.take(n) for n in (1, 2, 3))
    assert (first, second, third) == ([0], [1, 2], [3, 4, 5])
    blocks.release([0])
    blocks.release([3, 4, 5])
    assert blocks.take(2) == [3, 4]
    assert blocks.take(2) == [0, 5]
    assert blocks.take(1) is None


def test_the_longest_unused_is_forgotten_first_and_ends_before_beginnings() -> None:
    blocks = Blocks(4)
    names = prompt(1, 4)
    taken = blocks.take(4)
    assert taken is not None
    for block, digest in zip(taken, names, strict=True):
        blocks.name(block, digest)
    blocks.release(taken)
    assert blocks.known(names) == 4
    assert blocks.take(1) is not None
    assert blocks.known(names) == 3


@given(st.lists(st.integers(0, 2**32 - 1), max_size=70), st.integers(0, 70))
def test_digests_depend_on_everything_before(tokens: list[int], at: int) -> None:
    found = digests(tokens)
    assert len(found) == len(tokens) // BLOCK
    if at < len(tokens):
        changed = digests([*tokens[:at], tokens[at] ^ 1, *tokens[at + 1 :]])
        same = [a == b for a, b in zip(found, changed, strict=True)]
        assert same == [index < at // BLOCK for index in range(len(found))]
