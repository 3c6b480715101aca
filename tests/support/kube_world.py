"""A world that plays stories on the whole graph with two stores: the datastore's keys and Kubernetes'.

Expected facts of a scene, empty where they are not named: `originated` and `blackholes` (sets of prefixes),
`refusals` (all sentences, as `subject: reason`). `told` as in `rib_world`.
"""

from __future__ import annotations

from typing import Any

from felix_like.calc.snapshot import Change
from tests.support.rib_world import Driver, announced, ip, net, session
from tests.support.stories import Scene


class KubeWorld:
    """`kubernetes_first`: of each batch, Kubernetes is told before the datastore, or after it."""

    def __init__(self, *, kubernetes_first: bool = True, **settings: Any) -> None:
        self._first = kubernetes_first
        self._settings = settings
        self.driver = Driver(kubernetes=True, **settings)
        self._told: dict[str, Any] = {}

    def enter(self, scene: Scene) -> None:
        wanted = announced(scene.facts.get("told", {}))
        graph = self.driver.graph
        for peer in self._told.keys() - wanted.keys():
            graph.on_peer_down(ip(peer), 0.0, graceful=False)
        for peer, paths in wanted.items():
            if peer not in self._told:
                graph.on_peer_up(ip(peer), session(peer), 0.0)
            for prefix in self._told.get(peer, {}).keys() - paths.keys():
                graph.on_withdrawn(ip(peer), [net(prefix)])
            for prefix, attributes in paths.items():
                graph.on_learned(ip(peer), attributes, [net(prefix)])
        self._told = wanted

    def tell(self, changes: list[Change]) -> None:
        ours = [change for change in changes if change.key.startswith("kube/")]
        store = [change for change in changes if not change.key.startswith("kube/")]
        graph = self.driver.graph
        if self._first:
            graph.on_kubernetes(ours, True)
        graph.on_datastore(store, True)
        if not self._first:
            graph.on_kubernetes(ours, True)
        self.driver.settle()

    def check(self, scene: Scene) -> None:
        desired = self.driver.graph.desired
        assert desired is not None
        expected = {"originated": set(), "blackholes": set(), "refusals": []} | dict(scene.facts)
        expected.pop("told", None)
        fib = expected.pop("fib", None)
        assert {
            "originated": {str(prefix) for prefix in desired.originated},
            "blackholes": {str(prefix) for prefix in desired.blackholes},
            "refusals": [str(refusal) for refusal in desired.refusals],
        } == expected
        for peer in desired.peers.values():  # every peer is told what it can carry of it
            carried = {prefix for prefix in desired.originated if prefix.version in peer.families}
            assert carried <= self.driver.graph.adverts(peer.address).keys()
        if fib is not None:
            assert self.driver.fib() == fib
        fresh = KubeWorld(kubernetes_first=not self._first, **self._settings)
        fresh.enter(scene)
        fresh.tell([Change(key, value, 1) for key, value in scene.state.items()])
        for ask in ("fib", "adverts", "verdicts"):
            assert getattr(self.driver, ask)() == getattr(fresh.driver, ask)(), f"{ask} depends on history"
