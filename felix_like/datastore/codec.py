"""Calico's JSON -> the model's values. Hostile by assumption: whatever a value holds, `decode` returns.

Shapes: api/pkg/apis/projectcalico/v3/*.go, libcalico-go/lib/apis/internalapi/node.go,
libcalico-go/lib/backend/model/{block,block_affinity}.go. What a Calico client would fill in on reading is
filled in here. Encoders are not needed: what is written goes through raw JSON (`cas.py`), so that unknown
fields survive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from felix_like.calc.snapshot import Malformed, Resource
from felix_like.datastore import fields, shapes
from felix_like.datastore.keys import Key, Kind, parse_key, quoted
from felix_like.model.address import Address
from felix_like.model.bgp import BgpConfiguration, BgpPeer, ClusterInformation, PrefixAdvertisement
from felix_like.model.block import AffinityState, Block, BlockAffinity
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node

VALUE_LIMIT = 2 * 1024 * 1024
"""Octets of a value at most; etcd itself refuses 1.5 MiB by default."""
_ENCAPSULATION = ("Never", "Always", "CrossSubnet")
_BLOCK_SIZES = {4: (20, 32, 26), 6: (116, 128, 122)}


def decode(path: str, value: bytes) -> Resource | Malformed | None:
    """The value behind a key; None: the key is known, and nothing an agent uses. Never raises."""
    try:
        key = parse_key(path)
    except ValueError as error:
        return Malformed(f"etcd key {quoted(path)}", str(error))
    if key is None:
        return None
    try:
        if len(value) > VALUE_LIMIT:
            raise ValueError(f"the value has {len(value)} octets; at most {VALUE_LIMIT} are read")
        resource: Resource = _DECODERS[key.kind](key, value)
        return resource
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        return Malformed(str(key), f"{_reason(error)}; it counts as absent until it is corrected")


def _reason(error: Exception) -> str:
    """One printable line: msgspec's messages may quote what the value says."""
    text = "the JSON is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text)[:400]


def _named(key: Key, metadata: shapes.Metadata | None) -> shapes.Metadata:
    """The metadata, once it is sure that key and value speak of the same thing."""
    metadata = metadata or shapes.Metadata()
    if metadata.name and metadata.name != key.name:
        raise ValueError(f"the key says {quoted(key.name)} and metadata.name says {quoted(metadata.name)}")
    return metadata


def _node(key: Key, value: bytes) -> Node:
    resource = _NODE.decode(value)
    metadata = _named(key, resource.metadata)
    spec = resource.spec or shapes.NodeSpec()
    bgp = spec.bgp or shapes.NodeBgp()
    ipv4, ipv4_network = fields.node_address("spec.bgp.ipv4Address", bgp.ipv4Address, 4)
    ipv6, ipv6_network = fields.node_address("spec.bgp.ipv6Address", bgp.ipv6Address, 6)
    return Node(
        name=key.name,
        ipv4=ipv4,
        ipv4_network=ipv4_network,
        ipv6=ipv6,
        ipv6_network=ipv6_network,
        asn=fields.asn("spec.bgp.asNumber", bgp.asNumber),
        labels=metadata.labels or {},
        route_reflector_cluster_id=fields.cluster_id(bgp.routeReflectorClusterID),
        router_id=fields.router_id(metadata.annotations or {}),
        kubernetes_name=fields.kubernetes_name(spec.orchRefs or ()),
        pod_cidrs=fields.pod_cidrs((resource.status or shapes.NodeStatus()).podCIDRs),
    )


def _ippool(key: Key, value: bytes) -> IPPool:
    resource = _IPPOOL.decode(value)
    _named(key, resource.metadata)
    spec = resource.spec
    cidr = fields.prefix("spec.cidr", spec.cidr)
    least, most, usual = _BLOCK_SIZES[cidr.version]
    size = spec.blockSize or usual
    if not least <= size <= most:
        raise ValueError(
            f"spec.blockSize: {size} is not allowed; use {least} to {most} for IPv{cidr.version}"
        )
    if size < cidr.length:
        raise ValueError(f"spec.blockSize: /{size} does not fit into the pool {cidr}")
    return IPPool(
        name=key.name,
        cidr=cidr,
        block_size=size,
        disabled=bool(spec.disabled),
        disable_bgp_export=bool(spec.disableBGPExport),
        nat_outgoing=bool(spec.natOutgoing),
        ipip_mode=fields.choice("spec.ipipMode", spec.ipipMode, _ENCAPSULATION),
        vxlan_mode=fields.choice("spec.vxlanMode", spec.vxlanMode, _ENCAPSULATION),
        node_selector=spec.nodeSelector or "all()",
        allowed_uses=tuple(spec.allowedUses) if spec.allowedUses else ("Workload", "Tunnel"),
        assignment_mode=fields.choice("spec.assignmentMode", spec.assignmentMode, ("Automatic", "Manual")),
    )


