"""What the router knows of blocks, against the pools of stages that tell it: also when messages are lost on the way."""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stagemesh.services.router.prefixes import Prefixes, Reuse
from stagemesh.services.stage.partition.blocks import Blocks
from stagemesh.services.stage.partition.holdings import parts

from stagemesh.prefix import BLOCK, SHORT_BYTES, digests
from stagemesh.v1.stage_pb2 import PrefixReport

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ("a", "b", "c")


def prompt(kind, blocks):
    return digests([kind] * (blocks * BLOCK))


def short(blocks):
    return {int.from_bytes(digest[:SHORT_BYTES]) for digest in blocks}


def report(held=(), dropped=(), **more):
    join = lambda blocks: b"".join(digest[:SHORT_BYTES] for digest in blocks)  # noqa: E731
    return PrefixReport(held=join(held), dropped=join(dropped), **more)


def knowing(**held):
    prefixes = Prefixes()
    for name, blocks in held.items():
        assert prefixes.take(name, report(blocks, full=True, sequence=1))
    return prefixes


def run(pool, names):
    """A session that computes its prompt, and stays."""
    taken = pool.take(len(names), names[: pool.known(names)])
    for block, digest in zip(taken or (), names, strict=False):
        pool.name(block, digest)
    return taken


class Stream:
    """One router's stream from one pool: where the sender is; messages may be lost on the way, and that breaks it."""

    def __init__(self, name, pool, prefixes):
        self.name, self.pool, self.prefixes = name, pool, prefixes
        self.begin()

    def begin(self):
        self.since = None
        self.prefixes.begin(self.name)

    def send(self, most, lost=-1):
        for index, message in enumerate(parts(self.pool.holdings.report(self.since), most)):
            self.since = message.sequence
            if index == lost:
                continue
            if not self.prefixes.take(self.name, PrefixReport.FromString(message.SerializeToString())):
                self.begin()  # the router asks anew
                return


@RELAXED
@given(st.data())
def test_after_all_reports_the_router_knows_what_every_stage_holds(data):
    """Random sessions on three pools, two routers, lost messages, streams that break, and a replica that begins anew."""
    pools = {name: Blocks(data.draw(st.integers(2, 14))) for name in NAMES}
    routers = [Prefixes(), Prefixes()]
    streams = [Stream(name, pools[name], router) for router in routers for name in NAMES]
    running = []
    for _ in range(data.draw(st.integers(0, 25))):
        name = data.draw(st.sampled_from(NAMES))
        pool, names = pools[name], prompt(data.draw(st.integers(0, 5)), data.draw(st.integers(1, 6)))
        if (taken := run(pool, names)) is not None:
            running.append((pool, taken))
        if running and data.draw(st.booleans()):
            pool, taken = running.pop(0)
            pool.release(taken)
        stream = data.draw(st.sampled_from(streams))
        happens = data.draw(st.sampled_from(["sent", "sent", "lost", "broken", "restarted"]))
        if happens == "broken":
            stream.begin()
        elif happens == "restarted":
            pools[stream.name] = Blocks(8)
            for each in streams:
                if each.name == stream.name:
                    each.pool = pools[stream.name]
                    each.begin()
        else:
            stream.send(data.draw(st.integers(1, 4)), lost=0 if happens == "lost" else -1)
    for pool, taken in running:
        pool.release(taken)
    for pool in pools.values():
        run(pool, prompt(7, 1))
    for (
        stream
    ) in streams:  # what was lost shows with the next change that is told, and then all is told again
        stream.send(3)
        stream.send(3)
    everything = [digest for kind in range(8) for digest in prompt(kind, 6)]
    for router in routers:
        for name in NAMES:
            assert router.blocks_of(name) == short(each for each in everything if pools[name].known([each]))
    for kind in range(6):
        asked = prompt(kind, 6)
        wanted = {name: count for name in NAMES if (count := pools[name].known(asked))}
        assert [router.held(NAMES, asked) for router in routers] == [wanted, wanted]


