import asyncio
import time
from collections import Counter
from contextlib import aclosing

import pytest
from stagemesh.services.router.session_run import HOPELESS_ATTEMPTS

from stagemesh.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
)
from stagemesh.v1.inference_pb2 import CacheStatus, GenerateRequest

from .conftest import eventually


def ask(max_tokens=4, **extra):
    settings = {"model": "m", "prompt": "w1 w2 w3", "temperature": 0.0, **extra}
    return GenerateRequest(max_tokens=max_tokens, **settings)


async def answer(core, request, metadata=None, timeout_s=30.0):
    return [each async for each in core.generate(request, core.context(metadata or {}, timeout_s))]


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


async def test_a_generation_from_prompt_to_last_chunk(mesh):
    core = await mesh.start()
    chunks = await answer(core, ask(), {"x-request-id": "my-id"})
    assert text_of(chunks).split() == ["w10", "w11", "w12", "w13"]
    first, last = chunks[0], chunks[-1]
    assert first.request_id == "my-id"
    assert first.cache == CacheStatus.CACHE_STATUS_BYPASS
    assert [hop.stage for hop in first.route] == [0, 1]
    assert (last.finish_reason, last.usage.prompt_tokens, last.usage.completion_tokens) == ("length", 3, 4)
    assert not any(chunk.finish_reason for chunk in chunks[:-1])
    opened = mesh.stages[first.route[0].replica_id].opened[0]
    assert list(opened.token_ids) == [1, 2, 3]
    assert list(opened.stop_token_ids) == [20]
    assert list(opened.route) == list(first.route)
    assert opened.deadline_unix_ms > time.time() * 1000
    assert all(core.loads.counts(hop.replica_id) == (1, 0) for hop in first.route)


async def test_an_end_token_ends_it_and_is_not_text(mesh):
    core = await mesh.start()
    chunks = await answer(core, ask(30))
    assert text_of(chunks).split() == [f"w{i}" for i in range(10, 20)]
    assert (chunks[-1].finish_reason, chunks[-1].usage.completion_tokens) == ("stop", 11)
    longer = await answer(core, ask(30, ignore_eos=True))
    assert longer[-1].finish_reason == "length"


async def test_a_stop_string_cuts_the_text_and_frees_the_session(mesh):
    core = await mesh.start({"0a": "hang"})
    chunks = await answer(core, ask(30, stop=["w11"]))
    assert text_of(chunks).split() == ["w10"]
    assert chunks[-1].finish_reason == "stop"
    await eventually(lambda: mesh.stages["0a"].cancelled == 1)
    assert core.loads.counts("0a") == (1, 0)


async def test_a_caller_who_leaves_frees_the_session(mesh):
    core = await mesh.start({"0a": "hang"})
    async with aclosing(core.generate(ask(30), core.context({}))) as chunks:
        async for _ in chunks:
            break
    await eventually(lambda: mesh.stages["0a"].cancelled == 1)
    assert core.loads.counts("0a") == (1, 0)
    assert "active=0" in repr(core)


async def test_a_burst_of_200_spreads_and_none_fails(mesh):
    core = await mesh.start()
    answers = await asyncio.gather(*(answer(core, ask(2)) for _ in range(200)))
    sessions = Counter(hop.replica_id for chunks in answers for hop in chunks[0].route)
    assert set(sessions) == {"0a", "0b", "1a", "1b"}
    assert all(70 <= count <= 130 for count in sessions.values()), sessions


@pytest.mark.parametrize("mode", ["break first", "no memory"])
async def test_a_route_that_breaks_before_the_first_token_is_tried_again(mesh, mode, hopeless):
    core = await mesh.start({"0a": mode})
    with pytest.raises((Unavailable, ResourceExhausted)):
        await answer(core, ask())
    # "break first" blames stage 1, which has two replicas: each is tried before either is tried again.
    tried = [opened.route[1].replica_id for opened in mesh.stages["0a"].opened]
    assert len(tried) == (2 if mode == "no memory" else HOPELESS_ATTEMPTS)
    assert (set(tried[:2]) == {"1a", "1b"}) or mode == "no memory"


