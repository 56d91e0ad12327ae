"""Sessions that begin with the same tokens share the KV blocks of that beginning, on every stage."""

import asyncio
from pathlib import Path

import pytest
from stagemesh.services.stage import metrics

from stagemesh.prefix import BLOCK
from tests.stage.test_partition import whole
from tests.stage.two_stages import route_of, settled

PROMPT = [3 + (7 * index) % 90 for index in range(3 * BLOCK + 5)]
NEW = 12


def reused() -> float:
    return metrics.REUSED_TOKENS.labels("m")._value.get()


def missed() -> float:
    return metrics.PREFIXES_MISSED.labels("m")._value.get()


async def test_a_second_session_computes_only_what_is_new(llama: Path) -> None:
    others = [PROMPT, PROMPT[:BLOCK], [*PROMPT[: 2 * BLOCK], 9, 8, 7], [5, *PROMPT[1:]]]
    wanted = [full[len(prompt) :] for prompt, full in zip(others, whole(llama, others, NEW), strict=True)]
    async with route_of(llama, chunk_tokens=20) as route:
        before = reused()
        assert await route.generate(PROMPT, NEW) == wanted[0]
        assert reused() == before
        computed: list[int] = []
        forward = route.replicas[1].model.forward

        def counted(batch):  # type: ignore[no-untyped-def]
            computed.append(sum(segment.rows for segment in batch.segments))
            return forward(batch)

        route.replicas[1].model.forward = counted  # type: ignore[method-assign]
        # All but the last, incomplete block; of a prompt of whole blocks the last one is computed again; a prompt
        # that differs in its first token shares nothing.
        for prompt, tokens, shared in zip(others, wanted, (3, 0, 2, 0), strict=True):
            computed.clear()
            before = reused()
            assert await route.generate(prompt, NEW) == tokens
            assert reused() - before == shared * BLOCK
            assert sum(computed) == len(prompt) - shared * BLOCK + NEW - 1
        await settled(route)


async def test_sessions_that_share_run_beside_each_other(llama: Path) -> None:
    prompts = [[*PROMPT[: 2 * BLOCK], *range(20 + 3 * index, 40)] for index in range(6)]
    wanted = [full[len(prompt) :] for prompt, full in zip(prompts, whole(llama, prompts, NEW), strict=True)]
    async with route_of(llama) as route:
        await route.generate(prompts[0], 2)
        found = await asyncio.gather(
            *(route.generate(prompt, NEW, session=10 + index) for index, prompt in enumerate(prompts))
        )
        assert found == wanted
        await settled(route)
        pool = route.replicas[1].pool
        assert pool.blocks.available == pool.blocks.total


@pytest.mark.parametrize("forgetful", [0, 1])
async def test_a_stage_that_forgot_the_beginning_costs_time_only(llama: Path, forgetful: int) -> None:
    wanted = whole(llama, [PROMPT], NEW)[0][len(PROMPT) :]
    async with route_of(llama, chunk_tokens=20) as route:
        assert await route.generate(PROMPT, NEW) == wanted
        await settled(route)
        pool = route.replicas[forgetful].pool
        everything = pool.reserve(pool.blocks.total * BLOCK)  # nothing idle is left
        pool.release(everything)
        before = missed()
        found = await asyncio.gather(*(route.generate(PROMPT, NEW, session=10 + index) for index in range(3)))
        assert found == [wanted] * 3
        assert (missed() > before) is (forgetful == 1)
        await settled(route)
