"""The pairs of questions that come with the package, and those that nothing was ever adjusted to."""

import json
from importlib.resources import files
from pathlib import Path


def _read(name, folder=files("stagemesh.services.cache.semantic") / "data"):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


ADVERSARIAL = _read("adversarial.jsonl")
PARAPHRASES = _read("paraphrases.jsonl")

# Written when rules and lists were done, on other topics. Whoever teaches the rules something must not look at them: what
# they would show then is what was learned by heart.
_HERE = Path(__file__).parent / "data"
HELD_OUT_ADVERSARIAL = _read("held_out_adversarial.jsonl", _HERE)
HELD_OUT_PARAPHRASES = _read("held_out_paraphrases.jsonl", _HERE)
