"""How `tortiectl` says no: one sentence on stderr and exit status 1."""

from __future__ import annotations

import click


class Failed(click.ClickException):
    """The command could not do what was asked: who, what, what to do. Exit status 1."""

    def format_message(self) -> str:
        return printable(self.message)


def printable(text: str) -> str:
    """The text with control characters written as escapes: what it shows came from etcd or from peers."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def warn(sentence: str) -> None:
    """Something was left out; the command goes on."""
    click.echo(f"Warning: {printable(sentence)}", err=True)
