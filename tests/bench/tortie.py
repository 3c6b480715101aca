"""Starts Tortie's two processes on the nodes of a world, and asks them how they are."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterable
from functools import partial
from typing import Any

from agent.lab.state import LabNode
from tests.bench.world import BIN, World, wait_until


def start(world: World, node: LabNode, **settings: str) -> list[subprocess.Popen[bytes]]:
    """Agent and speaker of one node, IPv4 only."""
    folder = world.folder(node)
    env = {
        "NODENAME": node.name,
        "IP": f"{node.ipv4}/16",
        "IP6": "none",
        "ETCD_ENDPOINTS": world.node_endpoint,
        "TORTIE_RUN_DIR": str(folder),
        **settings,
    }
    return [
        world.start(
            world.lab.namespace(node.name), [str(BIN / f"tortie-{role}")], log=folder / f"{role}.log", env=env
        )
        for role in ("speaker", "agent")
    ]


def status(world: World, node: LabNode) -> dict[str, Any] | None:
    """The agent's own status; None while it does not answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        try:
            sock.connect(str(world.folder(node) / "agent.sock"))
            sock.sendall(b'{"ask":"status"}\n')
            answer = sock.makefile("rb").readline()
        except OSError:
            return None
    return json.loads(answer) if answer else None


def wait_up(world: World, nodes: Iterable[LabNode], seconds: float = 180) -> None:
    """Until every agent is in sync with etcd and connected to its speaker."""

    def up(node: LabNode) -> bool:
        said = status(world, node)
        return bool(
            said and said["datastore"]["state"] == "in-sync" and said["speaker"]["state"] == "connected"
        )

    for node in nodes:
        wait_until(partial(up, node), seconds, f"{node.name}'s agent")


def established(world: World, node: LabNode) -> int:
    said = status(world, node) or {"peers": []}
    return sum(peer["state"] == "Established" for peer in said["peers"])
