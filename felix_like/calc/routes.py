"""From Loc-RIB to the kernel and to the peers: what a decided prefix leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.bgp import Peer
from felix_like.model.desired import (
    MAIN_TABLE,
    PROTO_BGP,
    Desired,
    KernelNextHop,
    Route,
    RouteKey,
    RouteKind,
)
from felix_like.model.path import Attributes, Path
from felix_like.rib.adj_rib_out import ExportFilter, export, may_learn_from, originate
from felix_like.rib.import_policy import Source
from felix_like.rib.loc_rib import LocRib, kernel_next_hops


class KernelRoutes:
    """The routes this node wants, and which of them changed since somebody last asked."""

    def __init__(self, loc_rib: LocRib, priority: int) -> None:
        self.wanted: dict[Prefix, Route] = {}
        self.changed: dict[RouteKey, Route | None] = {}
        self._loc_rib = loc_rib
        self._priority = priority
        self._single: dict[Address, tuple[KernelNextHop, ...]] = {}

    def next_hops_changed(self) -> None:
        self._single.clear()

    def put(self, prefix: Prefix, selected: tuple[Path, ...], desired: Desired, rules: ExportFilter) -> None:
        """The prefix was decided: want what follows."""
        before = self.wanted.get(prefix)
        blackhole = prefix in desired.blackholes
        hops = () if blackhole or refuse_install(prefix, desired, rules) else self._next_hops(selected)
        if not blackhole and not hops:
            if before is not None:
                del self.wanted[prefix]
                self.changed[before.key] = None
            return
        kind: RouteKind = "blackhole" if blackhole else "unicast"
        if before is not None and before.kind == kind and before.next_hops == hops:
            return
        key = RouteKey(prefix, self._priority, MAIN_TABLE)
        route = Route(key, kind, PROTO_BGP, hops)
        self.wanted[prefix] = self.changed[key] = route

    def _next_hops(self, selected: tuple[Path, ...]) -> tuple[KernelNextHop, ...]:
        if len(selected) != 1:
            return kernel_next_hops(selected, self._loc_rib.next_hops) if selected else ()
        next_hop = selected[0].attributes.next_hop
        hops = self._single.get(next_hop)
        if hops is None:
            hops = self._single[next_hop] = kernel_next_hops(selected, self._loc_rib.next_hops)
        return hops

    def take(self) -> dict[RouteKey, Route | None]:
        changed, self.changed = self.changed, {}
        return changed


def refuse_install(prefix: Prefix, desired: Desired, rules: ExportFilter) -> str | None:
    """Why a learned route is not installed although it was selected."""
    if prefix in desired.originated:
        return "this node originates it itself"
    if rules.service_range(prefix) is not None:
        # confd's calico_kernel_programming: each node's kube-proxy serves these on its own.
        return "it is inside a service range, which every node serves itself"
    return None


class Exports:
    """Which peers are told a prefix, and with which attributes.

    The equal answers of one round are shared: attributes that came in one UPDATE are rewritten once.
    """

    def __init__(self, source: Callable[[Address], Source]) -> None:
        self.peers: Mapping[Address, Peer] = {}
        self._beyond_mesh: tuple[Peer, ...] = ()
        self.rules = ExportFilter()
        self.own: dict[IpVersion, Address] = {}
        self._source = source
        self._targets: dict[Address, tuple[Peer, ...]] = {}
        self._shared: dict[tuple[int, Address, Address], Attributes | str] = {}
        self._originated: dict[tuple[int, bool, int], Attributes] = {}

    def new_round(self) -> None:
        """Identities of attributes hold only while nothing is learned or withdrawn."""
        self._shared.clear()
        self._originated.clear()

    def set_peers(self, peers: Mapping[Address, Peer]) -> None:
        self.peers = peers
        self._beyond_mesh = tuple(p for p in peers.values() if p.is_ebgp or p.route_reflector_client)
        self._targets.clear()

    def forget_targets(self, source: Address) -> None:
        """Its configuration or its session changed."""
        self._targets.pop(source, None)

    def targets(self, source: Address) -> tuple[Peer, ...]:
        """The peers that may hear of this one's paths at all; in a full mesh nobody."""
        found = self._targets.get(source)
        if found is None:
            announcer = self._source(source)
            peer = announcer.peer
            # In a mesh of 1,000 nodes nobody can hear of anybody: do not ask a million times.
            inner = peer is not None and not (peer.is_ebgp or peer.route_reflector_client)
            candidates = self._beyond_mesh if inner else self.peers.values()
            found = self._targets[source] = tuple(
                target for target in candidates if may_learn_from(target, announcer) is None
            )
        return found

    def of(
        self, prefix: Prefix, selected: tuple[Path, ...], originated: Attributes | None
    ) -> dict[Address, Attributes]:
        if originated is not None:
            return self._own(prefix.version, originated)
        if not selected:
            return {}
        best = selected[0]
        targets = self.targets(best.peer)
        if not targets or self.rules.refuse(prefix) is not None:
            return {}
        version = prefix.version
        service = self.rules.service_range(prefix) is not None
        wanted: dict[Address, Attributes] = {}
        for target in targets:
            if version in target.families:
                told = self._exported(best, target, service=service)
                if isinstance(told, Attributes):
                    wanted[target.address] = told
        return wanted

    def untold(self, best: Path) -> Iterator[tuple[Address, str]]:
        """Peers that do not hear of a learned path, each with the reason; its sender is none of them."""
        self.new_round()  # what the last one shared may go by another object's identity by now
        source, prefix = self._source(best.peer), best.prefix
        service = self.rules.service_range(prefix) is not None
        for peer in self.peers.values():
            if peer.address != best.peer and prefix.version in peer.families:
                told = may_learn_from(peer, source) or self._exported(best, peer, service=service)
                if isinstance(told, str):
                    yield peer.address, told

    def _own(self, version: IpVersion, attributes: Attributes) -> dict[Address, Attributes]:
        wanted: dict[Address, Attributes] = {}
        for peer in self.peers.values():
            if version in peer.families:
                key = (id(attributes), peer.is_ebgp, peer.local_asn)
                told = self._originated.get(key)
                if told is None:
                    told = self._originated[key] = originate(attributes, peer)
                wanted[peer.address] = told
        return wanted

    def _exported(self, best: Path, target: Peer, *, service: bool) -> Attributes | str:
        key = (id(best.attributes), best.peer, target.address)
        told = self._shared.get(key)
        if told is None:
            told = self._shared[key] = export(best, self._source(best.peer), target, self.own)
        if service and isinstance(told, Attributes) and told.next_hop != best.attributes.next_hop:
            # Nobody may be sent here for what another node serves: here it ends in no route.
            return "a service of other nodes is passed on with its own next hop only, never with this node"
        return told
