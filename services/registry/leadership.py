"""Of several registries one leads: the one whose name stands under its lease at the leader key."""

import time
from collections.abc import Callable

from stagemesh import records
from stagemesh.etcd import Etcd, Lease


class Leadership:
    """This registry's claim to lead. `refresh` it about once a second; it lapses by itself when etcd is away."""

    def __init__(
        self, etcd: Etcd, registry_id: str, ttl_s: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._etcd = etcd
        self._name = registry_id.encode()
        self._ttl_s = ttl_s
        self._clock = clock
        self._lease: Lease | None = None
        self._until = 0.0

    def __repr__(self) -> str:
        return f"<Leadership {self._name.decode()} {'leads' if self.leads else 'stands by'}>"

    @property
    def leads(self) -> bool:
        """Whether this registry leads now, as far as it can know."""
        return self._clock() < self._until

    async def refresh(self) -> bool:
        """Confirm or claim the leadership; raises `StagemeshError` when etcd does not answer."""
        asked_at = self._clock()
        if self._lease is None:
            self._lease = await self._etcd.lease(self._ttl_s)
        found = await self._etcd.get(records.LEADER)
        if found is None:
            held = await self._etcd.compare_and_put(
                records.LEADER, self._name, expected_mod_revision=0, lease=self._lease
            )
        else:
            held = found.value == self._name
        self._until = asked_at + self._ttl_s if held else 0.0
        return self.leads

    async def resign(self) -> None:
        """Give the leadership up, so that another registry takes over at once."""
        self._until = 0.0
        if self._lease is not None:
            await self._lease.revoke()
            self._lease = None
