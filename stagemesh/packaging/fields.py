"""Reading fields of untrusted JSON: every error says which field of which file is wrong."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stagemesh.errors import CheckpointError


class Fields:
    """An object of a JSON file, and where it stands in it."""

    def __init__(self, value: object, file: str, path: str = "") -> None:
        self._file, self._path = file, path
        if not isinstance(value, dict):
            raise self.wrong("", "must be an object")
        self._value: Mapping[str, Any] = value

    def wrong(self, key: str, why: str) -> CheckpointError:
        """The error for one of the object's fields; an empty key means the object itself."""
        where = f"{self._path}.{key}" if self._path and key else self._path or key
        return CheckpointError(f"{self._file}: {where + ': ' if where else ''}{why}", field="source")

    def at(self, key: str, value: object) -> "Fields":
        """An object that stands below this one."""
        return Fields(value, self._file, f"{self._path}.{key}" if self._path else key)

    def keys(self) -> list[str]:
        """Names of all fields."""
        return list(self._value)

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer of at least `low` and at most `high`."""
        value = self._value.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"must be an integer from {low} to {high}")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._value.get(key)
        if type(value) is not bool:
            raise self.wrong(key, "must be true or false")
        return value

    def text(self, key: str, pattern: str, longest: int = 256) -> str:
        """A string that the whole pattern matches."""
        value = self._value.get(key)
        if not isinstance(value, str) or len(value) > longest or not re.fullmatch(pattern, value):
            raise self.wrong(key, f"must be a string like {pattern} of at most {longest} characters")
        return value

    def free_text(self, key: str, longest: int) -> str:
        """Any string."""
        value = self._value.get(key)
        if not isinstance(value, str) or len(value) > longest:
            raise self.wrong(key, f"must be a string of at most {longest} characters")
        return value

    def integers(self, key: str, low: int, high: int, most: int) -> tuple[int, ...]:
        """A list of integers."""
        value = self._value.get(key)
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(key, f"must be a list of at most {most} integers")
        if not all(type(item) is int and low <= item <= high for item in value):
            raise self.wrong(key, f"must hold integers from {low} to {high}")
        return tuple(value)

    def items(self, key: str, most: int) -> list[Any]:
        """A list of anything."""
        value = self._value.get(key)
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(key, f"must be a list of at most {most} entries")
        return value

    def objects(self, key: str, most: int) -> Iterator["Fields"]:
        """A list of objects."""
        for index, item in enumerate(self.items(key, most)):
            yield self.at(f"{key}[{index}]", item)

    def table(self, key: str, most: int) -> dict[str, Any]:
        """An object of at most so many entries, as a dict."""
        value = self._value.get(key)
        if not isinstance(value, dict) or len(value) > most:
            raise self.wrong(key, f"must be an object of at most {most} entries")
        return value
