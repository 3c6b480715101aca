"""(2) Routes from BIRD until the last one is in the receiver's kernel: into Tortie, and into another BIRD."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.keys import resource_key
from felix_like.model.address import Address, Prefix
from tests.bench import bird, cluster, kernels, tortie
from tests.bench.world import World, wait_until, world

SIZES = (1_000, 10_000, 100_000)
FIRST = int.from_bytes(Address.parse("20.0.0.0"))
INJECTOR = """\
log stderr {{ warning, error, fatal, bug }};
router id {own};
protocol device {{ scan time 2; }}
protocol direct {{ ipv4; interface "eth0"; }}
protocol bgp receiver {{
  local {own} as 64600; neighbor {peer} as 64512; multihop;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
  connect delay time 1; connect retry time 2; error wait time 1, 2; {passive}
}}
protocol static inject {{ disabled; ipv4;
{routes}}}
"""
RECEIVER = """\
log stderr {{ warning, error, fatal, bug }};
router id {own};
protocol device {{ scan time 2; }}
protocol direct {{ ipv4; interface "eth0"; }}
protocol kernel {{
  learn; persist; scan time 2; merge paths;
  ipv4 {{ import all; export where source = RTS_BGP; }};
}}
protocol bgp injector {{
  local {own} as 64512; neighbor {peer} as 64600; multihop;
  ipv4 {{ import all; export none; gateway recursive; }};
  connect delay time 1; connect retry time 2; error wait time 1, 2;
}}
"""


def run(sizes: tuple[int, ...] = SIZES) -> dict[str, object]:
    """Seconds per size and receiver, one after the other in the same namespaces."""
    figures: dict[str, object] = {}
    for size in sizes:
        with world("benchc", 2) as made:
            theirs = _receive_bird(made, size)
        with world("benchc", 2) as made:
            ours = _receive_tortie(made, size)
        figures[str(size)] = {"tortie_s": ours, "bird_s": theirs}
    return figures


def _injector(made: World, size: int) -> Path:
    receiver, injector = made.nodes
    routes = "".join(
        f"  route {Prefix(Address((FIRST + (number << 8)).to_bytes(4)), 24)} blackhole;\n"
        for number in range(size)
    )
    text = INJECTOR.format(own=injector.ipv4, peer=receiver.ipv4, passive="", routes=routes)
    bird.start(made, injector, text)
    return made.folder(injector)


def _receive_bird(made: World, size: int) -> float:
    receiver, injector = made.nodes
    child = bird.start(made, receiver, RECEIVER.format(own=receiver.ipv4, peer=injector.ipv4))
    folder = _injector(made, size)
    wait_until(lambda: "Established" in bird.protocols(made.folder(receiver)), 30, "the BIRD to BIRD session")
    return _inject(folder, child.pid, size)


def _receive_tortie(made: World, size: int) -> float:
    receiver, injector = made.nodes
    asyncio.run(_seed(made, injector.ipv4))
    processes = tortie.start(made, receiver, TORTIE_PREFIX_LIMIT="200000")
    tortie.wait_up(made, [receiver])
    folder = _injector(made, size)
    wait_until(lambda: tortie.established(made, receiver) == 1, 60, "the session with BIRD")
    return _inject(folder, processes[-1].pid, size)


async def _seed(made: World, peer: str) -> None:
    async with Client(EtcdConfig(endpoints=(made.endpoint,))) as client:
        await cluster.seed(client, made, nodes=False)
        resource = {
            "kind": "BGPPeer",
            "apiVersion": "projectcalico.org/v3",
            "metadata": {"name": "injector", "annotations": {"tortie/prefix-limit": "200000"}},
            "spec": {"peerIP": peer, "asNumber": 64600},
        }
        await client.put(resource_key("BGPPeer", "injector"), json.dumps(resource).encode())


def _inject(folder: Path, pid: int, size: int) -> float:
    """From `birdc enable` to the last route; the kernel counts its prefixes itself."""
    before = kernels.prefixes(pid)
    start = time.monotonic()
    bird.birdc(folder, "enable", "inject")
    wait_until(lambda: kernels.prefixes(pid) >= before + size, 300, f"{size} routes in the kernel")
    return time.monotonic() - start
