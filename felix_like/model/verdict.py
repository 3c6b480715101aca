"""A decision and its reason, travelling together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True, slots=True)
class Yes:
    """The decision is yes; the reason is only there to be explained."""

    reason: str = ""

    def __bool__(self) -> Literal[True]:
        return True


@dataclass(frozen=True, slots=True)
class No:
    """The decision is no, because of `reason`: a sentence an operator can act on."""

    reason: str

    def __bool__(self) -> Literal[False]:
        return False


Verdict = Yes | No


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """Something in the datastore or from a peer that was not used, and why.

    `subject` names it as the operator knows it: "BGPPeer tor-1", "Node node-2", "IPPool blue",
    "etcd key /calico/…".
    """

    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"


class Validity(StrEnum):
    """The outcome of origin validation, in the words of RFC 6811 section 2."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"
    """Not found (yet): the datastore says nothing about it; judged again when it does."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The verdict of origin validation on one path, with its reason."""

    validity: Validity
    reason: str
