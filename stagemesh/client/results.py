"""What the client hands back: plain frozen data made from the response messages."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from stagemesh.client.arrays import array_of
from stagemesh.v1 import inference_pb2, stage_pb2

_CACHE_WORDS = {
    inference_pb2.CACHE_STATUS_HIT: "hit",
    inference_pb2.CACHE_STATUS_MISS: "miss",
    inference_pb2.CACHE_STATUS_BYPASS: "bypass",
    inference_pb2.CACHE_STATUS_ERROR: "error",
    inference_pb2.CACHE_STATUS_SEMANTIC: "semantic",
}


@dataclass(frozen=True)
class RouteHop:
    """One replica of the route that served a request."""

    stage: int
    replica_id: str
    address: str


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt and of the completion."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class StageTime:
    """Where a session's time went on one stage: sums over its steps, in seconds.

    `bubble_s` is how long the stage had nothing to compute before the passes that the steps went in; that time
    is not the session's own. `rows` are those of the passes, of all sessions.
    """

    stage: int
    replica_id: str
    steps: int
    queue_s: float
    compute_s: float
    encode_s: float
    network_s: float
    bubble_s: float = 0.0
    rows: int = 0


@dataclass(frozen=True)
class Chunk:
    """Text that became final, and the tokens behind it. `finish_reason` is empty but on an answer's last chunk.

    `index` says which of `n` answers it belongs to. `top_logprobs` has the alternatives of each token, id to natural
    log, and is empty unless they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    index: int = 0
    top_logprobs: tuple[Mapping[int, float], ...] = ()


