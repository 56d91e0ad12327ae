"""Lets an answer go out before the accounts of its request are closed: nobody who waits for it needs them closed."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
Exit = Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], object]


class AnswerFirst:
    """`with AnswerFirst() as accounts:` around one request, in a coroutine; like `contextlib.ExitStack`, but for when.

    After an answer what was entered is left, in reverse, in the event loop's next turn. After an error, or when the
    caller went away, it is left at once. No exit may hide an error, and one that fails keeps no other from running.
    """

    __slots__ = ("_exits", "_within")

    def __init__(self) -> None:
        self._exits: list[Exit] = []
        self._within: AbstractContextManager[object] | None = None

    def enter(self, manager: AbstractContextManager[T]) -> T:
        """Enter it now; what it returned."""
        entered = manager.__enter__()
        self._exits.append(manager.__exit__)
        return entered

    def push(self, leave: Exit) -> None:
        """Call it like an `__exit__`."""
        self._exits.append(leave)

    def within(self, manager: AbstractContextManager[object]) -> None:
        """Enter it now, once, and leave it with the body: what belongs to the task, a context variable say, cannot wait."""
        manager.__enter__()
        self._within = manager

    def __enter__(self) -> "AnswerFirst":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._within is not None:
            self._within.__exit__(kind, error, trace)
        if error is None:
            asyncio.get_running_loop().call_soon(self._leave, None, None, None)
        else:
            self._leave(kind, error, trace)

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._exits:
            try:
                self._exits.pop()(kind, error, trace)
            except Exception:
                log.exception("router.account_failed")
