"""The agent's side of Adj-RIB-Out: what the speaker should advertise, as commands. No I/O.

Changes merge per peer and prefix, the newest wins, so a speaker that is slow or away costs no more
than the table. Peers with the same change share a command, NLRI with the same attributes too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from agent.speaker.nlri import Nlri
from agent.speaker.protocol import (
    MAX_NLRI,
    Advertise,
    Command,
    FullSync,
    Limits,
    Reload,
    SyncBegin,
    SyncEnd,
    Withdraw,
)
from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.path import Attributes

Adverts = Mapping[Address, Mapping[Prefix, Attributes | None]]


class Outbox:
    """Hands out the next commands, numbered. `connected` begins a resynchronisation by diff."""

    def __init__(self) -> None:
        self.wanted: dict[Address, dict[Prefix, Attributes]] = {}
        self.full_sync = False
        self._dirty: dict[Prefix, set[Address]] = {}
        self._limits: tuple[dict[Address, int], int | None] | None = None
        self._limits_due = False
        self._reload: str | None = None
        self._sync_begin = self._sync_end = self._full_sync_due = False
        self._seq = 0

    def merge(self, changes: Adverts) -> None:
        """Attributes: advertise so; None: withdraw."""
        for peer, table in changes.items():
            wanted = self.wanted.setdefault(peer, {})
            for prefix, attributes in table.items():
                if attributes is None:
                    wanted.pop(prefix, None)
                else:
                    wanted[prefix] = attributes
                self._dirty.setdefault(prefix, set()).add(peer)
            if not wanted:
                del self.wanted[peer]

    def finish_sync(self) -> None:
        """All has been said once: what the speaker has beyond `wanted` goes, End-of-RIB may be sent."""
        if not self.full_sync:
            self.full_sync = True
            self._resync()

    def limit(self, peers: Mapping[Address, int], default: int | None) -> None:
        self._limits = (dict(peers), default)
        self._limits_due = True

    def reload(self, path: str) -> None:
        self._reload = path

    def connected(self) -> None:
        """A speaker is there, perhaps a new one, and its table is not known."""
        self._limits_due = self._limits is not None
        self._sync_begin = self._sync_end = self._full_sync_due = False
        self._resync()

    def pending(self) -> bool:
        return bool(
            self._dirty
            or self._limits_due
            or self._reload is not None
            or self._sync_begin
            or self._sync_end
            or self._full_sync_due
        )

    def commands(self) -> Iterator[Command]:
        """The next few commands, oldest duty first. Empty when nothing is pending."""
        if self._limits_due and self._limits is not None:
            self._limits_due = False
            yield Limits(self._next(), *self._limits)
        if self._reload is not None:
            path, self._reload = self._reload, None
            yield Reload(self._next(), path)
        if self._sync_begin:
            self._sync_begin = False
            yield SyncBegin(self._next())
        if self._dirty:
            yield from self._paths()
        elif self._sync_end:
            self._sync_end = False
            yield SyncEnd(self._next())
        elif self._full_sync_due:
            self._full_sync_due = False
            yield FullSync(self._next())

    def _resync(self) -> None:
        # An agent that has not heard everything itself only adds: its silence means nothing yet.
        self._sync_begin = self._sync_end = self._full_sync_due = self.full_sync
        for peer, table in self.wanted.items():
            for prefix in table:
                self._dirty.setdefault(prefix, set()).add(peer)

    def _paths(self) -> Iterator[Command]:
        groups: dict[tuple[int, Attributes | None, tuple[Address, ...]], list[Prefix]] = {}
        for prefix in list(itertools.islice(self._dirty, MAX_NLRI)):
            per_attributes: dict[Attributes | None, list[Address]] = {}
            for peer in self._dirty.pop(prefix):
                attributes = self.wanted.get(peer, {}).get(prefix)
                per_attributes.setdefault(attributes, []).append(peer)
            for attributes, peers in per_attributes.items():
                groups.setdefault((prefix.version, attributes, tuple(sorted(peers))), []).append(prefix)
        for (version, attributes, peers_of), prefixes in groups.items():
            family: IpVersion = 4 if version == 4 else 6
            nlri = Nlri.of(family, prefixes)
            if attributes is None:
                yield Withdraw(self._next(), peers_of, nlri)
            else:
                yield Advertise(self._next(), peers_of, attributes, nlri)

    def _next(self) -> int:
        self._seq += 1
        return self._seq
