"""A group of commands whose help says what each is for in whole sentences: click cuts them with dots."""

from __future__ import annotations

import click


class Group(click.Group):
    """As click's own, but for the list of commands in `--help`."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        named = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [
            (name, command.get_short_help_str(limit=1000))
            for name, command in named
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
