"""A journal holds exactly what was sent last for each position, or nothing."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.stage.journal import CHUNK, Journals

from stagemesh.prefix import BLOCK
from stagemesh.tensor import TensorView
from stagemesh.v1.tensor_pb2 import Tensor

WIDTH = 3
ROW = WIDTH * 4


def view(array: np.ndarray) -> TensorView:
    return TensorView("F32", array.shape, memoryview(array.tobytes()))


def side(ids: np.ndarray) -> Tensor:
    return Tensor(name="ids", dtype="I64", shape=ids.shape, data=ids.tobytes())


def wide(values) -> np.ndarray:
    return np.array(values, np.float32)[:, None].repeat(WIDTH, axis=1)


def read(journals: Journals, session: int) -> tuple[int, list[float], list[int]]:
    """Where a journal starts, and rows and ids of every position of the frames that would be sent."""
    journal = journals.get(session)
    rows, ids, at = [], [], journal.start
    for position, count, tensor, sides in journals.chunks(session, journal.end):
        assert position == at
        assert count <= CHUNK
        at += count
        assert tensor.shape == (count, WIDTH)
        hidden = np.frombuffer(tensor.data, np.float32).reshape(count, WIDTH)
        assert (hidden == hidden[:, :1]).all()
        rows.extend(hidden[:, 0])
        for each in sides:
            ids.extend(np.frombuffer(each.data, np.int64))
    assert at == journal.end
    return journal.start, rows, ids


def digests(prompt: int, length: int) -> list[bytes]:
    return [f"{prompt}-{index}".encode() for index in range(length // BLOCK)]


def value(prompt: int, length: int, position: int, session: int, version: int) -> float:
    """What is sent for a position: of a full block of a prompt the same whoever sends it."""
    if position < length // BLOCK * BLOCK:
        return float(prompt * 10_000 + position)
    return float(session * 1_000_000 + version * 1000 + position)


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=120, deadline=None)
def test_it_holds_what_was_sent_last_for_each_position(seed: int, with_sides: bool) -> None:
    rng = random.Random(seed)
    journals = Journals(rng.choice([10**9, 10**9, 150 * ROW]))
    lengths = [rng.randrange(1, 4 * BLOCK) for _ in range(2)]
    truth: dict[int, dict[int, float]] = {}
    started: dict[int, tuple[int, int]] = {}
    version = 0
    for _ in range(rng.randrange(60)):
        version += 1
        session = rng.randrange(4)
        if session not in truth or rng.random() < 0.1:
            if rng.random() < 0.3:
                journals.forget(session)
                truth.pop(session, None)
                continue
            prompt = rng.randrange(2)
            reused = rng.randrange(lengths[prompt] // BLOCK + 1) * BLOCK
            journals.open(session, digests(prompt, lengths[prompt]), reused)
            started[session] = (prompt, reused)
            truth[session] = {p: value(prompt, lengths[prompt], p, session, 0) for p in range(reused)}
            continue
        prompt, reused = started[session]
        end = len(truth[session])
        position = rng.choice([end, end, end, rng.randint(reused, end)])  # sometimes it goes back
        count = rng.choice([1, 1, 3, 40])
        sent = [value(prompt, lengths[prompt], position + n, session, version) for n in range(count)]
        sides = [side(np.array([-1, *sent, -1], np.int64))] if with_sides else []
        journals.add(session, position, 1, count, view(wide([-1, *sent, -1])), sides)
        truth[session] = {p: v for p, v in truth[session].items() if p < position}
        truth[session].update({position + n: each for n, each in enumerate(sent)})
        assert journals.used_bytes <= journals.budget_bytes
        own = {s: journals.get(s) for s in truth if journals.get(s) is not None}
        blocks = {id(b): b.nbytes for b in journals._blocks.values()}
        assert journals.used_bytes == sum(j.own_bytes for j in own.values()) + sum(blocks.values())
        for known in own:
            start, rows, ids = read(journals, known)
            expected = [truth[known][p] for p in range(start, len(truth[known]))]
            assert start in (0, started[known][1])
            assert rows == expected
            assert ids == (expected if with_sides else [])
            if expected:
                at = rng.randrange(start, start + len(expected))
                ((position, count, tensor, _),) = journals.chunks(known, at + 1, at)
                assert (position, count) == (at, 1)
                assert np.frombuffer(tensor.data, np.float32)[0] == truth[known][at]
    for session in list(truth):
        journals.forget(session)
    assert journals.used_bytes == sum(b.nbytes for b in journals._blocks.values())
    assert len(journals._unused) == len(journals._blocks)


def test_what_an_earlier_session_sent_of_a_prompt_is_still_there_for_the_next() -> None:
    journals = Journals(10**6)
    prompt = digests(0, 3 * BLOCK)
    journals.open(1, prompt)
    journals.add(1, 0, 0, 3 * BLOCK + 2, view(wide(range(3 * BLOCK + 2))), [])
    journals.forget(1)
    journals.open(2, prompt, 2 * BLOCK)
    journals.add(2, 2 * BLOCK, 0, 1, view(wide([500])), [])
    assert read(journals, 2) == (0, [*range(2 * BLOCK), 500], [])


def test_a_journal_of_many_rows_is_replayed_in_frames_of_a_bounded_size() -> None:
    journals = Journals(10**9)
    journals.open(1)
    rows = 3 * CHUNK + 5
    journals.add(1, 0, 0, rows, view(wide(range(rows))), [])
    chunks = journals.chunks(1, rows)
    first = next(chunks)
    journals.add(1, rows, 0, 1, view(wide([7])), [])  # it may grow while they are on their way
    assert [(position, count) for position, count, _, _ in [first, *chunks]] == [
        (0, CHUNK),
        (CHUNK, CHUNK),
        (2 * CHUNK, CHUNK),
        (3 * CHUNK, 5),
    ]
    assert read(journals, 1)[1] == [*range(rows), 7]


def test_who_outgrows_the_budget_loses_the_journal_and_the_others_keep_theirs() -> None:
    journals = Journals(10 * ROW)
    row = view(wide([0]))
    for session in (1, 2):
        journals.open(session)
        for position in range(5):
            journals.add(session, position, 0, 1, row, [])
    assert journals.used_bytes == 10 * ROW
    journals.add(1, 5, 0, 1, row, [])
    assert journals.get(1) is None
    assert journals.get(2).end == 5
    assert (journals.used_bytes, journals.dropped, journals.take_dropped()) == (5 * ROW, 1, 1)
    assert journals.take_dropped() == 0
    journals.add(1, 6, 0, 1, row, [])  # as if nothing had been
    assert journals.used_bytes == 5 * ROW


def test_blocks_that_nobody_needs_go_before_a_journal_does() -> None:
    journals = Journals((2 * BLOCK + 4) * ROW)
    for prompt in (0, 1):
        journals.open(prompt, digests(prompt, BLOCK))
        journals.add(prompt, 0, 0, BLOCK, view(wide(range(BLOCK))), [])
        journals.forget(prompt)
    journals.open(5)
    journals.add(5, 0, 0, 5, view(wide(range(5))), [])
    assert journals.get(5).end == 5
    assert list(journals._blocks) == digests(1, BLOCK)
    assert journals.dropped == 0


def test_a_gap_is_never_papered_over() -> None:
    journals = Journals(10**6)
    journals.open(1)
    journals.add(1, 5, 0, 1, view(wide([0])), [])
    assert journals.get(1) is None
    assert journals.dropped == 1


def test_none_is_kept_without_a_budget() -> None:
    journals = Journals(0)
    journals.open(1)
    journals.add(1, 0, 0, 1, view(wide([0])), [])
    assert journals.get(1) is None
    assert (journals.used_bytes, journals.dropped) == (0, 0)
