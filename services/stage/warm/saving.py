"""Writes packed partitions to disk beside the serving of them, one at a time and with little precedence."""

import asyncio
import logging
import threading
from collections.abc import Collection
from functools import partial
from weakref import ref

from stagemesh.planning.profile import default_folder
from stagemesh.v1.registry_pb2 import NodeRecord

from ..apart import apart
from ..config import StageConfig
from ..loading import give_back
from ..partition.interface import Partition
from ..partition.packed_file import StoppedError
from .packed_store import PackedStore

log = logging.getLogger(__name__)

# Serving, and everything else on the machine, goes first.
_NICE = 19


class Saving:
    """What one node has to write; used on its event loop.

    Args:
        store: where to.
    """

    def __init__(self, store: PackedStore) -> None:
        self.store = store
        self._stop = threading.Event()
        # What is neither served nor kept any more when its turn comes is not written.
        self._waiting: list[ref[Partition]] = []
        self._now: Partition | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Saving waiting={len(self._waiting)}>"

    def begin(self, partition: Partition) -> None:
        """Have it written, if it is not on disk."""
        if not self.store.owes(partition) or self._stop.is_set():
            return
        self._waiting.append(ref(partition))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._save(), name="save-packed")

    def bytes_beside(self, held: Collection[Partition]) -> int:
        """Memory of what would be gone were it not being written: of partitions that are not among `held`."""
        now = self._now
        return 0 if now is None or any(now is each for each in held) else now.weight_bytes

    def close(self) -> None:
        """Write nothing more; what is being written is given up."""
        self._stop.set()
        self._waiting.clear()

    async def _save(self) -> None:
        while self._waiting:
            self._now = self._waiting.pop(0)()
            if self._now is None:
                continue
            try:
                save = partial(self.store.save, self._now, self._stop)
                await apart(save, "save-packed", nice=_NICE)
            except StoppedError:
                log.info("packed.given_up: the node leaves")
            except OSError as error:
                log.warning("packed.not_written: %s", error.strerror)
            except Exception:
                log.exception("packed.not_written")
            finally:
                self._now = None
                await asyncio.to_thread(give_back)  # it may have been the last that held it


def saving_of(config: StageConfig, record: NodeRecord) -> Saving:
    """As a node's settings have it."""
    data = config.data_dir or default_folder().parent
    limit = config.packed_mb * 2**20 if config.packed_mb >= 0 else record.memory_bytes
    return Saving(PackedStore(data / "packed", limit if config.fast else 0))
