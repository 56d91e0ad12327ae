"""Transactions: several comparisons, several writes, all of them or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aetcd import rpc

MOST_WRITES = 128
"""Of one transaction, as etcd limits it by default."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What must hold of a key for the writes to happen; what is None is not compared.

    Revisions: 0 means that the key must not exist.
    """

    key: str
    value: bytes | None = None
    create_revision: int | None = None
    mod_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key, which no lease removes."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key, if it is there."""

    key: str


Write = Put | Delete


def request_of(guards: Sequence[Guard], writes: Sequence[Write]) -> Any:
    """The `TxnRequest`; refused, it answers with what the keys to be written hold."""
    if not writes or len(writes) > MOST_WRITES:
        raise ValueError(f"a transaction has 1 to {MOST_WRITES} writes, not {len(writes)}")
    return rpc.TxnRequest(
        compare=[comparison for guard in guards for comparison in _comparisons(guard)],
        success=[_operation(write) for write in writes],
        failure=[
            rpc.RequestOp(request_range=rpc.RangeRequest(key=write.key.encode(), limit=1)) for write in writes
        ],
    )


def holds(writes: Sequence[Write], refused: Any) -> bool:
    """Whether the answer to a refused transaction shows all keys as the writes would leave them."""
    for write, response in zip(writes, refused.responses, strict=True):
        found = response.response_range.kvs
        if isinstance(write, Delete):
            if found:
                return False
        elif not found or found[0].value != write.value or found[0].lease:
            return False
    return True


def _operation(write: Write) -> Any:
    key = write.key.encode()
    if isinstance(write, Delete):
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=write.value))


def _comparisons(guard: Guard) -> list[Any]:
    key, equal = guard.key.encode(), rpc.Compare.EQUAL
    found: list[Any] = []
    if guard.value is not None:
        found.append(rpc.Compare(key=key, target=rpc.Compare.VALUE, result=equal, value=guard.value))
    if guard.create_revision is not None:
        found.append(
            rpc.Compare(
                key=key,
                target=rpc.Compare.CREATE,
                result=equal,
                create_revision=guard.create_revision,
            )
        )
    if guard.mod_revision is not None:
        found.append(
            rpc.Compare(key=key, target=rpc.Compare.MOD, result=equal, mod_revision=guard.mod_revision)
        )
    if not found:
        raise ValueError(f"the guard of {guard.key} compares nothing")
    return found