async def test_a_dead_head_is_passed_over_at_once_and_then_for_a_while(mesh):
    core = await mesh.start()
    await mesh.stages["0a"].door.stop(0)
    answers = [await answer(core, ask(2)) for _ in range(20)]
    assert {chunks[0].route[0].replica_id for chunks in answers} == {"0b"}
    routed, active = core.loads.counts("0a")
    assert routed <= 3
    assert active == 0


async def test_a_dead_node_that_held_a_replica_of_each_stage_is_routed_around(mesh):
    core = await mesh.start({"0a": "good", "0b": "1b is gone"})
    await mesh.stages["0a"].door.stop(0)
    for _ in range(40):
        core.loads.forget(set())  # so that each request finds out anew, one stage at a time
        chunks = await answer(core, ask(2))
        assert [hop.replica_id for hop in chunks[0].route] == ["0b", "1a"]


@pytest.mark.parametrize("mode", ["break once", "vanish once"])
async def test_a_session_that_loses_its_route_goes_on_along_another(mesh, mode):
    core = await mesh.start({"0a": mode})
    chunks = await answer(core, ask(6))
    assert [token.id for chunk in chunks for token in chunk.tokens] == [10, 11, 12, 13, 14, 15]
    assert [chunk.finish_reason for chunk in chunks][-1] == "length"
    opened = [request for stage in mesh.stages.values() for request in stage.opened]
    first, second = opened
    assert first.session == second.session
    assert (first.epoch, second.epoch) == (0, 1)
    assert second.token_ids[second.prompt_tokens :] == [10, 11]
    assert second.prompt_tokens == first.prompt_tokens == len(first.token_ids)
    assert second.max_tokens == first.max_tokens
    # Where a stage has one replica only it is tried again.
    assert (second.route[1].replica_id != first.route[1].replica_id) or mode == "vanish once"


async def test_a_route_that_never_gets_any_further_is_a_clear_unavailable(mesh, hopeless):
    core = await mesh.start({"0a": "break later", "0b": "break later"})
    seen = []

    async def read():
        async for chunk in core.generate(ask(), core.context({})):
            seen.append(chunk)

    with pytest.raises(Unavailable, match=r"route of model 'm' broke at replica 1[ab]: stage 1 was lost"):
        await read()
    assert len(seen) == 2
    opened = sum(len(stage.opened) for stage in mesh.stages.values())
    assert opened == HOPELESS_ATTEMPTS


@pytest.mark.parametrize(
    ("mode", "error", "match"),
    [
        ("end early", Unavailable, "without a finish reason"),
        ("strange token", InternalError, "vocabulary"),
        ("bug", InternalError, "internal error"),
    ],
)
async def test_garbage_from_a_stage_is_an_error_and_the_router_lives_on(mesh, hopeless, mode, error, match):
    core = await mesh.start({"0a": mode})
    with pytest.raises(error, match=match):
        await answer(core, ask())
    mesh.stages["0a"].mode = "good"
    assert len(await answer(core, ask())) == 4


async def test_the_deadline_ends_a_slow_generation(mesh):
    core = await mesh.start({"0a": "hang"})
    with pytest.raises(DeadlineExceeded):
        await answer(core, ask(30), timeout_s=0.5)


async def test_overload_is_refused(mesh):
    core = await mesh.start({"0a": "hang"}, max_sessions=1, max_waiting=0)
    running = asyncio.create_task(answer(core, ask(5)))
    await eventually(lambda: mesh.stages["0a"].opened)
    with pytest.raises(ResourceExhausted) as caught:
        await answer(core, ask())
    assert caught.value.retry_after_s
    mesh.stages["0a"].release.set()
    assert len(await running) == 5


async def test_what_is_not_there(mesh):
    core = await mesh.start()
    with pytest.raises(NotFound):
        await answer(core, ask(model="nobody"))
    with pytest.raises(OutOfRange):
        await answer(core, ask(prompt="w1 " * 64))
    await mesh.remove("/stagemesh/v1/replicas/m/1/")
    await eventually(lambda: not core.models()[0].ready)
    with pytest.raises(Unavailable, match="stage 1 of 2"):
        await answer(core, ask())


async def test_log_probabilities_without_alternatives(mesh):
    core = await mesh.start()
    chunks = await answer(core, ask(logprobs=0))
    assert not any(token.alternatives for chunk in chunks for token in chunk.tokens)
    assert any(token.alternatives for c in await answer(core, ask(logprobs=1)) for token in c.tokens)


