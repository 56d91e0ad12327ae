"""Copies of cached answers in a router: what of them may be given, and until when."""

import hashlib

import pytest
from stagemesh.services.router.cache.near import FRESH_S, SETTLE_S, NearCache

from stagemesh import records
from stagemesh.v1.cache_pb2 import CacheInvalidateRequest, CacheInvalidation, CacheLookupResponse
from stagemesh.v1.registry_pb2 import ModelSpec

KEY = hashlib.sha256(b"k").digest()
TAGS = ("model:m", "revision:r", "tag:doc")


class Near:
    """A near cache on a clock of the test's own, and a cache that has stored an entry at second 0."""

    def __init__(self, max_bytes=2**20):
        self.now = 1000.0
        self.informed = True
        self.near = NearCache(max_bytes, lambda: self.now, lambda: self.informed)
        self.near.listed({})
        self.now += 1000

    def keep(self, key=KEY, tenant="t", *, asked_at=None, age_s=500.0, left_s=3600.0, tags=TAGS, value=b"v"):
        answer = CacheLookupResponse(
            hit=True, value=value, digest=b"d", age_s=age_s, ttl_left_ms=int(left_s * 1000), tags=tags
        )
        return self.near.keep(tenant, key, answer, self.now if asked_at is None else asked_at)

    def has(self, key=KEY, tenant="t", max_age_s=None):
        return self.near.find(tenant, key, max_age_s) is not None

    def hear(self, name="one", **what):
        record = CacheInvalidation(what=CacheInvalidateRequest(**what))
        self.near.change(records.invalidation_key(name), records.to_json(record))


def spec(revision="r"):
    return records.to_json(ModelSpec(name="m", revision=revision))


def test_a_copy_is_its_tenants_and_its_keys():
    near = Near()
    assert not near.has()
    assert near.keep()
    assert near.near.find("t", KEY).value == b"v"
    assert not near.has(tenant="other")
    assert not near.has(key=bytes(32))


@pytest.mark.parametrize("left_s", [0.5, 3600])
def test_a_copy_is_asked_for_again_and_never_outlives_its_entry(left_s):
    near = Near()
    near.keep(left_s=left_s)
    near.now += min(left_s, FRESH_S) - 0.01
    assert near.has()
    near.now += 0.02
    assert not near.has()


def test_an_entry_whose_time_passed_on_its_way_is_no_copy():
    near = Near()
    assert not near.keep(left_s=0.0)
    assert not near.keep(left_s=2.0, asked_at=near.now - 2.1)
    assert not near.has()


def test_its_age_is_the_entrys():
    near = Near()
    near.keep(age_s=7.0)
    assert near.has(max_age_s=7)
    assert not near.has(max_age_s=6)
    near.now += 1.5
    assert not near.has(max_age_s=8)
    assert near.has()


@pytest.mark.parametrize(
    ("what", "fits"),
    [
        ({"tag": "tag:doc"}, True),
        ({"tags": ["model:m", "revision:r"]}, True),
        ({"prefix": "tag:d"}, True),
        ({"tenant": "t"}, True),
        ({}, True),
        ({"tenant": "other"}, False),
        ({"tag": "tag:other"}, False),
        ({"prefix": "namespace:"}, False),
    ],
)
def test_an_invalidation_drops_what_it_fits_and_what_it_finds_under_way(what, fits):
    near = Near()
    near.keep()
    asked_at = near.now
    near.now += 0.1
    near.hear(**what)
    assert near.has() is not fits
    # The answer to a lookup from before, and what a cache gives that has not heard of it yet.
    near.near.forget("t", KEY)
    near.now += 0.1
    assert near.keep(asked_at=asked_at) is not fits
    near.near.forget("t", KEY)
    assert near.keep(age_s=5.0) is not fits


def test_what_is_stored_right_after_an_invalidation_is_no_copy_yet():
    """The cache may have taken it because it had not heard: of an answer that was begun before."""
    near = Near()
    near.hear(tag="tag:doc")
    near.now += SETTLE_S + 5
    assert not near.keep(age_s=5.1)
    assert near.keep(age_s=4.9)


def test_a_record_that_cannot_be_read_means_everything():
    near = Near()
    near.keep()
    near.near.change(records.invalidation_key("x"), b"no record")
    assert not near.has()


def test_an_invalidation_counts_once_and_its_end_changes_nothing():
    near = Near()
    near.hear("one", tag="tag:doc")
    near.now += 10
    assert near.keep(age_s=1.0)
    near.hear("one", tag="tag:doc")
    near.near.change(records.invalidation_key("one"), None)
    assert near.has()
    near.hear("two", tag="tag:doc")
    assert not near.has()


def test_after_a_gap_no_copy_is_believed_and_what_was_missed_is_known():
    near = Near()
    near.keep()
    asked_at = near.now
    near.now += 1
    missed = CacheInvalidation(what=CacheInvalidateRequest(tag="tag:doc"))
    near.near.listed({records.invalidation_key("missed"): records.to_json(missed)})
    assert not near.has()
    other = bytes(32)
    assert not near.keep(other, asked_at=asked_at, tags=("model:m",))
    near.now += 2
    assert near.keep(other, tags=("model:m",))
    assert not near.keep()


def test_a_first_listing_tells_nothing_new():
    near = NearCache(2**20, lambda: 5000.0)
    old = records.to_json(CacheInvalidation(what=CacheInvalidateRequest()))
    near.listed({records.invalidation_key("old"): old})
    answer = CacheLookupResponse(hit=True, value=b"v", age_s=100.0, ttl_left_ms=10_000, tags=TAGS)
    assert near.keep("t", KEY, answer, 5000.1)


def test_a_redeployed_or_removed_model_takes_its_copies_with_it():
    near = Near()
    for value in (spec("r2"), None):
        near.keep()
        near.near.change(records.model_key("m"), spec("r"))
        assert near.has()
        asked_at = near.now
        near.now += 0.1
        near.near.change(records.model_key("m"), value)
        assert not near.has()
    # Removed and deployed again as it was: what was asked for before is of the removed one.
    assert not near.keep(asked_at=asked_at)


def test_without_etcd_no_copy_is_given():
    near = Near()
    near.keep()
    near.informed = False
    assert not near.has()
    near.informed = True
    assert near.has()


def test_copies_keep_to_their_budget():
    near = Near(2**16)
    kept = [near.keep(bytes([number]) * 32, value=bytes(3000)) for number in range(100)]
    assert all(kept)
    assert 0 < near.near.bytes_used <= 2**16
    assert near.has(bytes([99]) * 32)
    assert not near.has(bytes([0]) * 32)
    assert not near.keep(value=bytes(2**13)), "one entry must not push out all others"
    none = Near(0)
    assert not none.keep()
    assert not none.has()
