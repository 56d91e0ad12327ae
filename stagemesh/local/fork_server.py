"""Stage processes from a process that has imported everything: there in a tenth of a second instead of in seconds.

The server is `stagemesh.services.stage.warm.fork_server`; its docstring says what is spoken on the socket between.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemesh.errors import Unavailable
from stagemesh.local.processes import ChildProcess

_MODULE = "stagemesh.services.stage.warm.fork_server"
_FORK_S = 60.0
_MOST_BYTES = 2**17


class ForkedProcess:
    """A process that the server forked, with what `asyncio.subprocess.Process` has of use for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._over = asyncio.Event()
        # Stays this process's even when it has ended and its number is given to another.
        self._descriptor = os.pidfd_open(pid)

    def __repr__(self) -> str:
        return f"<ForkedProcess {self.pid} returncode={self.returncode}>"

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.returncode is None:
            try:
                signal.pidfd_send_signal(self._descriptor, number)
            except ProcessLookupError:
                pass  # it has ended, and the server says so in a moment

    async def wait(self) -> int:
        """Wait for its end; the exit status, or minus the number of a signal."""
        await self._over.wait()
        assert self.returncode is not None
        return self.returncode

    def ended(self, status: int) -> None:
        """The server says that it has."""
        if self.returncode is None:
            self.returncode = status
            os.close(self._descriptor)
            self._over.set()


class ForkServer:
    """A running fork server and what it forked. The kernel ends all of that when this process dies.

    Args:
        process: the server's.
        connection: this end of the socket.
    """

    def __init__(self, process: ChildProcess, connection: socket.socket) -> None:
        self.process = process
        self._connection = connection
        self._asked: dict[int, asyncio.Future[ForkedProcess]] = {}
        self._forked: dict[int, ForkedProcess] = {}
        self._count = 0
        self._reader = asyncio.create_task(self._read(), name="fork-server")

    def __repr__(self) -> str:
        return f"<ForkServer {self.process} forked={len(self._forked)}>"

    @classmethod
    async def start(cls, log_path: Path, env: Mapping[str, str]) -> "ForkServer":
        """Start it with this environment; it imports for some seconds before it forks for the first time."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        argv = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())]
        # Read by a library when it is imported, which would start threads, and they would be missing in a fork.
        env = {**env, "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            process = await ChildProcess.start("fork-server", argv, log_path, env, (theirs.fileno(),))
        return cls(process, ours)

    async def fork(self, name: str, argv: list[str], log_path: Path, env: Mapping[str, str]) -> ChildProcess:
        """A stage process with these flags.

        Raises:
            Unavailable: the server has ended, or cannot fork.
        """
        self._count += 1
        number, answer = self._count, asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        message = json.dumps({"fork": number, "argv": argv, "env": dict(env)}).encode()
        try:
            with log_path.open("ab") as log:
                socket.send_fds(self._connection, [message], [log.fileno()])
            async with asyncio.timeout(_FORK_S):
                return ChildProcess(name, await answer, log_path)
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"{name} cannot be forked: {type(error).__name__}") from error
        finally:
            del self._asked[number]

    async def stop(self) -> None:
        """End it, and whatever it forked that still runs."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._connection.close()
        await self.process.stop(1.0)
        self._lost()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._connection, _MOST_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                break
            self._take(json.loads(data))
        await self.process.wait()
        self._lost()

    def _take(self, message: dict[str, Any]) -> None:
        if "exited" in message:
            if (process := self._forked.pop(message["exited"], None)) is not None:
                process.ended(message["status"])
            return
        answer = self._asked.get(message["fork"])
        if "pid" in message:
            try:
                process = self._forked[message["pid"]] = ForkedProcess(message["pid"])
            except ProcessLookupError as error:
                if answer is not None and not answer.done():
                    answer.set_exception(error)
                return
            if answer is not None and not answer.done():
                answer.set_result(process)
            else:
                process.send_signal(signal.SIGKILL)  # nobody waits for it any more
        elif answer is not None and not answer.done():
            answer.set_exception(Unavailable(f"the fork server cannot fork: {message['error']}"))

    def _lost(self) -> None:
        """The server has ended, and with it what it forked."""
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Unavailable("the fork server has ended"))
        for process in self._forked.values():
            process.ended(-signal.SIGKILL)
        self._forked.clear()
