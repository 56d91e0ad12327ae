"""A stage node that starts again in a moment: `python -m stagemesh.services.stage.warm.lone --etcd HOST:PORT ...`.

For a node outside of `stagemesh serve`, which has a fork server. This process imports everything once, stays as it is then, and
forks the service, with the same flags as `python -m stagemesh.services.stage`. When the service gives up because something in it
hangs (status 75), or is killed, it is forked again, after a delay that grows while that goes on. However else it ends, this
process ends with the same status: what is wrong with the flags is not mended by another start. SIGTERM and SIGINT are passed on,
once each time that they come; if this process is killed the kernel kills the service.
"""

import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from stagemesh.local.child import die_with
from stagemesh.local.supervisor import restart_delay

from ..watcher import EXIT_HANGS
from .become import become_stage

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A service that ran for so long starts over with the shortest delay.
_SETTLED_S = 30.0
_STEP_S = 0.05


class Lone:
    """Runs the service in a child, and again.

    Args:
        argv: its flags.
    """

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self._child = 0
        self._stopping = 0

    def __repr__(self) -> str:
        return f"<Lone child={self._child}>"

    def run(self) -> int:
        """The status to end with; below 0 for a signal."""
        for number in _SIGNALS:
            signal.signal(number, self._stop)
        deaths = 0
        while True:
            began = time.monotonic()
            status = self._once()
            if self._stopping or (status >= 0 and status != EXIT_HANGS):
                return status
            deaths = 0 if time.monotonic() - began > _SETTLED_S else deaths
            delay_s = restart_delay(deaths)
            deaths += 1
            log.warning("stage.again: it ended with %d, and is forked anew in %.1f s", status, delay_s)
            until = time.monotonic() + delay_s
            while time.monotonic() < until:
                time.sleep(_STEP_S)
                if self._stopping:
                    return 0

    def _once(self) -> int:
        """One life of the service; how it ended."""
        parent = os.getpid()
        # A signal between the fork and the note of its number would reach nobody.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if self._stopping:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            return 0
        sys.stdout.flush()
        sys.stderr.flush()
        self._child = os.fork()
        if self._child == 0:
            _become(parent, self._argv)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        return os.waitstatus_to_exitcode(status)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = number
        if self._child:
            os.kill(self._child, number)


def _become(parent: int, argv: list[str]) -> NoReturn:
    """In the child: be the service, and never come back."""

    def ready() -> None:
        # A terminal's Ctrl-C reaches the parent alone, which passes it on.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        die_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    become_stage(argv, ready)


def main(argv: list[str]) -> NoReturn:
    """Import, run, and end as the service did."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    from .imports import prepare  # which is what takes seconds

    prepare()
    status = Lone(argv).run()
    sys.stdout.flush()
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        # Read when numpy is imported, which would start threads otherwise, and a fork has none of them.
        os.execve(  # noqa: S606
            sys.executable,
            [sys.executable, "-P", "-m", "stagemesh.services.stage.warm.lone", *sys.argv[1:]],
            {**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    main(sys.argv[1:])
