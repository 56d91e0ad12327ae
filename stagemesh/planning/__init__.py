"""Where to cut a model, and which nodes run each part.

Pure, and in the library because three use it that may not import one another: the registry, the CLI, and benchmarks.

1. `shape.ModelShape`, `fleet.Node` and `fleet.Links`, `goal.Goal`: what is given;
2. `problem.build` makes arrays of it, and defines throughput and latency of a plan, once for all solvers;
3. `solve.solve`: `bound` says what cannot be exceeded, `large` finds a good plan, `reach` (or `quickest`, where the
   latency or the number of stages is limited) proves it the best or finds a better one, where that is affordable;
4. `plan.Plan` is the result in layers and names; `explain` says why, `draw` shows it;
5. `baselines` are what it is compared with.
"""

from .fleet import Link, Links, Node, Speed
from .goal import Goal, Pin
from .problem import Problem, build
from .shape import ModelShape
from .solve import Solution, solve

__all__ = [
    "Goal",
    "Link",
    "Links",
    "ModelShape",
    "Node",
    "Pin",
    "Problem",
    "Solution",
    "Speed",
    "build",
    "solve",
]
