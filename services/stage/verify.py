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

from .compare import compare_embeddings, compare_generation
from .partition.load import load_partition

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
    prompts = _prompts(found)
    _say(f"comparing {len(prompts)} prompts with the whole model")
    if found.task == "generate":
        difference = compare_generation(folder, parts, prompts, NEW_TOKENS)
    else:
        difference = compare_embeddings(folder, parts, prompts)
    return Certificate(
        architecture=found.architecture,
        revision=found.revision,
        task=found.task,
        stages=stages,
        cuts=cuts,
        dtype="F32",
        path="ragged" if all(part.ragged for part in parts) else "own-cache",
        max_abs_error=difference.max_abs_error,
        tokens_compared=difference.tokens_compared,
        tokens_equal=difference.tokens_equal,
        torch=torch.__version__,
        transformers=transformers.__version__,
        passed=difference.tokens_equal == difference.tokens_compared
        and difference.max_abs_error <= TOLERANCE[found.task],
    )


def _prompts(found: Checkpoint) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    longest = max(1, (found.context_length or 1000) - NEW_TOKENS)
    return [
        torch.randint(0, found.vocab_size, (min(length, longest),), generator=generator).tolist()
        for length in PROMPT_LENGTHS
    ]


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
