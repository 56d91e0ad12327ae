"""Messages cross a socket whole, in order, whatever the kernel cuts them into, and the end is told once."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemesh.message_socket import MessageSocket

LARGEST = 2**24


class End:
    """One end, what came to it, and why it is over."""

    def __init__(self, sock: socket.socket, largest: int = LARGEST) -> None:
        sock.setblocking(False)
        self.got: list[bytes] = []
        self.why: list[str] = []
        self.take: Callable[[bytes], None] = self.got.append
        self.socket = MessageSocket(sock, lambda data: self.take(data), self.why.append, largest)


@asynccontextmanager
async def pair(largest: int = LARGEST) -> AsyncIterator[tuple[End, End]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ends = End(left, largest), End(right, largest)
    try:
        yield ends
    finally:
        for end in ends:
            end.socket.close()


@asynccontextmanager
async def raw(largest: int = LARGEST) -> AsyncIterator[tuple[socket.socket, End]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    end = End(right, largest)
    try:
        yield left, end
    finally:
        end.socket.close()
        left.close()


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(4, "little") + message for message in messages)


@pytest.mark.asyncio
async def test_messages_of_any_size_arrive_in_order_both_ways() -> None:
    sizes = [0, 1, 4096, 2**16 - 4, 2**16, 5 * 2**20, 3]
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    async with pair() as (left, right):
        for message in messages:
            left.socket.send(message)
            right.socket.send(message)
        await eventually(lambda: len(left.got) == len(right.got) == len(sizes))
        assert left.got == right.got == messages


@pytest.mark.asyncio
async def test_a_message_stays_what_it_was_when_the_next_comes() -> None:
    async with pair() as (left, right):
        for number, message in enumerate((b"one", b"two"), start=1):
            left.socket.send(message)
            await eventually(lambda number=number: len(right.got) == number)
        assert right.got == [b"one", b"two"]


@settings(max_examples=60, deadline=None)
@given(
    messages=st.lists(st.binary(max_size=40), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=40),
)
def test_however_the_bytes_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    async def run() -> list[bytes]:
        async with raw() as (sock, end):
            data, at = framed(*messages), 0
            while data:
                piece, data = data[: cuts[at % len(cuts)]], data[cuts[at % len(cuts)] :]
                at += 1
                sock.sendall(piece)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            await eventually(lambda: len(end.got) == len(messages))
            return end.got

    assert asyncio.run(run()) == messages


@pytest.mark.asyncio
async def test_a_sender_is_told_when_the_other_end_reads_nothing_and_when_it_does() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    end = End(left)
    right.setblocking(False)
    message = bytes(2**20)
    try:
        assert not end.socket.send(message)
        assert not end.socket.send(b"behind it")
        drained = asyncio.create_task(end.socket.drained())
        await asyncio.sleep(0.05)
        assert not drained.done()
        came = b""
        while not drained.done() or len(came) < len(message):
            try:
                came += right.recv(2**16)
            except BlockingIOError:
                await asyncio.sleep(0)
        await drained
        await asyncio.sleep(0)
        rest = framed(message, b"behind it")
        while len(came) < len(rest):
            came += right.recv(2**16)
        assert came == rest
        assert end.socket.send(b"at once")
    finally:
        end.socket.close()
        right.close()


@pytest.mark.asyncio
async def test_one_message_a_turn_of_the_loop() -> None:
    async with raw() as (sock, end):
        turns: list[int] = []
        turn = 0
        end.take = lambda _: turns.append(turn)
        sock.sendall(framed(*[b"x"] * 6))
        async with asyncio.timeout(20):
            while len(turns) < 6:
                turn += 1
                await asyncio.sleep(0)
        assert len(set(turns)) == 6


@pytest.mark.asyncio
async def test_the_end_is_told_once_and_what_was_sent_before_it_arrives() -> None:
    async with pair() as (left, right):
        left.socket.send(b"last words")
        left.socket.close()
        await eventually(lambda: right.why)
        assert right.got == [b"last words"]
        assert right.why == ["it was closed"]
        assert left.why == []  # closed by its owner
        with pytest.raises(ConnectionError):
            right.socket.send(b"to nobody")
        with pytest.raises(ConnectionError):
            left.socket.send(b"from nobody")
        assert len(right.why) == 1


@pytest.mark.asyncio
async def test_whoever_writes_to_a_dead_end_hears_of_it() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    end = End(left)
    right.close()
    with pytest.raises(ConnectionError):
        end.socket.send(b"to nobody")
    assert len(end.why) == 1
    with pytest.raises(ConnectionError):
        await end.socket.drained()


@pytest.mark.asyncio
async def test_whoever_waits_for_room_hears_that_there_will_be_none() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    end = End(left)
    assert not end.socket.send(bytes(2**22))
    drained = asyncio.create_task(end.socket.drained())
    await asyncio.sleep(0)
    right.close()
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(drained, 20)


@pytest.mark.asyncio
async def test_a_message_that_is_too_long_is_not_waited_for() -> None:
    async with raw(largest=100) as (sock, end):
        sock.sendall(framed(bytes(100)))
        await eventually(lambda: end.got)
        sock.sendall((101).to_bytes(4, "little"))
        await eventually(lambda: end.why)
        assert "101 bytes" in end.why[0]
        assert end.socket.over


@pytest.mark.asyncio
async def test_a_taker_that_fails_ends_the_socket_and_nothing_else() -> None:
    async with pair() as (left, right):

        def fails(_: bytes) -> None:
            raise RuntimeError("no")

        right.take = fails
        left.socket.send(b"x")
        left.socket.send(b"y")
        await eventually(lambda: right.why and left.why)
        assert right.why == ["a message could not be handled"]


@pytest.mark.asyncio
async def test_a_taker_may_close_the_socket_while_messages_wait() -> None:
    async with raw() as (sock, end):

        def close(data: bytes) -> None:
            end.got.append(data)
            end.socket.close()

        end.take = close
        sock.sendall(framed(b"a", b"b", b"c"))
        await eventually(lambda: end.got)
        await asyncio.sleep(0.02)
        assert end.got == [b"a"]
        assert end.why == []
