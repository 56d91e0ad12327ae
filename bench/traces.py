"""Recorded request traces: reading them, and making streams of many models out of the stream of one service.

Read are CSV files with `TIMESTAMP,ContextTokens,GeneratedTokens` and JSON lines with `timestamp` (ms), `input_length`,
`output_length` and `hash_ids` (of 512-token blocks of the prompt).
"""

import csv
import json
from bisect import bisect_left
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from random import Random

FOLDER = Path(__file__).parents[2] / "shared" / "data"
"""Where they are looked for without `--trace`: in `shared/data` beside the checkout."""

ABSENT = (
    "no recorded trace: name one with --trace PATH (a file or a folder of them), a CSV file with the columns "
    "TIMESTAMP,ContextTokens,GeneratedTokens, as AzureLLMInferenceDataset2023 of the Azure Public Dataset has them, or JSON "
    "lines as in Mooncake's conversation trace"
)


@dataclass(frozen=True, slots=True)
class Request:
    """One recorded request: seconds since the first one, tokens, and a key that requests that resemble each other share."""

    at_s: float
    prompt: int
    answer: int
    kin: str


@dataclass(frozen=True)
class Trace:
    """The requests of one file, by time."""

    name: str
    requests: list[Request]

    @property
    def length_s(self) -> float:
        """From the first to the last."""
        return self.requests[-1].at_s


class Unreadable(ValueError):
    """A file that is no trace; says which line."""


def found(path: Path | None) -> list[Trace]:
    """The traces of a file, of a folder, or of where they usually lie, by name; none where there is nothing.

    Raises:
        Unreadable: a file that was named is no trace.
        FileNotFoundError: what was named is not there.
    """
    path = path or (FOLDER if FOLDER.is_dir() else None)
    if path is None:
        return []
    if path.is_file():
        return [read(path)]
    if not path.is_dir():
        raise FileNotFoundError(f"--trace: {path} is not there; {ABSENT}")
    files = sorted(each for each in path.iterdir() if each.suffix in (".csv", ".jsonl"))
    return [read(each) for each in files]


def read(path: Path) -> Trace:
    """One file, by its suffix. Raises `Unreadable` naming the line."""
    parse = _csv if path.suffix == ".csv" else _jsonl
    requests = sorted(parse(path), key=lambda request: request.at_s)
    if len(requests) < 2:
        raise Unreadable(f"{path.name}: fewer than two requests")
    start = requests[0].at_s
    return Trace(
        path.stem, [Request(each.at_s - start, each.prompt, each.answer, each.kin) for each in requests]
    )


def _csv(path: Path) -> list[Request]:
    out = []
    with path.open(newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                prompt, answer = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (KeyError, TypeError, ValueError) as error:
                raise Unreadable(f"{path.name}, line {number}: {error!r}") from None
            out.append(Request(at, prompt, answer, str(prompt // 16)))
    return out


def _jsonl(path: Path) -> list[Request]:
    out = []
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                blocks = row["hash_ids"]
                # The first block is the same system prompt everywhere; the second one begins a conversation.
                kin = str(blocks[1] if len(blocks) > 1 else blocks[0] if blocks else "")
                out.append(Request(row["timestamp"] / 1000, row["input_length"], row["output_length"], kin))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise Unreadable(f"{path.name}, line {number}: {error!r}") from None
    return out


RULES = {
    "thinned": "each request goes to a model drawn by its popularity, on its own",
    "runs": "a request goes to the model of the one before with probability 0.8, else to one drawn by popularity",
    "kin": "requests that resemble each other (same beginning, or prompt length within 16 tokens) go to the same model, popularity by rank",
}
"""How requests become those of many models; popularity is Zipf's with exponent 1.1."""

_ZIPF = 1.1
_STAYS = 0.8


def models_of(trace: Trace, rule: str, models: int, seed: int = 1) -> list[int]:
    """For each request of the trace its model, 0 .. models - 1, 0 the most popular but for chance."""
    rng = Random(f"{trace.name} {rule} {seed}")
    total = list(accumulate((rank + 1) ** -_ZIPF for rank in range(models)))
    if rule == "kin":
        return [_by_rank(total, _unit(f"{seed} {request.kin}")) for request in trace.requests]
    out: list[int] = []
    for _ in trace.requests:
        stays = rule == "runs" and out and rng.random() < _STAYS
        out.append(out[-1] if stays else _by_rank(total, rng.random()))
    return out


def _by_rank(total: list[float], unit: float) -> int:
    return min(bisect_left(total, unit * total[-1]), len(total) - 1)


def _unit(text: str) -> float:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2**64


def streams(trace: Trace, rule: str, models: int, stretch: float, seed: int = 1) -> dict[str, list[float]]:
    """Arrival times by model, in seconds, with time stretched by a factor (24 makes an hour a day)."""
    out: dict[str, list[float]] = {}
    for request, model in zip(trace.requests, models_of(trace, rule, models, seed), strict=True):
        out.setdefault(f"m{model:03d}", []).append(request.at_s * stretch)
    return out
