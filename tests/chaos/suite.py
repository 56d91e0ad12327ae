"""Every scenario, in the order in which they are run."""

from . import cancels, changes, control, overload, services, stages
from .scenario import ALL

__all__ = ["ALL", "cancels", "changes", "control", "overload", "services", "stages"]

# Those that only kill processes first, those that leave a mesh that has to settle last.
ALL.sort(key=lambda one: (one.fault[0], int(one.fault[1:])))
