"""Snapshot -> Desired: the node's whole answer to the datastore, computed anew each time."""

from __future__ import annotations

from felix_like.calc.advertise import advertise
from felix_like.calc.cluster import Cluster, cluster, cluster_refusals, router_id, usable_address, usable_asn
from felix_like.calc.peering import peerings, wanted_secrets
from felix_like.calc.pod_cidrs import pod_cidr_refusals
from felix_like.calc.pools import pools
from felix_like.calc.session import Own, Secrets
from felix_like.calc.snapshot import Snapshot
from felix_like.model.address import Address
from felix_like.model.bgp import Peer, SecretRef
from felix_like.model.desired import Desired, LocalNode
from felix_like.model.verdict import No, Refusal

LOCKED = (
    "the datastore is locked (ClusterInformation default: datastoreReady is false); "
    "what was right before stays until it is unlocked"
)


def desire(snapshot: Snapshot, local: LocalNode, secrets: Secrets) -> Desired:
    """What should be true on this node. Depends on the arguments alone; never raises for a value's sake.

    `secrets` holds the passwords found for `secret_refs`; one that is missing refuses its sessions. While
    datastoreReady is false the answer carries `frozen`, and the caller keeps the one before it.
    """
    known = cluster(snapshot)
    node = known.nodes.get(local.name)
    refusals = [Refusal(m.subject, m.reason) for m in snapshot.malformed.values()]
    refusals += cluster_refusals(snapshot, known, local)
    peers: dict[Address, Peer] = {}
    own = present(known, local)
    if isinstance(own, No):
        refusals.append(Refusal(f"Node {local.name}", own.reason))
    else:
        refusals += own_refusals(own)
        peers, refused = peerings(snapshot, own, secrets)
        refusals += refused
    usable_pools = pools(snapshot.pools.values())
    refusals += usable_pools.refusals
    advertised = advertise(snapshot, usable_pools, local.name, node)
    refusals += advertised.refusals
    if local.use_pod_cidr:
        refusals += pod_cidr_refusals(snapshot, local)
    ready = snapshot.cluster is None or snapshot.cluster.datastore_ready
    return Desired(
        revision=snapshot.revision,
        node=local.name,
        asn=known.asn_of(node) if node else known.asn,
        peers=dict(sorted(peers.items())),
        originated=dict(sorted(advertised.originated.items())),
        blackholes=frozenset(advertised.blackholes),
        refusals=tuple(sorted(set(refusals))),
        frozen=None if ready else LOCKED,
    )


def secret_refs(snapshot: Snapshot, local: LocalNode) -> frozenset[SecretRef]:
    """The passwords `desire` needs: those of BGPPeers that concern this node, and the mesh's."""
    default = snapshot.bgp_configurations.get("default")
    resources = snapshot.bgp_peers.values()
    if (default is None or default.mesh_password is None) and not any(peer.password for peer in resources):
        return frozenset()  # nobody has one: asked at every change, so no look at every node
    own = present(cluster(snapshot), local)
    return frozenset() if isinstance(own, No) else wanted_secrets(snapshot, own)


def present(known: Cluster, local: LocalNode) -> Own | No:
    """This node as a BGP speaker, or why it can be none."""
    node = known.nodes.get(local.name)
    if node is None:
        return No("this node has no (usable) Node resource in the datastore: no session is made")
    asn = known.asn_of(node)
    verdict = usable_asn(asn)
    if isinstance(verdict, No):
        return No(f"no session is made: {verdict.reason}")
    identifier = router_id(local, node)
    if isinstance(identifier, No):
        return identifier
    return Own(node=node, cluster=known, local=local, asn=asn, router_id=identifier)


def own_refusals(own: Own) -> list[Refusal]:
    """What is wrong with this node itself, though it can speak BGP."""
    subject = f"Node {own.node.name}"
    refusals = []
    for address in own.node.addresses:
        verdict = usable_address(address)
        if isinstance(verdict, No):
            refusals.append(Refusal(subject, verdict.reason))
    cluster_id = own.node.route_reflector_cluster_id
    if cluster_id and not own.cluster_id:
        refusals.append(
            Refusal(
                subject,
                f"routeReflectorClusterID {cluster_id[:32]!a} is no dotted quad: it reflects nothing. "
                "Use one like 244.0.0.1",
            )
        )
    return refusals
