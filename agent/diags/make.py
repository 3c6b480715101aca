"""`tortiectl node diags` from end to end: look, gather, clean, say what is in it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent import settings as settings_module
from agent.check.asked import PATIENCE
from agent.check.proc import Proc
from agent.check.programs import ours
from agent.cli import agentsocket
from agent.cli.errors import Failed
from agent.cli.version import own_version
from agent.diags import archive, items, sources
from agent.diags.gather import gather
from agent.diags.redact import Redactor
from agent.settings_values import SettingsError
from felix_like.datastore.keys import check_name


@dataclass(frozen=True, slots=True)
class Diags:
    """The archive's content."""

    folder: str
    """Its one directory, and its file's name without .tar.gz."""
    texts: dict[str, bytes]
    when: float
    missing: dict[str, str]


def collect(
    environ: Mapping[str, str] = os.environ,
    calicoctl_file: str | None = None,
    *,
    proc: Proc | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Diags:
    """Everything that can be had, within about a minute. Never raises for what cannot."""
    proc, when = proc or Proc(), time.time()
    here = _here(environ, calicoctl_file, proc)
    redactor = Redactor(sources.secrets(here.sources, here.run_dir))
    wanted = items.items(here)
    gathered = archive.clean(gather(wanted, told), redactor)
    clock = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))
    head = [
        f"Tortie {own_version()}, node {here.node}, {clock}",
        f"Made by 'tortiectl node diags' as user {os.geteuid()}; it took {time.time() - when:.0f} s.",
        "Passwords, keys and tokens are taken out: (redacted). Addresses and names are as they are.",
    ]
    texts = {"MANIFEST": archive.manifest(wanted, gathered, [redactor.text(line) for line in head]).encode()}
    texts |= {name: got.octets for name, got in gathered.got.items()}
    return Diags(f"tortie-diags-{here.node}-{archive.stamp(when)}", texts, when, gathered.missing)


def _here(environ: Mapping[str, str], calicoctl_file: str | None, proc: Proc) -> items.Here:
    """Where to look; settings that the agent would refuse must not keep us from it."""
    seen = sources.read(environ, calicoctl_file, proc, None)
    agent = _agent(Path(seen.value("TORTIE_RUN_DIR")), proc)
    if agent is not None:
        seen = sources.read(environ, calicoctl_file, proc, agent)
    run_dir = Path(seen.value("TORTIE_RUN_DIR"))
    try:
        settings = settings_module.load(
            {**environ, **seen.agent}, hostname=socket.gethostname(), calicoctl_file=calicoctl_file
        )
        state_dir, node = settings.state_dir, settings.nodename
    except (SettingsError, OSError):
        named = seen.value("TORTIE_STATE_DIR")
        state_dir = Path(named) if named.startswith("/") else settings_module.STATE_DIR
        node = _name(seen.value("NODENAME")) or _name(socket.gethostname()) or "unknown"
    return items.Here(environ, calicoctl_file, run_dir, state_dir, node, seen, proc)


def _agent(run_dir: Path, proc: Proc) -> int | None:
    """The running agent's process, by its own word, or the only one in this network namespace."""
    told: dict[str, int] = {}
    try:
        status = agentsocket.ask(run_dir / agentsocket.SOCKET, {"ask": "status"}, PATIENCE)
        told["tortie-agent"] = int(status["agent"]["pid"])
    except (Failed, KeyError, TypeError, ValueError):
        pass
    running = ours(proc.processes(), "tortie-agent", told)
    return running[0].pid if len(running) == 1 else None


def _name(text: str) -> str:
    try:
        return check_name(text.strip().lower())
    except ValueError:
        return ""
