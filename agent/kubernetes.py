"""The agent's side towards Kubernetes: one client, what the calculation follows, and the passwords."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.calculation import Calculation
from agent.follow import Secrets
from agent.follow_kube import KubeFollower
from agent.kube_secrets import KubeSecrets, Passwords
from agent.kube_state import Track, worst
from agent.secret_files import SecretFiles
from agent.settings import Settings
from agent.speaker.conf import blocks
from felix_like.calc.desire import desire
from felix_like.calc.graph import CalcGraph
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.client import KubeClient
from felix_like.model.bgp import SecretRef
from felix_like.model.verdict import Refusal

COPY = "last-good-kubernetes"
_NEIGHBOR = re.compile(r"neighbor (\S+) \{")
_PASSWORD = re.compile(r'^\s*md5-password "([A-Za-z0-9+/=]+)";$', re.MULTILINE)


class Kubernetes:
    """Where there is neither a kubeconfig nor a service account: nothing, and passwords from files."""

    def __init__(self, files: SecretFiles) -> None:
        self.passwords: Secrets = files
        self._files = files

    def look(self) -> None:
        """The datastore may ask for something else now."""

    def work(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run, by name; each for ever."""
        return {}

    def refusals(self) -> Sequence[Refusal]:
        return self._files.refusals()

    def status(self) -> dict[str, Any] | None:
        """As the datastore's, in the status document."""
        return None

    async def close(self) -> None:
        """Let go of the connections."""


class KubernetesAccess(Kubernetes):
    """Makes and names the parts; `reread` has the passwords read again. `wall` is the time of day."""

    def __init__(
        self,
        access: KubeAccess,
        calculation: Calculation,
        *,
        namespace: str,
        state_dir: Path,
        run_dir: Path,
        files: SecretFiles,
        reread: Callable[[], None],
        wall: Callable[[], float],
    ) -> None:
        super().__init__(files)
        self._access = access
        self._client = KubeClient(access)
        configured = passwords_in(run_dir / "exabgp.conf")
        self.secrets = KubeSecrets(
            self._client,
            namespace,
            changed=reread,
            remembered=lambda refs: remembered(calculation.graph, refs, configured),
            track=Track("the passwords", wall),
        )
        self.passwords = Passwords(files, self.secrets)
        self.follower = KubeFollower(
            self._client,
            calculation,
            copy_file=state_dir / COPY,
            track=Track("services and nodes", wall),
            wall=wall,
        )

    def look(self) -> None:
        self.follower.look()

    def work(self) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "Kubernetes": self.follower.run(),
            "Kubernetes copy": self.follower.copy.run(),
            "Kubernetes Secrets": self.secrets.run(),
        }

    def refusals(self) -> Sequence[Refusal]:
        return (*super().refusals(), *self.follower.refusals(), *self.secrets.refusals())

    def status(self) -> dict[str, Any]:
        state = worst((self.follower.track.state, self.secrets.track.state))
        return {
            "state": state.state,
            "since": state.since,
            "server": self._client.server,
            "access": self._access.source,
            "reason": state.reason,
        }

    async def close(self) -> None:
        await self._client.close()


def kubernetes_of(
    settings: Settings,
    calculation: Calculation,
    *,
    reread: Callable[[], None],
    wall: Callable[[], float],
) -> Kubernetes:
    """What the settings give access to."""
    files = SecretFiles(settings.secrets_dir)
    if settings.kubernetes is None:
        return Kubernetes(files)
    return KubernetesAccess(
        settings.kubernetes,
        calculation,
        namespace=settings.namespace,
        state_dir=settings.state_dir,
        run_dir=settings.run_dir,
        files=files,
        reread=reread,
        wall=wall,
    )


def passwords_in(conf: Path) -> dict[str, str]:
    """Peer address -> password, as the speaker has been told by an agent before us; {} when there is none."""
    try:
        text = conf.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    found = {}
    for block in blocks(text) or ():
        neighbor, secret = _NEIGHBOR.match(block), _PASSWORD.search(block)
        if neighbor is not None and secret is not None:
            try:
                found[neighbor[1]] = base64.b64decode(secret[1], validate=True).decode("utf-8")
            except ValueError:
                continue
    return found


def remembered(
    graph: CalcGraph, refs: Collection[SecretRef], configured: Mapping[str, str]
) -> dict[SecretRef, str]:
    """The passwords that the speaker's configuration has for the peers that refer to these Secrets."""
    if not configured:
        return {}
    stand_ins = {ref: f"stand-in {number}" for number, ref in enumerate(sorted(refs, key=str))}
    by_stand_in = {stand_in: ref for ref, stand_in in stand_ins.items()}
    found: dict[SecretRef, str] = {}
    for address, peer in desire(graph.snapshot, graph.local, stand_ins).peers.items():
        ref = by_stand_in.get(peer.password or "")
        if ref is not None and str(address) in configured:
            found.setdefault(ref, configured[str(address)])
    return found
