"""Streams through a running mesh for `bench`: greedy generations of random tokens, noted as they come."""

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np

from stagemesh.client import AsyncClient
from stagemesh.errors import InvalidArgument, StagemeshError, Unavailable
from stagemesh.token_time import Load, Stream, load_of
from stagemesh.v1 import registry_pb2


async def find_model(client: AsyncClient, wanted: str) -> registry_pb2.ModelSpec:
    """The spec of a deployed model that generates; of the only one when `wanted` is empty.

    Raises:
        InvalidArgument: there is none, it is not ready or does not generate, or it must be said which.
    """
    deployed = {model.spec.name: model for model in await client.models()}
    names = f"deployed are {', '.join(deployed)}" if deployed else "none is deployed"
    if not wanted and len(deployed) != 1:
        raise InvalidArgument(f"MODEL: say which model ({names})", field="model")
    model = deployed.get(wanted) if wanted else next(iter(deployed.values()))
    if model is None:
        raise InvalidArgument(f"MODEL: {wanted!r} is neither a deployed model nor a folder ({names})")
    if not model.ready:
        raise Unavailable(f"{model.spec.name} is not ready: `stagemesh status` says why")
    if model.spec.task != "generate":
        raise InvalidArgument(f"MODEL: {model.spec.name} does not generate text", field="model")
    return model.spec


class Runner:
    """Rounds of concurrent streams on one model.

    Args:
        client: of the mesh's router.
        spec: of the model.
        prompt_tokens: length of each prompt.
        tokens: new tokens of each stream.
        timeout_s: deadline of each stream.
        progress: told what is being run.

    Raises:
        InvalidArgument: prompt and tokens do not fit into the model's context.
    """

    def __init__(
        self,
        client: AsyncClient,
        spec: registry_pb2.ModelSpec,
        prompt_tokens: int,
        tokens: int,
        timeout_s: float,
        progress: Callable[[str], None],
    ) -> None:
        if spec.context_length and prompt_tokens + tokens > spec.context_length:
            raise InvalidArgument(
                f"--prompt-tokens and --tokens: {prompt_tokens} + {tokens} exceed the context of "
                f"{spec.context_length}"
            )
        self._client = client
        self._spec = spec
        self._prompt_tokens = prompt_tokens
        self._tokens = tokens
        self._timeout_s = timeout_s
        self._progress = progress
        # No prompt twice: a mesh may keep what it computed for one.
        self._rng = np.random.default_rng()

    async def loads(self, counts: Sequence[int], rounds: int) -> list[Load]:
        """Each number of streams in turn, `rounds` times over, after a round that only warms up.

        Raises:
            InvalidArgument: too few tokens to see a time between them.
            StagemeshError: what a stream failed with.
        """
        seen: dict[int, list[list[Stream]]] = {count: [] for count in counts}
        for number in range(rounds + 1):
            for count in counts:
                of = f"round {number} of {rounds}" if number else "warming up"
                self._progress(f"{of}: {count} stream{'' if count == 1 else 's'} of {self._tokens} tokens")
                found = await self._together(count)
                if number:
                    seen[count].append(found)
        try:
            return [load_of(seen[count]) for count in counts]
        except ValueError as error:
            raise InvalidArgument(f"--tokens: {error}", field="tokens") from None

    async def _together(self, count: int) -> list[Stream]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._stream()) for _ in range(count)]
        except* StagemeshError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _stream(self) -> Stream:
        # Ids below 2 are often markers of the text's begin and end.
        top = max(3, self._spec.vocab_size or 256)
        prompt = [int(token) for token in self._rng.integers(2, top, self._prompt_tokens)]
        times: list[float] = []
        together = 0
        started = time.perf_counter()
        chunks = self._client.stream(
            self._spec.name,
            token_ids=prompt,
            max_tokens=self._tokens,
            temperature=0,
            ignore_eos=True,
            cache=False,
            timeout_s=self._timeout_s,
        )
        async with chunks:
            async for chunk in chunks:
                times += [time.perf_counter()] * len(chunk.token_ids)
                together = together or len(times)
            whole = await chunks.generation()
        if not times:
            raise Unavailable("a stream ended without a token")
        return Stream(started, tuple(times), together, whole.first_timings, whole.timings)
