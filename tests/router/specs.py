"""Models and replicas that the router's tests talk about."""

from stagemesh import records
from stagemesh.v1 import registry_pb2


def model(name="m", stages=2, task="generate", **extra):
    settings = {"revision": "r1", "context_length": 64, "vocab_size": 100, "hidden_size": 4, **extra}
    partitions = [registry_pb2.Partition(first_layer=2 * i, end_layer=2 * i + 2) for i in range(stages)]
    return registry_pb2.ModelSpec(
        name=name, task=task, partitions=partitions, replicas=[1] * stages, **settings
    )


def replica(replica_id, stage=0, stages=2, *, name="m", address="127.0.0.1:1", **extra):
    settings = {"revision": "r1", "state": registry_pb2.REPLICA_STATE_READY, **extra}
    return registry_pb2.ReplicaRecord(
        replica_id=replica_id,
        model=name,
        stage=stage,
        stages=stages,
        partition=registry_pb2.Partition(first_layer=2 * stage, end_layer=2 * stage + 2),
        address=address,
        **settings,
    )


def listing(*items):
    """Records as a listing of etcd: key -> JSON."""
    keys = {}
    for record in items:
        if isinstance(record, registry_pb2.ModelSpec):
            key = records.model_key(record.name)
        elif isinstance(record, registry_pb2.ReplicaRecord):
            key = records.replica_key(record.model, record.stage, record.replica_id)
        elif isinstance(record, registry_pb2.NodeRecord):
            key = records.node_key(record.node_id)
        else:
            key = records.service_key(record.kind, record.id)
        keys[key] = records.to_json(record)
    return keys
