"""Runs a command's coroutine so that SIGINT and SIGTERM end it with its clean-up done."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


def run_until_signal(main: Coroutine[Any, Any, None]) -> int | None:
    """Run to the end, or to the first signal, which cancels it; returns that signal's number.

    A second signal does not cut the clean-up short. What `main` raises is raised here.
    """
    return asyncio.run(_run(main))


async def _run(main: Coroutine[Any, Any, None]) -> int | None:
    task = asyncio.create_task(main)
    caught: list[int] = []

    def on_signal(number: int) -> None:
        if not caught:
            task.cancel()
        caught.append(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not caught:
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return caught[0] if caught else None
