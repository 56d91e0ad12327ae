"""Parity certificate: run a model split and whole, and write down how they compare.

`python -m stagemesh.services.stage.verify MODEL --stages 2`
"""

import argparse
import itertools
import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from stagemesh import checkpoint as checkpoints
from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import InvalidArgument, StagemeshError

from .partition.kv import KVPool, SessionKV
from .partition.model import Batch, PartitionModel, load_partition
from .partition.pooling import read_pooling
from .partition.ragged import Segment

# Prompts of different lengths, served together.
PROMPT_LENGTHS = (5, 1, 23, 12)
NEW_TOKENS = 16
# Largest absolute difference of float32 outputs that still counts as the same.
TOLERANCE = {"generate": 1e-3, "embed": 1e-5}


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a comparison found. Errors are absolute, on float32 logits or embeddings."""

    architecture: str
    revision: str
    task: str
    stages: int
    cuts: list[int]
    dtype: str
    path: str
    max_abs_error: float
    tokens_compared: int
    tokens_equal: int
    torch: str
    transformers: str
    passed: bool


def even_cuts(layers: int, stages: int) -> list[int]:
    """Layer boundaries of an even split, first and last included.

    Raises:
        InvalidArgument: more stages than layers, or fewer than one.
    """
    if not 1 <= stages <= layers:
        raise InvalidArgument(
            f"stages: {stages} is not between 1 and the model's {layers} layers", field="stages"
        )
    return [round(index * layers / stages) for index in range(stages + 1)]


def verify(source: str, stages: int) -> Certificate:
    """Load the model whole and split, in float32 on the CPU, and compare. Takes memory for both.

    Raises:
        StagemeshError: the checkpoint cannot be used, or cannot be split that way.
    """
    folder = checkpoints.resolve(source)
    found = checkpoints.inspect(folder)
    cuts = even_cuts(found.layers, stages)
    _say(f"loading {stages} partitions, cuts {cuts}")
    parts = [
        load_partition(folder, found, task=found.task, first=a, end=b, dtype="F32")
        for a, b in itertools.pairwise(cuts)
    ]
    _say("loading the whole model")
    prompts = _prompts(found)
    compare = _compare_generation if found.task == "generate" else _compare_embeddings
    error, compared, equal = compare(folder, parts, prompts)
    return Certificate(
        architecture=found.architecture,
        revision=found.revision,
        task=found.task,
        stages=stages,
        cuts=cuts,
        dtype="F32",
        path="ragged" if all(part.ragged for part in parts) else "own-cache",
        max_abs_error=error,
        tokens_compared=compared,
        tokens_equal=equal,
        torch=torch.__version__,
        transformers=transformers.__version__,
        passed=equal == compared and error <= TOLERANCE[found.task],
    )


def _prompts(found: Checkpoint) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    longest = max(1, found.context_length - NEW_TOKENS)
    return [
        torch.randint(0, found.vocab_size, (min(length, longest),), generator=generator).tolist()
        for length in PROMPT_LENGTHS
    ]


@torch.inference_mode()
def _compare_generation(
    folder: Path, parts: list[PartitionModel], prompts: list[list[int]]
) -> tuple[float, int, int]:
    """Greedy tokens of all prompts together against each prompt alone in the whole model; and the logits."""
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    whole.eval()
    _say(f"comparing {len(prompts)} prompts x {NEW_TOKENS} greedy tokens")
    pools = [KVPool(2**10 * part.kv_layout.token_bytes, part.kv_layout) for part in parts]
    kvs = [[pool.reserve(len(prompt) + NEW_TOKENS) for prompt in prompts] for pool in pools]
    sequences = [list(prompt) for prompt in prompts]
    positions = [0] * len(prompts)
    worst, equal = 0.0, 0
    for _ in range(NEW_TOKENS):
        steps = [sequence[position:] for sequence, position in zip(sequences, positions, strict=True)]
        logits = _pass(parts, kvs, steps, positions)
        for row, sequence in enumerate(sequences):
            positions[row] = len(sequence)
            expected = whole(torch.tensor([sequence])).logits[0, -1].float()
            worst = max(worst, float((logits[row] - expected).abs().max()))
            token = int(expected.argmax())
            equal += token == int(logits[row].argmax())
            sequence.append(token)
    return worst, len(prompts) * NEW_TOKENS, equal


def _pass(
    parts: list[PartitionModel], kvs: list[list[SessionKV]], steps: list[list[int]], positions: list[int]
) -> torch.Tensor:
    """Logits after the last row of each session, all sessions in one pass through every partition."""
    hidden = None
    segments: list[Segment] = []
    for part, own in zip(parts, kvs, strict=True):
        starts = itertools.accumulate([len(tokens) for tokens in steps], initial=0)
        segments = [
            Segment(start, len(tokens), position, kv)
            for start, tokens, position, kv in zip(starts, steps, positions, own, strict=False)
        ]
        ids = torch.tensor([token for tokens in steps for token in tokens]) if part.is_first else None
        hidden = part.forward(Batch(segments, token_ids=ids, hidden=hidden))
    assert hidden is not None
    return parts[-1].logits(hidden[[segment.start + segment.rows - 1 for segment in segments]])


@torch.inference_mode()
def _compare_embeddings(
    folder: Path, parts: list[PartitionModel], prompts: list[list[int]]
) -> tuple[float, int, int]:
    """Pooled embeddings of all samples together against each sample alone in the whole model."""
    whole = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    pooling = read_pooling(folder)
    _say(f"comparing the embeddings of {len(prompts)} samples")
    lengths = [len(prompt) for prompt in prompts]
    starts = itertools.accumulate(lengths, initial=0)
    segments = [Segment(start, length, 0) for start, length in zip(starts, lengths, strict=False)]
    hidden = None
    for part in parts:
        ids = torch.tensor([token for prompt in prompts for token in prompt]) if part.is_first else None
        types = torch.zeros_like(ids) if ids is not None else None
        hidden = part.forward(Batch(segments, token_ids=ids, hidden=hidden, token_types=types))
    assert hidden is not None
    split = parts[-1].output("sentence_embedding", hidden, lengths)
    worst = 0.0
    for row, prompt in enumerate(prompts):
        alone = whole(torch.tensor([prompt])).last_hidden_state[0].float()
        worst = max(worst, float((split[row] - pooling(alone, [len(prompt)])[0]).abs().max()))
    return worst, 0, 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Return 0 when split and whole agree, 1 when not or when the model cannot be compared."""
    parser = argparse.ArgumentParser(prog="stagemesh verify", description=__doc__)
    parser.add_argument("model", help="local checkpoint folder, or a hub id whose files are here already")
    parser.add_argument(
        "--stages", type=int, default=2, help="partitions to cut it into (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write the certificate to this file as well")
    parser.add_argument("--json", action="store_true", help="print the certificate as JSON")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: one per CPU)")
    options = parser.parse_args(argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    try:
        certificate = verify(options.model, options.stages)
    except StagemeshError as error:
        print(f"stagemesh: {error.message}", file=sys.stderr)
        return 1
    text = json.dumps(asdict(certificate), indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    if options.json:
        print(text)
    else:
        verdict = "agree" if certificate.passed else "DIFFER"
        print(
            f"{certificate.architecture} in {certificate.stages} stages (cuts {certificate.cuts}): split and whole "
            f"{verdict}; max abs error {certificate.max_abs_error:.2e}, "
            f"{certificate.tokens_equal}/{certificate.tokens_compared} tokens equal"
        )
    return 0 if certificate.passed else 1


if __name__ == "__main__":
    sys.exit(main())
