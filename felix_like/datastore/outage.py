"""What is told of a datastore that is away: each reason once, until all was well again."""

from __future__ import annotations

from typing import Final

MOST_REASONS: Final = 8
"""Told of one outage at most."""


class Outage:
    """Which reasons were told since all was well. The first may be how the connection broke, the next how
    things are; and they may alternate every two seconds."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def is_news(self, reason: str) -> bool:
        if reason in self._said or len(self._said) >= MOST_REASONS:
            return False
        self._said.add(reason)
        return True

    def over(self) -> None:
        self._said.clear()
