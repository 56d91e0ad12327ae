"""Random planning problems, and every plan of a small one by enumeration: written apart from the planner."""

import itertools
from dataclasses import dataclass
from random import Random

import numpy as np

from stagemesh.planning import Goal, Link, Links, ModelShape, Node, Pin, Speed

MB = 10**6
INF = float("inf")


@dataclass(frozen=True)
class Case:
    shape: ModelShape
    nodes: list[Node]
    links: Links
    goal: Goal


def case(rng: Random, *, layers: int, nodes: int, goal: Goal | None = None) -> Case:
    """Unequal layers and nodes, some nodes equal, two zones, sometimes a pin, cuts that are not all allowed."""
    shape = ModelShape(
        name="m",
        layer_bytes=[rng.randint(5, 15) * MB for _ in range(layers)],
        embedding_bytes=rng.choice((0, 10 * MB)),
        head_bytes=rng.choice((1, 20 * MB)),
        tied_bytes=rng.choice((0, 10 * MB)),
        cuts=sorted(rng.sample(range(1, layers), rng.randint(layers // 2, layers - 1))),
        hidden_size=rng.choice((0, 1024)),
        stored_dtype=rng.choice(("F32", "BF16")),
    )
    kinds = [
        {
            "memory_bytes": rng.randint(15, 160) * MB,
            "speed": Speed({1: (ms := rng.uniform(1, 9)), 32: 4 * ms}, overhead_ms=rng.choice((0, 0.5))),
            "device": rng.choice(("cpu", "cuda")),
            "zone": rng.choice("ab"),
            "labels": {"tier": rng.choice(("gold", "tin"))},
            "network_gbit": rng.choice((0, 0.003, 0.01)),
        }
        for _ in range(rng.randint(1, nodes))
    ]
    members = [Node(name=f"n{index}", **rng.choice(kinds)) for index in range(nodes)]
    links = Links(Link(rng.choice((0, 0.2)), 1), Link(rng.uniform(1, 9), 0.1))
    return Case(shape, members, links, goal or _goal(rng, layers))


def _goal(rng: Random, layers: int) -> Goal:
    pins = [
        Pin(0, 1, zone="a"),
        Pin(layers - 1, layers, labels={"tier": "gold"}),
        Pin(0, 2, nodes=("n0", "n1")),
    ]
    chosen = {
        "batch": rng.choice((1, 8)),
        "stages": rng.choice((0, 0, 0, 1, 2, 3)),
        "pins": tuple(pin for pin in pins if rng.random() < 0.15),
        "zones": rng.choice(((), (), (), ("a",))),
    }
    if rng.random() < 0.6:
        return Goal(latency_ms=rng.choice((0, 0, rng.uniform(20, 150))), **chosen)
    return Goal(objective="latency", tokens_per_s=rng.choice((0, rng.uniform(1, 100))), **chosen)


def node_seconds(case: Case, node: Node, first: int, end: int) -> float:
    """A pass through layers [first, end); inf where the node may not have them."""
    shape, goal = case.shape, case.goal
    last = end == shape.layers
    scale = 2.0 if node.device == "cpu" and shape.stored_dtype == "BF16" else 1.0
    held = sum(shape.layer_bytes[first:end]) + (shape.embedding_bytes if first == 0 else 0)
    held += (shape.head_bytes + (shape.tied_bytes if first else 0)) if last else 0
    banned = any(
        first < pin.end
        and end > pin.first
        and not (
            pin.zone in ("", node.zone)
            and (not pin.nodes or node.name in pin.nodes)
            and pin.labels.items() <= node.labels.items()
        )
        for pin in goal.pins
    )
    if (
        banned
        or (goal.zones and node.zone not in goal.zones)
        or held * scale * goal.headroom > node.memory_bytes
    ):
        return INF
    read = sum(shape.layer_bytes[first:end]) + (shape.head_bytes + shape.tied_bytes if last else 0)
    one, many = node.speed.layer_ms[1], node.speed.layer_ms[32]
    per_layer = one + (many - one) * (goal.batch - 1) / 31
    mean = sum(shape.layer_bytes) / shape.layers
    return (node.speed.overhead_ms + per_layer * read / mean) / 1e3


def node_rate(case: Case, node: Node, first: int, end: int) -> float:
    """Tokens per second; 0 where the node may not have the layers."""
    item = 4 if node.device == "cpu" or case.shape.stored_dtype == "F32" else 2
    sent = case.shape.hidden_size * item * case.goal.batch * 8 if end < case.shape.layers else 0
    send = sent / (node.network_gbit * 1e9) if node.network_gbit else 0.0
    return case.goal.batch / max(send, node_seconds(case, node, first, end))


def one_way(case: Case, a: str, b: str, size: float) -> float:
    link = case.links.within if a == b else case.links.across
    return link.rtt_ms / 2e3 + size * 8 / (link.gbit * 1e9)


def best_by_enumeration(case: Case) -> tuple[float, float] | None:
    """(throughput, latency) of the best plan by the goal, the other number as good as it can be beside; None: no plan.

    Every choice of cuts, with every choice of a stage (or none) for each node.
    """
    shape, goal, nodes = case.shape, case.goal, case.nodes
    rates, seconds = [], []
    for count in range(1, len(shape.cuts) + 2):
        if goal.stages not in (0, count) or count > len(nodes):
            continue
        # [assignment, node]: the stage of each node, or -1.
        choices = np.array(list(itertools.product(range(-1, count), repeat=len(nodes))))
        on = choices[:, None, :] == np.arange(count)[None, :, None]
        on = on[on.any(axis=2).all(axis=1)]
        for inner in itertools.combinations(shape.cuts, count - 1):
            slices = list(itertools.pairwise((0, *inner, shape.layers)))
            rate = np.array([[node_rate(case, node, *one) for node in nodes] for one in slices])
            time = np.array([[node_seconds(case, node, *one) for node in nodes] for one in slices])
            allowed = ~(on & np.isinf(time)[None]).any(axis=(1, 2))
            used = on[allowed]
            rates.append((used * rate[None]).sum(axis=2).min(axis=1))
            seconds.append(_latency(case, used, np.where(np.isinf(time), 0, time)))
    rate, latency = np.concatenate([[], *rates]), np.concatenate([[], *seconds])
    if goal.objective == "latency":
        kept = rate >= goal.tokens_per_s * (1 - 1e-9)
        rate, latency = rate[kept], latency[kept]
        return (0.0, float(latency.min())) if len(rate) else None
    kept = latency <= (goal.latency_ms / 1e3 or INF) * (1 + 1e-12)
    rate, latency = rate[kept], latency[kept]
    if not len(rate):
        return None
    return float(rate.max()), float(latency[rate >= rate.max() * (1 - 2e-9)].min())


def _latency(case: Case, on: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Seconds of a token along the slowest route, for each assignment `on` [assignment, stage, node]."""
    total = (on * time[None]).max(axis=2).sum(axis=1)
    count = on.shape[1]
    if count == 1:
        return total
    zones = np.array([node.zone == "b" for node in case.nodes])
    # Whether a stage has a node in zone a, in zone b.
    there = np.stack([(on & ~zones).any(axis=2), (on & zones).any(axis=2)])
    for nth in range(count):
        following = (nth + 1) % count
        size = case.shape.hidden_size * 4 * case.goal.batch if following else 64
        within, across = one_way(case, "a", "a", size), one_way(case, "a", "b", size)
        same = (there[:, :, nth] & there[:, :, following]).any(axis=0)
        differ = (there[:, :, nth] & there[::-1, :, following]).any(axis=0)
        total = total + np.maximum(np.where(same, within, 0), np.where(differ, across, 0))
    return total
