"""What could not be reached a moment ago is not waited for again by every session."""

import socket
import time

import pytest
from stagemesh.services.stage import link as link_module
from stagemesh.services.stage import unreachable as unreachable_module
from stagemesh.services.stage.unreachable import (
    CONNECT_TIMEOUT_S,
    FIRST_REST_S,
    LONGEST_REST_S,
    RETRY_TIMEOUT_S,
    Unreachable,
)

from stagemesh.v1.stage_pb2 import Frame, RouteHop
from tests.chaos.proxy import FROM_TARGET, Proxy
from tests.stage.scripted_stage import eventually, linked, scripted
from tests.stage.test_heartbeat import GREETING


def test_it_is_left_alone_for_longer_each_time_and_tried_more_briefly() -> None:
    known = Unreachable()
    now, rests = 100.0, []
    assert known.timeout_s("a") == CONNECT_TIMEOUT_S
    for _ in range(8):
        assert not known.rests("a", now)
        known.failed("a", now)
        assert known.timeout_s("a") == RETRY_TIMEOUT_S
        began = now
        while known.rests("a", now):
            now += 0.125
        rests.append(now - began)
    assert rests[0] == FIRST_REST_S
    assert rests == sorted(rests)
    assert rests[-1] == LONGEST_REST_S
    known.reached("a")
    assert not known.rests("a", now - 0.1)
    assert known.timeout_s("a") == CONNECT_TIMEOUT_S


def test_one_address_says_nothing_about_another_and_memory_is_bounded() -> None:
    known = Unreachable()
    for number in range(5000):
        known.failed(f"host-{number}:1", 1.0)
    assert not known.rests("other:1", 1.0)
    assert known.rests("host-4999:1", 1.0)
    assert len(known._resting) <= 1024


@pytest.mark.asyncio
async def test_sessions_do_not_queue_for_an_address_that_swallows_packets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "_unreachable", Unreachable())
    monkeypatch.setattr(unreachable_module, "CONNECT_TIMEOUT_S", 0.4)
    with socket.socket() as nobody:  # the kernel takes connections, and nobody says anything on them
        nobody.bind(("127.0.0.1", 0))
        nobody.listen()
        hop = RouteHop(stage=1, replica_id="r1", address=f"127.0.0.1:{nobody.getsockname()[1]}")
        async with linked(hop) as first:
            first.link.post(Frame())
            await eventually(lambda: first.broke)
            assert "could not be reached in 0.4 s" in first.broke[0].message
        for _ in range(3):
            before = time.monotonic()
            async with linked(hop) as next_:
                await eventually(lambda: next_.broke)
                waited = time.monotonic() - before
                assert "a moment ago" in next_.broke[0].message or waited >= 0.9, next_.broke[0].message


@pytest.mark.asyncio
async def test_what_stands_still_is_not_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_unreachable", Unreachable())
    async with scripted(1, "r1", GREETING) as (_, hop):
        proxy = Proxy(int(hop.address.rpartition(":")[2]))
        await proxy.start()
        try:
            through = RouteHop(stage=1, replica_id="r1", address=f"127.0.0.1:{proxy.port}")
            async with linked(through) as one:
                await eventually(lambda: one.link.peer)
                assert proxy.cut(FROM_TARGET) == 1
                await eventually(lambda: one.broke)
                assert "ping timeout" in one.broke[0].message
                async with linked(through) as again:
                    await eventually(lambda: again.broke)
                    assert "a moment ago" in again.broke[0].message
        finally:
            await proxy.stop()


@pytest.mark.asyncio
async def test_a_refused_connection_is_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_unreachable", Unreachable())
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but nobody listens: refused
        hop = RouteHop(stage=1, replica_id="r1", address=f"127.0.0.1:{held.getsockname()[1]}")
        for _ in range(2):
            async with linked(hop) as one:
                await eventually(lambda: one.broke)
                assert "cannot be reached" in one.broke[0].message


@pytest.mark.asyncio
async def test_who_answers_again_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Unreachable()
    monkeypatch.setattr(link_module, "_unreachable", known)
    async with scripted(1, "r1", GREETING) as (_, hop):
        known.failed(hop.address, time.monotonic() - 60)
        async with linked(hop) as one:
            await eventually(lambda: one.link.peer)
        assert known.timeout_s(hop.address) == CONNECT_TIMEOUT_S
