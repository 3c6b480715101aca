"""The agent's settings: environment and file, with calico-node's names where calico-node has them.

A wrong value ends the start with one sentence that names the setting, the value and what is allowed.
`TABLE` is the whole list; the README's table is made from it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.autodetect import FIRST_FOUND, Method
from agent.settings_file import DEFAULT_FILE, read_file
from agent.settings_values import (
    AddressSetting,
    OriginValidation,
    SettingsError,
    address_setting,
    listen_address,
    log_level,
    networks,
    origin_validation,
    router_id,
    switch,
    whole_number,
)
from agent.telemetry.broker import DEFAULT_CLUSTER, DEFAULT_TOPIC, Broker, BrokerError
from felix_like.datastore import fields
from felix_like.datastore.config import ConfigError, EtcdConfig
from felix_like.datastore.keys import check_name, quoted
from felix_like.datastore.kube.access import KubeAccess, find_access
from felix_like.model.address import Asn, Prefix
from felix_like.model.desired import DEFAULT_ROUTE_PRIORITY, LocalNode

NODENAME_FILE = "/var/lib/calico/nodename"
STATE_DIR = Path("/var/lib/tortie")
LEAST_HOLD_TIME = 9
"""Seconds. Below it, a speaker that is busy for a moment loses sessions (seen at 3 s with many peers)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the settings' table."""

    name: str
    default: str
    meaning: str


TABLE = (
    Setting("NODENAME", "see meaning", "Name of this node's Node resource. Otherwise the content of "
            "CALICO_NODENAME_FILE, FELIX_FELIXHOSTNAME, HOSTNAME or the host's name, in lower case."),
    Setting("CALICO_NODENAME_FILE", NODENAME_FILE, "File that holds the node's name."),
    Setting("IP", "", "This node's IPv4 address, `10.0.0.1/24`; `autodetect`; or `none`: keep the Node's. "
            "Empty: keep the Node's, and autodetect when it has none."),
    Setting("IP6", "", "The same for IPv6; empty never autodetects."),
    Setting("IP_AUTODETECTION_METHOD", "first-found", "`first-found`, `can-reach=ADDRESS`, "
            "`interface=REGEX,…`, `skip-interface=REGEX,…` or `cidr=CIDR,…`."),
    Setting("IP6_AUTODETECTION_METHOD", "first-found", "The same for IPv6."),
    Setting("DISABLE_NODE_IP_CHECK", "false", "Start even when another Node has the same address."),
    Setting("AS", "", "AS number to write into the Node. Empty: what the Node has, or else the cluster's."),
    Setting("CALICO_ROUTER_ID", "", "BGP identifier: a dotted quad (noted in the Node as annotation "
            "tortie/router-id), or `hash` of the node's name. Empty: the IPv4 address."),
    Setting("CALICO_K8S_NODE_REF", "", "This node's name in Kubernetes, noted in the Node (spec.orchRefs). "
            "Empty: the same name."),
    Setting("CALICO_ADVERTISE_CLUSTER_IPS", "", "Comma list of CIDRs that stands in place of the default "
            "BGPConfiguration's serviceClusterIPs."),
    Setting("USE_POD_CIDR", "false", "Pods' addresses come from the nodes' podCIDRs (host-local IPAM): "
            "these are announced, and IPAM's blocks count for nothing."),
    Setting("ETCD_ENDPOINTS", "http://127.0.0.1:2379", "Comma list of etcd's members, http:// or https://. "
            "Also read, for this and the next five: CALICO_ETCD_…, FELIX_ETCD…, calicoctl.cfg."),
    Setting("ETCD_CA_CERT_FILE", "", "PEM file of the authority that signed etcd's certificates."),
    Setting("ETCD_CERT_FILE", "", "PEM file of our client certificate."),
    Setting("ETCD_KEY_FILE", "", "PEM file of its key."),
    Setting("ETCD_USERNAME", "", "etcd user."),
    Setting("ETCD_PASSWORD", "", "etcd password."),
    Setting("TORTIE_KUBERNETES", "auto", "`auto`: services and passwords also come from the Kubernetes API, "
            "where there is a KUBECONFIG or a pod's service account; `off`: it is not asked."),
    Setting("KUBECONFIG", "", "File that says where the Kubernetes API is and who we are."),
    Setting("NAMESPACE", "kube-system", "Kubernetes namespace of the Secrets that hold BGP passwords."),
    Setting("FELIX_LOGSEVERITYSCREEN", "Info", "Debug, Info, Warning, Error or Fatal. Otherwise "
            "BGP_LOGSEVERITYSCREEN or CALICO_STARTUP_LOGLEVEL."),
    Setting("TORTIE_RUN_DIR", "/run/tortie", "Sockets and exabgp.conf."),
    Setting("TORTIE_STATE_DIR", "see meaning", "The last good snapshot, which should outlive a reboot: "
            "/var/lib/tortie, or the run directory where TORTIE_RUN_DIR names another than the default."),
    Setting("TORTIE_SECRETS_DIR", "/etc/tortie/secrets", "BGP passwords: secretKeyRef is a file NAME/KEY; "
            "what is not there is looked up in Secrets."),
    Setting("TORTIE_ORIGIN_VALIDATION", "enforce", "Learned routes inside pools: `enforce` installs only "
            "what the IPAM data bears out, `observe` only says so, `off` does not look."),
    Setting("TORTIE_PREFIX_LIMIT", "50000", "Prefixes at most from one peer; a BGPPeer's annotation "
            "tortie/prefix-limit wins."),
    Setting("TORTIE_HOLD_TIME", "90",
            f"Seconds offered in OPEN: 0 (no KEEPALIVE) or {LEAST_HOLD_TIME} and more."),
    Setting("TORTIE_ROUTE_PRIORITY", str(DEFAULT_ROUTE_PRIORITY), "Metric of our kernel routes."),
    Setting("TORTIE_HEALTH_ADDRESS", "127.0.0.1:9179", "Where /healthz, /readyz and /metrics are served: "
            "`ADDRESS:PORT`, `[ADDRESS]:PORT`, or `none`. Whoever reaches it may read."),
    Setting("TORTIE_CLUSTER", DEFAULT_CLUSTER, "The cluster's name in telemetry, where several share a "
            "broker."),
    Setting("TORTIE_MQTT_URL", "", "Broker to tell the node's status: `mqtt://HOST:PORT`, "
            "`mqtts://HOST:PORT` (TLS) or `unix:///PATH`. Empty: none."),
    Setting("TORTIE_MQTT_USERNAME", "", "User at the broker."),
    Setting("TORTIE_MQTT_PASSWORD_FILE", "", "File that holds the password; read for each connection."),
    Setting("TORTIE_MQTT_CA_CERT_FILE", "", "PEM file of the authority that signed the broker's certificate. "
            "Empty: the system's."),
    Setting("TORTIE_MQTT_CERT_FILE", "", "PEM file of our client certificate."),
    Setting("TORTIE_MQTT_KEY_FILE", "", "PEM file of its key."),
    Setting("TORTIE_MQTT_TOPIC", DEFAULT_TOPIC, "First levels of the topics: "
            "`TOPIC/v1/CLUSTER/NODE/status`."),
    Setting("TORTIE_CONFIG_FILE", str(DEFAULT_FILE), "File with settings, KEY=VALUE per line; "
            "the environment wins. The default may be absent, a named one may not."),
)  # fmt: skip

