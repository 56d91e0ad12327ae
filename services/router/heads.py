"""What a classifier's logits mean, from its checkpoint's own configuration. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stagemesh.errors import CheckpointError

IDENTITY, SIGMOID, SOFTMAX, TANH = "identity", "sigmoid", "softmax", "tanh"
# The last words of torch's class names, as checkpoints made for ranking spell theirs.
_CLASSES = {"Identity": IDENTITY, "Sigmoid": SIGMOID, "Tanh": TANH}


def rank_activation(config: Mapping[str, Any]) -> str:
    """What turns the one logit of a (query, document) pair into its score: what the checkpoint says, else sigmoid.

    Raises `CheckpointError` when the checkpoint names a function that is not known here.
    """
    trained = config.get("sentence_transformers")
    named = trained.get("activation_fn") if isinstance(trained, dict) else None
    named = named or config.get("sbert_ce_default_activation_function") or "Sigmoid"
    known = _CLASSES.get(str(named).rpartition(".")[2])
    if known is None:
        raise CheckpointError(
            f"model: its scores go through {str(named)[:80]!r}, which is not known", field="model"
        )
    return known


def classify_activation(config: Mapping[str, Any], labels: int) -> str:
    """By the checkpoint's `problem_type`; without one, softmax over several classes and sigmoid of a single one."""
    problem = config.get("problem_type")
    if problem == "regression":
        return IDENTITY
    return SIGMOID if problem == "multi_label_classification" or labels == 1 else SOFTMAX


def activate(logits: np.ndarray, activation: str) -> np.ndarray:
    """Scores [N, L] in double precision, of logits [N, L]; far out they are 0 and 1, never NaN."""
    values = logits.astype(np.float64)
    if activation == SIGMOID:
        small = np.exp(-np.abs(values))
        return np.where(values >= 0, 1.0, small) / (1.0 + small)
    if activation == SOFTMAX:
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    return np.tanh(values) if activation == TANH else values


def label_names(listed: Sequence[str], config: Mapping[str, Any], labels: int) -> list[str]:
    """Names of the classes by index: those of the spec, else the checkpoint's `id2label`, else `LABEL_<index>`."""
    if len(listed) == labels:
        return list(listed)
    named = config.get("id2label")
    names = named if isinstance(named, dict) else {}
    return [str(names.get(str(index), f"LABEL_{index}")) for index in range(labels)]