def _bgp_configuration(key: Key, value: bytes) -> BgpConfiguration:
    resource = _BGP_CONFIGURATION.decode(value)
    _named(key, resource.metadata)
    spec = resource.spec or shapes.BgpConfigurationSpec()
    communities = {c.name: fields.community(c.value) for c in spec.communities or ()}
    return BgpConfiguration(
        name=key.name,
        mesh_enabled=spec.nodeToNodeMeshEnabled,
        asn=fields.asn("spec.asNumber", spec.asNumber),
        listen_port=fields.within("spec.listenPort", spec.listenPort or None, 1, 65_535),
        log_severity=spec.logSeverityScreen or None,
        prefix_advertisements=tuple(
            PrefixAdvertisement(
                cidr=fields.prefix("spec.prefixAdvertisements.cidr", advertisement.cidr),
                communities=tuple(
                    communities[c] if c in communities else fields.community(c)
                    for c in advertisement.communities or ()
                ),
            )
            for advertisement in spec.prefixAdvertisements or ()
        ),
        service_cluster_ips=fields.ranges("spec.serviceClusterIPs", spec.serviceClusterIPs),
        service_external_ips=fields.ranges("spec.serviceExternalIPs", spec.serviceExternalIPs),
        service_load_balancer_ips=fields.ranges("spec.serviceLoadBalancerIPs", spec.serviceLoadBalancerIPs),
        load_balancer_aggregation=fields.choice(
            "spec.serviceLoadBalancerAggregation",
            spec.serviceLoadBalancerAggregation,
            ("Enabled", "Disabled"),
        )
        == "Enabled",
        mesh_password=fields.secret("spec.nodeMeshPassword", spec.nodeMeshPassword),
        mesh_max_restart_time=fields.duration("spec.nodeMeshMaxRestartTime", spec.nodeMeshMaxRestartTime),
    )


def _bgp_peer(key: Key, value: bytes) -> BgpPeer:
    resource = _BGP_PEER.decode(value)
    annotations = _named(key, resource.metadata).annotations or {}
    spec = resource.spec or shapes.BgpPeerSpec()
    if spec.node and spec.nodeSelector:
        raise ValueError("spec.node and spec.nodeSelector are both set; use one of them")
    if spec.peerSelector and (spec.peerIP or spec.asNumber):
        raise ValueError("spec.peerSelector excludes spec.peerIP and spec.asNumber; use one kind")
    if spec.localWorkloadSelector:
        raise ValueError("spec.localWorkloadSelector is not supported: peering with pods is not built")
    peer_ip, peer_port = fields.peer_ip(spec.peerIP) if spec.peerIP else (None, None)
    mode = fields.choice("spec.nextHopMode", spec.nextHopMode, ("Auto", "Self", "Keep"))
    return BgpPeer(
        name=key.name,
        node=spec.node or None,
        node_selector=spec.nodeSelector or None,
        peer_ip=peer_ip,
        peer_port=peer_port,
        asn=fields.asn("spec.asNumber", spec.asNumber),
        peer_selector=spec.peerSelector or None,
        local_asn=fields.asn("spec.localASNumber", spec.localASNumber),
        password=fields.secret("spec.password", spec.password),
        source_address=fields.choice("spec.sourceAddress", spec.sourceAddress, ("UseNodeIP", "None")),
        max_restart_time=fields.duration("spec.maxRestartTime", spec.maxRestartTime),
        keepalive_time=fields.duration("spec.keepaliveTime", spec.keepaliveTime),
        ttl_security=fields.within("spec.ttlSecurity", spec.ttlSecurity or None, 1, 255),
        num_allowed_local_asns=fields.within(
            "spec.numAllowedLocalASNumbers", spec.numAllowedLocalASNumbers or 0, 0, 255
        )
        or 0,
        next_hop_mode="Keep" if mode == "Auto" and spec.keepOriginalNextHop else mode,
        reverse_peering=fields.choice("spec.reversePeering", spec.reversePeering, ("Auto", "Manual")),
        accepts_pool_routes=fields.pool_routes(annotations),
        prefix_limit=fields.prefix_limit(annotations),
        ignored=tuple(
            field
            for field, is_set in (
                ("filters", spec.filters),
                ("reachableBy", spec.reachableBy),
                ("sourceAddress None", spec.sourceAddress == "None"),
            )
            if is_set
        ),
    )


