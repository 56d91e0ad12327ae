"""A real redis-server on a socket of the test's own that it can kill, freeze and restart. `scripts/install_redis.sh` installs it."""

import asyncio
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")


class RedisProcess:
    """No port that two tests could want; nothing is kept on the disk."""

    def __init__(self, folder: Path, *flags: str) -> None:
        # A socket's path is short, and that of a test's folder may not be.
        self._short = tempfile.TemporaryDirectory(prefix="redis-")
        self._socket = f"{self._short.name}/s"
        self.url = f"unix://{self._socket}?db=0"
        self._folder = folder
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        assert BINARY is not None
        place = ("--port", "0", "--unixsocket", self._socket)
        command = [BINARY, *place, "--save", "", "--dir", self._folder]
        self._process = subprocess.Popen(
            [*command, *self._flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(30):
            while True:
                assert self._process.poll() is None, "redis-server ended at its start"
                try:
                    _, writer = await asyncio.open_unix_connection(self._socket)
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
            self._short.cleanup()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
