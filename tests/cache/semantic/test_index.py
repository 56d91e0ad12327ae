"""The index against brute force, with deletions, and apart by partition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.cache.semantic.index import CANDIDATES, SemanticIndex

D = 96


def units(rng, n, d=D):
    found = rng.standard_normal((n, d)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def name(number):
    return int(number).to_bytes(4, "little")


def filled(vectors, partition="p"):
    index = SemanticIndex()
    for number, vector in enumerate(vectors):
        index.add(partition, name(number), vector)
    return index


def test_it_finds_what_brute_force_finds_among_thousands():
    rng = np.random.default_rng(1)
    topics = units(rng, 100) + 0.05  # with a direction that they share
    vectors = topics[rng.integers(0, 100, 20_000)] + 0.9 * units(rng, 20_000)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = filled(vectors)
    asked = vectors[rng.integers(0, 20_000, 200)] + 0.5 * units(rng, 200)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    similarities = asked @ vectors.T
    found = [index.nearest("p", vector)[0] for vector in asked]
    right = [each.key == name(best) for each, best in zip(found, similarities.argmax(1), strict=True)]
    assert np.mean(right) >= 0.99
    assert np.allclose([each.similarity for each in found], similarities.max(1), atol=2e-3)
    assert index.nbytes < 20_000 * 4 * D * 2


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 900), d=st.sampled_from([1, 8, 64, 70]))
def test_after_any_adding_and_deleting_it_knows_exactly_what_is_left(seed, steps, d):
    rng = np.random.default_rng(seed)
    index, held = SemanticIndex(), {}
    for _ in range(steps):
        partition, key = int(rng.integers(2)), name(rng.integers(400))
        if rng.random() < 0.25:
            index.discard(partition, key)
            held.pop((partition, key), None)
        else:
            (vector,) = units(rng, 1, d)
            index.add(partition, key, 3 * vector)
            held[partition, key] = vector
    assert len(index) == len(held)
    for partition in (0, 1):
        mine = {key: vector for (whose, key), vector in held.items() if whose == partition}
        (asked,) = units(rng, 1, d)
        found = index.nearest(partition, asked, 3)
        assert {each.key for each in found} <= set(mine)
        assert len(found) == min(3, len(mine))
        if 0 < len(mine) <= CANDIDATES:
            expected = sorted((float(vector @ asked) for vector in mine.values()), reverse=True)[:3]
            assert [each.similarity for each in found] == pytest.approx(expected, abs=2e-3)
        for key, vector in list(mine.items())[:5]:  # what is there is found by itself
            assert index.nearest(partition, vector)[0].similarity == pytest.approx(1, abs=2e-3) or d == 1
            assert any(each.key == key for each in index.nearest(partition, vector, len(mine))) or d == 1


def test_a_partition_knows_nothing_of_another():
    rng = np.random.default_rng(2)
    (vector,) = units(rng, 1)
    index = filled([vector], "one")
    assert index.nearest("two", vector) == []
    index.add("two", b"k", -vector)
    assert index.nearest("two", vector)[0].similarity == pytest.approx(-1, abs=1e-3)
    index.discard("two", b"k")
    index.discard("two", b"k")
    assert index.nearest("two", vector) == []
    assert len(index) == 1


@pytest.mark.parametrize("bad", [np.zeros(D), np.full(D, np.nan), np.array([]), np.full(D, np.inf)])
def test_what_has_no_direction_is_refused(bad):
    index = SemanticIndex()
    with pytest.raises(ValueError, match="direction"):
        index.add("p", b"k", bad)
    assert len(index) == 0


def test_vectors_of_two_lengths_do_not_mix():
    index = filled(np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="5 numbers"):
        index.add("p", b"k", np.ones(5))
    with pytest.raises(ValueError, match="5 numbers"):
        index.nearest("p", np.ones(5))


def test_room_is_given_back():
    rng = np.random.default_rng(3)
    index = filled(units(rng, 5000))
    full = index.nbytes
    for number in range(4990):
        index.discard("p", name(number))
    assert index.nbytes < full / 50
    assert {each.key for each in index.nearest("p", units(rng, 1)[0], 20)} == {
        name(n) for n in range(4990, 5000)
    }
