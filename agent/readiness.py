"""Is the first full route sync done? Once it is, it stays so while the process lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.calculation import Calculation
from felix_like.model.address import Address
from felix_like.model.verdict import No, Verdict, Yes

PATIENCE: Final = 10.0
"""Seconds after the speaker's first report in which sessions that are not up may still come up, and peers
that have just begun, too, may still tell all: one that passes routes on has all of them only when all of its
own peers have, a dead one among them."""


class Readiness:
    """`up`: is the peer's session established? `pending`: wanted routes that the kernel has not answered for.
    `clock` is monotonic seconds."""

    def __init__(
        self,
        calculation: Calculation,
        *,
        up: Callable[[Address], bool],
        pending: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._calculation = calculation
        self._up = up
        self._pending = pending
        self._clock = clock
        self._replayed_at: float | None = None
        self._done = False

    def verdict(self) -> Verdict:
        """Yes, or what is missing. A peer that is dead delays the Yes by PATIENCE and never takes it back."""
        if not self._done:
            missing = self._missing()
            if missing:
                return No(missing)
            self._done = True
        return Yes("the first full route sync is done")

    def _missing(self) -> str:
        desired = self._calculation.graph.desired
        if desired is None:
            return "the datastore has not been read yet"
        if not self._calculation.replayed:
            return "tortie-speaker has not told what it learned yet"
        now = self._clock()
        if self._replayed_at is None:
            self._replayed_at = now
        awaited = sorted(
            address
            for address in self._calculation.awaited
            if now < self._replayed_at + PATIENCE
            or (self._up(address) and address not in self._calculation.restarting)
        )
        if awaited:
            return f"{len(awaited)} peers have not told all their routes yet, {awaited[0]} among them"
        pending = self._pending()
        if pending:
            return f"{pending} routes are not in the kernel yet"
        return ""
