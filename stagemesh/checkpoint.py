"""What a checkpoint is, read from its configuration and from the headers of its safetensors files.

No weights are loaded and torch is not imported. Every function here blocks on the disk (or on the hub):
call them in a thread. Messages name the file inside the checkpoint, never where the checkpoint lies.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagemesh import checkpoint_encoders
from stagemesh.checkpoint_cuts import legal_cuts
from stagemesh.checkpoint_files import TensorInfo, positive, read_index, read_json, sample_weights
from stagemesh.checkpoint_hub import fetch_headers, fetch_metadata, is_hub_id
from stagemesh.errors import CheckpointError, NotFound
from stagemesh.packaging.manifest import Manifest, is_package, read_manifest
from stagemesh.signature import NOTHING, Signature, Tensor

__all__ = ["Checkpoint", "TensorInfo", "inspect", "inspect_source", "is_local", "partition_bytes", "resolve"]

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|[._])(?:embed\w*|wte|wpe|transformer\.w)(?:$|\.)")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.")
_GENERATE = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's description. Byte counts are those of the dtype stored in the files."""

    architecture: str
    model_type: str
    # "generate" (causal language model), "tensor" (package), or one of `checkpoint_encoders.Described.task`.
    task: str
    layers: int
    hidden_size: int
    vocab_size: int
    # Longest sequence in tokens; 0 where the checkpoint sets no limit.
    context_length: int
    # safetensors' name of the dtype that most parameter bytes have.
    dtype: str
    tensors: Mapping[str, TensorInfo]
    # Bytes of each layer, layer 0 first.
    layer_bytes: list[int]
    embedding_bytes: int
    # Final norm, output head, pooler. Of a tied head only the norm: the matrix is in `tied_bytes`.
    head_bytes: int
    # Bytes of the token embedding that the last partition needs again because the output head is tied to it.
    tied_bytes: int
    # Hex digest of what the checkpoint contains; the same wherever a copy of it lies.
    revision: str
    # Between which layers it may be cut: how many layers lie before each cut.
    cuts: tuple[int, ...] = ()
    # What a stateless inference takes and gives; empty for a causal language model.
    signature: Signature = NOTHING

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """See `Signature`."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """See `Signature`."""
        return self.signature.outputs

    @property
    def rows(self) -> str:
        """See `Signature`."""
        return self.signature.rows


def is_local(source: str) -> bool:
    """Whether `source` can only mean a folder on this machine (and not a hub id)."""
    return Path(source).expanduser().is_dir() or not is_hub_id(source)


def resolve(source: str, hub_revision: str = "") -> Path:
    """Return the folder with the checkpoint's configuration and tokenizer.

    `source` is a local folder, or a hub id of which everything but the weights is fetched (or found in the
    local hub cache). Raises `NotFound` when neither exists, `CheckpointError` when the hub cannot be used.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if folder.is_file():
        raise CheckpointError(f"{source!r} is a file; a checkpoint is a folder", field="source")
    if is_local(source):
        raise NotFound(f"no checkpoint folder {source!r}", field="source")
    return fetch_metadata(source, hub_revision)


def inspect_source(source: str, hub_revision: str = "") -> Checkpoint:
    """Resolve and inspect; of a hub id the weights' headers are read over the network, not the weights."""
    folder = resolve(source, hub_revision)
    if is_local(source):
        return inspect(folder)
    # A snapshot folder of the hub is named after its commit, which pins the weights.
    return _describe(folder, fetch_headers(source, folder.name, folder), weights=folder.name.encode())


def inspect(folder: Path) -> Checkpoint:
    """Describe the checkpoint, or the package of an exported module, in `folder`; all of its files must be there.

    Raises `CheckpointError` with one line when something is missing, truncated, malformed or unsupported.
    """
    if is_package(folder):
        return _package(read_manifest(folder))
    read_json(folder, "config.json")  # first: without it nothing else is worth a message
    tensors = read_index(folder)
    return _describe(folder, tensors, weights=sample_weights(folder, tensors))


def partition_bytes(checkpoint: Checkpoint, first: int, end: int) -> int:
    """Parameter bytes of layers [first, end), with the embedding on the first and the head on the last."""
    if not 0 <= first < end <= checkpoint.layers:
        raise ValueError(f"layers {first}..{end} of {checkpoint.layers}")
    size = sum(checkpoint.layer_bytes[first:end])
    if first == 0:
        size += checkpoint.embedding_bytes
    if end == checkpoint.layers:
        size += checkpoint.head_bytes
        if first > 0:
            size += checkpoint.tied_bytes
    return size


def _package(manifest: Manifest) -> Checkpoint:
    """A package's pieces are its layers; it may be cut between any two."""
    return Checkpoint(
        architecture=manifest.name,
        model_type="package",
        task="tensor",
        layers=manifest.layers,
        hidden_size=0,
        vocab_size=0,
        context_length=0,
        dtype=manifest.dtype,
        tensors={},
        layer_bytes=manifest.layer_bytes,
        embedding_bytes=0,
        head_bytes=0,
        tied_bytes=0,
        revision=manifest.revision,
        cuts=tuple(range(1, manifest.layers)),
        signature=manifest.signature,
    )


