"""Cables, addresses and settings of a lab, as `ip -batch` lines and sysctl values. Pure.

One bridge in the fabric namespace; per node a veth to it and a default route to the bridge (without a
unicast route towards 169.254.1.1 the kernel's proxy ARP stays silent); per pod a veth as Calico's CNI
plugin and Felix make it: host routes, 169.254.1.1 and a link-local address as gateways.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.lab.plan import (
    CALI_LINK_LOCAL,
    CALI_MAC,
    FABRIC_V4,
    FABRIC_V4_LENGTH,
    FABRIC_V6,
    FABRIC_V6_LENGTH,
    GATEWAY_V4,
    Lab,
    bridge_port,
)
from agent.lab.state import LabNode, Pod

BRIDGE = "fabric"
UPLINK = "eth0"
NO_DAD = (("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0"))
"""Duplicate address detection only delays a lab in which every address is planned."""
QUIET = (("ipv6/conf/all/accept_ra", "0"), ("ipv6/conf/default/accept_ra", "0"))


def namespaces(names: Iterable[str]) -> list[str]:
    return [f"netns add {name}" for name in names]


def host_settings() -> list[tuple[str, str]]:
    """For pods and the fabric, before they have interfaces."""
    return [*NO_DAD, *QUIET]


def node_settings() -> list[tuple[str, str]]:
    """For nodes: they forward. Written before they have interfaces."""
    return [
        *NO_DAD,
        *QUIET,
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
    ]


def pod_port_settings(interface: str) -> list[tuple[str, str]]:
    """What Felix sets on a workload's interface (felix/dataplane/linux/endpoint_mgr.go)."""
    return [
        (f"ipv4/conf/{interface}/proxy_arp", "1"),
        # Otherwise the first packet waits for a random delay of up to 0.8 s.
        (f"ipv4/neigh/{interface}/proxy_delay", "0"),
        (f"ipv4/conf/{interface}/forwarding", "1"),
        (f"ipv6/conf/{interface}/proxy_ndp", "1"),
        (f"ipv6/conf/{interface}/forwarding", "1"),
    ]


def bridge() -> list[str]:
    """In the fabric namespace."""
    return [
        "link set lo up",
        f"link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0",
        f"addr add {FABRIC_V4}/{FABRIC_V4_LENGTH} dev {BRIDGE}",
        f"addr add {FABRIC_V6}/{FABRIC_V6_LENGTH} dev {BRIDGE} nodad",
        f"link set {BRIDGE} up",
    ]


def node_cables(lab: Lab, nodes: Iterable[LabNode]) -> list[str]:
    """In the fabric namespace; the far ends are born in the nodes' namespaces."""
    lines = []
    for node in nodes:
        port = bridge_port(node.index)
        lines += [
            f"link add {port} type veth peer name {UPLINK} netns {lab.namespace(node.name)}",
            f"link set {port} master {BRIDGE} up",
        ]
    return lines


def node(lab: Lab, node: LabNode) -> list[str]:
    """In the node's namespace: uplink, default routes, the pods' cables."""
    lines = [
        "link set lo up",
        f"addr add {node.ipv4}/{FABRIC_V4_LENGTH} dev {UPLINK}",
        f"addr add {node.ipv6}/{FABRIC_V6_LENGTH} dev {UPLINK} nodad",
        f"link set {UPLINK} up",
        f"route add default via {FABRIC_V4} dev {UPLINK}",
        f"route add default via {FABRIC_V6} dev {UPLINK}",
    ]
    for pod in node.pods:
        lines += pod_port(lab, pod)
    return lines


def pod_port(lab: Lab, pod: Pod) -> list[str]:
    """In the node's namespace: the host side of one pod's veth."""
    namespace = lab.pod_namespace(pod.name)
    return [
        f"link add {pod.interface} address {CALI_MAC} type veth peer name {UPLINK} netns {namespace}",
        f"link set {pod.interface} up",
    ]


def pod_routes(pod: Pod) -> list[str]:
    """In the node's namespace: Felix's routes to one of its workloads."""
    return [
        f"route replace {pod.ipv4}/32 dev {pod.interface} scope link",
        f"route replace {pod.ipv6}/128 dev {pod.interface}",
    ]


def pod(pod: Pod) -> list[str]:
    """In the pod's namespace, once IPAM has given it its addresses."""
    return [
        "link set lo up",
        f"addr add {pod.ipv4}/32 dev {UPLINK}",
        f"addr add {pod.ipv6}/128 dev {UPLINK} nodad",
        f"link set {UPLINK} up",
        f"route add {GATEWAY_V4} dev {UPLINK} scope link",
        f"route add default via {GATEWAY_V4} dev {UPLINK}",
        f"route add default via {CALI_LINK_LOCAL} dev {UPLINK}",
    ]
