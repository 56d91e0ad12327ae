"""The layer: tenants apart, budgets, validity, the alarm and the way back, and what survives a restart."""

import random
import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.cache.semantic.file import open_behind, open_file
from stagemesh.services.cache.semantic.layer import SemanticLayer

from stagemesh.errors import ConfigError
from stagemesh.invalidation import Selector
from stagemesh.v1 import semantic_pb2 as pb
from stagemesh.v1.registry_pb2 import Semantic

D = 8
RATE = 0.2


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def layer_of(clock=None, max_bytes=2**20):
    return SemanticLayer(max_bytes=max_bytes, default_ttl_s=60, clock=clock or Clock(), rng=random.Random(2))


def scope(revision="r1", model="m"):
    return pb.SemanticScope(model=model, revision=revision, encoder="e@1")


def wanted(**more):
    return Semantic(
        enabled=True, **({"allowed_false_hit_rate": RATE, "confidence": 0.8, "verify_share": 1.0} | more)
    )


def vector(number=0):
    found = np.zeros(D, np.float32)
    found[number % D] = 1.0
    return found.astype("<f4").tobytes()


def keep(layer, text="What is the capital of France?", *, key=b"k", tenant="t", partition=b"p", at=0, **more):
    request = pb.SemanticKeepRequest(
        tenant=tenant,
        scope=scope(more.pop("revision", "r1")),
        partition=partition * 32,
        key=key * 32,
        vector=vector(at),
        text=text,
        **({"tags": ["model:m", "revision:r1"]} | more),
    )
    return layer.keep(request)


def find(
    layer,
    text="Tell me the capital of France.",
    *,
    tenant="t",
    partition=b"p",
    at=0,
    settings=None,
    revision="r1",
):
    request = pb.SemanticFindRequest(
        tenant=tenant,
        scope=scope(revision),
        settings=settings or wanted(),
        partition=partition * 32,
        vector=vector(at),
        text=text,
    )
    return layer.find(request)


def judge(layer, *, same=True, served=False, key=b"k", similarity=0.99):
    request = pb.SemanticJudgeRequest(
        tenant="t",
        scope=scope(),
        settings=wanted(),
        partition=b"p" * 32,
        key=key * 32,
        similarity=similarity,
        kind="same",
        served=served,
        kept_answer="yes",
        real_answer="yes" if same else "no",
    )
    return layer.judge(request)


def taught(layer, samples=20):
    for _ in range(samples):
        judge(layer)


def test_from_nothing_to_serving_to_an_alarm_and_back():
    layer = layer_of()
    keep(layer)
    found = find(layer)
    assert (found.serve, found.reason, found.judge, found.false_hit_bound) == (False, "learning", True, 1.0)
    taught(layer)
    found = find(layer)
    assert found.serve
    assert found.false_hit_bound <= RATE
    (report,) = layer.report("m").models
    assert report.semantic.state == "serving"
    assert [band.serves for band in report.semantic.bands] == [True]
    # Far more evidence than errors: the bound alone would take long to rise.
    for _ in range(3000):
        judge(layer)
    wrong = 0
    while layer.report("m").models[0].semantic.state == "serving":
        judge(layer, same=False, served=True, key=b"o")
        wrong += 1
    assert wrong < 12
    report = layer.report("m").models[0].semantic
    assert (report.state, report.alarms, report.false_hits) == ("off (alarm)", 1, wrong)
    assert not find(layer).serve
    # New evidence brings it back, the old does not count.
    taught(layer, 5)
    assert not find(layer).serve
    taught(layer, 20)
    assert find(layer).serve
    assert layer.report("m").models[0].semantic.state == "serving"


def test_the_operator_decides():
    layer = layer_of()
    keep(layer)
    taught(layer)

    def order(what):
        return layer.switch(pb.SemanticSwitchRequest(model="m", order=what))

    assert order(pb.SEMANTIC_ORDER_OFF) == 1
    assert not find(layer).serve
    taught(layer, 5)  # it goes on learning
    assert not find(layer).serve
    order(pb.SEMANTIC_ORDER_ON)
    assert find(layer).serve
    order(pb.SEMANTIC_ORDER_RESET)
    assert find(layer).reason == "learning"
    assert layer.switch(pb.SemanticSwitchRequest(model="unknown", order=pb.SEMANTIC_ORDER_OFF)) == 0


def test_an_entry_that_was_wrong_is_not_given_to_those_as_far_from_it():
    layer = layer_of()
    keep(layer)
    taught(layer, 200)
    judge(layer, same=False, similarity=0.96)
    assert find(layer).serve  # as alike as can be
    judge(layer, same=False, similarity=0.96)
    assert find(layer).reason == "wrong before"
    assert not find(layer).judge
    keep(layer)  # another answer, which may be right
    assert find(layer).serve


