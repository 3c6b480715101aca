"""What the agent has not been told yet: never a queue of events, always the difference in state.

An agent that does not read costs at most one key per path; when it reads again it hears the newest
state of each, once.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from agent.speaker.nlri import Nlri, Packed
from agent.speaker.protocol import (
    MAX_NLRI,
    EndOfRib,
    Event,
    Hello,
    Learned,
    LimitExceeded,
    PeerDown,
    PeerGone,
    PeerState,
    PeerUp,
    ReplayBegin,
    ReplayEnd,
    Withdrawn,
    encode,
)
from agent.speaker.rib import AdjRibIn
from felix_like.model.address import Address, IpVersion
from felix_like.model.path import Attributes

_VERSIONS: tuple[IpVersion, IpVersion] = (4, 6)
NOTICES = 10_000
"""Acknowledgements and notices that may wait; beyond, the agent is cut off."""


class Told(Protocol):
    """The side of a peer that the agent hears about."""

    rib_in: AdjRibIn

    @property
    def address(self) -> Address: ...
    def state_event(self) -> PeerState: ...
    def up_event(self) -> PeerUp | None: ...
    def limit_event(self) -> LimitExceeded | None: ...


@dataclass(slots=True)
class _Pending:
    gone: bool = False
    state: bool = False
    down: PeerDown | None = None
    limit: bool = False
    up: bool = False
    dirty: dict[IpVersion, dict[Packed, None]] = field(default_factory=lambda: {4: {}, 6: {}})
    end_of_rib: set[IpVersion] = field(default_factory=set)


class Feed:
    """One agent connection's backlog, beginning with the replay of everything."""

    def __init__(self, hello: Hello, peers: Iterable[Told]) -> None:
        self._first: deque[Event] = deque([hello, ReplayBegin()])
        self._peers: dict[Address, Told] = {}
        self._pending: dict[Address, _Pending] = {}
        self._replaying = True
        for peer in peers:
            pending = self._of(peer)
            pending.state = pending.limit = True
            if peer.up_event() is not None:
                pending.up = True
                pending.dirty = {v: dict.fromkeys(peer.rib_in.tables[v]) for v in _VERSIONS}
                pending.end_of_rib = set(peer.rib_in.end_of_rib)

    @property
    def overflowing(self) -> bool:
        return len(self._first) > NOTICES

    @property
    def busy(self) -> bool:
        """`take` would give something."""
        return bool(self._first or self._pending or self._replaying)

    def say(self, event: Event) -> None:
        """An event that is not state: an acknowledgement or a notice. Goes before all state."""
        self._first.append(event)

    def state(self, peer: Told) -> None:
        self._of(peer).state = True

    def limit(self, peer: Told) -> None:
        self._of(peer).limit = True

    def up(self, peer: Told) -> None:
        self._of(peer).up = True

    def down(self, peer: Told, reason: str, graceful: bool, *, ours: bool = False) -> None:
        pending = self._of(peer)
        if pending.down is not None:
            graceful, ours = graceful and pending.down.graceful, ours and pending.down.ours
        pending.down = PeerDown(peer.address, reason, graceful, ours)
        pending.up = False
        pending.dirty = {4: {}, 6: {}}
        pending.end_of_rib = set()

    def changed(self, peer: Told, version: IpVersion, nlri: Iterable[Packed]) -> None:
        self._of(peer).dirty[version].update(dict.fromkeys(nlri))

    def end_of_rib(self, peer: Told, version: IpVersion) -> None:
        self._of(peer).end_of_rib.add(version)

    def gone(self, peer: Told) -> None:
        self._of(peer)
        self._pending[peer.address] = _Pending(gone=True)

    def take(self, budget: int) -> bytes:
        """Lines of about `budget` octets; empty when there is nothing to say."""
        lines: list[bytes] = []
        size = 0
        while size < budget:
            events = self._next()
            if events is None:
                break
            for event in events:
                line = encode(event)
                lines.append(line)
                size += len(line)
        return b"".join(lines)

    def _of(self, peer: Told) -> _Pending:
        self._peers[peer.address] = peer
        pending = self._pending.get(peer.address)
        if pending is None:
            pending = self._pending[peer.address] = _Pending()
        return pending

    def _next(self) -> list[Event] | None:
        if self._first:
            return [self._first.popleft()]
        for address, pending in self._pending.items():
            events = self._of_peer(self._peers[address], pending)
            if events:
                # The peer waits behind the others: one with a large table must not hide their news.
                self._pending[address] = self._pending.pop(address)
                return events
            del self._pending[address]
            del self._peers[address]
            return []
        if self._replaying:
            self._replaying = False
            return [ReplayEnd()]
        return None

    def _of_peer(self, peer: Told, pending: _Pending) -> list[Event]:
        events: list[Event] = []
        if pending.gone:
            pending.gone = False
            events.append(PeerGone(peer.address))
        if pending.down is not None:
            events.append(pending.down)
            pending.down = None
        if pending.state:
            pending.state = False
            events.append(peer.state_event())
        if pending.limit:
            pending.limit = False
            exceeded = peer.limit_event()
            events += [exceeded] if exceeded is not None else []
        if pending.up:
            pending.up = False
            up = peer.up_event()
            events += [up] if up is not None else []
        for version in _VERSIONS:
            if not events and pending.dirty[version]:
                return self._paths(peer, pending, version)
        if not events and pending.end_of_rib:
            events = [EndOfRib(peer.address, version) for version in sorted(pending.end_of_rib)]
            pending.end_of_rib = set()
        return events

    def _paths(self, peer: Told, pending: _Pending, version: IpVersion) -> list[Event]:
        dirty, table = pending.dirty[version], peer.rib_in.tables[version]
        groups: dict[int, tuple[Attributes | None, list[Packed]]] = {}
        for one in list(itertools.islice(dirty, MAX_NLRI)):
            del dirty[one]
            attributes = table.get(one)
            groups.setdefault(id(attributes), (attributes, []))[1].append(one)
        return [
            Withdrawn(peer.address, Nlri.joined(version, nlri))
            if attributes is None
            else Learned(peer.address, attributes, Nlri.joined(version, nlri))
            for attributes, nlri in groups.values()
        ]
