"""Who is who in a lab: names, addresses and places, all following from the lab's name. Pure.

Addresses come from ranges that nobody routes: 198.18.0.0/15 (RFC 2544, benchmarking) and 2001:db8::/32
(RFC 3849) for the fabric, private ones for the pods. All of them exist inside namespaces only.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_NAME = "tortie"
FABRIC_V4 = "198.18.0.1"
FABRIC_V4_LENGTH = 16
FABRIC_V6 = "2001:db8:18::1"
FABRIC_V6_LENGTH = 64
POOLS = {"default-ipv4-ippool": ("10.65.0.0/16", 26), "default-ipv6-ippool": ("fd00:65::/112", 122)}
"""IPPool name -> (CIDR, block size)."""
ETCD_PORT = 2379
MQTT_PORT = 1883
MAX_NODES = 900
"""Below the 1,023 ports of a Linux bridge, and what the address plan can write readably."""
MAX_PODS = 60
"""One IPv4 /26 block holds 64 addresses."""

GATEWAY_V4 = "169.254.1.1"
"""The pods' gateway, answered by proxy ARP (cni-plugin/pkg/dataplane/linux)."""
CALI_MAC = "ee:ee:ee:ee:ee:ee"
CALI_LINK_LOCAL = "fe80::ecee:eeff:feee:eeee"
"""What EUI-64 makes of that MAC (RFC 4291 appendix A): the pods' IPv6 gateway."""

_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
_NODE = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
_SUN_PATH = 107
"""Octets of a unix socket's path on Linux, without the closing zero (unix(7))."""


class LabError(Exception):
    """Something the operator should read as it is: who, what, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """One lab: its name is the prefix of everything it makes outside its folder."""

    name: str
    folder: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Lab:
        """TORTIE_LAB_NAME (default `tortie`) and TORTIE_LAB_DIR (default `/run/<name>-lab`)."""
        name = environ.get("TORTIE_LAB_NAME") or DEFAULT_NAME
        if not _NAME.fullmatch(name):
            raise LabError(
                f"TORTIE_LAB_NAME={name!r}: use a lower-case letter and up to 11 letters or digits"
            )
        folder = Path(environ.get("TORTIE_LAB_DIR") or f"/run/{name}-lab")
        if not folder.is_absolute():
            raise LabError(f"TORTIE_LAB_DIR={str(folder)!r}: use an absolute path")
        if len(os.fsencode(folder)) + len("/node-999/speaker.sock") > _SUN_PATH:
            raise LabError(
                f"TORTIE_LAB_DIR={str(folder)!r} is too long for the unix sockets in it (80 characters)"
            )
        return cls(name=name, folder=folder)

    @property
    def fabric(self) -> str:
        """Namespace of the bridge and of etcd."""
        return f"{self.name}-fabric"

    @property
    def state_file(self) -> Path:
        return self.folder / "lab.json"

    @property
    def control_socket(self) -> Path:
        return self.folder / "supervisor.sock"

    @property
    def etcd_folder(self) -> Path:
        return self.folder / "etcd"

    @property
    def broker_folder(self) -> Path:
        """There is one when the lab has a broker."""
        return self.folder / "mosquitto"

    @property
    def broker_socket(self) -> Path:
        """The broker for programs outside the namespaces."""
        return self.broker_folder / "mqtt.sock"

    @property
    def etcd_socket(self) -> Path:
        return self.folder / "etcd.sock"

    @property
    def etcd_endpoint(self) -> str:
        """For programs outside the namespaces; the nodes use `node_etcd_endpoint`."""
        return f"unix://{self.etcd_socket}"

    @property
    def node_etcd_endpoint(self) -> str:
        return f"http://{FABRIC_V4}:{ETCD_PORT}"

    def namespace(self, node: str) -> str:
        return f"{self.name}-{node}"

    def pod_namespace(self, pod: str) -> str:
        """Pods are named after the node they were made on: `node-1-pod-1`."""
        return f"{self.name}-{pod}"

    def node_folder(self, node: str) -> Path:
        """The node's run directory: sockets, exabgp.conf, logs."""
        return self.folder / node

    def owns(self, namespace: str) -> bool:
        """True for namespaces of this lab; lab names carry no hyphen, so no other lab's match."""
        return namespace.startswith(f"{self.name}-")


def node_name(index: int) -> str:
    return f"node-{index}"


def check_node_name(name: str) -> str:
    """Raises LabError unless the name can be a host's, a namespace's and an interface's name."""
    if not _NODE.fullmatch(name) or name in ("fabric", "etcd", "mosquitto"):
        raise LabError(f"node name {name!r}: use lower-case letters, digits and hyphens, at most 30")
    return name


def node_addresses(index: int) -> tuple[str, str]:
    """The node's IPv4 and IPv6 address on the fabric; node 1 has 198.18.0.11 and 2001:db8:18::11."""
    if not 1 <= index <= MAX_NODES:
        raise LabError(f"a lab has 1 to {MAX_NODES} nodes, not {index}")
    number = 10 + index
    return f"198.18.{number >> 8}.{number & 255}", f"2001:db8:18::{number}"


def bridge_port(index: int) -> str:
    """The fabric's end of a node's cable; by number, as interface names end at 15 characters."""
    return f"port{index}"


def cali_interface(pod: str, kubernetes_namespace: str = "default") -> str:
    """Host side of a pod's veth: `cali` and 11 hex digits, as Calico's CNI plugin names it."""
    digest = hashlib.sha1(f"{kubernetes_namespace}.{pod}".encode(), usedforsecurity=False)
    return "cali" + digest.hexdigest()[:11]