def _cluster(key: Key, value: bytes) -> ClusterInformation:
    resource = _CLUSTER.decode(value)
    _named(key, resource.metadata)
    spec = resource.spec or shapes.ClusterInformationSpec()
    return ClusterInformation(
        guid=spec.clusterGUID or "",
        version=spec.calicoVersion or "",
        datastore_ready=spec.datastoreReady is not False,
    )


def _affinity(key: Key, value: bytes) -> BlockAffinity:
    """An empty value, `{}` and an empty state are confirmed: Calico once wrote no state at all."""
    assert key.cidr is not None
    shape = _AFFINITY.decode(value) if value.strip() else shapes.Affinity()
    if shape.deleted:
        return BlockAffinity(node=key.name, cidr=key.cidr, state=AffinityState.PENDING_DELETION)
    try:
        state = AffinityState(shape.state or "confirmed")
    except ValueError:
        raise ValueError(
            f"state {quoted(shape.state)} is unknown; Calico has pending, confirmed and pendingDeletion"
        ) from None
    return BlockAffinity(node=key.name, cidr=key.cidr, state=state)


def _block(key: Key, value: bytes) -> Block:
    assert key.cidr is not None
    shape = _BLOCK.decode(value)
    if fields.prefix("cidr", shape.cidr) != key.cidr:
        raise ValueError(f"the key says {key.cidr} and cidr says {quoted(shape.cidr)}")
    size = 1 << (key.cidr.bits - key.cidr.length)
    allocations = shape.allocations or []
    if len(allocations) != size:
        raise ValueError(f"allocations has {len(allocations)} entries; a /{key.cidr.length} has {size}")
    owner = fields.block_owner(shape.affinity, shape.hostAffinity)
    attributes = shape.attributes or []
    nodes = [(attribute.secondary or {}).get("node") or "" for attribute in attributes]
    borrowed: dict[Address, str] = {}
    in_use = 0
    first = int.from_bytes(key.cidr.network, "big")
    for ordinal, index in enumerate(allocations):
        if index is None:
            continue
        if not 0 <= index < len(attributes):
            raise ValueError(f"allocations[{ordinal}] is {index}, but there are {len(attributes)} attributes")
        in_use += 1
        if nodes[index] and nodes[index] != owner:
            address = Address((first + ordinal).to_bytes(len(key.cidr.network), "big"))
            borrowed[address] = fields.node_name(f"attributes[{index}].secondary.node", nodes[index])
    return Block(cidr=key.cidr, affinity=owner, borrowed=borrowed, in_use=in_use)


_NODE = msgspec.json.Decoder(shapes.NodeResource)
_IPPOOL = msgspec.json.Decoder(shapes.IPPoolResource)
_BGP_CONFIGURATION = msgspec.json.Decoder(shapes.BgpConfigurationResource)
_BGP_PEER = msgspec.json.Decoder(shapes.BgpPeerResource)
_CLUSTER = msgspec.json.Decoder(shapes.ClusterInformationResource)
_AFFINITY = msgspec.json.Decoder(shapes.Affinity)
_BLOCK = msgspec.json.Decoder(shapes.Block)

_DECODERS: dict[Kind, Callable[[Key, bytes], Any]] = {
    Kind.NODE: _node,
    Kind.IP_POOL: _ippool,
    Kind.BGP_CONFIGURATION: _bgp_configuration,
    Kind.BGP_PEER: _bgp_peer,
    Kind.CLUSTER_INFORMATION: _cluster,
    Kind.BLOCK: _block,
    Kind.AFFINITY: _affinity,
}