_DEFAULT = {setting.name: setting.default for setting in TABLE}
_LOG_LEVELS = ("FELIX_LOGSEVERITYSCREEN", "BGP_LOGSEVERITYSCREEN", "CALICO_STARTUP_LOGLEVEL")
_FELIX_ETCD = {
    "FELIX_ETCDENDPOINTS": "ETCD_ENDPOINTS",
    "FELIX_ETCDCAFILE": "ETCD_CA_CERT_FILE",
    "FELIX_ETCDCERTFILE": "ETCD_CERT_FILE",
    "FELIX_ETCDKEYFILE": "ETCD_KEY_FILE",
    "FELIX_ETCDUSERNAME": "ETCD_USERNAME",
    "FELIX_ETCDPASSWORD": "ETCD_PASSWORD",
    "FELIX_DATASTORETYPE": "DATASTORE_TYPE",
}
_USED = {*_DEFAULT, *_LOG_LEVELS, *_FELIX_ETCD, "FELIX_FELIXHOSTNAME", "HOSTNAME"}
_OURS = re.compile(
    r"(CALICO_)?(ETCD_[A-Z_]+|DATASTORE_TYPE)|TORTIE_(LAB|SPEAKER|BENCH|TEST|REWRITE|CONTROLLERS)_?[A-Z_]*"
    r"|TORTIE_(LEAK_GRACE|NODE_REMOVAL_LIMIT|LEADER_LEASE)"
)
"""Read elsewhere in this project, so not "not used"."""
_CALICO_NODE = re.compile(
    r"FELIX_\w+|TORTIE_\w+|CALICO_(NETWORKING_BACKEND|DISABLE_FILE_LOGGING|MANAGE_CNI)"
    r"|CALICO_IPV[46]POOL_\w+|CLUSTER_TYPE|WAIT_FOR_DATASTORE|NO_DEFAULT_POOLS|AUTODETECT_POLL_INTERVAL"
)
"""What whoever sets it expects to have an effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked settings; constant while the agent runs."""

    nodename: str
    ip: AddressSetting
    ip6: AddressSetting
    ip_autodetection: Method = FIRST_FOUND
    ip6_autodetection: Method = FIRST_FOUND
    check_node_ip: bool = True
    asn: Asn | None = None
    router_id: str | None = None
    """None, "hash" or a dotted quad."""
    kubernetes_name: str | None = None
    """None: as `nodename`."""
    cluster_ips: tuple[Prefix, ...] | None = None
    """None: the BGPConfiguration says."""
    use_pod_cidr: bool = False
    etcd: EtcdConfig
    log_level: int
    """As the standard library's logging counts."""
    run_dir: Path
    state_dir: Path
    secrets_dir: Path
    kubernetes: KubeAccess | None = None
    """None: no Kubernetes API."""
    namespace: str = "kube-system"
    """Of the Secrets that hold BGP passwords."""
    origin_validation: OriginValidation = "enforce"
    prefix_limit: int = 50_000
    hold_time: int = 90
    route_priority: int = DEFAULT_ROUTE_PRIORITY
    health_address: tuple[str, int] | None = ("127.0.0.1", 9179)
    """None: no health endpoint."""
    broker: Broker | None = None
    """None: no telemetry over MQTT."""
    not_used: tuple[str, ...] = ()
    """Sentences about settings that are there and have no effect; worth one log line each."""

    @property
    def local_node(self) -> LocalNode:
        """What the calculation wants to know of it."""
        return LocalNode(
            name=self.nodename,
            router_id=self.router_id,
            prefix_limit=self.prefix_limit,
            hold_time=self.hold_time,
            route_priority=self.route_priority,
            kubernetes_name=self.kubernetes_name,
            cluster_ips=self.cluster_ips,
            use_pod_cidr=self.use_pod_cidr,
        )


