"""What runs in a lab: etcd and a broker in the fabric's namespace; in each node's an agent and a speaker."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from agent.lab.plan import (
    ETCD_PORT,
    FABRIC_V4,
    FABRIC_V4_LENGTH,
    FABRIC_V6_LENGTH,
    MQTT_PORT,
    Lab,
    LabError,
)
from agent.lab.state import LabNode
from agent.lab.unit import Unit

SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NEEDED = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "etcd": "etcd-server (older: etcd)",
}
"""Command -> Debian package."""


def check_commands() -> None:
    """Raises LabError naming what to install."""
    missing = [
        f"{command} (package {package})"
        for command, package in NEEDED.items()
        if shutil.which(command, path=_path()) is None
    ]
    if missing:
        raise LabError(f"the lab needs {', '.join(missing)}: 'make lab' installs what is missing")


def find(command: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """How to call tortie-agent or tortie-speaker: TORTIE_LAB_AGENT or _SPEAKER, else beside this Python."""
    override = environ.get(f"TORTIE_LAB_{command.removeprefix('tortie-').upper()}")
    if override:
        return shlex.split(override)
    beside = Path(sys.executable).parent / command
    if beside.exists():
        return [str(beside)]
    found = shutil.which(command)
    if found is None:
        raise LabError(f"{command} is not installed beside {sys.executable}: 'make lab' installs it")
    return [found]


def etcd(lab: Lab) -> Unit:
    """One member; heartbeats are short so that it elects itself at once. Its unix socket is for the host."""
    peer = "http://127.0.0.1:2380"
    return Unit(
        name="etcd",
        namespace=lab.fabric,
        cwd=str(lab.etcd_folder),
        log=str(lab.etcd_folder / "etcd.log"),
        socket=str(lab.etcd_folder / "client:0"),
        env=_environment(),
        command=[
            "etcd",
            "--name=lab",
            f"--data-dir={lab.etcd_folder}/member",
            # etcd 3.4 takes no path in a unix URL: a name and a number, relative to its folder.
            f"--listen-client-urls=http://{FABRIC_V4}:{ETCD_PORT},unix://client:0",
            f"--advertise-client-urls=http://{FABRIC_V4}:{ETCD_PORT}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=lab={peer}",
            "--heartbeat-interval=30",
            "--election-timeout=300",
        ],
    )


def broker(lab: Lab) -> Unit | None:
    """mosquitto for the nodes' telemetry; None where it is not installed: the lab is whole without."""
    if shutil.which("mosquitto", path=_path()) is None:
        return None
    folder = lab.broker_folder
    folder.mkdir(mode=0o755, exist_ok=True)
    lines = [
        "user root",  # mosquitto's own user may not write here; it is in a namespace of ours
        "persistence false",
        "allow_anonymous true",
        f"listener {MQTT_PORT} {FABRIC_V4}",
        f"listener 0 {lab.broker_socket}",
    ]
    config = folder / "mosquitto.conf"
    config.write_text("\n".join([*lines, ""]))
    return Unit(
        name="mosquitto",
        namespace=lab.fabric,
        cwd=str(folder),
        log=str(folder / "mosquitto.log"),
        socket=str(lab.broker_socket),
        env=_environment(),
        command=["mosquitto", "-c", str(config)],
    )


def of_node(
    lab: Lab, node: LabNode, extra: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> list[Unit]:
    """The node's speaker and agent. `extra`: settings on top of what the lab says."""
    env = _environment() | node_environment(lab, node) | dict(extra)
    folder = lab.node_folder(node.name)
    return [
        Unit(
            name=f"{node.name}/{role}",
            namespace=lab.namespace(node.name),
            cwd=str(folder),
            log=str(folder / f"{role}.log"),
            env=env,
            command=find(f"tortie-{role}", environ),
        )
        for role in ("speaker", "agent")
    ]


def node_environment(lab: Lab, node: LabNode) -> dict[str, str]:
    """What an agent, or a person on that node, needs to know."""
    return {
        "NODENAME": node.name,
        "IP": f"{node.ipv4}/{FABRIC_V4_LENGTH}",
        "IP6": f"{node.ipv6}/{FABRIC_V6_LENGTH}",
        "ETCD_ENDPOINTS": lab.node_etcd_endpoint,
        "TORTIE_RUN_DIR": str(lab.node_folder(node.name)),
        **({"TORTIE_MQTT_URL": f"mqtt://{FABRIC_V4}:{MQTT_PORT}"} if lab.broker_folder.exists() else {}),
    }


def _environment() -> dict[str, str]:
    return {"PATH": _path(), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "HOME": os.environ.get("HOME", "/")}


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:{SBIN}"
