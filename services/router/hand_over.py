"""Ends what still runs when a router has to go, so that it goes on at another one."""

import asyncio
from types import TracebackType

from stagemesh.errors import Unavailable


class HandOver:
    """`async with hand_over.scope():` runs its body until the end, or until `begin`."""

    def __init__(self) -> None:
        self._scopes: set[asyncio.Timeout] = set()
        self._begun = False

    def __repr__(self) -> str:
        return f"HandOver({len(self._scopes)} running, begun={self._begun})"

    def scope(self) -> "_Scope":
        """Raises `Unavailable` from the body's next wait once `begin` was called."""
        return _Scope(self._scopes, 0 if self._begun else None)

    def begin(self) -> None:
        """End every body that runs, and those to come."""
        self._begun = True
        now = asyncio.get_running_loop().time()
        for scope in list(self._scopes):
            scope.reschedule(now)


class _Scope:
    """Written out: every request pays for it, and a generator would cost more."""

    __slots__ = ("_all", "_timeout")

    def __init__(self, scopes: set[asyncio.Timeout], seconds: float | None) -> None:
        self._all = scopes
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._all.add(self._timeout)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._all.discard(self._timeout)
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise Unavailable(
                "the router is shutting down; go on at another one", retry_after_s=1.0
            ) from None
