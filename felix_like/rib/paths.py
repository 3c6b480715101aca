"""Every peer's Adj-RIB-In together, indexed by prefix and by next hop."""

from __future__ import annotations

from collections.abc import Iterable

from felix_like.model.address import Address, Prefix
from felix_like.model.path import Path
from felix_like.model.verdict import Validity
from felix_like.rib.adj_rib_in import AdjRibIn


class Paths:
    """The one place that changes Adj-RIB-Ins, so that the indexes and `dirty` cannot drift from them.

    `accepts` says whether a path may be used as far as policy is concerned; only the next hops of such
    paths are tracked, or a peer could make the kernel resolve anything.
    """

    __slots__ = ("by_next_hop", "by_peer", "by_prefix", "dirty", "observing")

    def __init__(self, *, observing: bool) -> None:
        self.by_peer: dict[Address, AdjRibIn] = {}
        self.by_prefix: dict[Prefix, tuple[Path, ...]] = {}
        self.by_next_hop: dict[Address, set[Prefix]] = {}
        self.dirty: set[Prefix] = set()
        """Prefixes to decide again."""
        self.observing = observing
        """True: origin validation's verdict does not keep a path from being used."""

    def of(self, peer: Address) -> AdjRibIn:
        rib = self.by_peer.get(peer)
        if rib is None:
            rib = self.by_peer[peer] = AdjRibIn(peer)
        return rib

    def accepts(self, path: Path) -> bool:
        return path.rejection is None and (self.observing or path.origin.validity is Validity.VALID)

    def store(self, paths: dict[Prefix, Path], path: Path, old: Path | None) -> None:
        """Put a path into its peer's `paths`, in place of `old`."""
        prefix = path.prefix
        paths[prefix] = path
        self.dirty.add(prefix)
        others = self.by_prefix.get(prefix)
        if others is None or (len(others) == 1 and others[0] is old):
            self.by_prefix[prefix] = (path,)
        else:
            self.by_prefix[prefix] = (*[p for p in others if p is not old], path)
        if path.rejection is None and (self.observing or path.origin.validity is Validity.VALID):
            next_hop = path.attributes.next_hop
            users = self.by_next_hop.get(next_hop)
            if users is None:
                users = self.by_next_hop[next_hop] = set()
            users.add(prefix)
        if old is not None:
            self._unused(old)

    def forget(self, gone: Iterable[Path]) -> None:
        """Paths that have left their Adj-RIB-In."""
        for path in gone:
            prefix = path.prefix
            self.dirty.add(prefix)
            others = self.by_prefix[prefix]
            if len(others) == 1:
                del self.by_prefix[prefix]
            else:
                self.by_prefix[prefix] = tuple(p for p in others if p is not path)
            self._unused(path)

    def _unused(self, old: Path) -> None:
        """Take the prefix from the next hop's users when no path that may be used needs it there."""
        next_hop = old.attributes.next_hop
        users = self.by_next_hop.get(next_hop)
        if users is None or old.prefix not in users:
            return
        for path in self.by_prefix.get(old.prefix, ()):
            if path.attributes.next_hop == next_hop and self.accepts(path):
                return
        users.discard(old.prefix)
        if not users:
            del self.by_next_hop[next_hop]
