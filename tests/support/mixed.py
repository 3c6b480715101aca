"""A cluster whose hosts run calico-node's BIRD or Tortie, and may change from one to the other: one fabric,
one etcd, a pod behind each host, IPv4 and IPv6, BGP passwords on the mesh."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Self

from agent.lab import icmp
from agent.lab.plan import CALI_LINK_LOCAL, CALI_MAC, GATEWAY_V4
from agent.lab.traffic import Traffic
from felix_like.model.address import Address
from tests.support.bird import Bird, static
from tests.support.calico_node import UNSET, CalicoNode
from tests.support.netns import Namespace
from tests.support.routers import KERNEL
from tests.support.system import BIN, ETCD, ETCD6, Node, System, block4, block6, kernel_routes, until, v4, v6

PASSWORD = {"name": "bgp-passwords", "key": "mesh"}
MESH = {"nodeToNodeMeshEnabled": True, "asNumber": 64512, "nodeMeshPassword": {"secretKeyRef": PASSWORD}}
SECONDS = 90.0
"""The longest that anything here is waited for: BIRD's own pauses add up to half of it."""

LEAST = 100
"""Packets that every pod sends to every address while something happens, however soon it is over."""


class Router:
    """A router of another AS, BIRD 2 with its defaults: it keeps the routes of those who restart.

    Multihop, as Calico's side is: a direct neighbour would tell its link-local address as well, and BIRD's
    nodes would go by that one, Tortie's by the global one.
    """

    PREFIX4, PREFIX6 = "203.0.113.0/24", "2001:db8:113::/64"
    INSIDE4, INSIDE6 = "203.0.113.1", "2001:db8:113::1"
    NUMBER, ASN = 50, 64600

    def __init__(self, system: System, numbers: Iterable[int]) -> None:
        self.where = system.fabric.node(self.NUMBER)
        self.where.ip("addr", "add", f"{self.INSIDE4}/32", "dev", "lo")
        self.where.ip("-6", "addr", "add", f"{self.INSIDE6}/128", "dev", "lo", "nodad")
        sessions = [
            f"protocol bgp n{number}_{version} {{ local {own(self.NUMBER)} as {self.ASN}; "
            f"neighbor {own(number)} as 64512; multihop; connect delay time 1; connect retry time 2; "
            f"error wait time 1, 2; ipv{version} {{ import all; export where source = RTS_STATIC; }}; }}"
            for number in numbers
            for version, own in ((4, v4), (6, v6))
        ]
        links = 'protocol direct links { ipv4; ipv6; interface "eth0"; }'
        parts = [KERNEL, links, static("o4", [self.PREFIX4]), static("o6", [self.PREFIX6]), *sessions]
        self.bird = Bird(self.where, system.folder / "router", v4(self.NUMBER), *parts)
        for name, own in (("router4", v4), ("router6", v6)):
            system.etcd.resource("BGPPeer", name, {"peerIP": own(self.NUMBER), "asNumber": self.ASN})


