"""Who is who in docker-compose.yml: the same names and addresses, for the driver and the nodes. Pure.

The fabric's addresses are from ranges nobody routes (RFC 2544, RFC 3849), the outside's are for
documentation (RFC 5737): no user's network can collide with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.lab.plan import Lab, cali_interface
from agent.lab.state import LabNode, Pod

NODES = 3
PODS = 2
NODE_AS = 64512
TOR_AS = 64700
TOR = {4: "198.18.30.3", 6: "2001:db8:30::3"}
OUTSIDE = {4: "203.0.113.1", 6: "2001:db8:ffff::1"}
"""Addresses on the ToR router that only its adverts lead to."""
OUTSIDE_PREFIX = {4: "203.0.113.0/24", 6: "2001:db8:ffff::/48"}
HOLD_TIME = 9
"""Seconds, as docker-compose.yml sets TORTIE_HOLD_TIME: the least that an agent accepts."""
RESTART_TIME = 20
"""Seconds that peers keep a restarting speaker's routes."""
SECRETS = Path("/etc/tortie/secrets")
MESH_SECRET = {"name": "bgp", "key": "mesh"}
TOR_SECRET = {"name": "bgp", "key": "tor"}
PASSWORDS = {"mesh": "mesh-password-of-the-lab", "tor": "tor-password-of-the-lab"}
"""Key of the secret `bgp` -> TCP MD5 password (RFC 2385); the second is in deploy/compose/bird.conf, too."""
READY = Path("/run/lab/ready")
"""Inside a node: the pods are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerLab(Lab):
    """The namespace lab's names, with the datastore where the container finds it."""

    endpoint: str

    @property
    def etcd_endpoint(self) -> str:
        return self.endpoint


def node_names() -> list[str]:
    return [f"node-{index}" for index in range(1, NODES + 1)]


def planned(name: str) -> LabNode:
    """A node of docker-compose.yml; its pods have no addresses yet."""
    index = node_names().index(name) + 1
    names = [f"{name}-pod-{number}" for number in range(1, PODS + 1)]
    return LabNode(
        name=name,
        index=index,
        ipv4=f"198.18.30.{10 + index}",
        ipv6=f"2001:db8:30::{10 + index}",
        pods=[Pod(name=pod, interface=cali_interface(pod)) for pod in names],
    )


def resources() -> list[tuple[str, str, Mapping[str, Any]]]:
    """What the lab's datastore has besides pools: mesh password, and the ToR router as everyone's peer."""
    configuration = {
        "nodeToNodeMeshEnabled": True,
        "asNumber": NODE_AS,
        "nodeMeshPassword": {"secretKeyRef": MESH_SECRET},
        "nodeMeshMaxRestartTime": f"{RESTART_TIME}s",
    }
    peers = [
        (
            "BGPPeer",
            f"tor-ipv{version}",
            {
                "peerIP": address,
                "asNumber": TOR_AS,
                "password": {"secretKeyRef": TOR_SECRET},
                "maxRestartTime": f"{RESTART_TIME}s",
            },
        )
        for version, address in TOR.items()
    ]
    return [("BGPConfiguration", "default", configuration), *peers]
