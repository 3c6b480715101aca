"""What a check found, in one line: how bad, where, what, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"
    """The agent cannot do its work, or packets are lost."""
    UNSEEN = "----"
    """It could not be looked at from here; the line says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `checksystem`."""

    level: Level
    check: str
    found: str
    todo: str = ""

    def line(self) -> str:
        return f"{self.level:<4}  {self.check}: {self.found}" + (f"; {self.todo}" if self.todo else "")

    def document(self) -> dict[str, Any]:
        level = "UNSEEN" if self.level is Level.UNSEEN else str(self.level)
        return {**asdict(self), "level": level}


def ok(check: str, found: str) -> Finding:
    return Finding(Level.OK, check, found)


def warn(check: str, found: str, todo: str = "") -> Finding:
    return Finding(Level.WARN, check, found, todo)


def fail(check: str, found: str, todo: str = "") -> Finding:
    return Finding(Level.FAIL, check, found, todo)


def unseen(check: str, why: str) -> Finding:
    return Finding(Level.UNSEEN, check, f"not seen: {why}")


def total(findings: Iterable[Finding]) -> str:
    """`1 FAIL, 2 WARN, 20 OK, 1 not seen`."""
    counts = Counter(finding.level for finding in findings)
    words = {Level.FAIL: "FAIL", Level.WARN: "WARN", Level.OK: "OK", Level.UNSEEN: "not seen"}
    return ", ".join(f"{counts[level]} {word}" for level, word in words.items() if counts[level])


def failed(findings: Iterable[Finding]) -> bool:
    return any(finding.level is Level.FAIL for finding in findings)
