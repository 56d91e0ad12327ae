"""A stage process that can be told to refuse a share of the sessions given to it, as a faulty machine would.

SIGUSR1 begins it, SIGUSR2 ends it. Run in place of `python -m stagemesh.services.stage`.
"""

import random
import runpy
import signal
import sys

from stagemesh.services.stage.replica import Replica

from stagemesh.errors import Unavailable

SHARE = 0.05
_share = 0.0
_rng = random.Random(0)
_open_session = Replica.open_session


def _open_or_refuse(self: Replica, *args: object, **named: object) -> object:
    if _rng.random() < _share:
        raise Unavailable("injected fault")
    return _open_session(self, *args, **named)  # type: ignore[arg-type]


def _tell(number: int, frame: object) -> None:
    global _share
    _share = SHARE if number == signal.SIGUSR1 else 0.0


signal.signal(signal.SIGUSR1, _tell)
signal.signal(signal.SIGUSR2, _tell)
Replica.open_session = _open_or_refuse  # type: ignore[method-assign,assignment]
sys.argv[0] = "stage"
runpy.run_module("stagemesh.services.stage", run_name="__main__", alter_sys=True)
