"""Configuration of a stage node."""

from pathlib import Path

from pydantic import Field

from stagemesh.config import ServiceConfig


class StageConfig(ServiceConfig):
    """A stage node: offers a device and memory, and hosts the partitions it is given."""

    port: int = Field(8100, ge=0, le=65535, description="gRPC port; 0 takes any free one")
    node_id: str = Field(
        "", max_length=63, description="name of this node; empty: host name and a random part"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, le=1024, description="compute threads of torch; 0: one per CPU")
    memory: int = Field(0, ge=0, description="bytes for weights and KV; 0: what is free on the device now")
    kv_fraction: float = Field(
        0.5, gt=0, lt=1, description="share of the memory left after loading that one partition's KV may take"
    )
    drain_s: float = Field(
        20.0, ge=0, le=600, description="seconds running sessions get to finish on SIGTERM"
    )
    hang_s: float = Field(
        3.0,
        ge=0,
        le=600,
        description="seconds that a pass may at least stand still before its replica is given up; 0 never does",
    )
    load_timeout_s: float = Field(
        1800.0, gt=0, le=86400, description="seconds after which a partition that still loads has failed"
    )
    max_message_bytes: int = Field(
        64 * 2**20, ge=2**16, le=2**31 - 1, description="largest gRPC message sent or accepted"
    )
    chunk_tokens: int = Field(
        512, ge=1, le=2**16, description="tokens of one pass; longer prompts go in chunks"
    )
    max_sessions: int = Field(
        128,
        ge=1,
        le=2**16,
        description="sessions of full context length that a replica keeps KV for, memory allowing",
    )
    fast: bool = Field(
        True, description="use packed weights and the like where they measure faster; off is plain torch"
    )
    keep_mb: int = Field(
        -1,
        ge=-1,
        le=2**24,
        description="MiB that loaded partitions may take which nobody asks for now, so that their models wake at once; "
        "they go when the memory is needed. 0 keeps none, -1 keeps up to half of the node's memory",
    )
    packed_mb: int = Field(
        -1,
        ge=-1,
        le=2**24,
        description="MiB of disk that packed partitions may take in `packed` of the data folder, so that the next load "
        "maps one instead of making it; 0 writes none, -1 as much as the node's memory. A tenth of the disk stays free",
    )
    journal_mb: int = Field(
        128,
        ge=0,
        le=2**20,
        description="MiB that a replica may take to remember what it sent, so that a lost next one can be built again "
        "without the others; 0 is none",
    )
    shared_memory_mb: int = Field(
        32,
        ge=0,
        le=2**14,
        description="MiB of shared memory that a link to a replica on the same host may use; 0 is none",
    )
    local_sockets: bool = Field(
        True,
        description="send frames to replicas on the same host over a Unix socket; off sends them through gRPC",
    )
    process_nice: int = Field(
        10,
        ge=0,
        le=19,
        description="how far the whole process gives way to routers, registries and etcd on this machine; 0 not at all",
    )
    nice: int = Field(
        10,
        ge=0,
        le=19,
        description="how much further computing gives way to whatever else runs on this machine; 0 not at all",
    )
    data_dir: Path | None = Field(
        None,
        description="folder that keeps what was measured and packed here; without, the user's cache folder",
    )
