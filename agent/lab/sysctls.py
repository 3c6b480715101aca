"""Limits of the whole machine that a large lab runs into; raised only then, put back by `lab down`.

`gc_thresh3` bounds the neighbour table of *all* namespaces together: a 50-node mesh needs 2,450 entries
per address family and the kernel's default is 1,024; beyond it the table overflows and nothing converges.

Several labs may run at once, and end in any order: a ledger beside them remembers the values from before
the first and what each lab needs. The last one to go restores them and takes the ledger along.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROC = Path("/proc/sys")
LEDGER = Path("/run/tortie-lab-limits.json")


@dataclass(slots=True)
class Ledger:
    """Who needs how much, and what was there before."""

    before: dict[str, int] = field(default_factory=dict)
    """Setting (a path below /proc/sys) -> its value before any lab changed it."""
    needs: dict[str, dict[str, int]] = field(default_factory=dict)
    """Lab -> setting -> the least it needs."""


def needed(nodes: int, pods: int) -> dict[str, int]:
    """Setting -> the least that a lab of so many nodes, and pods on each, needs."""
    neighbours = nodes * nodes + nodes * (2 * pods + 2) + 256
    return {
        "net/ipv4/neigh/default/gc_thresh3": 2 * neighbours,
        "net/ipv6/neigh/default/gc_thresh3": 2 * neighbours,
        "net/ipv4/neigh/default/gc_thresh2": neighbours,
        "net/ipv6/neigh/default/gc_thresh2": neighbours,
        "fs/inotify/max_user_instances": 64 + 2 * nodes,
    }


def claim(lab: str, needs: Mapping[str, int], root: Path = PROC, ledger: Path = LEDGER) -> list[str]:
    """Raise what is too low for a lab; returns a sentence for each setting that could not be written.

    A lab that claims again (a node was added) replaces what it said before.
    """
    with _opened(ledger) as book:
        known = {name: value for name in needs if (value := _read(root, name)) is not None}
        too_low = {name for name, value in known.items() if value < needs[name]}
        for name in too_low:
            book.before.setdefault(name, known[name])
        book.needs[lab] = {name: needs[name] for name in needs if name in book.before}
        return _settle(book, root)


def give_back(lab: str, root: Path = PROC, ledger: Path = LEDGER) -> list[str]:
    """A lab needs nothing any more; returns a sentence for each setting that could not be written."""
    if not ledger.exists():
        return []
    with _opened(ledger) as book:
        book.needs.pop(lab, None)
        return _settle(book, root)


def _settle(book: Ledger, root: Path) -> list[str]:
    """Write what the labs that are left need, or what was there before; forget what is as before."""
    failed = []
    for name, before in list(book.before.items()):
        wanted = max([before, *(needs[name] for needs in book.needs.values() if name in needs)])
        if _read(root, name) != wanted:
            try:
                (root / name).write_text(str(wanted))
            except OSError as error:
                failed.append(f"/proc/sys/{name} could not be set to {wanted}: {error.strerror}")
                continue
        if wanted == before:
            del book.before[name]
    return failed


def _read(root: Path, name: str) -> int | None:
    """None: this kernel has no such limit."""
    try:
        return int((root / name).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def _opened(path: Path) -> Iterator[Ledger]:
    """The ledger, locked against other labs; written back, or removed when it says nothing."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            break
        os.close(descriptor)  # the lab that held the lock has removed the file meanwhile
    with os.fdopen(descriptor, "r+") as file:
        book = _decode(file.read())
        try:
            yield book
        finally:
            if book.before:
                file.seek(0)
                file.truncate()
                json.dump({"before": book.before, "needs": book.needs}, file)
                file.flush()
            else:
                path.unlink()


def _decode(text: str) -> Ledger:
    """An empty or damaged ledger is a new one: better a limit left raised than no lab at all."""
    try:
        raw: dict[str, Any] = json.loads(text)
        return Ledger(
            {str(name): int(value) for name, value in raw["before"].items()},
            {
                str(lab): {str(name): int(value) for name, value in needs.items()}
                for lab, needs in raw["needs"].items()
            },
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return Ledger()