@dataclass(frozen=True)
class Choice:
    """One of the answers of a generation, whole."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    top_logprobs: tuple[Mapping[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """A finished generation: `choices` are its `n` answers; text, tokens and reason here are the first one's.

    `finish_reason` is "stop" or "length"; `cache` is "hit", "miss", "bypass" or "error"; `route` holds a replica
    per stage and is empty when the cache answered. `first_token_s` and `duration_s` are seconds as this client
    saw them. `first_timings` are `timings` as they were at the first token: the time that it took, prompt included.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    usage: Usage
    route: tuple[RouteHop, ...]
    cache: str
    request_id: str
    timings: tuple[StageTime, ...]
    first_token_s: float
    duration_s: float
    first_timings: tuple[StageTime, ...] = ()
    choices: tuple[Choice, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens over the whole duration; 0 when there were none."""
        return self.usage.completion_tokens / self.duration_s if self.duration_s > 0 else 0.0


@dataclass(frozen=True)
class Inference:
    """Outputs of a stateless inference, by name, and how it was served."""

    outputs: Mapping[str, npt.NDArray[Any]]
    revision: str
    route: tuple[RouteHop, ...]
    cache: str
    request_id: str


@dataclass(frozen=True)
class Embedding:
    """Vectors of shape [texts, dimension] (float32), and how they were served."""

    vectors: npt.NDArray[Any]
    usage: Usage
    route: tuple[RouteHop, ...]
    cache: str
    request_id: str


@dataclass
class GenerationBuilder:
    """Gathers the responses of one generation. `now` arguments are monotonic seconds."""

    started: float
    request_id: str = ""
    cache: str = ""
    route: tuple[RouteHop, ...] = ()
    usage: Usage = field(default_factory=Usage)
    timings: tuple[StageTime, ...] = ()
    first_timings: tuple[StageTime, ...] = ()
    first_token: float | None = None
    chunks: list[Chunk] = field(default_factory=list)

    def add(self, response: inference_pb2.GenerateResponse, now: float) -> Chunk:
        """Take in one response and return its chunk."""
        self.request_id = response.request_id or self.request_id
        self.cache = cache_word(response.cache) or self.cache
        self.route = route_of(response.route) or self.route
        self.timings = timings_of(response.timings) or self.timings
        if response.HasField("usage"):  # of this answer; the prompt counts once
            made = self.usage.completion_tokens + response.usage.completion_tokens
            self.usage = Usage(response.usage.prompt_tokens, made)
        if self.first_token is None and (response.text or response.tokens):
            self.first_token = now
            self.first_timings = self.timings
        chunk = Chunk(
            text=response.text,
            token_ids=tuple(token.id for token in response.tokens),
            logprobs=tuple(token.logprob for token in response.tokens),
            finish_reason=response.finish_reason,
            index=response.index,
            top_logprobs=top_logprobs_of(response.tokens),
        )
        self.chunks.append(chunk)
        return chunk

    def build(self, now: float) -> Generation:
        """What was gathered so far, as seen at `now`."""
        last = max((chunk.index for chunk in self.chunks), default=0)
        choices = tuple(self._choice(index) for index in range(last + 1))
        return Generation(
            text=choices[0].text,
            token_ids=choices[0].token_ids,
            logprobs=choices[0].logprobs,
            finish_reason=choices[0].finish_reason,
            usage=self.usage,
            route=self.route,
            cache=self.cache,
            request_id=self.request_id,
            timings=self.timings,
            first_token_s=(self.first_token if self.first_token is not None else now) - self.started,
            duration_s=now - self.started,
            first_timings=self.first_timings,
            choices=choices,
        )

    def _choice(self, index: int) -> Choice:
        chunks = [chunk for chunk in self.chunks if chunk.index == index]
        return Choice(
            index=index,
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            logprobs=tuple(value for chunk in chunks for value in chunk.logprobs),
            finish_reason="".join(chunk.finish_reason for chunk in chunks),
            top_logprobs=tuple(each for chunk in chunks for each in chunk.top_logprobs),
        )


def top_logprobs_of(tokens: Iterable[stage_pb2.Token]) -> tuple[Mapping[int, float], ...]:
    """Alternatives of each token, id to natural log; empty when no token has any."""
    found = tuple({each.id: each.logprob for each in token.alternatives} for token in tokens)
    return found if any(found) else ()


def cache_word(status: int) -> str:
    """The word for a cache status; empty when unset or unknown."""
    return _CACHE_WORDS.get(status, "")  # type: ignore[call-overload]


def route_of(hops: Iterable[stage_pb2.RouteHop]) -> tuple[RouteHop, ...]:
    """The hops as plain data."""
    return tuple(RouteHop(hop.stage, hop.replica_id, hop.address) for hop in hops)


def timings_of(timings: Iterable[stage_pb2.StageTiming]) -> tuple[StageTime, ...]:
    """Timings in seconds."""
    return tuple(
        StageTime(
            stage=timing.stage,
            replica_id=timing.replica_id,
            steps=timing.steps,
            queue_s=timing.queue_us / 1e6,
            compute_s=timing.compute_us / 1e6,
            encode_s=timing.encode_us / 1e6,
            network_s=timing.network_us / 1e6,
            bubble_s=timing.bubble_us / 1e6,
            rows=timing.rows,
        )
        for timing in timings
    )


def inference_of(response: inference_pb2.InferResponse) -> Inference:
    """Outputs as arrays; raises `InvalidArgument` when the answer's tensors are malformed."""
    return Inference(
        outputs={
            tensor.name: array_of(tensor, f"outputs[{index}]")
            for index, tensor in enumerate(response.outputs)
        },
        revision=response.revision,
        route=route_of(response.route),
        cache=cache_word(response.cache),
        request_id=response.request_id,
    )


def embedding_of(response: inference_pb2.EmbedResponse) -> Embedding:
    """Vectors as one array."""
    return Embedding(
        vectors=array_of(response.embeddings, "embeddings"),
        usage=Usage(response.usage.prompt_tokens, response.usage.completion_tokens),
        route=route_of(response.route),
        cache=cache_word(response.cache),
        request_id=response.request_id,
    )
