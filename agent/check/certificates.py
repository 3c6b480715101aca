"""When certificates expire: the one field of X.509 that an operator forgets (RFC 5280 section 4.1.2.5)."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path

LARGEST = 1 << 20


def expiry_of_file(path: str) -> datetime:
    """Of the certificate in a PEM file, of several the earliest. Raises ValueError, OSError."""
    with Path(path).open(encoding="ascii", errors="replace") as file:
        return expiry_of_pem(file.read(LARGEST))


def expiry_of_pem(text: str) -> datetime:
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    if not blocks:
        raise ValueError("there is no certificate in it")
    return min(expiry(ssl.PEM_cert_to_DER_cert(block)) for block in blocks)


def expiry(der: bytes) -> datetime:
    """notAfter of a certificate in DER. Raises ValueError."""
    try:
        _, start, _ = _element(der, 0)  # Certificate
        _, at, end = _element(der, start)  # TBSCertificate
        if der[at] == 0xA0:  # version
            at = _element(der, at)[2]
        for _ in range(3):  # serial number, signature algorithm, issuer
            at = _element(der, at)[2]
        _, at, end = _element(der, at)  # validity
        at = _element(der, at)[2]  # notBefore
        kind, at, end = _element(der, at)
        text = der[at:end].decode("ascii")
        return datetime.strptime(text, "%y%m%d%H%M%SZ" if kind == 0x17 else "%Y%m%d%H%M%SZ").replace(
            tzinfo=UTC
        )
    except (IndexError, UnicodeDecodeError, ValueError):
        raise ValueError("it does not read as an X.509 certificate") from None


def _element(octets: bytes, at: int) -> tuple[int, int, int]:
    """Tag, start and end of the content at a place (X.690 section 8.1)."""
    kind, length = octets[at], octets[at + 1]
    at += 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(octets[at : at + size], "big")
        at += size
    if at + length > len(octets):
        raise ValueError("cut short")
    return kind, at, at + length
