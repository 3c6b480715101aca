"""What must not leave the host is taken out where it is read; what is known to be secret, wherever it shows.

Two nets: each source is cleaned by its own grammar, and every text once more of each secret that this host's
settings and files hold, in whatever spelling.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

MARK = "(redacted)"
SHORTEST = 4
"""Characters below which a secret is only taken out at its source: `1` is in every text."""
_CONF = re.compile(r"(\bmd5-password\s+)(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s;]+)")
_SOCKETS = re.compile(r"\bmd5keys:\S+")
_USER_INFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@\"']+@", re.IGNORECASE)
_BEARER = re.compile(r"(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_PEM_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_ASSIGNED = re.compile(
    r"((?:password|passwd|secret|token|apikey|api_key|private_key)[\"']?\s*[=:]\s*)"
    r"(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;\"'{}\[\]()]+)",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"password|passwd|secret|token|credential|(?<![a-z])key$|(?<=[a-z])Key$", re.IGNORECASE
)
_PLACE = ("_FILE", "_DIR")
_OWN_ANNOTATIONS = ("tortie/", "projectcalico.org/")
_REFERENCE = frozenset({"name", "key", "optional"})


class Redactor:
    """`known`: secrets of this host, as they are."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        spellings: set[str] = set()
        for secret in known:
            if len(secret) >= SHORTEST:
                spellings |= _spellings(secret)
        # The longest first: one secret may be the beginning of another.
        ordered = sorted(spellings, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def text(self, text: str) -> str:
        """Any text: known secrets, keys of sockets, credentials in URLs and headers, `password=…`."""
        if self._known is not None:
            text = self._known.sub(MARK, text)
        text = _PEM_KEY.sub(MARK, text)
        text = _SOCKETS.sub(f"md5keys:{MARK}", text)
        text = _CONF.sub(rf"\g<1>{MARK}", text)
        text = _USER_INFO.sub(rf"\g<1>{MARK}@", text)
        text = _BEARER.sub(rf"\g<1>{MARK}", text)
        return _ASSIGNED.sub(rf"\g<1>{MARK}", text)


def is_secret(name: str) -> bool:
    """Whether a setting's or a field's value may be one; the path of a file is none."""
    return not name.endswith(_PLACE) and _SECRET_NAME.search(name) is not None


def setting(name: str, value: str) -> str:
    return MARK if value and is_secret(name) else _USER_INFO.sub(rf"\g<1>{MARK}@", value)


def resource(value: Any, name: str = "", hidden: bool = False) -> Any:
    """A resource as JSON, without secret fields, what is below them, and annotations that are not ours."""
    hidden = hidden or is_secret(name)
    if isinstance(value, Mapping):
        if name in ("secretKeyRef", "passwordSecretRef"):
            return {k: v if k in _REFERENCE else MARK for k, v in value.items()}
        if name == "annotations":
            return {k: v if str(k).startswith(_OWN_ANNOTATIONS) else MARK for k, v in value.items()}
        return {key: resource(one, str(key), hidden) for key, one in value.items()}
    if isinstance(value, list):
        return [resource(one, name, hidden) for one in value]
    return MARK if hidden and value is not None and not isinstance(value, bool) else value


def passwords_of_conf(text: str) -> set[str]:
    """The MD5 passwords of an exabgp.conf, as written there and as they are."""
    found = set()
    for match in _CONF.finditer(text):
        word = match[2].strip("\"'")
        found.add(word)
        try:
            found.add(base64.b64decode(word, validate=True).decode())
        except (binascii.Error, UnicodeDecodeError, ValueError):
            continue
    return found


def secrets_of(values: Mapping[str, str]) -> set[str]:
    """Those among settings, by their names; and users' passwords in URLs."""
    found = {value.strip() for name, value in values.items() if is_secret(name)}
    for value in values.values():
        found |= {word for match in re.finditer(r"://([^\s/@]+)@", value) for word in match[1].split(":", 1)}
    return found


def contents(files: Collection[Path]) -> set[str]:
    """What password files hold; one that cannot be read holds nothing that we could tell."""
    found = set()
    for path in files:
        try:
            with path.open("rb") as file:
                found.add(file.read(4096).decode().strip())
        except (OSError, UnicodeDecodeError):
            continue
    return found


def _spellings(secret: str) -> set[str]:
    octets = secret.encode()
    return {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        base64.b64encode(octets).decode(),
        quote(secret, safe=""),
        octets.hex(),
    }
