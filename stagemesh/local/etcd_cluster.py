"""A real etcd of one or three members on loopback; with three, any one may be lost."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from stagemesh.errors import ConfigError
from stagemesh.local.etcd_server import EtcdServer
from stagemesh.local.ports import free_port, is_free


class EtcdCluster:
    """Members that know one another; each is a process that is started again when it dies, with its data.

    `folder` gets a folder and a log per member. `peer_ports`, one per member, must stay the same over starts with the same
    data. What is written is on the disk before it counts, if it is to be `durable`.
    """

    def __init__(
        self,
        folder: Path,
        on_event: Callable[[str], None] = lambda line: None,
        *,
        members: int = 1,
        peer_ports: Sequence[int] = (),
        durable: bool = False,
    ) -> None:
        if members not in (1, 3, 5):
            raise ConfigError(
                f"etcd has 1, 3 or 5 members, not {members}: an even number survives no more losses"
            )
        ports = list(peer_ports)
        taken = [str(port) for port in ports if not is_free(port)]
        if taken:
            raise ConfigError(f"etcd's members know one another by port {', '.join(taken)}, which is taken")
        while len(ports) < members:
            ports.append(free_port(avoid=frozenset(ports)))
        names = ["etcd"] if members == 1 else [f"etcd-{number}" for number in range(members)]
        cluster = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True))
        clients: list[int] = []
        for _ in range(members):
            clients.append(free_port(avoid=frozenset([*ports, *clients])))
        self.members = [
            EtcdServer(
                folder,
                on_event,
                name=name,
                client_port=client,
                peer_port=port,
                cluster=cluster,
                durable=durable,
            )
            for name, client, port in zip(names, clients, ports, strict=True)
        ]

    @property
    def endpoints(self) -> str:
        """Client addresses, host:port,..."""
        return ",".join(member.endpoint for member in self.members)

    async def start(self) -> None:
        """Start all and wait until all answer; raises `Unavailable`."""
        # Each is ready once most are there.
        await asyncio.gather(*(member.start() for member in self.members))

    async def stop(self) -> None:
        """End all; their data stays."""
        await asyncio.gather(*(member.stop() for member in self.members))
