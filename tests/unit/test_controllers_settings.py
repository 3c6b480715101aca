"""tortie-controllers' settings: from the environment, checked, and told in deploy/README.md."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agent import settings as agent_settings
from agent.controllers import registry, settings
from agent.controllers.settings import ControllerSettings
from agent.settings_values import SettingsError

NAMES = ("node", "ipam", "policy")
DEPLOY = Path(__file__).parents[2] / "deploy/README.md"


def load(tmp_path: Path, **environ: str) -> ControllerSettings:
    empty = tmp_path / "calicoctl.cfg"
    empty.write_text("apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata: {}\nspec: {}\n")
    config = tmp_path / "tortie.conf"
    config.touch()
    return settings.load(
        {"TORTIE_CONFIG_FILE": str(config), **environ},
        names=NAMES,
        hostname="pod-1",
        calicoctl_file=str(empty),
    )


def test_the_defaults(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert found.controllers == NAMES
    assert found.leak_grace is None
    assert found.node_removal_limit == 50
    assert found.dry_run is False
    assert found.lease == 15
    assert found.health_address == ("127.0.0.1", 9180)
    assert found.kube is None
    assert found.log_level == logging.INFO
    assert found.identity.startswith("pod-1/")


def test_the_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "mine.conf").write_text("TORTIE_LEAK_GRACE=5m\nETCD_ENDPOINTS=http://192.0.2.1:2379\n")
    found = load(tmp_path, TORTIE_CONFIG_FILE=str(tmp_path / "mine.conf"), TORTIE_LEAK_GRACE="90s")
    assert found.leak_grace == 90
    assert found.etcd.endpoints == ("http://192.0.2.1:2379",)


@pytest.mark.parametrize(("text", "seconds"), [("15m", 900), ("1m30s", 90), ("0", 0), ("0s", 0)])
def test_the_grace(tmp_path: Path, text: str, seconds: int) -> None:
    assert load(tmp_path, TORTIE_LEAK_GRACE=text).leak_grace == seconds


def test_controllers_are_chosen_by_our_name_and_by_calicos(tmp_path: Path) -> None:
    assert load(tmp_path, TORTIE_CONTROLLERS="policy, node").controllers == ("node", "policy")
    assert load(tmp_path, TORTIE_CONTROLLERS="all").controllers == NAMES
    calicos = load(tmp_path, ENABLED_CONTROLLERS="node,policy,loadbalancer,nonsense")
    assert calicos.controllers == ("node", "ipam", "policy"), "Calico's node controller collects, too"
    assert calicos.not_used == (
        "ENABLED_CONTROLLERS names 'loadbalancer', which Tortie does not have",
        "ENABLED_CONTROLLERS names 'nonsense', which is no controller",
    )
    ours = load(tmp_path, ENABLED_CONTROLLERS="node", TORTIE_CONTROLLERS="policy")
    assert ours.controllers == ("policy",)


def test_calicos_own_log_level(tmp_path: Path) -> None:
    assert load(tmp_path, LOG_LEVEL="debug").log_level == logging.DEBUG
    assert load(tmp_path, LOG_LEVEL="debug", FELIX_LOGSEVERITYSCREEN="Error").log_level == logging.ERROR


@pytest.mark.parametrize(
    "wrong",
    [
        {"TORTIE_CONTROLLERS": "nodes"},
        {"TORTIE_LEAK_GRACE": "15"},
        {"TORTIE_LEAK_GRACE": "-1s"},
        {"TORTIE_NODE_REMOVAL_LIMIT": "101"},
        {"TORTIE_CONTROLLERS_DRY_RUN": "perhaps"},
        {"TORTIE_LEADER_LEASE": "1"},
        {"TORTIE_HEALTH_ADDRESS": "9180"},
        {"LOG_LEVEL": "loud"},
        {"ETCD_ENDPOINTS": "ftp://x"},
        {"TORTIE_CONFIG_FILE": "/nowhere/at/all"},
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, **wrong)
    (name,) = wrong
    assert name.removeprefix("ETCD_").split("_")[0].lower() in str(error.value).lower()
    assert "\n" not in str(error.value)


def test_every_controller_there_is_has_a_name_of_its_own() -> None:
    names = registry.names()
    assert len(set(names)) == len(names)
    assert {"node", "ipam"} <= set(names)


def test_the_table_in_deploys_readme_is_the_codes_own() -> None:
    text = DEPLOY.read_text(encoding="utf-8")
    block = text.partition("<!-- controllers -->")[2].partition("<!-- /controllers -->")[0]
    assert block.strip() == settings.markdown(registry.names()).strip()


def test_the_agent_does_not_complain_of_them(tmp_path: Path) -> None:
    """Agent and controllers share one ConfigMap."""
    empty = tmp_path / "calicoctl.cfg"
    empty.write_text("apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata: {}\nspec: {}\n")
    (tmp_path / "tortie.conf").touch()
    environ = {setting.name: "x" for setting in settings.TABLE if setting.name.startswith("TORTIE_")}
    environ |= {"TORTIE_CONFIG_FILE": str(tmp_path / "tortie.conf"), "TORTIE_HEALTH_ADDRESS": "none"}
    found = agent_settings.load(environ, hostname="a", calicoctl_file=str(empty))
    assert found.not_used == ()
