"""What happens on a router's stream to a head between a request and its answer: who counts it when, and until when it waits."""

import asyncio

import pytest
from stagemesh.services.router.forward_stream import _Connection

from stagemesh.errors import DeadlineExceeded

from .conftest import eventually
from .test_forward_stream import doors, infer, request, stage, stream_to  # noqa: F401 (two of them fixtures)


async def test_it_is_told_that_it_is_sent_before_anything_else_happens(stage, monkeypatch):  # noqa: F811
    channel, stream = stream_to(stage)
    stage.release.set()
    order = []
    send = _Connection._send

    def noted(self, *args):
        order.append("sent")
        send(self, *args)

    monkeypatch.setattr(_Connection, "_send", noted)
    first = stream.forward(request(1), 10, lambda: order.append("told"))
    first.send(None)  # one step: up to its first wait
    assert order == ["told", "sent"], "opening the stream may take a while"
    order.clear()
    second = stream.forward(request(2), 10, lambda: order.append("told"))
    second.send(None)
    assert order == ["sent", "told"], "the stage works while it is counted"
    for asked in (first, second):
        asked.close()
    await stream.close()
    await channel.close()


async def test_who_waits_for_room_is_told_of_at_once_and_once(stage):  # noqa: F811
    channel, stream = stream_to(stage, in_flight=1)
    told = []
    asked = [asyncio.create_task(stream.forward(request(n), 10, lambda n=n: told.append(n))) for n in (1, 2)]
    await eventually(lambda: stage.forwarded and stream._queue)
    assert told == [1, 2], "it counts where it waits"
    stage.release.set()
    await asyncio.gather(*asked)
    assert told == [1, 2]
    await stream.close()
    await channel.close()


@pytest.mark.parametrize("mode", ["good", "no streams"])
async def test_each_request_counts_once_on_its_route_whichever_way_it_takes(mesh, mode):
    core = await mesh.start({"0a": mode}, task="embed")
    for n in range(1, 4):
        await infer(core)
        assert core.loads.counts("0a") == (n, 0)
    budget = core._dispatch._attempts._budgets["m"]
    assert 0.5 < budget._earned <= 0.6, "a share of a retry for each"


async def test_it_counts_while_it_runs(mesh):
    core = await mesh.start({"0a": "hold"}, task="embed")
    asked = asyncio.create_task(infer(core))
    await eventually(lambda: mesh.stages["0a"].forwarded)
    assert core.loads.counts("0a") == (1, 1)
    mesh.stages["0a"].release.set()
    await asked
    assert core.loads.counts("0a") == (1, 0)


async def test_each_waits_until_its_own_deadline(stage):  # noqa: F811
    channel, stream = stream_to(stage)
    loop = asyncio.get_running_loop()
    failed = {}

    async def ask(session, timeout_s):
        started = loop.time()
        try:
            return await stream.forward(request(session), timeout_s)
        except DeadlineExceeded:
            failed[session] = loop.time() - started

    # The earliest is neither the first nor the last to come, and two have the same.
    timeouts = {1: 0.5, 2: 0.2, 3: 30.0, 4: 0.5, 5: 0.3}
    asked = {n: asyncio.create_task(ask(n, timeout_s)) for n, timeout_s in timeouts.items()}
    await asyncio.gather(*(asked[n] for n in (1, 2, 4, 5)))
    assert sorted(failed, key=failed.__getitem__)[:2] == [2, 5]
    assert all(timeouts[n] - 0.05 < took for n, took in failed.items())
    assert failed[2] < failed[1] - 0.1, "it does not wait for another one's deadline"
    stage.release.set()
    assert (await asyncio.wait_for(asked[3], 10)).outputs
    assert not stream._connection._deadlines
    stage.release.clear()
    with pytest.raises(DeadlineExceeded):
        await stream.forward(request(6), 0.1)
    await stream.close()
    await channel.close()
