"""Whom this node peers with: the full mesh, BGPPeers, and the reverse of other nodes' BGPPeers.

As confd computes it (confd/pkg/backends/calico/client.go updatePeersV1, bgp_processor.go), with one
difference: a session is known by the peer's address alone. The first that wants an address has it: global
BGPPeers, then those for a node or a node selector, then reverse peerings, then the mesh; inside each by
name. It keeps the address even when no session can be made of it: a peering that waits for its password
must not fall back to another without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from felix_like.calc.cluster import Cluster, is_port, quoted, usable_asn, usable_name
from felix_like.calc.selector import SelectorError, parse
from felix_like.calc.session import (
    Candidate,
    Own,
    Secrets,
    Terms,
    mesh_terms,
    peer_terms,
    session,
    usable_secret,
)
from felix_like.calc.snapshot import Snapshot
from felix_like.model.address import Address, Asn, IpVersion
from felix_like.model.bgp import DEFAULT_BGP_PORT, BgpPeer, Peer, PeerType, SecretRef
from felix_like.model.node import Node
from felix_like.model.verdict import No, Refusal, Yes


def peerings(snapshot: Snapshot, own: Own, secrets: Secrets) -> tuple[dict[Address, Peer], list[Refusal]]:
    """Every session this node should hold, by the peer's address, and every peering it does not make."""
    wanted, refusals = wanted_peerings(snapshot, own)
    terms_of: dict[str | None, Terms | None] = {}
    peers: dict[Address, Peer] = {}
    for address, candidate in wanted.items():
        resource = candidate.resource
        key = resource.name if resource else None
        if key not in terms_of:
            terms, notes = peer_terms(resource, own, secrets) if resource else mesh_terms(own, secrets)
            terms_of[key] = terms
            refusals.extend(notes)
        terms = terms_of[key]
        if terms is None:
            continue
        peer = session(candidate, terms, own)
        if isinstance(peer, No):
            refusals.append(Refusal(candidate.subject, peer.reason))
        else:
            peers[address] = peer
    return peers, refusals


def wanted_secrets(snapshot: Snapshot, own: Own) -> frozenset[SecretRef]:
    """Where the passwords of this node's sessions are."""
    wanted, _ = wanted_peerings(snapshot, own)
    mesh = own.cluster.default.mesh_password
    refs = {c.resource.password if c.resource else mesh for c in wanted.values()}
    return frozenset(ref for ref in refs if ref is not None and usable_secret(ref))


def wanted_peerings(snapshot: Snapshot, own: Own) -> tuple[dict[Address, Candidate], list[Refusal]]:
    """Who has which address, and who came too late for it."""
    refusals: list[Refusal] = []
    resources: list[BgpPeer] = []
    for name in sorted(snapshot.bgp_peers):
        resource = snapshot.bgp_peers[name]
        usable = usable_resource(resource)
        if isinstance(usable, No):
            refusals.append(Refusal(f"BGPPeer {quoted(name)}", usable.reason))
        else:
            resources.append(resource)
    everywhere = [r for r in resources if is_global(r)]
    some_nodes = [r for r in resources if not is_global(r) and selects(r, own.node)]
    forward = chain.from_iterable(_forward(r, own, refusals) for r in (*everywhere, *some_nodes))
    reverse = chain.from_iterable(_reverse(r, own) for r in resources)
    wanted: dict[Address, Candidate] = {}
    for candidate in chain(forward, reverse, _mesh(own, refusals)):
        holder = wanted.setdefault(candidate.address, candidate)
        if holder is not candidate and not candidate.reverse:
            refusals.append(_too_late(candidate, holder))
    return wanted, refusals


def _too_late(candidate: Candidate, holder: Candidate) -> Refusal:
    what = "no mesh session" if candidate.resource is None else "no session"
    return Refusal(
        candidate.subject,
        f"{what} with {candidate.address} is made: {holder.subject} makes the one session to this address. "
        "Delete one of the two peerings",
    )


# -- BGPPeer resources ------------------------------------------------------------------------------


def is_global(resource: BgpPeer) -> bool:
    return resource.node is None and resource.node_selector is None


def usable_resource(resource: BgpPeer) -> Yes | No:
    """Does the BGPPeer say clearly who peers with whom?"""
    usable = usable_name(resource.name)
    if isinstance(usable, No):
        return usable
    if resource.node is not None and resource.node_selector is not None:
        return No("it has both node and nodeSelector; keep one")
    if resource.peer_ip is not None and resource.peer_selector is not None:
        return No("it has both peerIP and peerSelector; keep one")
    if resource.peer_ip is None and resource.peer_selector is None:
        return No("it names no peer; set peerIP and asNumber, or peerSelector")
    if resource.peer_port is not None and not is_port(resource.peer_port):
        return No(f"port {resource.peer_port} in its peerIP does not exist; use 1 to 65535")
    for field, text in (("nodeSelector", resource.node_selector), ("peerSelector", resource.peer_selector)):
        if text is not None:
            try:
                parse(text)
            except SelectorError as error:
                return No(f"its {field} matches nothing, as it cannot be read: {error}")
    return Yes()


