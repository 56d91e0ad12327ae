"""A real redis-server on loopback that a test can kill, freeze and restart. `scripts/install_redis.sh` installs it."""

import asyncio
import shutil
import signal
import subprocess
from pathlib import Path

from tests.library.etcd_process import free_port

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")


class RedisProcess:
    """`url` stays the same over restarts; nothing is kept on the disk."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        assert BINARY is not None
        command = [
            BINARY,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            self._folder,
        ]
        self._process = subprocess.Popen(
            [*command, *self._flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(30):
            while True:
                assert self._process.poll() is None, "redis-server ended at its start"
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

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
