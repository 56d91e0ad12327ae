"""Fast paths change no answer: with each of them off, a mesh says what the whole model says, and samples the same.

The session-wide mesh has them all on (`test_generation`, `test_encoder`); here they are turned off, on three nodes.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from stagemesh.services.stage.config import StageConfig
from stagemesh.services.stage.partition import fused, packed
from stagemesh.services.stage.partition.interface import Batch, Partition
from stagemesh.services.stage.partition.kernels import load_kernels
from stagemesh.services.stage.partition.kv import KVPool
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.partition.ragged import Segment
from transformers import MistralConfig, MistralForCausalLM

from stagemesh import AsyncClient
from stagemesh.checkpoint import inspect
from stagemesh.config_flags import env_name
from stagemesh.local.mesh import LocalMesh

from .conftest import ENCODER
from .whole import NEW, TEXTS, greedy, prompts

pytestmark = [pytest.mark.long, pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

OFF = {
    "plain-torch": {"fast": "false"},
    "chunks-of-5": {"chunk_tokens": "5"},
    "no-shared-memory": {"shared_memory_mb": "0", "local_sockets": "false"},
}
# Every prompt and its answer are longer than this for most of the time.
WINDOW = 16


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family on transformers' own cache path: attention sees the last `WINDOW` positions only."""
    folder = tmp_path_factory.mktemp("windowed")
    torch.manual_seed(6)
    config = MistralConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=WINDOW,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    MistralForCausalLM(config).eval().save_pretrained(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=OFF)
async def slower(request: pytest.FixtureRequest, llama: Path, windowed: Path) -> AsyncIterator[LocalMesh]:
    """A mesh without one of the fast paths."""
    settings = OFF[request.param]
    if missing := set(settings) - set(StageConfig.model_fields):
        pytest.skip(f"stages have no setting {missing}")
    env = {env_name(name): value for name, value in settings.items()}
    async with LocalMesh(
        stages=3, replicas=1, http_port=0, grpc_port=0, threads=1, memory=2**30, env=env
    ) as mesh:
        for source, name, stages in (
            (llama, "llama-2", 2),
            (llama, "llama-3", 3),
            (windowed, "windowed-2", 2),
            (ENCODER, "minilm-2", 2),
        ):
            await mesh.deploy(source, name, stages=stages, replicas=1, cache=False, wait=False)
        for name in ("llama-2", "llama-3", "windowed-2", "minilm-2"):
            await mesh.wait_ready(name, timeout_s=120)
        yield mesh


@pytest_asyncio.fixture(loop_scope="session")
async def slow_client(slower: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with slower.client() as client:
        yield client


@pytest.fixture(scope="session")
def windowed_golden(windowed: Path) -> list[list[int]]:
    return greedy(windowed)


async def generate(client: AsyncClient, model: str) -> list[list[int]]:
    """Greedy tokens of the 20 prompts, all at once."""
    answers = await asyncio.gather(
        *(
            client.generate(model, token_ids=p, max_tokens=NEW, temperature=0, ignore_eos=True)
            for p in prompts()
        )
    )
    return [list(answer.token_ids) for answer in answers]


async def test_plain_torch_is_what_it_says(slower: LocalMesh, request: pytest.FixtureRequest) -> None:
    """What a stage tries at loading is in its log."""
    logs = "".join(process.log_path.read_text() for process in slower.stage_processes)
    if request.node.callspec.params["slower"] == "plain-torch":
        assert "of the plain one" not in logs
    elif load_kernels(torch.float32) is not None:
        assert "a fused layer takes" in logs or "fused pays here" in logs


@pytest.mark.parametrize("stages", [2, 3])
async def test_greedy_tokens(slow_client: AsyncClient, golden: list[list[int]], stages: int) -> None:
    assert await generate(slow_client, f"llama-{stages}") == golden


async def test_greedy_tokens_of_a_family_on_its_own_cache(
    slow_client: AsyncClient, windowed_golden: list[list[int]]
) -> None:
    assert await generate(slow_client, "windowed-2") == windowed_golden


async def test_embeddings(slow_client: AsyncClient, expected: np.ndarray) -> None:
    assert np.abs(await slow_client.embed("minilm-2", TEXTS) - expected).max() <= 1e-5


async def test_seeded_sampling(slow_client: AsyncClient, client: AsyncClient) -> None:
    async def sample(at: AsyncClient) -> list[tuple[int, ...]]:
        answers = await asyncio.gather(
            *(
                at.generate(
                    "llama-2",
                    token_ids=prompts()[index],
                    max_tokens=24,
                    temperature=0.9,
                    top_p=0.95,
                    top_k=50,
                    seed=1000 + index,
                    ignore_eos=True,
                )
                for index in range(0, 20, 3)
            )
        )
        return [answer.token_ids for answer in answers]

    sampled = await sample(slow_client)
    assert len(set(sampled)) == len(sampled)
    assert sampled == await sample(client)


def decode(part: Partition, tokens: torch.Tensor) -> torch.Tensor:
    """Logits `[sessions, steps, vocab]` of these tokens `[sessions, steps]`, a step at a time, sessions together."""
    pool = KVPool(2**26, part.kv_layout)
    kvs = [pool.reserve(tokens.shape[1]) for _ in tokens]
    logits = []
    for step in range(tokens.shape[1]):
        segments = [Segment(row, 1, step, kv) for row, kv in enumerate(kvs)]
        ids = {"input_ids": tokens[:, step].contiguous()}
        logits.append(part.logits(part.forward(Batch(segments, ids)).hidden))
    return torch.stack(logits, dim=1)


async def test_bf16_logits_are_as_close_as_plain_torchs(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the fast path may round otherwise, not worse: both are held against float32."""
    for module in (fused, packed):
        monkeypatch.setattr(module, "_pays", lambda *times: True)
    tokens = torch.randint(2, 500, (5, 24), generator=torch.Generator().manual_seed(2))

    def logits(dtype: str, fast: bool) -> torch.Tensor:
        part = load_partition(llama, inspect(llama), task="generate", first=0, end=8, dtype=dtype, fast=fast)
        assert part.fused == (fast and load_kernels(part.dtype) is not None)
        return decode(part, tokens)

    exact, fast, plain = logits("F32", False), logits("BF16", True), logits("BF16", False)
    assert (fast - exact).abs().max() <= 1.5 * (plain - exact).abs().max()
    assert (fast - exact).pow(2).mean() <= 1.2 * (plain - exact).pow(2).mean()
    assert (logits("F32", True) - exact).abs().max() <= 1e-4 * exact.abs().max()
