"""A coroutine whose first step runs at once, not when a task gets its turn."""

from collections.abc import Coroutine, Generator
from typing import Any


class Begun:
    """Begin `work` now; awaiting this gives the rest of it. Await it once, or `abandon` it.

    What the first step raises is raised to whoever awaits.
    """

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._rest = work.__await__()
        self._waits_for: Any = None
        self._over = False
        self._error: Exception | None = None
        try:
            self._waits_for = next(self._rest)
        except StopIteration:
            self._over = True
        except Exception as error:
            self._over, self._error = True, error

    def __await__(self) -> Generator[Any, Any, None]:
        if self._error is not None:
            raise self._error
        if self._over:
            return
        self._over = True
        try:
            yield self._waits_for
        except BaseException as error:  # the awaiting task was cancelled: the work must know
            yield self._rest.throw(error)  # type: ignore[attr-defined]
        yield from self._rest

    @property
    def done(self) -> bool:
        """Whether there is nothing to await: the first step was all, and nothing went wrong."""
        return self._over and self._error is None

    def abandon(self) -> None:
        """End it where it stands."""
        if not self._over:
            self._over = True
            self._rest.close()  # type: ignore[attr-defined]
