"""The daemons' command line: none but --help and --version; settings come from elsewhere."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from agent.settings import Setting, table

WIDTH = 100
AGENT = (
    "Follows Calico's etcd and keeps this node's routes and BGP sessions as it says.\n"
    "Runs until SIGTERM or SIGINT; routes and sessions stay behind it."
)


def read_command_line(
    arguments: Sequence[str] | None,
    version: str,
    *,
    prog: str = "tortie-agent",
    description: str = AGENT,
    settings: Sequence[Setting] | None = None,
) -> None:
    """Return when the program is to start. SystemExit: 0 after --help or --version, 2 for anything else."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=settings_text(table() if settings is None else settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{prog} {version}")
    parser.parse_args(arguments)


def settings_text(settings: Sequence[Setting] | None = None) -> str:
    """The table of settings for a terminal."""
    lines = ["settings, from the environment or the file that TORTIE_CONFIG_FILE names:"]
    for setting in table() if settings is None else settings:
        default = f" Default: {setting.default}." if setting.default not in ("", "see meaning") else ""
        lines.append(f"  {setting.name}")
        lines += textwrap.wrap(
            setting.meaning.replace("`", "") + default,
            WIDTH,
            initial_indent="      ",
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
    return "\n".join(lines).replace("%", "%%")
