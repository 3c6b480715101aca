"""`tortiectl node status`, `routes` and `explain`, asked of a socket that answers what a test says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import tortiectl
from agent.cli.node import render
from tests.support.agentsocket import NOW, STATUS, AgentSocket

PATH: dict[str, Any] = {
    "peer": "10.0.0.2",
    "peer_name": "node-2",
    "next_hop": "10.0.0.2",
    "as_path": "",
    "local_pref": 100,
    "med": None,
    "origin": "IGP",
    "validity": "valid",
    "reason": "block 10.1.0.0/26 is affine to node-2",
    "rejection": None,
    "stale": False,
    "best": True,
    "step": "",
}
ROUTE = {
    "prefix": "10.1.0.0/26",
    "kind": "learned",
    "kernel": "installed",
    "via": ["10.0.0.2 dev eth0"],
    "paths": [
        PATH,
        PATH
        | {
            "peer": "10.0.0.3",
            "peer_name": "node-3",
            "best": False,
            "validity": "invalid",
            "rejection": "node-3 does not hold 10.1.0.0/26",
            "reason": "",
        },
    ],
}


def call(run: Path, *arguments: str) -> Result:
    return CliRunner().invoke(tortiectl, arguments, env={"TORTIE_RUN_DIR": str(run)})


def said(answer: dict[str, Any]) -> str:
    return "\n".join(render(answer, time.gmtime))


def test_status_has_calicoctls_layout() -> None:
    assert said(STATUS).splitlines() == [
        "Calico process is running.",
        "",
        "IPv4 BGP status",
        "+--------------+-------------------+-------+----------+-------------+",
        "| PEER ADDRESS | PEER TYPE         | STATE | SINCE    | INFO        |",
        "+--------------+-------------------+-------+----------+-------------+",
        "| 10.0.0.2     | node-to-node mesh | up    | 22:12:20 | Established |",
        "+--------------+-------------------+-------+----------+-------------+",
        "",
        "IPv6 BGP status",
        "+--------------+-----------+-------+------------+----------------------------+",
        "| PEER ADDRESS | PEER TYPE | STATE | SINCE      | INFO                       |",
        "+--------------+-----------+-------+------------+----------------------------+",
        "| fd00::2      | global    | start | 2023-11-12 | Active: Connection refused |",
        "+--------------+-----------+-------+------------+----------------------------+",
    ]


def test_a_family_without_peers_says_so() -> None:
    text = said(STATUS | {"peers": []})
    assert "IPv4 BGP status\nNo IPv4 peers found." in text
    assert "IPv6 BGP status\nNo IPv6 peers found." in text


def test_paths_that_wait_for_the_datastore_are_counted_where_that_keeps_them_out() -> None:
    waiting = {"rib": {"unknown": 3}, "origin_validation": "enforce"}
    assert "wait for the datastore to say who holds them: 3" in said(STATUS | waiting)
    assert "wait for the datastore" not in said(STATUS | waiting | {"origin_validation": "observe"})


def test_what_is_wrong_is_said_below_the_tables() -> None:
    text = said(
        STATUS
        | {
            "datastore": {"state": "stale", "since": NOW - 300, "reason": "no endpoint answers"},
            "kubernetes": {"state": "stale", "since": NOW - 300, "reason": "no answer"},
            "speaker": {"state": "down", "since": NOW - 5, "reason": "connection refused"},
            "routes": {
                "failed": [{"prefix": "10.1.0.0/26", "reason": "Network is unreachable"}],
                "conflicts": [{"prefix": "10.2.0.0/26", "reason": "protocol static has it"}],
            },
            "refusals": [{"subject": "BGPPeer tor-1", "reason": "AS 0 is reserved"}],
        }
    )
    assert "Datastore: stale for 5m0s (no endpoint answers); forwarding goes on with what was known" in text
    assert "Kubernetes: stale for 5m0s (no answer); services and passwords stay as they were known" in text
    assert "Speaker: down for 5s (connection refused)" in text
    assert "  10.1.0.0/26: Network is unreachable" in text
    assert "  10.2.0.0/26: protocol static has it" in text
    assert "Refused (1):\n  BGPPeer tor-1: AS 0 is reserved" in text


@pytest.mark.parametrize("kubernetes", [None, {"state": "idle"}, {"state": "in-sync"}])
def test_of_kubernetes_nothing_is_said_while_nothing_is_wrong(kubernetes: dict[str, str] | None) -> None:
    assert "Kubernetes" not in said(STATUS | {"kubernetes": kubernetes})


def test_a_refusal_cannot_write_to_the_terminal() -> None:
    text = said(
        STATUS | {"refusals": [{"subject": "Node \x1b]0;x\x07", "reason": "a\nCalico process is not"}]}
    )
    assert "\x1b" not in text
    assert "a\\nCalico process is not" in text


def test_json_is_the_agents_own_answer(tmp_path: Path) -> None:
    with AgentSocket(tmp_path) as agent:
        result = call(tmp_path, "node", "status", "-o", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == STATUS
    assert agent.asked == [{"ask": "status"}]


def test_a_lab_node_is_chosen_by_name(tmp_path: Path) -> None:
    with (
        AgentSocket(tmp_path / "node-1"),
        AgentSocket(tmp_path / "node-2", {"status": STATUS | {"peers": []}}),
    ):
        assert "No IPv4 peers found." in call(tmp_path, "node", "status", "--node", "node-2").stdout
        several = call(tmp_path, "node", "status")
        unknown = call(tmp_path, "node", "status", "--node", "node-9")
    assert several.exit_code == 1
    assert "--node NAME (node-1, node-2)" in several.stderr
    assert unknown.exit_code == 1
    assert "there is no agent of node node-9" in unknown.stderr
    assert "there are node-1, node-2" in unknown.stderr


def test_a_node_of_the_lab_whose_agent_is_stopped_is_known(tmp_path: Path) -> None:
    (tmp_path / "node-3").mkdir()
    with AgentSocket(tmp_path / "node-1"):
        stopped = call(tmp_path, "node", "status", "--node", "node-3")
    assert stopped.exit_code == 1
    assert "the agent of node node-3 does not run" in stopped.stderr


@pytest.mark.parametrize("name", ["../etc", "a/b", "..", ""])
def test_a_node_name_is_not_a_path(tmp_path: Path, name: str) -> None:
    result = call(tmp_path, "node", "status", "--node", name)
    assert result.exit_code == 1
    assert "give a name such as node-1" in result.stderr


def test_no_agent_at_all_is_one_sentence(tmp_path: Path) -> None:
    result = call(tmp_path, "node", "status")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == f"Error: there is no agent at {tmp_path}/agent.sock: is tortie-agent running?\n"


def test_an_agent_that_ended_left_its_socket(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "agent.sock"))
    result = call(tmp_path, "node", "status")
    assert result.exit_code == 1
    assert "no agent listens" in result.stderr


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "closed the connection without an answer"),
        (b"hello\n", "something that is not JSON"),
        (b"[1]\n", "answered with a list"),
        (b'{"error": "no such prefix"}\n', "no such prefix"),
    ],
)
def test_odd_answers_are_sentences(tmp_path: Path, raw: bytes, sentence: str) -> None:
    with AgentSocket(tmp_path, raw=raw):
        result = call(tmp_path, "node", "status")
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_routes_show_one_line_for_each_prefix(tmp_path: Path) -> None:
    with AgentSocket(tmp_path, {"routes": {"routes": [ROUTE]}}):
        result = call(tmp_path, "routes")
    assert result.stdout.splitlines() == [
        "PREFIX       KIND     KERNEL     VIA                FROM    ORIGIN",
        "10.1.0.0/26  learned  installed  10.0.0.2 dev eth0  node-2  valid",
    ]


def test_one_prefix_shows_every_path_and_why(tmp_path: Path) -> None:
    with AgentSocket(tmp_path, {"routes": {"routes": [ROUTE]}}) as agent:
        result = call(tmp_path, "routes", "10.1.0.7/26")
    assert agent.asked == [{"ask": "routes", "prefix": "10.1.0.0/26"}]
    lines = result.stdout.splitlines()
    assert lines[0] == "10.1.0.0/26  learned  kernel: installed"
    assert lines[3].split()[:2] == ["*", "10.0.0.2"]
    assert "block 10.1.0.0/26 is affine to node-2" in lines[3]
    assert lines[4].split()[0] == "x"
    assert "node-3 does not hold 10.1.0.0/26" in lines[4]


def test_an_unknown_prefix_fails(tmp_path: Path) -> None:
    with AgentSocket(tmp_path, {"routes": {"routes": []}}):
        result = call(tmp_path, "routes", "10.9.0.0/26")
    assert result.exit_code == 1
    assert "tortiectl explain 10.9.0.0/26" in result.stderr


def test_a_prefix_that_is_none_is_refused_before_asking(tmp_path: Path) -> None:
    with AgentSocket(tmp_path) as agent:
        result = call(tmp_path, "explain", "10.300.0.0/26")
    assert result.exit_code == 1
    assert "write it like 10.65.1.0/26" in result.stderr
    assert agent.asked == []


def test_explain_prints_the_agents_lines(tmp_path: Path) -> None:
    lines = ["10.1.0.0/26 is installed", "because node-2 announces it"]
    with AgentSocket(tmp_path, {"explain": {"prefix": "10.1.0.0/26", "lines": lines}}):
        result = call(tmp_path, "explain", "10.1.0.0/26")
    assert result.stdout.splitlines() == lines
