"""Checkpoints on the Hugging Face hub: configuration and tokenizer as files, of the weights only headers."""

import re
from pathlib import Path

from stagemesh.checkpoint_files import TensorInfo, parse_header, read_index
from stagemesh.errors import CheckpointError, NotFound

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
_METADATA = ["*.json", "*.txt", "*.model", "*.jinja", "1_Pooling/*"]


def is_hub_id(source: str) -> bool:
    """Whether `source` is spelt like `owner/name` or `name`, which may live on the hub."""
    return _HUB_ID.fullmatch(source) is not None and len(source) <= 200


def fetch_metadata(source: str, revision: str) -> Path:
    """Return the snapshot folder (named after its commit) with everything but the weights.

    Raises `NotFound` for an unknown id or revision, `CheckpointError` when the hub does not answer.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision or None, allow_patterns=_METADATA))
    except errors.RepositoryNotFoundError as error:
        raise NotFound(f"no checkpoint folder and no public hub model {source!r}", field="source") from error
    except errors.RevisionNotFoundError as error:
        message = f"hub model {source!r} has no revision {revision[:80]!r}"
        raise NotFound(message, field="hub_revision") from error
    except Exception as error:  # offline, gated, a proxy in the way: many classes, one meaning
        message = f"no checkpoint folder {source!r}, and the hub cannot be used ({type(error).__name__})"
        raise CheckpointError(message, field="source") from error


def fetch_headers(source: str, commit: str, folder: Path) -> dict[str, TensorInfo]:
    """Read the safetensors headers: from `folder` when the weights are there, else by range requests."""
    try:
        return read_index(folder)
    except CheckpointError:
        pass
    from huggingface_hub import HfApi, errors

    try:
        metadata = HfApi().get_safetensors_metadata(source, revision=commit)
    except errors.NotASafetensorsRepoError as error:
        message = f"the weights must be safetensors; hub model {source!r} has none"
        raise CheckpointError(message, field="source") from error
    except Exception as error:
        message = f"the weights of hub model {source!r} cannot be read ({type(error).__name__})"
        raise CheckpointError(message, field="source") from error
    tensors: dict[str, TensorInfo] = {}
    for file, content in metadata.files_metadata.items():
        header = {
            name: {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": list(tensor.data_offsets),
            }
            for name, tensor in content.tensors.items()
        }
        tensors.update(parse_header(header, file))
    if not tensors:
        raise CheckpointError(f"the weights of hub model {source!r} hold no tensor", field="source")
    return tensors
