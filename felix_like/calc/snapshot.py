"""What the datastore says now: the current value behind every key, by kind; another snapshot for Kubernetes.

The snapshot holds state, not history: whatever the order in which changes of different keys arrive, however
often one is repeated, the same last values give the same snapshot (felix/design/calc-graph.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from felix_like.model.address import Prefix
from felix_like.model.bgp import BgpConfiguration, BgpPeer, ClusterInformation
from felix_like.model.block import Block, BlockAffinity
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node
from felix_like.model.service import EndpointSlice, KubernetesNode, Service, ServiceId

KubernetesResource = Service | EndpointSlice | KubernetesNode
Resource = (
    Node
    | IPPool
    | Block
    | BlockAffinity
    | BgpConfiguration
    | BgpPeer
    | ClusterInformation
    | KubernetesResource
)
Kind = (
    type[Node]
    | type[IPPool]
    | type[Block]
    | type[BlockAffinity]
    | type[BgpConfiguration]
    | (type[BgpPeer] | type[ClusterInformation])
    | (type[Service] | type[EndpointSlice] | type[KubernetesNode])
)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A value that does not parse: it counts as absent, for this reason."""

    subject: str
    """What the operator knows it as: "BGPPeer tor-1", "Service default/web", "etcd key /calico/…"."""
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """One key has this value now; None: the key is gone."""

    key: str
    value: Resource | Malformed | None
    revision: int = 0
    """etcd's ModRevision of the change; Kubernetes has none to compare."""


@dataclass(frozen=True, slots=True)
class Touched:
    """What a batch changed, so that nobody has to recompute what does not depend on it.

    Only real differences count: a change that repeats what the snapshot already says touches nothing.
    """

    kinds: frozenset[Kind] = frozenset()
    blocks: frozenset[Prefix] = frozenset()
    """CIDRs of the blocks and of the block affinities that differ."""
    holders: frozenset[str] = frozenset()
    """Nodes with a stake in those blocks, before or after: owner, claimant or borrower."""
    services: frozenset[ServiceId] = frozenset()
    """Services that differ, or one of whose endpoint slices does."""
    malformed: bool = False
    """A key became malformed, was repaired, or is malformed for another reason."""

    def __bool__(self) -> bool:
        return bool(self.kinds or self.malformed)

    def concerns(self, node: str) -> bool:
        """True when `desire` may have another answer for this node.

        Blocks concern only the nodes that hold a part of them; everything else concerns everybody.
        """
        return self.malformed or bool(self.kinds - {Block, BlockAffinity}) or node in self.holders


Identity = tuple[Kind, Any]


