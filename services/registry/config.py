"""What the registry can be told."""

from pydantic import Field

from stagemesh.config import ServiceConfig

from .assign import Patience


class RegistryConfig(ServiceConfig):
    """The registry: desired models, and which node loads what."""

    port: int = Field(8002, ge=0, le=65535, description="gRPC port; 0 takes any free one")
    node_grace_s: float | None = Field(
        None,
        ge=0,
        le=3600,
        description="seconds that a node without a record keeps its partitions (none: one lease time)",
    )
    failed_backoff_s: float = Field(
        2.0,
        gt=0,
        le=3600,
        description="seconds before a replica that failed to load is tried again elsewhere",
    )

    def patience(self) -> Patience:
        """How long the controller waits before it acts."""
        grace_s = float(self.lease_ttl_s) if self.node_grace_s is None else self.node_grace_s
        return Patience(node_grace_s=grace_s, failed_backoff_s=self.failed_backoff_s)
