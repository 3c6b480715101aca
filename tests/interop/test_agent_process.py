"""The agent as a process among others: its end, its exit status, its double, its probes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.system import BIN, Node, System, block4, block6, holds, until, v4, v6

pytestmark = pytest.mark.interop

ORDERLY = 10.0
"""Seconds in which an end counts as orderly here, busy machine included; the agent allows itself 4."""


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        for number in (1, 2):
            made.node(number)
        yield made


@pytest.fixture
def nodes(system: System) -> tuple[Node, Node]:
    one, other = system.nodes[1], system.nodes[2]
    for node, peer in ((one, 2), (other, 1)):
        node.wait_route(block4(peer), v4(peer), 40)
        node.wait_route(block6(peer), v6(peer), 40)
    return one, other


def stop(node: Node, *signals: int) -> tuple[int, float]:
    """Exit status, and seconds until the end."""
    assert node.agent is not None
    began = time.monotonic()
    for number in signals:
        node.agent.send_signal(number)
        time.sleep(0.2)
    return node.agent.wait(30), time.monotonic() - began


def second(node: Node, **settings: str) -> subprocess.CompletedProcess[str]:
    """One more agent on the same host, until it ends."""
    return subprocess.run(
        ["nsenter", f"--net={node.where.path}", str(BIN / "tortie-agent")],
        env=node.settings | settings, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def probe(node: Node, path: str) -> tuple[int, str]:
    """HTTP status and body, as a probe on the host sees them; 0 while nobody listens."""
    done = subprocess.run(
        ["nsenter", f"--net={node.where.path}", "curl", "-s", "-m", "5", "-w", "\n%{http_code}",
         f"http://127.0.0.1:9179{path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body


def test_told_to_stop_it_stops_in_order_and_the_routes_stay(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    before = one.kernel()
    status, seconds = stop(one, signal.SIGTERM)
    assert (status, seconds < ORDERLY) == (0, True)
    assert not (one.folder / "agent.sock").exists()
    assert one.kernel() == before
    one.start_agent()
    until(one.status)
    assert one.kernel() == before


def test_it_stops_though_etcd_and_the_speaker_hang(system: System, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    assert system.etcd.process is not None
    assert one.speaker is not None
    system.etcd.process.send_signal(signal.SIGSTOP)
    one.speaker.send_signal(signal.SIGSTOP)
    try:
        time.sleep(1)
        status, seconds = stop(one, signal.SIGTERM)
        assert (status, seconds < ORDERLY) == (0, True)
    finally:
        system.etcd.process.send_signal(signal.SIGCONT)
        one.speaker.send_signal(signal.SIGCONT)
    one.start_agent()


def test_a_second_agent_is_refused_and_the_first_does_not_notice(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    until(one.status)
    assert one.agent is not None
    done = second(one)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        (
            f"tortie-agent: TORTIE_RUN_DIR: another tortie-agent (process {one.agent.pid}) uses "
            f"{one.folder}; end that one, or give this one a directory of its own"
        )
    ]
    assert one.status()["agent"]["pid"] == one.agent.pid
    assert one.agent.poll() is None


def test_an_address_that_is_taken_ends_it_with_one_sentence(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    one, other = nodes
    done = second(one, NODENAME="impostor", IP=f"{v4(2)}/24", IP6="none", TORTIE_RUN_DIR=str(tmp_path))
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"tortie-agent: Node 'node-2' already has this node's address {v4(2)}: give one")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "agent.sock").exists()
    assert other.status()["peers"]


def test_who_starts_without_etcd_and_without_memory_touches_no_session(
    system: System, nodes: tuple[Node, Node]
) -> None:
    """The speaker kept its sessions over the agent's death, and must keep them over its rebirth."""
    one, other = nodes
    until(lambda: other.established(v4(1), v6(1)), other.status)
    since = other.peers()[v4(1)]["since"]
    routes = one.kernel()
    one.kill_agent()
    (one.folder / "last-good-snapshot").unlink(missing_ok=True)
    system.etcd.kill()
    try:
        one.start_agent()
        until(lambda: one.status().get("datastore", {}).get("state") == "stale", one.status, 40)
        holds(lambda: other.established(v4(1), v6(1)), 3, other.status)
        assert one.kernel() == routes
        assert probe(one, "/readyz") == (503, "not ready: the datastore has not been read yet\n")
        assert probe(one, "/healthz") == (200, "ok\n"), "a restart would not help"
    finally:
        system.etcd.start()
    until(lambda: one.status()["datastore"]["state"] == "in-sync", one.status, 40)
    until(lambda: probe(one, "/readyz")[0] == 200, lambda: probe(one, "/readyz"), 40)
    assert other.peers()[v4(1)]["since"] == since, "the same session all the time"


def test_a_dead_peer_elsewhere_makes_no_node_unready(system: System, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    system.etcd.node("node-77", 77)  # registered, and never there
    until(lambda: v4(77) in one.peers(), one.status)
    until(lambda: probe(one, "/readyz")[0] == 200, lambda: probe(one, "/readyz"), 40)
    one.kill_agent()
    one.start_agent()
    until(lambda: probe(one, "/readyz") == (200, "ready\n"), lambda: probe(one, "/readyz"), 40)
    system.etcd.drop("Node", "node-77")


def test_prometheus_hears_what_the_status_says(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    until(lambda: one.established(v4(2), v6(2)), one.status)
    until(lambda: v4(77) not in one.peers(), one.status)
    status, body = probe(one, "/metrics")
    assert status == 200
    series = dict(line.rsplit(" ", 1) for line in body.splitlines() if not line.startswith("#"))
    assert series['tortie_peers{state="Established"}'] == "2"
    assert series[f'tortie_peer_prefixes{{peer="{v4(2)}",kind="accepted"}}'] == "1"
    assert series['tortie_kernel_routes{state="wanted"}'] == series['tortie_kernel_routes{state="installed"}']
    assert series['tortie_rib_paths{validity="valid"}'] == "2"
    assert int(series["tortie_convergence_seconds_count"]) > 0


def test_a_port_that_is_taken_stops_nothing(system: System, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 9179)); print(flush=True)"
    stop(one, signal.SIGTERM)
    taken = one.where.start("python3", "-c", f"{code}; time.sleep(60)", stdout=subprocess.PIPE)
    assert taken.stdout is not None
    taken.stdout.readline()
    one.start_agent()
    until(lambda: one.refusals("health endpoint"), one.status)
    assert one.refusals("health endpoint") == [
        (
            "health endpoint: 127.0.0.1 port 9179 cannot be used: Address already in use; free it, or set "
            "TORTIE_HEALTH_ADDRESS to another address, or to none"
        )
    ]
    until(lambda: one.established(v4(2), v6(2)), one.status)
    taken.kill()
    taken.wait()
    until(lambda: probe(one, "/healthz")[0] == 200, one.status)
    until(lambda: not one.refusals("health endpoint"), one.status)
