"""The calculation's working tables: what has been heard, who holds what, and what was decided."""

from __future__ import annotations

from collections.abc import Iterable

from felix_like.calc.importing import Importer
from felix_like.calc.origin import OriginMode, Validator
from felix_like.calc.ownership import Ownership
from felix_like.calc.routes import Exports, KernelRoutes
from felix_like.model.address import Address
from felix_like.model.desired import Desired, LocalNode
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node
from felix_like.rib.adj_rib_out import AdjRibOut, ExportFilter
from felix_like.rib.import_policy import Self
from felix_like.rib.loc_rib import LocRib
from felix_like.rib.paths import Paths


class Tables:
    """Wired together once; the graph drives them, the explanation reads them."""

    __slots__ = ("adj_rib_out", "exports", "importer", "kernel", "loc_rib", "ownership", "paths")

    def __init__(self, local: LocalNode, mode: OriginMode) -> None:
        self.ownership = Ownership(local)
        self.paths = Paths(observing=mode is not OriginMode.ENFORCE)
        self.importer = Importer(self.paths, Validator(self.ownership, mode, local.name), local.prefix_limit)
        self.loc_rib = LocRib(self.paths, self.importer.source)
        self.kernel = KernelRoutes(self.loc_rib, local.route_priority)
        self.exports = Exports(self.importer.source)
        self.adj_rib_out = AdjRibOut()

    def saw_router_id(self, address: Address) -> None:
        """A peer's session or configuration is new: it may tell us a node's router ID."""
        source = self.importer.source(address)
        node = source.peer.remote_node if source.peer is not None else None
        if (
            node is not None
            and source.session is not None
            and self.ownership.saw_router_id(node, source.session.router_id)
        ):
            self.importer.judge_all()

    def adopt(self, old: Desired, new: Desired, node: Node | None) -> bool:
        """Act on `new` instead of `old`; `node` is this node. True: every path must be judged again."""
        dirty = self.paths.dirty
        dirty.update(old.blackholes ^ new.blackholes)
        for prefix in old.originated.keys() | new.originated.keys():
            if old.originated.get(prefix) != new.originated.get(prefix):
                dirty.add(prefix)
        changed = {
            address
            for address in old.peers.keys() | new.peers.keys()
            if old.peers.get(address) != new.peers.get(address)
        }
        if changed:
            self._change_peers(new, changed)
        us = self._us(new, node)
        differs = us != self.importer.us
        self.importer.us = us
        return differs

    def _change_peers(self, new: Desired, changed: set[Address]) -> None:
        ribs, dirty = self.paths.by_peer, self.paths.dirty
        before = {address: self.exports.targets(address) for address in ribs}
        self.importer.peers = new.peers
        self.exports.set_peers(new.peers)
        for address in changed:
            self.importer.forget_source(address)
            if address in ribs:
                self.saw_router_id(address)
                self.importer.judge_peer(ribs[address])
                dirty.update(ribs[address].paths)
        for address, rib in ribs.items():
            if self.exports.targets(address) != before[address]:
                dirty.update(rib.paths)
        dirty.update(new.originated)

    def _us(self, desired: Desired, node: Node | None) -> Self:
        own = {a.version: a for a in (node.addresses if node is not None else ())}
        if own != self.exports.own:
            self.exports.own = own
            self.paths.dirty.update(self.adj_rib_out.prefixes())
        peers = desired.peers.values()
        return Self(
            addresses=frozenset({*own.values(), *(peer.local_address for peer in peers)}),
            router_ids=frozenset(peer.router_id for peer in peers),
            cluster_ids=frozenset(peer.cluster_id for peer in peers if peer.cluster_id),
            asn=desired.asn,
        )

    def set_export_filter(self, pools: Iterable[IPPool], desired: Desired) -> None:
        """Pools, service ranges or own blocks may differ."""
        rules = ExportFilter.of(pools, self.ownership.services, desired.blackholes)
        old, self.exports.rules = self.exports.rules, rules
        if not rules.same_ranges(old):
            self.paths.dirty.update(self.paths.by_prefix)
        elif changed := set(old.own_blocks) ^ set(rules.own_blocks):
            self.paths.dirty.update(self.importer.announced_inside(changed))

    def decide(self, desired: Desired) -> None:
        """Decide every prefix that something happened to, and want what follows."""
        dirty, self.paths.dirty = self.paths.dirty, set()
        self.exports.new_round()
        update, put, tell = self.loc_rib.update, self.kernel.put, self.adj_rib_out.put
        originated, exported, rules = desired.originated, self.exports.of, self.exports.rules
        for prefix in dirty:
            selected = update(prefix)
            put(prefix, selected, desired, rules)
            tell(prefix, exported(prefix, selected, originated.get(prefix)))

    def forget_next_hops(self) -> None:
        """What was said of next hops nobody uses any more grows old unwatched."""
        known = self.loc_rib.next_hops
        for next_hop in known.keys() - self.paths.by_next_hop.keys():
            del known[next_hop]
