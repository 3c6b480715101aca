"""Put a checked file in place, atomically: stage beside the target, check, compare, rename.

At every moment the target holds either the old text or the new one, complete. The check sees the very
file that will be renamed. A text that fails it never reaches the target: the last good file stays, and
the refused one is kept beside it as `<name>.refused` for the operator to look at.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from bird_config.validator import Check, Unchecked
from felix_like.model.verdict import No

MODE = 0o600
"""The file holds passwords."""


@dataclass(frozen=True, slots=True)
class Published:
    """The target holds the text; `changed` says whether it did not before."""

    changed: bool


class Publisher:
    """Owns one target file. One publication runs at a time; callers hand over the newest text only."""

    def __init__(self, path: Path, check: Check) -> None:
        self._path = path
        self._staged = path.with_name(f".{path.name}.staged")
        self._refused = path.with_name(f"{path.name}.refused")
        self._check = check
        self._turn = asyncio.Lock()
        self._last_refusal: tuple[bytes, No] | None = None

    @property
    def path(self) -> Path:
        return self._path

    async def publish(self, text: str) -> Published | No:
        """Make the target hold `text`, if the speaker's parser accepts it.

        Equal bytes are not written and not checked again; a text that was just refused is refused again
        without a check, one that could not be checked is tried again. Never raises for what the file
        system or the check says: it is in the No.
        """
        content = text.encode()
        async with self._turn:
            try:
                return await self._publish(content)
            except OSError as error:
                return No(f"{self._path} cannot be written: {error}")

    async def _publish(self, content: bytes) -> Published | No:
        if await asyncio.to_thread(_holds, self._path, content):
            self._last_refusal = None
            return Published(changed=False)
        if self._last_refusal is not None and self._last_refusal[0] == content:
            return self._last_refusal[1]
        await asyncio.to_thread(_stage, self._staged, content)
        try:
            verdict = await self._check(self._staged)
        except Unchecked as error:
            await asyncio.to_thread(self._staged.unlink, missing_ok=True)
            return No(f"{error}; {self._path} keeps its last good text until a check succeeds")
        if isinstance(verdict, No):
            await asyncio.to_thread(self._staged.replace, self._refused)
            refusal = No(
                f"{verdict.reason}; {self._path} keeps its last good text, "
                f"the refused one is in {self._refused.name}"
            )
            self._last_refusal = (content, refusal)
            return refusal
        await asyncio.to_thread(self._rename)
        self._last_refusal = None
        return Published(changed=True)

    def _rename(self) -> None:
        self._staged.replace(self._path)
        self._refused.unlink(missing_ok=True)
        _sync_directory(self._path.parent)


def _holds(path: Path, content: bytes) -> bool:
    """Whether the file has these bytes and lets nobody else read them."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            return mode == MODE and file.read(len(content) + 1) == content
    except FileNotFoundError:
        return False


def _stage(path: Path, content: bytes) -> None:
    """Write a new file that only we can read and that is on the disk. A left-over of a crash goes first."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, MODE)  # whatever the umask says
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
