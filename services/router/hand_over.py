"""Ends what still runs when a router has to go, so that it goes on at another one."""

import asyncio
from types import TracebackType

from stagemesh.errors import Unavailable


class HandOver:
    """`with hand_over.scope():` in a task runs its body until the end, or until `begin`."""

    def __init__(self) -> None:
        self._scopes: set[_Scope] = set()
        self._begun = False

    def __repr__(self) -> str:
        return f"HandOver({len(self._scopes)} running, begun={self._begun})"

    def scope(self) -> "_Scope":
        """Raises `Unavailable` from the body's next wait once `begin` was called."""
        return _Scope(self._scopes, self._begun)

    def begin(self) -> None:
        """End every body that runs, and those to come."""
        self._begun = True
        for scope in list(self._scopes):
            scope.end()


class _Scope:
    """What `asyncio.timeout` does, for the one cause there is: every request pays for it."""

    __slots__ = ("_all", "_begun", "_cancelled", "_cancelling", "_task")

    def __init__(self, scopes: set["_Scope"], begun: bool) -> None:
        self._all = scopes
        self._begun = begun
        self._cancelled = False

    def end(self) -> None:
        """Cancel what its body waits for; nothing where the body is over."""
        if self in self._all and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a scope is for the body of a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._all.add(self)
        if self._begun:
            asyncio.get_running_loop().call_soon(self.end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._all.discard(self)
        # Somebody else may have cancelled the task as well, and that goes on.
        if self._cancelled and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise Unavailable(
                "the router is shutting down; go on at another one", retry_after_s=1.0
            ) from None
