"""One process of the mesh: started in its own group, logging to a file, ended by its pid."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from stagemesh.errors import ConfigError

_CHILD = Path(__file__).with_name("child.py")
_LOG_TAIL_BYTES = 16_384


class Process(Protocol):
    """What is needed of a process, whoever started it."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """Its exit status; `None` while it runs."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal."""

    async def wait(self) -> int:
        """Wait for its end."""


class ChildProcess:
    """A running program that the kernel kills when this process dies.

    The process that starts it must do so from its main thread: the kernel watches the starting thread.
    """

    def __init__(self, name: str, process: Process, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process = process

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        log_path: Path,
        env: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> "ChildProcess":
        """Start the program with this environment, or this process's own; `descriptors` are those that it inherits.

        Raises `ConfigError` when it cannot be executed at all.
        """
        with log_path.open("ab") as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    "-S",
                    str(_CHILD),
                    str(os.getpid()),
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=env,
                    process_group=0,
                    pass_fds=descriptors,
                )
            except OSError as error:
                raise ConfigError(f"{name} cannot be started: {error.strerror}") from error
        return cls(name, process, log_path)

    @property
    def pid(self) -> int:
        """The process id, also after it has ended."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the signal's number if a signal ended it; `None` while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the end; returns the exit status."""
        return await self._process.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL when it still runs after the grace; returns when it is gone."""
        if self._process.returncode is not None:
            return
        self.send_signal(signal.SIGTERM)
        # A stopped process would take the SIGTERM only when continued.
        self.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            await self._process.wait()
        except asyncio.CancelledError:
            self.send_signal(signal.SIGKILL)
            raise

    def ended_how(self) -> str:
        """One line: how it ended, and the last line of its log when it gave up by itself."""
        code = self.returncode
        if code is None:
            return f"{self.name} still runs"
        if code < 0:
            return f"{self.name} was ended by {signal.Signals(-code).name}"
        last = self.last_log_line()
        return f"{self.name} ended with status {code}" + (f": {last}" if last else "")

    def last_log_line(self) -> str:
        """The last line in its log that is not blank; empty when there is none."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next(
            (line.strip().removeprefix("stagemesh: ") for line in reversed(lines) if line.strip()), ""
        )

    def __repr__(self) -> str:
        return f"<ChildProcess {self.name} pid={self.pid} returncode={self.returncode}>"


def service_argv(kind: str, flags: Mapping[str, str | int | float]) -> list[str]:
    """The command line of a service; flags with an empty text are left out."""
    return [sys.executable, "-P", "-m", f"stagemesh.services.{kind}", *flag_argv(flags)]


def flag_argv(flags: Mapping[str, str | int | float]) -> list[str]:
    """Flags as they stand in a command line; those with an empty text are left out."""
    return [word for flag, value in flags.items() if value != "" for word in (f"--{flag}", str(value))]
