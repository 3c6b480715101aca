"""BGP passwords from files: a secretKeyRef is `<directory>/<name>/<key>`, as a mounted Secret lays it out."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from felix_like.model.bgp import SecretRef

log = logging.getLogger(__name__)

LONGEST = 4096
"""Octets read at most; a TCP MD5 key has 80 at most (tcp(7))."""


class SecretFiles:
    """Reads passwords; what cannot be read is absent, and said once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._said: dict[SecretRef, str] = {}

    def read(self, refs: Iterable[SecretRef]) -> dict[SecretRef, str]:
        """The passwords there are; one trailing newline, as editors leave it, is not part of them."""
        found: dict[SecretRef, str] = {}
        for ref in refs:
            try:
                found[ref] = self._read(ref)
                self._said.pop(ref, None)
            except (OSError, ValueError) as error:
                if self._said.get(ref) != str(error):
                    self._said[ref] = str(error)
                    log.warning("password %s/%s is not readable: %s", ref.name, ref.key, error)
        return found

    def _read(self, ref: SecretRef) -> str:
        for part in (ref.name, ref.key):
            # The reference comes from the datastore: it must not lead out of the directory.
            if not part or "/" in part or "\0" in part or part in (".", ".."):
                raise ValueError(f"{part!r} is not the name of a secret or of its key")
        path = self._directory / ref.name / ref.key
        with path.open("rb") as file:
            text = file.read(LONGEST + 1).decode("utf-8").removesuffix("\n").removesuffix("\r")
        if not text:
            raise ValueError(f"{path} is empty; an empty password would be none")
        return text
