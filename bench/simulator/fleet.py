"""Nodes and models of the simulation, by seed. The planner says how each model is cut."""

import math
from dataclasses import dataclass
from random import Random

from stagemesh.planning import Goal, Link, Links, ModelShape, Node, Speed, build, solve
from stagemesh.v1.registry_pb2 import ModelSpec, NodeRecord, Partition, Scaling

GB = 10**9
KINDS = ((16, 300, 10_000, 0.5), (24, 600, 40_000, 0.35), (48, 900, 100_000, 0.15))
"""GB of memory, GB/s, GFLOP/s, and share of the nodes."""
SIZES = ((28, 0.1), (32, 0.22), (40, 0.34), (48, 0.66), (80, 0.85))
"""Layers, and GB of each in BF16."""
_PLANNED_WITH = 48
_LARGEST = 30 * GB
_PER_STAGE = 10
"""GB of a partition, about, so that every kind of node can hold one."""
DISK_GBPS = 2.0


@dataclass(frozen=True)
class Model:
    """A model, and what a pass of one of its stages takes: seconds for weights and per row, at 1 GB/s and 1 GFLOP/s."""

    spec: ModelSpec
    gigabytes: tuple[float, ...]

    @property
    def stages(self) -> int:
        """Stages that it is cut into."""
        return len(self.gigabytes)


def nodes(count: int, seed: int = 1) -> dict[str, NodeRecord]:
    """That many nodes, each up to 15 % off its kind, in three zones."""
    rng = Random(seed)
    found = {}
    for nth in range(count):
        memory, gbps, gflops, _ = rng.choices(KINDS, [share for *_, share in KINDS])[0]
        found[f"n{nth:05}"] = NodeRecord(
            node_id=f"n{nth:05}",
            address=f"10.{nth >> 16}.{nth >> 8 & 255}.{nth & 255}:8010",
            device="cuda",
            memory_bytes=int(memory * GB * rng.uniform(0.9, 1.0)),
            memory_gbps=gbps * rng.uniform(0.85, 1.15),
            gflops=gflops * rng.uniform(0.85, 1.15),
            zone="abc"[nth % 3],
        )
    return found


def models(count: int, offered: dict[str, NodeRecord], most: int) -> list[Model]:
    """That many models, of the sizes in turn; `most` replicas of a stage at most, and they may sleep."""
    cuts = [_cut(layers, gigabytes, offered) for layers, gigabytes in SIZES]
    found = []
    for nth in range(count):
        layers, gigabytes = SIZES[nth % len(SIZES)]
        partitions = [
            Partition(first_layer=first, end_layer=end, parameter_bytes=int((end - first) * gigabytes * GB))
            for first, end in cuts[nth % len(SIZES)]
        ]
        spec = ModelSpec(
            name=f"m{nth:03}",
            revision="r-1",
            dtype="BF16",
            checkpoint_dtype="BF16",
            partitions=partitions,
            replicas=[1] * len(partitions),
            generation=1,
            context_length=layers * 256,
            scaling=Scaling(min_replicas=0, max_replicas=most),
        )
        found.append(Model(spec, tuple(each.parameter_bytes / GB for each in partitions)))
    return found


def _cut(layers: int, gigabytes: float, offered: dict[str, NodeRecord]) -> list[tuple[int, int]]:
    """The planner's cuts for the most tokens per second over some of the nodes, none of the large ones: most have to be able to hold them."""
    shape = ModelShape(
        f"{layers} layers",
        [int(gigabytes * GB)] * layers,
        hidden_size=4096,
        stored_dtype="BF16",
        dtype="BF16",
    )
    some = [
        Node(
            each.node_id,
            each.memory_bytes,
            Speed(gflops=each.gflops, memory_gbps=each.memory_gbps, overhead_ms=0.3),
            "cuda",
            each.zone,
        )
        for each in [each for each in offered.values() if each.memory_bytes <= _LARGEST][:_PLANNED_WITH]
    ]
    stages = max(1, math.ceil(layers * gigabytes / _PER_STAGE))
    problem = build(shape, some, Links(Link(0.2, 25), Link(2, 10)), Goal("throughput", stages=stages))
    found = solve(problem)
    return [(problem.ends[stage.first], problem.ends[stage.end]) for stage in found.stages]
