"""A mesh that can be broken in every way the suite needs: fixed ports, proxies, metrics of each process, bad replicas."""

import asyncio
import re
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from stagemesh import AsyncClient
from stagemesh.errors import StagemeshError
from stagemesh.local import LocalMesh
from stagemesh.local.launcher import DRAIN_S, Flag, Flags, Launcher
from stagemesh.local.ports import free_port
from stagemesh.local.processes import ChildProcess, service_argv
from stagemesh.v1 import inference_pb2, registry_pb2

from .proxy import Proxy

MODEL, HUB_MODEL = "m", "small/model"
STAGES, REPLICAS, ROUTERS = 3, 3, 2
# Nodes that are reached through a proxy, one of each stage at first; and one whose replica can be told to fail.
PROXIED_NODES, ERRING_NODES = (6, 7, 8), (4,)
# A node whose hub cache is on a file system of its own that holds a model's configuration, but no weights.
FULL_NODE, DISK = 2, "512k"
ON_FULL_DISK = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={DISK} none "$0" && exec "$@"']
ERRING = Path(__file__).with_name("erring_stage.py")
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


async def until(check: Callable[[], Awaitable[object]], within_s: float, every_s: float = 0.05) -> float:
    """Wait until `await check()` is true; the seconds it took. Raises `TimeoutError`."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(within_s):
        while not await check():
            await asyncio.sleep(every_s)
    return loop.time() - began


@dataclass(frozen=True)
class Replica:
    """One ready replica, and the process that hosts it."""

    stage: int
    replica_id: str
    record: registry_pb2.ReplicaRecord
    process: ChildProcess

    def __str__(self) -> str:
        return f"{self.process.name} (stage {self.stage})"


class ChaosMesh(LocalMesh):
    """3 stages x 3 replicas, two routers, a cache, a registry and etcd; the first router sees etcd through a proxy."""

    def __init__(self, hub: str, hub_cache: Path) -> None:
        self.hub_cache = hub_cache
        self.full_disk = _may_mount(hub_cache)
        self.proxies: dict[int, Proxy] = {}
        self.events: list[str] = []
        self.router_etcd: Proxy | None = None
        self.metrics_ports: dict[str, int] = {}
        super().__init__(
            stages=STAGES,
            replicas=REPLICAS,
            routers=ROUTERS,
            http_port=0,
            grpc_port=0,
            threads=1,
            memory=2**30,
            progress=self.events.append,
            env={"HF_ENDPOINT": hub, "HF_HUB_CACHE": str(hub_cache), "HF_HUB_OFFLINE": "0"},
        )

    def _launcher(self, folder: Path) -> Launcher:
        plain = super()._launcher(folder)
        fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        return _ChaosLauncher(**fields, mesh=self)

    async def stop(self) -> None:
        await super().stop()
        for proxy in [*self.proxies.values(), *([self.router_etcd] if self.router_etcd else [])]:
            await proxy.stop()
        self.proxies.clear()
        self.router_etcd = None

    # ---- who is there ----

    async def hosted(self, client: AsyncClient, model: str = MODEL) -> list[Replica]:
        """Ready replicas in the first router's view, of processes of this mesh that run."""
        hosts = {process.pid: process for process in self.stage_processes if process.returncode is None}
        return [
            Replica(record.stage, record.replica_id, record, hosts[record.pid])
            for record in ready(await client.status(timeout_s=20), model)
            if record.pid in hosts
        ]

    async def whole(self, client: AsyncClient, model: str = MODEL) -> bool:
        """Whether the router has every replica of the model, all of them in running processes of this mesh."""
        try:
            status = await client.status(timeout_s=20)
        except StagemeshError:
            return False
        hosts = {process.pid for process in self.stage_processes if process.returncode is None}
        found = [record for record in ready(status, model) if record.pid in hosts]
        return len(found) == len(ready(status, model)) == STAGES * REPLICAS

    @property
    def router_processes(self) -> list[ChildProcess]:
        """The present process of each router."""
        return [
            place.process
            for name, place in self._services.items()
            if name.startswith("router") and place.process
        ]

    def index_of(self, process: ChildProcess) -> int:
        """The place of a stage process among the nodes."""
        return next(index for index, each in enumerate(self.stage_processes) if each.pid == process.pid)

    # ---- replicas that are not as the others ----

    def proxy_of(self, replica: Replica) -> Proxy | None:
        """The proxy that others reach the replica's node through, if it has one."""
        return self.proxies.get(self.index_of(replica.process))

    def can_err(self, replica: Replica) -> bool:
        """Whether SIGUSR1 makes the replica refuse sessions, and SIGUSR2 makes it well again."""
        return self.index_of(replica.process) in ERRING_NODES

    async def etcd_for_router(self, etcd: str) -> str:
        """The first router's own way to etcd leads over a proxy that can go silent."""
        if self.router_etcd is None:
            self.router_etcd = Proxy(int(etcd.rsplit(":", 1)[1]))
            await self.router_etcd.start()
        return f"127.0.0.1:{self.router_etcd.port}"

    # ---- what processes say of themselves ----

    async def metrics(self, process: ChildProcess) -> dict[tuple[str, str], float]:
        """Prometheus samples of a process by (name, labels as written); empty when it does not answer."""
        port = self.metrics_ports.get(process.name)
        if port is None:
            return {}
        try:
            async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
                text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
        except httpx.HTTPError:
            return {}
        matches = (_SAMPLE.match(line) for line in text.splitlines() if not line.startswith("#"))
        return {(m[1], m[2] or ""): float(m[3]) for m in matches if m}

    async def total(self, name: str, processes: list[ChildProcess], label: str = "") -> float | None:
        """Sum of a metric over processes, of samples whose labels contain `label`; None where nobody has it."""
        found = [
            value
            for samples in await asyncio.gather(*(self.metrics(process) for process in processes))
            for (metric, labels), value in samples.items()
            if metric == name and label in labels
        ]
        return sum(found) if found else None

    def rss(self, process: ChildProcess) -> int:
        """Resident bytes of a process."""
        return int(psutil.Process(process.pid).memory_info().rss)


