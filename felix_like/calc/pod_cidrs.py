"""Host-local IPAM (USE_POD_CIDR): a node's podCIDRs stand in place of IPAM's blocks.

Calico's syncer does it this way (libcalico-go, bgpnodeprocessor.go): with usePodCIDR it reads no block
affinities, and makes confirmed ones up from each node's podCIDRs. From there on all is as with blocks:
adverts, blackholes, origin validation of the others.

Where podCIDRs come from: the Kubernetes Node's spec.podCIDRs, once Kubernetes was heard. The Calico Node's
status.podCIDRs, which is what Calico itself reads, serves for nodes that are none of Kubernetes', and where
this agent has no access to Kubernetes or has not heard it yet. A node that Kubernetes has deleted has none:
they may be another's now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from felix_like.calc.cluster import quoted
from felix_like.calc.snapshot import Change, Snapshot
from felix_like.model.address import Prefix
from felix_like.model.block import AffinityState, Block, BlockAffinity
from felix_like.model.desired import LocalNode
from felix_like.model.node import Node
from felix_like.model.service import KubernetesNode
from felix_like.model.verdict import Refusal

KEYS = "podCIDR/"
"""Where the affinities stand in the snapshot; no key of etcd looks like it."""


class PodCidrs:
    """Writes affinities that follow from podCIDRs into the datastore's snapshot."""

    def __init__(self, local: LocalNode) -> None:
        self._local = local
        self._given: set[tuple[str, Prefix]] = set()

    def changes(
        self, nodes: Mapping[str, Node], kubernetes: Mapping[str, KubernetesNode] | None
    ) -> list[Change]:
        """What has to change in the snapshot. `kubernetes` None: it has not been heard, or is not there."""
        wanted = {(name, cidr) for name, node in nodes.items() for cidr in self._of(node, kubernetes)}
        gone = [Change(_key(*claim), None) for claim in sorted(self._given - wanted)]
        new = [
            Change(
                _key(name, cidr),
                BlockAffinity(node=name, cidr=cidr, state=AffinityState.CONFIRMED, pod_cidr=True),
            )
            for name, cidr in sorted(wanted - self._given)
        ]
        self._given = wanted
        return gone + new

    def _of(self, node: Node, kubernetes: Mapping[str, KubernetesNode] | None) -> tuple[Prefix, ...]:
        if kubernetes is None:
            return node.pod_cidrs
        known = kubernetes.get(self._kubernetes_name(node))
        if known is not None:
            return known.pod_cidrs
        return () if node.kubernetes_name is not None else node.pod_cidrs

    def _kubernetes_name(self, node: Node) -> str:
        if node.name == self._local.name and self._local.kubernetes_name is not None:
            return self._local.kubernetes_name
        return node.kubernetes_name or node.name


def without_blocks(changes: Iterable[Change]) -> list[Change]:
    """What is left of the datastore's changes where IPAM's blocks count for nothing."""
    return [change for change in changes if not isinstance(change.value, Block | BlockAffinity)]


def pod_cidr_refusals(snapshot: Snapshot, local: LocalNode) -> Iterator[Refusal]:
    """What is wrong with this node's podCIDRs in themselves."""
    mine = sorted(snapshot.claimed_by(local.name))
    if not mine:
        yield Refusal(
            f"Node {local.name}",
            "USE_POD_CIDR is set, but neither its Node in Kubernetes (spec.podCIDRs) nor its Calico Node "
            "(status.podCIDRs) has a podCIDR: no pod of it is announced. See that kube-controller-manager "
            "runs with --allocate-node-cidrs, and that CALICO_K8S_NODE_REF is the Kubernetes Node's name",
        )
    for (name, cidr), _ in sorted(snapshot.affinities.items(), key=lambda item: item[0]):
        if name == local.name:
            continue
        for own in mine:
            if own.overlaps(cidr):
                yield Refusal(
                    f"podCIDR {own}",
                    f"it overlaps podCIDR {cidr} of node {quoted(name)}: packets may go to the wrong one. "
                    "Two nodes must never share addresses; delete and recreate one of the Nodes",
                )


def _key(node: str, cidr: Prefix) -> str:
    return f"{KEYS}{node}/{cidr}"
