"""The systemd units: supervised with backoff, and each program survives the other's restart."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ("tortie-agent", "tortie-speaker")
ALL = (*UNITS, "tortie-controllers")
NEWER = ("RestartSteps", "RestartMaxDelaySec")
"""Settings that systemd before 254 does not know, says so, and goes on."""


def unit(name: str) -> dict[str, list[str]]:
    """Setting -> its values, all sections together."""
    settings: dict[str, list[str]] = defaultdict(list)
    for line in (ROOT / "deploy/systemd" / f"{name}.service").read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings[key].append(value)
    return settings


@pytest.mark.parametrize("name", ALL)
def test_it_is_started_again_for_ever_and_ever_more_slowly(name: str) -> None:
    settings = unit(name)
    assert settings["Restart"] == ["always"]
    assert settings["StartLimitIntervalSec"] == ["0"], "else systemd gives up after five deaths"
    assert settings["RestartSec"] == ["1"]
    assert settings["RestartMaxDelaySec"] == ["30"]


@pytest.mark.parametrize("name", UNITS)
def test_neither_takes_the_other_along(name: str) -> None:
    for tie in (
        "Requires",
        "Requisite",
        "BindsTo",
        "PartOf",
        "Upholds",
        "PropagatesStopTo",
        "JoinsNamespaceOf",
    ):
        assert tie not in unit(name)


@pytest.mark.parametrize("name", UNITS)
def test_the_shared_folder_outlives_both(name: str) -> None:
    settings = unit(name)
    assert settings["RuntimeDirectory"] == ["tortie"]
    assert settings["RuntimeDirectoryPreserve"] == ["yes"]
    assert settings["Environment"] == ["TORTIE_RUN_DIR=/run/tortie"]


def test_each_has_the_one_capability_it_needs() -> None:
    needed = {"tortie-agent": "CAP_NET_ADMIN", "tortie-speaker": "CAP_NET_BIND_SERVICE"}
    for name, capability in needed.items():
        settings = unit(next(one for one in UNITS if name in one))
        assert settings["CapabilityBoundingSet"] == settings["AmbientCapabilities"] == [capability]


def test_the_controllers_have_no_capability() -> None:
    settings = unit("tortie-controllers")
    assert settings["CapabilityBoundingSet"] == settings["AmbientCapabilities"] == [""]
    assert settings["Type"] == ["exec"], "they say nothing to the service manager"


@pytest.mark.parametrize("name", UNITS)
def test_it_says_when_it_has_started_and_that_it_is_alive(name: str) -> None:
    settings = unit(name)
    assert settings["Type"] == ["notify"]
    assert int(settings["WatchdogSec"][0]) >= 10, "a turn of the loop may take seconds with a full table"
    assert "NotifyAccess" not in settings, "only the process itself is believed"
    assert not settings["ExecStart"][0].startswith(("/bin/sh", "sh ")), "a shell would be the main process"


@pytest.mark.parametrize("name", ALL)
def test_it_starts_a_command_we_install(name: str) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert unit(name)["ExecStart"][0].split()[-1] in scripts


@pytest.mark.parametrize("name", ALL)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_it(name: str) -> None:
    path = ROOT / "deploy/systemd" / f"{name}.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    complaints = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if name in line
        and not any(f"Unknown key '{key}'" in line or f"Unknown key name '{key}'" in line for key in NEWER)
    ]
    assert complaints == []
