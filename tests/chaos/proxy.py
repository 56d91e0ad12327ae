"""A TCP proxy before one process: single directions of single connections can be held back, as a lossy link does.

What is held back is delivered when the link is healed, as TCP would deliver what it sent again: late frames arrive.
"""

import asyncio
import contextlib
from collections.abc import Callable

import psutil

TO_TARGET, FROM_TARGET = "to", "from"
_CHUNK = 2**16


class _Connection:
    """Both directions of one connection; `peer` is the port that it came from."""

    def __init__(self, peer: int) -> None:
        self.peer = peer
        self.open = {TO_TARGET: asyncio.Event(), FROM_TARGET: asyncio.Event()}
        for direction in self.open.values():
            direction.set()
        self.tasks: list[asyncio.Task[None]] = []


class Proxy:
    """Forwards to a port of this machine, which may have nobody behind it for a while."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._cut: list[tuple[str, Callable[[int], bool]]] = []

    async def start(self) -> None:
        """Listen on any free port of loopback."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        self.reset()
        tasks = [task for connection in self._connections for task in connection.tasks]
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self, direction: str, from_pid: int | None = None) -> int:
        """Hold back one direction of what `from_pid`, or anyone, has open and will open; how many were open."""
        ports = None if from_pid is None else _ports_of(from_pid)

        def concerns(peer: int) -> bool:
            return from_pid is None or peer in (ports or ()) or peer in _ports_of(from_pid)

        self._cut.append((direction, concerns))
        hit = [connection for connection in self._connections if concerns(connection.peer)]
        for connection in hit:
            connection.open[direction].clear()
        return len(hit)

    def silence(self) -> int:
        """Hold back what is open now, both ways; new connections work. How many were open."""
        for connection in self._connections:
            for direction in connection.open.values():
                direction.clear()
        return len(self._connections)

    def heal(self) -> None:
        """Let everything through again, what was held back first."""
        self._cut.clear()
        for connection in self._connections:
            for direction in connection.open.values():
                direction.set()

    def reset(self) -> int:
        """Break every open connection; how many there were."""
        for connection in self._connections:
            for task in connection.tasks:
                task.cancel()
        return len(self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer.get_extra_info("peername")[1])
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        for direction, concerns in self._cut:
            if concerns(connection.peer):
                connection.open[direction].clear()
        self._connections.add(connection)
        ways = ((TO_TARGET, reader, far_writer), (FROM_TARGET, far_reader, writer))
        connection.tasks = [
            asyncio.create_task(_forward(source, sink, connection.open[way])) for way, source, sink in ways
        ]
        await asyncio.wait(connection.tasks, return_when=asyncio.FIRST_COMPLETED)
        # One end is gone: so is the other, unless it is still held back.
        for task in connection.tasks:
            task.cancel()
        await asyncio.gather(*connection.tasks, return_exceptions=True)
        for end in (writer, far_writer):
            end.transport.abort()
        self._connections.discard(connection)


async def _forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter, may: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            await may.wait()
            sink.write(data)
            await sink.drain()


def _ports_of(pid: int) -> set[int]:
    """Local ports of the process's connections."""
    try:
        return {each.laddr.port for each in psutil.Process(pid).net_connections("tcp") if each.raddr}
    except psutil.Error:
        return set()
