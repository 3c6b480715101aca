"""Other people's BGP speakers as nodes of a mesh: GoBGP, FRR, and BIRD with its routes in the kernel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.netns import Namespace
from tests.support.system import ASN, until

KERNEL = "".join(
    f"protocol kernel k{version} {{ scan time 1; persist; graceful restart; "
    f"ipv{version} {{ import none; export where source = RTS_BGP; }}; }}\n"
    for version in (4, 6)
)
"""For BIRD: what it learns goes to the kernel and stays there over a restart, as in calico-node."""


class GoBgp:
    """gobgpd with neighbors by address; it has a RIB and no FIB."""

    def __init__(self, where: Namespace, folder: Path, router_id: str, neighbors: dict[str, str]) -> None:
        """`neighbors`: peer address -> our own address towards it."""
        folder.mkdir(parents=True)
        self._where = where
        conf = folder / "gobgpd.json"
        conf.write_text(
            json.dumps(
                {
                    "global": {"config": {"as": ASN, "router-id": router_id}},
                    "neighbors": [_neighbor(peer, own) for peer, own in neighbors.items()],
                }
            )
        )
        with (folder / "gobgpd.log").open("w") as log:
            self.process = where.start(
                "gobgpd", "-f", str(conf), "-t", "json", "--api-hosts", "127.0.0.1:50051",
                stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: self.ask("neighbor") is not None, "gobgpd answers")

    def ask(self, *words: str) -> Any:
        """The answer of `gobgp -j …`; None while it does not answer."""
        try:
            text = self._where.run("gobgp", "-p", "50051", "-j", *words)
        except AssertionError:
            return None
        return json.loads(text) if text.strip() else []

    def originate(self, *prefixes: str) -> None:
        for prefix in prefixes:
            family = "ipv6" if ":" in prefix else "ipv4"
            self._where.run("gobgp", "-p", "50051", "global", "rib", "-a", family, "add", prefix)

    def rib(self, family: str) -> dict[str, list[str]]:
        """Prefix -> next hops."""
        table = self.ask("global", "rib", "-a", family) or {}
        return {
            prefix: [
                str(attribute["nexthop"])
                for path in paths
                for attribute in path["attrs"]
                if "nexthop" in attribute
            ]
            for prefix, paths in table.items()
        }


def _neighbor(peer: str, own: str) -> dict[str, Any]:
    family = "ipv6-unicast" if ":" in peer else "ipv4-unicast"
    return {
        "config": {"neighbor-address": peer, "peer-as": ASN},
        "transport": {"config": {"local-address": own}},
        "timers": {"config": {"connect-retry": 2, "idle-hold-time-after-reset": 1}},
        "graceful-restart": {"config": {"enabled": True, "restart-time": 60}},
        "afi-safis": [
            {
                "config": {"afi-safi-name": family},
                "mp-graceful-restart": {"config": {"enabled": True}},
            }
        ],
    }


FRR = """\
router bgp {asn}
 bgp router-id {router_id}
 no bgp default ipv4-unicast
 no bgp network import-check
{neighbors} !
 address-family ipv4 unicast
{ipv4} exit-address-family
 !
 address-family ipv6 unicast
{ipv6} exit-address-family
"""


class Frr:
    """zebra and bgpd of FRR with its routes in the kernel."""

    def __init__(
        self, where: Namespace, folder: Path, router_id: str, peers: Iterable[str], networks: Iterable[str]
    ) -> None:
        folder.mkdir(parents=True)
        # The daemons drop to a user of their own, who must reach and write this folder.
        for one in (folder, folder.parent):
            one.chmod(0o755)
        shutil.chown(folder, "frr", "frr")
        self._where, self._folder = where, folder
        peers, networks = list(peers), list(networks)
        (folder / "zebra.conf").write_text("")
        (folder / "bgpd.conf").write_text(
            FRR.format(
                asn=ASN,
                router_id=router_id,
                neighbors="".join(
                    f" neighbor {peer} remote-as {ASN}\n neighbor {peer} timers connect 2\n" for peer in peers
                ),
                ipv4=_family(peers, networks, "."),
                ipv6=_family(peers, networks, ":"),
            )
        )
        for daemon in ("zebra", "bgpd"):
            with (folder / f"{daemon}.out").open("w") as log:
                where.start(
                    f"/usr/lib/frr/{daemon}", "-f", str(folder / f"{daemon}.conf"),
                    "-z", str(folder / "zserv.api"), "-i", str(folder / f"{daemon}.pid"),
                    "--vty_socket", str(folder), "-P", "0", "--log", f"file:{folder}/{daemon}.log",
                    stdout=log, stderr=log,
                )  # fmt: skip
            until((folder / f"{daemon}.vty").exists, f"{daemon} answers")

    def ask(self, command: str) -> str:
        return self._where.run("vtysh", "--vty_socket", str(self._folder), "-c", command)


def _family(peers: list[str], networks: list[str], mark: str) -> str:
    lines = [f"  network {network}\n" for network in networks if mark in network]
    lines += [f"  neighbor {peer} activate\n" for peer in peers if mark in peer]
    return "".join(lines)
