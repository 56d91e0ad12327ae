"""What the cache can be told."""

from pathlib import Path

from pydantic import Field, model_validator

from stagemesh.config import ServiceConfig


class CacheConfig(ServiceConfig):
    """Keep answers by exact key, in memory, within a byte budget; a file or a shared store may stand behind it."""

    port: int = Field(8003, ge=0, le=65535, description="gRPC port; 0 takes any free one")
    max_bytes: int = Field(
        256 * 2**20, ge=4096, description="byte budget of all entries, keys and overhead included"
    )
    max_entry_bytes: int = Field(
        8 * 2**20, ge=1024, le=60 * 2**20, description="largest value that is stored, in bytes"
    )
    default_ttl_s: int = Field(
        3600, ge=1, le=10 * 365 * 86400, description="seconds an entry is valid when its writer does not say"
    )
    file: Path | None = Field(
        None, description="file that keeps the entries over a restart or a crash; made when it is not there"
    )
    redis: str = Field(
        "",
        pattern=r"^((redis|rediss|unix)://\S+)?$",
        description="Redis or Valkey that several caches share, redis://HOST:PORT/DB, instead of a file",
    )
    redis_timeout_ms: int = Field(
        20, ge=1, le=1000, description="how long the shared store may take to answer, in milliseconds"
    )
    max_waiting_bytes: int = Field(
        64 * 2**20,
        ge=2**16,
        description="bytes that may wait to be written behind the memory; more are dropped",
    )
    compute_ttl_s: float = Field(
        3.0,
        ge=0.2,
        le=300,
        description="seconds after which one that computes an answer and is silent is given up for the next",
    )
    max_computing: int = Field(65536, ge=1, description="answers that are computed once for all who ask")
    max_waiting: int = Field(4096, ge=0, description="lookups that may wait for another one's answer")
    semantic_max_bytes: int = Field(
        256 * 2**20, ge=2**16, description="byte budget of the questions that semantic lookups search"
    )
    semantic_file: Path | None = Field(
        None,
        description="file that keeps these questions and what is known of their errors; beside `file` when not given",
    )
    drain_s: float = Field(5.0, ge=0, le=3600, description="seconds that requests in flight get at shutdown")

    @model_validator(mode="after")
    def _entry_fits(self) -> "CacheConfig":
        if self.max_entry_bytes > self.max_bytes:
            raise ValueError("max_entry_bytes must not be more than max_bytes")
        if self.file is not None and self.redis:
            raise ValueError("file and redis cannot both be given")
        return self
