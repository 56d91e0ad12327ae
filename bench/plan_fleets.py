"""Fleets of unequal nodes for `bench plan`, each drawn anew by seed around the numbers given here. Nothing is measured."""

from dataclasses import dataclass
from random import Random

from stagemesh.planning import Goal, Link, Links, ModelShape, Node, Speed

GB = 10**9
ANY = Goal()
LINKS = Links(Link(0.2, 25), Link(8, 5))
# As large as an 8-billion-parameter model in BF16: 32 layers, 128,256 tokens of vocabulary.
EIGHT_B = ModelShape(
    "8B in BF16",
    [436_224_000] * 32,
    embedding_bytes=1_050_673_152,
    head_bytes=1_050_681_344,
    hidden_size=4096,
    stored_dtype="BF16",
    dtype="BF16",
)
# Layers of two sizes (every fourth one has more experts), as mixture models have.
UNEVEN = ModelShape(
    "uneven layers",
    [900_000_000 if layer % 4 == 3 else 300_000_000 for layer in range(32)],
    embedding_bytes=500_000_000,
    head_bytes=500_000_000,
    hidden_size=4096,
    stored_dtype="BF16",
    dtype="BF16",
)


@dataclass(frozen=True)
class Kind:
    """GB of memory, GB/s and TFLOP/s of one kind of node; `count` of them in each zone named."""

    name: str
    count: int
    memory: float
    gbps: float
    tflops: float
    device: str = "cuda"
    zone: str = ""


@dataclass(frozen=True)
class Fleet:
    """One scenario."""

    title: str
    shape: ModelShape
    kinds: tuple[Kind, ...]
    goal: Goal = ANY
    links: Links = LINKS

    def nodes(self, seed: int) -> list[Node]:
        """The nodes, each with its memory and speeds up to 15 % off."""
        rng = Random(seed)

        def about(number: float) -> float:
            return number * rng.uniform(0.85, 1.15)

        return [
            Node(
                name=f"{kind.name}-{nth + 1}",
                memory_bytes=int(about(kind.memory) * GB),
                speed=Speed(gflops=about(kind.tflops) * 1e3, memory_gbps=about(kind.gbps), overhead_ms=0.3),
                device=kind.device,
                zone=kind.zone,
            )
            for kind in self.kinds
            for nth in range(kind.count)
        ]


FLEETS = (
    Fleet("six alike", EIGHT_B, (Kind("gpu", 6, 24, 600, 60),)),
    Fleet("two kinds of GPU", EIGHT_B, (Kind("new", 2, 24, 1500, 150), Kind("old", 4, 12, 350, 20))),
    Fleet(
        "GPUs and CPUs",
        EIGHT_B,
        (Kind("gpu", 2, 16, 900, 80), Kind("cpu", 6, 64, 80, 2, "cpu")),
    ),
    Fleet(
        "small fast, large slow",
        EIGHT_B,
        (Kind("fast", 4, 10, 1200, 100), Kind("large", 2, 96, 150, 10)),
    ),
    Fleet("uneven layers", UNEVEN, (Kind("new", 3, 24, 900, 80), Kind("old", 5, 16, 400, 25))),
    Fleet(
        "two zones, 60 ms a token",
        EIGHT_B,
        (Kind("near", 4, 16, 700, 60, zone="a"), Kind("far", 4, 24, 900, 80, zone="b")),
        goal=Goal(latency_ms=60.0),
    ),
)
