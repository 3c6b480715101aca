"""The informer for Kubernetes: what some collections hold, first as a whole, then change by change, for ever.

    async with contextlib.aclosing(KubeInformer(client, collections).events()) as events:
        async for event in events:
            match event:
                case KubeBatch(changes): ...
                case Stale(reason): ...   # keep what is known, say so
                case InSync(): ...

The promise is that of `datastore.watch`: whatever breaks, applying the batches ends in the API server's
present state, deletes included, and nothing that was delivered is forgotten while it is away.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from felix_like.calc.snapshot import Malformed
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.watch import InSync, Stale

T = TypeVar("T")
"""What a collection's objects are decoded to: the calc's resources, or any frozen value of a controller's
own. A union where one informer follows collections of several kinds."""


def trim(raw: dict[str, Any]) -> dict[str, Any]:
    """The object without what nobody needs: metadata.managedFields and kubectl's copy of the object."""
    raise NotImplementedError


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
    """What of the object is kept in memory and in the copy; an object that differs elsewhere is no change."""
    field_selector: str = ""
    label_selector: str = ""


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
    """False: from the last good copy, not from the API server."""


class KubeInformer(Generic[T]):
    """Follows collections. `known`, raw objects by key, is delivered first, as a batch that is not in sync.

    Before every permitted collection has been listed nothing else is delivered; then one batch, then InSync.
    A forbidden collection is tried again now and then, named in `refused`, and holds up nothing else.
    """

    def __init__(
        self,
        client: KubeClient,
        collections: Sequence[Collection[T]],
        *,
        known: Mapping[str, bytes] | None = None,
    ) -> None: ...

    @property
    def refused(self) -> Mapping[str, str]:
        """Path -> why a collection cannot be followed though the others can."""
        raise NotImplementedError

    def follow(self, collections: Sequence[Collection[T]]) -> None:
        """Other collections from now on: new ones are listed, what dropped ones held is delivered as gone."""
        raise NotImplementedError

    def events(self) -> AsyncGenerator[KubeBatch[T] | Stale | InSync, None]:
        """Yields for ever. Close it (`contextlib.aclosing`) to let go of the connections."""
        raise NotImplementedError
