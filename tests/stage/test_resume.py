"""A session that begins with tokens it had before, as after a recovery, goes on with the tokens it would have had."""

from pathlib import Path

import pytest

from stagemesh.errors import InvalidArgument
from stagemesh.v1.stage_pb2 import Sampling
from tests.stage.two_stages import route_of

SETTINGS = [
    Sampling(temperature=0, repetition_penalty=1.4),
    Sampling(temperature=0.9, seed=7, frequency_penalty=1.5, presence_penalty=0.5),
    Sampling(temperature=1.2, seed=8, top_p=0.9, repetition_penalty=1.2, logit_bias={9: 3.0}),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
async def test_in_the_middle_of_an_output_with_penalties(llama: Path, sampling: Sampling) -> None:
    prompt = list(range(5, 40))
    async with route_of(llama) as route:
        plain = Sampling(temperature=sampling.temperature, seed=sampling.seed, top_p=sampling.top_p)
        whole = await route.generate(prompt, 24, sampling=sampling)
        assert whole != await route.generate(prompt, 24, sampling=plain, session=2)
        for had in (1, 10, 23):
            rest = await route.generate(
                prompt + whole[:had],
                24,
                sampling=sampling,
                session=3 + had,
                prompt_tokens=len(prompt),
                epoch=1,
            )
            assert rest == whole[had:]


async def test_ids_outside_the_vocabulary_are_refused_and_the_stage_lives_on(llama: Path) -> None:
    async with route_of(llama) as route:
        for field, sampling in {
            "logit_bias": Sampling(logit_bias={10**6: 1.0}),
            "held_ids": Sampling(held_ids=[10**6], held_before=99),
        }.items():
            with pytest.raises(InvalidArgument) as caught:
                await route.generate([5], 2, sampling=sampling)
            assert caught.value.field == field
        assert len(await route.generate([5], 2)) == 2
