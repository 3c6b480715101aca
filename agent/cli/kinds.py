"""The kinds that `tortiectl get` shows, in calicoctl's columns (calicoctl/resourcemgr/)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.cli.store import Stored

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How calicoctl shows a kind."""

    kind: str
    plural: str
    aliases: tuple[str, ...]
    header: Row
    row: Callable[[Stored, str], Row]
    namespaced: bool = False
    wide_header: Row | None = None
    wide_row: Callable[[Stored, str], Row] | None = None


def text(spec: dict[str, Any], key: str, default: str) -> str:
    """A field as Go prints it: booleans in lower case, nothing as the default."""
    value = spec.get(key)
    if isinstance(value, bool):
        return str(value).lower()
    return default if value in (None, "") else str(value)


def _flag(spec: dict[str, Any], key: str) -> str:
    return text(spec, key, "false")


def _node_wide(node: Stored, default_asn: str) -> Row:
    bgp = node.spec.get("bgp")
    bgp = bgp if isinstance(bgp, dict) else {}
    return (
        node.name,
        text(bgp, "asNumber", f"({default_asn})"),
        text(bgp, "ipv4Address", ""),
        text(bgp, "ipv6Address", ""),
    )


def _pool_wide(pool: Stored, _asn: str) -> Row:
    spec = pool.spec
    return (
        pool.name,
        text(spec, "cidr", ""),
        _flag(spec, "natOutgoing"),
        text(spec, "ipipMode", "Never"),
        text(spec, "vxlanMode", "Never"),
        _flag(spec, "disabled"),
        _flag(spec, "disableBGPExport"),
        text(spec, "nodeSelector", "all()"),
        text(spec, "assignmentMode", "Automatic"),
    )


def _peer(peer: Stored, default_asn: str) -> Row:
    spec = peer.spec
    where = text(spec, "node", "") or text(spec, "nodeSelector", "") or "(global)"
    address = text(spec, "peerIP", "") or text(spec, "peerSelector", "")
    return peer.name, address, where, text(spec, "asNumber", f"({default_asn})")


def _configuration(configuration: Stored, _asn: str) -> Row:
    spec = configuration.spec
    return (
        configuration.name,
        text(spec, "logSeverityScreen", "-"),
        text(spec, "nodeToNodeMeshEnabled", "-"),
        text(spec, "asNumber", "-"),
    )


def _joined(spec: dict[str, Any], key: str) -> str:
    """A list as calicoctl joins it, a map as name=value."""
    value = spec.get(key)
    if isinstance(value, dict):
        return ",".join(sorted(f"{name}={one}" for name, one in value.items()))
    return ",".join(str(one) for one in value) if isinstance(value, list) else ""


def _tier(policy: Stored) -> str:
    """Said in the spec, or by the name: "default.web", "knp.default.web" (libcalico-go/lib/names)."""
    tier, dot, _ = policy.name.partition(".")
    named = tier if dot and tier not in ("knp", "ossg") else "default"
    return text(policy.spec, "tier", named)


def _order(policy: Stored) -> str:
    order = policy.spec.get("order")
    if isinstance(order, float) and order.is_integer():
        order = int(order)
    return "<nil>" if order is None else str(order)


def _endpoint(endpoint: Stored) -> Row:
    spec = endpoint.spec
    return (
        text(spec, "workload", "") or text(spec, "pod", ""),
        text(spec, "node", ""),
        _joined(spec, "ipNetworks"),
        text(spec, "interfaceName", ""),
    )


def _nats(endpoint: Stored) -> str:
    nats = endpoint.spec.get("ipNATs")
    return ",".join(
        f"{{{text(nat, 'internalIP', '')} {text(nat, 'externalIP', '')}}}"
        for nat in (nats if isinstance(nats, list) else ())
        if isinstance(nat, dict)
    )


KINDS = (
    Kind(
        kind="Node",
        plural="nodes",
        aliases=("node", "no"),
        header=("NAME",),
        row=lambda node, _: (node.name,),
        wide_header=("NAME", "ASN", "IPV4", "IPV6"),
        wide_row=_node_wide,
    ),
    Kind(
        kind="IPPool",
        plural="ippools",
        aliases=("ippool", "ipp", "pool", "pools"),
        header=("NAME", "CIDR", "SELECTOR"),
        row=lambda pool, _: (
            pool.name,
            text(pool.spec, "cidr", ""),
            text(pool.spec, "nodeSelector", "all()"),
        ),
        wide_header=(
            "NAME",
            "CIDR",
            "NAT",
            "IPIPMODE",
            "VXLANMODE",
            "DISABLED",
            "DISABLEBGPEXPORT",
            "SELECTOR",
            "ASSIGNMENTMODE",
        ),
        wide_row=_pool_wide,
    ),
    Kind(
        kind="BGPPeer",
        plural="bgppeers",
        aliases=("bgppeer", "bgpp"),
        header=("NAME", "PEERIP", "NODE", "ASN"),
        row=_peer,
    ),
    Kind(
        kind="BGPConfiguration",
        plural="bgpconfigurations",
        aliases=("bgpconfiguration", "bgpconfig", "bgpconfigs"),
        header=("NAME", "LOGSEVERITY", "MESHENABLED", "ASNUMBER"),
        row=_configuration,
    ),
    Kind(
        kind="NetworkPolicy",
        plural="networkpolicies",
        aliases=("networkpolicy", "np", "policy", "policies", "pol", "pols"),
        namespaced=True,
        header=("NAME", "TIER"),
        row=lambda policy, _: (policy.name, _tier(policy)),
        wide_header=("NAME", "TIER", "ORDER", "SELECTOR"),
        wide_row=lambda policy, _: (
            policy.name,
            _tier(policy),
            _order(policy),
            text(policy.spec, "selector", ""),
        ),
    ),
    Kind(
        kind="Profile",
        plural="profiles",
        aliases=("profile", "pro", "pros"),
        header=("NAME",),
        row=lambda profile, _: (profile.name,),
        wide_header=("NAME", "LABELS"),
        wide_row=lambda profile, _: (profile.name, _joined(profile.spec, "labelsToApply")),
    ),
    Kind(
        kind="WorkloadEndpoint",
        plural="workloadendpoints",
        aliases=("workloadendpoint", "wep", "weps"),
        namespaced=True,
        header=("WORKLOAD", "NODE", "NETWORKS", "INTERFACE"),
        row=lambda endpoint, _: _endpoint(endpoint),
        wide_header=("NAME", "WORKLOAD", "NODE", "NETWORKS", "INTERFACE", "PROFILES", "NATS"),
        wide_row=lambda endpoint, _: (
            endpoint.name,
            *_endpoint(endpoint),
            _joined(endpoint.spec, "profiles"),
            _nats(endpoint),
        ),
    ),
)
