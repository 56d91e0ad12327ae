"""Who goes first on this machine: routers, registries and etcd, then what moves frames, then what computes on them.

On a machine that several services share, a pass that takes every core delays the router's next request, etcd's next
heartbeat and the frames of the neighbour stage by whole time slices, while a pass loses next to nothing by waiting for
them: they need the processor briefly. And a router has every session's tokens, and every call that is to be refused in
milliseconds, on one thread, while a dozen stages' event loops want the processor as well. Threads that a thread starts,
as torch's, inherit its niceness.
"""

import contextlib
import os
import sys
import threading


def go_behind(nice: int) -> None:
    """Make the calling thread, and what it starts from now on, at least that nice (0..19); on Linux only."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # not permitted: it works as before
            os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), nice))


def give_way(nice: int) -> None:
    """Make the calling thread nicer by `nice` (0..19) than its process; elsewhere than on Linux nothing happens."""
    if not nice or sys.platform != "linux":
        return
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):  # not permitted: it works as before
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, os.getpid()) + nice, 19))
