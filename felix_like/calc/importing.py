"""Import: a peer's announcements, checked and judged, into Adj-RIB-In; and again when the rules change.

Nothing an announcement says is changed on the way in, so that judging it again needs no new UPDATE
(soft reconfiguration from Adj-RIB-In).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from felix_like.calc.origin import Judge, Validator
from felix_like.model.address import Address, Prefix
from felix_like.model.bgp import Peer
from felix_like.model.path import Attributes, Path
from felix_like.rib.adj_rib_in import AdjRibIn
from felix_like.rib.import_policy import Self, Source, refuse_attributes, refuse_prefix
from felix_like.rib.paths import Paths
from felix_like.rib.prefix_table import PrefixTable, subnets


class Importer:
    """The way into the RIB. `peers` and `us` are the rules of the moment, set by the owner."""

    def __init__(self, paths: Paths, validator: Validator, prefix_limit: int) -> None:
        self.peers: Mapping[Address, Peer] = {}
        self.us = Self()
        self._paths = paths
        self._validator = validator
        self._prefix_limit = prefix_limit
        self._sources: dict[Address, Source] = {}

    def source(self, address: Address) -> Source:
        """The peer as an announcer, from its configuration and its (last) session."""
        source = self._sources.get(address)
        if source is None:
            rib = self._paths.by_peer.get(address)
            session = rib.last_session if rib is not None else None
            source = self._sources[address] = Source(address, self.peers.get(address), session)
        return source

    def forget_source(self, address: Address) -> None:
        """Its configuration or its session changed."""
        self._sources.pop(address, None)

    def learned(self, peer: Address, attributes: Attributes, prefixes: Iterable[Prefix]) -> None:
        """One UPDATE's NLRI with the attributes they share."""
        source = self.source(peer)
        refusal, judge = self._rules(source, attributes)
        rib, next_hop = self._paths.of(peer), attributes.next_hop
        paths, store, stale = rib.paths, self._paths.store, rib.stale
        # What is stale goes, or is announced again: it must not keep out what a restarted peer has instead.
        room = self.limit(source) - len(paths) + len(stale)
        for prefix in prefixes:
            old = paths.get(prefix)
            if old is None:
                if room <= 0:
                    rib.over_limit += 1
                    continue
                room -= 1
            else:
                if prefix in stale:
                    rib.refreshed(prefix)
                    room -= 1
                if old.attributes is attributes or old.attributes == attributes:
                    continue
            rejection = refusal or refuse_prefix(source, prefix, next_hop)
            store(paths, Path(prefix, peer, attributes, judge(prefix), rejection), old)

    def withdrawn(self, peer: Address, prefixes: Iterable[Prefix]) -> None:
        rib = self._paths.by_peer.get(peer)
        if rib is None:
            return
        gone = []
        for prefix in prefixes:
            path = rib.paths.pop(prefix, None)
            if path is not None:
                rib.refreshed(prefix)
                gone.append(path)
        self._paths.forget(gone)

    def limit(self, source: Source) -> int:
        """Prefixes this peer may announce."""
        set_for_it = source.peer.prefix_limit if source.peer is not None else None
        return self._prefix_limit if set_for_it is None else set_for_it

    def judge_all(self) -> None:
        """Something changed that every verdict may depend on."""
        for rib in self._paths.by_peer.values():
            self.judge_peer(rib)

    def judge_peer(self, rib: AdjRibIn) -> None:
        self._judge(rib, rib.paths.values())

    def judge_inside(self, cidrs: Collection[Prefix]) -> None:
        """The holders of these blocks changed: judge what is announced of them."""
        by_peer: dict[Address, list[Path]] = {}
        for prefix in self.announced_inside(cidrs):
            for path in self._paths.by_prefix[prefix]:
                by_peer.setdefault(path.peer, []).append(path)
        for peer, paths in by_peer.items():
            self._judge(self._paths.by_peer[peer], paths)

    def announced_inside(self, cidrs: Collection[Prefix]) -> list[Prefix]:
        """Announced prefixes in any of these; by asking for each possible one where that is less work
        than looking at all."""
        known = self._paths.by_prefix
        possible = sum(1 << min(cidr.bits - cidr.length + 1, 64) for cidr in cidrs)
        if possible > len(known):
            wanted: PrefixTable[None] = PrefixTable()
            for cidr in cidrs:
                wanted.put(cidr, None)
            return [prefix for prefix in known if wanted.longest(prefix) is not None]
        return [prefix for cidr in cidrs for prefix in subnets(cidr) if prefix in known]

    def _judge(self, rib: AdjRibIn, paths: Collection[Path]) -> None:
        source = self.source(rib.peer)
        before: Attributes | None = None
        rules: tuple[str | None, Judge] | None = None
        for path in list(paths):
            attributes = path.attributes
            if rules is None or attributes is not before:  # neighbours mostly came in one UPDATE
                rules, before = self._rules(source, attributes), attributes
            refusal, judge = rules
            rejection = refusal or refuse_prefix(source, path.prefix, attributes.next_hop)
            origin = judge(path.prefix)
            if rejection != path.rejection or origin != path.origin:
                self._paths.store(rib.paths, replace(path, origin=origin, rejection=rejection), path)

    def _rules(self, source: Source, attributes: Attributes) -> tuple[str | None, Judge]:
        return refuse_attributes(source, attributes, self.us), self._validator.judge(source, attributes)
