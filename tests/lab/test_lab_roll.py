"""The whole lab is restarted as an update would, with traffic between all pods: nothing is lost."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.reallab import RealLab, until

pytestmark = pytest.mark.lab

NODES = ("node-1", "node-2", "node-3")


@pytest.fixture(scope="module")
def lab() -> Iterator[RealLab]:
    made = RealLab("u")
    try:
        made.lab("up", "--nodes", "3", "--pods", "1", "--timeout", "90")
        yield made
    finally:
        made.lab("down")
        assert made.leftovers() == []


def pids(lab: RealLab) -> dict[str, int]:
    return {name: unit["pid"] for name, unit in lab.processes().items() if "/" in name}


def roll(lab: RealLab, *words: str) -> dict[str, bool]:
    """Roll, with no packet lost; returns which processes are others than before."""
    before = pids(lab)
    said = lab.lab("roll", "--timeout", "90", *words)
    assert re.search(r"^0 of \d{4,} packets lost", said, re.MULTILINE), said
    after = pids(lab)
    return {name: before[name] != after[name] for name in before}


def test_node_after_node(lab: RealLab) -> None:
    assert all(roll(lab).values())


@pytest.mark.parametrize("what", ["agents", "speakers"])
def test_all_agents_or_all_speakers_at_once(lab: RealLab, what: str) -> None:
    renewed = roll(lab, what, "--at-once")
    assert renewed == {name: name.endswith(f"/{what.removesuffix('s')}") for name in renewed}


def test_everything_at_once(lab: RealLab) -> None:
    assert all(roll(lab, "--at-once").values())


def test_without_etcd(lab: RealLab) -> None:
    """Each agent starts from its last good snapshot; etcd comes back, and nothing was withdrawn."""
    for node in NODES:
        until(lambda node=node: lab.status(node)["datastore"]["state"] == "in-sync", f"{node} in sync", 90)
    lab.lab("stop", "etcd")
    try:
        assert all(roll(lab).values())
        assert all(roll(lab, "--at-once").values())
        assert {lab.status(node)["datastore"]["state"] for node in NODES} <= {"stale", "waiting"}
    finally:
        lab.lab("start", "etcd")
    for node in NODES:
        until(lambda node=node: lab.status(node)["datastore"]["state"] == "in-sync", f"{node} in sync", 90)
    assert re.search(r"12 of 12 answered", lab.lab("ping"))


def test_lost_packets_are_counted_and_named(lab: RealLab) -> None:
    """While the restart goes on, somebody's rule drops what one pod sends: the roll says so and fails."""
    pod = lab.pod("node-2-pod-1")
    rule = ["from", pod["ipv4"], "blackhole"]
    before = pids(lab)
    with ThreadPoolExecutor(1) as pool:
        rolling = pool.submit(lambda: lab.lab("roll", "--timeout", "90", code=1))
        until(lambda: pids(lab)["node-1/agent"] not in (0, before["node-1/agent"]), "the restart has begun")
        for word in ("add", "del"):
            subprocess.run(["ip", "-n", f"{lab.name}-node-2", "rule", word, *rule], check=True)
            time.sleep(0.3)  # thirty packets each
        said = rolling.result()
    assert re.search(r"^Error: \d+ of \d+ packets were lost:$", said, re.MULTILINE), said
    assert f"node-1-pod-1 to node-2-pod-1 ({pod['ipv4']}): " in said
    assert f"node-2-pod-1 to node-3-pod-1 ({lab.pod('node-3-pod-1')['ipv4']}): " in said
    assert "node-1-pod-1 to node-3-pod-1" not in said


def test_what_does_not_become_whole_is_said(lab: RealLab) -> None:
    lab.lab("stop", "node-3/speaker")
    try:
        said = lab.lab("roll", "--timeout", "2", code=1)
    finally:
        lab.lab("start", "node-3/speaker")
    assert "not whole after 2 s:" in said
    assert "node-3: " in said
    assert "the agent has no speaker" in said
