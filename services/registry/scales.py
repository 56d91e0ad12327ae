"""Writes how many replicas a model is to have from now on: what the autoscaler decided, and what Wake asks for."""

import logging
import time
from collections.abc import Sequence

from stagemesh import records
from stagemesh.errors import NotFound, Unavailable
from stagemesh.etcd import Etcd
from stagemesh.tracing import inject
from stagemesh.v1.registry_pb2 import ModelSpec, ScaleRecord
from stagemesh.wanted import asleep

from .mirror import Mirror

log = logging.getLogger(__name__)

_ATTEMPTS = 20
_REASON = 500


class Scales:
    """The scale records in etcd, each changed with compare-and-put, since any registry may wake a model."""

    def __init__(self, etcd: Etcd, mirror: Mirror) -> None:
        self._etcd = etcd
        self._mirror = mirror

    async def wake(self, name: str, reason: str) -> bool:
        """Give a model that sleeps one replica of every stage; whether it slept.

        Raises:
            NotFound: no such model is deployed.
            Unavailable: etcd is away, or the record is being changed all the time.
        """
        for _ in range(_ATTEMPTS):
            model = await self._etcd.get(records.model_key(name))
            if model is None:
                raise NotFound(f"no model {name!r} is deployed", field="name")
            spec = records.from_json(model.value, ModelSpec)
            found = await self._etcd.get(records.scale_key(name))
            if found is None or not asleep(spec, records.from_json(found.value, ScaleRecord)):
                return False
            if await self._put(name, [1] * len(spec.partitions), reason, found.mod_revision):
                return True
        raise Unavailable("the model is being changed by others at the same time", retry_after_s=1.0)

    async def _put(self, name: str, replicas: Sequence[int], reason: str, expected: int) -> bool:
        key = records.scale_key(name)
        record = ScaleRecord(
            model=name,
            replicas=replicas,
            reason=reason[:_REASON],
            unix_ms=int(time.time() * 1000),
            traceparent=dict(inject()).get("traceparent", ""),
        )
        written = await self._etcd.compare_and_put(
            key, records.to_json(record), expected_mod_revision=expected
        )
        if written:
            self._mirror.note(key, record)
        return written
