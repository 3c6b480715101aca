"""What is still to be told to the broker. No I/O; the clock comes in.

State is kept per topic, the newest wins: a broker that is slow or away costs one message per topic. Events
wait in a bounded queue, the oldest go first when it is full.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec

from agent.telemetry import summary
from agent.telemetry.changes import changes, lost
from agent.telemetry.payloads import Counts, Event, Payload, Peers, Status
from agent.telemetry.summary import Document

REFRESH = 60.0
"""Seconds after which a retained message is written again: its time says that the node is alive."""
PAUSE = 5.0
"""Seconds between two messages of a kind, unless something happened: counts change with every route, and a
peer that is down goes through its states for ever."""
MOST_EVENTS = 200


@dataclass(frozen=True, slots=True)
class Message:
    """One publication below the node's branch: `kind` is the topic's last level."""

    kind: str
    content: Payload
    retain: bool
    stands_for: int = 0
    """Dropped events that it counts."""

    @property
    def payload(self) -> bytes:
        return summary.encode(self.content)


@dataclass(slots=True)
class Slot:
    """The newest state of one topic."""

    wanted: Payload | None = None
    told: Payload | None = None
    """What the broker has; None: nobody knows."""
    told_at: float = 0.0


class Outgoing:
    """Told: status documents. Asked: the next message; told again when the broker has it."""

    def __init__(self, node: str, cluster: str) -> None:
        self._node = node
        self._cluster = cluster
        self._document: Document | None = None
        self._slots = {"status": Slot(), "peers": Slot(), "counts": Slot()}
        self._events: deque[Event] = deque()
        self._dropped = 0

    def observe(self, document: Document) -> None:
        """The node's status is now this."""
        for event in changes(self._document, document, self._cluster):
            self._queue(event)
        self._document = document
        self._slots["status"].wanted = summary.status(document, self._cluster)
        self._slots["peers"].wanted = summary.peers(document, self._cluster)
        self._slots["counts"].wanted = summary.counts(document, self._cluster)

    def connected(self) -> None:
        """A broker is there, perhaps one that knows nothing: tell every state."""
        for slot in self._slots.values():
            slot.told = None

    def stop(self, now: float) -> None:
        """The agent ends in order: only that is still worth telling. `now` in seconds since the epoch."""
        status = self._slots["status"]
        if status.wanted is not None:
            status.wanted = msgspec.structs.replace(status.wanted, state="stopped", time=now)

    def next(self, now: float) -> Message | None:
        """The most urgent message; None when all is told. `now` is monotonic seconds."""
        for kind, slot in self._slots.items():
            if slot.wanted is not None and self._due(slot, now):
                return Message(kind, slot.wanted, retain=True)
        if self._dropped:
            event = lost(self._node, self._cluster, self._events[0].time, self._dropped)
            return Message("events", event, retain=False, stands_for=self._dropped)
        return Message("events", self._events[0], retain=False) if self._events else None

    def delivered(self, message: Message, now: float) -> None:
        """The broker confirmed it."""
        if message.kind != "events":
            slot = self._slots[message.kind]
            # The state may have moved on meanwhile: what the broker has is what was sent.
            slot.told, slot.told_at = message.content, now
        elif message.stands_for:
            self._dropped -= message.stands_for
        elif self._events and self._events[0] is message.content:
            self._events.popleft()

    def wait(self, now: float) -> float:
        """Seconds until `next` may have something that no new document brings."""
        ages = [now - slot.told_at for slot in self._slots.values() if slot.told is not None]
        return max(0.1, min([PAUSE, *(REFRESH - age for age in ages)]))

    def _due(self, slot: Slot, now: float) -> bool:
        if slot.told is None or now - slot.told_at >= REFRESH:
            return True
        if now - slot.told_at < PAUSE and gist(slot.wanted) == gist(slot.told):
            return False
        return not same(slot.wanted, slot.told)

    def _queue(self, event: Event) -> None:
        if len(self._events) >= MOST_EVENTS:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)


def gist(payload: Payload | None) -> object:
    """What is told at once when it changes."""
    match payload:
        case Status(state=state):
            parts = tuple(
                part.state if part is not None else ""
                for part in (payload.datastore, payload.kubernetes, payload.speaker)
            )
            return state, parts, payload.failed.count, payload.conflicts.count, payload.refusals.count
        case Peers(total=total, established=established):
            return total, established
        case Counts(routes=routes):
            return routes.wanted > 0, routes.installed == routes.wanted
    return None


def same(one: Payload | None, other: Payload | None) -> bool:
    """Equal but for the time of writing."""
    if one is None or other is None:
        return one is other
    return one == msgspec.structs.replace(other, time=one.time)
