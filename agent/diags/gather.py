"""Items of an archive: each bounded in octets and seconds, none of them able to hold up the others."""

from __future__ import annotations

import os
import queue
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LARGEST = 4 << 20
"""Octets of one item."""
PATIENCE = 10.0
"""Seconds for one item."""
AT_ONCE = 4
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class Missing(Exception):
    """An item could not be had: the sentence says why."""


@dataclass(frozen=True, slots=True)
class Got:
    octets: bytes
    note: str = ""
    """What is odd about it: cut, a program's exit status."""


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    """Its path in the archive."""
    what: str
    """For the manifest."""
    get: Callable[[], Got]
    """Raises Missing, or whatever it likes."""
    patience: float = PATIENCE


@dataclass(slots=True)
class Gathered:
    """In the items' order."""

    got: dict[str, Got] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def gather(items: Sequence[Item], told: Callable[[str], None] = lambda _: None) -> Gathered:
    """Get them, a few at a time. A thread that hangs is left behind: it ends with the process."""
    results: queue.SimpleQueue[tuple[Item, Got | str]] = queue.SimpleQueue()
    waiting, running, done = deque(items), dict[str, float](), Gathered()
    by_name = {item.name: item for item in items}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            item = waiting.popleft()
            running[item.name] = time.monotonic()
            threading.Thread(target=_get, args=(item, results), name=item.name, daemon=True).start()
        try:
            item, result = results.get(timeout=0.2)
        except queue.Empty:
            pass
        else:
            if running.pop(item.name, None) is not None:
                told(item.name)
                if isinstance(result, Got):
                    done.got[item.name] = result
                else:
                    done.missing[item.name] = result
        now = time.monotonic()
        for name in [name for name, start in running.items() if now - start > by_name[name].patience + 1]:
            del running[name]
            done.missing[name] = f"it did not end within {by_name[name].patience:g} s"
    return Gathered(
        {item.name: done.got[item.name] for item in items if item.name in done.got},
        {item.name: done.missing[item.name] for item in items if item.name in done.missing},
    )


def _get(item: Item, results: queue.SimpleQueue[tuple[Item, Got | str]]) -> None:
    try:
        results.put((item, item.get()))
    except Missing as error:
        results.put((item, str(error)))
    except Exception as error:  # one item's surprise must not cost the archive
        results.put((item, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def text(words: str, limit: int = LARGEST) -> Got:
    """A text, cut at a line's end where it is too long."""
    octets = words.encode(errors="backslashreplace")
    if len(octets) <= limit:
        return Got(octets)
    kept = _whole_lines(octets[:limit])
    return Got(kept, f"cut: the first {len(kept)} of {len(octets)} octets")


def _whole_lines(octets: bytes | bytearray) -> bytes:
    return bytes(octets[: octets.rfind(b"\n") + 1])


def file(path: Path, limit: int = LARGEST, *, end: bool = False) -> Got:
    """A regular file, or its end. Raises Missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            size = os.fstat(descriptor).st_size
            if end and size > limit:
                stream.seek(size - limit)
            octets = stream.read(limit + 1)
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}") from None
    which = "last" if end else "first"
    if len(octets) <= limit and size <= limit:
        return Got(octets)
    # Whole lines: half a secret would not be known for one.
    octets = octets[octets.find(b"\n") + 1 :] if end else _whole_lines(octets[:limit])
    return Got(octets, f"cut: the {which} {len(octets)} of {size} octets")


def search_path() -> str:
    """Where programs are, for users without sbin on their own."""
    return f"{os.environ.get('PATH', '')}:{SBIN}"


def command(*words: str, seconds: float = PATIENCE, limit: int = LARGEST) -> Got:
    """What a program says on both its outputs. Raises Missing where it is not installed or says nothing."""
    program = shutil.which(words[0], path=search_path())
    if program is None:
        raise Missing(f"{words[0]} is not installed here")
    try:
        child = subprocess.Popen(
            [program, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "PAGER": "cat"},
        )
    except OSError as error:
        raise Missing(f"{words[0]} does not start: {error.strerror}") from None
    octets, why = _read(child, time.monotonic() + seconds, limit)
    if why:
        os.killpg(child.pid, signal.SIGKILL)
    try:
        status = child.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        status, why = 0, f"{why or 'it closed its output'}; it does not even end when it is killed"
    if why and not octets:
        raise Missing(f"'{' '.join(words)}' {why}")
    return Got(octets, why or (f"'{' '.join(words)}' ended with status {status}" if status else ""))


def _read(child: subprocess.Popen[bytes], deadline: float, limit: int) -> tuple[bytes, str]:
    """What came, and why no more was read."""
    assert child.stdout is not None
    octets = bytearray()
    with selectors.DefaultSelector() as selector, child.stdout:
        selector.register(child.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            part = os.read(child.stdout.fileno(), 1 << 16)
            if not part:
                return bytes(octets), ""
            octets += part
            if len(octets) > limit:
                return _whole_lines(octets[:limit]), f"cut after {limit} octets"
    return _whole_lines(octets), "did not end in time and was killed"
