"""Sentence embeddings as the checkpoint's own pooling files describe them (sentence-transformers' format)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stagemesh.errors import CheckpointError

_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token vectors become one: "mean", "cls" or "last"; then to unit length when `normalize`."""

    mode: str
    normalize: bool

    def __call__(self, hidden: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """`[tokens, hidden]` of concatenated samples -> `[samples, hidden]`."""
        samples = hidden.split(list(lengths))
        if self.mode == "mean":
            pooled = torch.stack([sample.mean(dim=0) for sample in samples])
        else:
            pooled = torch.stack([sample[0 if self.mode == "cls" else -1] for sample in samples])
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def read_pooling(folder: Path) -> Pooling:
    """Read `modules.json` and the pooling config it names; without them: mean, not normalised.

    Raises:
        CheckpointError: the files are there but say something that is not supported.
    """
    listing = folder / "modules.json"
    if not listing.exists():
        return Pooling("mean", normalize=False)
    try:
        modules = json.loads(listing.read_text())
        kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
        config = json.loads((folder / kinds["Pooling"] / "config.json").read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("modules.json or its pooling configuration cannot be read") from error
    modes = [name for key, name in _MODES.items() if config.get(key)]
    others = [
        key
        for key, on in config.items()
        if key.startswith("pooling_mode_") and on is True and key not in _MODES
    ]
    if len(modes) != 1 or others:
        raise CheckpointError("the pooling configuration must have exactly one of mean, cls and last token")
    return Pooling(modes[0], normalize="Normalize" in kinds)
