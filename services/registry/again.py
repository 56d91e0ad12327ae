"""The loop of whatever looks at the world now and then: it outlives every fault of a single look."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from stagemesh.errors import StagemeshError

from .leadership import Fenced

log = logging.getLogger(__name__)


async def again_and_again(
    name: str, step: Callable[[], Awaitable[None]], pause_s: float, after: asyncio.Event
) -> NoReturn:
    """Once `after` is set, take a step each time that `pause_s` seconds have passed since the last one.

    What a step raises is logged, as `<name>.fenced` where another registry leads by now, else as `<name>.step_failed`: absences of etcd are
    waited out.
    """
    await after.wait()
    while True:
        await asyncio.sleep(pause_s)
        try:
            await step()
        except Fenced as error:
            log.warning("%s.fenced: %s", name, error)
        except StagemeshError as error:
            log.warning("%s.step_failed: %s", name, error)
        except Exception:
            log.exception("%s.step_failed", name)
