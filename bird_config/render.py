"""SpeakerConfig -> the text of exabgp.conf.

The template only lays out. Every value passes one of the filters below, and the environment refuses to
print anything that did not: a template that forgets a filter fails instead of printing a raw value.

ExaBGP 5.0.15 resolves backslash escapes in a line before it looks for quotes
(`exabgp/configuration/core/format.py`), and a quote of the other kind inside a quoted text is dropped.
So no quoting can carry a quote. Free text is therefore reduced to harmless characters, and a password
travels as base64 (`md5-base64 true`), which carries every octet.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from functools import cache

from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bird_config.document import SpeakerConfig
from felix_like.model.address import Address

TEMPLATE = "exabgp.conf.j2"


class Unrenderable(ValueError):
    """A value that must not appear in the file, or a template that prints one unfiltered."""


class Token(str):
    """Text that is safe in the speaker's syntax, as only the filters make it."""

    __slots__ = ()


def render(config: SpeakerConfig) -> str:
    """The bytes-to-be of exabgp.conf. Equal configs give equal text. Raises Unrenderable."""
    return _environment().get_template(TEMPLATE).render(config=config)


def address(value: object) -> Token:
    """An IP address in its canonical text."""
    if not isinstance(value, Address):
        raise Unrenderable(f"{value!r} is not an address")
    return Token(value)


def dotted_quad(value: object) -> Token:
    """A router ID."""
    text = str(value)
    try:
        parsed = Address.parse(text)
    except ValueError as error:
        raise Unrenderable(str(error)) from None
    if parsed.version != 4:
        raise Unrenderable(f"{text!r} is not a dotted quad")
    return Token(parsed)


def number(value: object) -> Token:
    """A whole number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Unrenderable(f"{value!r} is not a whole number of 0 or more")
    return Token(int(value))


def switch(value: object) -> Token:
    """true or false."""
    if not isinstance(value, bool):
        raise Unrenderable(f"{value!r} is not true or false")
    return Token("true" if value else "false")


def label(value: object) -> Token:
    """Free text as a quoted word: what is not a letter, a digit or one of `._:-` becomes `_`."""
    return Token(f'"{_harmless(value, limit=120)}"')


def remark(value: object) -> Token:
    """Free text inside a comment: one line, no escapes."""
    return Token(_harmless(value, limit=253))


def secret(value: object) -> Token:
    """A TCP MD5 key as quoted base64, for `md5-base64 true`."""
    if not isinstance(value, bytes) or not value:
        raise Unrenderable("a password must be octets, at least one")
    return Token(f'"{base64.b64encode(value).decode()}"')


def _harmless(value: object, *, limit: int) -> str:
    return re.sub(r"[^A-Za-z0-9._:-]", "_", str(value))[:limit]


FILTERS: dict[str, Callable[[object], Token]] = {
    "address": address,
    "dotted_quad": dotted_quad,
    "number": number,
    "switch": switch,
    "label": label,
    "remark": remark,
    "secret": secret,
}
"""All that a template may use."""


def _only_tokens(value: object) -> object:
    if not isinstance(value, Token):
        raise Unrenderable("the template prints a value that passed no filter")
    return value


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=PackageLoader("bird_config"),
        undefined=StrictUndefined,
        finalize=_only_tokens,
        autoescape=False,  # the syntax is not HTML; the filters escape
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    environment.filters.clear()
    environment.filters.update(FILTERS)
    environment.globals.clear()
    return environment
