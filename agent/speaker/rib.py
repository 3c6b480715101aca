"""The speaker's two tables per peer: what it told us, and what we should be telling it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable

from agent.speaker.nlri import Packed
from agent.speaker.settings import Batch, Update
from felix_like.model.address import IpVersion
from felix_like.model.path import Attributes

BATCH = 200
"""NLRI encoded in one turn of the loop."""
_ROUND = 1000
_VERSIONS: tuple[IpVersion, IpVersion] = (4, 6)


class Interned:
    """Keeps equal attributes one object, so that tables share them and grouping is by identity."""

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._known: dict[Attributes, Attributes] = {}

    def __call__(self, attributes: Attributes) -> Attributes:
        if len(self._known) >= self._most:
            self._known.clear()
        return self._known.setdefault(attributes, attributes)


class AdjRibIn:
    """Paths as received, kept for the replay to an agent that comes back."""

    def __init__(self) -> None:
        self.tables: dict[IpVersion, dict[Packed, Attributes]] = {4: {}, 6: {}}
        self.end_of_rib: set[IpVersion] = set()

    def __len__(self) -> int:
        return len(self.tables[4]) + len(self.tables[6])

    def clear(self) -> None:
        self.tables = {4: {}, 6: {}}
        self.end_of_rib = set()

    def apply(self, update: Update) -> list[tuple[IpVersion, Iterable[Packed]]]:
        """Take an UPDATE in; returns the NLRI that changed."""
        changed: list[tuple[IpVersion, Iterable[Packed]]] = []
        for version, nlri in update.withdrawn:
            table = self.tables[version]
            changed.append((version, [one for one in nlri if table.pop(one, None) is not None]))
        for version, attributes, nlri in update.announced:
            self.tables[version].update(dict.fromkeys(nlri, attributes))
            changed.append((version, nlri))
        return changed


class AdjRibOut:
    """What one peer should have from us, and what of it still has to be said.

    A prefix that changes ten times before the peer has room is said once, as it is then: the
    backlog is never larger than the table.
    """

    def __init__(self) -> None:
        self.wanted: dict[IpVersion, dict[Packed, Attributes]] = {4: {}, 6: {}}
        self._sent: dict[IpVersion, set[Packed]] = {4: set(), 6: set()}
        self._dirty: dict[IpVersion, dict[Packed, None]] = {4: {}, 6: {}}
        self._batches: deque[Batch] = deque()
        self._marked: dict[IpVersion, set[Packed]] | None = None
        self._up = False

    def __len__(self) -> int:
        return len(self.wanted[4]) + len(self.wanted[6])

    def put(self, version: IpVersion, attributes: Attributes, nlri: Iterable[Packed]) -> bool:
        """Want these with those (interned) attributes. True when something has to be said."""
        wanted, dirty = self.wanted[version], self._dirty[version]
        if self._marked is not None:
            nlri = list(nlri)
            self._marked[version].update(nlri)
        changed = False
        for one in nlri:
            if wanted.get(one) is not attributes and wanted.get(one) != attributes:
                wanted[one] = attributes
                if self._up:
                    dirty[one] = None
                    changed = True
        return changed

    def drop(self, version: IpVersion, nlri: Iterable[Packed]) -> bool:
        wanted, dirty = self.wanted[version], self._dirty[version]
        changed = False
        for one in nlri:
            if wanted.pop(one, None) is not None and self._up:
                dirty[one] = None
                changed = True
        return changed

    def mark(self) -> None:
        """A sync begins: `sweep` will drop what is not put from here on."""
        self._marked = {4: set(), 6: set()}

    def unmark(self) -> None:
        """The sync was broken off: nothing is swept."""
        self._marked = None

    def sweep(self) -> bool:
        marked, self._marked = self._marked, None
        if marked is None:
            return False
        changed = False
        for version in _VERSIONS:
            gone = [one for one in self.wanted[version] if one not in marked[version]]
            changed |= self.drop(version, gone)
        return changed

    def session_up(self) -> None:
        self.session_down()
        self._up = True
        for version in _VERSIONS:
            self._dirty[version] = dict.fromkeys(self.wanted[version])

    def session_down(self) -> None:
        self._up = False
        self._sent = {4: set(), 6: set()}
        self._dirty = {4: {}, 6: {}}
        self._batches.clear()

    def refresh(self, version: IpVersion) -> None:
        """Say all of a family again (RFC 2918)."""
        if self._up:
            self._dirty[version] = self._dirty[version] | dict.fromkeys(self.wanted[version])

    def pending(self) -> bool:
        return bool(self._batches or self._dirty[4] or self._dirty[6])

    def next_batch(self) -> Batch | None:
        """The next NLRI to send, which then count as sent."""
        while not self._batches:
            version: IpVersion = 4 if self._dirty[4] else 6
            if not self._dirty[version]:
                return None
            self._group(version)
        return self._batches.popleft()

    def _group(self, version: IpVersion) -> None:
        dirty, wanted, sent = self._dirty[version], self.wanted[version], self._sent[version]
        groups: dict[int, tuple[Attributes | None, list[Packed]]] = {}
        for one in list(itertools.islice(dirty, _ROUND)):
            del dirty[one]
            attributes = wanted.get(one)
            if attributes is not None:
                sent.add(one)
            elif one in sent:
                sent.discard(one)
            else:
                continue
            groups.setdefault(id(attributes), (attributes, []))[1].append(one)
        for attributes, nlri in groups.values():
            for at in range(0, len(nlri), BATCH):
                self._batches.append(Batch(version, attributes, nlri[at : at + BATCH]))
