"""Writes models' records: each write compares what was read, so that what several registries write at once does not get lost."""

import logging
from collections.abc import Callable

from stagemesh import records
from stagemesh.errors import Unavailable
from stagemesh.etcd import Delete, Etcd, Guard
from stagemesh.v1.registry_pb2 import ModelSpec

from .desired import same_settings
from .mirror import Mirror

log = logging.getLogger(__name__)

_ATTEMPTS = 20


class Models:
    """`update` changes a record, whatever it is by now; `replace` only the one that was looked at; `remove` takes it away."""

    def __init__(self, etcd: Etcd, mirror: Mirror) -> None:
        self._etcd = etcd
        self._mirror = mirror

    async def update(self, name: str, change: Callable[[ModelSpec | None], ModelSpec]) -> ModelSpec:
        """Apply `change` to the stored spec; when it changes anything, raise the generation and write it."""
        key = records.model_key(name)
        for _ in range(_ATTEMPTS):
            stored = await self._etcd.get(key)
            current = _decode(stored.value) if stored else None
            spec = change(current)
            if current is not None and same_settings(current, spec):
                return current
            spec.generation = current.generation + 1 if current else 1
            expected = stored.mod_revision if stored else 0
            if await self._etcd.compare_and_put(key, records.to_json(spec), expected_mod_revision=expected):
                self._noted(key, spec)
                return spec
        raise Unavailable("the model is being changed by others at the same time", retry_after_s=1.0)

    async def replace(self, seen: ModelSpec, spec: ModelSpec) -> bool:
        """Write `spec` if the record is still `seen`; whether it was."""
        key = records.model_key(seen.name)
        stored = await self._etcd.get(key)
        if stored is None or _decode(stored.value) != seen:
            return False
        spec.generation = seen.generation + 1
        value = records.to_json(spec)
        if not await self._etcd.compare_and_put(key, value, expected_mod_revision=stored.mod_revision):
            return False
        self._noted(key, spec)
        return True

    async def remove(self, name: str) -> bool:
        """Remove the record, and with it what the autoscaler decided for the model; whether there was one.

        Both go in one transaction. Any registry undeploys, so the leader's fence cannot guard this; a scale record that was
        removed on its own, later, might be that of a model deployed under the same name meanwhile.
        """
        model, scale = records.model_key(name), records.scale_key(name)
        for _ in range(_ATTEMPTS):
            stored = await self._etcd.get(model)
            if stored is None:
                return False
            seen = Guard(model, mod_revision=stored.mod_revision)
            revision = await self._etcd.transact([seen], [Delete(model), Delete(scale)])
            if revision:
                for key in (model, scale):
                    self._mirror.forget(key, revision)
                return True
        raise Unavailable("the model is being changed by others at the same time", retry_after_s=1.0)

    def _noted(self, key: str, spec: ModelSpec) -> None:
        self._mirror.note(key, spec)
        log.info(
            "registry.desired model=%s generation=%d revision=%s stages=%d replicas=%s",
            spec.name, spec.generation, spec.revision, len(spec.partitions), list(spec.replicas),
        )  # fmt: skip


def _decode(value: bytes) -> ModelSpec | None:
    try:
        return records.from_json(value, ModelSpec)
    except ValueError as error:  # unreadable: what is asked for now replaces it
        log.error("registry.record_unreadable: %s", error)
        return None
