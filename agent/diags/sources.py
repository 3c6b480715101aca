"""The settings with where each comes from, and every secret of this host: to be taken out of all the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent import settings as settings_module
from agent.check.proc import Proc
from agent.diags import redact
from agent.settings_file import DEFAULT_FILE, read_file
from agent.settings_values import SettingsError
from felix_like.datastore.config import DEFAULT_CONFIG_FILE
from felix_like.datastore.kube.access import SERVICE_ACCOUNT

KEY_FILES = ("ETCD_KEY_FILE", "TORTIE_MQTT_KEY_FILE", "TORTIE_MQTT_PASSWORD_FILE")
DEEPEST = 3
MOST_FILES = 1000


@dataclass(frozen=True, slots=True)
class Sources:
    """Name -> value per source, the strongest first. Values are as they are: not for printing."""

    agent: dict[str, str] = field(default_factory=dict)
    """The running agent's environment, where we may see it."""
    environment: dict[str, str] = field(default_factory=dict)
    file: dict[str, str] = field(default_factory=dict)
    file_name: str = ""
    calicoctl: dict[str, str] = field(default_factory=dict)
    calicoctl_name: str = ""
    problems: tuple[str, ...] = ()

    def value(self, name: str) -> str:
        for source in (self.agent, self.environment, self.file):
            if source.get(name, "").strip():
                return source[name].strip()
        return {one.name: one.default for one in settings_module.table()}.get(name, "")


def read(environ: Mapping[str, str], calicoctl_file: str | None, proc: Proc, agent: int | None) -> Sources:
    """`agent`: the running agent's process. Never raises: what cannot be read is a problem, in words."""
    problems = []
    running: dict[str, str] = {}
    if agent is not None:
        text = proc.text(str(agent), "environ")
        if text is None:
            problems.append(
                f"the environment of the running agent (process {agent}) is root's and its user's"
            )
        else:
            running = dict(word.split("=", 1) for word in text.split("\0") if "=" in word)
    named = running.get("TORTIE_CONFIG_FILE") or environ.get("TORTIE_CONFIG_FILE") or str(DEFAULT_FILE)
    values: dict[str, str] = {}
    try:
        values = read_file(Path(named), must_exist=False)
    except SettingsError as error:
        problems.append(str(error))
    calicoctl_name = calicoctl_file or DEFAULT_CONFIG_FILE
    calicoctl, problem = _calicoctl(calicoctl_name)
    if problem:
        problems.append(problem)
    return Sources(running, dict(environ), values, named, calicoctl, calicoctl_name, tuple(problems))


def listing(sources: Sources) -> Iterator[str]:
    """`NAME=VALUE  (source)`, secrets marked; what is no setting of ours is told by name only, if at all."""
    known = [setting.name for setting in settings_module.table()]
    aliases = sorted(
        name
        for name in {*sources.agent, *sources.environment, *sources.file}
        if name not in known and (name in sources.file or is_ours(name))
    )
    for name in (*known, *aliases):
        found = list(_where(sources, name))
        if not found:
            default = next((s.default for s in settings_module.table() if s.name == name), "")
            yield f"{name}={default}  (default)"
        for value, source in found:
            shown = redact.setting(name, value) if name in known or is_ours(name) else redact.MARK
            yield f"{name}={shown}  ({source})"
    for name, value in sorted(sources.calicoctl.items()):
        yield f"{name}={redact.setting(name, value)}  ({sources.calicoctl_name})"
    yield from (f"problem: {problem}" for problem in sources.problems)


def is_ours(name: str) -> bool:
    """Variables that this project or calico-node would read."""
    return name.startswith(
        (
            "TORTIE_",
            "ETCD_",
            "CALICO_",
            "FELIX_",
            "IP_AUTO",
            "IP6_AUTO",
            "BGP_LOG",
            "DATASTORE_TYPE",
            "KUBERNETES_S",
        )
    ) or name in ("KUBECONFIG", "HOSTNAME", "NODENAME")


def secrets(sources: Sources, run_dir: Path) -> set[str]:
    """Every secret that the settings, their files and exabgp.conf hold, as far as we may read them."""
    found: set[str] = set()
    for values in (sources.agent, sources.environment, sources.file, sources.calicoctl):
        found |= redact.secrets_of(values)
    files = [Path(path) for name in KEY_FILES if (path := sources.value(name))]
    files.append(SERVICE_ACCOUNT / "token")
    found |= redact.contents([*files, *_below(Path(sources.value("TORTIE_SECRETS_DIR")))])
    try:
        found |= redact.passwords_of_conf((run_dir / "exabgp.conf").read_text())
    except (OSError, UnicodeDecodeError):
        pass
    return found - {""}


def _where(sources: Sources, name: str) -> Iterator[tuple[str, str]]:
    said = [
        (sources.agent, "the running agent's environment"),
        (sources.environment, "environment"),
        (sources.file, sources.file_name),
    ]
    for values, source in said:
        if values.get(name, "").strip():
            yield values[name], source


def _below(folder: Path) -> list[Path]:
    """Regular files below a directory of secrets; a mounted Secret is full of links."""
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        if len(Path(root).relative_to(folder).parts) >= DEEPEST:
            folders.clear()
        found += [path for name in names if (path := Path(root, name)).is_file()]
        if len(found) > MOST_FILES:
            break
    return found[:MOST_FILES]


def _calicoctl(name: str) -> tuple[dict[str, str], str]:
    """The `spec` of calicoctl's file as texts; a problem in words. YAML's own would quote the file."""
    import yaml

    try:
        with Path(name).open("rb") as file:
            document = yaml.safe_load(file.read(1 << 20))
        spec = document.get("spec")
        return {str(key): str(value) for key, value in spec.items() if value is not None}, ""
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"{name}: {error.strerror}"
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        return {}, f"{name}: it does not read as a CalicoAPIConfig"
