"""What a collection of the Kubernetes API is to an informer: where it is, what is kept, what it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from felix_like.calc.snapshot import Malformed

T = TypeVar("T")
"""What a collection's objects are decoded to: the calc's resources, or any frozen value of a controller's
own. A union where one informer follows collections of several kinds."""

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def trim(raw: dict[str, Any]) -> dict[str, Any]:
    """The object without what nobody needs: its version, who managed which field, kubectl's copy of it."""
    metadata = {k: v for k, v in raw["metadata"].items() if k not in ("managedFields", "resourceVersion")}
    annotations = metadata.get("annotations")
    if isinstance(annotations, dict) and _LAST_APPLIED in annotations:
        metadata["annotations"] = {k: v for k, v in annotations.items() if k != _LAST_APPLIED}
    return {**raw, "metadata": metadata}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection(Generic[T]):
    """One list and watch."""

    path: str
    """"/api/v1/services", "/api/v1/namespaces/kube-system/secrets"."""
    prefix: str
    """Keys are PREFIX/NAMESPACE/NAME or PREFIX/NAME: "kube/services/default/web"."""
    decode: Callable[[str, dict[str, Any]], T | Malformed | None]
    """Key and trimmed object -> value; None: not of interest. Never raises."""
    trim: Callable[[dict[str, Any]], dict[str, Any]] = trim
    """What of the object is kept in memory and in the copy; an object that differs elsewhere is no change.
    Raises nothing but KeyError, TypeError, AttributeError and ValueError."""
    field_selector: str = ""
    label_selector: str = ""
    never_empty: bool = False
    """A listing with nothing in it is not believed where something was known: see `reflector`."""

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What makes two of them the same list and watch."""
        return self.path, self.prefix, self.field_selector, self.label_selector

    def key(self, raw: dict[str, Any]) -> str | None:
        """None for an object without a proper name, which no API server stores."""
        metadata = raw.get("metadata")
        if not isinstance(metadata, dict):
            return None
        parts = [metadata[part] for part in ("namespace", "name") if part in metadata]
        if "name" not in metadata or not all(_part(part) for part in parts):
            return None
        return "/".join((self.prefix, *parts))

    def kept(self, raw: dict[str, Any]) -> bytes:
        """The octets of what is kept; all of an object that `trim` stumbles over: `decode` will say why."""
        try:
            trimmed = self.trim(raw)
        except (KeyError, TypeError, AttributeError, ValueError):
            trimmed = raw
        return msgspec.json.encode(trimmed)

    def value(self, key: str, kept: bytes) -> T | Malformed | None:
        return self.decode(key, msgspec.json.decode(kept))


def _part(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= 253 and "/" not in text


@dataclass(frozen=True, slots=True)
class KubeChange(Generic[T]):
    """One key has this value now; None: the object is gone, or no longer of interest."""

    key: str
    value: T | Malformed | None


@dataclass(frozen=True, slots=True)
class KubeBatch(Generic[T]):
    """Changes that belong together, one for each key; nothing in it is older than what came before."""

    changes: tuple[KubeChange[T], ...]
    in_sync: bool
    """False: from the last good copy, or at a time when not every permitted collection is known."""
