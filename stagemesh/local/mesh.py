"""A whole mesh as processes of this machine: etcd, registry, cache, routers, and a stage process per replica."""

import asyncio
import os
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import psutil

from stagemesh.client import AsyncClient
from stagemesh.errors import ConfigError, DeadlineExceeded
from stagemesh.local import deployment, waiting
from stagemesh.local.data_folder import DataFolder
from stagemesh.local.etcd_cluster import EtcdCluster
from stagemesh.local.etcd_server import EtcdServer, etcd_binary
from stagemesh.local.fork_server import ForkServer
from stagemesh.local.launcher import Flags, Launcher
from stagemesh.local.node_pool import NodePool
from stagemesh.local.ports import claim
from stagemesh.local.processes import ChildProcess
from stagemesh.local.routers import further_ports, suffixes
from stagemesh.local.supervisor import Supervised
from stagemesh.v1 import registry_pb2

# More than the launcher lets sessions drain.
_GRACE_S = 15.0
_LOOPBACK = "127.0.0.1"
_START_S = 120.0
# Part of the memory that is free now that the nodes may plan with, together.
_MEMORY_PART = 0.8


class LocalMesh:
    """`async with LocalMesh(stages=2, replicas=2) as mesh` runs one; leaving it ends every process.

    Ports: 0 means any free one; a taken one raises `ConfigError` before anything starts. `etcd` is
    "host:port,..." of a running etcd; without it one is started on loopback. `threads` and `memory` (bytes) are
    per stage process; without them the machine's cores and free memory are shared out. `flags` adds flags to
    every process of a kind ("router", "stage", "cache", "registry"), `env` adds to all their environments.
    `progress` gets a line whenever something happens. `host` is where the router listens; the rest stays on
    loopback unless `etcd` is given. There are `routers` of them, which share nothing but etcd: the first one has the
    given ports, each further one the next free ones after them. Of `registries` one leads. `etcd_members` is 1, or 3, of which any
    one may be lost.

    With `data`, a folder, the mesh keeps what was deployed: started again with it, the same models come back, on at least as many
    nodes unless `nodes` says how many. With `max_nodes` more nodes are started, and stopped again, as the registry asks.

    A process that dies is started again; etcd with its data, a stage as a new empty node. Stage processes are forked from one
    that has imported everything, so that they are there at once; with `fork=False` each is started anew. Raises `ConfigError` and
    `Unavailable` with one clear line when the mesh does not come up.
    """

    def __init__(
        self,
        *,
        stages: int = 2,
        replicas: int = 2,
        routers: int = 1,
        host: str = "127.0.0.1",
        http_port: int = 8000,
        grpc_port: int = 8001,
        registry_port: int = 0,
        cache_port: int = 0,
        etcd: str | None = None,
        threads: int | None = None,
        memory: int | None = None,
        device: str = "",
        flags: Mapping[str, Flags] | None = None,
        env: Mapping[str, str] | None = None,
        progress: Callable[[str], None] | None = None,
        fork: bool = True,
        nodes: int = 0,
        max_nodes: int = 0,
        registries: int = 1,
        etcd_members: int = 1,
        data: Path | None = None,
    ) -> None:
        self.stages = stages
        self.replicas = replicas
        self.routers = routers
        self._nodes_wanted = nodes
        self.nodes = nodes or max(1, stages * replicas)
        self.registries = registries
        self._etcd_members = etcd_members
        if data is not None and etcd is not None:
            raise ConfigError("data: is for the etcd that is started here; what is deployed is kept by yours")
        self._data = DataFolder(data) if data is not None else None
        self.host = host
        # Only the router is for others, unless other machines may join through an etcd that they know.
        self._inner_host = _LOOPBACK if etcd is None else host
        self._wanted = {"http": http_port, "grpc": grpc_port, "registry": registry_port, "cache": cache_port}
        self._ports: dict[str, int] = {}
        self._given_etcd = etcd
        self._threads_wanted = threads
        self._memory = memory
        self._device = device
        self._flags = flags or {}
        self._env = {**os.environ, **(env or {})}
        self._progress = progress or (lambda line: None)
        # On an etcd that others use too, names must be ours alone.
        self._prefix = "" if etcd is None else f"{socket.gethostname().split('.')[0]}-{uuid.uuid4().hex[:4]}-"
        self._folder: Path | None = None
        self._etcd: EtcdCluster | None = None
        # macOS forks, and then its frameworks do not work in the child.
        self._fork = fork and sys.platform == "linux"
        self._fork_server: ForkServer | None = None
        self._services: dict[str, Supervised] = {}
        self._nodes: list[Supervised] = []
        self._pool = NodePool(self.nodes, max_nodes)

    # ---- where things are ----

    @property
    def grpc_address(self) -> str:
        """The first router's gRPC address."""
        return self.grpc_addresses[0]

    @property
    def grpc_addresses(self) -> list[str]:
        """Every router's gRPC address."""
        return self._router_addresses("grpc")

    @property
    def http_address(self) -> str:
        """The first router's HTTP address."""
        return self.http_addresses[0]

    @property
    def http_addresses(self) -> list[str]:
        """Every router's HTTP address."""
        return self._router_addresses("http")

    @property
    def registry_address(self) -> str:
        """The first registry's gRPC address."""
        return self.registry_addresses[0]

    @property
    def registry_addresses(self) -> list[str]:
        """Every registry's gRPC address; each takes every request."""
        host = _reachable(self._inner_host)
        return [f"{host}:{self._ports['registry' + suffix]}" for suffix in suffixes(self.registries)]

    @property
    def cache_address(self) -> str:
        """The cache's gRPC address."""
        return f"{_reachable(self._inner_host)}:{self._ports['cache']}"

    @property
    def etcd_endpoints(self) -> str:
        """host:port,... of etcd."""
        if self._etcd is not None:
            return self._etcd.endpoints
        return self._given_etcd or ""

    @property
    def etcd_server(self) -> EtcdServer | None:
        """The etcd that this mesh started, to stop and start it again; `None` when it was given one."""
        return self.etcd_servers[0] if self.etcd_servers else None

    @property
    def etcd_servers(self) -> list[EtcdServer]:
        """Every member of it."""
        return self._etcd.members if self._etcd is not None else []

    @property
    def folder(self) -> Path | None:
        """The temp folder with etcd's data and a log file per process; `None` when not running."""
        return self._folder

    @property
    def stage_processes(self) -> list[ChildProcess]:
        """The present process of each node."""
        return [node.process for node in self._nodes if node.process is not None]

    def service_process(self, kind: str) -> ChildProcess:
        """The present process of the "router", "cache" or "registry"; further routers are "router-1" and so on."""
        process = self._services[kind].process
        assert process is not None, kind
        return process

    @property
    def processes(self) -> list[ChildProcess]:
        """Every present process, etcd first."""
        etcd = [member.process for member in self.etcd_servers if member.process is not None]
        services = [place.process for place in self._services.values() if place.process is not None]
        return [*etcd, *services, *self.stage_processes]

    # ---- life ----

    async def start(self) -> None:
        """Start everything and wait until it answers; on an error nothing is left running."""
        self._ports = claim(
            {
                **self._wanted,
                **{f"registry{suffix}": 0 for suffix in suffixes(self.registries)[1:]},
                **further_ports(self.routers, self._wanted, self.host),
            },
            self.host,
        )
        if self._given_etcd is None:
            etcd_binary()
        if self._data is not None:
            self._data.open()
            self._pool.least = self.nodes = self._nodes_wanted or max(self.nodes, self._data.nodes)
        self._folder = Path(tempfile.mkdtemp(prefix="stagemesh-"))
        try:
            async with asyncio.timeout(_START_S):
                await self._start_all()
        except TimeoutError:
            await self.stop()
            raise DeadlineExceeded(f"the mesh did not come up within {_START_S:.0f} s") from None
        except BaseException:
            await self.stop()
            raise

    async def _start_all(self) -> None:
        assert self._folder is not None
        if self._given_etcd is None:
            self._progress("starting etcd")
            peer_ports: list[int] = []
            if self._data is not None:
                self._data.use(members=self._etcd_members, nodes=self.nodes)
                peer_ports = self._data.peer_ports
            self._etcd = EtcdCluster(
                self._folder if self._data is None else self._data.path,
                self._progress,
                members=self._etcd_members,
                peer_ports=peer_ports,
                durable=self._data is not None,
            )
            await self._etcd.start()
        if self._fork:
            env = {**self._env, "TMPDIR": str(self._folder)}
            self._fork_server = await ForkServer.start(self._folder / "fork-server.log", env)
        launcher, ports = self._launcher(self._folder), self._ports
        self._services = {
            **{
                f"registry{suffix}": launcher.service(
                    "registry", self._pool.flags | {"port": ports[f"registry{suffix}"]}, f"registry{suffix}"
                )
                for suffix in suffixes(self.registries)
            },
            "cache": launcher.service("cache", {"port": ports["cache"]}),
        }
        for suffix in suffixes(self.routers):
            flags = {"port": ports[f"grpc{suffix}"], "http-port": ports[f"http{suffix}"]}
            self._services[f"router{suffix}"] = launcher.service("router", flags, f"router{suffix}")
        self._nodes = [launcher.node(index) for index in range(self.nodes)]
        places = [*self._services.values(), *self._nodes]
        routers = "router" if self.routers == 1 else f"{self.routers} routers"
        self._progress(f"starting registry, cache, {routers} and {self.nodes} stage processes")
        await asyncio.gather(*(place.start() for place in places))
        await waiting.until_up(
            {place.name: place for place in places},
            {
                **{
                    f"registry{suffix}": address
                    for suffix, address in zip(
                        suffixes(self.registries), self.registry_addresses, strict=True
                    )
                },
                "cache": self.cache_address,
                **{
                    f"router{suffix}": address
                    for suffix, address in zip(suffixes(self.routers), self.grpc_addresses, strict=True)
                },
            },
            self.grpc_address,
            self._progress,
        )
        for place in places:
            place.supervise()
        await self._pool.start(self.etcd_endpoints, self._nodes, launcher.node, _GRACE_S, self._progress)
        self._progress(f"mesh is up: {len(places)} processes")

    async def stop(self) -> None:
        """End every process and remove the temp folder. May be called more than once."""
        await self._pool.stop()
        places = [*self._services.values(), *self._nodes]
        # All released before any ends: a place must not be refilled while the others go.
        await asyncio.gather(*(place.release() for place in places))
        await asyncio.gather(*(place.stop(_GRACE_S) for place in places))
        if self._fork_server is not None:
            await self._fork_server.stop()
            self._fork_server = None
        if self._etcd is not None:
            await self._etcd.stop()
            self._etcd = None
        self._services, self._nodes = {}, []
        if self._folder is not None:
            folder, self._folder = self._folder, None
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if self._data is not None:
            self._data.close()

    async def __aenter__(self) -> "LocalMesh":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def client(self, *, timeout_s: float = 120.0) -> AsyncClient:
        """A client of this mesh's routers; close it after use."""
        return AsyncClient(self.grpc_addresses, timeout_s=timeout_s)

    async def deploy(
        self,
        source: str | Path,
        name: str = "",
        *,
        stages: int | None = None,
        replicas: int | None = None,
        dtype: str = "",
        policy: str = "",
        cache: bool = True,
        force: bool = False,
        certificate: str = "",
        allow_pending: bool = False,
        scaling: registry_pb2.Scaling | None = None,
        canary: float = 0.0,
        canary_s: int = 0,
        plan: str = "",
        wait: bool = True,
        timeout_s: float = 600.0,
    ) -> registry_pb2.ModelSpec:
        """Deploy a local folder or hub id, and wait until every replica is ready in the router's view.

        Raises `CheckpointError` and the like from the registry's checks, `Unavailable` with the replica's own
        words when one failed to load, `FailedPrecondition` or `ResourceExhausted` when there is no room for it, and `DeadlineExceeded`.
        """
        request = registry_pb2.DeployRequest(
            source=deployment.absolute_source(str(source)),
            name=name,
            stages=self.stages if stages is None else stages,
            replicas=self.replicas if replicas is None else replicas,
            dtype=dtype,
            policy=policy,
            cache=cache,
            force=force,
            certificate=certificate,
            allow_pending=allow_pending,
            scaling=scaling,
            canary=canary,
            canary_s=canary_s,
            plan=plan,
        )
        spec = await deployment.deploy(self.registry_address, request)
        if wait:
            await self.wait_ready(spec.name, timeout_s=timeout_s, revision=deployment.wanted_revision(spec))
        return spec

    async def wait_ready(self, name: str, *, timeout_s: float = 600.0, revision: str = "") -> None:
        """Wait until every replica that the model wants is ready in each router's view.

        With `revision` also until its rollout is over; raises `Unavailable` with the reason when that was taken back.
        """
        for router in self.grpc_addresses:
            await deployment.wait_in_router(
                self.registry_address, router, name, self._progress, timeout_s, revision
            )

    def _router_addresses(self, kind: str) -> list[str]:
        host = _reachable(self.host)
        return [f"{host}:{self._ports[kind + suffix]}" for suffix in suffixes(self.routers)]

    def _launcher(self, folder: Path) -> Launcher:
        # What the processes' libraries leave in a temp folder (torch does at import) goes with ours.
        return Launcher(
            etcd=self.etcd_endpoints,
            router_host=self.host,
            inner_host=self._inner_host,
            folder=folder,
            env={**self._env, "TMPDIR": str(folder)},
            flags=self._flags,
            node_prefix=self._prefix,
            threads=self._threads_wanted or max(1, (os.cpu_count() or 1) // self._pool.most),
            memory=self._memory or int(psutil.virtual_memory().available * _MEMORY_PART) // self._pool.most,
            device=self._device,
            on_event=self._progress,
            fork_server=self._fork_server,
        )

    def __repr__(self) -> str:
        alive = sum(process.returncode is None for process in self.processes)
        return f"<LocalMesh {self.stages} stages x {self.replicas} replicas, {alive} processes>"


def _reachable(host: str) -> str:
    """An address that reaches a server on this machine that listens on `host`."""
    return _LOOPBACK if host in ("0.0.0.0", "::") else host
