"""Tokenizers of the deployed models: loaded once each, off the event loop, never running a checkpoint's code."""

import asyncio
import importlib.util
import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

from stagemesh.errors import CheckpointError
from stagemesh.v1.registry_pb2 import ModelSpec

from .detokenize import Detokenizer
from .model import ModelText
from .stop import StopStrings
from .templates import Templates

__all__ = ["Detokenizer", "ModelText", "StopStrings", "Texts"]

_log = logging.getLogger(__name__)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_HUB_PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_KEPT = 64
_RETRY_S = 5.0
_Key = tuple[str, str]


class Texts:
    """`ModelText` per (name, revision): the last 64 are kept, one load at a time."""

    def __init__(self, templates: Templates | None = None) -> None:
        self._templates = Templates() if templates is None else templates
        self._loaded: OrderedDict[_Key, ModelText] = OrderedDict()
        self._failed: dict[_Key, tuple[float, CheckpointError]] = {}
        self._loading: dict[_Key, asyncio.Task[ModelText]] = {}
        self._one_at_a_time = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Texts({[name for name, _ in self._loaded]}, loading={[name for name, _ in self._loading]})"

    async def prepare(self) -> None:
        """Import the library behind the tokenizers, which takes a second, and start what renders chat templates.

        Under the same lock as loads: two threads that import transformers at once can see half of it.
        """
        async with self._one_at_a_time:
            await asyncio.to_thread(_auto_tokenizer)
        await asyncio.to_thread(self._templates.warm)

    async def close(self) -> None:
        """End what renders chat templates."""
        await asyncio.to_thread(self._templates.close)

    async def get(self, spec: ModelSpec) -> ModelText:
        """Return the model's text side; raise `CheckpointError` when its tokenizer cannot be read.

        A failure is remembered for five seconds, so that a broken checkpoint is not read for every request.
        A caller that gives up waiting leaves the load running for the next one.
        """
        key = (spec.name, spec.revision)
        if (text := self._loaded.get(key)) is not None:
            self._loaded.move_to_end(key)
            return text
        failed_at, error = self._failed.get(key, (0.0, None))
        if error is not None and asyncio.get_running_loop().time() - failed_at < _RETRY_S:
            raise error
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key, spec), name="load-tokenizer")
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _load(self, key: _Key, spec: ModelSpec) -> ModelText:
        try:
            async with self._one_at_a_time:
                text = await asyncio.to_thread(load, spec, templates=self._templates)
        except CheckpointError as error:
            self._failed = {key: (asyncio.get_running_loop().time(), error)}
            raise
        finally:
            del self._loading[key]
        self._failed.pop(key, None)
        self._loaded[key] = text
        while len(self._loaded) > _KEPT:
            self._loaded.popitem(last=False)
        return text


def load(spec: ModelSpec, templates: Templates | None = None) -> ModelText:
    """Read the tokenizer and the end tokens of `spec`'s checkpoint; raise `CheckpointError`. Blocks."""
    folder = _folder(spec)
    try:
        eos_ids = _eos_ids(folder)
        sentence = _json(folder / "sentence_bert_config.json")
        tokenizer = _tokenizer(folder) if any((folder / name).exists() for name in _TOKENIZER_FILES) else None
    except CheckpointError:
        raise
    except Exception as error:
        _log.warning("tokenizer of %s cannot be loaded", spec.name, exc_info=True)
        raise CheckpointError(
            f"the tokenizer of model {spec.name!r} cannot be loaded ({type(error).__name__})"
        ) from error
    # Chat checkpoints often end a turn with the tokenizer's end token and name another one in the settings.
    own = tokenizer.eos_token_id if tokenizer is not None else None
    if own is not None and int(own) not in eos_ids:
        eos_ids.append(int(own))
    eos_ids = [token for token in eos_ids if 0 <= token < (spec.vocab_size or 2**32)]
    longest = sentence.get("max_seq_length")
    longest = longest if isinstance(longest, int) and longest > 0 else None
    return ModelText(spec, tokenizer, eos_ids, longest, templates)


def _folder(spec: ModelSpec) -> Path:
    """The checkpoint's folder; of a hub checkpoint, its small files are downloaded first."""
    folder = Path(spec.source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or spec.source.startswith((".", "~")):
        raise CheckpointError(f"the checkpoint of model {spec.name!r} is not on the router's machine")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                spec.source, revision=spec.hub_revision or None, allow_patterns=_HUB_PATTERNS, etag_timeout=10
            )
        )
    except Exception as error:
        _log.warning("tokenizer of %s cannot be downloaded", spec.name, exc_info=True)
        raise CheckpointError(
            f"the tokenizer of model {spec.name!r} cannot be downloaded ({type(error).__name__})"
        ) from error


def _auto_tokenizer() -> Any:
    from transformers import AutoTokenizer  # late: takes seconds, and nothing before the first model needs it

    return AutoTokenizer


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").exists():
        _check_sentencepiece(folder)
    return _auto_tokenizer().from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


def _check_sentencepiece(folder: Path) -> None:
    """Raise `CheckpointError` for a sentencepiece model that nothing here can read.

    transformers would go on and read it as something else. The file is a protobuf message whose first field is a
    list; what else is called `tokenizer.model` is text.
    """
    for path in folder.glob("*.model"):
        with path.open("rb") as file:
            is_sentencepiece = file.read(1) == b"\n"
        if is_sentencepiece and importlib.util.find_spec("sentencepiece") is None:
            raise CheckpointError(
                f"the checkpoint has {path.name}, a sentencepiece model, and no tokenizer.json: install the package "
                "sentencepiece where the router runs, or convert it once with transformers "
                "(AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)) where that package is"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} of the checkpoint cannot be read") from error
    return value if isinstance(value, dict) else {}


def _eos_ids(folder: Path) -> list[int]:
    """The ids that end a generation, as `generate` takes them: the generation settings, else the config."""
    config = _json(folder / "config.json")
    for source in (_json(folder / "generation_config.json"), config, config.get("text_config") or {}):
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if found := [token for token in ids if isinstance(token, int) and not isinstance(token, bool)]:
            return found
    return []