def _describe(folder: Path, tensors: Mapping[str, TensorInfo], weights: bytes) -> Checkpoint:
    config = read_json(folder, "config.json")
    architecture, model_type = _architecture(config)
    found = checkpoint_encoders.describe(
        architecture, model_type, config, tensors, checkpoint_encoders.read_pooled(folder)
    )
    if found is None:
        found = _causal(architecture, config)
    elif found.ignored:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(found.ignored)}
    task, layers, vocab_size = found.task, found.layers, found.vocab_size
    cuts = tuple(legal_cuts(config, layers) if task == "generate" else range(1, layers))

    layer_bytes, embedding, embedding_names, head, has_head = [0] * layers, 0, [], 0, False
    for name, tensor in tensors.items():
        if found.shared and ".albert_layer_groups." in f".{name}":
            layer_bytes = [size + tensor.bytes for size in layer_bytes]
        elif match := _LAYER.search(name):
            if int(match[1]) < layers:  # beyond: layers for speculative training, which are not served
                layer_bytes[int(match[1])] += tensor.bytes
        elif _HEAD.search(name) or _is_head(name, tensor, vocab_size):
            has_head, head = True, head + tensor.bytes
        elif _EMBEDDING.search(name):
            embedding += tensor.bytes
            embedding_names.append(name)
        else:
            head += tensor.bytes
    for layer, size in enumerate(layer_bytes):
        if size == 0:
            raise CheckpointError(f"the weights hold no tensor of layer {layer} of {layers}", field="source")
    if not embedding_names and task == "generate":
        raise CheckpointError("the weights hold no embedding", field="source")
    tied = 0
    if task == "generate" and not has_head:
        if config.get("tie_word_embeddings") is False:
            raise CheckpointError("the weights hold no output head, and it is not tied", field="source")
        tied = max(tensors[name].bytes for name in embedding_names)
    return Checkpoint(
        architecture=architecture,
        model_type=model_type,
        task=task,
        layers=layers,
        hidden_size=found.hidden_size,
        vocab_size=vocab_size,
        context_length=found.context_length,
        dtype=_main_dtype(tensors),
        tensors=tensors,
        layer_bytes=layer_bytes,
        embedding_bytes=embedding,
        head_bytes=head,
        tied_bytes=tied,
        revision=_revision(folder, config, tensors, weights),
        cuts=cuts,
        signature=found.signature,
    )


def _causal(architecture: str, config: Mapping[str, Any]) -> checkpoint_encoders.Described:
    """Sizes of a causal language model."""
    if config.get("is_encoder_decoder") or not architecture.endswith(_GENERATE):
        raise CheckpointError(
            f"architecture {architecture[:80]!r} is not supported: it must be a causal language model "
            "(...ForCausalLM, ...LMHeadModel) or an encoder such as BertModel",
            field="source",
        )
    kinds = config.get("layers_block_type") or config.get("layer_types")
    counted = len(kinds) if isinstance(kinds, list) and kinds else None
    layers = positive(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers", default=counted)
    if layers > 10_000:
        raise CheckpointError(f"config.json: {layers} layers", field="source")
    context = (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "seq_length",
        "max_sequence_length",
    )
    return checkpoint_encoders.Described(
        task="generate",
        layers=layers,
        hidden_size=positive(config, "hidden_size", "n_embd", "d_model", "dim"),
        vocab_size=positive(config, "vocab_size"),
        context_length=positive(config, *context, default=0),
        signature=NOTHING,
    )


def _architecture(config: Mapping[str, Any]) -> tuple[str, str]:
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise CheckpointError("config.json names no architecture", field="source")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError("config.json has no model_type", field="source")
    if config.get("quantization_config"):
        raise CheckpointError("quantised checkpoints are not supported", field="source")
    return architectures[0], model_type


def _is_head(name: str, tensor: TensorInfo, vocab_size: int) -> bool:
    """Whether a tensor outside of the layers, of whatever name, has a row for each token and is no embedding."""
    return len(tensor.shape) == 2 and tensor.shape[0] == vocab_size and not _EMBEDDING.search(name)


def _main_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
    return max(sorted(sizes), key=lambda dtype: sizes[dtype])


def _revision(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], weights: bytes
) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, tensor.dtype, tensor.shape, tensor.offset, tensor.file)).encode())
    digest.update(hashlib.sha256(weights).digest())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "modules.json"):
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(hashlib.sha256(content).digest())
    for path in sorted(folder.glob("[0-9]*_*/config.json")):  # pooling and what follows it
        digest.update(hashlib.sha256(path.parent.name.encode() + b"/" + path.read_bytes()).digest())
    return digest.hexdigest()[:32]
