"""Everything is killed while pings run: not one packet is lost (RFC 4724, both roles)."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Self

import pytest

from tests.support.bird import Bird, bgp, static
from tests.support.netns import Namespace
from tests.support.routers import KERNEL
from tests.support.system import (
    STATIC,
    Node,
    System,
    block4,
    block6,
    holds,
    kernel_routes,
    pinging,
    pod4,
    pod6,
    until,
    v4,
    v6,
)

pytestmark = pytest.mark.interop

BIRD = 3


class Mesh:
    """Two of ours and a BIRD that keeps its routes over a restart as calico-node's does (`bird -R`)."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.host: Namespace = system.host(BIRD)
        system.etcd.node("bird", BIRD)
        system.etcd.claim("bird", block4(BIRD), block4(BIRD, 1), block6(BIRD))
        self.bird = Bird(
            self.host,
            system.folder / "bird",
            v4(BIRD),
            *self.parts([block4(BIRD), block4(BIRD, 1)]),
            options=("-R",),
        )
        self.nodes: tuple[Node, Node] = (system.node(1), system.node(9))
        self.wait()

    @staticmethod
    def parts(own: list[str]) -> list[str]:
        return [
            KERNEL,
            static("s4", own),
            static("s6", [block6(BIRD)]),
            *(bgp(f"four{n}", v4(BIRD), v4(n), export=STATIC, graceful=60) for n in (1, 9)),
            *(bgp(f"six{n}", v6(BIRD), v6(n), export=STATIC, graceful=60) for n in (1, 9)),
        ]

    def wait(self) -> None:
        """Until every session is up, every route is in and nothing is stale."""
        for node in self.nodes:
            for other in {1, 9, BIRD} - {node.number}:
                node.wait_route(block4(other), v4(other), 40)
                node.wait_route(block6(other), v6(other), 40)
            until(
                lambda node=node: (
                    len(node.peers()) == 4
                    and all(p["state"] == "Established" and not p["stale"] for p in node.peers().values())
                ),
                lambda node=node: node.peers(),
                40,
            )
        self.bird.wait_established("four1", "six1", "four9", "six9", seconds=40)
        ours = {block4(n): v4(n) for n in (1, 9)} | {block6(n): v6(n) for n in (1, 9)}
        until(
            lambda: ours.items() <= kernel_routes(self.host).items(),
            lambda: kernel_routes(self.host),
            40,
        )

    def pinging(self):  # type: ignore[no-untyped-def]
        where = {1: self.nodes[0].where, 9: self.nodes[1].where, BIRD: self.host}
        return pinging(
            [
                (where[one], at(one), at(other))
                for one in where
                for other in where
                if one != other
                for at in (pod4, pod6)
            ],
            least=20,
        )


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with System() as system:
        yield Mesh(system)


def test_our_speaker_is_killed(mesh: Mesh) -> None:
    node = mesh.nodes[0]
    since = {address: peer["since"] for address, peer in node.peers().items()}
    with mesh.pinging():
        node.kill_speaker()
        until(lambda: node.status()["speaker"]["state"] == "down", "the agent sees it")
        time.sleep(1.5)  # traffic goes on without a speaker
        node.start_speaker()
        until(
            lambda: all(
                p["since"] > since[a] and p["state"] == "Established" for a, p in node.peers().items()
            ),
            node.peers,
            40,
        )
        mesh.wait()


def test_the_terms_of_every_session_change(mesh: Mesh) -> None:
    """New timers need new sessions. Both ends know that nobody has restarted: no route goes meanwhile."""
    since = {node.name: {a: p["since"] for a, p in node.peers().items()} for node in mesh.nodes}
    with mesh.pinging():
        mesh.system.etcd.resource("BGPConfiguration", "default", {"nodeMeshMaxRestartTime": "60s"})
        for node in mesh.nodes:
            until(
                lambda node=node: all(
                    p["since"] > since[node.name][a] and p["state"] == "Established"
                    for a, p in node.peers().items()
                ),
                node.peers,
                40,
            )
        mesh.wait()
    for node in mesh.nodes:
        assert "its configuration changed; routes kept until there is a new one: " in node.agent_log


def test_our_agent_is_killed(mesh: Mesh) -> None:
    node, other = mesh.nodes
    since = {address: peer["since"] for address, peer in node.peers().items()}
    theirs = {name: mesh.bird.since(name) for name in ("four1", "six1")}
    with mesh.pinging():
        node.kill_agent()
        time.sleep(1)
        # What changes meanwhile is caught up with.
        mesh.system.etcd.claim(other.name, block4(other.number, 2))
        node.start_agent()
        node.wait_route(block4(other.number, 2), v4(other.number), 40)
        mesh.wait()
        mesh.system.etcd.release(other.name, block4(other.number, 2))
        until(lambda: block4(other.number, 2) not in node.kernel(), node.kernel)
    assert {address: peer["since"] for address, peer in node.peers().items()} == since, "sessions were kept"
    assert {name: mesh.bird.since(name) for name in theirs} == theirs


