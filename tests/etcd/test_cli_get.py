"""`tortiectl get`, `ipam show` and `version` against a real etcd, in calicoctl's columns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from agent.cli.main import tortiectl
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from tests.support.etcd import etcd

pytestmark = pytest.mark.etcd

V3 = "/calico/resources/v3/projectcalico.org"
BLOCK = {
    "cidr": "10.1.0.0/30",
    "affinity": "host:node-1",
    "allocations": [0, None, 1, None],
    "unallocated": [1, 3],
    "attributes": [
        {
            "handle_id": "ipip-tunnel-addr-node-1",
            "secondary": {"type": "ipipTunnelAddress", "node": "node-1"},
        },
        {"handle_id": None, "secondary": None},
    ],
}


def resource(kind: str, name: str, **spec: Any) -> Any:
    metadata = {"name": name, "uid": "u", "creationTimestamp": "2026-01-10T09:00:00Z"}
    return {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": metadata,
        "spec": spec,
        "futureField": 7,
    }


STORED: dict[str, Any] = {
    f"{V3}/nodes/node-1": resource("Node", "node-1", bgp={"ipv4Address": "10.0.0.1/24", "asNumber": 65001}),
    f"{V3}/nodes/node-2": resource(
        "Node", "node-2", bgp={"ipv4Address": "10.0.0.2/24", "ipv6Address": "fd00::2/64"}
    ),
    f"{V3}/nodes/broken": "{",
    f"{V3}/bgpconfigurations/default": resource(
        "BGPConfiguration", "default", asNumber=64999, nodeToNodeMeshEnabled=True
    ),
    f"{V3}/ippools/blue": resource("IPPool", "blue", cidr="10.1.0.0/16", natOutgoing=True, ipipMode="Always"),
    f"{V3}/bgppeers/tor": resource("BGPPeer", "tor", peerIP="10.0.0.254", asNumber=64600),
    f"{V3}/bgppeers/rack": resource("BGPPeer", "rack", peerIP="10.0.0.253", nodeSelector="rack == 'r1'"),
    f"{V3}/clusterinformations/default": resource(
        "ClusterInformation", "default", clusterGUID="abc", clusterType="k8s,bgp", datastoreReady=True
    ),
    "/calico/ipam/v2/assignment/ipv4/block/10.1.0.0-30": BLOCK,
    f"{V3}/networkpolicies/default/knp.default.web": resource(
        "NetworkPolicy", "knp.default.web", order=1000, selector="projectcalico.org/orchestrator == 'k8s'"
    ),
    f"{V3}/networkpolicies/default/default.last": resource("NetworkPolicy", "default.last"),
    f"{V3}/networkpolicies/default/odd": resource("NetworkPolicy", "odd", order=[1], selector=7),
    f"{V3}/networkpolicies/shop/secure.db": resource("NetworkPolicy", "secure.db", order=10.5, tier="secure"),
    f"{V3}/profiles/kns.default": resource(
        "Profile", "kns.default", labelsToApply={"pcns.b": "2", "pcns.a": ""}
    ),
    f"{V3}/profiles/ksa.default.default": resource("Profile", "ksa.default.default", labelsToApply="none"),
    f"{V3}/workloadendpoints/default/node--1-k8s-web--0-eth0": resource(
        "WorkloadEndpoint",
        "node--1-k8s-web--0-eth0",
        orchestrator="k8s",
        node="node-1",
        pod="web-0",
        ipNetworks=["10.1.0.2/32", "fd00::2/128"],
        interfaceName="cali12345678901",
        profiles=["kns.default", "ksa.default.default"],
        ipNATs=[{"internalIP": "10.1.0.2", "externalIP": "203.0.113.5"}, 7],
    ),
    f"{V3}/workloadendpoints/shop/node--1-other-w-eth0": resource(
        "WorkloadEndpoint", "node--1-other-w-eth0", workload="w", node="node-1", ipNetworks="10.1.0.3/32"
    ),
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    async def fill(url: str) -> None:
        async with Client(EtcdConfig(endpoints=(url,))) as client:
            for key, value in STORED.items():
                await client.put(
                    key, value.encode() if isinstance(value, str) else json.dumps(value).encode()
                )

    with etcd() as [member]:
        asyncio.run(fill(member.endpoint))
        yield member.endpoint


def call(endpoint: str, *arguments: str) -> Result:
    return CliRunner().invoke(
        tortiectl, arguments, env={"ETCD_ENDPOINTS": endpoint, "TORTIE_RUN_DIR": "/nowhere"}
    )


def test_nodes_by_name(endpoint: str) -> None:
    result = call(endpoint, "get", "nodes")
    assert result.exit_code == 0
    assert result.stdout == "NAME\nnode-1\nnode-2\n"


def test_a_broken_value_is_warned_about_and_left_out(endpoint: str) -> None:
    result = call(endpoint, "get", "nodes")
    assert result.stderr == f"Warning: {V3}/nodes/broken is left out: its value is not JSON\n"


def test_an_inherited_as_number_is_in_parentheses(endpoint: str) -> None:
    assert call(endpoint, "get", "nodes", "-o", "wide").stdout.splitlines() == [
        "NAME    ASN      IPV4         IPV6",
        "node-1  65001    10.0.0.1/24",
        "node-2  (64999)  10.0.0.2/24  fd00::2/64",
    ]


def test_pools_wide(endpoint: str) -> None:
    header, row = call(endpoint, "get", "ippools", "-o", "wide").stdout.splitlines()
    assert " ".join(header.split()) == (
        "NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR ASSIGNMENTMODE"
    )
    assert " ".join(row.split()) == "blue 10.1.0.0/16 true Always Never false false all() Automatic"


def test_peers_say_for_whom_they_are(endpoint: str) -> None:
    assert call(endpoint, "get", "bgppeers").stdout.splitlines() == [
        "NAME  PEERIP      NODE          ASN",
        "rack  10.0.0.253  rack == 'r1'  (64999)",
        "tor   10.0.0.254  (global)      64600",
    ]


def test_configurations(endpoint: str) -> None:
    assert call(endpoint, "get", "bgpconfig").stdout.splitlines()[1].split() == [
        "default",
        "-",
        "true",
        "64999",
    ]


def cells(endpoint: str, *arguments: str) -> list[list[str]]:
    return [line.split() for line in call(endpoint, "get", *arguments).stdout.splitlines()]


def test_policies_of_a_namespace_and_of_all(endpoint: str) -> None:
    assert cells(endpoint, "networkpolicies") == [
        ["NAME", "TIER"],
        ["default.last", "default"],
        ["knp.default.web", "default"],
        ["odd", "default"],
    ]
    assert cells(endpoint, "np", "-n", "shop", "-o", "wide") == [
        ["NAME", "TIER", "ORDER", "SELECTOR"],
        ["secure.db", "secure", "10.5"],
    ]
    wide = call(endpoint, "get", "policy", "-A", "-o", "wide").stdout.splitlines()
    assert wide[0].split() == ["NAMESPACE", "NAME", "TIER", "ORDER", "SELECTOR"]
    assert wide[1].split() == ["default", "default.last", "default", "<nil>"]
    assert " ".join(wide[2].split()) == (
        "default knp.default.web default 1000 projectcalico.org/orchestrator == 'k8s'"
    )
    assert wide[3].split() == ["default", "odd", "default", "[1]", "7"]
    assert wide[4].split()[:2] == ["shop", "secure.db"]


def test_profiles_with_their_labels(endpoint: str) -> None:
    assert cells(endpoint, "profiles") == [["NAME"], ["kns.default"], ["ksa.default.default"]]
    assert cells(endpoint, "profile", "-o", "wide")[1] == ["kns.default", "pcns.a=,pcns.b=2"]
    assert cells(endpoint, "profiles", "-n", "shop", "-A") == cells(endpoint, "profiles")


def test_workload_endpoints(endpoint: str) -> None:
    assert cells(endpoint, "workloadendpoints") == [
        ["WORKLOAD", "NODE", "NETWORKS", "INTERFACE"],
        ["web-0", "node-1", "10.1.0.2/32,fd00::2/128", "cali12345678901"],
    ]
    assert cells(endpoint, "wep", "-A")[2] == ["shop", "w", "node-1"]
    header, row = call(endpoint, "get", "weps", "-o", "wide").stdout.splitlines()
    assert header.split() == ["NAME", "WORKLOAD", "NODE", "NETWORKS", "INTERFACE", "PROFILES", "NATS"]
    assert row.startswith("node--1-k8s-web--0-eth0  web-0")
    assert row.endswith("kns.default,ksa.default.default  {10.1.0.2 203.0.113.5}")


def test_a_name_is_looked_for_in_its_namespace(endpoint: str) -> None:
    shown = json.loads(call(endpoint, "get", "np", "secure.db", "-n", "shop", "-o", "json").stdout)
    assert shown["spec"]["tier"] == "secure"
    missing = call(endpoint, "get", "np", "secure.db")
    assert missing.exit_code == 1
    assert "no NetworkPolicy 'secure.db' in namespace 'default'" in missing.stderr
    both = call(endpoint, "get", "np", "secure.db", "-A")
    assert both.exit_code == 1
    assert both.stderr == "Error: a name and --all-namespaces do not go together; use -n NAMESPACE\n"
    assert call(endpoint, "get", "np", "-n", "nowhere").stdout == "NAME  TIER\n"


def test_one_resource_is_printed_as_stored_with_its_revision(endpoint: str) -> None:
    shown = json.loads(call(endpoint, "get", "node", "node-2", "-o", "json").stdout)
    revision = shown["metadata"].pop("resourceVersion")
    assert int(revision) > 1
    assert shown == STORED[f"{V3}/nodes/node-2"]


def test_several_are_a_list(endpoint: str) -> None:
    shown = yaml.safe_load(call(endpoint, "get", "bgppeers", "-o", "yaml").stdout)
    assert shown["kind"] == "BGPPeerList"
    assert [item["metadata"]["name"] for item in shown["items"]] == ["rack", "tor"]
    two = json.loads(call(endpoint, "get", "bgppeers", "tor", "rack", "-o", "json").stdout)
    assert [item["metadata"]["name"] for item in two["items"]] == ["tor", "rack"]


def test_a_name_that_is_not_there_fails(endpoint: str) -> None:
    result = call(endpoint, "get", "nodes", "node-9")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "Error: there is no Node 'node-9' in the datastore ('tortiectl get nodes')\n"
    )


def test_the_config_file_says_where_etcd_is(endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "calicoctl.cfg"
    file.write_text(
        "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n"
        f"  datastoreType: etcdv3\n  etcdEndpoints: {endpoint}\n"
    )
    unset = dict.fromkeys(("ETCD_ENDPOINTS", "CALICO_ETCD_ENDPOINTS", "DATASTORE_TYPE"))
    result = CliRunner().invoke(tortiectl, ["-c", str(file), "get", "ippools"], env=unset)
    assert "blue" in result.stdout


def test_how_full_the_pools_are(endpoint: str) -> None:
    lines = call(endpoint, "ipam", "show", "--show-blocks").stdout.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells == [
        ["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS FREE"],
        ["IP Pool", "10.1.0.0/16", "65536", "2 (0%)", "65534 (100%)"],
        ["Block", "10.1.0.0/30", "4", "2 (50%)", "2 (50%)"],
    ]


def test_who_holds_an_address(endpoint: str) -> None:
    assert call(endpoint, "ipam", "show", "--ip", "10.1.0.0").stdout.splitlines() == [
        "IP 10.1.0.0 is in use",
        "Handle ID: ipip-tunnel-addr-node-1",
        "Attributes:",
        "  node: node-1",
        "  type: ipipTunnelAddress",
    ]
    assert (
        call(endpoint, "ipam", "show", "--ip", "10.1.0.2").stdout
        == "IP 10.1.0.2 is in use\nNo attributes defined\n"
    )
    assert call(endpoint, "ipam", "show", "--ip", "10.1.0.1").stdout == "10.1.0.1 is not assigned\n"
    assert call(endpoint, "ipam", "show", "--ip", "192.0.2.1").stdout == "192.0.2.1 is not assigned\n"
    assert call(endpoint, "ipam", "show", "--ip", "10.1").exit_code == 1


def test_version_asks_whom_it_can_reach(endpoint: str) -> None:
    result = call(endpoint, "version")
    assert result.exit_code == 0
    assert "Cluster Type:       k8s,bgp" in result.stdout
    assert "Agent Version:      unknown: there is no agent at /nowhere/agent.sock" in result.stdout


def test_no_etcd_is_one_sentence() -> None:
    result = call("http://127.0.0.1:1", "get", "nodes")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.output


def test_a_wrong_endpoint_is_refused_with_what_is_allowed() -> None:
    result = call("etcd.example", "get", "nodes")
    assert result.exit_code == 1
    assert "use http://host:port" in result.stderr
