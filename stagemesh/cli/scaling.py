"""Options that say within which limits a model scales itself."""

from typing import Annotated

import typer

from stagemesh.v1.registry_pb2 import Scaling

Min = Annotated[
    int | None,
    typer.Option(
        "--min",
        help="Replicas of each stage at least; 0: it sleeps when nobody asks, and the next request wakes it.",
        min=0,
        show_default=False,
    ),
]
Max = Annotated[
    int | None,
    typer.Option(
        "--max", help="Replicas of each stage at most; 0: as many as fit.", min=0, show_default=False
    ),
]
TargetQueue = Annotated[
    int | None,
    typer.Option(
        "--target-queue-ms",
        help="Milliseconds that a step may wait for its pass before the bottleneck stage grows; 0: the registry's default.",
        min=0,
        show_default=False,
    ),
]
TargetKv = Annotated[
    float | None,
    typer.Option(
        "--target-kv",
        help="Share of KV memory that may be in use before a stage grows; 0: the registry's default.",
        min=0,
        max=1,
        show_default=False,
    ),
]
Idle = Annotated[
    int | None,
    typer.Option(
        "--idle",
        help="Seconds without a request before it sleeps, with --min 0; 0: the registry's default.",
        min=0,
        show_default=False,
    ),
]


def scaling_of(
    least: int | None,
    most: int | None,
    target_queue_ms: int | None,
    target_kv: float | None,
    idle_s: int | None,
    before: Scaling | None = None,
) -> Scaling | None:
    """What was asked for on top of `before` (by default: at least one replica); None when nothing was."""
    if least is most is target_queue_ms is target_kv is idle_s is None:
        return None
    scaling = Scaling(min_replicas=1)
    if before is not None:
        scaling.CopyFrom(before)
    if least is not None:
        scaling.min_replicas = least
    if most is not None:
        scaling.max_replicas = most
    if target_queue_ms is not None:
        scaling.target_queue_ms = target_queue_ms
    if target_kv is not None:
        scaling.target_kv = target_kv
    if idle_s is not None:
        scaling.idle_s = idle_s
    return scaling
