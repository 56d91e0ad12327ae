"""Command lines of the mesh's processes, and the places that they fill."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stagemesh.errors import Unavailable
from stagemesh.local.fork_server import ForkServer
from stagemesh.local.processes import ChildProcess, flag_argv, service_argv
from stagemesh.local.supervisor import Supervised

# Sessions that still run when the mesh stops get this long, in seconds.
DRAIN_S = 5.0
_DRAINING = ("router", "stage")

Flag = str | int | float
Flags = Mapping[str, Flag]


@dataclass(frozen=True)
class Launcher:
    """Starts services and nodes that find each other through one etcd.

    `router_host` and `inner_host` are where the router and everything else listen, `flags` are added to every
    process of a kind, `folder` gets a log file per process. `node_prefix` makes node names unique on a shared
    etcd; `memory` is in bytes per node. With a `fork_server` stage processes come from there.
    """

    etcd: str
    router_host: str
    inner_host: str
    folder: Path
    env: Mapping[str, str]
    flags: Mapping[str, Flags]
    node_prefix: str
    threads: int
    memory: int
    device: str
    on_event: Callable[[str], None]
    fork_server: ForkServer | None = None

    def service(self, kind: str, flags: Flags, name: str = "") -> Supervised:
        """The place of a router, the cache or the registry; its name is the kind's when none is given."""
        place = name or kind

        async def start(restarts: int) -> ChildProcess:
            return await self._start(place, kind, flags)

        return Supervised(place, start, self.on_event)

    def node(self, index: int) -> Supervised:
        """The place of a stage process; a replacement is a node of another name."""

        async def start(restarts: int) -> ChildProcess:
            name = f"node-{index}" + (f"-{restarts}" if restarts else "")
            flags: dict[str, Flag] = {
                "node-id": self.node_prefix + name,
                "port": 0,
                "threads": self.threads,
                "memory": self.memory,
                "device": self.device,
            }
            return await self._start(name, "stage", flags)

        return Supervised(f"node-{index}", start, self.on_event)

    async def _start(self, name: str, kind: str, flags: Flags) -> ChildProcess:
        host = self.router_host if kind == "router" else self.inner_host
        common: dict[str, Flag] = {"host": host, "etcd": self.etcd}
        if kind in _DRAINING:
            common["drain-s"] = DRAIN_S
        all_flags = {**common, **flags, **self.flags.get(kind, {})}
        log_path = self.folder / f"{name}.log"
        if kind == "stage" and self.fork_server is not None:
            try:
                return await self.fork_server.fork(name, flag_argv(all_flags), log_path, self.env)
            except Unavailable as error:  # slower, and as good
                self.on_event(f"{error.message}; starting it anew")
        argv = service_argv(kind, all_flags)
        return await ChildProcess.start(name, argv, log_path, self.env)
