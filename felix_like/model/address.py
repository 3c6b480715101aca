"""Addresses and prefixes as packed octets: cheap to hash, to compare and to hand to the kernel.

Text is parsed once, at the door; inside, a prefix is a `(network, length)` tuple.
"""

from __future__ import annotations

import socket
from typing import Literal, NamedTuple, NewType

IpVersion = Literal[4, 6]
Asn = NewType("Asn", int)

_BITS = {4: 32, 16: 128}
_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}


class Address(bytes):
    """An IPv4 (4 octets) or IPv6 (16 octets) address; `str()` gives the canonical text."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address as written by people. Raises ValueError that quotes the text."""
        try:
            return cls(socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text))
        except (OSError, ValueError, UnicodeError):
            raise ValueError(f"{text!r} is not an IP address") from None

    @property
    def version(self) -> IpVersion:
        return 4 if len(self) == 4 else 6

    @property
    def is_link_local(self) -> bool:
        """fe80::/10 (RFC 4291 section 2.5.6) or 169.254.0.0/16 (RFC 3927)."""
        if len(self) == 4:
            return self[0] == 169 and self[1] == 254
        return self[0] == 0xFE and self[1] & 0xC0 == 0x80

    def __str__(self) -> str:
        return socket.inet_ntop(_FAMILIES[len(self)], bytes(self))

    def __repr__(self) -> str:
        return f"Address({self})"


class Prefix(NamedTuple):
    """An IP prefix (NLRI). `network` has its host bits cleared; `length` is in bits."""

    network: Address
    length: int

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """Read `a.b.c.d/len` strictly. Raises ValueError when host bits are set or it does not parse."""
        prefix = cls.of(text)
        address = text.partition("/")[0]
        if Address.parse(address) != prefix.network:
            raise ValueError(f"{text!r} has host bits set; the network is {prefix}")
        return prefix

    @classmethod
    def of(cls, text: str) -> Prefix:
        """The network that `address/len` (or a bare address: a host route) lies in."""
        head, slash, tail = text.partition("/")
        address = Address.parse(head)
        bits = _BITS[len(address)]
        if not slash:
            return cls(address, bits)
        if not (tail.isascii() and tail.isdigit()) or int(tail) > bits:
            raise ValueError(f"{text!r} is not a prefix: the length must be 0 to {bits}")
        return cls.within(address, int(tail))

    @classmethod
    def within(cls, address: Address, length: int) -> Prefix:
        """The prefix of that length which contains the address."""
        octets = len(address)
        shift = octets * 8 - length
        number = int.from_bytes(address, "big") >> shift << shift
        return cls(Address(number.to_bytes(octets, "big")), length)

    @classmethod
    def host(cls, address: Address) -> Prefix:
        return cls(address, _BITS[len(address)])

    @property
    def version(self) -> IpVersion:
        return 4 if len(self.network) == 4 else 6

    @property
    def bits(self) -> int:
        """Width of the address family: 32 or 128."""
        return _BITS[len(self.network)]

    @property
    def is_host(self) -> bool:
        return self.length == _BITS[len(self.network)]

    @property
    def is_default(self) -> bool:
        return self.length == 0

    def covers(self, other: Prefix) -> bool:
        """True when `other` is this prefix or lies inside it."""
        return (
            self.length <= other.length
            and len(self.network) == len(other.network)
            and Prefix.within(other.network, self.length).network == self.network
        )

    def contains(self, address: Address) -> bool:
        return len(address) == len(self.network) and (
            Prefix.within(address, self.length).network == self.network
        )

    def overlaps(self, other: Prefix) -> bool:
        return self.covers(other) or other.covers(self)

    def __str__(self) -> str:
        return f"{self.network}/{self.length}"

    def __repr__(self) -> str:
        return f"Prefix({self})"
