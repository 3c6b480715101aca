"""The compose lab's driver: sees what is wrong, waits no longer than it may, quotes the engine."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.lab.compose import faults, plan
from agent.lab.compose.engine import Engine
from agent.lab.compose.world import Look, Stream, World
from agent.lab.plan import LabError

PEERS = ("198.18.30.12", "198.18.30.13", "198.18.30.3")


def status(**changed: Any) -> dict[str, Any]:
    return {
        "datastore": {"state": "in-sync"},
        "speaker": {"state": "connected"},
        "peers": [{"address": a, "state": "Established", "since": 100.0} for a in PEERS],
    } | changed


def routes(name: str) -> dict[str, str]:
    others = [plan.planned(other) for other in plan.node_names() if other != name]
    return {
        **{f"10.65.0.{64 * node.index}/26": node.ipv4 for node in others},
        **{f"fd00:65::{node.index}00/122": node.ipv6 for node in others},
        **{plan.OUTSIDE_PREFIX[version]: plan.TOR[version] for version in (4, 6)},
    }


class FakeEngine:
    """A lab that is whole, unless told otherwise; records what is done to it."""

    def __init__(self, *, lost: int = 0) -> None:
        self.done: list[str] = []
        self.lost = lost
        self.hops = 3
        self.states = dict.fromkeys(plan.node_names(), "running")
        self.status = status()

    def inside(self, node: str, *_words: str) -> dict[str, Any]:
        pods = {f"{node}-pod-1": ["10.65.0.1", "fd00:65::1"]}
        return {"pods": pods, "routes": routes(node), "status": self.status}

    def execute(self, service: str, *command: str) -> str:
        if service == "broker":
            return "".join(json.dumps({"node": n, "state": s}) + "\n" for n, s in self.states.items())
        blocks = [f"{'10.65.0.' if '-4' in command else 'fd00::'}{n}" for n in range(3)]
        return json.dumps([{"dst": block, "nexthops": [{}] * self.hops} for block in blocks])

    def start_inside(self, _node: str, *_words: str) -> subprocess.Popen[str]:
        answer = json.dumps({"sent": 100, "received": 100 - self.lost})
        program = f"import sys; print('started', flush=True); sys.stdin.read(); print({answer!r})"
        return subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def act(self, verb: str, *services: str) -> None:
        self.done.append(" ".join((verb, *services)))

    def crash(self, service: str) -> None:
        self.done.append(f"crash {service}")


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def world(engine: Any, clock: Clock | None = None) -> World:
    clock = clock or Clock()
    made = World(engine, clock, clock.sleep)
    made.look()
    return made


# --- what is wrong --------------------------------------------------------------------------------


def look(**changed: Any) -> list[str]:
    whole: dict[str, Any] = {"name": "node-1", "pods": {}, "routes": routes("node-1"), "status": status()}
    return list(Look(**whole | changed).wrong())


def test_a_whole_node_has_nothing_wrong() -> None:
    assert look() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"status": {"error": "no agent listens"}}, "node-1: no agent listens"),
        ({"status": status(datastore={"state": "stale"})}, "node-1: datastore stale"),
        ({"status": status(speaker={"state": "down"})}, "node-1: speaker down"),
        ({"status": status(peers=[{"address": "x", "state": "Idle", "since": 1}])}, "node-1: peer x Idle"),
    ],
)
def test_what_the_agent_says_counts(changed: dict[str, Any], said: str) -> None:
    assert look(**changed) == [said]


def test_what_the_kernel_lacks_counts_though_every_session_is_up() -> None:
    left = {prefix: gateway for prefix, gateway in routes("node-1").items() if gateway != "198.18.30.13"}
    assert look(routes=left) == ["node-1: no route via node-3 (198.18.30.13)"]
    left = {prefix: gateway for prefix, gateway in routes("node-1").items() if prefix != "203.0.113.0/24"}
    assert look(routes=left) == ["node-1: no route to 203.0.113.0/24 via the ToR router"]


def test_a_router_without_every_path_is_wrong() -> None:
    engine = FakeEngine()
    engine.hops = 2
    assert world(engine).wrong() == [f"ToR router: IPv{v} blocks have [2, 2, 2] next hops" for v in (4, 6)]


def test_a_last_will_is_wrong() -> None:
    engine = FakeEngine()
    engine.states = {"node-1": "running", "node-2": "gone"}
    assert world(engine).wrong() == ["broker: node-2 is gone", "broker: node-3 is unheard of"]


def heard(**up: str) -> str:
    """Prometheus' answer: who is up."""
    return json.dumps(
        [
            {
                "metric": {"job": "tortie" if name.startswith("node") else name, "instance": name},
                "value": [1.0, value],
            }
            for name, value in ((name.replace("_", "-"), value) for name, value in up.items())
        ]
    )


def test_whom_prometheus_does_not_hear_is_named() -> None:
    class Observed(FakeEngine):
        said = heard(node_1="1", node_2="0", etcd="0")

        def execute(self, service: str, *command: str) -> str:
            return self.said if service == "prometheus" else super().execute(service, *command)

    engine = Observed()
    assert world(engine).unheard() == [
        "Prometheus does not hear tortie node-2",
        "Prometheus does not hear etcd etcd",
        "Prometheus has not looked for node-3 yet",
    ]
    engine.said = heard(node_1="1", node_2="1", node_3="1", etcd="1")
    assert world(engine).unheard() == []
    engine.said = ""
    assert len(world(engine).unheard()) == 3


def test_a_prometheus_that_is_not_there_yet_is_quoted() -> None:
    class Starting(FakeEngine):
        def execute(self, service: str, *command: str) -> str:
            if service == "prometheus":
                raise LabError("'docker exec' failed: connection refused")
            return super().execute(service, *command)

    assert world(Starting()).unheard() == ["Prometheus: 'docker exec' failed: connection refused"]


