"""What a thread of this process does, as Linux tells it."""

import os

from .watchdog import Usage

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def usage_of(native_id: int) -> Usage | None:
    """State and counters of a thread (its `threading.get_native_id()`); None where /proc does not tell, or it ended."""
    try:
        with open(f"/proc/self/task/{native_id}/stat", "rb") as stat:
            text = stat.read()
    except OSError:
        return None
    # The name of the thread may hold anything; what follows its last bracket is: state, then nine fields up to the
    # faults, the children's, and the times.
    fields = text[text.rindex(b")") + 2 :].split()
    try:
        return Usage(
            runnable=fields[0] == b"R",
            cpu_s=(int(fields[11]) + int(fields[12])) * _TICK_S,
            faults=int(fields[9]),
        )
    except (IndexError, ValueError):
        return None
