"""What becomes of calls on a channel whose address etcd does not know any more."""

import asyncio

import pytest
from stagemesh.services.router.channels import Channels

from stagemesh.v1.stage_pb2 import OpenSession, RouteHop

from .conftest import eventually
from .scripted_stage import ScriptedStage


@pytest.fixture
async def stage():
    async with ScriptedStage("hang") as stage:
        yield stage


async def rest(call):
    """Ids of the tokens that are still to come."""
    ids = []
    while event := await call.read():
        ids.extend(token.id for token in event.tokens)
    return ids


def opening():
    route = [RouteHop(stage=0, replica_id="0a"), RouteHop(stage=1, replica_id="1a")]
    return OpenSession(session=1, model="m", route=route, token_ids=[5], prompt_tokens=1, max_tokens=4)


async def test_a_call_outlives_the_record_of_its_node(stage):
    """A lease that is revoked says nothing of the process that held it: what it computes is still good."""
    channels = Channels(2**26)
    call = channels.stage(stage.address).Generate(opening(), timeout=30)
    began = [(await call.read()).tokens[0].id for _ in range(2)]
    (channel,) = channels._open.values()
    channels.sweep(set())
    channels.sweep(set())
    assert repr(channels) == "Channels([])"
    await asyncio.sleep(6)
    stage.release.set()
    assert [*began, *await rest(call)] == [10, 11, 12, 13]
    await eventually(lambda: channel._channel.closed())
    await channels.close()


async def test_who_is_known_again_gets_a_channel_of_its_own(stage):
    channels = Channels(2**26)
    first = channels.stage(stage.address).Generate(opening(), timeout=30)
    await first.read()
    channels.sweep(set())
    second = channels.stage(stage.address).Generate(opening(), timeout=30)
    await second.read()
    stage.release.set()
    assert [await rest(call) for call in (first, second)] == [[11, 12, 13]] * 2
    await channels.close()


async def test_closing_waits_for_none_of_them(stage):
    channels = Channels(2**26)
    call = channels.stage(stage.address).Generate(opening(), timeout=30)
    await call.read()
    channels.sweep(set())
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        await channels.close()
        call.cancel()
        await eventually(lambda: stage.cancelled)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("retire")]
