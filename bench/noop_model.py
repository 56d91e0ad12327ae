"""A model of one stage that computes nothing, announced where a router looks.

`bench.noop_stage` is what serves it. It is not imported here: as a service it sets how gRPC waits, and what starts from a
process that imported it would inherit that.
"""

from pathlib import Path

from stagemesh.etcd import Etcd
from stagemesh.records import model_key, replica_key, to_json
from stagemesh.v1 import registry_pb2

MODEL, REPLICA = "noop", "noop-0"
WIDTH = 16
"""Of the answer, as `bench.noop_stage` makes it."""


async def announce(endpoint: str, stage: str, folder: Path, *, cache: bool = False) -> None:
    """Write the model and its replica at `stage` to an etcd that nobody else writes to."""
    partition = registry_pb2.Partition(first_layer=0, end_layer=1)
    model = registry_pb2.ModelSpec(
        name=MODEL,
        source=str(folder),
        revision="r",
        task="embed",
        partitions=[partition],
        replicas=[1],
        generation=1,
        context_length=1024,
        vocab_size=1000,
        hidden_size=WIDTH,
        cache=cache,
        cache_ttl_s=3600 if cache else 0,
    )
    replica = registry_pb2.ReplicaRecord(
        replica_id=REPLICA,
        model=MODEL,
        revision="r",
        stages=1,
        partition=partition,
        node_id="noop",
        address=stage,
        state=registry_pb2.REPLICA_STATE_READY,
        generation=1,
    )
    etcd = Etcd(endpoint)
    await etcd.start()
    await etcd.put(model_key(MODEL), to_json(model))
    await etcd.put(replica_key(MODEL, 0, REPLICA), to_json(replica))
    await etcd.close()
