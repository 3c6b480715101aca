"""A real Prometheus and real agents: every query answers, and trouble rings the bell that is meant for it.

The alerts are those of deploy/prometheus, only less patient.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.pages import PAGES
from tests.support.netns import Namespace
from tests.support.system import System, block4, block6, until, v4, v6

ALERTS = Path(__file__).parents[2] / "deploy/prometheus/alerts.yml"
PROMETHEUS = shutil.which("prometheus")

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian package prometheus)"),
]

PATIENCE = 60.0


class Prometheus:
    """Scrapes the nodes once a second, from the hub."""

    def __init__(self, where: Namespace, folder: Path, targets: dict[str, str]) -> None:
        assert PROMETHEUS is not None
        self._where = where
        folder.mkdir()
        impatient = re.sub(r"for: \d+m", "for: 2s", ALERTS.read_text())
        (folder / "alerts.yml").write_text(impatient)
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [
                {
                    "job_name": "tortie",
                    "static_configs": [
                        {"targets": [target], "labels": {"instance": name}}
                        for name, target in targets.items()
                    ],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with (folder / "prometheus.log").open("wb") as log:
            where.start(
                PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                "--web.listen-address=127.0.0.1:9090", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def ask(self, expr: str) -> dict[str, Any]:
        """The API's whole answer; empty while there is none."""
        done = subprocess.run(
            ["nsenter", f"--net={self._where.path}", "curl", "-s", "-m", "10", "http://127.0.0.1:9090/api/v1/query",
             "--data-urlencode", f"query={expr}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        # 503 in plain text while it starts; an error in JSON for a query that is wrong.
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        return answer

    def values(self, expr: str) -> list[tuple[dict[str, str], float]]:
        found = self.ask(expr).get("data", {}).get("result", [])
        return [(one["metric"], float(one["value"][1])) for one in found]

    def firing(self) -> set[tuple[str, str]]:
        """(alert, node)"""
        found = self.values('ALERTS{alertstate="firing"}')
        return {(labels["alertname"], labels.get("instance", "")) for labels, _ in found}


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        for number in (1, 2):
            made.node(number, TORTIE_HEALTH_ADDRESS=f"{v4(number)}:9179")
        yield made


@pytest.fixture(scope="module")
def prometheus(system: System) -> Prometheus:
    targets = {node.name: f"{v4(number)}:9179" for number, node in system.nodes.items()}
    return Prometheus(system.fabric.hub, system.folder / "prometheus", targets)


@pytest.fixture(autouse=True)
def quiet(system: System, prometheus: Prometheus) -> None:
    """Whole, scraped, and nothing rings."""
    until(
        lambda: len(prometheus.values('up{job="tortie"} == 1')) == 2 and not prometheus.firing(),
        lambda: (prometheus.values("up"), prometheus.firing()),
        PATIENCE,
    )
    one, other = system.nodes[1], system.nodes[2]
    until(lambda: one.established(v4(2), v6(2)) and other.established(v4(1), v6(1)), one.status, PATIENCE)


def rings(prometheus: Prometheus, *alerts: tuple[str, str]) -> None:
    until(lambda: set(alerts) <= prometheus.firing(), prometheus.firing, PATIENCE)


def queries() -> list[tuple[str, str]]:
    """(where, PromQL), with Grafana's variables filled in."""
    found = [
        (f"{page['title']}: {panel['title']}", target["expr"])
        for page in PAGES
        for panel in page["panels"]
        for target in panel.get("targets", ())
    ]
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    found += [(rule["alert"], rule["expr"]) for rule in rules]
    return [
        (where, expr.replace("$__rate_interval", "1m").replace("$node", "node-1")) for where, expr in found
    ]


def test_every_query_answers(prometheus: Prometheus, system: System) -> None:
    until(lambda: len(prometheus.values("tortie_ready == 1")) == 2, prometheus.firing, PATIENCE)
    until(
        lambda: len(prometheus.values("rate(tortie_convergence_seconds_count[1m])")) == 2,
        "each scraped twice",
        PATIENCE,
    )
    silent = set()
    for where, expr in queries():
        answer = prometheus.ask(expr)
        assert answer.get("status") == "success", (where, expr, answer)
        if not answer["data"]["result"]:
            silent.add((where, expr))
    # In a cluster that is whole only what asks for trouble finds nothing, or for what is not there.
    trouble = re.compile(r" [<>=]=? \d+\)?$|^absent|tortie_broker_up|tortie_kubernetes|tortie-controllers")
    assert not [(where, expr) for where, expr in silent if not trouble.search(expr)]
    assert not prometheus.firing()


def test_what_prometheus_reads_is_what_the_agents_say(prometheus: Prometheus, system: System) -> None:
    for number, node in system.nodes.items():
        other = 3 - number
        [(labels, value)] = prometheus.values(f'tortie_peer_up{{instance="{node.name}", peer="{v4(other)}"}}')
        assert (labels["remote_node"], value) == (f"node-{other}", 1)
        [(labels, _)] = prometheus.values(f'tortie_build_info{{instance="{node.name}"}}')
        assert labels["node"] == node.name


def test_an_agent_that_is_killed(prometheus: Prometheus, system: System) -> None:
    one = system.nodes[1]
    one.kill_agent()
    try:
        rings(prometheus, ("TortieAgentGone", "node-1"))
        assert prometheus.firing() == {("TortieAgentGone", "node-1")}, "its speaker keeps the sessions"
    finally:
        one.start_agent()


def test_a_speaker_that_is_killed(prometheus: Prometheus, system: System) -> None:
    one = system.nodes[1]
    one.kill_speaker()
    try:
        # Node 2 has no other peer.
        rings(
            prometheus,
            ("TortieSpeakerDown", "node-1"),
            ("TortieSessionDown", ""),
            ("TortieNodeAlone", "node-2"),
        )
    finally:
        one.start_speaker()


def test_an_etcd_that_freezes(prometheus: Prometheus, system: System) -> None:
    assert system.etcd.process is not None
    system.etcd.process.send_signal(signal.SIGSTOP)
    try:
        rings(prometheus, ("TortieDatastoreAway", "node-1"), ("TortieDatastoreAway", "node-2"))
    finally:
        system.etcd.process.send_signal(signal.SIGCONT)


def test_a_datastore_that_is_locked(prometheus: Prometheus, system: System) -> None:
    system.etcd.resource("ClusterInformation", "default", {"datastoreReady": False})
    try:
        rings(prometheus, ("TortieDatastoreLocked", "node-1"), ("TortieDatastoreLocked", "node-2"))
        assert "TortieDatastoreAway" not in {alert for alert, _ in prometheus.firing()}
    finally:
        system.etcd.resource("ClusterInformation", "default", {"datastoreReady": True})


def test_a_route_whose_place_is_taken(prometheus: Prometheus, system: System) -> None:
    one, prefix = system.nodes[1], block4(2, 1)
    foreign = ("route", "replace", "blackhole", prefix, "metric", "1024", "proto", "static")
    one.where.ip(*foreign)
    system.etcd.claim("node-2", prefix)
    try:
        rings(prometheus, ("TortieRoutesMissing", "node-1"))
    finally:
        one.where.ip("route", "del", "blackhole", prefix, "metric", "1024")
        system.etcd.release("node-2", prefix)


def test_a_path_from_a_peer_that_does_not_own_it(prometheus: Prometheus, system: System) -> None:
    """Node 2's speaker goes on announcing a block that the datastore says is another node's by now."""
    other = system.nodes[2]
    prefix = block6(2, 1)
    system.etcd.claim("node-2", prefix)
    system.nodes[1].wait_route(prefix, v6(2), PATIENCE)
    other.kill_agent()
    system.etcd.release("node-2", prefix)
    system.etcd.claim("node-9", prefix)
    try:
        rings(prometheus, ("TortieInvalidPaths", "node-1"), ("TortieRefusedRoutesRise", "node-1"))
    finally:
        other.start_agent()
