"""Load spreads over the replicas of each stage."""

import asyncio
from collections import Counter

import pytest

from stagemesh import AsyncClient

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]


async def test_200_concurrent_requests_spread_over_two_replicas_per_stage(client: AsyncClient) -> None:
    answers = await asyncio.gather(
        *(
            client.generate("llama", token_ids=[2 + i, 7], max_tokens=4, temperature=0, ignore_eos=True)
            for i in range(200)
        )
    )
    assert all(len(answer.token_ids) == 4 for answer in answers)
    assert all(answer.cache != "hit" for answer in answers)
    for stage in (0, 1):
        counts = Counter(answer.route[stage].replica_id for answer in answers)
        assert len(counts) == 2, counts
        assert all(70 <= count <= 130 for count in counts.values()), counts
