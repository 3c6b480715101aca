"""(1) From the etcd write that confirms a block affinity to the route in every other node's kernel."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from agent.lab.state import LabNode
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from tests.bench import bird, cluster, tortie
from tests.bench.kernels import Arrivals
from tests.bench.world import World, wait_until, world

NODES = 3
ROUNDS = 4


def run(claims: int = 200) -> dict[str, object]:
    """Claims alternate between the two systems in rounds, so that the machine's moods hit both."""
    with ExitStack() as stack:
        ours = stack.enter_context(world("bencha", NODES))
        theirs = stack.enter_context(world("benchb", NODES))
        asyncio.run(_prepare_tortie(ours))
        asyncio.run(_prepare_bird(theirs))
        measured: dict[str, list[float]] = {"tortie": [], "bird": []}
        for part in range(ROUNDS):
            for name, made in (("tortie", ours), ("bird", theirs)):
                measured[name] += asyncio.run(
                    _claims(made, part * claims // ROUNDS, (part + 1) * claims // ROUNDS)
                )
    figures: dict[str, object] = {"claims": claims, "nodes": NODES}
    for name, seconds in measured.items():
        figures[name] = {"p50_ms": percentile(seconds, 50), "p99_ms": percentile(seconds, 99)}
    return figures


def percentile(seconds: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1] * 1000


async def _prepare_tortie(made: World) -> None:
    async with Client(EtcdConfig(endpoints=(made.endpoint,))) as client:
        await cluster.seed(client, made, nodes=False)
    for node in made.nodes:
        tortie.start(made, node)
    tortie.wait_up(made, made.nodes)

    def meshed(node: LabNode) -> bool:
        return tortie.established(made, node) == NODES - 1

    for node in made.nodes:
        wait_until(partial(meshed, node), 60, f"{node.name}'s sessions")


async def _prepare_bird(made: World) -> None:
    async with Client(EtcdConfig(endpoints=(made.endpoint,))) as client:
        await cluster.seed(client, made)
    for node in made.nodes:
        bird.start(made, node, bird.config(node.ipv4, [], []))
        bird.pipeline(made, node)

    def meshed(node: LabNode) -> bool:
        return bird.protocols(made.folder(node)).count("Established") == NODES - 1

    for node in made.nodes:
        wait_until(partial(meshed, node), 60, f"{node.name}'s BIRD sessions")


async def _claims(made: World, first: int, end: int) -> list[float]:
    seconds = []
    arrivals = Arrivals(made.namespaces)
    try:
        async with Client(EtcdConfig(endpoints=(made.endpoint,))) as client:
            for number in range(first, end):
                node = made.nodes[number % len(made.nodes)]
                block = made.block(node, number // len(made.nodes))
                sent = await cluster.claim(client, node.name, block)
                others = [name for name in made.namespaces if name != made.lab.namespace(node.name)]
                seconds.append(arrivals.wait(block, others, 20) - sent)
                await asyncio.sleep(0.02)
    finally:
        arrivals.close()
    return seconds
