"""Faults for whole processes: Python runs this at its start when PYTHONPATH names this folder, as tests of hangs do.

SIGUSR1: the thread of the event loop stands still. SIGUSR2: every further pass of a language model stands still on its
compute thread. Both for good; gRPC goes on answering pings, since it does that on threads of its own.
"""

import signal
import sys
import threading


def _stand_still(*_: object) -> None:
    threading.Event().wait()


def _hang_passes(*_: object) -> None:
    causal = sys.modules["stagemesh.services.stage.partition.causal"]
    short = sys.modules["stagemesh.services.stage.short"]
    causal.CausalPartition.forward = _stand_still  # type: ignore[attr-defined]
    short.ShortPasses.allow = lambda *_: False  # type: ignore[attr-defined]


signal.signal(signal.SIGUSR1, _stand_still)
signal.signal(signal.SIGUSR2, _hang_passes)
