"""What the registry can be told."""

from pydantic import Field

from stagemesh.config import ServiceConfig

from .assign import Patience
from .autoscale import Settings
from .rollout.drift import Patience as RecutPatience
from .rollout.machine import Limits
from .scaling.autoscaler import Patience as ScalingPatience
from .scaling.capacity import Bounds
from .scaling.limits import Defaults


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

    rollout_drain_s: float = Field(
        180.0,
        ge=0,
        le=86400,
        description="seconds that sessions on what a rollout replaces may take to their end, at most",
    )

    recut_gain: float = Field(
        0.15,
        gt=0,
        le=100,
        description="gain in throughput (or latency) below which no model's cuts are moved",
    )
    recut_cooldown_s: float = Field(
        600.0, ge=0, le=86400, description="seconds from one rollout of a model to the next move of its cuts"
    )

    def recut_patience(self) -> RecutPatience:
        """When other cuts are worth a move."""
        return RecutPatience(least_gain=self.recut_gain, cooldown_s=self.recut_cooldown_s)

    def rollout_limits(self) -> Limits:
        """How long a rollout waits for sessions."""
        return Limits(drain_s=self.rollout_drain_s, blind_s=min(30.0, self.rollout_drain_s))

    target_queue_ms: float = Field(
        20.0,
        gt=0,
        le=600_000,
        description="milliseconds that a step may wait for its pass, of a model that scales itself and names no target",
    )
    target_kv: float = Field(0.8, gt=0, le=1, description="share of KV memory that may be in use, likewise")
    idle_s: float = Field(
        300.0, gt=0, le=2_592_000, description="seconds without a request before a model that may sleep does"
    )
    scale_up_after_s: float = Field(
        3.0, ge=0, le=3600, description="seconds for which a stage has to be above its target before it grows"
    )
    scale_up_cooldown_s: float = Field(
        10.0, ge=0, le=3600, description="seconds after a change before a stage grows"
    )
    scale_down_after_s: float = Field(
        60.0, ge=0, le=86_400, description="seconds for which a stage has to do with less before it shrinks"
    )
    scale_down_cooldown_s: float = Field(
        30.0, ge=0, le=86_400, description="seconds after a change before a stage shrinks"
    )
    consolidate_after_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="seconds for which nodes have to be little used before replicas that scale are packed onto fewer of "
        "them; 0: never",
    )

    node_pool: str = Field(
        "",
        description="who starts and stops nodes: 'etcd' (a launcher that follows the number there, as stagemesh serve "
        "--max-nodes does), 'statefulset/NAME' or 'deployment/NAME' (scaled through the Kubernetes API); empty: nobody, "
        "the metric stagemesh_nodes_wanted says how many there should be",
    )
    min_nodes: int = Field(1, ge=0, le=100_000, description="nodes at least, of a node pool")
    max_nodes: int = Field(1, ge=1, le=100_000, description="nodes at most, of a node pool")
    spare_nodes: int = Field(
        0, ge=0, le=100_000, description="empty nodes that a node pool keeps for what comes"
    )
    empty_node_after_s: float = Field(
        120.0,
        ge=0,
        le=86_400,
        description="seconds for which nodes have to be empty before a node pool stops them",
    )

    def node_bounds(self) -> Bounds:
        """How many nodes a pool may have."""
        return Bounds(self.min_nodes, self.max_nodes, self.spare_nodes, self.empty_node_after_s)

    def scaling(self) -> Settings:
        """What models that scale themselves aim at, and how patient the autoscaler is."""
        return Settings(
            Defaults(self.target_queue_ms, self.target_kv, self.idle_s),
            ScalingPatience(
                self.scale_up_after_s,
                self.scale_up_cooldown_s,
                self.scale_down_after_s,
                self.scale_down_cooldown_s,
            ),
            self.consolidate_after_s,
            bool(self.node_pool),
        )

    def patience(self) -> Patience:
        """How long the controller waits before it acts."""
        grace_s = float(self.lease_ttl_s) if self.node_grace_s is None else self.node_grace_s
        return Patience(node_grace_s=grace_s, failed_backoff_s=self.failed_backoff_s)
