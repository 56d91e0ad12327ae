"""A process of one thread in which everything is imported; it forks stage processes on demand.

    OPENBLAS_NUM_THREADS=1 python -m stagemesh.services.stage.warm.fork_server FD

The variable keeps numpy from starting threads when it is imported; nothing of a stage computes with numpy.
FD is a connected Unix socket (SOCK_SEQPACKET) whose other end asks, in one JSON message each:

    {"fork": 7, "argv": ["--node-id", "n1", ...], "env": {...}}    with the log's descriptor beside it
    -> {"fork": 7, "pid": 4711}  or  {"fork": 7, "error": "..."}
    -> {"exited": 4711, "status": -9}    later, when the process has ended; a signal counts below 0

A forked process is what `python -m stagemesh.services.stage` with that command line would be, a few hundredths of a second
later instead of seconds: a group of its own, its log as output, nothing of the server's but memory that both share until
one writes to it. The kernel kills it when the server ends, and the server ends when the other end of the socket is closed.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
from typing import Any, NoReturn

from stagemesh.local.child import die_with

from .become import become_stage
from .imports import prepare

log = logging.getLogger(__name__)

MOST_BYTES = 2**17


class ForkServer:
    """Serves one connection until it is closed.

    Args:
        connection: to whoever asks.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._children: set[int] = set()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __repr__(self) -> str:
        return f"<ForkServer children={sorted(self._children)}>"

    def serve(self) -> None:
        """Fork and tell of ends until the connection is closed; then end what was forked."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writer)
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake_reader in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_reader, 4096)
                self._reap()
                if self._connection in ready and not self._one():
                    break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _one(self) -> bool:
        """Answer one message; False when there will be no more."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._connection, MOST_BYTES, 1)
        except ConnectionError:
            return False
        if not data:
            return False
        asked: Any = None
        try:
            asked = json.loads(data)
            if flags & socket.MSG_TRUNC or len(descriptors) != 1:
                raise ValueError("a message of its own size, with one descriptor, is needed")
            argv, env = list(map(str, asked["argv"])), {str(k): str(v) for k, v in asked["env"].items()}
            pid = self._fork(argv, env, descriptors[0])
            self._children.add(pid)
            answer = {"fork": asked["fork"], "pid": pid}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            number = asked.get("fork") if isinstance(asked, dict) else None
            answer = {"fork": number, "error": f"{type(error).__name__}: {error}"[:200]}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._tell(answer)
        return True

    def _fork(self, argv: list[str], env: dict[str, str], output: int) -> int:
        if (count := len(os.listdir("/proc/self/task"))) > 1:
            raise ValueError(f"{count} threads run here")
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become(parent, argv, env, output)
        return pid

    def _become(self, parent: int, argv: list[str], env: dict[str, str], output: int) -> NoReturn:
        """In the child: be a stage process, and never come back."""

        def ready() -> None:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)
            die_with(parent)
            for descriptor in (self._wake_reader, self._wake_writer):
                os.close(descriptor)
            self._connection.close()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            os.close(nothing)
            os.close(output)
            os.environ.clear()
            os.environ.update(env)

        become_stage(argv, ready)

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._children.discard(pid)
                self._tell({"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, Any]) -> None:
        """Whoever does not listen any more is noticed at the next look."""
        with contextlib.suppress(ConnectionError):
            self._connection.send(json.dumps(message).encode())


def main(argv: list[str]) -> None:
    """Prepare, and serve the connection that was inherited."""
    if len(argv) != 2 or not argv[1].isdigit():
        sys.exit("usage: python -m stagemesh.services.stage.warm.fork_server FD")
    # A terminal's Ctrl-C is for whoever holds the other end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(argv[1]))
    connection.set_inheritable(False)
    prepare()
    ForkServer(connection).serve()


if __name__ == "__main__":
    main(sys.argv)
