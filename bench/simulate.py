"""What do 10,000 nodes and 100 models do in a day, and what does that cost etcd and the routers?

A day of requests made of recorded hours (`simulator/day.py`) meets a mesh in virtual time, in which the production's own code decides: the
planner cuts the models, the router's `Loads` and `P2cEwma` choose replicas, the registry's `choose_node` places them, its `Autoscaler` and
`Preloader` say how many there are. Beside it the same day without the preloader. What is not simulated: frames, the network, failures.
"""

import asyncio
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from bench.options import Options, say
from bench.paired import paired_ratio
from bench.result import Bound, Result, Series
from bench.simulator import day, fleet, growth
from bench.simulator.mesh import Mesh, Served, Setting, quantile
from bench.traces import ABSENT, Trace, found

NODES, MODELS, MOST = 10_000, 100, 400
LIMIT_S = 300.0
TIMES = 3
"""How often the day is simulated for the time that it takes; what happens in it is the same every time."""
SIZES = [10, 100, 1000, 10_000]
KEYS = ("simulated_day_vs_5_min", "preload_vs_none_cold")
_WRITES = 3
"""Of a replica that is placed and one that goes: the assignment, its record while it loads, and when it is ready; both deleted."""


async def run(options: Options) -> Result:
    """The day, the day without the preloader, and the table."""
    result = Result("simulate", __doc__.splitlines()[0])
    traces = found(options.trace)
    changes = 4.0
    if traces:
        hours = 1 if options.quick else day.HOURS
        changes = await asyncio.to_thread(_days, result, traces, hours, options.quick)
    else:
        result.not_measured = dict.fromkeys(KEYS, ABSENT)
    say("etcd")
    measured = await growth.measure_etcd(200 if options.quick else 10_000)
    rows = await asyncio.to_thread(growth.table, SIZES[:2] if options.quick else SIZES, changes)
    _tell_growth(result, rows, measured, changes)
    return result


def _days(result: Result, traces: list[Trace], hours: int, quick: bool) -> float:
    length = hours * 3600.0
    took = []
    for _ in range(1 if quick else TIMES):
        started = time.process_time()
        nodes = fleet.nodes(500 if quick else NODES)
        models = fleet.models(MODELS, nodes, MOST)
        requests = day.arrivals(traces, MODELS, hours=hours, share=0.05 if quick else 1.0)
        say(
            f"{len(requests)} requests, {len(nodes)} nodes, stages {sorted({each.stages for each in models})}"
        )
        cold: tuple[list[int], list[int]] = ([], [])
        ours = Mesh(nodes, models, Setting()).run(requests, length, _progress("with preloading", cold[0]))
        took.append(time.process_time() - started)
        say(f"simulated in {took[-1]:.0f} s of CPU time")
    result.ratio(KEYS[0], paired_ratio(took, [LIMIT_S] * len(took)), Bound(1.0, at_most=True))
    result.notes.append(f"simulated in {median(took):.0f} s of CPU time")
    none = Mesh(nodes, models, Setting(preload=False)).run(requests, length, _progress("without", cold[1]))
    for name, served in (("with preloading", ours), ("without", none)):
        _tell(result, name, served, length)
    by_hour = [np.diff([0, *each]) for each in cold]
    both = (by_hour[0] > 0) & (by_hour[1] > 0)
    if both.any():
        result.ratio(KEYS[1], paired_ratio(by_hour[0][both].tolist(), by_hour[1][both].tolist()))
        result.notes.append(
            f"{KEYS[1]}: hour by hour; {ours.cold / none.cold:.3f} of the day's, at {ours.replica_s / none.replica_s:.3f} of its replica-hours"
        )
    else:
        result.not_measured[KEYS[1]] = "no request found its model asleep"
    mean_replicas = max(ours.replica_s / length, 1.0)
    return (ours.placed * _WRITES + ours.removed * 2) / mean_replicas / hours


def _progress(name: str, cold: list[int]) -> Callable[[Served, float], None]:
    """Says each hour of the day how far it is, and notes how many requests had found their model asleep by then."""
    started = time.process_time()

    def tell(served: Served, at_s: float) -> None:
        took = time.process_time() - started
        cold.append(served.cold)
        say(
            f"{name}: {at_s / 3600:2.0f} h, {served.arrived} came, {served.cold} found their model asleep, {took:.0f} s of CPU time"
        )

    return tell


def _tell(result: Result, name: str, served: Served, length: float) -> None:
    numbers = {
        "served": (served.served, "requests"),
        "refused": (served.refused, "requests"),
        "found their model asleep or waking": (served.cold, "requests"),
        "first token, p50": (quantile(served.first_token_s, 0.5), "s"),
        "first token, p99": (quantile(served.first_token_s, 0.99), "s"),
        "queueing, p50": (quantile(served.queued_s, 0.5), "s"),
        "queueing, p99": (quantile(served.queued_s, 0.99), "s"),
        "node-hours": (served.node_s / 3600, "h"),
        "replicas, mean": (served.replica_s / length, ""),
        "utilisation of replicas": (100 * served.computed_s / max(served.replica_s, 1.0), "%"),
        "decisions": (sum(served.decisions.values()), ""),
    }
    for group, (value, unit) in numbers.items():
        result.series.append(Series(group, name, unit, [float(value)]))
    kinds = ", ".join(f"{kind} {count}" for kind, count in served.decisions.most_common())
    result.notes.append(
        f"{name}: {served.arrived} came, {served.served} served, {served.refused} refused, {served.unfinished} ran or waited at the end; "
        f"at most {served.most_replicas} replicas on {served.most_nodes} nodes, {served.placed} placed, {served.without_room} found no room; "
        f"decisions: {kinds or 'none'}"
    )
    result.notes += [f"  {count} x {reason}" for reason, count in served.reasons.most_common(6)]


def _tell_growth(result: Result, rows: list[growth.Row], measured: growth.Etcds, changes: float) -> None:
    result.notes += [
        f"etcd, one member, measured: {measured.writes_per_s:.0f} writes/s, {measured.file_bytes:.0f} bytes of file and "
        f"{measured.memory_bytes:.0f} of memory a record, heard of after {1000 * measured.heard_s:.1f} ms; "
        f"a watch event is {growth.event_bytes()} bytes; a replica's records change {changes:.1f} times an hour",
        "replicas | routers | keys | stored MB | keepalives/s | writes/s | watch events/s | watch kB/s | one listing by all MB | "
        "router MB | a change costs a router ms",
    ]
    for row in rows:
        result.notes.append(
            f"{row.replicas} | {row.routers} | {row.keys} | {row.stored_mb:.2f} | {row.keepalives_per_s:.0f} | {row.writes_per_s:.2f} | "
            f"{row.events_per_s:.2f} | {row.watch_kb_per_s:.2f} | {row.listing_mb:.1f} | {row.router_mb:.2f} | {row.change_ms:.2f}"
        )
        group = f"router's memory for {row.replicas} replicas"
        result.series.append(Series(group, "membership and loads", "MB", [row.router_mb]))
