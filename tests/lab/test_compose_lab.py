"""The lab of docker-compose.yml, for real: an engine of the test's own builds, starts, breaks and removes it.

Opt-in, as it takes minutes and a gigabyte: TORTIE_COMPOSE_TEST=1. Needs no registry: Prometheus is Debian's,
under the name of the image that docker-compose.yml has, and a stand-in does what Grafana needs at its place.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.lab.compose import faults
from tests.support import container_engine, observers
from tests.support.container_engine import ContainerEngine, NoEngine

TOP = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        not os.environ.get("TORTIE_COMPOSE_TEST"),
        reason="takes minutes: TORTIE_COMPOSE_TEST=1 runs the lab of docker-compose.yml",
    ),
]


def machine() -> dict[str, object]:
    """What an engine would change if it were not kept apart."""
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=False).stdout
    return {
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "rules": rules,
        "links": {
            entry.name for entry in Path("/sys/class/net").iterdir() if not entry.name.startswith("veth")
        },
    }


@pytest.fixture(scope="module")
def engine() -> Iterator[ContainerEngine]:
    if reason := container_engine.why_not():
        pytest.skip(reason)
    before = machine()
    made = ContainerEngine()
    try:
        try:
            made.to_build()
        except NoEngine as error:
            pytest.skip(str(error))
        yield made
    finally:
        made.close()
    assert machine() == before
    assert not made.folder.exists()
    assert not made.control_groups()
    assert not list(Path("/run/netns").glob(f"{made.namespace}*"))


def compose(engine: ContainerEngine, *words: str, code: int = 0) -> str:
    """The command behind `make compose-lab`."""
    done = subprocess.run(
        [sys.executable, "-m", "agent.lab.compose", *words],
        cwd=TOP, env=engine.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == code, done.stdout
    return done.stdout


def docker(engine: ContainerEngine, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [container_engine.CLIENT, *arguments],
        cwd=TOP, env=engine.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def test_the_images_build(engine: ContainerEngine) -> None:
    compose(engine, "build")
    observers.build(engine.environ)


@pytest.mark.parametrize(
    ("role", "capability", "mask"),
    [("agent", "NET_ADMIN", 1 << 12), ("speaker", "NET_BIND_SERVICE", 1 << 10)],
)
def test_each_program_has_one_capability_and_no_root(
    engine: ContainerEngine, role: str, capability: str, mask: int
) -> None:
    show = "import os; print(os.getuid(), open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
    run = ("run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", f"--cap-add={capability}")
    said = docker(engine, *run, "tortie:dev", f"/opt/tortie/bin/python-{role}", "-c", show)
    assert said.split() == ["65532", f"{mask:016x}"]
    assert docker(engine, *run, "tortie:dev", "python3", "-c", show).split() == ["65532", "0" * 16]


def test_the_image_has_no_installer_and_no_writable_code(engine: ContainerEngine) -> None:
    found = "find /opt/tortie /etc/tortie -writable -not -type l; ls /opt/tortie/bin"
    said = docker(engine, "run", "--rm", "--network=none", "tortie:dev", "sh", "-c", found).split()
    assert {"tortie-agent", "tortie-speaker", "tortie-controllers", "tortiectl"} < set(said)
    assert not [name for name in said if name.startswith(("/", "pip"))]


@pytest.mark.parametrize("command", ["tortie-controllers", "tortiectl"])
def test_the_other_commands_start_without_any_right(engine: ContainerEngine, command: str) -> None:
    run = (
        "run",
        "--rm",
        "--network=none",
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    )
    assert "Usage: " in docker(engine, *run, "tortie:dev", command, "--help").replace("usage: ", "Usage: ")
    first = docker(engine, *run, "tortie:dev", "head", "-1", f"/opt/tortie/bin/{command}")
    assert first.strip() == "#!/opt/tortie/bin/python3", "which has no capability"


def test_the_lab_comes_up_whole(engine: ContainerEngine) -> None:
    engine.to_run()
    said = compose(engine, "up", "--no-build")
    assert "72 of 72 answered" in said
    assert "6 blocks by 3 next hops each" in said


def test_prometheus_hears_everybody_and_is_let_in_on_loopback_only(engine: ContainerEngine) -> None:
    said = compose(engine, "up", "--no-build", "--observe")
    assert "every target is scraped, 3 agents among them" in said
    assert "Grafana     http://127.0.0.1:3000" in said
    assert "Prometheus  http://127.0.0.1:9090" in said
    names = docker(engine, "ps", "--format", "{{.Names}}").split()
    assert {f"tortie-{name}-1" for name in observers.services()} < set(names)
    for name, service in observers.services().items():
        status = docker(engine, "exec", f"tortie-{name}-1", "cat", "/proc/self/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split()[0] == service["user"].partition(":")[0]
        assert fields["CapEff"] == "0" * 16
        assert fields["NoNewPrivs"] == "1"
    rules = docker(
        engine, "exec", "tortie-prometheus-1", "promtool", "query", "instant", "http://127.0.0.1:9090",
        'count(ALERTS{alertstate="firing"}) or vector(0)',
    )  # fmt: skip
    assert rules.startswith("{} => 0 "), "a lab that is whole alarms nobody"


@pytest.mark.parametrize("fault", [fault.name for fault in faults.KIT])
def test_a_fault_has_its_expected_outcome(engine: ContainerEngine, fault: str) -> None:
    assert "NOT AS EXPECTED" not in compose(engine, "faults", "--only", fault)


def test_what_it_says_of_a_lab_that_is_not_whole(engine: ContainerEngine) -> None:
    """The proof can fail: a stopped speaker is named."""
    docker(engine, "stop", "-t", "2", "tortie-node-2-speaker-1")
    said = compose(engine, "check", "--patience", "5", code=1)
    assert "node-2: speaker down" in said
    docker(engine, "start", "tortie-node-2-speaker-1")


def test_down_leaves_nothing_but_images(engine: ContainerEngine) -> None:
    compose(engine, "down")
    assert docker(engine, "ps", "--all", "--quiet") == ""
    assert docker(engine, "volume", "ls", "--quiet") == ""
    assert "tortie" not in docker(engine, "network", "ls")
