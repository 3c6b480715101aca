"""have, want -> put, drop: the one comparison every reconcile loop makes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Delta(Generic[K, V]):
    """`put` carries what is missing or differs, `drop` the keys nobody wants."""

    put: Mapping[K, V]
    drop: tuple[K, ...]

    def __bool__(self) -> bool:
        return bool(self.put or self.drop)


def delta(have: Mapping[K, V], want: Mapping[K, V], among: Iterable[K] | None = None) -> Delta[K, V]:
    """Compare two states, over all keys or only `among` those that may have changed."""
    keys = list(among) if among is not None else [*want, *(k for k in have if k not in want)]
    put: dict[K, V] = {}
    drop: list[K] = []
    for key in keys:
        if key not in want:
            if key in have:
                drop.append(key)
        elif key not in have or have[key] != want[key]:
            put[key] = want[key]
    return Delta(put, tuple(drop))
