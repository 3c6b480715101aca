"""What this node announces as its own, and which blackhole routes stand behind it.

As confd's bird_aggr and bird_ipam (confd/pkg/backends/calico, node/filesystem/etc/calico/confd/templates): a
block counts while this node's affinity to it is confirmed; borrowed addresses go out as host routes of their
own, because they lie in another node's block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from felix_like.calc.cluster import quoted, usable_address
from felix_like.calc.pools import BLOCK_SIZES, Pools
from felix_like.calc.snapshot import Snapshot
from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.bgp import BgpConfiguration, PrefixAdvertisement
from felix_like.model.block import AffinityState
from felix_like.model.node import Node
from felix_like.model.path import Attributes
from felix_like.model.verdict import No, Refusal, Yes

OUTSIDE_POOLS = (
    "it lies in no IP pool, so its pods are not announced. Create an IPPool that covers the cluster's pod "
    "network (kube-controller-manager's --cluster-cidr)"
)


@dataclass(slots=True)
class Advertised:
    """What follows from this node's blocks."""

    originated: dict[Prefix, Attributes] = field(default_factory=dict)
    blackholes: set[Prefix] = field(default_factory=set)
    refusals: list[Refusal] = field(default_factory=list)


def advertise(snapshot: Snapshot, pools: Pools, name: str, node: Node | None) -> Advertised:
    """Originated routes and blackholes of node `name`; `node` is None while it has no usable Node resource.

    A block in a pool keeps its blackhole whether or not it is announced: what no pod here has must not leave
    by the default route.
    """
    return _Advertiser(snapshot, pools, name, node).result()


class _Advertiser:
    def __init__(self, snapshot: Snapshot, pools: Pools, name: str, node: Node | None) -> None:
        self._snapshot = snapshot
        self._pools = pools
        self._name = name
        self._node = node
        self._communities = Communities(snapshot, name)
        self._occupied = Occupied(snapshot.nodes.values())
        self._out = Advertised(refusals=self._communities.refusals)

    def result(self) -> Advertised:
        for cidr in sorted(self._snapshot.claimed_by(self._name)):
            if self._snapshot.affinities[self._name, cidr].state is AffinityState.CONFIRMED:
                self._own_block(cidr)
        for cidr in sorted(self._snapshot.lending_to(self._name)):
            self._borrowed(cidr)
        return self._out

    def _subject(self, cidr: Prefix) -> str:
        affinity = self._snapshot.affinities.get((self._name, cidr))
        return f"podCIDR {cidr}" if affinity is not None and affinity.pod_cidr else f"IPAM block {cidr}"

    def _refuse(self, subject: str, reason: str) -> None:
        self._out.refusals.append(Refusal(subject, reason))

    def _own_block(self, cidr: Prefix) -> None:
        subject = self._subject(cidr)
        verdict = holds(self._snapshot, self._pools, self._name, cidr)
        if isinstance(verdict, No):
            self._refuse(subject, verdict.reason)
            return
        inside = self._occupied.inside(cidr)
        if inside is not None:
            self._refuse(
                subject,
                f"no blackhole route: the node address {inside} lies in it and would be cut off. "
                "Nodes' addresses must lie outside the IP pools",
            )
        elif not cidr.is_host:
            self._out.blackholes.add(cidr)
        self._originate(cidr, subject)

    def _borrowed(self, cidr: Prefix) -> None:
        subject = f"IPAM block {cidr}"
        verdict = is_block(self._pools, cidr)
        if isinstance(verdict, No):
            self._refuse(subject, f"borrowed addresses are not advertised: {verdict.reason}")
            return
        for address, borrower in sorted(self._snapshot.blocks[cidr].borrowed.items()):
            if borrower == self._name and cidr.contains(address):
                self._originate(Prefix.host(address), f"{subject}, borrowed address {address}")

    def _originate(self, prefix: Prefix, subject: str) -> None:
        pool = self._pools.unexported(prefix)
        if pool is not None:
            self._refuse(subject, f"not advertised: IPPool {quoted(pool.name)} has disableBGPExport")
            return
        if self._node is None:
            return
        next_hop = self._node.address(prefix.version)
        if next_hop is None or not usable_address(next_hop):
            family = f"IPv{prefix.version}"
            self._refuse(subject, f"not advertised: this node has no {family} address to be the next hop")
            return
        self._out.originated[prefix] = self._communities.attributes(prefix, next_hop)


