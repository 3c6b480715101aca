"""The garbage collector's rhythm for processes that hold large tables of plain values."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Call when everything is imported.

    A RIB is many small objects without cycles; CPython's default looks through them every 700 allocations
    and takes half of the time of learning 100,000 paths (measured by tests/bench/rib.py).
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
