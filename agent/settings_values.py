"""What single settings may say: each reader takes name and text, returns a value or raises SettingsError."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from felix_like.datastore.keys import quoted
from felix_like.model.address import Address, IpVersion, Prefix

OriginValidation = Literal["off", "observe", "enforce"]

_LOG_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "verbose": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "critical": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "none": logging.CRITICAL + 10,
}
_SWITCH = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


class SettingsError(ValueError):
    """A setting that cannot be used: one sentence with its name, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """An address given by the operator."""

    address: Address
    length: int | None
    """Prefix length in bits; None: none was written, so the interface that holds it says."""


AddressSetting = Fixed | Literal["autodetect", "none", "keep"]
"""`keep` (nothing was set): what the Node has; IPv4 is detected when it has none."""


def address_setting(name: str, text: str, version: IpVersion) -> AddressSetting:
    """IP or IP6."""
    if text == "autodetect":
        return "autodetect"
    if text == "none":
        return "none"
    if not text:
        return "keep"
    example = "10.0.0.1/24" if version == 4 else "fd00::1/64"
    wanted = f"use an IPv{version} address such as {example}, autodetect or none"
    try:
        head, slash, _ = text.partition("/")
        address, network = Address.parse(head), Prefix.of(text)
    except ValueError:
        raise SettingsError(f"{name}: {quoted(text)} is not an address; {wanted}") from None
    if address.version != version:
        raise SettingsError(f"{name}: {quoted(text)} is an IPv{address.version} address; {wanted}")
    if not any(address) or address[0] == 0xFF or (version == 4 and (address[0] >= 224 or address[0] == 127)):
        raise SettingsError(f"{name}: {quoted(text)} cannot be a node's own address; {wanted}")
    if address.is_link_local or bytes(address) == bytes(15) + b"\x01":
        raise SettingsError(f"{name}: {quoted(text)} is not reachable from other nodes; {wanted}")
    return Fixed(address, network.length if slash else None)


def listen_address(name: str, text: str) -> tuple[str, int] | None:
    """Host and TCP port; None for `none`."""
    if text.lower() == "none":
        return None
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = Address.parse(host[1:-1] if bracketed else host)
    except ValueError:
        address = None
    good = address is not None and colon and bracketed == (address.version == 6)
    if not good or not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise SettingsError(
            f"{name}: {quoted(text)} is not an address to listen on; use one such as 127.0.0.1:9179, "
            "0.0.0.0:9179, [::1]:9179 or none"
        )
    return str(address), int(port)


def router_id(name: str, text: str) -> str | None:
    """None: nothing was set."""
    if not text or text == "hash":
        return text or None
    try:
        address = Address.parse(text)
    except ValueError:
        address = Address(bytes(4))
    if address.version != 4 or not any(address):
        raise SettingsError(
            f"{name}: {quoted(text)} is not a BGP identifier; use a dotted quad other than 0.0.0.0 "
            "(RFC 6286), or hash"
        )
    return str(address)


def networks(name: str, text: str) -> tuple[Prefix, ...] | None:
    """A comma list of CIDRs, each once; None: nothing was set."""
    if not text:
        return None
    found: dict[Prefix, None] = {}
    for part in text.split(","):
        try:
            found[Prefix.parse(part.strip())] = None
        except ValueError:
            raise SettingsError(
                f"{name}: {quoted(part.strip())} is not a network; use a comma list such as "
                "10.96.0.0/12,fd00:96::/112"
            ) from None
    return tuple(found)


def switch(name: str, text: str) -> bool:
    value = _SWITCH.get(text.lower())
    if value is None:
        raise SettingsError(f"{name}: {quoted(text)} is not a switch; use true or false")
    return value


def whole_number(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and least <= int(text) <= most):
        raise SettingsError(
            f"{name}: {quoted(text)} is not allowed; use a whole number from {least} to {most}"
        )
    return int(text)


def log_level(name: str, text: str) -> int:
    """The standard library's number for a Calico severity."""
    level = _LOG_LEVELS.get(text.lower())
    if level is None:
        raise SettingsError(
            f"{name}: {quoted(text)} is not a severity; use Debug, Info, Warning, Error, Fatal or None"
        )
    return level


def origin_validation(name: str, text: str) -> OriginValidation:
    match text.lower():
        case "off" | "observe" | "enforce" as mode:
            return mode
    raise SettingsError(f"{name}: {quoted(text)} is not a mode; use off, observe or enforce")
