"""BGP passwords from Kubernetes: what no file has is looked up in the Secret of that name, and followed.

One watch for each Secret that is referred to, by its name: RBAC can then allow these names alone. A Secret
that is gone, or lacks the key, refuses the session; an API server that is away changes nothing. That holds
over a restart of the agent, too: what the API server has not told yet is what the speaker's own configuration
says, for the passwords themselves are written nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.kube_state import Track
from agent.secret_files import SecretFiles, password
from felix_like.datastore.keys import quoted
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.informer import Collection as KubeCollection
from felix_like.datastore.kube.informer import KubeBatch, KubeInformer, Pace
from felix_like.model.bgp import SecretRef
from felix_like.model.verdict import Refusal

PREFIX = "kube/secrets"
NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
"""A name that Kubernetes allows: nothing else gets into a path or a field selector."""

Remembered = Callable[[Collection[SecretRef]], Mapping[SecretRef, str]]
"""What the speaker's configuration of before our start says of these passwords."""


@dataclass(frozen=True, slots=True)
class Secret:
    """The keys of one Secret; what is no password has its reason."""

    passwords: Mapping[str, str] = field(repr=False)
    problems: Mapping[str, str]


def decode(_key: str, raw: dict[str, Any]) -> Secret:
    """Never raises, and quotes no value."""
    values = raw.get("data")
    passwords: dict[str, str] = {}
    problems: dict[str, str] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        try:
            passwords[key] = password(_octets(value), f"its key {quoted(key)}")
        except ValueError as error:
            problems[key] = str(error)
    return Secret(passwords, problems)


def _octets(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("its value is no text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("its value is no base64") from None


def trim(raw: dict[str, Any]) -> dict[str, Any]:
    return {"data": raw.get("data")}


class KubeSecrets:
    """Follows Secrets in one namespace. `changed` is called when what `look` answers may differ."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        *,
        changed: Callable[[], None],
        remembered: Remembered,
        track: Track,
        pace: Pace | None = None,
    ) -> None:
        self._namespace = namespace
        self._changed = changed
        self._remembered = remembered
        self.track = track
        self._informer: KubeInformer[Secret] = KubeInformer(client, (), pace=pace)
        self._followed: dict[str, KubeCollection[Secret]] = {}
        self._held: dict[str, Secret] = {}
        self._old: dict[SecretRef, str | None] = {}
        """Of before our start, for what the API server has not spoken about yet; None: nothing."""
        self._refusals: tuple[Refusal, ...] = ()

    def look(self, refs: Collection[SecretRef]) -> tuple[dict[SecretRef, str], dict[SecretRef, str]]:
        """The passwords there are, and why the others are not. These Secrets are followed from now on."""
        usable = {ref for ref in refs if NAME.fullmatch(ref.name)}
        self._follow({ref.name for ref in usable})
        self._remember({ref for ref in usable if not self._informer.heard(self._followed[ref.name])})
        found: dict[SecretRef, str] = {}
        refusals: dict[SecretRef, Refusal] = {}
        for ref in refs:
            known, problem = self._look(ref) if ref in usable else (None, "Kubernetes has no such names")
            if known is not None:
                found[ref] = known
            else:
                name = ref.name if ref in usable else quoted(ref.name)
                refusals[ref] = Refusal(f"Secret {self._namespace}/{name}", problem)
        self._refusals = tuple(sorted(set(refusals.values())))
        return found, {ref: str(refusal) for ref, refusal in refusals.items()}

    def _look(self, ref: SecretRef) -> tuple[str | None, str]:
        collection = self._followed[ref.name]
        if not self._informer.heard(collection):
            why = self._informer.refusal(collection) or "the API server has not been heard yet"
            return self._old[ref], why
        secret = self._held.get(ref.name)
        if secret is None:
            return None, "it does not exist: create it, or put the password into a file"
        if ref.key in secret.passwords:
            return secret.passwords[ref.key], ""
        return None, secret.problems.get(ref.key, f"it has no key {quoted(ref.key)}")

    def _remember(self, unheard: set[SecretRef]) -> None:
        """Who was asked about once is not looked up again: the speaker's configuration becomes ours."""
        self._old = {ref: old for ref, old in self._old.items() if ref in unheard}
        if unheard - self._old.keys():
            found = self._remembered(unheard)
            self._old = {ref: self._old.get(ref, found.get(ref)) for ref in unheard}

    def refusals(self) -> tuple[Refusal, ...]:
        """What is wrong with the Secrets that are referred to, also where a password is known from before."""
        refused = {
            Refusal(f"Secret {self._namespace}/{name}", reason)
            for name, collection in self._followed.items()
            if (reason := self._informer.refusal(collection))
        }
        return tuple(sorted({*self._refusals, *refused}))

    def _follow(self, names: set[str]) -> None:
        if names == self._followed.keys():
            return
        self._followed = {name: self._collection(name) for name in sorted(names)}
        self._informer.follow(list(self._followed.values()))
        self.track.needed(bool(names))

    def _collection(self, name: str) -> KubeCollection[Secret]:
        return KubeCollection(
            path=f"/api/v1/namespaces/{self._namespace}/secrets",
            prefix=PREFIX,
            decode=decode,
            trim=trim,
            field_selector=f"metadata.name={name}",
        )

    async def run(self) -> None:
        """For ever."""
        async with contextlib.aclosing(self._informer.events()) as events:
            async for event in events:
                if isinstance(event, KubeBatch):
                    for change in event.changes:
                        name = change.key.rpartition("/")[2]
                        self._held.pop(name, None)
                        if isinstance(change.value, Secret):
                            self._held[name] = change.value
                self.track.hear(event)
                self._changed()


class Passwords:
    """Files first, then Kubernetes."""

    def __init__(self, files: SecretFiles, secrets: KubeSecrets) -> None:
        self._files = files
        self._secrets = secrets

    def read(self, refs: Collection[SecretRef]) -> dict[SecretRef, str]:
        """The passwords there are; what is missing in both is said once."""
        found, absent = self._files.look(refs)
        more, problems = self._secrets.look(absent)
        self._files.say({ref: f"{absent[ref]}; {problem}" for ref, problem in problems.items()})
        return {**found, **more}
