"""What `lab up` says while it works: one line per step, alive on a terminal, plain in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

EVERY = 2.0
"""Seconds between two lines of news where lines cannot be rewritten."""


def counted(number: int, thing: str) -> str:
    """`1 pod`, `2 pods`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


class Step:
    """A step under way; `news` tells how far it is."""

    def __init__(self, out: TextIO, label: str) -> None:
        self._out = out
        self._label = label
        self._live = out.isatty()
        self._start = time.monotonic()
        self._told = self._start
        self._width = 0
        self._last = ""
        self.result = ""
        """Shown behind the step when it is done."""
        if self._live:
            self._write(f"  {label} …")

    def news(self, text: str) -> None:
        now = time.monotonic()
        if not self._last:
            self._last = text  # where it begins is no news
        if self._live and now - self._told > 0.1:
            self._told = now
            self._write(f"  {self._label} … {text}")
        elif not self._live and now - self._told > EVERY and text != self._last:
            self._told, self._last = now, text
            self._out.write(f"  {self._label}: {text}\n")
            self._out.flush()

    def done(self, failed: bool = False) -> None:
        took = time.monotonic() - self._start
        mark = "✗" if failed else "✓"
        tail = f": {self.result}" if self.result else ""
        line = f"{mark} {self._label}{tail}  ({took:.1f} s)"
        if self._live:
            self._write(line)
            self._out.write("\n")
        else:
            self._out.write(f"{line}\n")
        self._out.flush()

    def _write(self, text: str) -> None:
        self._out.write("\r" + text.ljust(self._width))
        self._width = len(text)
        self._out.flush()


@contextmanager
def step(label: str, out: TextIO | None = None) -> Iterator[Step]:
    """Time a step and say how it ended; an exception marks it as failed and goes on its way."""
    current = Step(out or sys.stdout, label)
    try:
        yield current
    except BaseException:
        current.done(failed=True)
        raise
    current.done()
