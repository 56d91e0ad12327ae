"""Whether two processes share a network of one host, and whether a connection between them is direct. Linux only.

Abstract Unix sockets can be reached within one network namespace. That two processes are in the same one does not make
their connection direct: a proxy may stand between them, and whoever wants its faults, limits or logs put it there
on purpose. So the end that was connected to says which address it sees, and the other end looks whether that is a socket
of its own process; behind a proxy it is the proxy's.
"""

import hashlib
import os
import sys
from functools import lru_cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/self/ns/net")
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_DESCRIPTORS = Path("/proc/self/fd")
# Columns of the tables: the local address as hexadecimal ADDRESS:PORT, and the inode of the socket.
_LOCAL, _INODE = 1, 9


@lru_cache(maxsize=1)
def network_id() -> str:
    """A name for this host's running kernel and the network namespace in it; empty when that cannot be told."""
    if sys.platform != "linux":
        return ""
    try:
        boot, network = _BOOT.read_text().strip(), os.readlink(_NETWORK)
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {network}".encode()).hexdigest()[:32]


def is_own_connection(address: str) -> bool:
    """Whether a TCP socket of this process has the port of `address`, as gRPC spells it: `ipv4:127.0.0.1:4711`.

    It reads the system's tables, which takes milliseconds: not for the event loop.
    """
    _, _, digits = address.rpartition(":")
    if not (digits.isascii() and digits.isdigit()) or not 0 < int(digits) < 2**16:
        return False
    inodes = {inode for table in _TABLES for inode in _inodes(table, int(digits))}
    return bool(inodes) and not inodes.isdisjoint(_own_inodes())


def _inodes(table: Path, port: int) -> list[str]:
    """Inodes of the sockets in a table that have this port of their own."""
    found = []
    suffix = f":{port:04X}"
    try:
        with table.open() as lines:
            next(lines, None)
            for line in lines:
                columns = line.split()
                if len(columns) > _INODE and columns[_LOCAL].endswith(suffix):
                    found.append(columns[_INODE])
    except OSError:
        pass  # no such table here
    return [inode for inode in found if inode != "0"]


def _own_inodes() -> set[str]:
    own = set()
    for descriptor in os.listdir(_DESCRIPTORS):
        try:
            target = os.readlink(_DESCRIPTORS / descriptor)
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            own.add(target[len("socket:[") : -1])
    return own
