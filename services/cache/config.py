"""What the cache can be told."""

from pydantic import Field, model_validator

from stagemesh.config import ServiceConfig


class CacheConfig(ServiceConfig):
    """Keep answers by exact key, in memory, within a byte budget."""

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
    drain_s: float = Field(5.0, ge=0, le=3600, description="seconds that requests in flight get at shutdown")

    @model_validator(mode="after")
    def _entry_fits(self) -> "CacheConfig":
        if self.max_entry_bytes > self.max_bytes:
            raise ValueError("max_entry_bytes must not be more than max_bytes")
        return self
