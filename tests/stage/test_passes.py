"""What the last stage tells the head of each step."""

from pathlib import Path

import pytest

from stagemesh.tensor import TensorView
from stagemesh.v1.stage_pb2 import HopRecord, StepResult
from tests.stage.two_stages import route_of, settled

pytestmark = pytest.mark.asyncio


async def test_the_head_hears_of_each_chunk_of_a_prompt_and_no_token_is_made_of_it(llama: Path) -> None:
    async with route_of(llama) as route:
        whole = await route.generate(list(range(5, 25)), 3)
    async with route_of(llama, chunk_tokens=8) as route:
        heard: list[tuple[StepResult, list[int]]] = []
        to_head = route.replicas[0].on_result
        assert to_head is not None

        def listen(result: StepResult, tensor: TensorView | None, hops: list[HopRecord]) -> None:
            heard.append((result, [hop.stage for hop in hops]))
            to_head(result, tensor, hops)

        route.replicas[0].on_result = listen
        assert await route.generate(list(range(5, 25)), 3) == whole
        await settled(route)
    assert [result.prefilled for result, _ in heard] == [True, True, False, False, False]
    assert all(result.session == 1 and not result.HasField("token") for result, _ in heard[:2])
    assert all(stages == [0, 1] for _, stages in heard)
