"""Penalties, several answers and hostile chat templates through real processes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM
from transformers.generation import LogitsProcessor, LogitsProcessorList

from stagemesh import AsyncClient
from stagemesh.errors import FailedPrecondition, InvalidArgument
from stagemesh.local.mesh import LocalMesh

from .whole import prompts

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]
DEMO = Path(__file__).parents[2] / "examples/demo_model/model"
NEW = 40


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a template that never ends, unless the conversation asks it to be kind."""
    folder = tmp_path_factory.mktemp("hostile")
    for path in DEMO.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    endless = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
    config["chat_template"] = f"{{% if messages[0].content != 'kind' %}}{endless}{{% endif %}}def f"
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(llama: Path, hostile: Path) -> AsyncIterator[LocalMesh]:
    async with LocalMesh(stages=2, replicas=1, http_port=0, grpc_port=0, threads=1, memory=2 * 2**30) as mesh:
        await mesh.deploy(llama, "two", stages=2, replicas=1, cache=False, wait=False)
        await mesh.deploy(llama, "one", stages=1, replicas=1, cache=False, wait=False)
        await mesh.deploy(DEMO, "demo", stages=2, replicas=1, cache=False, wait=False)
        await mesh.deploy(hostile, "hostile", stages=1, replicas=1, cache=False, wait=False)
        await asyncio.gather(
            *(mesh.wait_ready(name, timeout_s=120) for name in ("one", "two", "demo", "hostile"))
        )
        yield mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(mesh: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with mesh.client() as client:
        yield client


class OpenAIPenalties(LogitsProcessor):
    """What transformers does not have, by OpenAI's formula."""

    def __init__(self, prompt_tokens: int, frequency: float, presence: float) -> None:
        self.prompt_tokens, self.frequency, self.presence = prompt_tokens, frequency, presence

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        counts = torch.bincount(input_ids[0, self.prompt_tokens :], minlength=scores.shape[-1])
        return scores - counts * self.frequency - (counts > 0) * self.presence


SETTINGS = [
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.4, "presence_penalty": 0.8},
    {"repetition_penalty": 0.9, "frequency_penalty": -0.2, "logit_bias": {7: -100.0, 11: 1.5}},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
async def test_greedy_tokens_with_penalties_are_those_of_transformers(
    client: AsyncClient, llama: Path, settings: dict
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    plain, penalised = [], []
    for prompt in prompts()[:6]:
        asked = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
        plain.append(model.generate(torch.tensor([prompt]), **asked)[0, len(prompt) :].tolist())
        if "repetition_penalty" in settings:
            asked["repetition_penalty"] = settings["repetition_penalty"]
        if "logit_bias" in settings:
            asked["sequence_bias"] = {(token,): bias for token, bias in settings["logit_bias"].items()}
        own = OpenAIPenalties(
            len(prompt), settings.get("frequency_penalty", 0.0), settings.get("presence_penalty", 0.0)
        )
        out = model.generate(torch.tensor([prompt]), logits_processor=LogitsProcessorList([own]), **asked)
        penalised.append(out[0, len(prompt) :].tolist())
    assert plain != penalised
    for name in ("one", "two"):
        answers = await asyncio.gather(
            *(
                client.generate(
                    name, token_ids=prompt, max_tokens=NEW, temperature=0, ignore_eos=True, **settings
                )
                for prompt in prompts()[:6]
            )
        )
        assert [list(answer.token_ids) for answer in answers] == penalised


async def test_sampling_with_penalties_does_not_depend_on_the_stages(client: AsyncClient) -> None:
    answers = [
        await client.generate(
            name,
            token_ids=prompts()[3],
            max_tokens=NEW,
            temperature=0.8,
            top_p=0.9,
            seed=3,
            repetition_penalty=1.2,
            presence_penalty=0.5,
            ignore_eos=True,
        )
        for name in ("one", "two", "two")
    ]
    assert len({answer.token_ids for answer in answers}) == 1


async def test_several_answers_stream_interleaved_and_are_those_of_their_seeds(
    mesh: LocalMesh, client: AsyncClient
) -> None:
    prompt = prompts()[19] * 4
    asked = {"token_ids": prompt, "max_tokens": 24, "temperature": 1.0, "seed": 9, "ignore_eos": True}
    stream = client.stream("two", n=3, **asked)
    order = [chunk.index async for chunk in stream]
    together = await stream.generation()
    assert sorted(set(order)) == [0, 1, 2]
    first_end = max(i for i, index in enumerate(order) if index == 0)
    assert {1, 2} & set(order[:first_end]), "the others are to begin before the first is done"
    assert [len(choice.token_ids) for choice in together.choices] == [24] * 3
    assert len({choice.token_ids for choice in together.choices}) == 3
    assert (together.usage.prompt_tokens, together.usage.completion_tokens) == (len(prompt), 72)
    alone = await client.generate("two", **asked)
    assert alone.token_ids == together.choices[0].token_ids == together.token_ids
    again = await client.generate("two", n=3, **asked)
    assert [c.token_ids for c in again.choices] == [c.token_ids for c in together.choices]

    http = openai.AsyncOpenAI(base_url=f"http://{mesh.http_address}/v1", api_key="none", max_retries=0)
    whole = await http.completions.create(
        model="two",
        prompt=prompt,
        n=3,
        max_tokens=24,
        temperature=1.0,
        seed=9,
        extra_body={"ignore_eos": True},
    )
    texts = [choice.text for choice in together.choices]
    assert [choice.text for choice in whole.choices] == texts
    streamed = ["", "", ""]
    async for event in await http.completions.create(
        model="two",
        prompt=prompt,
        n=3,
        max_tokens=24,
        temperature=1.0,
        seed=9,
        stream=True,
        extra_body={"ignore_eos": True},
    ):
        for choice in event.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts


async def test_min_tokens_holds_the_end_back(client: AsyncClient) -> None:
    whole = await client.generate("two", token_ids=[5, 6], max_tokens=12, temperature=0, ignore_eos=True)
    stop = whole.token_ids[1]
    early = await client.generate(
        "two", token_ids=[5, 6], max_tokens=12, temperature=0, ignore_eos=True, stop_token_ids=[stop]
    )
    assert early.usage.completion_tokens <= 2
    late = await client.generate(
        "two",
        token_ids=[5, 6],
        max_tokens=12,
        temperature=0,
        ignore_eos=True,
        stop_token_ids=[stop],
        min_tokens=6,
    )
    assert late.usage.completion_tokens >= 6
    assert stop not in late.token_ids[:6]


async def test_an_endless_template_is_cut_off_and_the_router_goes_on(client: AsyncClient) -> None:
    ask = [{"role": "user", "content": "class Stack:"}]
    kind = await client.generate("hostile", messages=[{"role": "user", "content": "kind"}], max_tokens=2)
    assert kind.usage.completion_tokens == 2

    async def hang() -> None:
        with pytest.raises(FailedPrecondition, match="chat template takes too long") as caught:
            await client.generate("hostile", messages=ask, max_tokens=2, timeout_s=60)
        assert caught.value.field == "messages"

    hanging = [asyncio.create_task(hang()) for _ in range(8)]
    answered, slowest = 0, 0.0
    while not all(task.done() for task in hanging):
        began = time.monotonic()
        answer = await client.generate("demo", messages=ask, max_tokens=2, temperature=0)
        slowest = max(slowest, time.monotonic() - began)
        assert answer.usage.completion_tokens >= 1
        answered += 1
    await asyncio.gather(*hanging)
    assert answered >= 5
    assert slowest < 2
    prompt = await client.generate("hostile", "class", max_tokens=2)
    assert prompt.usage.completion_tokens >= 1


async def test_what_is_wrong_is_refused_by_name_and_nothing_breaks(client: AsyncClient) -> None:
    for field, change in {
        "logit_bias": {"logit_bias": {10**6: 1.0}},
        "n": {"n": 1000},
        "presence_penalty": {"presence_penalty": 3.0},
        "min_tokens": {"min_tokens": 9, "max_tokens": 3},
    }.items():
        with pytest.raises(InvalidArgument) as caught:
            await client.generate("two", "hi", **change)
        assert caught.value.field == field
    assert (await client.generate("two", "hi", max_tokens=1)).usage.completion_tokens == 1
