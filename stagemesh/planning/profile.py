"""What a node measured of a model's layers, and the file that keeps it. The planner reads it, stages write it."""

import hashlib
import json
import logging
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stagemesh.checkpoint import Checkpoint
from stagemesh.v1.registry_pb2 import LayerProfile

__all__ = ["Hardware", "Profile", "default_folder", "load", "save", "shape_of"]

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"\.\d+(?=\.)")
_MOST_BYTES = 64 * 1024


def shape_of(checkpoint: Checkpoint, dtype: str = "") -> str:
    """Digest of what decides how long a layer takes: the architecture, its tensors' shapes, and the dtype asked for.

    Copies of a model, and fine-tuned ones, have the same.
    """
    kinds = sorted(
        {(_NUMBER.sub(".N", name), one.dtype, one.shape) for name, one in checkpoint.tensors.items()}
    )
    sizes = (checkpoint.architecture, checkpoint.layers, checkpoint.hidden_size, checkpoint.layer_bytes)
    return hashlib.sha256(repr((sizes, kinds, dtype)).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Hardware:
    """What else decides it: a profile made on other hardware, threads or versions is another one."""

    device: str
    device_name: str
    threads: int
    fast: bool
    versions: tuple[str, ...]

    def key(self, shape: str) -> str:
        """Name of the profile."""
        return hashlib.sha256(repr((shape, asdict(self))).encode()).hexdigest()[:32]


class Profile(BaseModel):
    """`layer_ms`: rows of a pass -> milliseconds of one layer of average size; `overhead_ms`: of a pass besides."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    key: str
    shape: str
    layer_ms: dict[int, float] = Field(min_length=1)
    overhead_ms: float = Field(0.0, ge=0)
    # GB/s that weights were read with from the disk; 0 is unknown.
    disk_gbps: float = Field(0.0, ge=0)

    @field_validator("layer_ms")
    @classmethod
    def _positive(cls, value: dict[int, float]) -> dict[int, float]:
        if any(rows < 1 or ms <= 0 for rows, ms in value.items()):
            raise ValueError("must map rows (1 or more) to milliseconds (more than 0)")
        return value

    def record(self) -> LayerProfile:
        """For the node's record."""
        return LayerProfile(shape=self.shape, layer_ms=self.layer_ms, overhead_ms=self.overhead_ms)


def default_folder() -> Path:
    """`profiles` in `$STAGEMESH_DATA_DIR`, else in the user's cache folder."""
    own = os.environ.get("STAGEMESH_DATA_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stagemesh"
    return (Path(own) if own else cache) / "profiles"


def load(folder: Path, key: str) -> Profile | None:
    """The profile of that key; None, and a line in the log where it is not a missing file, when there is none to use."""
    path = folder / f"{key}.json"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"longer than {_MOST_BYTES} bytes")
        found = Profile.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        log.warning("profile.ignored %s: %s", path.name, str(error).splitlines()[0])
        return None
    if found.key != key:
        log.warning("profile.ignored %s: it is of something else", path.name)
        return None
    return found


def save(folder: Path, profile: Profile) -> bool:
    """Keep it, at once or not at all; False and a line in the log when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".profile-")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(profile.model_dump_json(indent=1) + "\n")
            os.replace(name, folder / f"{profile.key}.json")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        log.warning("profile.not_kept %s", error.strerror)
        return False
    return True
