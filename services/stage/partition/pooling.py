"""Sentence embeddings as the checkpoint's own pooling files describe them (sentence-transformers' format)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stagemesh.errors import CheckpointError

# In the order in which several of them are put side by side.
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Identity": lambda hidden: hidden,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": torch.nn.functional.gelu,
    "SiLU": torch.nn.functional.silu,
    "Sigmoid": torch.sigmoid,
}
# What the model itself runs, or what has no effect on an embedding that is computed.
_WITHOUT_EFFECT = ("Transformer", "Dropout")


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer on embeddings: `[samples, in]` -> `[samples, out]`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: str

    def __call__(self, pooled: torch.Tensor) -> torch.Tensor:
        """In float32, on the embeddings' device."""
        weight = self.weight.to(pooled.device)
        bias = None if self.bias is None else self.bias.to(pooled.device)
        return _ACTIVATIONS[self.activation](torch.nn.functional.linear(pooled, weight, bias))


def _unit(pooled: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(pooled, dim=-1)


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token vectors become one, and what is done with it.

    Attributes:
        modes: "mean", "cls", "last", "max", "mean_sqrt_len" (sum over the root of the length) or "weightedmean" (by
            position); several are put side by side.
        then: dense layers and normalisation, in order.
    """

    modes: tuple[str, ...]
    then: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = field(default=())

    def __call__(self, hidden: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """`[tokens, hidden]` of concatenated samples -> `[samples, dimension]`."""
        samples = hidden.split(list(lengths))
        columns = [torch.stack([_pool(mode, sample) for sample in samples]) for mode in self.modes]
        pooled = columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)
        for step in self.then:
            pooled = step(pooled)
        return pooled


def _pool(mode: str, sample: torch.Tensor) -> torch.Tensor:
    """`[tokens, hidden]` -> `[hidden]`."""
    if mode == "mean":
        return sample.mean(dim=0)
    if mode == "max":
        return sample.amax(dim=0)
    if mode == "mean_sqrt_len":
        return sample.sum(dim=0) / sample.shape[0] ** 0.5
    if mode == "weightedmean":
        weights = torch.arange(1, sample.shape[0] + 1, device=sample.device, dtype=sample.dtype)
        return (sample * weights[:, None]).sum(dim=0) / weights.sum()
    return sample[0 if mode == "cls" else -1]


def read_pooling(folder: Path, locate: Callable[[str], Path] | None = None) -> Pooling:
    """Read `modules.json` and what it names; without it: mean, not normalised.

    Args:
        folder: of the checkpoint.
        locate: finds weight files by their name inside the checkpoint; by default they lie in `folder`.

    Raises:
        CheckpointError: the files are there but say something that is not supported.
    """
    listing = folder / "modules.json"
    if not listing.exists():
        return Pooling(("mean",))
    modules = _read(listing, "modules.json", list)
    modes: tuple[str, ...] | None = None
    then: list[Callable[[torch.Tensor], torch.Tensor]] = []
    for module in modules:
        try:
            kind, path = str(module["type"]).rpartition(".")[2], str(module["path"])
        except (KeyError, TypeError) as error:
            raise CheckpointError("modules.json cannot be read") from error
        if path.startswith("/") or ".." in path.split("/"):
            raise CheckpointError("modules.json names a folder outside of the checkpoint")
        if kind == "Pooling" and modes is None:
            modes = _modes(_read(folder / path / "config.json", f"{path}/config.json", dict))
        elif kind == "Normalize" and modes is not None:
            then.append(_unit)
        elif kind == "Dense" and modes is not None:
            then.append(_dense(folder, path, locate or folder.joinpath))
        elif kind not in _WITHOUT_EFFECT:
            raise CheckpointError(f"modules.json: {kind[:40]!r} is not supported in that place")
    if modes is None:
        raise CheckpointError("modules.json names no pooling")
    return Pooling(modes, tuple(then))


def _modes(config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if isinstance(named, str):
        short = {"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len"}
        modes: tuple[str, ...] = (short.get(named, named),)
        others = [mode for mode in modes if mode not in _MODES.values()]
    else:
        modes = tuple(name for key, name in _MODES.items() if config.get(key) is True)
        others = [
            key
            for key, on in config.items()
            if key.startswith("pooling_mode_") and on is True and key not in _MODES
        ]
    if not modes or others:
        raise CheckpointError(
            "the pooling configuration must have one of mean, cls, last token, max and their kin"
        )
    return modes


def _dense(folder: Path, path: str, locate: Callable[[str], Path]) -> Dense:
    config = _read(folder / path / "config.json", f"{path}/config.json", dict)
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{path}/config.json: activation {activation[:40]!r} is not supported")
    try:
        weights = load_file(locate(f"{path}/model.safetensors"))
        weight, bias = weights["linear.weight"], weights.get("linear.bias")
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path}/model.safetensors cannot be read") from error
    return Dense(weight.float(), None if bias is None else bias.float(), activation)


def _read(path: Path, name: str, kind: type) -> Any:
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be read") from error
    if not isinstance(read, kind):
        raise CheckpointError(f"{name} is not what it should be")
    return read
