"""What `tortiectl` says to somebody who has not said where to look, or who waits for the first line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.main import tortiectl
from agent.cli.watch import watched
from agent.telemetry.fleet import Fleet
from tests.support.agentsocket import STATUS


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a lab might be; no etcd is set."""
    for name in ("ETCD_ENDPOINTS", "CALICO_ETCD_ENDPOINTS", "TORTIE_RUN_DIR", "TORTIE_LAB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORTIE_LAB_DIR", str(tmp_path))
    monkeypatch.setattr("felix_like.datastore.config.DEFAULT_CONFIG_FILE", str(tmp_path / "none.cfg"))
    monkeypatch.setattr("felix_like.datastore.config.DEFAULT_ENDPOINT", "http://127.0.0.1:1")
    return tmp_path


def said(*words: str) -> str:
    result = CliRunner().invoke(tortiectl, words or ("get", "nodes"))
    assert result.exit_code == 1
    return result.stderr


def test_without_an_endpoint_it_says_so_once(lab: Path) -> None:
    text = said()
    assert text.count("ETCD_ENDPOINTS") == 1
    assert "Nothing is set, so the default was asked." in text
    assert "lab" not in text


@pytest.mark.parametrize("words", [("get", "nodes"), ("node", "status"), ("routes",), ("top", "--once")])
def test_where_a_lab_runs_it_says_how_to_reach_it(
    words: tuple[str, ...], lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.agentsocket.DEFAULT_RUN_DIR", str(lab / "nobody"))
    (lab / "lab.json").write_text("{}")
    assert 'A lab runs here: eval "$(tortiectl lab env)"' in said(*words)
    monkeypatch.setenv("TORTIE_RUN_DIR", str(lab / "nobody"))
    assert words[0] == "get" or "A lab runs here" not in said(*words)


def test_whoever_has_said_where_etcd_is_gets_no_advice(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab / "lab.json").write_text("{}")
    monkeypatch.setenv("ETCD_ENDPOINTS", "http://127.0.0.1:1")
    text = said()
    assert "the default was asked" not in text
    assert "A lab runs here" not in text


def fleet(*nodes: str) -> Fleet:
    heard = Fleet()
    for node in nodes:
        heard.tell(json.loads(json.dumps(STATUS | {"node": node})), 1.0)
    return heard


def test_watch_says_first_what_it_watches() -> None:
    assert watched(fleet("node-2", "node-1"), "/run/tortie", ()) == (
        "watching 2 nodes (node-1, node-2) at /run/tortie: a line for each change, until Ctrl-C"
    )
    many = watched(fleet(*(f"n{number}" for number in range(9))), "mqtt://b:1883 tortie", ())
    assert many.startswith("watching 9 nodes (n0, n1, n2, n3, n4 and 4 more) at mqtt://b:1883 tortie:")
    assert watched(fleet(), "b", ()).startswith("watching 0 nodes at b:")


def test_watch_names_a_chosen_node_that_is_not_there() -> None:
    text = watched(fleet("node-1", "node-2"), "b", ("node-1", "node-7"))
    assert text.startswith("watching 1 node (node-1) at b")
    assert text.endswith("; not heard of yet: node-7")
