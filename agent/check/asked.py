"""What the agent on this host says of itself, when it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.check.finding import Finding, fail, ok, warn
from agent.cli import agentsocket
from agent.cli.errors import Failed
from felix_like.model.address import Prefix

PATIENCE = 5.0
"""Seconds the agent may take."""


@dataclass(frozen=True, slots=True)
class Agent:
    """Without an answer, why there is none."""

    status: dict[str, Any] = field(default_factory=dict)
    known: frozenset[Prefix] | None = None
    """The prefixes it knows of."""
    why_not: str = ""

    @classmethod
    def unknown(cls) -> Agent:
        return cls(why_not="it was not asked")

    @property
    def processes(self) -> dict[str, int] | None:
        """Program -> its process; None without an answer, and no speaker while that is away."""
        if not self.status:
            return None
        found = {"tortie-agent": _pid(_part(self.status, "agent"))}
        speaker = _part(self.status, "speaker")
        if speaker.get("state") == "connected":
            found["tortie-speaker"] = _pid(speaker)
        return found

    def findings(self) -> Iterator[Finding]:
        """Its state in short; `tortiectl node status` has it all."""
        if not self.status:
            yield warn("agent", self.why_not, "routes stay as they are while it is away: look at its log")
            return
        peers = [peer for peer in self.status.get("peers", []) if isinstance(peer, dict)]
        up = sum(peer.get("state") == "Established" for peer in peers)
        routes = _part(self.status, "routes")
        counts = (
            f"{up} of {len(peers)} sessions established, "
            f"{routes.get('installed')} of {routes.get('wanted')} routes in the kernel"
        )
        more = "'tortiectl node status' says which and why"
        troubled = up < len(peers) or routes.get("installed") != routes.get("wanted")
        yield warn("agent", counts, more) if troubled else ok("agent", counts)
        for name, good in (("datastore", "in-sync"), ("speaker", "connected")):
            part = _part(self.status, name)
            if part.get("state") != good:
                yield fail(f"agent's {name}", f"{part.get('state')}: {part.get('reason')}", more)
        kubernetes = _part(self.status, "kubernetes")
        if kubernetes.get("state") in ("connecting", "stale"):
            found = f"{kubernetes['state']}: {kubernetes.get('reason') or 'no answer yet'}"
            yield warn("agent's Kubernetes", found, "services and passwords stay as they were known")
        for name, what in (
            ("failed", "could not be installed"),
            ("conflicts", "collide with another program's"),
        ):
            entries = routes.get(name) or []
            if entries:
                first = f"{entries[0].get('prefix')}: {entries[0].get('reason')}"
                yield fail("agent's routes", f"{len(entries)} {what} (first {first})", more)
        if refused := self.status.get("refusals") or []:
            first = f"{refused[0].get('subject')}: {refused[0].get('reason')}"
            yield warn("agent's refusals", f"{len(refused)} (first {first})", more)


def ask_agent(run_dir: Path) -> Agent:
    """Blocks for at most twice PATIENCE."""
    path = run_dir / agentsocket.SOCKET
    if not path.exists():
        return Agent(why_not=f"there is none at {path}: tortie-agent does not run, or in another place")
    try:
        status = agentsocket.ask(path, {"ask": "status"}, PATIENCE)
        listed = agentsocket.ask(path, {"ask": "routes"}, PATIENCE)
    except Failed as error:
        return Agent(why_not=error.format_message())
    known = set()
    for entry in listed.get("routes", []):
        try:
            known.add(Prefix.of(str(entry["prefix"])))
        except (ValueError, KeyError, TypeError):
            continue
    return Agent(status, frozenset(known))


def _pid(part: dict[str, Any]) -> int:
    pid = part.get("pid")
    return pid if isinstance(pid, int) else 0


def _part(status: dict[str, Any], name: str) -> dict[str, Any]:
    part = status.get(name)
    return part if isinstance(part, dict) else {}
