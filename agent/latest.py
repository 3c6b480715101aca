"""A mailbox of one: whoever reads gets the newest value; what was overtaken is never seen."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds the newest value put into it and wakes whoever waits for it.

    For one event loop. `put` never blocks, so a slow reader cannot delay the writer.
    """

    __slots__ = ("_value", "wake")

    def __init__(self) -> None:
        self._value: T | None = None
        self.wake = asyncio.Event()
        """Set while there may be something new; the reader clears it."""

    def put(self, value: T) -> None:
        self._value = value
        self.wake.set()

    def peek(self) -> T | None:
        """The newest value, or None before the first `put`."""
        return self._value
