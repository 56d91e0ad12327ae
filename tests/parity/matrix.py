"""Every row of the parity matrix: a family, and how its small checkpoint is made."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from stagemesh.services.stage.verify import verify

from stagemesh.errors import StagemeshError
from stagemesh.parity import Certificate

from . import build, causal, causal_more, causal_settings, encoders

STAGES = (2, 3)

Make = Callable[[Path], None]


def families() -> dict[str, Make]:
    """What a row is called -> what writes its checkpoint."""
    rows: dict[str, Make] = {}
    for name in causal.published():
        rows[name] = lambda folder, name=name: causal.make(name, folder)  # type: ignore[misc]
    for name in causal_more.MORE:
        rows[name] = lambda folder, name=name: causal_more.make(name, folder)  # type: ignore[misc]
    rows.update(encoders.FAMILIES)
    return rows


def run(name: str, stages: int) -> Certificate:
    """Make a row's checkpoint and verify it; what cannot be built, loaded or split is a certificate that failed."""
    build.quiet()
    reason = causal_settings.UNSUPPORTED.get(name, "")
    if not reason:
        with tempfile.TemporaryDirectory(prefix="parity-") as folder:
            place = Path(folder) / "model"
            try:
                families()[name](place)
                # That of a made-up checkpoint speaks for its family.
                return replace(verify(str(place), stages, say=lambda _: None), revision="")
            except StagemeshError as error:
                reason = error.message
            except Exception as error:
                first = (str(error).splitlines() or [""])[0]
                reason = f"{type(error).__name__}: {first}"[:300]
    return failed(name, stages, reason)


def failed(name: str, stages: int, reason: str) -> Certificate:
    """A row that did not get as far as a comparison."""
    return Certificate(
        architecture=name,
        model_type=name,
        task="",
        revision="",
        stages=stages,
        cuts=(),
        dtype="F32",
        path="",
        max_abs_error=0.0,
        scale=0.0,
        tokens_compared=0,
        tokens_equal=0,
        passed=False,
        reason=reason,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
