"""What does not succeed, why, and when it is tried again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from felix_like.model.desired import RouteKey

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
FIGHT_WINDOW: Final = 60.0
"""Seconds over which repairs of one route are counted."""
FIGHT_LIMIT: Final = 5
"""Repairs of one route in a window, before the rest of the window is conceded to whoever undoes them."""


@dataclass(slots=True)
class Trouble:
    """One route that is not as wanted. `due` is on the sink's clock, in seconds."""

    kind: Literal["failed", "conflict", "fight"]
    reason: str
    due: float
    pause: float


@dataclass(slots=True)
class Troubles:
    """Failures with backoff, conflicts, and the count of repairs per route."""

    by_key: dict[RouteKey, Trouble] = field(default_factory=dict)
    _repairs: dict[RouteKey, tuple[float, int]] = field(default_factory=dict)
    _earliest: float | None = None

    def failed(self, key: RouteKey, reason: str, now: float) -> bool:
        """Returns True when this is news: the route did not fail for this reason before."""
        return self._note(key, "failed", reason, now)

    def conflict(self, key: RouteKey, reason: str, now: float) -> bool:
        return self._note(key, "conflict", reason, now)

    def _note(self, key: RouteKey, kind: Literal["failed", "conflict"], reason: str, now: float) -> bool:
        earlier = self.by_key.get(key)
        pause = FIRST_PAUSE if earlier is None else min(earlier.pause * 2, LONGEST_PAUSE)
        self.by_key[key] = Trouble(kind, reason, now + pause, pause)
        self._earliest = None
        return earlier is None or (earlier.kind, earlier.reason) != (kind, reason)

    def clear(self, key: RouteKey) -> None:
        self.by_key.pop(key, None)

    def may_repair(self, key: RouteKey, now: float) -> bool:
        """Count a repair of the route; False once somebody undoes them faster than we should redo them."""
        begun, count = self._repairs.get(key, (now, 0))
        if now - begun > FIGHT_WINDOW:
            begun, count = now, 0
        if count >= FIGHT_LIMIT:
            due = begun + FIGHT_WINDOW
            self.by_key[key] = Trouble(
                "fight",
                f"another program changed or deleted it {count + 1} times within {FIGHT_WINDOW:.0f} s; "
                f"find and stop that program (the route is restored once a minute)",
                due,
                FIRST_PAUSE,
            )
            self._earliest = None
            return False
        self._repairs[key] = (begun, count + 1)
        return True

    def take_due(self, now: float) -> list[RouteKey]:
        """Keys that are worth another try; their troubles stay until they are solved."""
        if not self.by_key or (self._earliest is not None and now < self._earliest):
            return []
        due = [key for key, trouble in self.by_key.items() if trouble.due <= now]
        for key in due:
            self.by_key[key].due = now + self.by_key[key].pause
        self._earliest = min(trouble.due for trouble in self.by_key.values())
        return due

    def retry_now(self, now: float) -> None:
        """The world changed (a link came up): try all failed ones at once. A fight is not retried early."""
        for trouble in self.by_key.values():
            if trouble.kind != "fight":
                trouble.due, trouble.pause = now, FIRST_PAUSE
        self._earliest = None

    def retry_key(self, key: RouteKey, now: float) -> bool:
        trouble = self.by_key.get(key)
        if trouble is None or trouble.kind == "fight":
            return False
        trouble.due, self._earliest = now, None
        return True

    def wait(self, now: float) -> float | None:
        """Seconds until something is due; None: nothing ever is."""
        if not self.by_key:
            return None
        if self._earliest is None:
            self._earliest = min(trouble.due for trouble in self.by_key.values())
        return max(0.05, self._earliest - now)

    def forget_old(self, now: float) -> None:
        """Drop counts of repairs that no longer matter."""
        self._repairs = {key: held for key, held in self._repairs.items() if now - held[0] <= FIGHT_WINDOW}

    def listed(self, *kinds: str) -> list[tuple[RouteKey, str]]:
        return [(key, trouble.reason) for key, trouble in self.by_key.items() if trouble.kind in kinds]
