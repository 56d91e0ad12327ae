"""Reads events out of etcd for whoever asks a registry."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from stagemesh import records
from stagemesh.errors import InvalidArgument
from stagemesh.etcd import Etcd, Snapshot
from stagemesh.v1.registry_pb2 import EventRecord, EventsRequest

_LONGEST = 256


def check_events(request: EventsRequest) -> None:
    """Raise `InvalidArgument` naming the field."""
    if request.model:
        records.check_name(request.model, "model")
    if len(request.kind) > _LONGEST:
        raise InvalidArgument(f"kind: longer than {_LONGEST} characters", field="kind")


async def events(etcd: Etcd, request: EventsRequest) -> AsyncIterator[EventRecord]:
    """Those asked for, oldest first; with `follow` each new one as it comes, and none twice."""
    check_events(request)
    first = records.event_key(max(request.since_unix_ms, 0), "")
    if not request.follow:
        found, _ = await etcd.get_prefix(records.EVENTS)
        for each in found:
            record = _take(each.key, each.value, first, request)
            if record is not None:
                yield record
        return
    told: set[str] = set()
    async with aclosing(etcd.watch(records.EVENTS)) as changes:  # type: ignore[type-var]
        async for change in changes:
            # After a break the listing comes again: what is in it and was told is not told again.
            news = (
                sorted(change.items.items()) if isinstance(change, Snapshot) else [(change.key, change.value)]
            )
            if isinstance(change, Snapshot):
                told &= change.items.keys()
            for key, value in news:
                if value is None:
                    told.discard(key)
                    continue
                record = None if key in told else _take(key, value, first, request)
                told.add(key)
                if record is not None:
                    yield record


def _take(key: str, value: bytes, first: str, request: EventsRequest) -> EventRecord | None:
    if key < first:
        return None
    try:
        record = records.from_json(value, EventRecord)
    except ValueError:  # somebody else's: nothing here wrote that
        return None
    wanted = request.model in ("", record.model) and record.kind.startswith(request.kind)
    return record if wanted else None
