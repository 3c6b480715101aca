"""What a copying controller has to look at, and when. Pure: time is an argument, in seconds.

A key waits for one turn however often it is named. One that failed waits longer each time; one that others
keep changing back waits, too: two writers that never agree must not fill etcd's history.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 60.0
"""Seconds until a key that failed, or that has to be written again and again, gets its next turn."""
CALM = 120.0
"""Seconds after which an earlier write of a key is forgotten."""
QUARREL = 5
"""Writes of one key in a row, each undone within CALM, that are worth a word."""


@dataclass(slots=True)
class Backlog:
    """Keys that wait for their turn. A key in work is not handed out again before `done` or `failed`.

    What is wanted goes first: so a copy is made before one is deleted whose object went while nobody looked.
    """

    _first: dict[str, None] = field(default_factory=dict)
    _ready: dict[str, None] = field(default_factory=dict)
    _delayed: dict[str, float] = field(default_factory=dict)
    _alarms: list[tuple[float, str]] = field(default_factory=list)
    """A heap; only what `_delayed` says, too, is true."""
    _busy: dict[str, float | None] = field(default_factory=dict)
    """Keys in work, and when they get another turn because they were named meanwhile."""
    _failures: dict[str, int] = field(default_factory=dict)
    _written: dict[str, tuple[int, float]] = field(default_factory=dict)
    _purged_at: float = 0.0

    def __len__(self) -> int:
        return len(self._first) + len(self._ready) + len(self._delayed) + len(self._busy)

    def wanted(self, key: str, now: float) -> None:
        """What should be there has changed: at once, whatever was before."""
        self._failures.pop(key, None)
        self._written.pop(key, None)
        self._put(key, now, now)
        if self._ready.pop(key, 0) is None:
            self._first[key] = None

    def found(self, key: str, now: float) -> None:
        """What is there has changed: at once, or later when we have written it a moment ago."""
        count, at = self._written.get(key, (0, 0.0))
        again = count > 1 and now - at < CALM
        self._put(key, max(now, at + _pause(count)) if again else now, now)

    def take(self, now: float, most: int) -> list[str]:
        """Keys whose turn it is; of each sort the longest waiting first."""
        while self._alarms and self._alarms[0][0] <= now:
            due, key = heapq.heappop(self._alarms)
            if self._delayed.get(key) == due:
                del self._delayed[key]
                self._ready[key] = None
        taken: list[str] = []
        for queue in (self._first, self._ready):
            while queue and len(taken) < most:
                key = next(iter(queue))
                del queue[key]
                self._busy[key] = None
                taken.append(key)
        return taken

    def next_due(self) -> float | None:
        """When the next key's turn comes; None: none waits."""
        if self._first or self._ready:
            return 0.0
        while self._alarms and self._delayed.get(self._alarms[0][1]) != self._alarms[0][0]:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def done(self, key: str, now: float, *, wrote: bool) -> int:
        """The key is right. Returns how often it has been written in a row."""
        self._failures.pop(key, None)
        count = 0
        if wrote:
            count, at = self._written.get(key, (0, now))
            count = count + 1 if now - at < CALM else 1
            self._written[key] = (count, now)
            if now - self._purged_at > CALM:
                self._written = {key: one for key, one in self._written.items() if now - one[1] < CALM}
                self._purged_at = now
        self._release(key, now)
        return count

    def failed(self, key: str, now: float) -> None:
        """Another turn later, unless what is wanted changes before."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        self._release(key, now)
        self._put(key, now + _pause(count), now)

    def _release(self, key: str, now: float) -> None:
        due = self._busy.pop(key, None)
        if due is not None:
            self._put(key, due, now)

    def _put(self, key: str, due: float, now: float) -> None:
        """The earlier of this turn and the one that it has already."""
        if key in self._busy:
            before = self._busy[key]
            self._busy[key] = due if before is None else min(before, due)
        elif key in self._first or key in self._ready:
            pass
        elif due <= now:
            self._delayed.pop(key, None)
            self._ready[key] = None
        elif due < self._delayed.get(key, float("inf")):
            self._delayed[key] = due
            heapq.heappush(self._alarms, (due, key))


def _pause(count: int) -> float:
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(count - 1, 10))


@dataclass(slots=True)
class Doubt:
    """Whether to believe that Kubernetes has nothing of a kind any more, while etcd has copies.

    An API server whose own data was wiped says so, too, and every copy would be deleted. Nothing left after
    the last object went is believed; nothing in a first answer, or after several went at once, only when it
    stays so.
    """

    patience: float | None
    """Seconds that it has to stay so; None: it is never believed."""
    since: float | None = None

    def told(self, before: int, after: int, now: float, *, first: bool) -> None:
        """The number of objects before and after a batch; `first` for the first answer."""
        if after:
            self.since = None
        elif first or before > 1:
            self.since = now

    def until(self) -> float:
        """When nothing is held back any more."""
        if self.since is None:
            return 0.0
        return float("inf") if self.patience is None else self.since + self.patience