def load(environment: Mapping[str, str], *, hostname: str, calicoctl_file: str | None = None) -> Settings:
    """Read and check all settings. Raises SettingsError: one sentence, for stderr and exit status 1.

    `hostname` is the host's name, for when nothing names the node. `calicoctl_file` as in EtcdConfig.
    """
    named = environment.get("TORTIE_CONFIG_FILE")
    from_file = read_file(Path(named or DEFAULT_FILE), must_exist=bool(named))
    values = from_file | {name: value for name, value in environment.items() if value.strip()}

    def text(name: str) -> str:
        return values.get(name, "").strip() or _DEFAULT[name]

    run_dir = _directory("TORTIE_RUN_DIR", text("TORTIE_RUN_DIR"))
    return Settings(
        nodename=_nodename(values, hostname),
        ip=address_setting("IP", text("IP"), 4),
        ip6=address_setting("IP6", text("IP6"), 6),
        ip_autodetection=_method("IP_AUTODETECTION_METHOD", text("IP_AUTODETECTION_METHOD")),
        ip6_autodetection=_method("IP6_AUTODETECTION_METHOD", text("IP6_AUTODETECTION_METHOD")),
        check_node_ip=not switch("DISABLE_NODE_IP_CHECK", text("DISABLE_NODE_IP_CHECK")),
        asn=_asn(text("AS")),
        router_id=router_id("CALICO_ROUTER_ID", text("CALICO_ROUTER_ID")),
        kubernetes_name=_kubernetes_name(text("CALICO_K8S_NODE_REF")),
        cluster_ips=networks("CALICO_ADVERTISE_CLUSTER_IPS", text("CALICO_ADVERTISE_CLUSTER_IPS")),
        use_pod_cidr=switch("USE_POD_CIDR", text("USE_POD_CIDR")),
        etcd=_etcd(values, calicoctl_file),
        log_level=_log_level(values),
        run_dir=run_dir,
        state_dir=_state_dir(values, run_dir),
        secrets_dir=_directory("TORTIE_SECRETS_DIR", text("TORTIE_SECRETS_DIR")),
        kubernetes=_kubernetes(values, text("TORTIE_KUBERNETES")),
        namespace=_namespace(text("NAMESPACE")),
        origin_validation=origin_validation("TORTIE_ORIGIN_VALIDATION", text("TORTIE_ORIGIN_VALIDATION")),
        prefix_limit=whole_number("TORTIE_PREFIX_LIMIT", text("TORTIE_PREFIX_LIMIT"), 1, 10_000_000),
        hold_time=_hold_time(text("TORTIE_HOLD_TIME")),
        route_priority=whole_number("TORTIE_ROUTE_PRIORITY", text("TORTIE_ROUTE_PRIORITY"), 1, 0xFFFF_FFFF),
        health_address=listen_address("TORTIE_HEALTH_ADDRESS", text("TORTIE_HEALTH_ADDRESS")),
        broker=_broker(text),
        not_used=_not_used(values, from_file),
    )


def table() -> tuple[Setting, ...]:
    """Every setting with its default and meaning, in the order of the README."""
    return TABLE


