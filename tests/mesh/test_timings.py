"""Where a generation says that its time went."""

import pytest

from stagemesh import AsyncClient

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("stages", [1, 3])
async def test_the_first_token_and_the_rest_can_be_told_apart(client: AsyncClient, stages: int) -> None:
    found = await client.generate(
        f"llama-{stages}", token_ids=[5, 6, 7], max_tokens=6, temperature=0, ignore_eos=True, cache=False
    )
    replicas = [(hop.stage, hop.replica_id) for hop in found.route]
    assert [(time.stage, time.replica_id) for time in found.first_timings] == replicas
    assert [(time.stage, time.replica_id) for time in found.timings] == replicas
    # A step for the prompt, and one for each token after the first.
    assert [time.steps for time in found.timings] == [6] * stages
    for first, last in zip(found.first_timings, found.timings, strict=True):
        assert 1 <= first.steps < last.steps
        assert 0 < first.compute_s < last.compute_s
        # Alone, a step after the prompt is a row of its own.
        assert last.rows - first.rows == last.steps - first.steps
        # It waits for the other stages, which have nothing to do meanwhile.
        assert last.bubble_s > first.bubble_s
    assert sum(time.compute_s for time in found.timings) < found.duration_s