def test_a_report_that_does_not_follow_is_refused_and_changes_nothing():
    blocks = prompt(1, 4)
    prefixes = knowing(a=blocks[:2])
    before = prefixes.blocks_of("a")
    assert not prefixes.take("a", report(blocks[2:], since=2, sequence=3)), "a change was missed"
    assert not prefixes.take("b", report(blocks, since=1, sequence=2)), "of it nothing is known"
    assert not prefixes.take("a", report(blocks[2:], since=1, sequence=3, part=1)), "where is part 0?"
    assert prefixes.blocks_of("a") == before
    assert prefixes.take("a", report(blocks[2:3], since=1, sequence=3, more=True))
    assert not prefixes.take("a", report(blocks[3:], since=3, sequence=4)), "the second part is missing"
    assert prefixes.take("a", report(dropped=blocks[:1], since=1, sequence=3, part=1))
    assert prefixes.blocks_of("a") == short(blocks[1:3])
    assert prefixes.take("a", report(full=True, sequence=9))
    assert prefixes.blocks_of("a") == set()


@RELAXED
@given(st.dictionaries(st.sampled_from(NAMES), st.sets(st.integers(0, 7))), st.integers(0, 8))
def test_only_what_is_held_from_the_start_on_counts(holds, length):
    blocks = prompt(1, 8)
    prefixes = knowing(**{name: [blocks[index] for index in sorted(some)] for name, some in holds.items()})
    found = prefixes.held(["a", "b"], blocks[:length])
    for name in NAMES:
        count = next((n for n in range(length) if n not in holds.get(name, ())), length)
        assert found.get(name, 0) == (count if name != "c" else 0), "nobody asked for c"


def test_who_leaves_is_forgotten_however_many_come_after():
    blocks = prompt(1, 3)
    prefixes = knowing(stays=blocks)
    for number in range(500):
        own = prompt(number + 2, 1)
        assert prefixes.take(f"r{number}", report([*blocks[:2], *own], full=True, sequence=1))
        assert prefixes.held([f"r{number}", "stays"], blocks) == {f"r{number}": 2, "stays": 3}
        prefixes.forget(f"r{number}")
        assert not prefixes.reports(f"r{number}")
        assert prefixes.held([f"r{number}"], blocks) == {}
    assert max(prefixes._holders.values()).bit_length() <= 66, "bits are used again"
    assert len(prefixes) <= 3 + 64, "and what only they held is gone"
    for _ in range(200):
        assert prefixes.take("stays", report(blocks[:1], full=True, sequence=1))
    assert prefixes.held(["stays"], blocks) == {"stays": 1}


def test_memory_is_bounded_and_what_was_heard_of_first_goes_first():
    prefixes = Prefixes(most=64)
    sequence, rng = 1, random.Random(0)
    assert prefixes.take("a", report(full=True, sequence=1))
    last = []
    for _ in range(50):
        last = [rng.randbytes(16) for _ in range(7)]
        assert prefixes.take("a", report(last, since=sequence, sequence=sequence + 7))
        sequence += 7
        assert len(prefixes) <= 64
    assert prefixes.held(["a"], last) == {"a": 7}
    assert prefixes.forgotten >= 50 * 7 - 64


def test_a_thousand_replicas_that_share_a_beginning_cost_one_look_for_each_block():
    names = [f"r{number}" for number in range(1000)]
    prefixes = knowing(**dict.fromkeys(names, prompt(1, 20)))
    looks = []
    holders = prefixes._holders
    prefixes._holders = type("Counted", (dict,), {"get": lambda self, *key: looks.append(1) or dict.get(self, *key)})(
        holders
    )  # fmt: skip
    assert prefixes.held(names, prompt(1, 20)) == dict.fromkeys(names, 20)
    assert len(looks) == 20


def test_the_stage_that_has_least_decides_what_a_route_spares():
    blocks = prompt(1, 8)
    prefixes = knowing(a=blocks, b=blocks[:3], c=blocks[:5], d=blocks[:2])
    tokens = 8 * BLOCK + 1
    reuse = Reuse(prefixes, [["a", "b"], ["c", "d"]], blocks, tokens)
    assert (reuse.most, reuse.at(0)) == (5, {"a": 5, "b": 3})
    reuse.chose(0, "b")
    assert reuse.at(1) == {"c": 3, "d": 2}
    reuse.chose(1, "d")
    assert reuse.most == 2
    assert Reuse(prefixes, [["a"], ["nobody"]], blocks, tokens).at(0) == {}, "one stage has nothing"
    assert Reuse(prefixes, [["a"]], blocks, tokens - 1).at(0) == {"a": 7}, "the last token is always computed"
