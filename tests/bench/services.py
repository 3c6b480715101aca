"""Cost of Kubernetes' services: load them all, then changes of one endpoint slice each.

Run: python -m tests.bench.services [services]. Half of the services have policy Local; each has two slices
with endpoints on three of 100 nodes. Times are of this process alone: the machine may have other work.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from felix_like.calc.graph import CalcGraph
from felix_like.calc.snapshot import Change, KubernetesResource, Resource
from felix_like.datastore.kube.codec import (
    ENDPOINT_SLICES,
    SERVICES,
    decode_service,
    slice_decoder,
    trim_service,
    trim_slice,
)
from felix_like.datastore.kube.collection import KubeChange
from felix_like.model.address import Address, Prefix
from felix_like.model.bgp import BgpConfiguration
from felix_like.model.desired import LocalNode
from felix_like.model.node import Node
from tests.support.kube_objects import endpoint_slice, service

NODES = 100
HERE = "node-0"
Object = dict[str, Any]
_decode_slice = slice_decoder(HERE)


def measure(services: int = 10_000, repeats: int = 300) -> dict[str, float]:
    """Milliseconds to read and to load all, microseconds per change."""
    objects = _objects(services)
    read, changes = _timed(lambda: [_read(key, raw) for key, raw in objects])
    graph = _graph()
    gc.collect()
    loaded, _ = _timed(lambda: _load(graph, changes))

    # The first service's first slice has its first endpoint here; that of the fourth is nowhere near.
    near, far = objects[1], objects[10]
    moved = _ready_on(far[1], "node-77")
    quiet = _ready_on(near[1], None)
    return {
        "services": services,
        "slices": 2 * services,
        "advertised": len(graph.desired.originated) if graph.desired is not None else 0,
        "read_ms": read * 1e3,
        "load_ms": loaded * 1e3,
        "irrelevant_us": _changes(graph, far, moved, repeats, expect=False),
        "relevant_us": _changes(graph, near, (near[0], quiet[1]), repeats, expect=True),
    }


def _load(graph: CalcGraph, changes: list[KubeChange[KubernetesResource]]) -> None:
    graph.on_kubernetes(changes, True)
    graph.take()


def _objects(services: int) -> list[tuple[str, Object]]:
    """Key and raw object of each service, followed by its two slices."""
    objects: list[tuple[str, Object]] = []
    for i in range(services):
        name, namespace = f"service-{i}", f"namespace-{i % 100}"
        made = service(
            name,
            _address("10.96", i),
            namespace=namespace,
            type="LoadBalancer",
            ingress=[_address("198.18", i)],
            local=i % 2 == 0,
        )
        objects.append((f"{SERVICES}/{namespace}/{name}", made))
        for part in range(2):
            where = {f"10.1.{part}.{k}": f"node-{(i + part * 50 + k) % NODES}" for k in range(3)}
            piece = endpoint_slice(name, where, namespace=namespace, suffix=str(part))
            objects.append((f"{ENDPOINT_SLICES}/{namespace}/{name}-{part}", piece))
    return objects


def _address(start: str, number: int) -> str:
    return f"{start}.{number >> 8 & 255}.{number & 255}"


def _graph() -> CalcGraph:
    graph = CalcGraph(LocalNode(name=HERE), kubernetes=True)
    network = Prefix.parse("192.0.2.0/24")
    store: list[Resource] = [
        Node(name=f"node-{i}", ipv4=Address.parse(f"192.0.2.{i + 1}"), ipv4_network=network)
        for i in range(NODES)
    ]
    store.append(
        BgpConfiguration(
            name="default",
            service_cluster_ips=(Prefix.parse("10.96.0.0/12"),),
            service_load_balancer_ips=(Prefix.parse("198.18.0.0/15"),),
        )
    )
    graph.on_datastore([Change(f"/{i}", value, i) for i, value in enumerate(store, 1)], True)
    graph.take()
    return graph


def _read(key: str, raw: Object) -> KubeChange[KubernetesResource]:
    """As the informer does: keep what is needed, then decode that."""
    if key.startswith(SERVICES):
        return KubeChange(key, decode_service(key, trim_service(raw)))
    return KubeChange(key, _decode_slice(key, trim_slice(raw)))


def _ready_on(raw: Object, node: str | None) -> tuple[str, Object]:
    """The slice with its first endpoint on another node; None: with no endpoint ready."""
    changed = json.loads(json.dumps(raw))
    if node is not None:
        changed["endpoints"][0]["nodeName"] = node
    else:
        for endpoint in changed["endpoints"]:
            endpoint["conditions"] = {"ready": False}
    return "", changed


def _changes(
    graph: CalcGraph, one: tuple[str, Object], other: tuple[str, Object], repeats: int, *, expect: bool
) -> float:
    """Median microseconds from the raw object to what the sinks are handed, going to and fro."""
    key, spent = one[0], []
    for raw in (other[1], one[1]) * repeats:
        started = time.process_time()
        graph.on_kubernetes((_read(key, raw),), True)
        outcome = graph.take()
        spent.append(time.process_time() - started)
        assert bool(outcome.adverts) is expect, "not the change that was to be measured"
    return statistics.median(spent) * 1e6


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    done = work()
    return time.process_time() - started, done


if __name__ == "__main__":
    for name, figure in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000).items():
        print(f"{name:<16} {figure:12,.1f}")
