"""Whole nodes and a broker: what `tortiectl top` shows; what a broken broker does to routes: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from felix_like.datastore.keys import resource_key
from tests.support.netns import Namespace
from tests.support.system import ETCD, System, block4, holds, pinging, pod4, until, v4

pytestmark = [pytest.mark.interop, pytest.mark.mqtt]


class Broker:
    """mosquitto in the hub; a unix socket is for `tortiectl` outside."""

    def __init__(self, where: Namespace, folder: Path) -> None:
        self.url = f"mqtt://{ETCD}:1883"
        self.outside = f"unix://{folder}/mqtt.sock"
        self._where, self._folder = where, folder
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        config = self._folder / "mosquitto.conf"
        config.write_text(
            f"user root\nlistener 1883 {ETCD}\nlistener 0 {self._folder}/mqtt.sock\nallow_anonymous true\n"
        )
        with (self._folder / "mosquitto.log").open("ab") as log:
            self.process = self._where.start("mosquitto", "-c", str(config), stdout=log, stderr=log)

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@pytest.fixture
def system() -> Iterator[System]:
    with System(TORTIE_MQTT_URL=f"mqtt://{ETCD}:1883", TORTIE_CLUSTER="test") as made:
        yield made


def top(**environment: str) -> dict[str, list[str]]:
    """Node -> its columns; empty when `top` complains."""
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", "top", "--once"],
        env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return {row.split()[0]: row.split() for row in done.stdout.splitlines()[1:]}


def test_nodes_on_a_broker_that_comes_freezes_and_dies(system: System) -> None:
    one, two = system.node(1), system.node(2)
    two.wait_route(block4(1), v4(1))
    until(lambda: one.refusals("MQTT broker"), lambda: one.status())
    assert len(one.refusals("MQTT broker")) == 1, (
        "down from the start: one sentence, and the routes are there"
    )

    broker = Broker(system.fabric.hub, system.folder)
    broker.start()

    def lives() -> dict[str, str]:
        return {node: row[1] for node, row in top(TORTIE_MQTT_URL=broker.outside).items()}

    until(lambda: lives() == {"node-1": "running", "node-2": "running"}, lives, 60)
    until(lambda: not one.refusals("MQTT broker"), one.refusals)

    def seen(**environment: str) -> dict[str, list[str]]:
        """What does not change by the second: state, datastore, speaker, peers, routes."""
        return {node: row[1:2] + row[3:7] for node, row in top(**environment).items()}

    whole = {node: ["running", "in-sync", "connected", "2/2", "4/4"] for node in ("node-1", "node-2")}
    for source in ({"TORTIE_MQTT_URL": broker.outside}, {"TORTIE_RUN_DIR": str(system.folder)}):
        until(lambda source=source: seen(**source) == whole, lambda source=source: seen(**source))

    broker.send(signal.SIGSTOP)
    with pinging([(one.where, pod4(1), pod4(2)), (two.where, pod4(2), pod4(1))]):
        system.etcd.claim(one.name, block4(1, 1))
        two.wait_route(block4(1, 1), v4(1))
        system.etcd.release(one.name, block4(1, 1))
        two.wait_route(block4(1, 1), None)
        assert one.status()["datastore"]["state"] == "in-sync"
    broker.send(signal.SIGCONT)
    until(lambda: lives() == {"node-1": "running", "node-2": "running"}, lives, 60)

    one.kill_agent()
    until(lambda: lives() == {"node-1": "gone", "node-2": "running"}, lives, 60)
    one.start_agent()
    until(lambda: lives() == {"node-1": "running", "node-2": "running"}, lives, 60)
    assert one.kill_agent(signal.SIGTERM) == 0
    until(lambda: lives() == {"node-1": "stopped", "node-2": "running"}, lives, 60)

    broker.send(signal.SIGSTOP)
    assert two.kill_agent(signal.SIGTERM) == 0, "a frozen broker does not keep an agent from its orderly end"


def test_watch_tells_what_happens_from_the_sockets(system: System) -> None:
    one, two = system.node(1), system.node(2)
    two.wait_route(block4(1), v4(1))
    output = system.folder / "events"
    with output.open("w") as file:
        process = subprocess.Popen(
            # A runner in the background may have told its children to ignore Ctrl-C.
            ["env", "--default-signal=INT", sys.executable, "-m", "agent.cli.main", "watch", "-o", "json"],
            env=os.environ | {"TORTIE_RUN_DIR": str(system.folder)}, stdout=file,
        )  # fmt: skip

    def heard() -> list[dict[str, str]]:
        return [json.loads(line) for line in output.read_text().splitlines()]

    def event(**wanted: str) -> bool:
        return any(all(one.get(k) == v for k, v in wanted.items()) for one in heard())

    try:
        # Changes show from the second look on; when that was, only a change can tell.
        odd = resource_key("BGPPeer", "odd")
        for _ in range(10):
            if event(kind="refusal", node="node-1", after="present"):
                break
            system.etcd.put(odd, "not json")
            until(lambda: one.refusals("odd"))
            holds(lambda: True, 1.5)
            system.etcd.delete(odd)
            until(lambda: not one.refusals("odd"))
            holds(lambda: True, 1.5)  # what is shorter than a second may pass between two looks
        assert event(kind="refusal", node="node-1", after="present"), heard()
        one.kill_speaker()
        until(lambda: event(kind="speaker", node="node-1", before="connected", after="down"), heard, 60)
        until(lambda: event(kind="peer", node="node-2", before="Established"), heard, 60)
        two.kill_agent()
        until(lambda: event(kind="agent", node="node-2", after="unreachable"), heard, 60)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
