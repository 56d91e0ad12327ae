"""Run a function that a checkpoint's author wrote (a chat template) for a limited time."""

import threading
from collections.abc import Callable
from typing import TypeVar

from stagemesh.errors import StagemeshError

T = TypeVar("T")


def run_limited(function: Callable[[], T], seconds: float, too_slow: StagemeshError) -> T:
    """Return `function()`, run in a thread of its own; raise `too_slow` when it takes longer than `seconds`.

    A thread cannot be ended from outside: one that runs on is a daemon, and the caller should not start another.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="chat-template", daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise too_slow
    return outcome[0]
