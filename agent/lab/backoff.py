"""When a process that died may start again. Pure: time and chance are arguments."""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 1.0
LONGEST = 30.0
STEADY = 10.0
"""Seconds; a process that lived that long starts over at FIRST."""


@dataclass(slots=True)
class Backoff:
    """Exponential backoff with jitter, so that fifty agents that fell together do not rise together."""

    failures: int = 0
    """Deaths in a row, each before STEADY seconds of life."""

    def died(self, lived: float, chance: float) -> float:
        """Seconds to wait before the next start.

        `lived` is how long the process ran, in seconds; `chance` is from [0, 1) and takes off up to half.
        """
        if lived >= STEADY:
            self.failures = 0
        delay = min(LONGEST, FIRST * 2.0 ** min(self.failures, 16))
        self.failures += 1
        return delay * (1 - chance / 2)
