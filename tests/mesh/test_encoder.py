"""Real weights: all-MiniLM-L6-v2 in 2 and 3 stages, through every door."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openai
import pytest
from transformers import AutoTokenizer

from stagemesh import AsyncClient
from stagemesh.local.mesh import LocalMesh

from .conftest import ENCODER
from .whole import TEXTS

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("stages", [2, 3])
async def test_embeddings_over_http(mesh: LocalMesh, expected: np.ndarray, stages: int) -> None:
    client = openai.AsyncOpenAI(base_url=f"http://{mesh.http_address}/v1", api_key="none", max_retries=0)
    answer = await client.embeddings.create(model=f"minilm-{stages}", input=TEXTS)
    await client.close()
    assert np.abs(np.array([item.embedding for item in answer.data]) - expected).max() <= 1e-5


@pytest.mark.parametrize("stages", [2, 3])
async def test_embeddings_over_the_own_api(client: AsyncClient, expected: np.ndarray, stages: int) -> None:
    vectors = await client.embed(f"minilm-{stages}", TEXTS)
    assert np.abs(vectors - expected).max() <= 1e-5


@pytest.mark.parametrize("stages", [2, 3])
async def test_embeddings_over_open_inference(mesh: LocalMesh, expected: np.ndarray, stages: int) -> None:
    """An unmodified client, in a process of its own: it registers the same protobuf names as the server."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    inputs = {name: ids.tolist() for name, ids in tokenizer(TEXTS, padding=True, return_tensors="np").items()}
    script = Path(__file__).with_name("open_inference_client.py")
    import asyncio

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(script), mesh.grpc_address, f"minilm-{stages}"],
        input=json.dumps(inputs),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["server_ready"]
    assert answer["model_ready"]
    assert "sentence_embedding" in answer["outputs"]
    assert {"input_ids", "attention_mask"} <= set(answer["inputs"])
    assert np.abs(np.array(answer["sentence_embedding"]) - expected).max() <= 1e-5
    assert "unknown model" in answer["error"].lower() or "not" in answer["error"].lower()