async def test_requests_go_on_while_etcd_is_away(mesh, etcd_process):
    core = await mesh.start()
    await etcd_process.stop()
    await eventually(lambda: not core.etcd.connected, 15)
    assert len(await answer(core, ask())) == 4
    assert not (await core.status()).etcd_connected


async def test_status_shows_the_view_and_what_nodes_say(mesh):
    core = await mesh.start()
    await answer(core, ask())
    status = await core.status()
    rows = {row.record.replica_id: row for row in status.replicas}
    assert set(rows) == {"0a", "0b", "1a", "1b"}
    assert rows["0a"].load.sessions == 3
    assert not rows["1a"].HasField("load")
    assert sum(row.sessions_routed for row in rows.values()) == 2
    assert status.etcd_connected
    assert status.models[0].ready


def by_answer(chunks):
    answers = {}
    for chunk in chunks:
        answers.setdefault(chunk.index, []).append(chunk)
    return answers


async def test_several_answers_are_sessions_with_seeds_of_their_own(mesh):
    core = await mesh.start({"0a": "good"})
    chunks = await answer(core, ask(n=3, seed=5, temperature=1.0))
    answers = by_answer(chunks)
    assert sorted(answers) == [0, 1, 2]
    for parts in answers.values():
        assert text_of(parts).split() == ["w10", "w11", "w12", "w13"]
        assert [part.finish_reason for part in parts if part.finish_reason] == ["length"]
        assert (parts[-1].usage.prompt_tokens, parts[-1].usage.completion_tokens) == (3, 4)
    seeds = [opened.sampling.seed for opened in mesh.stages["0a"].opened]
    assert seeds[0] == 5, "the first answer is the one that n = 1 gives"
    assert len(set(seeds)) == 3
    assert len({opened.session for opened in mesh.stages["0a"].opened}) == 3
    await answer(core, ask(n=3, seed=5, temperature=1.0))
    assert sorted(opened.sampling.seed for opened in mesh.stages["0a"].opened[3:]) == sorted(seeds)
    assert "active=0" in repr(core)


async def test_the_prompt_is_computed_before_the_other_answers_begin(mesh):
    core = await mesh.start({"0a": "hold"})
    asking = asyncio.create_task(answer(core, ask(n=4)))
    await eventually(lambda: len(mesh.stages["0a"].opened) == 1)
    await asyncio.sleep(0.1)
    assert len(mesh.stages["0a"].opened) == 1
    mesh.stages["0a"].release.set()
    assert sorted(by_answer(await asking)) == [0, 1, 2, 3]


async def test_answers_take_turns_where_there_is_one_place_and_requests_do_not_block_each_other(mesh):
    core = await mesh.start({"0a": "good"}, max_sessions=1)
    asked = [answer(core, ask(n=3, seed=number)) for number in range(5)]
    async with asyncio.timeout(20):
        for chunks in await asyncio.gather(*asked):
            assert sorted(by_answer(chunks)) == [0, 1, 2]


async def test_one_answer_that_fails_ends_them_all(mesh, hopeless):
    core = await mesh.start({"0a": "break later"})
    with pytest.raises(Unavailable):
        await answer(core, ask(n=3))
    await eventually(lambda: "active=0" in repr(core))
    assert core.loads.counts("0a")[1] == 0


async def test_nothing_ends_an_answer_before_min_tokens(mesh):
    core = await mesh.start({"0a": "good"})
    chunks = await answer(core, ask(30, stop=["w11", "w14"], min_tokens=3))
    assert text_of(chunks).split() == ["w10", "w11", "w12", "w13"]
    sampling = mesh.stages["0a"].opened[0].sampling
    assert (list(sampling.held_ids), sampling.held_before) == ([20], 3 + 3)
    with pytest.raises(InvalidArgument) as caught:
        await answer(core, ask(2, min_tokens=3))
    assert caught.value.field == "min_tokens"


async def test_settings_reach_the_stage(mesh):
    core = await mesh.start({"0a": "good"})
    await answer(
        core,
        ask(presence_penalty=1.5, frequency_penalty=-0.5, repetition_penalty=1.25, logit_bias={7: -100.0}),
    )
    sampling = mesh.stages["0a"].opened[0].sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.5, -0.5)
    assert (sampling.repetition_penalty, dict(sampling.logit_bias)) == (1.25, {7: -100.0})
