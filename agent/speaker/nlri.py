"""NLRI in their wire form (RFC 4271 section 4.3): a length octet and the significant octets.

Inside the speaker a prefix is never more than these few octets: half the memory of parsed objects,
and an UPDATE's NLRI field reaches the agent nearly as the peer wrote it.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator
from typing import NewType

from felix_like.model.address import Address, IpVersion, Prefix

Packed = NewType("Packed", bytes)
"""One NLRI: length octet, then `(length + 7) // 8` octets with the host bits cleared."""

OCTETS: dict[int, int] = {4: 4, 6: 16}


def pack(prefix: Prefix) -> Packed:
    length = prefix.length
    return Packed(bytes((length,)) + prefix.network[: (length + 7) >> 3])


def unpack(version: IpVersion, packed: bytes) -> Prefix:
    octets = OCTETS[version]
    return Prefix(Address(packed[1:] + bytes(octets - len(packed) + 1)), packed[0])


def split(version: IpVersion, field: bytes) -> list[Packed]:
    """Cut an NLRI field into its prefixes; stray host bits are cleared.

    Raises ValueError when a length is impossible or the field ends too early.
    """
    longest = OCTETS[version] * 8
    found: list[Packed] = []
    at, end = 0, len(field)
    while at < end:
        length = field[at]
        after = at + 1 + ((length + 7) >> 3)
        if length > longest:
            raise ValueError(f"prefix length {length} is impossible in IPv{version}")
        if after > end:
            raise ValueError(f"a /{length} prefix does not fit in the octets that are left")
        one = field[at:after]
        spare = -length & 7
        if spare and one[-1] & ((1 << spare) - 1):
            one = one[:-1] + bytes((one[-1] >> spare << spare,))
        found.append(Packed(one))
        at = after
    return found


class Nlri:
    """Prefixes of one family, packed; the prefixes themselves are made when somebody asks."""

    __slots__ = ("_field", "_prefixes", "version")

    def __init__(self, version: IpVersion, field: bytes) -> None:
        self.version: IpVersion = version
        self._field = field
        self._prefixes: tuple[Prefix, ...] | None = None

    @classmethod
    def joined(cls, version: IpVersion, parts: Iterable[Packed]) -> Nlri:
        return cls(version, b"".join(parts))

    @classmethod
    def of(cls, version: IpVersion, prefixes: Iterable[Prefix]) -> Nlri:
        """Pack prefixes, which must all be of that IP version."""
        return cls(version, b"".join(map(pack, prefixes)))

    @classmethod
    def parse(cls, text: str) -> Nlri:
        """Read what `str()` gives. Raises ValueError when it is anything else."""
        head, _, tail = text.partition(":")
        if head not in ("4", "6"):
            raise ValueError("NLRI must start with 4: or 6:")
        version: IpVersion = 4 if head == "4" else 6
        field = binascii.a2b_base64(tail.encode("ascii"), strict_mode=True) if tail else b""
        return cls(version, b"".join(split(version, field)))

    @property
    def packed(self) -> list[Packed]:
        return split(self.version, self._field)

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        if self._prefixes is None:
            self._prefixes = tuple(unpack(self.version, one) for one in split(self.version, self._field))
        return self._prefixes

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self.prefixes)

    def __str__(self) -> str:
        return f"{self.version}:{binascii.b2a_base64(self._field, newline=False).decode('ascii')}"

    def __repr__(self) -> str:
        return f"Nlri({', '.join(map(str, self.prefixes))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nlri) and (self.version, self._field) == (other.version, other._field)

    def __hash__(self) -> int:
        return hash((self.version, self._field))
