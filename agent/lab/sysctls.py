"""Limits of the whole machine that a large lab runs into; raised only then, put back by `lab down`.

`gc_thresh3` bounds the neighbour table of *all* namespaces together: a 50-node mesh needs 2,450 entries
per address family and the kernel's default is 1,024; beyond it the table overflows and nothing converges.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PROC = Path("/proc/sys")


def needed(nodes: int, pods: int) -> dict[str, int]:
    """Setting (a path below /proc/sys) -> the least that a lab of so many nodes, and pods on each, needs."""
    neighbours = nodes * nodes + nodes * (2 * pods + 2) + 256
    return {
        "net/ipv4/neigh/default/gc_thresh3": 2 * neighbours,
        "net/ipv6/neigh/default/gc_thresh3": 2 * neighbours,
        "net/ipv4/neigh/default/gc_thresh2": neighbours,
        "net/ipv6/neigh/default/gc_thresh2": neighbours,
        "fs/inotify/max_user_instances": 64 + 2 * nodes,
    }


def too_low(settings: Mapping[str, int], root: Path = PROC) -> dict[str, str]:
    """The present values of what must be raised; a limit this kernel does not have is left out."""
    before: dict[str, str] = {}
    for setting, least in settings.items():
        try:
            value = (root / setting).read_text().strip()
        except OSError:
            continue
        if int(value) < least:
            before[setting] = value
    return before


def write(values: Mapping[str, int | str], root: Path = PROC) -> list[str]:
    """Write settings; returns a sentence for each that could not be written."""
    failed = []
    for setting, value in values.items():
        try:
            (root / setting).write_text(str(value))
        except OSError as error:
            failed.append(f"/proc/sys/{setting} could not be set to {value}: {error.strerror}")
    return failed