def selects(resource: BgpPeer, node: Node) -> Yes | No:
    """Is the node one of those the BGPPeer is for?"""
    if resource.node_selector is not None:
        if parse(resource.node_selector).matches(node.labels):
            return Yes()
        return No("its nodeSelector does not match the node's labels")
    if resource.node is not None and resource.node != node.name:
        return No(f"it is for node {quoted(resource.node)} only")
    return Yes()


def targets(resource: BgpPeer, node: Node, cluster: Cluster) -> Yes | No:
    """Is the node one of those the BGPPeer points at (confd's nodesWithIPPortAndAS)?"""
    if resource.peer_selector is not None:
        if parse(resource.peer_selector).matches(node.labels):
            return Yes()
        return No("its peerSelector does not match the node's labels")
    if resource.peer_ip not in node.addresses:
        return No("its peerIP is not the node's")
    if resource.asn not in (None, cluster.asn_of(node)):
        return No(f"its asNumber is {resource.asn}, the node's is {cluster.asn_of(node)}")
    port = cluster.port_of(node.name)
    if resource.peer_port not in (None, port):
        return No(f"its port is {resource.peer_port}, the node listens on {port}")
    return Yes()


def _forward(resource: BgpPeer, own: Own, refusals: list[Refusal]) -> Iterator[Candidate]:
    """The sessions a BGPPeer that is for this node asks it to make."""
    kind = PeerType.GLOBAL if is_global(resource) else PeerType.NODE
    if resource.peer_selector is not None:
        selector = parse(resource.peer_selector)
        chosen = (node for node in own.cluster.nodes.values() if selector.matches(node.labels))
        yield from _towards(chosen, own, kind, resource, own.versions)
        return
    assert resource.peer_ip is not None  # usable_resource said so
    found = _named_peer(resource, resource.peer_ip, own, kind)
    if isinstance(found, No):
        refusals.append(Refusal(f"BGPPeer {quoted(resource.name)}", found.reason))
    elif found is not None:
        yield found


def _named_peer(resource: BgpPeer, address: Address, own: Own, kind: PeerType) -> Candidate | No | None:
    """The peer at `peerIP`; None when that is ourselves, as the peers of the others (we make the reverse)."""
    node = own.cluster.owner(address)
    if address in own.node.addresses:
        verdict = targets(resource, own.node, own.cluster)
        if resource.node is None and verdict:
            return None
        why = verdict.reason if isinstance(verdict, No) else "no node peers with itself"
        return No(f"{address} is this node's own address: {why}")
    asn: Asn | None = resource.asn
    if asn is None:
        if node is None:
            return No(f"it has no asNumber and {address} is no node of this cluster; set asNumber")
        asn = own.cluster.asn_of(node)
    port = DEFAULT_BGP_PORT if resource.peer_port is None else resource.peer_port
    if resource.peer_port is None and node is not None and targets(resource, node, own.cluster):
        port = own.cluster.port_of(node.name)
    return Candidate(address=address, asn=asn, port=port, type=kind, node=node, resource=resource)


def _reverse(resource: BgpPeer, own: Own) -> Iterator[Candidate]:
    """Our side of sessions that a BGPPeer asks other nodes to make with us."""
    if resource.reverse_peering == "Manual" or not targets(resource, own.node, own.cluster):
        return
    versions = own.versions if resource.peer_ip is None else (resource.peer_ip.version,)
    sources = (node for node in own.cluster.nodes.values() if selects(resource, node))
    yield from _towards(sources, own, PeerType.NODE, resource, versions, reverse=True)


def _towards(
    nodes: Iterable[Node],
    own: Own,
    kind: PeerType,
    resource: BgpPeer | None,
    versions: Iterable[IpVersion],
    *,
    reverse: bool = False,
) -> Iterator[Candidate]:
    """Candidates for other nodes, by name, one per address family.

    What makes a node unreachable is said once for all peerings (`cluster_refusals`), not here.
    """
    for node in sorted(nodes, key=lambda node: node.name):
        asn = own.cluster.asn_of(node)
        if node.name == own.node.name or not usable_asn(asn):
            continue
        if reverse and resource is not None and resource.local_asn is not None:
            asn = resource.local_asn  # the AS number the other side shows us
        for version in versions:
            address = own.cluster.reachable(node, version)
            if not isinstance(address, No):
                yield Candidate(
                    address=address,
                    asn=asn,
                    port=own.cluster.port_of(node.name),
                    type=kind,
                    node=node,
                    resource=resource,
                    reverse=reverse,
                )


# -- the mesh ---------------------------------------------------------------------------------------


def in_mesh(node: Node) -> Yes | No:
    """Route reflectors take no part in the full mesh (confd's processMeshPeers)."""
    if node.route_reflector_cluster_id:
        return No("it is a route reflector: its sessions are those of BGPPeers")
    return Yes()


def _mesh(own: Own, refusals: list[Refusal]) -> Iterator[Candidate]:
    if not own.cluster.mesh_enabled or not in_mesh(own.node):
        return
    members = [node for node in own.cluster.nodes.values() if in_mesh(node)]
    for node in members:
        if node.addresses and not any(node.address(version) for version in own.versions):
            has = " or ".join(f"IPv{version}" for version in own.versions) or "any"
            refusals.append(
                Refusal(
                    f"Node {quoted(node.name)}",
                    f"no mesh session is made: it has no {has} address, and this node no other",
                )
            )
    yield from _towards(members, own, PeerType.MESH, None, own.versions)
