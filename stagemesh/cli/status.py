"""`status`: the mesh in the router's view."""

import json
import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_ADDRESS, Address, ApiKey, Json
from stagemesh.client import Client
from stagemesh.v1 import inference_pb2, registry_pb2
from stagemesh.wanted import replicas_wanted

_STATE = "REPLICA_STATE_"


@one_line_errors
def status(
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    watch: Annotated[
        float | None, typer.Option(help="Show it again every so many seconds.", min=0.1, show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(help="Deadline in seconds.", min=0.001)] = 15.0,
    as_json: Json = False,
) -> None:
    """List every replica with its model, stage, layers, node, process, state and load."""
    with Client(address, api_key=api_key or None, timeout_s=timeout) as client:
        while True:
            mesh = client.status()
            if as_json:
                typer.echo(json.dumps(as_dict(mesh)))
            else:
                _show(mesh)
            if watch is None:
                return
            time.sleep(watch)


def as_dict(mesh: inference_pb2.MeshStatus) -> dict[str, Any]:
    """For --json. `layers` is [first, end), `load` is null when the replica did not answer."""
    return {
        "etcd_connected": mesh.etcd_connected,
        "models": [_model(model) for model in mesh.models],
        "replicas": [_replica(replica) for replica in mesh.replicas],
        "nodes": [_node(node) for node in mesh.nodes],
        "services": [
            {
                "kind": item.kind,
                "id": item.id,
                "address": item.address,
                "http_address": item.http_address,
                "pid": item.pid,
            }
            for item in mesh.services
        ],
    }


def _model(model: inference_pb2.ModelInfo) -> dict[str, Any]:
    spec = model.spec
    return {
        "name": spec.name,
        "ready": model.ready,
        "asleep": model.asleep,
        "source": spec.source,
        "revision": spec.revision,
        "task": spec.task,
        "architecture": spec.architecture,
        "dtype": spec.dtype,
        "context_length": spec.context_length,
        "stages": len(spec.partitions),
        "replicas": list(spec.replicas),
        "scaling": _scaling(model) if spec.HasField("scaling") else None,
        "generation": spec.generation,
    }


def _scaling(model: inference_pb2.ModelInfo) -> dict[str, Any]:
    """Limits (0: none, or the registry's default), what is wanted of each stage now, and what was decided last."""
    limits, scale = model.spec.scaling, model.scale
    return {
        "min_replicas": limits.min_replicas,
        "max_replicas": limits.max_replicas,
        "target_queue_ms": limits.target_queue_ms,
        "target_kv": round(limits.target_kv, 3),
        "idle_s": limits.idle_s,
        "wanted": wanted(model),
        "reason": scale.reason,
        "decided_unix_ms": scale.unix_ms,
    }


def wanted(model: inference_pb2.ModelInfo) -> list[int]:
    """Replicas of each stage that there should be now."""
    scale = model.scale if model.HasField("scale") else None
    return [replicas_wanted(model.spec, stage, scale) for stage in range(len(model.spec.partitions))]


def _replica(status: inference_pb2.ReplicaStatus) -> dict[str, Any]:
    record, load = status.record, status.load
    return {
        "replica": record.replica_id,
        "model": record.model,
        "stage": record.stage,
        "stages": record.stages,
        "layers": [record.partition.first_layer, record.partition.end_layer],
        "node": record.node_id,
        "pid": record.pid,
        "address": record.address,
        "zone": record.zone,
        "state": state_word(record.state),
        "detail": record.detail,
        "canary_ms": round(record.canary_ms, 3),
        "load": {
            "queue_depth": load.queue_depth,
            "sessions": load.sessions,
            "step_ms": round(load.step_ms, 3),
            "kv_bytes_used": load.kv_bytes_used,
            "kv_bytes_total": load.kv_bytes_total,
        }
        if status.HasField("load")
        else None,
        "sessions_routed": status.sessions_routed,
        "sessions_active": status.sessions_active,
        "health": status.health,
    }


def _node(node: registry_pb2.NodeRecord) -> dict[str, Any]:
    return {
        "node": node.node_id,
        "address": node.address,
        "host": node.host,
        "pid": node.pid,
        "device": node.device,
        "device_name": node.device_name,
        "memory_bytes": node.memory_bytes,
        "threads": node.threads,
        "gflops": round(node.gflops, 2),
        "memory_gbps": round(node.memory_gbps, 2),
        "zone": node.zone,
        "draining": node.draining,
    }


def state_word(state: int) -> str:
    """READY, LOADING, DRAINING or FAILED."""
    try:
        return registry_pb2.ReplicaState.Name(state).removeprefix(_STATE)  # type: ignore[arg-type]
    except ValueError:
        return "UNSPECIFIED"


def _show(mesh: inference_pb2.MeshStatus) -> None:
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for column in (
        "MODEL",
        "STAGE",
        "LAYERS",
        "REPLICA",
        "NODE",
        "PID",
        "ADDRESS",
        "STATE",
        "HEALTH",
        "LOAD",
        "ROUTED",
    ):
        table.add_column(column, overflow="fold")
    for item in sorted(mesh.replicas, key=lambda one: (one.record.model, one.record.stage)):
        table.add_row(*_row(item))
    console.print(table)
    for model in mesh.models:
        ready = "ready" if model.ready else "asleep" if model.asleep else "not ready"
        console.print(f"{model.spec.name}: {ready}, {model.spec.architecture}, {model.spec.task}")
        if model.spec.HasField("scaling"):
            console.print(f"  {_scaling_line(model, mesh.replicas)}")
    console.print(f"{len(mesh.nodes)} nodes, etcd {'connected' if mesh.etcd_connected else 'NOT connected'}")


def _scaling_line(model: inference_pb2.ModelInfo, replicas: Iterable[inference_pb2.ReplicaStatus]) -> str:
    """How many replicas serve of how many that should, stage by stage, and why."""
    limits, name = model.spec.scaling, model.spec.name
    serving = [
        each.record.stage
        for each in replicas
        if each.record.model == name and each.record.state == registry_pb2.REPLICA_STATE_READY
    ]
    stages = ", ".join(
        f"stage {stage}: {serving.count(stage)} of {count}" for stage, count in enumerate(wanted(model))
    )
    most = str(limits.max_replicas) if limits.max_replicas else "as many as fit"
    because = f"; {model.scale.reason}" if model.scale.reason else ""
    return f"scales itself from {limits.min_replicas} to {most}: {stages}{because}"


def _row(item: inference_pb2.ReplicaStatus) -> tuple[str, ...]:
    record, load = item.record, item.load
    words = f"{load.sessions} sessions, queue {load.queue_depth}, {load.step_ms:.1f} ms/step"
    state = state_word(record.state) + (f" ({record.detail})" if record.detail else "")
    return (
        record.model,
        f"{record.stage}/{record.stages}",
        f"{record.partition.first_layer}-{record.partition.end_layer - 1}",
        record.replica_id,
        record.node_id,
        str(record.pid),
        record.address,
        state,
        item.health,
        words if item.HasField("load") else "unknown",
        str(item.sessions_routed),
    )
