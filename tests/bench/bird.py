"""The yardstick: BIRD 2 and the pipeline that calico-node runs in front of it.

`python -m tests.bench.bird NODE FOLDER ENDPOINT` is a confd-like script: it watches the node's block
affinities and the nodes in etcd, renders bird.conf, checks it with `bird -p`, renames it and runs
`birdc configure`. It uses Tortie's own etcd client, renders in one go and reloads once per change, where
confd renders six files and sends up to three reloads. As confd does, it runs both commands through the
shell. calico-node does not check the file that a claim changes; without that check this pipeline is about
3 ms faster: the README says what that does to the ratio.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from agent.lab.state import LabNode
from felix_like.model.address import Prefix
from tests.bench.world import World

CONFIG = """\
log stderr {{ warning, error, fatal, bug }};
router id {router_id};
protocol device {{ scan time 2; }}
protocol direct {{ ipv4; interface "eth0"; }}
protocol kernel {{
  learn; persist; scan time 2; merge paths; graceful restart;
  ipv4 {{ import all; export where source = RTS_BGP; }};
}}
protocol static blocks {{ ipv4;
{blocks}}}
template bgp mesh {{
  local {router_id} as 64512;
  ipv4 {{ import all; export where source = RTS_STATIC; gateway recursive; }};
  graceful restart; hold time 90; connect delay time 1; connect retry time 5; error wait time 1, 5;
}}
{mesh}"""


def config(router_id: str, blocks: Iterable[Prefix], peers: Iterable[str]) -> str:
    """bird.conf of one node; passive by Calico's comparison of the addresses as strings."""
    return CONFIG.format(
        router_id=router_id,
        blocks="".join(f"  route {block} blackhole;\n" for block in sorted(blocks)),
        mesh="".join(
            f"protocol bgp Mesh_{peer.replace('.', '_')} from mesh {{ neighbor {peer} as 64512;"
            f"{' passive on;' if peer > router_id else ''} }}\n"
            for peer in sorted(peers)
        ),
    )


def start(world: World, node: LabNode, text: str) -> subprocess.Popen[bytes]:
    """BIRD in the node's namespace with that configuration."""
    folder = world.folder(node)
    (folder / "bird.conf").write_text(text)
    return world.start(
        world.lab.namespace(node.name),
        ["bird", "-f", "-c", str(folder / "bird.conf"), "-s", str(folder / "bird.ctl")],
        log=folder / "bird.log",
    )


def birdc(folder: Path, *command: str) -> str:
    """One command on BIRD's socket. Raises CalledProcessError."""
    done = subprocess.run(
        ["birdc", "-s", str(folder / "bird.ctl"), *command], capture_output=True, text=True, check=True
    )
    return done.stdout


def protocols(folder: Path) -> str:
    """`show protocols`; empty while BIRD has not opened its socket."""
    try:
        return birdc(folder, "show", "protocols")
    except subprocess.CalledProcessError:
        return ""


def pipeline(world: World, node: LabNode) -> subprocess.Popen[bytes]:
    """The confd-like script in the node's namespace."""
    folder = world.folder(node)
    return world.start(
        world.lab.namespace(node.name),
        [sys.executable, "-m", "tests.bench.bird", node.name, str(folder), world.node_endpoint],
        log=folder / "confd.log",
        cwd=str(Path(__file__).parents[2]),
    )


async def _confd(name: str, folder: Path, endpoint: str) -> None:
    from felix_like.calc.snapshot import Snapshot
    from felix_like.datastore.client import Client
    from felix_like.datastore.config import EtcdConfig
    from felix_like.datastore.watch import Batch, Informer
    from felix_like.model.block import AffinityState

    snapshot = Snapshot()
    written = ""
    async with Client(EtcdConfig(endpoints=(endpoint,))) as client:
        async for event in Informer(client).events():
            if not isinstance(event, Batch):
                continue
            snapshot.apply(event.changes)
            me = snapshot.nodes.get(name)
            if me is None or me.ipv4 is None:
                continue
            mesh = snapshot.bgp_configurations["default"].mesh_enabled is not False
            text = config(
                str(me.ipv4),
                [
                    a.cidr
                    for a in snapshot.affinities.values()
                    if a.node == name and a.state is AffinityState.CONFIRMED
                ],
                [str(node.ipv4) for node in snapshot.nodes.values() if node.name != name and node.ipv4]
                if mesh
                else [],
            )
            if text != written:
                written = text
                await _apply(folder, text)


async def _apply(folder: Path, text: str) -> None:
    staged, target = folder / "bird.conf.new", folder / "bird.conf"
    staged.write_text(text)
    if await _shell(f"bird -p -c {staged}"):
        raise SystemExit("bird -p refuses the rendered file")
    staged.replace(target)
    await _shell(f"birdc -s {folder}/bird.ctl configure")


async def _shell(command: str) -> int:
    """As confd runs check_cmd and reload_cmd: through the shell."""
    child = await asyncio.create_subprocess_exec("/bin/sh", "-c", command, stdout=asyncio.subprocess.DEVNULL)
    return await child.wait()


if __name__ == "__main__":
    asyncio.run(_confd(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
