"""The `tortiectl` command: every subcommand is imported when it is called, as each TAB starts us."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import Any

import click

COMMANDS = {
    "get": (
        "agent.cli.get:get",
        "Show nodes, pools, peers, configurations, policies, profiles and endpoints.",
    ),
    "node": ("agent.cli.node:node", "Show the state of a node: its sessions and what is wrong."),
    "routes": ("agent.cli.routes:routes", "Show the routes an agent knows, and every path to one prefix."),
    "explain": ("agent.cli.routes:explain", "Say why a prefix is routed as it is, or not at all."),
    "top": ("agent.cli.top:top", "Show all nodes in one table, live."),
    "watch": ("agent.cli.watch:watch", "Show what happens on the nodes, line by line, until Ctrl-C."),
    "ipam": ("agent.cli.ipam:ipam", "Show how the pools' addresses are used."),
    "lab": ("agent.lab.commands:lab", "Build and play with a cluster in network namespaces."),
    "completion": ("agent.cli.completion:completion", "Print a shell's completion script."),
    "version": ("agent.cli.version:version", "Show the versions of tortiectl, the agent and the cluster."),
}
"""Name -> (where it is, its one-line help: what `--help` shows without importing it)."""


class LazyGroup(click.Group):
    """A group whose commands are imported one by one."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


EPILOG = """\b
Examples:
  tortiectl get nodes -o wide
  tortiectl node status
  tortiectl routes 10.65.0.0/26
  tortiectl lab up

\b
Where etcd is comes from ETCD_ENDPOINTS and the other variables calicoctl
reads, or from /etc/calico/calicoctl.cfg; where the agent is, from
TORTIE_RUN_DIR (default /run/tortie)."""


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from agent.cli.version import own_version

        click.echo(f"tortiectl {own_version()}")
        ctx.exit()


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    help="calicoctl's configuration file [default: /etc/calico/calicoctl.cfg].",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="tortiectl's version.",
)
@click.pass_context
def tortiectl(ctx: click.Context, config: str | None) -> None:
    """Look at Tortie: what the datastore holds, and what each node makes of it."""
    ctx.obj = config


def main() -> None:
    """Entry point. A closed pipe (`tortiectl routes | head`) ends it without a word."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # our ticks and dashes must not fail in an old locale
    try:
        run: Any = tortiectl
        run(prog_name="tortiectl")
    except BrokenPipeError:
        # What is still buffered cannot be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
