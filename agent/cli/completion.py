"""`tortiectl completion`: the shell's script, which asks us for the words."""

from __future__ import annotations

import click

EPILOG = """\b
Examples:
  source <(tortiectl completion bash)                                this shell
  tortiectl completion bash > /etc/bash_completion.d/tortiectl       every bash
  tortiectl completion zsh > "${fpath[1]}/_tortiectl"
  tortiectl completion fish > ~/.config/fish/completions/tortiectl.fish
"""


@click.command(epilog=EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    # click's own source() first runs bash to check its version; printing a text needs no bash.
    maker = kind(ctx.find_root().command, {}, "tortiectl", "_TORTIECTL_COMPLETE")
    click.echo(maker.source_template % maker.source_vars())
