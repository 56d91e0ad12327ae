"""Recorded prompts that share beginnings: JSON lines with `timestamp` (ms), `input_length`, `output_length`, `hash_ids`.

Equal ids stand for equal blocks after equal beginnings; a block has 512 tokens, the last one of a prompt may have fewer.
"""

import json
from dataclasses import dataclass
from pathlib import Path

BLOCK_TOKENS = 512
USUAL = Path(__file__).parents[2] / "shared" / "data" / "mooncake_conversation_trace.jsonl"
"""Where it is looked for when nobody names one: beside the checkout."""
ABSENT = (
    "there is no trace; give one by --trace FILE: JSON lines with timestamp, input_length, output_length and hash_ids, for "
    "instance the conversation trace that the Mooncake project publishes"
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request: seconds since the first, tokens of its prompt and of its answer, ids of its prompt's blocks."""

    at: float
    prompt: int
    answer: int
    ids: tuple[int, ...]

    @property
    def full(self) -> tuple[int, ...]:
        """The ids of its full blocks, which others can share."""
        return self.ids[: self.prompt // BLOCK_TOKENS]


def read(path: Path | None, most: int = 0) -> list[Recorded]:
    """The requests of a file in the order of time; at most the first `most`.

    Raises:
        FileNotFoundError: there is none; the message says what to do.
        ValueError: a line that is no request; the message names line and field.
    """
    path = path or USUAL
    if path.is_dir():
        path = path / USUAL.name
    if not path.is_file():
        raise FileNotFoundError(f"--trace: {ABSENT}")
    found: list[Recorded] = []
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            if most and len(found) == most:
                break
            if line.strip():
                found.append(_request(line, number))
    if not found:
        raise ValueError("--trace: the file has no requests")
    found.sort(key=lambda each: each.at)
    first = found[0].at
    return [Recorded(each.at - first, each.prompt, each.answer, each.ids) for each in found]


def _request(line: str, number: int) -> Recorded:
    try:
        row = json.loads(line)
        at, prompt, answer, ids = (
            row[key] for key in ("timestamp", "input_length", "output_length", "hash_ids")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--trace: line {number} is no request: {error!r}"[:200]) from None
    if not isinstance(ids, list) or not all(isinstance(each, int) and 0 <= each < 2**62 for each in ids):
        raise ValueError(f"--trace: line {number}: hash_ids must be numbers from 0 on")
    for name, value in (("timestamp", at), ("input_length", prompt), ("output_length", answer)):
        if not isinstance(value, int | float) or not 0 <= value < 2**40:
            raise ValueError(f"--trace: line {number}: {name} must be a number from 0 on")
    if len(ids) < int(prompt) // BLOCK_TOKENS:
        raise ValueError(
            f"--trace: line {number}: fewer hash_ids than input_length has blocks of {BLOCK_TOKENS}"
        )
    return Recorded(at / 1000, max(int(prompt), 1), max(int(answer), 1), tuple(ids))
