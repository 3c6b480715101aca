"""tortie-controllers' settings, from the environment and the agent's file. `TABLE` is the whole list; the
table in deploy/README.md is made of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.settings import Setting
from agent.settings_file import DEFAULT_FILE, read_file
from agent.settings_values import SettingsError, listen_address, log_level, switch, whole_number
from felix_like.datastore import fields
from felix_like.datastore.config import ConfigError, EtcdConfig
from felix_like.datastore.keys import quoted
from felix_like.datastore.kube.access import KubeAccess, find_access

TABLE = (
    Setting("ETCD_ENDPOINTS", "http://127.0.0.1:2379", "Comma list of etcd's members, as the agent's. "
            "Also ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE, ETCD_USERNAME, ETCD_PASSWORD."),
    Setting("KUBECONFIG", "", "How to reach the Kubernetes API. Empty: the pod's service account; without "
            "either, only what needs no Kubernetes is done."),
    Setting("TORTIE_CONTROLLERS", "all", "Which to run, as a comma list of `{names}`. Otherwise "
            "ENABLED_CONTROLLERS (whose `node` means `ipam`, too)."),
    Setting("TORTIE_LEAK_GRACE", "", "How long an address must be unused before it is released: `15m`, `90s`."
            " 0 turns collection off. Empty: leakGracePeriod of KubeControllersConfiguration, or 15m."),
    Setting("TORTIE_NODE_REMOVAL_LIMIT", "50", "Percent of the Nodes that may be missing in Kubernetes at "
            "once. When more are, none is removed."),
    Setting("TORTIE_CONTROLLERS_DRY_RUN", "false", "Write nothing but the leader's key, and log what would "
            "be done."),
    Setting("TORTIE_LEADER_LEASE", "15", "Seconds after which another replica takes over from a leader that "
            "is silent."),
    Setting("TORTIE_HEALTH_ADDRESS", "127.0.0.1:9180", "Where /healthz, /readyz and /metrics are served: "
            "`ADDRESS:PORT`, `[ADDRESS]:PORT`, or `none`."),
    Setting("FELIX_LOGSEVERITYSCREEN", "Info", "Debug, Info, Warning, Error or Fatal. Otherwise LOG_LEVEL."),
    Setting("TORTIE_CONFIG_FILE", str(DEFAULT_FILE), "File with settings, KEY=VALUE per line; the "
            "environment wins. The default may be absent, a named one may not."),
)  # fmt: skip
_DEFAULT = {setting.name: setting.default for setting in TABLE}
_CALICO = {"policy", "namespace", "serviceaccount", "workloadendpoint", "node", "loadbalancer", "tier",
           "migration", "flannelmigration", "ippool"}  # fmt: skip
"""What ENABLED_CONTROLLERS may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """Checked settings; constant while the process runs."""

    etcd: EtcdConfig
    kube: KubeAccess | None
    controllers: tuple[str, ...]
    leak_grace: float | None
    """Seconds; None: what the cluster's configuration says."""
    node_removal_limit: int
    """Percent."""
    dry_run: bool
    lease: int
    """Seconds."""
    health_address: tuple[str, int] | None
    log_level: int
    identity: str
    """Of this replica, among all."""
    not_used: tuple[str, ...] = ()
    """Sentences about what is set and has no effect."""


def load(
    environ: Mapping[str, str],
    *,
    names: tuple[str, ...],
    hostname: str,
    calicoctl_file: str | None = None,
) -> ControllerSettings:
    """Read and check. `names`: the controllers there are. Raises SettingsError."""
    named = environ.get("TORTIE_CONFIG_FILE", "").strip()
    from_file = read_file(Path(named or DEFAULT_FILE), must_exist=bool(named))
    values = {**from_file, **{name: value for name, value in environ.items() if value}}

    def text(name: str) -> str:
        return values.get(name, "").strip() or _DEFAULT[name]

    try:
        etcd = EtcdConfig.from_environment(values, calicoctl_file)
    except ConfigError as error:
        raise SettingsError(str(error)) from None
    controllers, not_used = _controllers(values, names)
    level = "FELIX_LOGSEVERITYSCREEN" if values.get("FELIX_LOGSEVERITYSCREEN") else "LOG_LEVEL"
    return ControllerSettings(
        etcd=etcd,
        kube=find_access(values),
        controllers=controllers,
        leak_grace=_grace(text("TORTIE_LEAK_GRACE")),
        node_removal_limit=whole_number(
            "TORTIE_NODE_REMOVAL_LIMIT", text("TORTIE_NODE_REMOVAL_LIMIT"), 1, 100
        ),
        dry_run=switch("TORTIE_CONTROLLERS_DRY_RUN", text("TORTIE_CONTROLLERS_DRY_RUN")),
        lease=whole_number("TORTIE_LEADER_LEASE", text("TORTIE_LEADER_LEASE"), 2, 3600),
        health_address=listen_address("TORTIE_HEALTH_ADDRESS", text("TORTIE_HEALTH_ADDRESS")),
        log_level=log_level(level, values.get(level, "").strip() or "Info"),
        identity=f"{hostname}/{os.getpid()}",
        not_used=not_used,
    )


def table(names: tuple[str, ...]) -> tuple[Setting, ...]:
    """Every setting, in the order of deploy/README.md."""
    said = "`, `".join(names)
    return tuple(Setting(s.name, s.default, s.meaning.replace("{names}", said)) for s in TABLE)


def markdown(names: tuple[str, ...]) -> str:
    """The table as deploy/README.md has it."""
    rows = [
        f"| `{s.name}` | {f'`{s.default}`' if s.default else 'empty'} | {s.meaning} |" for s in table(names)
    ]
    return "\n".join(["| Setting | Default | Meaning |", "| --- | --- | --- |", *rows, ""])


def _controllers(
    values: Mapping[str, str], names: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The chosen ones, in the order of `names`, and sentences about what is chosen and not there."""
    chosen = _words(values.get("TORTIE_CONTROLLERS", ""))
    if chosen:
        unknown = sorted(set(chosen) - {*names, "all"})
        if unknown:
            raise SettingsError(
                f"TORTIE_CONTROLLERS: there is no controller {quoted(unknown[0])}; use all, or a comma list "
                f"of {', '.join(names)}"
            )
        return (names if "all" in chosen else tuple(n for n in names if n in chosen)), ()
    calicos = _words(values.get("ENABLED_CONTROLLERS", ""))
    if not calicos:
        return names, ()
    wanted = {*calicos, *(("ipam",) if "node" in calicos else ())}
    not_used = tuple(
        f"ENABLED_CONTROLLERS names {quoted(name)}, "
        + ("which Tortie does not have" if name in _CALICO else "which is no controller")
        for name in calicos
        if name not in names
    )
    return tuple(name for name in names if name in wanted), not_used


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _grace(text: str) -> float | None:
    try:
        return 0 if text == "0" else fields.duration("TORTIE_LEAK_GRACE", text)
    except ValueError as error:
        raise SettingsError(str(error)) from None
