"""The life of a service process: from its start, through a signal, to its exit code."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from stagemesh.errors import StagemeshError
from stagemesh.garbage import settle

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# What a signal does now; None outside of `run`.
_on_signal: Callable[[], object] | None = None


async def serve_until_signal() -> None:
    """Return on the first SIGTERM or SIGINT. A second one, while the service winds down, cancels it."""
    global _on_signal
    stop = asyncio.Event()
    if _on_signal is None:  # used on its own
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop.set)
        try:
            await stop.wait()
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        return
    before, _on_signal = _on_signal, stop.set
    settle()
    try:
        await stop.wait()
    finally:
        _on_signal = before


def run(main: Coroutine[Any, Any, None]) -> NoReturn:
    """Run a service to its end and exit: 0, or 1 after one clear line on stderr for an error of the tree.

    A signal before `serve_until_signal` (while the service starts) cancels `main`, so that it cleans up.
    Read the configuration inside `main`, so that its faults are told in the same way.
    """
    code = 0
    try:
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            runner.run(_supervised(main))
    except StagemeshError as error:
        for line in error.message.splitlines() or [error.kind]:
            print(f"stagemesh: {line}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    leave(code)


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed: a hop between stages takes a sixth less time, a small request a twentieth."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def leave(code: int, why: str = "") -> NoReturn:
    """Exit at once, after one line on stderr: taking down an interpreter that holds torch takes seconds of a CPU."""
    if why:
        print(f"stagemesh: {why}", file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _supervised(main: Coroutine[Any, Any, None]) -> None:
    global _on_signal
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main)
    signalled = False

    def handle() -> None:
        nonlocal signalled
        signalled = True
        assert _on_signal is not None
        _on_signal()

    _on_signal = task.cancel
    try:
        for number in _SIGNALS:
            loop.add_signal_handler(number, handle)
        await task
    except asyncio.CancelledError:
        if not signalled:
            raise
    finally:
        _on_signal = None
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
