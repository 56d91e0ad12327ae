"""What a split model says is, token for token, what the whole one says."""

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stagemesh import AsyncClient

from .conftest import STAGE_COUNTS
from .whole import NEW, prompts

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("stages", STAGE_COUNTS)
async def test_greedy_tokens_of_20_concurrent_prompts(
    client: AsyncClient, golden: list[list[int]], stages: int
) -> None:
    answers = await asyncio.gather(
        *(
            client.generate(f"llama-{stages}", token_ids=p, max_tokens=NEW, temperature=0, ignore_eos=True)
            for p in prompts()
        )
    )
    assert [list(answer.token_ids) for answer in answers] == golden
    assert all(len(answer.route) == stages for answer in answers)
    assert all(answer.finish_reason == "length" for answer in answers)
    assert all(answer.usage.completion_tokens == NEW for answer in answers)


async def test_seeded_sampling_is_the_same_at_any_stage_count_and_concurrency(client: AsyncClient) -> None:
    async def sample(stages: int, index: int) -> list[int]:
        answer = await client.generate(
            f"llama-{stages}",
            token_ids=prompts()[index],
            max_tokens=24,
            temperature=0.9,
            top_p=0.95,
            top_k=50,
            seed=1000 + index,
            ignore_eos=True,
        )
        return list(answer.token_ids)

    alone = [await sample(1, index) for index in range(6)]
    assert len({tuple(tokens) for tokens in alone}) == 6
    for stages in STAGE_COUNTS:
        together = await asyncio.gather(*(sample(stages, index) for index in range(6)))
        assert together == alone


async def test_a_seed_changes_what_is_sampled(client: AsyncClient) -> None:
    texts = set()
    for seed in range(3):
        answer = await client.generate("llama-2", token_ids=[5, 6], max_tokens=12, temperature=1, seed=seed)
        texts.add(answer.token_ids)
    assert len(texts) == 3


async def test_generation_ends_at_the_stop_token_and_at_a_stop_string(
    client: AsyncClient, golden: list[list[int]]
) -> None:
    wanted = golden[3]
    stop = wanted[10]
    answer = await client.generate(
        "llama-2",
        token_ids=prompts()[3],
        max_tokens=NEW,
        temperature=0,
        stop_token_ids=[stop],
        ignore_eos=True,
    )
    assert list(answer.token_ids) == wanted[: wanted.index(stop) + 1]
    assert answer.finish_reason == "stop"

    whole = await client.generate("llama-2", "hello", max_tokens=40, temperature=0, ignore_eos=True)
    marker = whole.text[20:23]
    cut = await client.generate(
        "llama-2", "hello", max_tokens=40, temperature=0, ignore_eos=True, stop=[marker]
    )
    assert cut.text == whole.text[: whole.text.index(marker)]
    assert cut.finish_reason == "stop"


async def test_log_probabilities_come_with_every_token(client: AsyncClient) -> None:
    answer = await client.generate("llama-3", "abc", max_tokens=5, temperature=0, logprobs=2, ignore_eos=True)
    assert len(answer.logprobs) == 5
    assert all(value < 0 for value in answer.logprobs)


async def test_logits_through_infer_are_those_of_the_whole_model(client: AsyncClient, llama: Path) -> None:
    import numpy as np

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    ids = torch.randint(2, 500, (5, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.inference_mode():
        expected = model(ids).logits.numpy()
    for stages in (1, 3):
        got = await client.infer(
            f"llama-{stages}", {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}, ["logits"]
        )
        np.testing.assert_allclose(got["logits"][0], expected[0], atol=1e-4)
        np.testing.assert_allclose(got["logits"][1, :4], expected[1, :4], atol=1e-4)
        assert not got["logits"][1, 4:].any()
        np.testing.assert_allclose(got["logits"][2:], expected[2:], atol=1e-4)
