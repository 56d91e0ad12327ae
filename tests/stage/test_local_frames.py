"""Frames between replicas of one host take a Unix socket where both ends may, and the gRPC stream says who lives."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from stagemesh.services.stage import link as link_module
from stagemesh.services.stage import relay as relay_module
from stagemesh.services.stage.local_frames import ReceivingSocket, SendingSocket
from stagemesh.services.stage.relay import WINDOW
from stagemesh.services.stage.unreachable import Unreachable

from stagemesh.errors import Unavailable
from stagemesh.same_network import network_id
from stagemesh.v1.stage_pb2 import Hello, RouteHop
from tests.chaos.proxy import Proxy
from tests.stage.scripted_stage import Watched, eventually, linked
from tests.stage.test_flow import busy, opening, stateless
from tests.stage.two_stages import Route, route_of, settled

pytestmark = pytest.mark.asyncio

PROMPT, NEW = [5, 6, 7], 6
# A proxy in a process of its own: the first argument is the port that it leads to, and it prints its own.
PROXY = """
import asyncio, sys
from tests.chaos.proxy import Proxy

async def main():
    proxy = Proxy(int(sys.argv[1]))
    await proxy.start()
    print(proxy.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def ways(route: Route) -> list[bool]:
    """Of each link that there is: whether its frames take a socket."""
    return [link._socket is not None for r in route.replicas for link in r.links._links.values()]


async def tokens(llama: Path, sender: bool, receiver: bool) -> tuple[list[int], list[bool]]:
    async with route_of(llama) as route:
        route.replicas[0].links.local_sockets = sender
        route.replicas[1].links.local_sockets = receiver
        found = await route.generate(PROMPT, NEW)
        await settled(route)
        return found, ways(route)


async def test_frames_take_the_socket_only_where_both_ends_may(llama: Path) -> None:
    expected, by_socket = await tokens(llama, sender=True, receiver=True)
    assert by_socket == [True, True]
    assert len(expected) == NEW
    for sender, receiver in ((False, False), (True, False), (False, True)):
        assert await tokens(llama, sender, receiver) == (expected, [False, False])


@asynccontextmanager
async def proxied(route: Route, stage: int) -> AsyncIterator[None]:
    """Everybody reaches that replica through a proxy in another process."""
    port = route.hops[stage].address.rpartition(":")[2]
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROXY,
        port,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    try:
        own = int(await asyncio.wait_for(child.stdout.readline(), 60))
        route.hops[stage].address = f"127.0.0.1:{own}"
        yield
    finally:
        child.kill()
        await child.wait()


async def test_a_link_through_a_proxy_stays_in_the_stream(llama: Path) -> None:
    async with route_of(llama) as route:
        expected = await route.generate(PROMPT, NEW)
        await settled(route)
        async with proxied(route, 1):
            assert await route.generate(PROMPT, NEW, session=2) == expected
            await settled(route)
            link = route.replicas[0].links.known(route.hops[1])
            assert link is not None
            assert link.peer is not None
            assert link._socket is None


@asynccontextmanager
async def watched(route: Route) -> AsyncIterator[Watched]:
    """A link of nobody to the second replica, over a socket."""
    one = Watched(route.hops[1])
    try:
        await eventually(lambda: one.link._socket)
        await one.link.met()
        await eventually(lambda: one.told)
        yield one
    finally:
        await one.link.close()


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_unreachable", Unreachable())


async def test_a_frame_that_cannot_be_read_ends_the_stream_and_says_so(llama: Path) -> None:
    async with route_of(llama) as route, watched(route) as one:
        assert one.link._socket is not None
        await one.link._socket.write(b"\xff\xff\xff")
        await eventually(lambda: one.broke)
        assert "frame: it cannot be read" in one.broke[0].message
        assert not route.replicas[1].held
        assert len(await route.generate(PROMPT, 2)) == 2


async def test_a_frame_without_a_credit_ends_the_stream_here_too(llama: Path) -> None:
    async with route_of(llama) as route, watched(route) as one:
        with busy(route.replicas[1]):
            assert one.link._socket is not None
            for number in range(WINDOW + 1):
                await one.link._socket.write(stateless(route, 100 + number))
            await eventually(lambda: one.broke)
        assert "without a credit" in one.broke[0].message
        await eventually(lambda: not route.replicas[1].held)


@pytest.mark.parametrize("by_socket", [True, False], ids=["socket", "stream"])
async def test_credits_that_come_together_are_used_together(
    llama: Path, monkeypatch: pytest.MonkeyPatch, by_socket: bool
) -> None:
    """Nothing else wakes the writer: what a credit leaves behind would wait for the receiver's next sign of life."""
    monkeypatch.setattr(relay_module, "BEAT_S", 600.0)
    async with route_of(llama) as route:
        route.replicas[1].links.local_sockets = by_socket
        async with linked(route.hops[1]) as one:
            await one.link.met()
            await eventually(lambda: one.told)
            assert (one.link._socket is not None) is by_socket
            sent = []
            with busy(route.replicas[1]):
                for number in range(3 * WINDOW):
                    one.link.post(*opening(route, 100 + number), lambda: sent.append(1))
                await eventually(lambda: len(sent) == WINDOW)
                assert one.link.queued == 2 * WINDOW
            await eventually(lambda: len(sent) == 3 * WINDOW)
            assert not one.broke


@pytest.fixture
def receiving(monkeypatch: pytest.MonkeyPatch) -> list[ReceivingSocket]:
    """Every receiver's end that is made."""
    made: list[ReceivingSocket] = []
    begin = ReceivingSocket.__init__

    def noted(self: ReceivingSocket, *args: Any) -> None:
        made.append(self)
        begin(self, *args)

    monkeypatch.setattr(ReceivingSocket, "__init__", noted)
    return made


async def test_a_sender_that_closes_only_the_socket_is_lost(llama: Path) -> None:
    async with route_of(llama) as route, watched(route) as one:
        assert one.link._socket is not None
        one.link._socket.close()
        await eventually(lambda: one.broke)
        assert "the socket of the stream ended" in one.broke[0].message


async def test_a_receiver_that_closes_only_the_socket_is_lost(
    llama: Path, receiving: list[ReceivingSocket]
) -> None:
    async with route_of(llama) as route, watched(route) as one:
        await eventually(lambda: receiving[-1]._socket)
        assert receiving[-1]._socket is not None
        receiving[-1]._socket.close()
        await eventually(lambda: one.broke)
        assert "closed the link's socket" in one.broke[0].message


async def test_a_cut_of_the_stream_ends_the_socket_too(
    llama: Path, receiving: list[ReceivingSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in this process passes for no proxy, so that what goes through it can be cut beside the socket."""
    async with route_of(llama) as route:
        proxy = Proxy(int(route.hops[1].address.rpartition(":")[2]))
        await proxy.start()
        try:
            one = Watched(RouteHop(stage=1, replica_id="r1", address=f"127.0.0.1:{proxy.port}"))
            await eventually(lambda: one.link._socket and one.told and receiving[-1]._socket)
            # Each end closes its own: neither waits for the other to do so.
            monkeypatch.setattr(SendingSocket, "close", lambda _: None)
            stage = route.replicas[1]
            upstreams = set(stage.links.upstreams)
            assert proxy.reset() == 1
            await eventually(lambda: one.broke and not upstreams & set(stage.links.upstreams))
            assert receiving[-1]._socket is not None
            assert receiving[-1]._socket.over
            assert one.link._socket is not None
            await eventually(lambda: one.link._socket._socket.over)  # type: ignore[union-attr]
            with pytest.raises(ConnectionError):
                await one.link._socket.write(stateless(route, 100))
            with pytest.raises(Unavailable):
                one.link.post(None)  # type: ignore[arg-type]
            assert not stage.sessions
            await one.link.close()
        finally:
            await proxy.stop()


async def test_a_silent_stream_is_given_up_although_the_socket_stands(llama: Path) -> None:
    async with route_of(llama) as route:
        proxy = Proxy(int(route.hops[1].address.rpartition(":")[2]))
        await proxy.start()
        try:
            one = Watched(RouteHop(stage=1, replica_id="r1", address=f"127.0.0.1:{proxy.port}"))
            await eventually(lambda: one.link._socket and one.told)
            assert proxy.silence() == 1
            await eventually(lambda: one.broke)
            await one.link.close()
        finally:
            await proxy.stop()


async def test_an_offer_that_leads_nowhere_is_done_without() -> None:
    receiving = ReceivingSocket(network_id(), lambda _: None, lambda _: None)
    offer = receiving.offer("ipv4:127.0.0.1:1")  # a connection of nobody here
    assert offer is not None
    assert receiving.offer("") is None
    assert await SendingSocket.agreed(Hello(local=offer), lambda: None) is None
    assert await SendingSocket.agreed(Hello(), lambda: None) is None
    receiving.close()