class Host:
    """One host with a pod; `tortie` and `calico` are what may run on it, one at a time."""

    def __init__(self, system: System, number: int, metric: int) -> None:
        self.number, self.name = number, f"node-{number}"
        self.tortie: Node = system.node(number, start=False)
        self.where = self.tortie.where
        self.calico = CalicoNode(
            self.where, self.name, system.folder / f"c{number}", system.etcd.endpoint, metric=metric
        )
        for one in (self.tortie, self.calico):
            one.secret(PASSWORD["name"], PASSWORD["key"], "horse battery")
        self.is_tortie = False
        self.outside_peers: tuple[str, ...] = ()
        self.pod4, self.pod6 = f"10.65.{number}.10", f"fd00:65::{number * 256 + 10:x}"
        self.pod = self._add_pod(system)

    def _add_pod(self, system: System) -> Namespace:
        """As Calico's CNI plugin and Felix wire it: a cali veth, host routes, the gateway by proxy ARP."""
        pod = Namespace(f"p{self.number}")
        system.fabric._members.append(pod)
        where, port = self.where, f"cali{self.number}"
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            where.sysctl(name, "1")
        where.ip("route", "add", "default", "via", ETCD)
        where.ip("-6", "route", "add", "default", "via", ETCD6)
        pod.sysctl("ipv6/conf/default/accept_dad", "0")
        where.sysctl("ipv6/conf/default/accept_dad", "0")
        where.ip(
            "link",
            "add",
            port,
            "address",
            CALI_MAC,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            pod.name,
        )
        where.sysctl(f"ipv4/conf/{port}/proxy_arp", "1")
        where.sysctl(f"ipv4/neigh/{port}/proxy_delay", "0")
        where.ip("link", "set", port, "up")
        where.ip("route", "add", f"{self.pod4}/32", "dev", port, "scope", "link")
        where.ip("-6", "route", "add", f"{self.pod6}/128", "dev", port)
        pod.ip("addr", "add", f"{self.pod4}/32", "dev", "eth0")
        pod.ip("-6", "addr", "add", f"{self.pod6}/128", "dev", "eth0", "nodad")
        pod.ip("link", "set", "eth0", "up")
        pod.ip("route", "add", GATEWAY_V4, "dev", "eth0", "scope", "link")
        pod.ip("route", "add", "default", "via", GATEWAY_V4, "dev", "eth0")
        pod.ip("-6", "route", "add", "default", "via", CALI_LINK_LOCAL, "dev", "eth0")
        return pod

    # What runs here

    def start_calico(self) -> None:
        self.is_tortie = False
        self.calico.begin()
        until(self.calico.rendered, lambda: self.calico.log, SECONDS)
        self.calico.bird()

    def start_tortie(self) -> None:
        self.is_tortie = True
        self.tortie.start_speaker()
        self.tortie.start_agent()

    def stop_tortie(self) -> None:
        """SIGTERM to both, as when the DaemonSet's pod goes."""
        for process in (self.tortie.agent, self.tortie.speaker):
            assert process is not None
            process.send_signal(signal.SIGTERM)
        for process in (self.tortie.agent, self.tortie.speaker):
            assert process is not None
            assert process.wait(30) == 0

    def in_order(self, others: list[Host]) -> bool:
        """Every session is up and as configured, nothing is stale or waited for."""
        addresses = [address for other in others for address in (v4(other.number), v6(other.number))]
        addresses += self.outside_peers
        if not self.is_tortie:
            return self.calico.established(*addresses)
        if not self.tortie.status().get("speaker", {}).get("configured"):
            return False  # a session that is another now is about to end
        peers = self.tortie.peers()
        return self.tortie.established(*addresses) and not any(peer["stale"] for peer in peers.values())

    def complaint(self) -> object:
        if not self.is_tortie:
            return self.calico.sessions(4), self.calico.sessions(6), self.calico.recovering()
        return self.tortie.status()

    def routes(self) -> dict[str, str]:
        """Prefix -> gateway or type, in the kernel; whoever put them there."""
        return kernel_routes(self.where)

    def routes_of(self, protocol: str) -> dict[str, int]:
        """Destination -> metric of the routes with a protocol."""
        return {
            route["dst"]: route.get("metric", 0)
            for version in ("-4", "-6")
            for route in json.loads(self.where.ip(version, "-j", "route", "show", "proto", protocol) or "[]")
        }

    def leftovers(self, *words: str) -> tuple[int, str]:
        """`tortiectl node leftovers` on this host: exit status, and what it says."""
        done = subprocess.run(
            [
                "nsenter", f"--net={self.where.path}", str(BIN / "tortiectl"), "node", "leftovers",
                "--bird-sockets", str(self.calico.folder), *words,
            ],
            env=os.environ | {"TORTIE_RUN_DIR": str(self.tortie.folder)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout


def reached(number: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """A host's own blocks, and by which address they are reached."""
    return (block4(number), v4(number)), (block6(number), v6(number))


class Mixed:
    """The cluster. `tortie`: numbers of the hosts that begin as Tortie's; the others are calico-node's.
    `router`: every node peers with one outside, too."""

    def __init__(
        self, *numbers: int, tortie: tuple[int, ...] = (), metric: int = UNSET, router: bool = False
    ) -> None:
        self.system = System()
        try:
            self.etcd = self.system.etcd
            self.etcd.resource(
                "BGPConfiguration",
                "default",
                {
                    "nodeToNodeMeshEnabled": True,
                    "asNumber": 64512,
                    "nodeMeshPassword": {"secretKeyRef": PASSWORD},
                },
            )
            for number in numbers:
                self.etcd.node(f"node-{number}", number)
            self.hosts = {number: Host(self.system, number, metric) for number in numbers}
            self.router = Router(self.system, numbers) if router else None
            if self.router is not None:
                for host in self.hosts.values():
                    host.outside_peers = (v4(Router.NUMBER), v6(Router.NUMBER))
            for number, host in self.hosts.items():
                if number in tortie:
                    host.start_tortie()
                else:
                    host.calico.begin()
            for host in self.hosts.values():
                if not host.is_tortie:
                    until(host.calico.rendered, lambda host=host: host.calico.log, SECONDS)  # type: ignore[misc]
                    host.calico.bird()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.system.close()

    def others(self, host: Host) -> list[Host]:
        return [other for other in self.hosts.values() if other is not host]

    def wait(self, without: tuple[Host, ...] = ()) -> None:
        """Until every session is up and every kernel reaches every block."""
        hosts = [host for host in self.hosts.values() if host not in without]
        for host in hosts:
            others = [other for other in hosts if other is not host]
            until(partial(host.in_order, others), lambda host=host: (host.name, host.complaint()), SECONDS)
            expected = {block: at for other in others for block, at in reached(other.number)}
            if self.router is not None:
                number = Router.NUMBER
                expected |= {Router.PREFIX4: v4(number), Router.PREFIX6: v6(number)}
            until(
                lambda host=host, expected=expected: expected.items() <= host.routes().items(),
                lambda host=host, expected=expected: (host.name, expected, host.routes()),
                SECONDS,
            )
        if self.router is not None:
            # By way of any node: each passes on what it has learned from the others.
            where = self.router.where
            blocks = {block for host in hosts for block, _ in reached(host.number)}
            until(lambda: blocks <= kernel_routes(where).keys(), lambda: kernel_routes(where), SECONDS)

    def reaches(self, prefix: str, holder: Host) -> None:
        """Until every other kernel has the prefix by way of its holder."""
        via = v6(holder.number) if ":" in prefix else v4(holder.number)
        for host in self.others(holder):
            until(
                lambda host=host: host.routes().get(prefix) == via,
                lambda host=host: (host.name, prefix, host.routes(), host.complaint()),
                SECONDS,
            )

    def forgets(self, prefix: str, *hosts: Host) -> None:
        for host in hosts or self.hosts.values():
            until(
                lambda host=host: prefix not in host.routes(),
                lambda host=host: (host.name, prefix, host.routes(), host.complaint()),
                SECONDS,
            )

    @contextlib.contextmanager
    def traffic(self) -> Iterator[None]:
        """Between all pods, both families and directions, every 10 ms; not one packet may be lost."""
        sources = [icmp.Source(host.name, host.pod.name) for host in self.hosts.values()]
        targets = {
            host.name: [Address.parse(host.pod4), Address.parse(host.pod6)] for host in self.hosts.values()
        }
        if self.router is not None:
            sources.append(icmp.Source("router", self.router.where.name))
            targets["router"] = [Address.parse(Router.INSIDE4), Address.parse(Router.INSIDE6)]
        _, silent = icmp.matrix(sources, targets)
        assert not silent, silent
        traffic = Traffic(sources, targets)
        traffic.start()
        try:
            yield
            until(lambda: traffic.rounds >= LEAST, "enough packets", SECONDS)
        finally:
            tally = traffic.stop()
        assert not tally.lost, tally.losses()
        assert tally.least >= LEAST
