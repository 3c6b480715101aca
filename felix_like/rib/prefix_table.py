"""Longest-prefix match over few lengths: one dictionary per prefix length, integers as keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from felix_like.model.address import Address, Prefix

V = TypeVar("V")
W = TypeVar("W")


class PrefixTable(Generic[V]):
    """Values by prefix. A lookup costs one dictionary probe per distinct length in use."""

    __slots__ = ("_levels", "_values")

    def __init__(self) -> None:
        self._values: dict[Prefix, V] = {}
        # Octets of the family -> [(length, shift, {network bits: prefix})], longest first.
        self._levels: dict[int, list[tuple[int, int, dict[int, Prefix]]]] = {4: [], 16: []}

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, prefix: object) -> bool:
        return prefix in self._values

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._values)

    def get(self, prefix: Prefix) -> V | None:
        return self._values.get(prefix)

    def put(self, prefix: Prefix, value: V) -> None:
        if prefix not in self._values:
            octets = len(prefix.network)
            shift = octets * 8 - prefix.length
            levels = self._levels[octets]
            table = next((t for length, _, t in levels if length == prefix.length), None)
            if table is None:
                table = {}
                levels.append((prefix.length, shift, table))
                levels.sort(key=lambda level: -level[0])
            table[int.from_bytes(prefix.network, "big") >> shift] = prefix
        self._values[prefix] = value

    def drop(self, prefix: Prefix) -> None:
        """Forget a prefix; one that is not there is no error."""
        if prefix not in self._values:  # its value may well be None
            return
        del self._values[prefix]
        octets = len(prefix.network)
        levels = self._levels[octets]
        for position, (length, shift, table) in enumerate(levels):
            if length == prefix.length:
                table.pop(int.from_bytes(prefix.network, "big") >> shift, None)
                if not table:
                    del levels[position]
                return

    def longest(self, prefix: Prefix) -> Prefix | None:
        """The most specific entry that is `prefix` or contains it."""
        network, bits = prefix
        levels = self._levels[len(network)]
        if levels:
            number = int.from_bytes(network, "big")
            for length, shift, table in levels:
                if length <= bits:
                    found = table.get(number >> shift)
                    if found is not None:
                        return found
        return None

    def longest_beside(self, others: PrefixTable[W], prefix: Prefix) -> Prefix | None:
        """The same, unless one of the others is more specific."""
        found = self.longest(prefix)
        if found is None:  # as nearly always, and asked for each announced prefix
            return None
        other = others.longest(prefix)
        return found if other is None or other.length <= found.length else None

    def match(self, prefix: Prefix) -> V | None:
        """The value of `longest`."""
        found = self.longest(prefix)
        return None if found is None else self._values[found]

    def all_matches(self, prefix: Prefix) -> list[V]:
        """The values of every entry that is `prefix` or contains it, most specific first."""
        number = int.from_bytes(prefix.network, "big")
        return [
            self._values[found]
            for length, shift, table in self._levels[len(prefix.network)]
            if length <= prefix.length and (found := table.get(number >> shift)) is not None
        ]

    def covered_by(self, prefix: Prefix) -> Prefix | None:
        """Some entry that lies strictly inside `prefix` (the smallest network), or None."""
        inside = [p for p in self._values if p.length > prefix.length and prefix.covers(p)]
        return min(inside, default=None)


def subnets(prefix: Prefix) -> Iterator[Prefix]:
    """Every prefix that is `prefix` or lies in it: 2 * size - 1 of them, so only for small ones."""
    octets = len(prefix.network)
    bits = octets * 8
    first = int.from_bytes(prefix.network, "big")
    for length in range(prefix.length, bits + 1):
        step = 1 << (bits - length)
        for number in range(first, first + (1 << (bits - prefix.length)), step):
            yield Prefix(Address(number.to_bytes(octets, "big")), length)
