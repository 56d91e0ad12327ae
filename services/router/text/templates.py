"""Chat templates rendered elsewhere: in processes that can be ended.

A thread that runs a template cannot be stopped; a process can, and the kernel counts its time and memory. Two warm
ones serve the router, so that a rendering costs two messages through a pipe, and one model's endless template leaves
the other process to the others.
"""

import json
import logging
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from stagemesh.errors import CheckpointError, InvalidArgument, OutOfRange, StagemeshError, Unavailable

_log = logging.getLogger(__name__)
_PROGRAM = Path(__file__).with_name("template_process.py")
# What the process gets of our environment: nothing that is a secret.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG")
MAX_TEMPLATE_CHARACTERS = 512 * 2**10


class TemplateTooSlow(CheckpointError):
    """It used up its time."""


class Templates:
    """Processes that render; thread-safe. They start when needed, or with `warm`, and live until `close`."""

    def __init__(
        self,
        processes: int = 2,
        *,
        cpu_s: float = 1.0,
        wall_s: float = 5.0,
        memory_bytes: int = 256 * 2**20,
    ) -> None:
        """Limits of each rendering.

        Args:
            processes: how many render at the same time.
            cpu_s: of processor time, compiling included.
            wall_s: altogether; more than `cpu_s`, since a busy machine is not the template's fault.
            memory_bytes: of memory, beyond what the process has when it starts.
        """
        self._cpu_s = cpu_s
        self._wall_s = wall_s
        self._memory_bytes = memory_bytes
        self._free = threading.BoundedSemaphore(processes)
        self._idle: list[_Process] = []
        self._lock = threading.Lock()
        self._closed = False
        self.started = 0

    def __repr__(self) -> str:
        return f"Templates(idle={len(self._idle)}, started={self.started}, closed={self._closed})"

    def warm(self) -> None:
        """Have a process ready."""
        with self._free:
            self._give_back(self._take())

    def render(self, template: str, variables: dict[str, Any], longest: int) -> str:
        """Return what `template` makes of `variables` (plain JSON values). Blocks.

        Raises:
            InvalidArgument: the template raised an exception.
            OutOfRange: the text is longer than `longest` characters.
            TemplateTooSlow: it took all of its time.
            CheckpointError: it is no template, does what is forbidden, or took all of its memory.
            Unavailable: the machine is so busy that it did not get its time.
        """
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise _broken(f"is longer than {MAX_TEMPLATE_CHARACTERS} characters")
        asked = {"template": template, "variables": variables, "longest": longest, "cpu_s": self._cpu_s}
        data = json.dumps(asked).encode()
        most = 12 * longest + 2**16  # JSON spells a character in twelve bytes at most
        with self._free:
            process = self._take()
            try:
                answer = process.ask(data, most, time.monotonic() + self._wall_s)
            except BaseException:
                process.close()
                raise
            if answer.get("error") == "memory":
                process.close()
            else:
                self._give_back(process)
        return _text_of(answer)

    def close(self) -> None:
        """End the idle processes; one that renders now ends when it is done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()

    def _take(self) -> "_Process":
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.alive:
                    return process
                process.close()
            self.started += 1
        return _Process(self._memory_bytes)

    def _give_back(self, process: "_Process") -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                return
        process.close()


class _Process:
    """One process that renders."""

    def __init__(self, memory_bytes: int) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._in = self._child.stdin.fileno()
        self._out = self._child.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def close(self) -> None:
        """End it now."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def ask(self, data: bytes, most: int, deadline: float) -> dict[str, str]:
        """One frame there and one back, of at most `most` bytes, until `deadline` (monotonic seconds)."""
        try:
            self._write(struct.pack(">I", len(data)) + data, deadline)
            (length,) = struct.unpack(">I", self._read(4, deadline))
            if length > most:
                raise _broken("gave an answer that cannot be")
            answer = json.loads(self._read(length, deadline))
        except (EOFError, BrokenPipeError):
            raise self._ended() from None
        except ValueError:
            raise _broken("gave an answer that cannot be") from None
        if not isinstance(answer, dict):
            raise _broken("gave an answer that cannot be")
        return answer

    def _ended(self) -> StagemeshError:
        code = self._child.wait()
        if code == -signal.SIGPROF:
            return TemplateTooSlow("messages: the model's chat template takes too long", field="messages")
        _log.warning("template.process_ended code=%d", code)
        return _broken("broke the process that renders it")

    def _write(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._in, select.POLLOUT, deadline)
            left = left[os.write(self._in, left) :]

    def _read(self, length: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._wait(self._out, select.POLLIN, deadline)
            piece = os.read(self._out, min(length - len(data), 2**20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Unavailable(
                "messages: the machine is too busy to render the model's chat template",
                field="messages",
                retry_after_s=1.0,
            )


def _text_of(answer: dict[str, str]) -> str:
    """The text, or the error that the answer stands for."""
    if isinstance(text := answer.get("text"), str):
        return text
    error, message = answer.get("error", ""), str(answer.get("message", ""))[:200]
    if error == "refused":
        raise InvalidArgument(
            f"messages: the model's chat template refuses them: {message}", field="messages"
        )
    if error == "long":
        raise OutOfRange("messages: the rendered conversation is too long", field="messages")
    if error == "memory":
        raise _broken("takes too much memory")
    raise _broken(f"cannot be used: {message}")


def _broken(what: str) -> CheckpointError:
    return CheckpointError(f"messages: the model's chat template {what}", field="messages")
