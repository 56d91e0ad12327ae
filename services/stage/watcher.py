"""The thread that looks after the others: a pass that hangs is told to the loop, a loop that hangs ends the process.

It looks twice a second, at counters and at two lines of /proc, and costs the passes nothing.
Whoever holds the GIL holds it up as well, and then nothing is counted: for that there are the peers (`heartbeat.py`), the
lease and the orchestrator's probes.
"""

import asyncio
import faulthandler
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from stagemesh.process import leave

from .engine import Engine
from .thread_usage import usage_of
from .watchdog import Limits, Watch

log = logging.getLogger(__name__)

STEP_S = 0.5
# Exit status of a process that cannot go on because something in it hangs: whoever supervises it starts it again.
EXIT_HANGS = 75
_LAST_WORDS_S = 5.0
# Nothing on the loop is meant to take long; a neighbour that hears nothing for that long goes elsewhere anyway.
LOOP_LIMITS = Limits(still_s=3.0, busy_s=60.0, first_s=0.0)


@dataclass(eq=False)
class _Watched:
    engine: Engine
    watch: Watch
    on_hang: Callable[[str], None]
    on_return: Callable[[], None]
    # The pass that hangs.
    hanging: int = 0


@dataclass(eq=False)
class _Loop:
    loop: asyncio.AbstractEventLoop
    thread: int
    watch: Watch = field(default_factory=lambda: Watch(LOOP_LIMITS))
    turns: int = 1


class Watcher:
    """Watches compute threads and the event loop that it is started on.

    Args:
        limits: of passes.
        end: what is done when the loop hangs, on the watcher's thread, with what it hangs in.
    """

    def __init__(self, limits: Limits, end: Callable[[str], None] | None = None) -> None:
        self._limits = limits
        self._end = end or _end
        self._watched: dict[Engine, _Watched] = {}
        self._loop: _Loop | None = None
        self._turning: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()

    def __repr__(self) -> str:
        return f"<Watcher {[one.watch for one in self._watched.values()]}>"

    def start(self) -> None:
        """Begin; on the loop."""
        loop = asyncio.get_running_loop()
        self._loop = _Loop(loop, threading.get_native_id())
        self._turn(self._loop)
        threading.Thread(target=self._run, args=(self._loop,), name="watcher", daemon=True).start()

    def stop(self) -> None:
        """End, without waiting; on the loop."""
        self._stopped.set()
        if self._turning is not None:
            self._turning.cancel()

    def watch(
        self, engine: Engine, spins: bool, on_hang: Callable[[str], None], on_return: Callable[[], None]
    ) -> None:
        """Look after an engine.

        Args:
            engine: whose passes.
            spins: its thread runs while it waits for a device.
            on_hang: called on the loop with why its pass hangs.
            on_return: called on the loop when that pass came to its end after all.
        """
        self._watched[engine] = _Watched(engine, Watch(self._limits, spins), on_hang, on_return)

    def unwatch(self, engine: Engine) -> None:
        """Look no more."""
        self._watched.pop(engine, None)

    def _turn(self, loop: _Loop) -> None:
        loop.turns += 1
        self._turning = loop.loop.call_later(STEP_S, self._turn, loop)

    def _run(self, loop: _Loop) -> None:
        while not self._stopped.wait(STEP_S):
            try:
                for one in list(self._watched.values()):
                    self._look(one, loop)
                if why := loop.watch.look(loop.turns, usage_of(loop.thread), STEP_S, None):
                    self._end(f"the event loop hangs: {why}")
                    return
            except RuntimeError:
                return  # the loop is closed

    def _look(self, one: _Watched, loop: _Loop) -> None:
        running = one.engine.running
        number = one.engine.begun if running is not None else 0
        if one.hanging:
            if number != one.hanging:
                one.hanging = 0
                loop.loop.call_soon_threadsafe(one.on_return)
            return
        usage = expected_s = None
        if running is not None:
            usage = usage_of(running.thread)
            expected_s = one.engine.times.expected_s(running.size) if running.size is not None else None
        why = one.watch.look(number, usage, STEP_S, expected_s)
        if why and running is not None and running.thread != loop.thread:
            one.hanging = number
            log.error("a pass hangs, %s; what every thread does:", why)
            faulthandler.dump_traceback(sys.stderr)
            loop.loop.call_soon_threadsafe(one.on_hang, why)


def _end(why: str) -> None:
    # Whatever hangs may hold a lock that is needed to say so.
    faulthandler.dump_traceback_later(_LAST_WORDS_S, exit=True)
    log.critical("%s; what every thread does:", why)
    faulthandler.dump_traceback(sys.stderr)
    leave(EXIT_HANGS, f"{why}; the process ends so that another takes its place")