@dataclass(frozen=True)
class _ChaosLauncher(Launcher):
    mesh: ChaosMesh | None = None

    async def _start(self, name: str, kind: str, flags: Flags) -> ChildProcess:
        assert self.mesh is not None
        port = self.mesh.metrics_ports[name] = free_port()
        changed: dict[str, Flag] = {**flags, "metrics-port": port}
        if kind == "stage":
            return await self._start_node(name, int(name.split("-")[1]), changed)
        if name in ("router", "router-0"):
            changed["etcd"] = await self.mesh.etcd_for_router(self.etcd)
        return await super()._start(name, kind, changed)

    async def _start_node(self, name: str, index: int, flags: dict[str, Flag]) -> ChildProcess:
        assert self.mesh is not None
        flags |= {"host": self.inner_host, "etcd": self.etcd, "drain-s": DRAIN_S}
        if index in PROXIED_NODES:
            proxy = self.mesh.proxies.get(index)
            if proxy is None:
                proxy = self.mesh.proxies[index] = Proxy(free_port())
                await proxy.start()
            flags |= {"port": proxy.target, "advertise": f"127.0.0.1:{proxy.port}"}
        if index not in ERRING_NODES and not (index == FULL_NODE and self.mesh.full_disk):
            return await super()._start(name, "stage", flags)  # forked, as `stagemesh serve` does
        argv = service_argv("stage", {**flags, **self.flags.get("stage", {})})
        if index in ERRING_NODES:
            at = argv.index("-m")
            argv[at : at + 2] = [str(ERRING)]
        else:
            argv = [*ON_FULL_DISK, str(self.mesh.hub_cache), *argv]
        return await ChildProcess.start(name, argv, self.folder / f"{name}.log", self.env)


def _may_mount(folder: Path) -> bool:
    """Whether this machine lets us give a process a file system of its own."""
    try:
        return subprocess.run([*ON_FULL_DISK, str(folder), "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def ready(status: inference_pb2.MeshStatus, model: str) -> list[registry_pb2.ReplicaRecord]:
    """Records of the model's ready replicas."""
    return [
        item.record
        for item in status.replicas
        if item.record.model == model and item.record.state == registry_pb2.REPLICA_STATE_READY
    ]
