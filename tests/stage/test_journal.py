"""A journal holds exactly what was sent last for each position, or nothing."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.stage.journal import CHUNK, Journals

from stagemesh.tensor import TensorView
from stagemesh.v1.tensor_pb2 import Tensor

WIDTH = 3
ROW = WIDTH * 4


def view(array: np.ndarray) -> TensorView:
    return TensorView("F32", array.shape, memoryview(array.tobytes()))


def side(ids: np.ndarray) -> Tensor:
    return Tensor(name="ids", dtype="I64", shape=ids.shape, data=ids.tobytes())


def read(journal) -> tuple[np.ndarray, np.ndarray]:
    """Rows and ids of every position, from the frames that would be sent."""
    hidden, ids, at = [], [], journal.start
    for position, count, tensor, sides in journal.chunks():
        assert position == at
        assert count <= CHUNK
        at += count
        assert tensor.shape == (count, WIDTH)
        hidden.append(np.frombuffer(tensor.data, np.float32).reshape(count, WIDTH))
        ids.extend(np.frombuffer(each.data, np.int64) for each in sides)
    assert at == journal.end
    return np.concatenate(hidden or [np.empty((0, WIDTH))]), np.concatenate(ids or [np.empty(0)])


@given(st.integers(0, 2**32), st.booleans(), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_it_holds_what_was_sent_last_for_each_position(seed: int, with_sides: bool, start: int) -> None:
    rng = random.Random(seed)
    journals = Journals(10**9)
    truth: dict[int, dict[int, tuple[float, int]]] = {}
    for session in (1, 2):
        journals.open(session, start)
        truth[session] = {}
    value = 0
    for _ in range(rng.randrange(40)):
        sent = [(session, rng.randrange(1, 4)) for session in (1, 2) if rng.random() < 0.8]
        rows = sum(count for _, count in sent)
        if not rows:
            continue
        hidden = np.arange(value, value + rows, dtype=np.float32)[:, None].repeat(WIDTH, axis=1)
        ids = np.arange(value, value + rows)
        value += rows
        at = 0
        for session, count in sent:
            end = start + len(truth[session])
            position = rng.choice([end, end, rng.randint(start, end)])  # sometimes it goes back
            sides = [side(ids)] if with_sides else []
            journals.add(session, position, at, count, view(hidden), sides)
            truth[session] = {p: v for p, v in truth[session].items() if p < position}
            for offset in range(count):
                truth[session][position + offset] = (float(hidden[at + offset, 0]), int(ids[at + offset]))
            at += count
    for session, expected in truth.items():
        journal = journals.get(session)
        hidden, ids = read(journal)
        assert [row[0] for row in hidden] == [expected[p][0] for p in sorted(expected)]
        assert (hidden == hidden[:, :1]).all()
        if with_sides:
            assert list(ids) == [expected[p][1] for p in sorted(expected)]
    assert journals.used_bytes == sum(journals.get(session).nbytes for session in truth)
    journals.forget(1)
    journals.forget(2)
    assert journals.used_bytes == 0


def test_a_journal_of_many_rows_is_replayed_in_frames_of_a_bounded_size() -> None:
    journals = Journals(10**9)
    journals.open(1, 7)
    rows = np.arange(3 * CHUNK + 5, dtype=np.float32)[:, None].repeat(WIDTH, axis=1)
    journals.add(1, 7, 0, len(rows), view(rows), [])
    chunks = list(journals.get(1).chunks())
    assert [(position, count) for position, count, _, _ in chunks] == [
        (7, CHUNK),
        (7 + CHUNK, CHUNK),
        (7 + 2 * CHUNK, CHUNK),
        (7 + 3 * CHUNK, 5),
    ]
    journals.add(1, journals.get(1).end, 0, 1, view(rows), [])  # it may grow while they are on their way
    assert (read(journals.get(1))[0][:-1] == rows).all()


def test_who_outgrows_the_budget_loses_the_journal_and_the_others_keep_theirs() -> None:
    journals = Journals(10 * ROW)
    row = view(np.zeros((1, WIDTH), np.float32))
    for session in (1, 2):
        journals.open(session, 0)
        for position in range(5):
            journals.add(session, position, 0, 1, row, [])
    assert journals.used_bytes == 10 * ROW
    journals.add(1, 5, 0, 1, row, [])
    assert journals.get(1) is None
    assert journals.get(2).end == 5
    assert (journals.used_bytes, journals.dropped) == (5 * ROW, 1)
    journals.add(1, 6, 0, 1, row, [])  # as if nothing had been
    assert journals.used_bytes == 5 * ROW


def test_a_gap_is_never_papered_over() -> None:
    journals = Journals(10**6)
    journals.open(1, 4)
    row = view(np.zeros((1, WIDTH), np.float32))
    journals.add(1, 5, 0, 1, row, [])
    assert journals.get(1) is None
    assert journals.dropped == 1


@pytest.mark.parametrize("budget", [0])
def test_none_is_kept_without_a_budget(budget: int) -> None:
    journals = Journals(budget)
    journals.open(1, 0)
    journals.add(1, 0, 0, 1, view(np.zeros((1, WIDTH), np.float32)), [])
    assert journals.get(1) is None
    assert (journals.used_bytes, journals.dropped) == (0, 0)