def is_block(pools: Pools, cidr: Prefix) -> Yes | No:
    """Can this CIDR be a block of one of the pools?

    A block whose size is not its pool's blockSize is still one: pools are deleted and made anew with another
    size while the pods of the old blocks live on, and Calico goes on announcing them.
    """
    sizes = BLOCK_SIZES[cidr.version]
    if cidr.length not in sizes:
        return No(f"/{cidr.length} is no size of a block ({sizes[0]} to {sizes[-1]}); it is left out")
    if pools.covering(cidr) is None:
        return No("it lies outside every IP pool; it is left out. Create the pool, or release the block")
    return Yes()


def holds(snapshot: Snapshot, pools: Pools, name: str, cidr: Prefix) -> Yes | No:
    """May the node stand for this block, to which its affinity is confirmed?"""
    affinity = snapshot.affinities.get((name, cidr))
    if affinity is not None and affinity.pod_cidr:
        return Yes() if pools.covering(cidr) is not None else No(OUTSIDE_POOLS)
    verdict = is_block(pools, cidr)
    if isinstance(verdict, No):
        return verdict
    block = snapshot.blocks.get(cidr)
    if block is not None and block.affinity != name:
        owner = f"node {quoted(block.affinity)}" if block.affinity else "no node"
        return No(f"this node has an affinity to it, but the block belongs to {owner}; it is left out")
    return Yes()


class Occupied:
    """The nodes' own addresses, looked up by block size.

    A pool that takes in the nodes' network would put a blackhole before the connected route. The block is
    still announced: a Node resource with a wrong address must not take pods off the air that run already.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._addresses = [address for node in nodes for address in node.addresses]
        self._by_length: dict[tuple[IpVersion, int], dict[Prefix, Address]] = {}

    def inside(self, cidr: Prefix) -> Address | None:
        """The least node address in the block, or None."""
        key = (cidr.version, cidr.length)
        if key not in self._by_length:
            self._by_length[key] = {
                Prefix.within(address, cidr.length): address
                for address in sorted(self._addresses, reverse=True)
                if address.version == cidr.version
            }
        return self._by_length[key].get(cidr)


class Communities:
    """Which communities a node puts on which of its routes (confd's processCommunityRules).

    The prefixAdvertisements of `node.<name>` stand in place of the default's, they do not add to them. Every
    advertisement whose CIDR the route lies in adds its communities.
    """

    def __init__(self, snapshot: Snapshot, name: str) -> None:
        self.refusals: list[Refusal] = []
        self.rules: list[tuple[Prefix, frozenset[tuple[int, ...]]]] = []
        self._known: dict[tuple[Address, frozenset[tuple[int, ...]]], Attributes] = {}
        for configuration in (f"node.{name}", "default"):
            found = snapshot.bgp_configurations.get(configuration)
            if found is not None and found.prefix_advertisements:
                self._read(found)
                break

    def _read(self, configuration: BgpConfiguration) -> None:
        for advertisement in configuration.prefix_advertisements:
            values = frozenset(self._values(configuration.name, advertisement))
            self.rules.append((advertisement.cidr, values))

    def _values(self, name: str, advertisement: PrefixAdvertisement) -> Iterator[tuple[int, ...]]:
        for text in advertisement.communities:
            value = parse_community(text)
            if value is not None:
                yield value
                continue
            self.refusals.append(
                Refusal(
                    f"BGPConfiguration {quoted(name)}",
                    f"prefixAdvertisement {advertisement.cidr}: {text[:64]!a} is no community and left out. "
                    "Use a:b with numbers to 65535, a:b:c with numbers to 4294967295, or a community's name",
                )
            )

    def attributes(self, prefix: Prefix, next_hop: Address) -> Attributes:
        """The attributes of a route of our own; routes alike share one value."""
        values: frozenset[tuple[int, ...]] = frozenset()
        for cidr, communities in self.rules:
            if cidr.covers(prefix):
                values |= communities
        key = (next_hop, values)
        if key not in self._known:
            self._known[key] = Attributes(
                next_hop=next_hop,
                communities=tuple(":".join(map(str, value)) for value in sorted(values) if len(value) == 2),
                large_communities=tuple(
                    ":".join(map(str, value)) for value in sorted(values) if len(value) == 3
                ),
            )
        return self._known[key]


_COMMUNITY_LIMITS: Mapping[int, int] = {2: 0xFFFF, 3: 0xFFFF_FFFF}


def parse_community(text: str) -> tuple[int, ...] | None:
    """`a:b` (RFC 1997) or `a:b:c` (RFC 8092) as numbers; None when it is neither."""
    parts = text.split(":") if len(text) <= 32 else []
    limit = _COMMUNITY_LIMITS.get(len(parts))
    if limit is None or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    numbers = tuple(int(part) for part in parts)
    return numbers if all(number <= limit for number in numbers) else None
