"""Cost of the RIB per path: learn, decide, kernel route, Adj-RIB-Out. Run: python tests/bench/rib.py [paths]

One node peer announces host routes of its blocks (each judged by longest match) and one external peer
announces prefixes outside the pools, in UPDATEs of 500 NLRI that share their attributes.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable

from felix_like.calc.graph import CalcGraph, Session
from felix_like.calc.snapshot import Change, Resource
from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.bgp import BgpPeer
from felix_like.model.block import Block
from felix_like.model.desired import KernelNextHop, LocalNode, Resolved
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node
from felix_like.model.path import Attributes

NLRI_PER_UPDATE = 500
NODE, TOR = Address.parse("192.0.2.2"), Address.parse("192.0.2.254")


def graph_with_peers(nodes: int = 3) -> CalcGraph:
    graph = CalcGraph(LocalNode(name="node-1", prefix_limit=1_000_000))
    network = Prefix.parse("192.0.2.0/24")
    values: list[Resource] = [
        Node(name=f"node-{i}", ipv4=Address.parse(f"192.0.2.{i}"), ipv4_network=network)
        for i in range(1, nodes + 1)
    ]
    pool = IPPool(name="blue", cidr=Prefix.parse("10.0.0.0/8"), block_size=26)
    blocks = [
        Block(cidr=Prefix.within(Address((10 << 24 | i << 6).to_bytes(4, "big")), 26), affinity="node-2")
        for i in range(4096)
    ]
    tor = BgpPeer(name="tor", peer_ip=TOR, asn=Asn(65000))
    everything: list[Resource] = [*values, pool, *blocks, tor]
    graph.on_datastore([Change(f"/{i}", value, i) for i, value in enumerate(everything, 1)], True)
    for peer, asn in ((NODE, 64512), (TOR, 65000)):
        graph.on_peer_up(peer, session(peer, asn), 0.0)
    graph.take()
    return graph


def session(peer: Address, asn: int) -> Session:
    return Session(
        router_id=str(peer), asn=Asn(asn), families=(4,), restart_time=120, graceful=frozenset({4})
    )


def updates(first: int, count: int, length: int, attributes: Callable[[], Attributes]) -> list[
    tuple[Attributes, list[Prefix]]
]:  # fmt: skip
    step = 1 << (32 - length)
    prefixes = [Prefix(Address((first + i * step).to_bytes(4, "big")), length) for i in range(count)]
    return [
        (attributes(), prefixes[i : i + NLRI_PER_UPDATE]) for i in range(0, count, NLRI_PER_UPDATE)
    ]  # fmt: skip


def measure(name: str, count: int, work: Callable[[], object]) -> None:
    gc.collect()
    started = time.process_time()  # of this process alone: the machine may have other work
    work()
    each = (time.process_time() - started) / count * 1e6
    print(f"{name:<58} {each:7.2f} us/path  {1e6 / each:10,.0f} paths/s")


def run(title: str, peer: Address, told: list[tuple[Attributes, list[Prefix]]]) -> None:
    print(f"-- {title}")
    graph = graph_with_peers()
    count = sum(len(prefixes) for _, prefixes in told)
    hop = Resolved((KernelNextHop(peer, 2, False),))
    # The next hop is known before, as it is in a running node.
    graph.on_learned(peer, told[0][0], told[0][1][:1])
    graph.take()
    graph.on_next_hops({peer: hop})
    graph.take()

    def learn() -> None:
        for attributes, prefixes in told:
            graph.on_learned(peer, attributes, prefixes)

    def take() -> None:
        outcome = graph.take()
        assert len(outcome.fib) >= count - 1, len(outcome.fib)

    def both() -> None:
        for attributes, prefixes in told:
            graph.on_learned(peer, attributes, prefixes)
            graph.take()

    def learn_again() -> None:
        learn()
        graph.take()

    def withdraw() -> None:
        for _, prefixes in told:
            graph.on_withdrawn(peer, prefixes)

    measure("learn", count, learn)
    measure("decide and emit", count, take)
    measure("the same announced again (no change)", count, learn_again)
    measure("judge all again (pool changed)", count, graph._tables.importer.judge_all)
    measure("session lost gracefully", count, lambda: graph.on_peer_down(peer, 1.0, graceful=True))
    measure("withdrawn", count, withdraw)
    measure("decide and emit the withdrawals", count, graph.take)
    graph.on_next_hops({peer: hop})
    graph.on_learned(peer, *told[0])
    graph.take()
    graph.on_next_hops({peer: hop})
    graph.take()
    measure("learn, decide and emit per UPDATE", count, both)
    print(
        f"   peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    run(
        f"{count} host routes of a node's blocks",
        NODE,
        updates(10 << 24, count, 32, lambda: Attributes(next_hop=NODE, local_pref=100)),
    )
    run(
        f"{count} prefixes of an external peer",
        TOR,
        updates(
            100 << 24, count, 24, lambda: Attributes(next_hop=TOR, as_path=(("sequence", (Asn(65000),)),))
        ),
    )


if __name__ == "__main__":
    main()
