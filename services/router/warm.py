"""Loads a model's tokenizer when the model appears, so that its first request does not wait for that."""

import asyncio
import logging
from collections.abc import Iterable

from stagemesh.errors import StagemeshError
from stagemesh.v1.registry_pb2 import ModelSpec

from .text.tokenizers import Texts

log = logging.getLogger(__name__)


class Warmer:
    """One load per (name, revision). Owns its tasks; `close` ends them."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._known: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Have the tokenizers' library ready before a model needs it."""
        self._own(asyncio.create_task(self._texts.prepare(), name="warm-library"))

    def update(self, specs: Iterable[ModelSpec]) -> None:
        """Start loading for the specs that were not there before."""
        present = {(spec.name, spec.revision): spec for spec in specs}
        for key in present.keys() - self._known:
            self._own(asyncio.create_task(self._load(present[key]), name=f"warm-{key[0]}"))
        self._known = set(present)

    async def close(self) -> None:
        """Stop waiting for loads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, spec: ModelSpec) -> None:
        try:
            await self._texts.get(spec)
        except StagemeshError as error:  # the requests will say it to their callers
            log.warning("text.not_loaded model=%s: %s", spec.name, error.message)
