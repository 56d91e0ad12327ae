"""The raw socket contender of the transport benchmark: tensors over TCP on loopback, no framing at all.

The receiving end is started as `python -m bench.socket_peer --port-file FILE`.
"""

import argparse
import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import numpy as np

from bench.children import announce_port
from stagemesh.malloc import keep_large_blocks

# Bytes of a tensor and how many of them come, before they come.
_PLAN = struct.Struct("<QQ")


class Sender:
    """The sending end, in the benchmark's process."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, array: np.ndarray, count: int) -> float:
        """Seconds to send `array` so many times, until the receiver said that it has the last one."""
        data = array.data.cast("B")
        started = time.perf_counter()
        self._connection.sendall(_PLAN.pack(data.nbytes, count))
        for _ in range(count):
            self._connection.sendall(data)
        if self._connection.recv(1) != b"k":
            raise RuntimeError("the receiver went away")
        return time.perf_counter() - started


@contextlib.contextmanager
def connected(port: int) -> Iterator[Sender]:
    """A sender on an open connection."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Sender(connection)


def _fill(connection: socket.socket, view: memoryview) -> bool:
    """Receive until `view` is full; False when the sender is gone."""
    while view.nbytes:
        got = connection.recv_into(view)
        if not got:
            return False
        view = view[got:]
    return True


def main(port_file: str) -> None:
    """Receive into one reused buffer until the sender goes."""
    keep_large_blocks()
    plan = bytearray(_PLAN.size)
    buffer = np.empty(0, np.uint8)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        announce_port(port_file, listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            while _fill(connection, memoryview(plan)):
                nbytes, count = _PLAN.unpack(plan)
                if buffer.nbytes != nbytes:
                    buffer = np.zeros(nbytes, np.uint8)
                for _ in range(count):
                    _fill(connection, buffer.data)
                connection.sendall(b"k")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    main(parser.parse_args().port_file)
