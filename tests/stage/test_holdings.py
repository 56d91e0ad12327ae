"""What a pool says of its blocks, against what it holds."""

from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.stage.partition.blocks import Blocks
from stagemesh.services.stage.partition.holdings import parts

from stagemesh.prefix import BLOCK, SHORT_BYTES, digests
from stagemesh.v1.stage_pb2 import PrefixReport

TOTAL = 12


def prompt(kind: int, blocks: int) -> list[bytes]:
    return digests([kind] * (blocks * BLOCK))


def run(blocks: Blocks, kind: int, length: int, keep: bool) -> list[int] | None:
    """A session that writes its whole prompt, and leaves unless it is to be kept."""
    names = prompt(kind, length)
    taken = blocks.take(length, names[: blocks.known(names)])
    if taken is None:
        return None
    for block, digest in zip(taken, names, strict=True):
        blocks.name(block, digest)
    if not keep:
        blocks.release(taken)
    return taken


class Follower:
    """What somebody believes who applies reports as they come."""

    def __init__(self) -> None:
        self.held: set[bytes] = set()
        self.sequence: int | None = None

    def hear(self, message: PrefixReport) -> None:
        def split(joined: bytes) -> set[bytes]:
            return {joined[at : at + SHORT_BYTES] for at in range(0, len(joined), SHORT_BYTES)}

        if message.full:
            self.held = set()
        self.held = (self.held - split(message.dropped)) | split(message.held)
        self.sequence = message.sequence


def now(blocks: Blocks) -> set[bytes]:
    known = {digest for kind in range(20) for digest in prompt(kind, 8) if blocks.known([digest])}
    return {digest[:SHORT_BYTES] for digest in known}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 19), st.integers(1, 8), st.booleans(), st.booleans(), st.booleans()),
        max_size=40,
    ),
    st.integers(1, 5),
    st.sampled_from([0, 3, 1000]),
)
def test_whoever_follows_knows_what_is_held(
    steps: list[tuple[int, int, bool, bool, bool]], most: int, log: int
) -> None:
    """Sessions come and go, more than there is room for; one follower asks after each, one now and then, one forgets."""
    blocks = Blocks(TOTAL)
    blocks.holdings._log = type(blocks.holdings._log)(maxlen=log)
    eager, lazy, forgetful = Follower(), Follower(), Follower()
    kept: list[list[int]] = []
    for kind, length, keep, late, forgets in steps:
        taken = run(blocks, kind, length, keep)
        if taken is not None and keep:
            kept.append(taken)
        elif kept:
            blocks.release(kept.pop(0))
        for follower, asks in ((eager, True), (lazy, late), (forgetful, not late)):
            if asks:
                since = None if follower is forgetful and forgets else follower.sequence
                for message in parts(blocks.holdings.report(since), most):
                    follower.hear(message)
                assert follower.held == now(blocks)
                assert follower.sequence == blocks.holdings.sequence


def test_a_report_tells_only_what_was_missed_and_everything_when_that_is_forgotten() -> None:
    blocks = Blocks(TOTAL)
    run(blocks, 1, 4, keep=False)
    since = blocks.holdings.sequence
    assert since == 4
    run(blocks, 2, 3, keep=False)
    report = blocks.holdings.report(since)
    assert (report.full, sorted(report.held), report.dropped) == (False, sorted(prompt(2, 3)), [])
    assert blocks.holdings.report(report.sequence).held == []
    run(blocks, 3, 8, keep=False)  # takes the room of what was longest unused
    report = blocks.holdings.report(since)
    assert set(prompt(3, 8)) <= set(report.held)
    assert report.dropped, "what went is told"
    assert not set(report.dropped) & set(report.held)
    blocks.holdings._log = type(blocks.holdings._log)(blocks.holdings._log, maxlen=2)
    assert blocks.holdings.report(since).full
    assert blocks.holdings.report(10**9).full, "a number from before a restart, say"


def test_long_reports_come_in_parts() -> None:
    blocks = Blocks(TOTAL)
    assert [part.full for part in parts(blocks.holdings.report(None))] == [True], "an empty pool says so"
    run(blocks, 1, 7, keep=True)
    messages = list(parts(blocks.holdings.report(None), most=3))
    assert [len(each.held) // SHORT_BYTES for each in messages] == [3, 3, 1]
    assert [each.full for each in messages] == [True, False, False]
    assert [each.more for each in messages] == [True, True, False]
