"""Who holds which addresses, as origin validation looks it up: an own copy of what the snapshot said.

A copy, because while the datastore is locked the snapshot moves on and the answer must not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from felix_like.calc.cluster import hashed_router_id, quoted
from felix_like.calc.pools import pools
from felix_like.calc.service_ranges import ServiceRanges, service_ranges
from felix_like.calc.snapshot import Snapshot
from felix_like.model.address import Address, Prefix
from felix_like.model.block import AffinityState
from felix_like.model.desired import LocalNode
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node
from felix_like.model.verdict import Origin, Validity
from felix_like.rib.prefix_table import PrefixTable


@dataclass(frozen=True, slots=True)
class Holding:
    """A block or a podCIDR: the node it is affine to (None: given up) and the addresses others have in it."""

    cidr: Prefix
    holder: str | None
    borrowed: Mapping[Address, str]
    kind: str
    """`block` or `podCIDR`."""
    verdict: Origin = field(compare=False)
    """What is valid by this block, said once for all its addresses."""


@dataclass(frozen=True, slots=True, order=True)
class _Host:
    """A node's address as a number, with the length of its subnet, sortable."""

    number: int
    address: Address
    name: str
    subnet: int


class Ownership:
    """Blocks by longest match, nodes by address and router ID, pools and service ranges."""

    def __init__(self, local: LocalNode) -> None:
        self._local = local
        self.blocks: PrefixTable[Holding] = PrefixTable()
        self.pools: PrefixTable[IPPool] = PrefixTable()
        self.services: PrefixTable[None] = PrefixTable()
        self.ranges = ServiceRanges()
        self.nodes: dict[str, Node] = {}
        self._owners: dict[Address, tuple[str, ...]] = {}
        self._router_ids: dict[str, set[str]] = {}
        self._seen_router_ids: dict[str, str] = {}
        self._hosts: dict[int, list[_Host]] = {4: [], 16: []}
        self._widest: dict[int, int] = {4: 32, 16: 128}

    # -- learning -----------------------------------------------------------------------------------

    def update_blocks(self, snapshot: Snapshot, cidrs: Iterable[Prefix]) -> set[Prefix]:
        """Read these blocks again; returns those whose holders differ."""
        changed = set()
        for cidr in cidrs:
            now = _holding(snapshot, cidr)
            if now != self.blocks.get(cidr):
                changed.add(cidr)
                if now is None:
                    self.blocks.drop(cidr)
                else:
                    self.blocks.put(cidr, now)
        return changed

    def update_cluster(self, snapshot: Snapshot) -> bool:
        """Read nodes, pools and service ranges again; True when something differs that verdicts use."""
        before = (_places(self.nodes), self._pool_list(), self.ranges)
        self.nodes = dict(snapshot.nodes)
        for gone in self._seen_router_ids.keys() - self.nodes.keys():
            del self._seen_router_ids[gone]
        self.pools = PrefixTable()
        for pool in pools(snapshot.pools.values()).accepted:
            self.pools.put(pool.cidr, pool)
        self.services = PrefixTable()
        self.ranges = service_ranges(snapshot, self._local)
        for cidr in self.ranges:
            self.services.put(cidr, None)
        if (_places(self.nodes), self._pool_list(), self.ranges) == before:
            return False
        self._index_nodes()
        return True

    def saw_router_id(self, node: str, router_id: str) -> bool:
        """A session told us the router ID of a node; True when nothing else said so already."""
        if self._seen_router_ids.get(node) == router_id:
            return False
        self._seen_router_ids[node] = router_id
        if node in self._router_ids.get(router_id, ()):
            return False
        self._index_nodes()
        return True

    def _pool_list(self) -> list[tuple[str, Prefix, int]]:
        return sorted((p.name, p.cidr, p.block_size) for c in self.pools if (p := self.pools.get(c)))

    def _index_nodes(self) -> None:
        owners: dict[Address, list[str]] = {}
        self._router_ids = {}
        self._hosts = {4: [], 16: []}
        for name, node in sorted(self.nodes.items()):
            for address in node.addresses:
                owners.setdefault(address, []).append(name)
                network = node.network(address.version)
                subnet = len(address) * 8 if network is None else network.length
                self._hosts[len(address)].append(_Host(int.from_bytes(address, "big"), address, name, subnet))
            seen = self._seen_router_ids.get(name)
            for router_id in (node.ipv4, hashed_router_id(name), node.router_id, seen):
                if router_id is not None:
                    self._router_ids.setdefault(str(router_id), set()).add(name)
        self._owners = {address: tuple(names) for address, names in owners.items()}
        for octets, hosts in self._hosts.items():
            hosts.sort()
            self._widest[octets] = min((h.subnet for h in hosts), default=octets * 8)

    # -- asking -------------------------------------------------------------------------------------

    def owners(self, address: Address) -> tuple[str, ...]:
        """The nodes that say this address is theirs, sorted."""
        return self._owners.get(address, ())

    def routers(self, router_id: str) -> frozenset[str]:
        """The nodes with this router ID: their IPv4 address, the hash of their name, what their agent wrote
        into the Node, or as a session said.

        Calico keeps no router ID in the datastore; the first two are the rules CALICO_ROUTER_ID knows, the
        third is for any other value of it.
        """
        return frozenset(self._router_ids.get(router_id, ()))

    def service_range(self, prefix: Prefix) -> Prefix | None:
        """The service range that a prefix lies in, unless it lies in a pool that is more specific.

        A range for load balancers is a pool as well (allowedUses LoadBalancer).
        """
        return self.services.longest_beside(self.pools, prefix)

    @property
    def any_block_size(self) -> bool:
        """What belongs to a node are podCIDRs: the pools' block sizes say nothing about them."""
        return self._local.use_pod_cidr

    def node_inside(self, prefix: Prefix) -> tuple[str, Address] | None:
        """The node whose traffic this route would take: it has a host route's address, or one in a
        prefix longer than its own subnet, so that the route would beat the connected one."""
        network, length = prefix
        octets = len(network)
        hosts = self._hosts[octets]
        bits = octets * 8
        if not hosts or (length <= self._widest[octets] and length < bits):
            return None
        first = int.from_bytes(network, "big")
        position = bisect_left(hosts, first, key=lambda host: host.number)
        end = first + (1 << (bits - length))
        while position < len(hosts) and hosts[position].number < end:
            host = hosts[position]
            if length > host.subnet or length == bits:
                return host.name, host.address
            position += 1
        return None

    def describe(self, prefix: Prefix) -> str:
        """One sentence for an operator: what the datastore knows of the prefix."""
        pool = self.pools.match(prefix)
        if pool is None:
            service = self.service_range(prefix)
            if service is not None:
                return f"inside service range {service}"
            if prefix.is_host and (names := self.owners(prefix.network)):
                named = " and ".join(quoted(name) for name in names)
                return f"the address of {named}; routes to nodes themselves are not Tortie's"
            inside = self.pools.covered_by(prefix)
            return f"covers pool {inside}" if inside else "outside every pool and service range"
        where = f"inside IPPool {quoted(pool.name)} ({pool.cidr})"
        service = self.service_range(prefix)
        if service is not None:
            return f"inside service range {service}, {where}"
        holding = self.blocks.match(prefix)
        if holding is None:
            return f"{where}; no block is known for it"
        text = f"{where}; {holding.kind} {holding.cidr} belongs to {who(holding.holder)}"
        borrower = holding.borrowed.get(prefix.network) if prefix.is_host else None
        return f"{text}; the address is lent to {who(borrower)}" if borrower else text


def who(node: str | None) -> str:
    return "no node" if node is None else quoted(node)


def _holding(snapshot: Snapshot, cidr: Prefix) -> Holding | None:
    block = snapshot.blocks.get(cidr)
    if block is not None:
        return _held_by(cidr, block.affinity, "block", dict(block.borrowed))
    # The block is written before its affinity is confirmed, but may not parse: then the claim counts,
    # if there is only one.
    claims = [
        claim
        for node in snapshot.claimants(cidr)
        if (claim := snapshot.affinities[node, cidr]).state is AffinityState.CONFIRMED
    ]
    if len(claims) != 1:
        return None
    return _held_by(cidr, claims[0].node, "podCIDR" if claims[0].pod_cidr else "block", {})


def _held_by(cidr: Prefix, holder: str | None, kind: str, borrowed: Mapping[Address, str]) -> Holding:
    verdict = Origin(Validity.VALID, f"{who(holder)} holds {kind} {cidr}")
    return Holding(cidr, holder, borrowed, kind, verdict)


def _places(nodes: Mapping[str, Node]) -> dict[str, tuple[object, ...]]:
    return {name: (n.ipv4, n.ipv4_network, n.ipv6, n.ipv6_network, n.router_id) for name, n in nodes.items()}
