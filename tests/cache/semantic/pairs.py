"""The pairs of questions that come with the package."""

import json
from importlib.resources import files


def _read(name):
    text = (files("stagemesh.services.cache.semantic") / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


ADVERSARIAL = _read("adversarial.jsonl")
PARAPHRASES = _read("paraphrases.jsonl")
