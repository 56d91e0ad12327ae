import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemesh.errors import InvalidArgument
from stagemesh.invalidation import Lately, Selector, selector_of
from stagemesh.v1.cache_pb2 import CacheInvalidateRequest

TAGS = st.sampled_from(["model:x", "model:y", "namespace:team/a", "tag:q"])
SELECTORS = st.builds(
    Selector,
    st.sampled_from(["", "a", "b"]),
    st.frozensets(TAGS, max_size=2),
    st.sampled_from(["", "model:", "namespace:team/"]),
)


@given(
    st.lists(st.tuples(st.integers(0, 20), SELECTORS), max_size=12),
    st.sampled_from(["a", "b"]),
    st.frozensets(TAGS, max_size=3),
    st.integers(0, 30),
)
def test_an_answer_begun_before_what_drops_it_is_outdated(
    heard: list[tuple[int, Selector]], tenant: str, tags: frozenset[str], begun: int
) -> None:
    lately = Lately(keep_s=1000, at_most=100)
    heard.sort(key=lambda each: each[0])
    for at, selector in heard:
        lately.add(selector, at)
    assert lately.covers(tenant, tags, begun) == any(
        at >= begun and selector.fits(tenant, tags) for at, selector in heard
    )


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(0, 30))
def test_what_is_no_longer_known_counts_as_everything(times: list[int], begun: int) -> None:
    lately = Lately(keep_s=10, at_most=5)
    for at in sorted(times):
        lately.add(Selector(tags=frozenset({"none"})), at)
    kept = [at for at in sorted(times)[-5:] if max(times) - at <= 10]
    forgotten = sorted(times)[: len(times) - len(kept)]
    assert lately.covers("a", {"model:x"}, begun) == any(begun <= at for at in forgotten)


def test_a_selector_from_a_request() -> None:
    request = CacheInvalidateRequest(tenant="t", tag="a", tags=["b", "a"], prefix="p")
    assert selector_of(request) == Selector("t", frozenset({"a", "b"}), "p")
    assert selector_of(CacheInvalidateRequest()) == Selector()
    for wrong, field in (
        (CacheInvalidateRequest(tags=[""]), "tags"),
        (CacheInvalidateRequest(tag="x" * 257), "tags"),
        (CacheInvalidateRequest(tags=[str(i) for i in range(17)]), "tags"),
        (CacheInvalidateRequest(prefix="x" * 257), "prefix"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            selector_of(wrong)
        assert caught.value.field == field
