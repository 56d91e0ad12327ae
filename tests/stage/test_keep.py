"""Which kept partitions go first, and that no more memory is taken than may be."""

from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.stage.warm.keep import HALF_LIFE_S, Keep

puts = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"),
        st.integers(1, 60),
        st.floats(0.01, 100.0),
        st.sampled_from(["put", "put", "put", "take", "shrink"]),
    ),
    max_size=60,
)


@given(limit=st.integers(0, 120), steps=puts)
def test_every_value_is_kept_given_out_or_given_up_exactly_once(limit: int, steps: list) -> None:
    keep: Keep[str, int] = Keep(limit)
    held: dict[str, tuple[int, int]] = {}
    for number, (key, nbytes, cost_s, what) in enumerate(steps):
        if what == "put":
            gone = keep.put(key, number + 1, nbytes, cost_s, float(number))
            before = {**held}
            old = held.pop(key, None)
            held[key] = number + 1, nbytes
            known = {value for value, _ in held.values()} | ({old[0]} if old else set())
            assert set(gone) <= known
            assert old is None or old[0] in gone
            held = {name: each for name, each in held.items() if each[0] not in gone}
            assert len(set(gone)) == len(gone)
            assert before.keys() | {key} >= held.keys()
        elif what == "take":
            found = keep.take(key)
            expected = held.pop(key, None)
            assert found == (expected[0] if expected else None)
        else:
            gone = keep.shrink(nbytes)
            held = {name: each for name, each in held.items() if each[0] not in gone}
            assert keep.bytes <= nbytes
        assert keep.sizes() == {name: each[1] for name, each in held.items()}
        assert keep.bytes == sum(each[1] for each in held.values()) <= limit


@given(
    nbytes=st.lists(st.integers(1, 10), min_size=2, max_size=6),
    cost_s=st.lists(st.floats(0.1, 50), min_size=6, max_size=6),
)
def test_of_those_used_once_the_one_goes_that_is_loaded_soonest_for_its_room(
    nbytes: list[int], cost_s: list[float]
) -> None:
    keep: Keep[int, int] = Keep(10**6)
    for index, size in enumerate(nbytes):
        keep.put(index, index + 1, size, cost_s[index], 0.0)
    order = [value - 1 for value in keep.shrink(0)]
    worth = [cost_s[index] / nbytes[index] for index in order]
    assert worth == sorted(worth)


def test_what_is_used_again_and_again_outlives_what_was_used_once() -> None:
    keep: Keep[str, str] = Keep(20)
    for now in range(3):
        keep.put("often", "often", 10, 1.0, float(now))
        keep.take("often")
    keep.put("often", "often", 10, 1.0, 3.0)
    keep.put("once", "once", 10, 2.0, 4.0)
    assert keep.put("new", "new", 10, 3.0, 5.0) == ["once"]
    assert "often" in keep


def test_what_was_used_long_ago_sinks_below_what_came_since() -> None:
    keep: Keep[str, str] = Keep(20)
    keep.put("dear", "dear", 10, 5.0, 0.0)
    gone = []
    for number in range(30):
        gone += keep.put(f"cheap{number}", f"cheap{number}", 10, 1.0, float(number))
    # An LRU would have lost it at once, a list by cost alone never.
    assert gone.index("dear") > 2


def test_uses_fade() -> None:
    keep: Keep[str, str] = Keep(20)
    for _ in range(8):
        keep.put("once loved", "x", 10, 1.0, 0.0)
    keep.take("once loved")
    later = 20 * HALF_LIFE_S
    keep.put("once loved", "x", 10, 1.0, later)
    keep.put("now", "now", 10, 1.5, later)
    assert keep.put("new", "new", 10, 9.0, later) == ["x"]


def test_larger_than_all_of_it_is_not_kept_and_costs_nobody() -> None:
    keep: Keep[str, str] = Keep(20)
    keep.put("a", "a", 15, 1.0, 0.0)
    assert keep.put("b", "b", 21, 100.0, 1.0) == ["b"]
    assert "a" in keep
