"""The settings' file: KEY=VALUE per line, the quoting of a systemd EnvironmentFile (systemd.exec(5))."""

from __future__ import annotations

import re
from pathlib import Path

from agent.settings_values import SettingsError
from felix_like.datastore.keys import quoted

DEFAULT_FILE = Path("/etc/tortie/tortie.conf")
LIMIT = 1 << 20
"""Octets at most."""
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SINGLE = re.compile(r"'([^']*)'")


def read_file(path: Path, *, must_exist: bool) -> dict[str, str]:
    """The settings of a file; an empty value counts as not set. Raises SettingsError naming file and line."""
    try:
        with path.open("rb") as file:
            text = file.read(LIMIT + 1)
    except FileNotFoundError:
        if not must_exist:
            return {}
        raise SettingsError(
            f"TORTIE_CONFIG_FILE: there is no file {str(path)!r}; name an existing one or none"
        ) from None
    except OSError as error:
        raise SettingsError(f"TORTIE_CONFIG_FILE: {str(path)!r} cannot be read: {error.strerror}") from None
    if len(text) > LIMIT:
        raise SettingsError(
            f"TORTIE_CONFIG_FILE: {str(path)!r} is longer than {LIMIT} octets; it is not a settings file"
        )
    try:
        return parse(text.decode())
    except UnicodeDecodeError:
        raise SettingsError(f"TORTIE_CONFIG_FILE: {str(path)!r} is not UTF-8 text") from None
    except ValueError as error:
        raise SettingsError(f"{path} {error}") from None


def parse(text: str) -> dict[str, str]:
    """Read the lines. Raises ValueError that starts with "line N:"."""
    values: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        key, equals, rest = line.partition("=")
        key = key.strip()
        if not equals or not _KEY.fullmatch(key):
            # The line may hold half a password: only what stands before a "=" is shown.
            shown = quoted(key) if equals else "what stands there"
            raise ValueError(f"line {number}: {shown} is not KEY=VALUE; write one setting per line")
        value = _value(rest.strip(), f"line {number}: {key}")
        if value:
            values[key] = value
    return values


def _value(text: str, where: str) -> str:
    """Unquote. What is not in quotes is taken as it is."""
    if not text or text[0] not in "\"'":
        return text
    match = (_DOUBLE if text[0] == '"' else _SINGLE).fullmatch(text)
    if match is None:
        raise ValueError(f"{where}: the quotes do not match; put the whole value into one pair")
    if text[0] == "'":
        return match[1]
    return re.sub(r'\\(["\\`$])', r"\1", match[1])
