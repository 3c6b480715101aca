"""A share of the event loop for those who only look: at most half of it, one of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Fair:
    """Makes answers one after the other; after each, the loop is left to others for as long as it took."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def make(self, answer: Callable[[], T]) -> T:
        """What `answer` returns or raises."""
        clock = asyncio.get_running_loop().time
        async with self._turn:
            began = clock()
            try:
                return answer()
            finally:
                await asyncio.sleep(clock() - began)
