"""IPAM states and clusters for tests, as short as they can be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from felix_like.model.address import Address, Prefix
from felix_like.model.ipam_use import (
    Allocation,
    Cluster,
    Endpoint,
    IpamState,
    PodUse,
    StoredAffinity,
    StoredHandle,
    UsedBlock,
)

LONG_AGO = "2026-01-10T09:00:00Z"


def allocated(
    address: str, pod: str = "", node: str = "a", handle: str | None = None, **rest: Any
) -> Allocation:
    """`pod`: "web" of the namespace default, or "" for one that is nobody's in Kubernetes."""
    parsed = Address.parse(address)
    return Allocation(
        address=parsed,
        block=Prefix.within(parsed, 26 if parsed.version == 4 else 122),
        handle=f"k8s-pod-network.{pod}" if handle is None else handle,
        sequence=rest.pop("sequence", 7),
        node=node,
        namespace="default" if pod else "",
        pod=pod,
        **rest,
    )


def state(
    *allocations: Allocation,
    nodes: Mapping[str, str | None] | Iterable[str] = ("a", "b"),
    owners: Mapping[str, str | None] | None = None,
    endpoints: Mapping[str, str] | None = None,
    **rest: Any,
) -> IpamState:
    """Blocks as the allocations need them, and of `owners` (CIDR -> node); consistent handles and affinities.

    `nodes`: Calico Nodes of Kubernetes' by name, or with the name of the Kubernetes Node (None: not its).
    `endpoints`: address -> node.
    """
    found: dict[Prefix, list[Allocation]] = {Prefix.parse(cidr): [] for cidr in owners or {}}
    for one in allocations:
        found.setdefault(one.block, []).append(one)
    owned = {Prefix.parse(cidr): node for cidr, node in (owners or {}).items()}
    blocks = tuple(
        UsedBlock(
            cidr=cidr,
            owner=owned.get(cidr, members[0].node if members else None),
            claimed_at=LONG_AGO,
            sequence=10,
            allocations=tuple(members),
        )
        for cidr, members in found.items()
    )
    counts: dict[str, dict[Prefix, int]] = {}
    for one in allocations:
        if one.handle and not one.cooling:
            counts.setdefault(one.handle, {}).setdefault(one.block, 0)
            counts[one.handle][one.block] += 1
    rest.setdefault("handles", tuple(stored_handle(name, each) for name, each in counts.items()))
    rest.setdefault(
        "affinities",
        tuple(stored_affinity(b.owner, str(b.cidr)) for b in blocks if b.owner is not None),
    )
    return IpamState(
        blocks=blocks,
        nodes=dict(nodes) if isinstance(nodes, Mapping) else {name: name for name in nodes},
        endpoints={
            Address.parse(address): Endpoint(
                namespace="default", name=f"{node}-k8s-x-eth0", node=node, addresses=(Address.parse(address),)
            )
            for address, node in (endpoints or {}).items()
        },
        **rest,
    )


def stored_handle(
    name: str, counts: Mapping[Prefix, int] | Mapping[str, int], revision: int = 5
) -> StoredHandle:
    parsed = {Prefix.parse(str(cidr)): count for cidr, count in counts.items()}
    return StoredHandle(name=name, counts=parsed, revision=revision)


def stored_affinity(node: str, cidr: str, state: str = "confirmed", revision: int = 3) -> StoredAffinity:
    return StoredAffinity(node=node, cidr=Prefix.parse(cidr), state=state, revision=revision)


def running(name: str, node: str, *addresses: str, finished: str = "") -> PodUse:
    return PodUse(
        namespace="default",
        name=name,
        node=node,
        addresses=frozenset(map(Address.parse, addresses)),
        finished=finished,
    )


OTHER = running("coredns", "b", "10.0.9.9")
"""A cluster without any pod is not believed."""


def cluster(*pods: PodUse, nodes: Iterable[str] = ("a", "b")) -> Cluster:
    return Cluster(nodes=frozenset(nodes), pods={(pod.namespace, pod.name): pod for pod in (OTHER, *pods)})
