"""The replay in small: that it plays fair, that it finds sharing where there is some, and what it says without a trace."""

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import prefix, prefix_mesh
from bench.options import Options
from bench.prefix import AFFINITY, NAMES, USUAL, play, single_cache
from bench.prefix_trace import BLOCK_TOKENS, Recorded, read
from bench.prefix_world import Job, Setting, Told, World, usable

SMALL = Setting(replicas=3, room=60 * BLOCK_TOKENS, token_s=1e-4, routers=2)


def conversations(many: int, turns: int, every_s: float) -> list[Recorded]:
    """Conversations that take turns; each turn adds two blocks to the one before, after a block that all share."""
    out = []
    for turn in range(turns):
        for number in range(many):
            ids = (0, *(1000 * (number + 1) + block for block in range(2 * turn + 2)))
            at = (turn * many + number) * every_s
            out.append(Recorded(at, len(ids) * BLOCK_TOKENS - 100, 20, ids))
    return out


TRACE = conversations(7, 6, 1.0)


def test_a_known_replica_spares_what_one_cache_would_and_others_less() -> None:
    ideal = single_cache(TRACE, None)
    found = {name: play(TRACE, SMALL, name, 0) for name in NAMES}
    assert 0.5 < ideal < 1
    assert found[AFFINITY].saved > 0.85 * ideal
    assert found[AFFINITY].saved > 1.2 * found[USUAL].saved
    assert all(found[name].saved <= ideal for name in NAMES)
    assert found[AFFINITY].firsts.mean() < found[USUAL].firsts.mean()


def test_a_beginning_that_half_of_them_share_makes_nobody_wait_longer_than_that_spares() -> None:
    """Bursts: the slowest first tokens come no later than where nobody looks at beginnings."""
    setting = replace(SMALL, room=120 * BLOCK_TOKENS)
    late: dict[str, list[float]] = {AFFINITY: [], USUAL: []}
    for seed in range(5):
        rng, at, trace = random.Random(seed), 0.0, []
        for number in range(120):
            at += rng.expovariate(8.0)
            kind, own = rng.choice((0, 0, 0, 1, 2, 3)), rng.randrange(1, 12)
            ids = (
                *range(1000 * kind, 1000 * kind + 8),
                *range(10**6 + 100 * number, 10**6 + 100 * number + own),
            )
            trace.append(Recorded(at, len(ids) * BLOCK_TOKENS - 50, rng.randrange(1, 40), ids))
        for name, found in late.items():
            found.append(float(np.quantile(play(trace, setting, name, seed).firsts, 0.99)))
    assert sum(late[AFFINITY]) <= sum(late[USUAL])


def test_one_replica_with_little_room_is_one_cache_with_little_room() -> None:
    """One request at a time: what the world's replica spares is what the single cache of that room does."""
    calm = [replace(each, at=each.at * 100) for each in TRACE]
    for room in (20, 40, 200):
        alone = Setting(replicas=1, room=room * BLOCK_TOKENS, routers=1)
        saved = play(calm, alone, AFFINITY, 0).saved
        assert saved == play(calm, alone, "round_robin", 0).saved
        if room == 200:
            assert saved == pytest.approx(single_cache(calm, None))
        assert saved <= single_cache(calm, room * BLOCK_TOKENS) + 1e-9


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.integers(1, 5000), st.integers(1, 30), st.integers(0, 3)),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from(NAMES),
)
def test_every_request_is_computed_once_in_its_time(
    drawn: list[tuple[float, int, int, int]], name: str
) -> None:
    """Nobody gets more than its prompt, faster than a pass allows, or is forgotten; all room comes back."""
    trace = [
        Recorded(at, prompt, answer, tuple(range(kind * 100, kind * 100 + prompt // BLOCK_TOKENS + 1)))
        for at, prompt, answer, kind in sorted(drawn)
    ]
    setting = replace(SMALL, room=12 * BLOCK_TOKENS)
    world = World(setting)
    routers = prefix.Routers(world, name, 1)
    jobs = world.play(trace, routers.choose, routers)
    assert sorted(map(id, trace)) == sorted(id(job.asked) for job in jobs)
    for job in jobs:
        assert job.asked.at <= job.began < job.first
        assert job.left == 0
        assert job.reused <= usable(job.asked) * BLOCK_TOKENS
        assert (
            job.first - job.began >= setting.pass_s + (job.asked.prompt - job.reused) * setting.token_s - 1e-9
        )
    for replica in world.replicas:
        while replica.busy:
            replica.end(1e9)
        assert replica.blocks.used == 0


def test_passes_in_a_row_are_cut_short_when_a_prompt_comes() -> None:
    setting = Setting(replicas=1, routers=1)
    trace = [Recorded(0.0, 10, 1000, (1,)), Recorded(5.0, 10, 2, (2,))]
    jobs: list[Job] = World(setting).play(trace, lambda *_: 0, Told())
    assert jobs[1].began - 5.0 <= setting.pass_s + setting.row_s + 1e-9
    assert jobs[1].first - 5.0 <= 2 * (setting.pass_s + 2 * setting.row_s) + 10 * setting.token_s


def test_a_prompt_is_made_of_its_blocks_so_that_what_was_shared_is_shared() -> None:
    one, other = Recorded(0, 1500, 5, (1, 2, 3)), Recorded(0, 2048, 5, (1, 2, 9, 4))
    ours, theirs = prefix_mesh.prompt_of(one, 256), prefix_mesh.prompt_of(other, 256)
    assert (len(ours), len(theirs)) == (2 * 16 + 14, 4 * 16 + 1)
    assert ours[:32] == theirs[:32]
    assert ours[32:46] != theirs[32:46]
    assert prefix_mesh.prompt_of(one, 256) == ours
    assert prefix_mesh.best([one, other, other]) == 2 * 16 + 4 * 16
    assert prefix_mesh.conversations(TRACE, 10) == TRACE[:10]
    assert prefix_mesh.conversations(conversations(7, 2, 1.0), 10) == [], "too few turns"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is no request"),
        ("[1]", "line 2 is no request"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 2}', "hash_ids"),
        ('{"timestamp": 1, "input_length": -5, "output_length": 2, "hash_ids": []}', "input_length"),
        ('{"timestamp": 1, "input_length": 5, "output_length": "x", "hash_ids": []}', "output_length"),
        ('{"timestamp": 1, "input_length": 1024, "output_length": 2, "hash_ids": [4]}', "fewer hash_ids"),
        ('{"timestamp": 1, "input_length": 10, "output_length": 2, "hash_ids": [-4]}', "hash_ids"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str, says: str) -> None:
    good = {"timestamp": 5000, "input_length": 600, "output_length": 2, "hash_ids": [7, 8]}
    file = tmp_path / "trace.jsonl"
    file.write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(ValueError, match=says):
        read(file)
    file.write_text(json.dumps(good))
    assert read(file) == [Recorded(0.0, 600, 2, (7, 8))]


def test_without_a_trace_it_says_how_to_give_one(tmp_path: Path) -> None:
    result = asyncio.run(prefix.run(Options(quick=True, trace=tmp_path / "nothing")))
    assert not result.ratios
    assert set(result.not_measured) >= {"saved_vs_p2c", *prefix_mesh.KEYS}
    assert all("--trace FILE" in why and str(tmp_path) not in why for why in result.not_measured.values())
