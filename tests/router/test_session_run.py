"""What the router does with a session whose replicas are lost, against heads that follow a script."""

from contextlib import aclosing

import pytest

from stagemesh.errors import InternalError, InvalidArgument

from .conftest import eventually
from .specs import replica
from .test_core_generate import answer, ask, text_of

NEW = 6
WORDS = [f"w{10 + n}" for n in range(NEW)]


def all_of(mesh, what):
    return [each for stage in mesh.stages.values() for each in getattr(stage, what)]


def idle(core):
    """Nothing runs, and no prompt is on its way any more."""
    names = ("0a", "0b", "1a", "1b")
    return all(core.loads.counts(name)[1] == 0 for name in names) and not any(
        each.prompts for each in core.loads.candidates([replica(name) for name in names])
    )


async def test_a_lost_replica_is_replaced_and_the_same_call_goes_on(mesh):
    core = await mesh.start({"0a": "lose 1", "0b": "lose 1"})
    chunks = await answer(core, ask(NEW))
    assert text_of(chunks).split() == WORDS
    (opened,), (rerouted,) = all_of(mesh, "opened"), all_of(mesh, "rerouted")
    assert opened.reroutable
    assert not opened.held
    assert (rerouted.session, rerouted.epoch, rerouted.stage) == (opened.session, 1, 1)
    assert rerouted.route[0] == opened.route[0]
    assert {rerouted.route[1].replica_id, opened.route[1].replica_id} == {"1a", "1b"}
    assert idle(core)


async def test_a_prompt_is_waited_for_until_its_first_token(mesh):
    core = await mesh.start()

    def prompts():
        return sum(each.prompts for each in core.loads.candidates([replica("0a"), replica("0b")]))

    async with aclosing(core.generate(ask(NEW), core.context({}))) as chunks:
        async for chunk in chunks:
            if chunk.tokens:
                assert prompts() == 0
                break
        assert core.loads.counts("0a")[1] + core.loads.counts("0b")[1] == 1, "it still runs"


async def test_a_replacement_without_room_is_replaced_and_not_held_against_it(mesh):
    core = await mesh.start({"0a": "lose 1 8", "0b": "lose 1 8"})  # RESOURCE_EXHAUSTED
    assert text_of(await answer(core, ask(NEW))).split() == WORDS
    (opened,), (rerouted,) = all_of(mesh, "opened"), all_of(mesh, "rerouted")
    assert rerouted.route[1] != opened.route[1]


async def test_where_the_head_cannot_go_on_everything_is_computed_again(mesh):
    core = await mesh.start({"0a": "lose 1 9"})
    assert text_of(await answer(core, ask(NEW))).split() == WORDS
    first, second = all_of(mesh, "opened")
    assert [len(each.token_ids) for each in (first, second)] == [3, 3 + 2]
    assert not second.held
    assert second.epoch > all_of(mesh, "rerouted")[0].epoch > first.epoch
    assert idle(core)


async def test_another_head_is_told_the_tokens_and_the_others_keep_what_they_hold(mesh):
    core = await mesh.start({"0a": "vanish once", "0b": "vanish once"})
    assert text_of(await answer(core, ask(NEW))).split() == WORDS
    (first,) = (each for each in all_of(mesh, "opened") if each.epoch == 0)
    (second,) = (each for each in all_of(mesh, "opened") if each.epoch == 1)
    assert second.held
    assert not first.held
    assert second.route[0] != first.route[0]
    assert list(second.route[1:]) == list(first.route[1:])
    assert len(second.token_ids) == 3 + 2
    assert idle(core)


async def test_a_loss_of_what_is_not_on_the_route_is_not_believed(mesh):
    core = await mesh.start({"0a": "lose 7", "0b": "good"})
    for _ in range(4):
        assert text_of(await answer(core, ask(NEW))).split() == WORDS
    assert not all_of(mesh, "rerouted")


async def test_a_request_of_its_own_error_is_not_moved(mesh):
    core = await mesh.start({"0a": "refuse", "0b": "refuse"})
    with pytest.raises(InvalidArgument):
        await answer(core, ask(NEW))
    assert len(all_of(mesh, "opened")) == 1


async def test_without_any_other_replica_the_same_one_is_tried_again_after_a_pause(mesh):
    core = await mesh.start({"0a": "lose 1"})
    await mesh.remove("/stagemesh/v1/replicas/m/1/1b")
    await eventually(lambda: len(core.membership.ready(core.membership.models["m"])[1]) == 1)
    assert text_of(await answer(core, ask(NEW))).split() == WORDS
    (opened,), (rerouted,) = all_of(mesh, "opened"), all_of(mesh, "rerouted")
    assert rerouted.route[1].replica_id == opened.route[1].replica_id == "1a"


async def test_a_fault_of_the_mesh_is_looked_at_from_two_sides(mesh):
    core = await mesh.start({"0a": "fault", "0b": "good"})
    for _ in range(4):
        assert text_of(await answer(core, ask(NEW))).split() == WORDS
    mesh.stages["0b"].mode = "fault"
    before = len(all_of(mesh, "opened"))
    with pytest.raises(InternalError):
        await answer(core, ask(NEW))
    assert len(all_of(mesh, "opened")) - before == 2
