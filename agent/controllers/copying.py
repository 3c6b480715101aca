"""What is copied from Kubernetes into Calico's data: decisions about single etcd keys. No I/O, no clock.

Two shapes. `Documents`: whole documents that exist because a Kubernetes object does. `Labels`: the labels of
workload endpoints, which the CNI plugin makes and deletes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from felix_like.calc.snapshot import Malformed
from felix_like.datastore.kube.convert_labels import PodLabels
from felix_like.datastore.kube.copies import Copy
from felix_like.datastore.kube.informer import Collection
from felix_like.model.verdict import Refusal

Json = dict[str, Any]
Wanted = Copy | PodLabels


@dataclass(frozen=True, slots=True)
class Write:
    """The key should hold this document."""

    document: Json


@dataclass(frozen=True, slots=True)
class Remove:
    """The key is a copy of something that is not there any more."""


class Duty(Protocol):
    """What one controller copies: which etcd keys deserve a look, and what should become of one."""

    @property
    def collection(self) -> Collection[Wanted]: ...

    @property
    def prefix(self) -> str:
        """Of the etcd keys that it follows."""

    @property
    def patience(self) -> float | None:
        """As of `backlog.Doubt`."""

    def told(self, key: str, value: Wanted | Malformed | None) -> list[str]:
        """Kubernetes says this now."""

    def seen(self, key: str, value: bytes | None) -> list[str]:
        """etcd holds this now."""

    def decide(self, key: str, value: bytes | None) -> Write | Remove | None:
        """What should become of an etcd key that holds `value`; None: it is right, or not ours."""

    def objects(self) -> int:
        """Of Kubernetes, known at the moment."""

    def refusals(self) -> Iterator[Refusal]:
        """What of it cannot be copied, and why."""


def names_of(key: str) -> tuple[str, str]:
    """Namespace and name of an informer's key: "kube/pods/default/web", "kube/namespaces/default"."""
    parts = key.split("/")
    return (parts[2], parts[3]) if len(parts) == 4 else ("", parts[2])


class Documents:
    """Whole documents under `prefix`, of which those that `ours` says are ours."""

    def __init__(
        self,
        collection: Collection[Wanted],
        *,
        prefix: str,
        ours: Callable[[str], bool],
        key_of: Callable[[str, str], str],
        patience: float | None,
        uid: Callable[[], str],
        now: Callable[[], str],
    ) -> None:
        """`key_of`: namespace and name of the Kubernetes object -> etcd key, or ValueError."""
        self.collection = collection
        self.prefix = prefix
        self.patience = patience
        self._ours = ours
        self._key_of = key_of
        self._uid = uid
        self._now = now
        self._wanted: dict[str, Copy | Malformed] = {}
        """By etcd key; Malformed: there is an object, but it cannot be copied."""
        self._nameless: set[str] = set()
        """Objects whose names can be no etcd key, by the informer's key."""
        self._refusals: dict[str, tuple[Refusal, ...]] = {}

    def told(self, key: str, value: Wanted | Malformed | None) -> list[str]:
        assert not isinstance(value, PodLabels)
        self._refusals.pop(key, None)
        if refusals := tuple(refused(value)):
            self._refusals[key] = refusals
        try:
            target = self._key_of(*names_of(key))
        except ValueError:  # which is what `value` says, too
            self._nameless.discard(key)
            if value is not None:
                self._nameless.add(key)
            return []
        if value is None:
            self._wanted.pop(target, None)
        else:
            self._wanted[target] = value
        return [target]

    def seen(self, key: str, value: bytes | None) -> list[str]:  # noqa: ARG002 - a duty like the other
        return [key] if self._ours(key) else []

    def decide(self, key: str, value: bytes | None) -> Write | Remove | None:
        wanted = self._wanted.get(key)
        if wanted is None:
            return Remove() if value is not None and self._ours(key) else None
        if isinstance(wanted, Malformed):
            return None  # there was a document when it could be copied: no guess is better than that
        stored = _object(value)
        if stored is None:
            return Write(wanted.fresh(self._uid(), self._now()))
        merged = wanted.merged(stored, self._uid(), self._now())
        return None if merged is None else Write(merged)

    def objects(self) -> int:
        return len(self._wanted) + len(self._nameless)

    def refusals(self) -> Iterator[Refusal]:
        return chain.from_iterable(self._refusals.values())


class Labels:
    """The labels of the workload endpoints of pods: those of the pod, and nothing else of the endpoint."""

    def __init__(self, collection: Collection[Wanted], *, prefix: str) -> None:
        self.collection = collection
        self.prefix = prefix
        self.patience: float | None = None
        self._wanted: dict[tuple[str, str], PodLabels | Malformed] = {}
        self._endpoints: dict[tuple[str, str], set[str]] = {}
        self._pod: dict[str, tuple[str, str]] = {}
        """Namespace and pod of an etcd key, where it is an endpoint of Kubernetes."""
        self._refusals: dict[str, tuple[Refusal, ...]] = {}

    def told(self, key: str, value: Wanted | Malformed | None) -> list[str]:
        assert not isinstance(value, Copy)
        self._refusals.pop(key, None)
        if refusals := tuple(refused(value)):
            self._refusals[key] = refusals
        pod = names_of(key)
        if value is None:
            self._wanted.pop(pod, None)
        else:
            self._wanted[pod] = value
        return sorted(self._endpoints.get(pod, ()))

    def seen(self, key: str, value: bytes | None) -> list[str]:
        before, pod = self._pod.pop(key, None), self._pod_of(key, _object(value))
        if before is not None and before != pod:
            self._endpoints[before].discard(key)
            if not self._endpoints[before]:
                del self._endpoints[before]
        if pod is None:
            return []
        self._pod[key] = pod
        self._endpoints.setdefault(pod, set()).add(key)
        return [key]

    def decide(self, key: str, value: bytes | None) -> Write | None:
        stored = _object(value)
        pod = self._pod_of(key, stored)
        wanted = self._wanted.get(pod) if pod is not None else None
        if stored is None or not isinstance(wanted, PodLabels):
            return None
        metadata = stored.get("metadata")
        if not isinstance(metadata, dict) or metadata.get("labels") == wanted.labels:
            return None
        return Write(stored | {"metadata": metadata | {"labels": dict(wanted.labels)}})

    def _pod_of(self, key: str, stored: Json | None) -> tuple[str, str] | None:
        spec = stored.get("spec") if stored is not None else None
        if not isinstance(spec, dict) or spec.get("orchestrator") != "k8s":
            return None
        namespace, _, rest = key.removeprefix(self.prefix).partition("/")
        pod = spec.get("pod")
        return (namespace, pod) if rest and isinstance(pod, str) and pod else None

    def objects(self) -> int:
        return len(self._wanted)

    def refusals(self) -> Iterator[Refusal]:
        return chain.from_iterable(self._refusals.values())


def refused(value: Wanted | Malformed | None) -> Iterator[Refusal]:
    """What of an object cannot be copied. What was copied of it before stays as it is."""
    if isinstance(value, Malformed):
        yield Refusal(value.subject, f"{value.reason}; it is not copied")
    elif isinstance(value, Copy):
        for sentence in value.left_out:
            yield Refusal(f"{value.kind} {value.namespace}/{value.name}", sentence)


def _object(value: bytes | None) -> Json | None:
    """A stored JSON object; None where there is none, also where something else stands in its place."""
    try:
        read = json.loads(value) if value else None
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None
