"""A three-node lab from the real command, told as one story: build, change, kill, and leave without a trace.

The tests share one lab and run in order; each leaves it whole.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.reallab import RealLab, machine, until

pytestmark = pytest.mark.lab

NODES = ("node-1", "node-2", "node-3")


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return machine()


@pytest.fixture(scope="module")
def lab(before: dict[str, str]) -> Iterator[RealLab]:
    made = RealLab("s")
    try:
        made.first_words = made.lab("up", "--nodes", "3", "--pods", "2", "--timeout", "90")
        yield made
    finally:
        made.lab("down")


def blocks(lab: RealLab, version: int) -> dict[str, str]:
    """Prefix -> address of its holder, from what every node except the holder has learned."""
    found: dict[str, str] = {}
    for node in lab.state()["nodes"]:
        found |= lab.learned(node["name"], version)
    return found


def sessions(lab: RealLab) -> dict[str, list[str]]:
    return {node: [peer["state"] for peer in lab.status(node)["peers"]] for node in NODES}


def mesh_is_up(lab: RealLab) -> bool:
    return all(states and set(states) == {"Established"} for states in sessions(lab).values())


def test_up_says_what_it_did_and_what_to_try(lab: RealLab) -> None:
    assert "12 of 12" in lab.first_words, "routes"
    assert "60 of 60 answered" in lab.first_words, "pings"
    assert "Try next:" in lab.first_words
    assert re.search(r"^node-3 +198\.18\.0\.13 .* 4/4 ", lab.first_words, re.MULTILINE)


def test_status_fits_a_terminal_whatever_has_died(lab: RealLab) -> None:
    lab.lab("kill", "node-1/agent")
    lab.lab("stop", "node-2/speaker")
    status = lab.lab("status")
    assert "node-1/agent" in status
    assert "died 1 time, last: killed by SIGKILL" in status
    assert "node-2/speaker is stopped" in status
    assert max(map(len, status.splitlines())) <= 80
    started, runs = lab.lab("start", "node-2").splitlines()
    assert started == "node-2/speaker started"
    assert re.fullmatch(r"node-2/agent \(pid \d+\) runs already", runs)
    until(lambda: lab.lab("status").count("4/4    4/4 ") == 3, "every session is established again", 90)


def test_status_shows_the_rest_while_etcd_is_frozen(lab: RealLab) -> None:
    lab.lab("kill", "etcd", "--signal", "STOP")
    try:
        status = lab.lab("status")
    finally:
        lab.lab("kill", "etcd", "--signal", "CONT")
    assert "etcd runs but does not answer (frozen?): blocks and routes are not shown." in status
    assert re.search(r"^node-3 +198\.18\.0\.13 +- +4/4 +- +2 +agent ", status, re.MULTILINE), status


def test_checksystem_finds_a_node_of_the_lab_well_and_names_what_is_broken(lab: RealLab) -> None:
    def check(code: int = 0) -> dict[str, str]:
        said = lab.lab("exec", "node-2", "tortiectl", "node", "checksystem", "-o", "json", code=code)
        return {one["check"]: f"{one['level']} {one['found']}" for one in json.loads(said)}

    well = check()
    assert not [text for text in well.values() if text.startswith(("WARN", "FAIL"))], well
    assert well["port 179"].startswith("OK held by tortie-speaker")
    assert well["our routes"].startswith("OK 6 with our mark")
    lab.lab("exec", "node-2", "ip", "route", "del", "default")
    lab.lab("exec", "node-2", "sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")
    lab.lab("exec", "node-2", "ip", "route", "add", "blackhole", "10.65.99.0/26", "proto", "bird")
    try:
        broken = check(code=1)
    finally:
        lab.lab("exec", "node-2", "ip", "route", "del", "blackhole", "10.65.99.0/26", "proto", "bird")
        lab.lab("exec", "node-2", "ip", "route", "add", "default", "via", "198.18.0.1")
        lab.lab("exec", "node-2", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    assert broken["IPv4 forwarding"].startswith("FAIL off")
    assert broken["pods' gateway"].startswith("FAIL no unicast route towards 169.254.1.1")
    assert "blackhole 10.65.99.0/26" in broken["leftovers in pools"]
    assert not [text for text in check().values() if text.startswith(("WARN", "FAIL"))]


def test_diags_work_beside_a_hung_agent_and_a_frozen_etcd(lab: RealLab, tmp_path: Path) -> None:
    out = tmp_path / "diags.tar.gz"
    for who in ("etcd", "node-3/agent"):
        lab.lab("kill", who, "--signal", "STOP")
    try:
        said = lab.lab("exec", "node-3", "tortiectl", "node", "diags", "-o", str(out))
    finally:
        for who in ("etcd", "node-3/agent"):
            lab.lab("kill", who, "--signal", "CONT")
    assert "without agent/status.json" in said
    assert "without datastore.txt: etcd does not answer" in said
    with tarfile.open(out) as packed:
        texts = {
            name.partition("/")[2]: packed.extractfile(name).read().decode() for name in packed.getnames()
        }  # type: ignore[union-attr]
    assert "proto bgp" in texts["kernel/routes.txt"]
    assert "neighbor 198.18.0.11 {" in texts["speaker/exabgp.conf"]
    assert "it hangs or is stopped" in texts["MANIFEST"]
    assert "tortie-agent" in texts["processes.txt"]
    until(lambda: lab.lab("status").count("4/4    4/4 ") == 3, "every session is established again", 90)


def test_every_kernel_routes_to_every_other_nodes_blocks(lab: RealLab) -> None:
    for version in (4, 6):
        every = blocks(lab, version)
        assert len(every) == 3
        for node in lab.state()["nodes"]:
            own = node["ipv4"] if version == 4 else node["ipv6"]
            wanted = {prefix: holder for prefix, holder in every.items() if holder != own}
            assert lab.learned(node["name"], version) == wanted


def test_a_node_drops_what_no_pod_of_its_block_has(lab: RealLab) -> None:
    for node in lab.state()["nodes"]:
        local = {p for p, holder in blocks(lab, 4).items() if holder == node["ipv4"]}
        table = lab.routes(node["name"])
        assert [table[prefix]["type"] for prefix in local] == ["blackhole"]


def test_pods_reach_each_other_with_the_ordinary_ping(lab: RealLab) -> None:
    assert lab.ping("node-1-pod-1", "node-3-pod-2", 5, 0.1).result() == (5, 5)
    lab.lab("exec", "node-2-pod-1", "ping", "-6", "-c", "3", "-i", "0.1", lab.pod("node-1-pod-2")["ipv6"])


def test_the_command_line_shows_it(lab: RealLab) -> None:
    assert lab.tortiectl("get", "nodes").split() == ["NAME", *NODES]
    assert "198.18.0.12/16" in lab.tortiectl("get", "node", "node-2", "-o", "yaml")
    status = lab.tortiectl("node", "status", "--node", "node-1")
    assert "| 198.18.0.12  | node-to-node mesh | up " in status
    assert lab.tortiectl("routes", "--node", "node-1").count("installed") >= 4
    pod = lab.pod("node-1-pod-1")
    assert f"IP {pod['ipv4']} is in use" in lab.tortiectl("ipam", "show", "--ip", pod["ipv4"])
    assert lab.tortiectl("ipam", "show", "--show-blocks").count("| Block") == 6


def test_a_second_lab_is_refused(lab: RealLab) -> None:
    assert "'tortiectl lab down'" in lab.lab("up", code=1)


def test_everybody_follows_a_claimed_block_and_a_released_one(lab: RealLab) -> None:
    said = lab.lab("claim", "node-2", "10.65.200.0/26")
    assert re.search(r"the route in 2 other kernels: \d+ ms", said)
    assert lab.learned("node-1")["10.65.200.0/26"] == "198.18.0.12"
    assert lab.learned("node-3")["10.65.200.0/26"] == "198.18.0.12"
    again = lab.lab("claim", "node-2", "10.65.200.0/26")
    assert "node-2 holds 10.65.200.0/26 already" in again
    assert "claims" not in again
    lab.lab("release", "node-2", "10.65.200.0/26")
    for node in NODES:
        until(lambda node=node: "10.65.200.0/26" not in lab.routes(node), f"{node} forgot the block")


def test_a_block_with_pods_in_it_is_not_released_by_mistake(lab: RealLab) -> None:
    prefix = next(p for p, holder in blocks(lab, 4).items() if holder == "198.18.0.11")
    assert "--force" in lab.lab("release", "node-1", prefix, code=1)
    assert lab.learned("node-2")[prefix] == "198.18.0.11"


def test_killed_agents_cost_no_packet(lab: RealLab) -> None:
    until(lambda: mesh_is_up(lab), "the mesh is up")
    ping = lab.ping("node-1-pod-1", "node-2-pod-1", 600, 0.02)
    deaths = {name: unit["deaths"] for name, unit in lab.processes().items()}
    lab.lab("kill", "node-1/agent")
    lab.lab("kill", "node-2/agent")
    for node in ("node-1", "node-2"):
        name = f"{node}/agent"
        until(lambda name=name: lab.processes()[name]["state"] == "running", f"{name} runs again")
        assert lab.processes()[name]["deaths"] == deaths[name] + 1
    assert ping.result() == (600, 600)
    until(lambda: mesh_is_up(lab), "the mesh is up")


def test_killed_speakers_cost_no_packet(lab: RealLab) -> None:
    until(lambda: mesh_is_up(lab), "the mesh is up")
    ping = lab.ping("node-1-pod-1", "node-2-pod-1", 800, 0.02)
    lab.lab("kill", "node-1/speaker")
    lab.lab("kill", "node-2/speaker")
    until(lambda: lab.processes()["node-1/speaker"]["state"] == "running", "the speaker runs again")
    assert ping.result() == (800, 800)
    until(lambda: mesh_is_up(lab), "the mesh is up again")
    assert len(lab.learned("node-1")) == 2


def test_without_etcd_forwarding_goes_on_and_the_status_says_so(lab: RealLab) -> None:
    routes = {node: lab.learned(node) for node in NODES}
    lab.lab("stop", "etcd")
    try:
        until(lambda: lab.status("node-1")["datastore"]["state"] != "in-sync", "node-1 noticed", 90)
        assert "Datastore: " in lab.tortiectl("node", "status", "--node", "node-1")
        assert {node: lab.learned(node) for node in NODES} == routes
        assert lab.ping("node-1-pod-1", "node-3-pod-1", 5, 0.1).result() == (5, 5)
        assert "etcd does not run" in lab.lab("status")
    finally:
        lab.lab("start", "etcd")
    until(
        lambda: all(lab.status(node)["datastore"]["state"] == "in-sync" for node in NODES), "all in sync", 90
    )


def test_etcd_is_killed_and_comes_back(lab: RealLab) -> None:
    """It leaves its sockets lying about."""
    before = lab.processes()["etcd"]["pid"]
    ping = lab.ping("node-1-pod-1", "node-2-pod-1", 200, 0.02)
    lab.lab("kill", "etcd")
    until(lambda: lab.processes()["etcd"]["pid"] not in (0, before), "etcd runs again")
    until(lambda: "node-3" in lab.tortiectl("get", "nodes"), "etcd answers the host")
    until(
        lambda: all(lab.status(node)["datastore"]["state"] == "in-sync" for node in NODES), "all in sync", 90
    )
    assert ping.result() == (200, 200)


def test_a_node_comes_and_goes(lab: RealLab) -> None:
    ping = lab.ping("node-1-pod-1", "node-2-pod-1", 400, 0.02)
    since = {node: [peer["since"] for peer in lab.status(node)["peers"]] for node in NODES}
    lab.lab("node", "add", "--pods", "1")
    assert len(lab.learned("node-4")) == 3
    lab.lab("ping")
    lab.lab("node", "remove", "node-4")
    assert ping.result() == (400, 400)
    assert lab.tortiectl("get", "nodes").split() == ["NAME", *NODES]
    until(lambda: all(len(lab.status(node)["peers"]) == 4 for node in NODES), "the peers of node-4 are gone")
    after = {node: [peer["since"] for peer in lab.status(node)["peers"]] for node in NODES}
    assert after == since, "no other session was reset"


def test_down_leaves_nothing(lab: RealLab, before: dict[str, str]) -> None:
    assert len(lab.leftovers()) > 10
    lab.lab("down")
    until(lambda: not lab.leftovers(), f"nothing is left: {lab.leftovers()}", 20)
    until(lambda: machine() == before, "the machine is as it was", 20)
    assert "there was none" in lab.lab("down")
