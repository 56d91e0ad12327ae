"""Who is let in through a door, who is not, and how both sides tell."""

import asyncio
import os
import socket
import subprocess
import sys

import pytest

from stagemesh import local_door
from stagemesh.local_door import Door, door_for, enter
from stagemesh.same_network import is_own_connection, network_id
from stagemesh.v1.stage_pb2 import LocalSocket

pytestmark = pytest.mark.asyncio

CALLER = "ipv4:127.0.0.1:1"


def direct(_: str) -> bool:
    return True


async def enters(offer: LocalSocket, door: Door) -> tuple[socket.socket | None, socket.socket | None]:
    """Both ends, if it comes to that."""
    waits = asyncio.create_task(door.admitted())
    inside = await enter(offer, direct)
    if inside is None:
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        return None, None
    return inside, await waits


async def test_the_caller_gets_in_and_nobody_after_it() -> None:
    door = Door()
    offer = door.offer(CALLER)
    mine, theirs = await enters(offer, door)
    assert mine is not None
    assert theirs is not None
    with mine, theirs:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(mine, b"hello")
        assert await loop.sock_recv(theirs, 5) == b"hello"
        await loop.sock_sendall(theirs, b"there")
        assert await loop.sock_recv(mine, 5) == b"there"
    assert await enter(offer, direct) is None


async def test_a_wrong_cookie_is_sent_away_and_the_right_one_still_gets_in() -> None:
    door = Door()
    offer = door.offer(CALLER)
    waits = asyncio.create_task(door.admitted())
    wrong = LocalSocket(name=offer.name, cookie=bytes(32), caller=CALLER)
    assert await enter(wrong, direct) is None
    assert not waits.done()
    mine = await enter(offer, direct)
    assert mine is not None
    mine.close()
    (await waits).close()


async def test_another_user_is_sent_away_whatever_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door()
    try:
        offer = door.offer(CALLER)
        monkeypatch.setattr(local_door, "_of_this_user", lambda _: False)
        assert await enters(offer, door) == (None, None)
    finally:
        door.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_somebody_else_with_the_cookie_is_sent_away() -> None:
    door = Door()
    offer = door.offer(CALLER)
    waits = asyncio.create_task(door.admitted())
    code = """
import os, socket, sys
os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(b"\\0" + sys.argv[1].encode())
try:
    s.sendall(bytes.fromhex(sys.argv[2]))
    sys.exit(s.recv(1) != b"")
except ConnectionError:
    pass
"""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, offer.name, offer.cookie.hex())
    try:
        assert await asyncio.wait_for(child.wait(), 30) == 0, "nothing was said"
        assert not waits.done()
    finally:
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        door.close()


async def test_whoever_says_nothing_does_not_hold_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_door, "ENTER_TIMEOUT_S", 0.1)
    door = Door()
    offer = door.offer(CALLER)
    waits = asyncio.create_task(door.admitted())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(b"\0" + offer.name.encode())
        await asyncio.sleep(0.3)
        mine = await enter(offer, direct)
        assert mine is not None
        mine.close()
        (await waits).close()


async def test_a_door_that_nobody_opens_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_door, "ENTER_TIMEOUT_S", 0.1)
    door = Door()
    offer = door.offer(CALLER)
    assert await enter(offer, direct) is None  # nobody answers
    door.close()
    assert await enter(offer, direct) is None  # nobody listens


async def test_through_something_else_nobody_enters() -> None:
    door = Door()
    try:
        waits = asyncio.create_task(door.admitted())
        assert await enter(door.offer(CALLER)) is None  # no connection of this process comes from there
        assert not waits.done()
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
    finally:
        door.close()


@pytest.mark.parametrize(
    "offer",
    [
        LocalSocket(name="another-name", cookie=bytes(32)),
        LocalSocket(name="stagemesh-" + "a" * 100, cookie=bytes(32)),
        LocalSocket(name="stagemesh-a", cookie=b"short"),
        LocalSocket(),
    ],
    ids=["name", "long name", "cookie", "empty"],
)
async def test_what_is_no_offer_of_ours_is_refused(offer: LocalSocket) -> None:
    assert await enter(offer, direct) is None


async def test_there_is_a_door_only_for_this_network() -> None:
    assert door_for("") is None
    assert door_for("0" * 32) is None
    door = door_for(network_id())
    assert door is not None
    door.close()


async def test_own_connections_are_told_from_those_of_others() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as ours:
            accepted, peer = listener.accept()
            with accepted:
                assert peer == ours.getsockname()
                assert is_own_connection(f"ipv4:127.0.0.1:{peer[1]}")
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); s.recv(1)",
                str(listener.getsockname()[1]),
            ]
        )
        accepted, peer = listener.accept()
        with accepted:
            assert not is_own_connection(f"ipv4:127.0.0.1:{peer[1]}")
        child.wait(20)


@pytest.mark.parametrize(
    "address", ["", "ipv4:127.0.0.1:0", "ipv4:127.0.0.1:99999", "unix:/x", "ipv4:127.0.0.1:+1"]
)
async def test_what_is_no_address_is_nobodys(address: str) -> None:
    assert not is_own_connection(address)
