"""(5) From "all agents up" to "every kernel complete", and (4) what agent and speaker cost when idle.

Both systems stand ready with the mesh turned off in etcd; the clock starts when it is turned on.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agent.lab.state import LabNode
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from tests.bench import bird, cluster, kernels, tortie
from tests.bench.world import World, wait_until, world

SIZES = (3, 20, 50)
PEERS = (3, 50)
IDLE_SECONDS = 30.0


Started = dict[str, list[subprocess.Popen[bytes]]]
"""Node -> its speaker and its agent."""


def run(sizes: tuple[int, ...] = SIZES) -> dict[str, object]:
    """Figures of (5), by number of nodes."""
    convergence: dict[str, object] = {}
    for size in sizes:
        with world("benchd", size) as made:
            theirs = asyncio.run(_converge(made, _start_bird, _bird_up))
        with world("benchd", size) as made:
            ours = _converge_tortie(made, {})
        convergence[str(size)] = {"tortie_s": ours, "bird_s": theirs}
    return convergence


def footprint(peers: tuple[int, ...] = PEERS) -> dict[str, object]:
    """Figures of (4), by number of peers: the first node of a mesh that has converged."""
    figures: dict[str, object] = {}
    for number in peers:
        with world("benche", number + 1) as made:
            started: Started = {}
            _converge_tortie(made, started)
            figures[str(number)] = idle(started[made.nodes[0].name])
    return figures


def _converge_tortie(made: World, started: Started) -> float:
    def start(made: World, node: LabNode) -> int:
        started[node.name] = tortie.start(made, node)
        return started[node.name][-1].pid

    return asyncio.run(_converge(made, start, lambda made: tortie.wait_up(made, made.nodes, 300)))


def _start_bird(made: World, node: LabNode) -> int:
    child = bird.start(made, node, bird.config(node.ipv4, [], []))
    bird.pipeline(made, node)
    return child.pid


def _bird_up(made: World) -> None:
    """Until every pipeline has put the node's own block into its BIRD."""

    def rendered(node: LabNode) -> bool:
        return "route 10." in (made.folder(node) / "bird.conf").read_text()

    for node in made.nodes:
        wait_until(partial(rendered, node), 300, f"{node.name}'s confd")
    time.sleep(2)


async def _converge(
    made: World, start: Callable[[World, LabNode], int], up: Callable[[World], None]
) -> float:
    async with Client(EtcdConfig(endpoints=(made.endpoint,))) as client:
        await cluster.seed(client, made, mesh=False)
        for node in made.nodes:
            await cluster.claim(client, node.name, made.block(node))
        pids = {node.name: start(made, node) for node in made.nodes}
        up(made)
        await asyncio.sleep(1)
        await cluster.set_mesh(client, on=True)
        begin = time.monotonic()
    wanted = {node.name: kernels.spelled(made.block(node)) for node in made.nodes}
    incomplete = dict(pids)

    def complete() -> bool:
        for name, pid in list(incomplete.items()):
            if {block for other, block in wanted.items() if other != name} <= kernels.routes(pid):
                del incomplete[name]
        return not incomplete

    wait_until(complete, 300, f"{len(made.nodes)} complete kernels")
    return time.monotonic() - begin


def idle(processes: list[subprocess.Popen[bytes]]) -> dict[str, float]:
    """PSS and RSS in MiB and CPU in percent of one core, of agent and speaker together."""
    time.sleep(5)
    pids = [child.pid for child in processes]
    before, start = sum(map(_cpu, pids)), time.monotonic()
    time.sleep(IDLE_SECONDS)
    spent = sum(map(_cpu, pids)) - before
    return {
        "rss_mib": sum(_kib(pid, "Rss") for pid in pids) / 1024,
        "pss_mib": sum(_kib(pid, "Pss") for pid in pids) / 1024,
        "cpu_percent": 100 * spent / (time.monotonic() - start),
    }


def _cpu(pid: int) -> float:
    """CPU seconds so far, from the scheduler's own nanoseconds: finer than utime's ticks."""
    return (
        sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())
        / 1e9
    )


def _kib(pid: int, field: str) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert match is not None, os.strerror(0)
    return int(match[1])
