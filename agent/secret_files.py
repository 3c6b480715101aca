"""BGP passwords from files: a secretKeyRef is `<directory>/<name>/<key>`, as a mounted Secret lays it out."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from felix_like.datastore.keys import quoted
from felix_like.model.bgp import SecretRef
from felix_like.model.verdict import Refusal

log = logging.getLogger(__name__)

LONGEST = 4096
"""Octets of a password at most; a TCP MD5 key has 80 at most (tcp(7))."""


class SecretFiles:
    """Reads passwords; what cannot be read is absent, and said once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._said: dict[SecretRef, str] = {}
        self._unusable: tuple[Refusal, ...] = ()

    def read(self, refs: Collection[SecretRef]) -> dict[SecretRef, str]:
        """The passwords there are."""
        found, problems = self.look(refs)
        self.say(problems)
        return found

    def say(self, problems: Mapping[SecretRef, str]) -> None:
        """Log why passwords are missing, each reason once."""
        for ref, problem in problems.items():
            if self._said.get(ref) != problem:
                log.warning("%s is not there: %s", _subject(ref), problem)
        self._said = dict(problems)

    def look(self, refs: Collection[SecretRef]) -> tuple[dict[SecretRef, str], dict[SecretRef, str]]:
        """The passwords there are, and why the others are not."""
        found: dict[SecretRef, str] = {}
        problems: dict[SecretRef, str] = {}
        unusable: list[SecretRef] = []
        for ref in refs:
            try:
                found[ref] = self._read(ref)
                continue
            except OSError as error:
                problems[ref] = f"{quoted(str(self._directory / ref.name / ref.key), 400)}: {error.strerror}"
                absent = isinstance(error, FileNotFoundError)
            except ValueError as error:
                problems[ref], absent = str(error), False
            if not absent:
                unusable.append(ref)
        self._unusable = tuple(sorted(Refusal(_subject(ref), problems[ref]) for ref in unusable))
        return found, problems

    def refusals(self) -> tuple[Refusal, ...]:
        """What lies where a password was looked for, and is none: who asks for it can only say "missing"."""
        return self._unusable

    def _read(self, ref: SecretRef) -> str:
        for part in (ref.name, ref.key):
            # The reference comes from the datastore: it must not lead out of the directory.
            if not part or "/" in part or "\0" in part or part in (".", ".."):
                raise ValueError(f"{part!a} is not the name of a secret or of its key")
        path = self._directory / ref.name / ref.key
        return password(_octets(path), str(path))


def _subject(ref: SecretRef) -> str:
    return f"password {quoted(f'{ref.name}/{ref.key}')}"


def password(octets: bytes, subject: str) -> str:
    """A password as it is stored; one trailing newline, as editors leave it, is not part of it.

    Raises ValueError with a sentence that starts with `subject` and quotes nothing of it.
    """
    if len(octets) > LONGEST:
        raise ValueError(f"{subject} is longer than {LONGEST} octets; a TCP MD5 key has 80 at most")
    try:
        text = octets.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:  # whose own sentence would quote the password
        raise ValueError(f"{subject} is not UTF-8 text") from None
    if not text:
        raise ValueError(f"{subject} is empty; an empty password would be none")
    return text


def _octets(path: Path) -> bytes:
    """The content of a regular file. A pipe or a device would keep the caller waiting: refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is not a regular file")
        return os.read(descriptor, LONGEST + 1)
    finally:
        os.close(descriptor)
