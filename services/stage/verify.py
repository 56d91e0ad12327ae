"""Parity certificate: run a model split and whole, and write down how they compare.

`python -m stagemesh.services.stage.verify MODEL --stages 2`
"""

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from stagemesh import checkpoint as checkpoints
from stagemesh.checkpoint import Checkpoint
from stagemesh.checkpoint_cuts import nearest_cuts
from stagemesh.errors import InvalidArgument, StagemeshError
from stagemesh.parity import Certificate

from .compare import Difference, compare_generation
from .compare_outputs import compare_outputs
from .partition.interface import Partition
from .partition.load import load_partition

# Prompts of different lengths, served together.
PROMPT_LENGTHS = (5, 1, 23, 12)
NEW_TOKENS = 16
# Of a prompt in one pass, when it is served a second time in pieces.
CHUNK = 5
# Largest difference of float32 outputs that still counts as the same, for each 1 of their largest value (at least 1).
TOLERANCE_LOGITS, TOLERANCE_OUTPUTS = 1e-4, 1e-5


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def even_cuts(found: Checkpoint, stages: int) -> list[int]:
    """Layer boundaries of an even split where the model may be cut, first and last included.

    Raises:
        InvalidArgument: more stages than that makes, or fewer than one.
    """
    most = len(found.cuts) + 1
    if not 1 <= stages <= most:
        raise InvalidArgument(
            f"stages: {stages} is not between 1 and {most}, the most that the model's {found.layers} layers "
            "can be cut into",
            field="stages",
        )
    return nearest_cuts(found.cuts, found.layers, stages)


def verify(source: str, stages: int, threads: int = 0, say: Callable[[str], None] = _say) -> Certificate:
    """Load the model whole and split, in float32 on the CPU, and compare. Takes memory for both.

    Args:
        source: a local folder, or a hub id whose files are here.
        stages: partitions.
        threads: of torch; 0 leaves them as they are.
        say: told what is being done.

    Raises:
        StagemeshError: the checkpoint cannot be used, or cannot be split that way.
    """
    if threads > 0:
        torch.set_num_threads(threads)
    folder = checkpoints.resolve(source)
    found = checkpoints.inspect(folder)
    if found.task == "tensor":
        raise InvalidArgument(
            "model: a package was compared with its module when it was made, and is again at every load",
            field="model",
        )
    cuts = even_cuts(found, stages)
    say(f"loading {stages} partitions, cuts {cuts}")
    parts = [
        load_partition(folder, found, task=found.task, first=a, end=b, dtype="F32")
        for a, b in itertools.pairwise(cuts)
    ]
    say("comparing with the whole model")
    if found.task == "generate":
        difference, reason = _generation(folder, found, parts)
    else:
        difference, reason = _outputs(folder, found, parts)
    return Certificate(
        architecture=found.architecture,
        model_type=found.model_type,
        task=found.task,
        revision=found.revision,
        stages=stages,
        cuts=tuple(cuts),
        dtype="F32",
        path=_path(parts),
        max_abs_error=difference.max_abs_error,
        scale=difference.scale,
        tokens_compared=difference.tokens_compared,
        tokens_equal=difference.tokens_equal,
        passed=not reason,
        reason=reason,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def _generation(folder: Path, found: Checkpoint, parts: list[Partition]) -> tuple[Difference, str]:
    """All prompts whole, and once more in chunks, as a busy stage computes them."""
    prompts = _prompts(found)
    difference = compare_generation(folder, parts, prompts, NEW_TOKENS)
    reason = _too_far(difference, TOLERANCE_LOGITS)
    if not reason:
        again = compare_generation(folder, parts, prompts, 2, CHUNK)
        reason = _too_far(again, TOLERANCE_LOGITS)
        reason = f"with prompts in chunks: {reason}" if reason else ""
    return difference, reason


def _outputs(folder: Path, found: Checkpoint, parts: list[Partition]) -> tuple[Difference, str]:
    difference = compare_outputs(folder, found, parts)
    return difference, _too_far(difference, TOLERANCE_OUTPUTS)


def _too_far(difference: Difference, tolerance: float) -> str:
    """Why a difference is not none; empty when it is."""
    if difference.tokens_equal < difference.tokens_compared:
        return f"{difference.tokens_compared - difference.tokens_equal} of {difference.tokens_compared} tokens differ"
    if not difference.scale > 0:
        return "the whole model's outputs are all zero: nothing was compared"
    if not difference.max_abs_error <= tolerance * max(1.0, difference.scale):
        return f"outputs differ by {difference.max_abs_error:.1e} at a scale of {difference.scale:.1e}"
    return ""


def _path(parts: list[Partition]) -> str:
    if not all(part.generates for part in parts):
        return "stateless"
    if all(getattr(part, "fused", False) for part in parts):
        return "fused"
    return "ragged" if all(part.ragged for part in parts) else "own-cache"


def _prompts(found: Checkpoint) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    longest = max(1, (found.context_length or 1000) - NEW_TOKENS)
    return [
        torch.randint(0, found.vocab_size, (min(length, longest),), generator=generator).tolist()
        for length in PROMPT_LENGTHS
    ]


def main(argv: list[str] | None = None) -> int:
    """Return 0 when split and whole agree, 1 when not or when the model cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="stagemesh verify",
        description="Run a model split and whole, and write down how they compare. A split of more than one stage is "
        "served only when a certificate vouches for it: one of those that come with stagemesh, for the "
        "architecture, or one that this command wrote, for a checkpoint (deploy --certificate FILE).",
    )
    parser.add_argument("model", help="local checkpoint folder, or a hub id whose files are here already")
    parser.add_argument(
        "--stages", type=int, default=2, help="partitions to cut it into (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write the certificate to this file as well")
    parser.add_argument("--json", action="store_true", help="print the certificate as JSON")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: one per CPU)")
    options = parser.parse_args(argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        certificate = verify(options.model, options.stages, options.threads)
    except StagemeshError as error:
        print(f"stagemesh: {error.message}", file=sys.stderr)
        return 1
    text = json.dumps(certificate.to_json(), indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    print(text if options.json else _sentence(certificate))
    return 0 if certificate.passed else 1


def _sentence(found: Certificate) -> str:
    verdict = "agree" if found.passed else f"DIFFER ({found.reason})"
    tokens = f", {found.tokens_equal}/{found.tokens_compared} tokens equal" if found.tokens_compared else ""
    return (
        f"{found.architecture} in {found.stages} stages (cuts {list(found.cuts)}, {found.path}): split and whole "
        f"{verdict}; max abs error {found.max_abs_error:.2e} at a scale of {found.scale:.2e}{tokens}"
    )


if __name__ == "__main__":
    sys.exit(main())
