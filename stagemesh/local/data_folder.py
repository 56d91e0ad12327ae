"""The folder in which a local mesh keeps what must survive it: etcd's data, and how large the mesh was."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from stagemesh.errors import ConfigError
from stagemesh.local.ports import free_port

_VERSION = 1
_FILE = "mesh.json"
_MOST_NODES = 10_000


class DataFolder:
    """One mesh at a time uses it: from `open` to `close` it is locked, also against other processes.

    Models and what follows from them are in etcd, in `etcd`, or `etcd-0` and so on; `mesh.json` has the ports at which its
    members know one another, and how many nodes there were.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nodes = 0
        self.peer_ports: list[int] = []
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"<DataFolder {self.path} members={len(self.peer_ports)} nodes={self.nodes}>"

    def open(self) -> None:
        """Make the folder if need be, lock it and read what it says; raises `ConfigError`."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(
                f"data: another mesh uses {self.path}; stop it, or name another folder"
            ) from None
        except OSError as error:
            self.close()
            raise ConfigError(f"data: {self.path} cannot be used: {error.strerror}") from None
        try:
            self._read()
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        """Let others use it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def use(self, *, members: int, nodes: int) -> None:
        """Note the size of the mesh that uses it now; the number of etcd members stays what it was at first.

        Raises `ConfigError` when another number of members is asked for.
        """
        if self.peer_ports and len(self.peer_ports) != members:
            raise ConfigError(
                f"data: {self.path} is of {len(self.peer_ports)} etcd members; {members} cannot take them over"
            )
        while len(self.peer_ports) < members:
            self.peer_ports.append(free_port(avoid=frozenset(self.peer_ports)))
        self.nodes = nodes
        content = {"version": _VERSION, "etcd_peer_ports": self.peer_ports, "nodes": nodes}
        unfinished = self.path / f"{_FILE}.new"
        try:
            unfinished.write_text(json.dumps(content) + "\n")
            unfinished.replace(self.path / _FILE)
        except OSError as error:
            raise ConfigError(f"data: {self.path} cannot be written: {error.strerror}") from None

    def _read(self) -> None:
        try:
            content = json.loads((self.path / _FILE).read_text())
        except FileNotFoundError:
            if any(self.path.glob("etcd*")):
                raise ConfigError(
                    f"data: {self.path} has etcd's data and no {_FILE}; it is no folder of a mesh"
                ) from None
            return
        except (OSError, ValueError) as error:
            raise ConfigError(f"data: {self.path / _FILE} cannot be read: {error}") from None
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            raise ConfigError(f"data: {self.path / _FILE} is not of this version")
        self.nodes = _whole(content.get("nodes"), 1, _MOST_NODES, self.path)
        ports = content.get("etcd_peer_ports")
        if not isinstance(ports, list) or not ports:
            raise ConfigError(f"data: {self.path / _FILE} names no ports of etcd")
        self.peer_ports = [_whole(port, 1, 65_535, self.path) for port in ports]


def _whole(value: Any, least: int, most: int, path: Path) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"data: {path / _FILE} has {str(value)[:20]!r} for a number of {least} to {most}")
    return value
