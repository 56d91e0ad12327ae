"""How entries lie in Redis, and what is asked of a server that keeps them."""

import hashlib
import logging
from typing import Any

from google.protobuf.message import DecodeError
from redis.exceptions import RedisError

from stagemesh.errors import ConfigError
from stagemesh.v1.cache_pb2 import CacheRecord

from .entry_file import Row

log = logging.getLogger(__name__)
ROOT = "{stagemesh-cache}:"
"""In braces: a cluster keeps all of it in one place, as its transactions need."""


async def check_eviction(client: Any) -> None:
    """Raise `ConfigError` when the server may evict the sorted sets, which say what an invalidation has to drop."""
    try:
        found = await client.config_get("maxmemory*")
    except RedisError:
        log.warning("cache.redis_unknown: cannot see its maxmemory-policy; it must not be an allkeys one")
        return
    policy = str(found.get("maxmemory-policy", ""))
    if str(found.get("maxmemory", "0")) != "0" and policy.startswith("allkeys"):
        raise ConfigError(
            f"redis: its maxmemory-policy {policy} may evict what invalidations need; set volatile-lru"
        )


def entry_name(tenant: str, key: bytes) -> str:
    """Where an entry lies."""
    return f"{ROOT}entry:{hashlib.sha256(tenant.encode()).hexdigest()[:32]}:{key.hex()}"


def index_name(kind: str, name: str) -> str:
    """The sorted set of the entries of a "tag" or a "tenant", or of "all"."""
    return f"{ROOT}{kind}:{name}"


def to_record(row: Row) -> bytes:
    """An entry as it lies there."""
    return CacheRecord(
        tenant=row.tenant,
        key=row.key,
        value=row.value,
        digest=row.digest,
        tags=row.tags,
        stored_unix_ms=row.stored_ms,
        expires_unix_ms=row.expires_ms,
    ).SerializeToString()


def believed(data: bytes, tenant: str, key: bytes) -> Row | None:
    """The row of a record, if it is this entry's and whole."""
    try:
        record = CacheRecord.FromString(data)
    except DecodeError:
        return None
    right = hashlib.sha256(key + record.value).digest() == record.digest
    if (record.tenant, record.key) != (tenant, key) or not right:
        return None
    return Row(
        tenant,
        key,
        record.value,
        record.digest,
        tuple(record.tags),
        record.stored_unix_ms,
        record.expires_unix_ms,
    )
