"""Models without sessions in real processes, in 2 stages: a classifier, a reranker, images, audio, and T5's encoder."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from stagemesh import AsyncClient
from stagemesh.checkpoint import inspect
from stagemesh.errors import InvalidArgument
from stagemesh.local.mesh import LocalMesh
from tests.parity.encoders import FAMILIES, VOCAB
from tests.stage.encoder_samples import alone, samples_of

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

SERVED = ("bert-classify", "xlm-roberta-rank", "vit", "t5-encoder", "whisper-encoder", "qwen3-embedding")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in SERVED:
        made[name] = tmp_path_factory.mktemp(name)
        FAMILIES[name](made[name])
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(folders: dict[str, Path]) -> AsyncIterator[AsyncClient]:
    async with LocalMesh(stages=2, replicas=1, http_port=0, grpc_port=0, threads=1, memory=2**30) as mesh:
        for name, folder in folders.items():
            await mesh.deploy(folder, name, stages=2, replicas=1, cache=False, force=True, wait=False)
        await asyncio.gather(*(mesh.wait_ready(name, timeout_s=120) for name in folders))
        async with mesh.client() as client:
            yield client


@pytest.mark.parametrize("name", SERVED)
async def test_outputs_are_those_of_the_whole_model(
    client: AsyncClient, folders: dict[str, Path], name: str
) -> None:
    found = inspect(folders[name])
    rows, segments = samples_of(found)
    answers = alone(folders[name], rows, segments)
    names = [output.name for output in found.outputs]
    text = found.rows == "token"
    inputs = {key: _padded(value, segments) if text else value.numpy() for key, value in rows.items()}
    if text:
        lengths = [segment.rows for segment in segments]
        inputs["attention_mask"] = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    given = await client.infer(name, inputs, names)
    for output in found.outputs:
        scale = max(float(answer[output.name].abs().max()) for answer in answers)
        for index, answer in enumerate(answers):
            expected = answer[output.name][0].numpy()
            own = given[output.name][index]
            own = own[: len(expected)] if output.per_token else own
            assert np.abs(own - expected).max() <= 1e-5 * scale, output.name
    default = await client.infer(name, inputs)
    assert next(iter(default)) == names[0]


async def test_bad_input_is_named_and_the_model_lives_on(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await client.infer("vit", {"pixel_values": np.zeros((1, 3, 24, 16), np.float32)})
    assert "pixel_values" in caught.value.message
    with pytest.raises(InvalidArgument):
        await client.infer("bert-classify", {"input_ids": np.array([[VOCAB]])})
    answer = await client.infer("vit", {"pixel_values": np.zeros((1, 3, 24, 24), np.float32)})
    assert np.isfinite(answer["last_hidden_state"]).all()


def _padded(rows: torch.Tensor, segments: list) -> np.ndarray:
    samples = [rows[segment.start : segment.start + segment.rows] for segment in segments]
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True).numpy()