def test_both_are_killed(mesh: Mesh) -> None:
    node, other = mesh.nodes
    mesh.system.etcd.claim(node.name, block4(node.number, 3))
    other.wait_route(block4(node.number, 3), v4(node.number))
    until(lambda: block4(node.number, 3) in kernel_routes(mesh.host), lambda: kernel_routes(mesh.host))
    with mesh.pinging():
        node.kill_agent()
        node.kill_speaker()
        mesh.system.etcd.release(node.name, block4(node.number, 3))
        node.start_speaker()
        node.start_agent()
        # Both neighbours kept what we had announced, and drop at our End-of-RIB what we no longer do.
        until(lambda: block4(node.number, 3) not in other.kernel(), other.kernel, 40)
        until(lambda: block4(node.number, 3) not in kernel_routes(mesh.host), "BIRD drops it", 40)
        until(lambda: block4(node.number, 3) not in node.kernel(), "the blackhole goes too", 40)
        mesh.wait()


def test_both_are_killed_and_once_more_before_the_agent_has_said_anything(mesh: Mesh) -> None:
    """Neighbours let go of what a session that ends has not announced again (RFC 4724 section 4.2): so no
    session is built before there is an agent."""
    node = mesh.nodes[0]
    with mesh.pinging():
        node.kill_agent()
        node.kill_speaker()
        (node.folder / "speaker.sock").unlink()
        said = len(node.speaker_log)
        node.start_speaker("--first-agent", "60")
        until((node.folder / "speaker.sock").exists, node.folder)
        holds(lambda: "established" not in node.speaker_log[said:], 1, lambda: node.speaker_log)
        node.kill_speaker()
        node.start_speaker()
        node.start_agent()
        mesh.wait()


def test_a_speaker_without_an_agent_builds_its_sessions_all_the_same(mesh: Mesh) -> None:
    node, other = mesh.nodes
    with mesh.pinging():
        node.kill_agent()
        since = other.peers()[v4(node.number)]["since"]
        node.kill_speaker()
        node.start_speaker()
        until(
            lambda: (
                other.peers()[v4(node.number)]["since"] > since
                and other.established(v4(node.number), v6(node.number))
            ),
            other.peers,
            40,
        )
        node.start_agent()
        mesh.wait()


def test_a_neighbour_is_killed(mesh: Mesh) -> None:
    node = mesh.nodes[0]
    node.wait_route(block4(BIRD, 1), v4(BIRD))
    with mesh.pinging():
        mesh.bird.process.kill()
        mesh.bird.process.wait()
        until(lambda: node.peers()[v4(BIRD)]["stale"] == 2, node.peers)
        assert node.path(block4(BIRD), v4(BIRD))["stale"] is True
        time.sleep(1)
        assert node.kernel()[block4(BIRD, 1)] == v4(BIRD)
        # It comes back with one block less: what it does not say again is swept at its End-of-RIB.
        mesh.bird.restart(*mesh.parts([block4(BIRD)]))
        for one in mesh.nodes:
            until(lambda one=one: block4(BIRD, 1) not in one.kernel(), one.kernel, 40)
        mesh.wait()


def test_a_neighbour_that_says_goodbye_is_not_waited_for(mesh: Mesh) -> None:
    node = mesh.nodes[0]
    mesh.wait()
    mesh.bird.ask("disable", "four1")
    until(lambda: block4(BIRD) not in node.kernel(), node.kernel, 10)
    assert node.kernel()[block6(BIRD)] == v6(BIRD), "the other session's routes stay"
    mesh.bird.ask("enable", "four1")
    mesh.wait()


def test_sigterm_ends_the_agent_at_once_and_routes_stay(mesh: Mesh) -> None:
    mesh.wait()
    node = mesh.nodes[1]
    before = node.kernel()
    with RouteMonitor(node.where, node.folder / "monitor") as monitor, mesh.pinging():
        begun = time.monotonic()
        assert node.kill_agent(signal.SIGTERM) == 0
        assert time.monotonic() - begun < 5
        assert not (node.folder / "agent.sock").exists()
        assert node.kernel() == before
        node.start_agent()
        until(
            lambda: node.status().get("routes", {}).get("installed") == len(expected(node)), node.status, 40
        )
        mesh.wait()
        routes = node.status()["routes"]
        assert routes["inherited"] == 0
        assert routes["wanted"] == routes["installed"]
    assert node.kernel() == before
    assert monitor.seen() == [], "what is right already is not written again"


def expected(node: Node) -> list[str]:
    return [p for p, via in node.kernel().items() if p.startswith(("10.65.", "fd00:65:"))]


class RouteMonitor:
    """`ip monitor route` beside a test: every change of the tables."""

    def __init__(self, where: Namespace, file) -> None:  # type: ignore[no-untyped-def]
        self._where, self._file = where, file

    def __enter__(self) -> Self:
        self._output = self._file.open("w")
        self._process = self._where.start("ip", "monitor", "route", stdout=self._output)
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.3)
        self._process.terminate()
        self._process.wait(10)
        self._output.close()

    def seen(self) -> list[str]:
        """Changes of routes into the pools."""
        return [
            line
            for line in self._file.read_text().splitlines()
            if ("10.65." in line or "fd00:65:" in line)
            and "table local" not in line
            and " cache " not in line
        ]
