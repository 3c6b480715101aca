"""A node that routes as calico-node does: BIRD, configured from etcd as confd's templates would have it.

Two differences from the real one: BIRD is Debian's BIRD 2, where Calico has a fork of 1.6; and what the
templates say is written here anew, from what they mean, with the directives' names of BIRD 2.

`python -m tests.support.calico_node NODE FOLDER ENDPOINT METRIC` is the confd of one node: it follows etcd,
renders `bird.cfg` and `bird6.cfg` (one daemon for each family) and has BIRD read what changed.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from felix_like.calc.selector import parse
from felix_like.calc.snapshot import Snapshot
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.watch import Batch, Informer
from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.bgp import BgpPeer
from felix_like.model.block import AffinityState
from felix_like.model.node import Node
from tests.support.netns import Namespace

ROOT = Path(__file__).parents[2]
DAEMONS: dict[IpVersion, str] = {4: "bird", 6: "bird6"}
UNSET, NORMAL = 0, 1024
"""The metric of BIRD's kernel routes: none up to Calico 3.31 (in IPv6 the kernel makes 1024 of it), and
BGPConfiguration's ipv4NormalRoutePriority since."""


class CalicoNode:
    """calico-node's routing part on one host. `start` and `kill` may alternate."""

    def __init__(
        self, where: Namespace, name: str, folder: Path, endpoint: str, *, metric: int = UNSET
    ) -> None:
        self.where, self.name, self.folder = where, name, folder
        self._endpoint, self._metric = endpoint, metric
        self._processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True)
        (folder / "secrets").mkdir()

    def secret(self, name: str, key: str, text: str) -> None:
        """What calico-node reads from the Kubernetes API."""
        file = self.folder / "secrets" / name / key
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    def begin(self) -> None:
        """A new pod: nothing of an earlier one's file system is there. BIRD starts once it has its files."""
        for file in (f"{daemon}{end}" for daemon in DAEMONS.values() for end in (".cfg", ".ctl")):
            (self.folder / file).unlink(missing_ok=True)
        self._start(
            sys.executable, "-m", "tests.support.calico_node",
            self.name, str(self.folder), self._endpoint, str(self._metric),
        )  # fmt: skip

    def _start(self, *command: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self._processes.append(
                self.where.start(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
            )

    def rendered(self) -> bool:
        return all((self.folder / f"{daemon}.cfg").exists() for daemon in DAEMONS.values())

    def bird(self) -> None:
        """`-R`: it recovers from what its peers kept (graceful restart), as calico-node's does."""
        for daemon in DAEMONS.values():
            self._start(
                "bird", "-R", "-f", "-c", str(self.folder / f"{daemon}.cfg"), "-s", str(self._socket(daemon))
            )

    def kill(self) -> None:
        """SIGKILL to all of it, as when its pod goes: nothing is said to the peers, and routes stay."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def _socket(self, daemon: str) -> Path:
        return self.folder / f"{daemon}.ctl"

    def ask(self, version: IpVersion, *words: str) -> str:
        """What birdc says; nothing while BIRD does not answer."""
        done = subprocess.run(
            ["birdc", "-s", str(self._socket(DAEMONS[version])), *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def sessions(self, version: IpVersion) -> dict[str, str]:
        """Protocol -> BGP's state."""
        text = self.ask(version, "show", "protocols")
        return dict(re.findall(r"^(\w+)\s+BGP\s+\S+\s+\S+\s+\S+\s+(\w+)", text, re.MULTILINE))

    def recovering(self) -> bool:
        """Graceful restart recovery goes on: nothing new reaches the kernel until it ends."""
        return any("recovery in progress" in self.ask(version, "show", "status") for version in DAEMONS)

    def established(self, *addresses: str) -> bool:
        """With all of these peers, and the recovery has ended."""
        states = self.sessions(4) | self.sessions(6)
        wanted = {re.sub(r"[.:]", "_", address) for address in addresses}
        up = {name.partition("_")[2] for name, state in states.items() if state == "Established"}
        return wanted <= up and not self.recovering()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


# -- what the templates say ---------------------------------------------------------------------------


def render(
    snapshot: Snapshot, me: Node, version: IpVersion, metric: int, password: Callable[[str, str], str]
) -> str:
    """bird.cfg or bird6.cfg of a node, with what confd includes into it."""
    own = sorted(
        affinity.cidr
        for affinity in snapshot.affinities.values()
        if affinity.node == me.name
        and affinity.state is AffinityState.CONFIRMED
        and affinity.cidr.version == version
    )
    pools = sorted(pool.cidr for pool in snapshot.pools.values() if pool.cidr.version == version)
    family = f"ipv{version}"
    parts = [
        f"router id {me.ipv4};",
        _filters(own, pools, metric),
        "protocol kernel { learn; persist; scan time 2; merge paths on; graceful restart; metric 0;",
        f"  {family} {{ import all; export filter calico_kernel_programming; }}; }}",
        "protocol device { scan time 2; }",
        f'protocol direct {{ {family}; interface -"cali*", -"kube-ipvs*", "*"; }}',
        f"protocol static {{ {family};",
        *(f"  route {block} blackhole;" for block in own),
        "}",
        *(_session(snapshot, me, peer, version, password) for peer in _peers(snapshot, me, version)),
    ]
    return "\n".join([*parts, ""])


def _filters(own: list[Prefix], pools: list[Prefix], metric: int) -> str:
    """The aggregation: of an own block the block itself, and nothing inside it; other addresses of the pools,
    which the node has borrowed, as they are."""
    lines = ["filter calico_export_to_bgp_peers {", '  if defined(ifname) && ifname ~ "*.cali" then reject;']
    for block in own:
        lines += [f"  if net = {block} then accept;", f"  if net ~ {block} then reject;"]
    lines += [f"  if net ~ {pool} then accept;" for pool in pools]
    lines += ["  reject;", "}", "filter calico_kernel_programming {"]
    lines.append("  if source = RTS_DEVICE then reject;")  # BIRD 1.6 leaves them out by itself
    if metric:
        lines.append(f"  if source = RTS_BGP then krt_metric = {metric};")
    return "\n".join([*lines, "  accept;", "}"])


class _Wanted:
    """A session: Calico's protocol name tells where it comes from."""

    def __init__(self, kind: str, node: Node | None, address: Address, asn: int, ref: object) -> None:
        self.kind, self.node, self.address, self.asn, self.ref = kind, node, address, asn, ref

    @property
    def name(self) -> str:
        return f"{self.kind}_{re.sub(r'[.:]', '_', str(self.address))}"


def _peers(snapshot: Snapshot, me: Node, version: IpVersion) -> list[_Wanted]:
    """BGPPeers and their reverse, then the mesh; the first that wants an address has it; by name."""
    found: dict[Address, _Wanted] = {}
    default = snapshot.bgp_configurations.get("default")
    resources = [snapshot.bgp_peers[name] for name in sorted(snapshot.bgp_peers)]
    for wanted in (w for r in resources for w in _of(r, snapshot, me, version)):
        found.setdefault(wanted.address, wanted)
    if (default is None or default.mesh_enabled is not False) and not me.route_reflector_cluster_id:
        for node in snapshot.nodes.values():
            address = node.address(version)
            if node.name != me.name and address is not None and not node.route_reflector_cluster_id:
                ref = default.mesh_password if default else None
                wanted = _Wanted("Mesh", node, address, _asn(snapshot, node), ref)
                found.setdefault(address, wanted)
    return sorted(found.values(), key=lambda wanted: wanted.name)


def _of(resource: BgpPeer, snapshot: Snapshot, me: Node, version: IpVersion) -> Iterator[_Wanted]:
    """The sessions that a BGPPeer asks this node for: forward, and in return."""
    if resource.peer_ip is not None:
        if _is_for(resource, me) and resource.peer_ip.version == version and resource.asn is not None:
            yield _Wanted(_kind(resource), None, resource.peer_ip, resource.asn, resource.password)
        return
    assert resource.peer_selector is not None
    targets = parse(resource.peer_selector)
    for node in snapshot.nodes.values():
        address = node.address(version)
        if node.name == me.name or address is None:
            continue
        if _is_for(resource, me) and targets.matches(node.labels):
            yield _Wanted(_kind(resource), node, address, _asn(snapshot, node), resource.password)
        elif _is_for(resource, node) and targets.matches(me.labels):
            yield _Wanted("Node", node, address, _asn(snapshot, node), resource.password)


def _kind(resource: BgpPeer) -> str:
    return "Global" if resource.node is None and resource.node_selector is None else "Node"


def _is_for(resource: BgpPeer, node: Node) -> bool:
    if resource.node_selector is not None:
        return parse(resource.node_selector).matches(node.labels)
    return resource.node in (None, node.name)


def _asn(snapshot: Snapshot, node: Node) -> int:
    default = snapshot.bgp_configurations.get("default")
    return node.asn or (default.asn if default is not None else None) or 64512


def _session(
    snapshot: Snapshot, me: Node, peer: _Wanted, version: IpVersion, password: Callable[[str, str], str]
) -> str:
    own, asn = me.address(version), _asn(snapshot, me)
    # Compared as text: "10.0.0.9" is greater than "10.0.0.10".
    passive = peer.kind != "Node" and peer.node is not None and str(peer.address) > str(own)
    client = (
        bool(me.route_reflector_cluster_id)
        and peer.asn == asn
        and (peer.node.route_reflector_cluster_id if peer.node else "") != me.route_reflector_cluster_id
    )
    lines = [
        f"protocol bgp {peer.name} {{",
        f"  local as {asn}; neighbor {peer.address} as {peer.asn}; source address {own}; multihop;",
        "  graceful restart; connect delay time 2; connect retry time 5; error wait time 5, 30;",
        "  passive on;" if passive else "",
        f"  rr client; rr cluster id {me.route_reflector_cluster_id};" if client else "",
        f'  password "{password(peer.ref.name, peer.ref.key)}";' if peer.ref else "",  # type: ignore[attr-defined]
        f"  ipv{version} {{ add paths on; gateway recursive; import all;",
        "    export filter calico_export_to_bgp_peers; };",
        "}",
    ]
    return "\n".join(line for line in lines if line)


# -- confd --------------------------------------------------------------------------------------------


async def confd(name: str, folder: Path, endpoint: str, metric: int) -> None:
    """Render what changed, rename it into its place, have BIRD read it. For ever."""

    def password(secret: str, key: str) -> str:
        return (folder / "secrets" / secret / key).read_text()

    snapshot, written = Snapshot(), dict.fromkeys(DAEMONS, "")
    async with Client(EtcdConfig(endpoints=(endpoint,))) as client:
        async for event in Informer(client).events():
            if not isinstance(event, Batch):
                continue
            snapshot.apply(event.changes)
            me = snapshot.nodes.get(name)
            if me is None or me.ipv4 is None:
                continue
            for version, daemon in DAEMONS.items():
                text = render(snapshot, me, version, metric, password)
                if text != written[version]:
                    written[version] = text
                    await publish(folder, daemon, text)


async def publish(folder: Path, daemon: str, text: str) -> None:
    staged = folder / f"{daemon}.new"
    staged.write_text(text)
    await _run("bird", "-p", "-c", str(staged))
    staged.replace(folder / f"{daemon}.cfg")
    if (folder / f"{daemon}.ctl").exists():
        await _run("birdc", "-s", str(folder / f"{daemon}.ctl"), "configure")


async def _run(*command: str) -> None:
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = await child.communicate()
    if child.returncode:
        # Not the end of it: BIRD may be starting, and reads the file then.
        print(f"{' '.join(command)}: {said.decode()}", flush=True)


if __name__ == "__main__":
    asyncio.run(confd(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