@settings(max_examples=40, deadline=None)
@given(
    kept=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 5)), max_size=20),
    asked=st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")),
)
def test_no_tenant_and_no_partition_sees_anothers(kept, asked):
    layer = layer_of()
    taught(layer)
    for tenant, partition, number in kept:
        owner = f"{tenant}{partition}".encode()
        keep(
            layer,
            key=bytes([owner[0] ^ owner[1], number]) * 16,
            tenant=tenant,
            partition=partition.encode(),
            at=0,
        )
        layer.rows.changed.clear()
    tenant, partition = asked
    found = find(layer, tenant=tenant, partition=partition.encode())
    mine = {
        bytes([tenant.encode()[0] ^ partition.encode()[0], number]) * 16 * 32
        for owner, where, number in kept
        if (owner, where) == asked
    }
    assert bool(found.key) == bool(mine)
    assert not found.key or found.key in mine


def test_time_and_invalidation_and_another_revision_reach_it():
    clock = Clock()
    layer = layer_of(clock)
    keep(layer, ttl_s=5)
    assert find(layer).key
    clock.now += 6
    assert not find(layer).key
    keep(layer, tags=["model:m", "revision:r1", "namespace:n"])
    assert layer.invalidate(Selector(tags=frozenset({"namespace:other"}))) == 0
    assert layer.invalidate(Selector(prefix="namespace:")) == 1
    assert not find(layer).key
    keep(layer)
    assert layer.invalidate(Selector(tenant="someone")) == 0
    assert layer.deployed("m", ["r1", "r2"]) == 0
    assert find(layer).key
    assert layer.deployed("m", ["r2"]) == 1
    assert not layer.scopes
    assert len(layer.rows) == 0
    assert layer.rows.bytes_used == 0


def test_it_keeps_within_its_budget_and_drops_what_nobody_asked_for():
    layer = layer_of(max_bytes=20_000)
    for number in range(40):
        keep(
            layer,
            f"What is the capital of Zone{number}?",
            key=bytes([number + 1]),
            partition=bytes([number + 1]),
        )
        find(layer, "What is the capital of Zone0?", partition=b"\x01")
    assert layer.rows.bytes_used <= 20_000
    assert layer.rows.evicted == 40 - len(layer.rows)
    assert find(layer, "What is the capital of Zone0?", partition=b"\x01").key
    assert keep(layer, "x" * 3000).reason == "larger than the budget"


@pytest.mark.parametrize(("data", "text"), [(b"\0" * 4 * D, "What is it?"), (vector(), "...")])
def test_what_cannot_be_compared_is_not_kept(data, text):
    layer = layer_of()
    request = pb.SemanticKeepRequest(
        tenant="t", scope=scope(), partition=b"p" * 32, key=b"k" * 32, vector=data, text=text
    )
    assert not layer.keep(request).kept
    assert len(layer.rows) == 0
    other = pb.SemanticFindRequest(
        tenant="t", scope=scope(), partition=b"p" * 32, vector=vector() + vector(), text="a"
    )
    keep(layer)
    assert "numbers" in layer.find(other).reason


def usage(lookups, hits):
    return pb.CacheUsageRequest(
        usage=[pb.CacheUsage(model="m", lookups=lookups, exact_hits=hits, tokens_saved=7)]
    )


def test_everything_survives_a_restart(tmp_path):
    path = tmp_path / "c.semantic"
    layer = layer_of()
    file = open_behind(path, layer)
    keep(layer)
    keep(layer, "Who wrote Hamlet?", key=b"h", at=1)
    taught(layer, 50)
    judge(layer, same=False, similarity=0.97)
    judge(layer, same=False, similarity=0.97, served=True)
    layer.count(usage(10, 4))
    file.write(layer.take_changes())
    layer.invalidate(Selector(prefix="none"))
    layer.rows._drop((("t", b"p" * 32), b"h" * 32))
    file.write(layer.take_changes())
    before = layer.report().models[0]
    file.close()
    again = layer_of()
    open_behind(path, again).close()
    assert again.report().models[0] == before
    assert find(again).reason == "wrong before"
    assert not find(again, "Who wrote Hamlet?", at=1).key
    assert not again.take_changes().rows


def test_a_damaged_file_is_set_aside_and_nothing_of_it_is_believed(tmp_path, caplog):
    path = tmp_path / "c.semantic"
    layer = layer_of()
    file = open_behind(path, layer)
    keep(layer)
    taught(layer)
    file.write(layer.take_changes())
    file.close()
    base = sqlite3.connect(path)
    base.execute("UPDATE records SET value = value || x'00' WHERE kind = 3")
    base.commit()
    base.close()
    again = layer_of()
    open_behind(path, again).close()
    assert "corrupt" in caplog.text
    assert not again.scopes
    assert not len(again.rows)
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1


def test_a_file_in_use_or_of_another_kind_is_refused(tmp_path):
    file, _ = open_file(tmp_path / "one")
    with pytest.raises(ConfigError, match="another process"):
        open_file(tmp_path / "one")
    file.close()
    base = sqlite3.connect(tmp_path / "two")
    base.execute("CREATE TABLE things (a)")
    base.commit()
    base.close()
    with pytest.raises(ConfigError, match="something else"):
        open_file(tmp_path / "two")
