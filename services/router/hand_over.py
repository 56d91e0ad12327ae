"""Ends what still runs when a router has to go, so that it goes on at another one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from stagemesh.errors import Unavailable


class HandOver:
    """`async with hand_over.scope():` runs its body until the end, or until `begin`."""

    def __init__(self) -> None:
        self._scopes: set[asyncio.Timeout] = set()
        self._begun = False

    def __repr__(self) -> str:
        return f"HandOver({len(self._scopes)} running, begun={self._begun})"

    @asynccontextmanager
    async def scope(self) -> AsyncGenerator[None, None]:
        """Raises `Unavailable` from the body's next wait once `begin` was called."""
        scope = asyncio.timeout(0 if self._begun else None)
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    yield
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            raise Unavailable(
                "the router is shutting down; go on at another one", retry_after_s=1.0
            ) from None

    def begin(self) -> None:
        """End every body that runs, and those to come."""
        self._begun = True
        now = asyncio.get_running_loop().time()
        for scope in list(self._scopes):
            scope.reschedule(now)