class Snapshot:
    """The current values of the datastore. One writer (`apply`); the views are read-only and live."""

    def __init__(self) -> None:
        self._revision = 0
        self._values: dict[str, Resource] = {}
        self._malformed: dict[str, Malformed] = {}
        self._keys: dict[Identity, set[str]] = {}
        self._nodes: dict[str, Node] = {}
        self._pools: dict[str, IPPool] = {}
        self._blocks: dict[Prefix, Block] = {}
        self._affinities: dict[tuple[str, Prefix], BlockAffinity] = {}
        self._configurations: dict[str, BgpConfiguration] = {}
        self._peers: dict[str, BgpPeer] = {}
        self._clusters: dict[str, ClusterInformation] = {}
        self._services: dict[ServiceId, Service] = {}
        self._slices: dict[tuple[str, str], EndpointSlice] = {}
        self._kubernetes_nodes: dict[str, KubernetesNode] = {}
        self._views: dict[Kind, dict[Any, Any]] = {
            Node: self._nodes,
            IPPool: self._pools,
            Block: self._blocks,
            BlockAffinity: self._affinities,
            BgpConfiguration: self._configurations,
            BgpPeer: self._peers,
            ClusterInformation: self._clusters,
            Service: self._services,
            EndpointSlice: self._slices,
            KubernetesNode: self._kubernetes_nodes,
        }
        self._claimants: dict[Prefix, set[str]] = {}
        self._claimed: dict[str, set[Prefix]] = {}
        self._lent: dict[str, set[Prefix]] = {}
        self._slices_of: dict[ServiceId, set[tuple[str, str]]] = {}

    # -- reading ------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The highest etcd revision applied so far."""
        return self._revision

    @property
    def nodes(self) -> Mapping[str, Node]:
        return MappingProxyType(self._nodes)

    @property
    def pools(self) -> Mapping[str, IPPool]:
        return MappingProxyType(self._pools)

    @property
    def blocks(self) -> Mapping[Prefix, Block]:
        return MappingProxyType(self._blocks)

    @property
    def affinities(self) -> Mapping[tuple[str, Prefix], BlockAffinity]:
        return MappingProxyType(self._affinities)

    @property
    def bgp_configurations(self) -> Mapping[str, BgpConfiguration]:
        return MappingProxyType(self._configurations)

    @property
    def bgp_peers(self) -> Mapping[str, BgpPeer]:
        return MappingProxyType(self._peers)

    @property
    def cluster(self) -> ClusterInformation | None:
        """`clusterinformations/default`; None when there is none (yet)."""
        return self._clusters.get("")

    @property
    def services(self) -> Mapping[ServiceId, Service]:
        return MappingProxyType(self._services)

    @property
    def kubernetes_nodes(self) -> Mapping[str, KubernetesNode]:
        return MappingProxyType(self._kubernetes_nodes)

    @property
    def malformed(self) -> Mapping[str, Malformed]:
        """By key: what does not parse and therefore counts as absent."""
        return MappingProxyType(self._malformed)

    def claimed_by(self, node: str) -> AbstractSet[Prefix]:
        """CIDRs the node has a block affinity to, in whatever state."""
        return self._claimed.get(node, frozenset())

    def claimants(self, cidr: Prefix) -> AbstractSet[str]:
        """Nodes with a block affinity to exactly this CIDR, in whatever state."""
        return self._claimants.get(cidr, frozenset())

    def lending_to(self, node: str) -> AbstractSet[Prefix]:
        """CIDRs of the blocks of other nodes in which this node holds borrowed addresses."""
        return self._lent.get(node, frozenset())

    def slices_of(self, service: ServiceId) -> list[EndpointSlice]:
        """The endpoint slices of a service, whether or not there is such a service."""
        return [self._slices[name] for name in self._slices_of.get(service, ())]

    # -- writing ------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change]) -> Touched:
        """Take in one batch and say what really differs afterwards. Never raises for a value's sake."""
        kinds: set[Kind] = set()
        blocks: set[Prefix] = set()
        holders: set[str] = set()
        services: set[ServiceId] = set()
        malformed = False
        for change in changes:
            self._revision = max(self._revision, change.revision)
            malformed |= self._note(change)
            value = change.value if not isinstance(change.value, Malformed) else None
            before = self._values.get(change.key)
            if before == value:
                continue
            for resource in (before, value):
                if resource is None:
                    continue
                kinds.add(type(resource))
                if isinstance(resource, Block | BlockAffinity):
                    blocks.add(resource.cidr)
                    holders |= self._stakes(resource)
                elif isinstance(resource, Service):
                    services.add(resource.id)
                elif isinstance(resource, EndpointSlice):
                    services.add(resource.service_id)
            self._put(change.key, before, value)
        return Touched(
            frozenset(kinds), frozenset(blocks), frozenset(holders), frozenset(services), malformed
        )

    def _note(self, change: Change) -> bool:
        """Remember or forget why a key counts as absent; True when that differs."""
        before = self._malformed.get(change.key)
        if isinstance(change.value, Malformed):
            self._malformed[change.key] = change.value
            return before != change.value
        self._malformed.pop(change.key, None)
        return before is not None

    def _stakes(self, resource: Block | BlockAffinity) -> set[str]:
        """Nodes whose answer can depend on it. Claimants read the block's owner, so they count too."""
        stakes = set(self.claimants(resource.cidr))
        if isinstance(resource, BlockAffinity):
            return stakes | {resource.node}
        stakes.update(resource.borrowed.values())
        if resource.affinity is not None:
            stakes.add(resource.affinity)
        return stakes

    def _put(self, key: str, before: Resource | None, value: Resource | None) -> None:
        if before is not None:
            del self._values[key]
            identity = identify(before)
            keys = self._keys[identity]
            keys.discard(key)
            if not keys:
                del self._keys[identity]
            self._settle(identity)
        if value is not None:
            self._values[key] = value
            identity = identify(value)
            self._keys.setdefault(identity, set()).add(key)
            self._settle(identity)

    def _settle(self, identity: Identity) -> None:
        """Make the views say what the keys say. Where two keys name one thing, the lesser key decides:
        Calico's clients cannot write that, but a hand can, and the answer must not depend on the order.
        """
        kind, name = identity
        view = self._views[kind]
        before = view.get(name)
        keys = self._keys.get(identity)
        value = self._values[min(keys)] if keys else None
        self._index(before, present=False)
        self._index(value, present=True)
        if value is None:
            view.pop(name, None)
        else:
            view[name] = value

    def _index(self, resource: Resource | None, *, present: bool) -> None:
        if isinstance(resource, BlockAffinity):
            _mark(self._claimants, resource.cidr, resource.node, present=present)
            _mark(self._claimed, resource.node, resource.cidr, present=present)
        elif isinstance(resource, Block):
            for borrower in set(resource.borrowed.values()):
                _mark(self._lent, borrower, resource.cidr, present=present)
        elif isinstance(resource, EndpointSlice):
            name = (resource.namespace, resource.name)
            _mark(self._slices_of, resource.service_id, name, present=present)


def identify(resource: Resource) -> Identity:
    """What makes two values the same thing, whatever key they stand under."""
    if isinstance(resource, BlockAffinity):
        return BlockAffinity, (resource.node, resource.cidr)
    if isinstance(resource, Block):
        return Block, resource.cidr
    if isinstance(resource, ClusterInformation):
        return ClusterInformation, ""
    if isinstance(resource, Service):
        return Service, resource.id
    if isinstance(resource, EndpointSlice):
        return EndpointSlice, (resource.namespace, resource.name)
    return type(resource), resource.name


def _mark(index: dict[Any, set[Any]], key: Any, member: Any, *, present: bool) -> None:
    if present:
        index.setdefault(key, set()).add(member)
    elif key in index:
        index[key].discard(member)
        if not index[key]:
            del index[key]