def test_waiting_ends_with_what_is_left() -> None:
    clock = Clock()
    with pytest.raises(LabError, match=r"^still so after 5 s: a; b; c; d \(and 1 more\)$"):
        world(FakeEngine(), clock).wait(lambda: list("abcde"), 5)
    assert 5 < clock.now < 6
    assert world(FakeEngine()).wait(list, 5) == 0


# --- verdicts -------------------------------------------------------------------------------------


def test_a_fault_that_is_not_felt_is_as_expected() -> None:
    engine = FakeEngine()
    outcome = faults.agent_dies(world(engine))
    assert outcome.good, outcome.seen
    assert engine.done == ["crash node-1-agent"]
    assert "0 of 300 pings lost" in outcome.seen


def test_one_lost_ping_is_a_surprise() -> None:
    outcome = faults.agent_dies(world(FakeEngine(lost=1)))
    assert not outcome.good
    assert "node-1 to node-2: 1 of 100 lost" in outcome.seen


def test_a_reset_session_is_a_surprise() -> None:
    class Reset(FakeEngine):
        def crash(self, service: str) -> None:
            self.status = status(
                peers=[{"address": a, "state": "Established", "since": 200.0} for a in PEERS]
            )

    outcome = faults.agent_dies(world(Reset()))
    assert not outcome.good
    assert "sessions were reset" in outcome.seen


def test_what_is_paused_goes_on_whatever_happens() -> None:
    engine = FakeEngine(lost=1)
    with pytest.raises(LabError, match=r"node-1 routes 10\.65\.0\.128/26 via node-2"):
        faults.speaker_hangs(world(engine))  # whose routes never go
    assert engine.done == ["pause node-2-speaker", "unpause node-2-speaker"]


class Cut(FakeEngine):
    """Nobody has routes via node-3, and the broker tells its will a few looks later."""

    def __init__(self, looks: int) -> None:
        super().__init__(lost=7)
        self.hops = 2
        self.looks = looks

    def inside(self, node: str, *words: str) -> dict[str, Any]:
        return super().inside(node, *words) | {"routes": {}, "status": status(datastore={"state": "stale"})}

    def execute(self, service: str, *command: str) -> str:
        if service == "broker":
            self.looks -= 1
            self.states["node-3"] = "gone" if self.looks < 0 else "running"
        return super().execute(service, *command)

    def unplug(self, node: str) -> None:
        self.done.append(f"unplug {node}")

    def plug_in(self, node: str, *_addresses: str) -> None:
        self.done.append(f"plug in {node}")


def test_a_last_will_is_waited_for_and_the_node_plugged_in_whatever_comes() -> None:
    engine = Cut(looks=20)
    with pytest.raises(LabError, match="still so after 60 s"):  # whose routes never come back
        faults.partition(world(engine))
    assert engine.looks < 0
    assert engine.done == ["unplug node-3", "plug in node-3"]
    silent = Cut(looks=10_000)
    with pytest.raises(LabError, match="the broker says 'running' of node-3"):
        faults.partition(world(silent))
    assert silent.done == ["unplug node-3", "plug in node-3"]


def test_pings_that_never_went_out_prove_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", "print('{\"sent\": 0, \"received\": 0}')"], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    stream = Stream(child, "node-1 to node-2")
    stream.end()
    assert not faults._unfelt([stream], "").good


# --- the engine -----------------------------------------------------------------------------------


@contextmanager
def docker(folder: Path, script: str) -> Any:
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    yield Engine(folder, {"TORTIE_DOCKER": str(program), "PATH": "/usr/bin:/bin"})


def test_a_failing_engine_is_quoted(tmp_path: Path) -> None:
    with docker(tmp_path, "echo 'no space left on device' >&2; exit 1") as engine:
        with pytest.raises(LabError, match=r"compose up --detach …' failed: no space left on device"):
            engine.up()


def test_whoever_observes_is_started_when_asked_for_and_always_removed(tmp_path: Path) -> None:
    with docker(tmp_path, 'echo "$*" >> calls; echo 127.0.0.1:3000') as engine:
        engine.up()
        engine.up(observe=True)
        engine.down()
        assert engine.published("grafana", 3000) == "127.0.0.1:3000"
    assert (tmp_path / "calls").read_text().splitlines() == [
        "compose up --detach --no-build --remove-orphans",
        "compose --profile observe up --detach --no-build --remove-orphans",
        "compose --profile observe down --volumes --remove-orphans --timeout 2",
        "compose --profile observe port grafana 3000",
    ]


def test_without_docker_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="install Docker Engine"):
        Engine(tmp_path, {"TORTIE_DOCKER": str(tmp_path / "none")}).up()


def test_a_lab_that_is_not_there_is_named(tmp_path: Path) -> None:
    with docker(tmp_path, "exit 0") as engine:
        with pytest.raises(LabError, match="there is no container of node-1: 'make compose-lab'"):
            engine.execute("node-1", "true")


def test_a_build_takes_the_authority_along(tmp_path: Path) -> None:
    with docker(tmp_path, 'echo "$DOCKER_BUILDKIT $*" >> calls') as made:
        engine = Engine(
            tmp_path, {**made._environ, "TORTIE_CA_FILE": "/ca.crt", "TORTIE_BUILD_ARGS": "--network=host"}
        )
        engine.build()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["1", "1"]
    for call, (target, image) in zip(
        calls, (("tortie", "tortie:dev"), ("lab", "tortie-lab:dev")), strict=True
    ):
        assert f"--target {target} -t {image} --secret id=ca,src=/ca.crt --network=host ." in call
