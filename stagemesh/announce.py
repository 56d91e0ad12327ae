"""Announce a service in etcd for as long as it runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stagemesh import records
from stagemesh.etcd import Etcd, Lease
from stagemesh.v1.registry_pb2 import ServiceRecord


@asynccontextmanager
async def announce(etcd: Etcd, record: ServiceRecord, *, ttl_s: int = 5) -> AsyncIterator[Lease]:
    """Hold `record` at `services/<kind>/<id>` under a lease of its own; leaving removes it.

    Yields the lease. Raises `errors.InvalidArgument` for names that cannot be keys and `errors.Unavailable`
    when etcd does not answer at the start; later absences of etcd are survived.
    """
    kind = records.check_name(record.kind, "kind")
    service_id = records.check_name(record.id, "id")
    lease = await etcd.lease(ttl_s)
    try:
        await lease.put(records.service_key(kind, service_id), records.to_json(record))
        yield lease
    finally:
        await lease.revoke()
