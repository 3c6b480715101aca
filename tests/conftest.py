"""What the tiers need; a tier that cannot run here says why."""

from __future__ import annotations

import os
import shutil

import pytest

NEEDS = {
    "etcd": (False, ("etcd",)),
    "kernel": (True, ("ip",)),
    "interop": (True, ("ip", "ping", "etcd", "etcdctl", "bird", "birdc", "gobgpd", "gobgp", "vtysh")),
    "mqtt": (False, ("mosquitto", "mosquitto_passwd", "openssl")),
    "lab": (True, ("ip", "etcd", "ping")),
}
"""Marker -> (needs root, commands it calls)."""

SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))


def why_not(marker: str) -> str | None:
    """The reason a tier cannot run on this machine, or None."""
    root, commands = NEEDS[marker]
    if root and os.geteuid() != 0:
        return f"the {marker} tier makes network namespaces: run it as root"
    path = os.pathsep.join((os.environ.get("PATH", ""), SBIN))
    missing = [command for command in commands if shutil.which(command, path=path) is None]
    if missing:
        return f"the {marker} tier needs {', '.join(missing)}: 'make test' installs it on Debian and Ubuntu"
    return None


def pytest_configure(config: pytest.Config) -> None:
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), SBIN))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {marker: why_not(marker) for marker in NEEDS}
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
