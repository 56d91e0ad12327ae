"""The router's settings: flags, `STAGEMESH_*` environment, YAML file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stagemesh.config import ServiceConfig

from .policies import POLICIES


def _known_policy(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"no policy {name!r}; there are {', '.join(sorted(POLICIES))}")
    return name


class RouterConfig(ServiceConfig):
    """Settings of `python -m stagemesh.services.router`."""

    port: int = Field(8001, ge=0, le=65535, description="gRPC port (0: any free one)")
    http_port: int = Field(8000, ge=0, le=65535, description="HTTP port (0: any free one)")
    policy: Annotated[str, AfterValidator(_known_policy)] = Field(
        "p2c_ewma",
        description=f"balancing policy of models that name none: {', '.join(POLICIES)}",
    )
    max_sessions: int = Field(256, ge=1, description="requests that run at once")
    max_waiting: int = Field(
        1024, ge=0, description="requests that may wait for their turn; more are refused"
    )
    max_wait_s: float = Field(
        10.0,
        gt=0,
        description="requests that would wait longer for their turn than that, and than others run, are refused",
    )
    max_held: int = Field(
        128, ge=0, description="requests that wait while their model, which slept, wakes; more are refused"
    )
    semantic_timeout_ms: int = Field(
        300,
        ge=1,
        le=60000,
        description="how long an answer to a question that means the same is looked for, encoder included",
    )
    cache_timeout_ms: int = Field(50, ge=1, le=60_000, description="how long the cache may take to answer")
    cache_wait_s: float = Field(
        30.0,
        ge=0,
        le=60,
        description="seconds to wait for the answer of one who computes the same; 0: everybody computes",
    )
    cache_near_bytes: int = Field(
        32 * 2**20,
        ge=0,
        description="byte budget of copies of cached answers that the router gives without asking the cache; 0: none",
    )
    cache_replay: Literal["chunks", "whole"] = Field(
        "chunks", description="send a kept generation in the chunks it was made in, or whole"
    )
    api_keys: Path | None = Field(
        None, description="YAML file of API key to tenant; without it nobody needs a key"
    )
    resume_key: Path | None = Field(
        None,
        description="file with the key, shared by all routers, that resume tokens of streams are signed with",
    )
    max_message_bytes: int = Field(
        64 * 2**20, ge=2**16, le=2**30, description="largest gRPC message, in bytes"
    )
    local_sockets: bool = Field(
        True,
        description="send small stateless requests to stages on the same host over a Unix socket; off sends them through gRPC",
    )
    deadline_s: float = Field(120.0, gt=0, description="deadline of requests that bring none, in seconds")
    max_tokens: int = Field(128, ge=1, description="new tokens of a generation that names no max_tokens")
    drain_s: float = Field(
        20.0, ge=0, description="how long running requests may finish after SIGTERM, in seconds"
    )