def markdown() -> str:
    """The table as the README has it."""
    rows = [f"| `{s.name}` | {f'`{s.default}`' if s.default else 'empty'} | {s.meaning} |" for s in TABLE]
    return "\n".join(["| Setting | Default | Meaning |", "| --- | --- | --- |", *rows, ""])


def _nodename(values: Mapping[str, str], hostname: str) -> str:
    """As calico-node's determineNodeName, with Felix's own variable before the host's name."""
    setting, name = "NODENAME", values.get("NODENAME", "").strip()
    if not name:
        setting, name = "CALICO_NODENAME_FILE", _read_nodename(values)
    if not name and values.get("FELIX_FELIXHOSTNAME"):
        setting, name = "FELIX_FELIXHOSTNAME", values["FELIX_FELIXHOSTNAME"].strip().lower()
    if not name:
        setting, name = "HOSTNAME", (values.get("HOSTNAME", "").strip() or hostname).lower()
    try:
        return check_name(name)
    except ValueError as error:
        raise SettingsError(f"{setting}: {error}") from None


def _kubernetes_name(text: str) -> str | None:
    try:
        return check_name(text) if text else None
    except ValueError as error:
        raise SettingsError(f"CALICO_K8S_NODE_REF: {error}") from None


def _read_nodename(values: Mapping[str, str]) -> str:
    named = values.get("CALICO_NODENAME_FILE", "").strip()
    path = Path(named or NODENAME_FILE)
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""  # calico-node goes on, too: the file is written by its first start
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"CALICO_NODENAME_FILE: {str(path)!r} cannot be read ({error}); make it readable or set NODENAME"
        ) from None


def _method(name: str, text: str) -> Method:
    try:
        return Method.parse(text)
    except ValueError as error:
        raise SettingsError(f"{name}: {quoted(text)} is not a method: {error}") from None


def _asn(text: str) -> Asn | None:
    try:
        return fields.asn("AS", text)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _etcd(values: Mapping[str, str], calicoctl_file: str | None) -> EtcdConfig:
    """Calico's own names win over Felix's."""
    felix = {name: values[alias] for alias, name in _FELIX_ETCD.items() if values.get(alias)}
    try:
        return EtcdConfig.from_environment(felix | dict(values), calicoctl_file)
    except ConfigError as error:
        raise SettingsError(str(error)) from None


def _kubernetes(values: Mapping[str, str], text: str) -> KubeAccess | None:
    if text.lower() not in ("auto", "off"):
        raise SettingsError(f"TORTIE_KUBERNETES: {quoted(text)} is neither auto nor off")
    return find_access(values) if text.lower() == "auto" else None


def _namespace(text: str) -> str:
    """It becomes part of a URL."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise SettingsError(f"NAMESPACE: {quoted(text)} is no name of a Kubernetes namespace")
    return text


def _broker(text: Callable[[str], str]) -> Broker | None:
    try:
        return Broker.from_settings(text)
    except BrokerError as error:
        raise SettingsError(str(error)) from None


def _log_level(values: Mapping[str, str]) -> int:
    for name in _LOG_LEVELS:
        if values.get(name):
            return log_level(name, values[name].strip())
    return log_level(_LOG_LEVELS[0], _DEFAULT[_LOG_LEVELS[0]])


def _directory(name: str, text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise SettingsError(f"{name}: {text!r} is not an absolute path; use one such as {_DEFAULT[name]}")
    return path


def _state_dir(values: Mapping[str, str], run_dir: Path) -> Path:
    """Agents with run directories of their own, as in a lab, must share no snapshot."""
    named = values.get("TORTIE_STATE_DIR", "").strip()
    if named:
        return _directory("TORTIE_STATE_DIR", named)
    return STATE_DIR if run_dir == Path(_DEFAULT["TORTIE_RUN_DIR"]) else run_dir


def _hold_time(text: str) -> int:
    seconds = whole_number("TORTIE_HOLD_TIME", text, 0, 65_535)
    if 0 < seconds < LEAST_HOLD_TIME:
        raise SettingsError(
            f"TORTIE_HOLD_TIME: {seconds} is not allowed; use 0 (no KEEPALIVE) or {LEAST_HOLD_TIME} to 65535 "
            "seconds: with less, a speaker that is busy for a moment loses its sessions"
        )
    return seconds


def _not_used(values: Mapping[str, str], from_file: Mapping[str, str]) -> tuple[str, ...]:
    sentences = []
    for name in sorted(values):
        if name in _USED or _OURS.fullmatch(name):
            continue
        if name in from_file or _CALICO_NODE.fullmatch(name):
            close = difflib.get_close_matches(name, [s.name for s in TABLE], n=1, cutoff=0.85)
            hint = f"; did you mean {close[0]}?" if close else ""
            sentences.append(f"{name} is set, but this agent does not use it{hint}")
    return tuple(sentences)
