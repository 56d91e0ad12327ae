"""What the preloader has learned as JSON, so that the next leader goes on with it. Pure.

Numbers are rounded to three places and empty cells left out: 0.3 to 2 kB a model. What cannot be read is left out, never half taken.
"""

import json
import math
from typing import Any

import numpy as np

from .grid import Floats
from .hazard import Known
from .policy import Policy

_VERSION = 1


def dump_model(known: Known, epoch_s: float) -> bytes:
    """What is known of one model, with its times as Unix seconds."""
    return _json(
        {
            "last_unix_s": known.last_s + epoch_s,
            "gaps": known.gaps,
            "mean_s": known.mean_s,
            "last_gap_s": known.last_gap_s,
            "accounted_s": known.accounted_s,
            "own": known.own.dump(),
            "daily": known.daily.dump(),
        }
    )


def model_from(value: bytes, epoch_s: float, now_s: float) -> Known | None:
    """What `dump_model` gave, on the caller's clock; None when it makes no sense. A last request in the future counts as now."""
    try:
        read = _read(value)
        known = Known(min(_number(read["last_unix_s"]) - epoch_s, now_s))
        known.gaps = int(_number(read["gaps"]))
        known.mean_s = max(1e-3, _number(read["mean_s"]))
        known.last_gap_s = _number(read["last_gap_s"])
        known.accounted_s = _number(read["accounted_s"])
        known.own.load(read["own"])
        known.daily.load(read["daily"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return known


def dump_common(policy: Policy) -> bytes:
    """What was learned from all models."""
    hazards, proof = policy.hazards, policy.proof
    return _json(
        {
            "gaps": hazards.gaps,
            "gap_log": hazards.gap_log,
            "shape": hazards.shape.dump(),
            "ages": hazards.ages.dump(),
            "clock": hazards.clock.dump(),
            "situations": hazards.situations.dump(),
            "proof": [np.round(table, 3).tolist() for table in proof.tables()],
        }
    )


def common_from(policy: Policy, value: bytes) -> bool:
    """Take over what `dump_common` gave; whether it made sense."""
    hazards, proof = policy.hazards, policy.proof
    try:
        read = _read(value)
        gaps, gap_log = int(_number(read["gaps"])), float(read["gap_log"])
        tables: list[Floats] = [np.asarray(table, dtype=np.float64) for table in read["proof"]]
        if [table.shape for table in tables] != [table.shape for table in proof.tables()]:
            raise ValueError("other ways were tried")
        if not all(np.isfinite(table).all() for table in tables) or not math.isfinite(gap_log):
            raise ValueError("not finite")
        for name in ("shape", "ages", "clock", "situations"):
            getattr(hazards, name).load(read[name])
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    hazards.gaps, hazards.gap_log = gaps, gap_log
    for table, found in zip(proof.tables(), tables, strict=True):
        table[...] = found
    return True


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps({"version": _VERSION, **fields}, separators=(",", ":")).encode()


def _read(value: bytes) -> dict[str, Any]:
    read = json.loads(value)
    if not isinstance(read, dict) or read.get("version") != _VERSION:
        raise ValueError("another version")
    return read


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"not a number: {value!r}")
    return float(value)
