"""The run directory: one agent at a time, and nobody else writes in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from agent.settings_values import SettingsError

LONGEST_SOCKET = 107
"""Octets of a unix socket's path at most (unix(7))."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Make the directory and hold it for this process. Raises SettingsError with one sentence.

    The lock is the kernel's: it goes with the process, however that ends.
    """
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        seen = path.stat()
    except OSError as error:
        raise SettingsError(f"TORTIE_RUN_DIR: {path} cannot be made: {error.strerror}") from None
    if seen.st_mode & stat.S_IWOTH:
        raise SettingsError(
            f"TORTIE_RUN_DIR: everyone may write in {path}, and so change the speaker's configuration; use a "
            f"directory of its own, or: chmod o-w {path}"
        )
    if seen.st_uid not in (0, os.geteuid()):
        raise SettingsError(
            f"TORTIE_RUN_DIR: {path} belongs to user {seen.st_uid}, who could change the speaker's "
            f"configuration; use a directory of its own, or: chown {os.geteuid()} {path}"
        )
    if len(os.fsencode(path / "speaker.sock")) > LONGEST_SOCKET:
        raise SettingsError(
            f"TORTIE_RUN_DIR: {path} is too long for sockets in it; use at most "
            f"{LONGEST_SOCKET - len('/speaker.sock')} octets"
        )
    try:
        lock = os.open(path / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SettingsError(f"TORTIE_RUN_DIR: {path} cannot be written: {error.strerror}") from None
    try:
        _lock(lock, path)
        yield
    finally:
        os.close(lock)


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        raise SettingsError(
            f"TORTIE_RUN_DIR: another tortie-agent{f' (process {holder})' if holder.isdigit() else ''} uses "
            f"{path}; end that one, or give this one a directory of its own"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
