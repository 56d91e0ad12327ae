"""Of several registries one leads: the one whose name stands under its lease at the leader key.

Time alone cannot say who leads: a process that was stopped goes on where it was, with writes that it decided on before.
So every write of a leader is fenced. It is one transaction with a comparison of the leader key's creation revision,
the term's number, with that of the term in which it was decided (a fencing token: Kleppmann, "How to do distributed locking", 2016; Chubby's
sequencer: Burrows, OSDI 2006). Whatever a former leader wrote therefore lies before the term's number, and whoever has
seen the store up to there has seen all of it.
"""

import time
from collections.abc import Callable, Sequence

from stagemesh import records
from stagemesh.errors import FailedPrecondition
from stagemesh.etcd import Etcd, Guard, Lease, Write


class Fenced(FailedPrecondition):
    """The term in which a write was decided is over; nothing was written."""


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
        self._term = 0

    def __repr__(self) -> str:
        state = f"leads in term {self._term}" if self.leads else "stands by"
        return f"<Leadership {self._name.decode()} {state}>"

    @property
    def leads(self) -> bool:
        """Whether this registry leads now, as far as it can know."""
        return self._clock() < self._until

    @property
    def name(self) -> bytes:
        """What stands at the leader key while this registry leads."""
        return self._name

    @property
    def term(self) -> int:
        """The revision at which the present, or the last, leadership of this registry began; 0 before any."""
        return self._term

    async def refresh(self) -> bool:
        """Confirm or claim the leadership; raises `StagemeshError` when etcd does not answer."""
        asked_at = self._clock()
        if self._lease is None:
            self._lease = await self._etcd.lease(self._ttl_s)
        found = await self._etcd.get(records.LEADER)
        if found is None and await self._etcd.compare_and_put(
            records.LEADER, self._name, expected_mod_revision=0, lease=self._lease
        ):
            found = await self._etcd.get(records.LEADER)
        if found is not None and found.value == self._name:
            self._until, self._term = asked_at + self._ttl_s, found.create_revision
        else:
            self._until = 0.0
        return self.leads

    async def commit(
        self, writes: Sequence[Write], *, guards: Sequence[Guard] = (), term: int | None = None
    ) -> int:
        """Write in the term in which it was decided (None: the present one); the store's revision, 0 if a guard of `guards` did not hold.

        Raises:
            Fenced: that term is over.
            Unavailable: etcd does not answer.
        """
        term = self._term if term is None else term
        if not term:
            raise Fenced("this registry does not lead")
        fence = Guard(records.LEADER, value=self._name, create_revision=term)
        revision = await self._etcd.transact([fence, *guards], writes)
        if revision:
            return revision
        found = await self._etcd.get(records.LEADER)
        if found is None or found.value != self._name or found.create_revision != term:
            self._until = 0.0
            raise Fenced("another registry leads by now, nothing was written")
        return 0

    async def resign(self) -> None:
        """Give the leadership up, so that another registry takes over at once."""
        self._until = 0.0
        if self._lease is not None:
            await self._lease.revoke()
            self._lease = None
