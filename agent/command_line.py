"""tortie-agent's command line: it has none but --help and --version; settings come from elsewhere."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from agent.settings import table

WIDTH = 100


def read_command_line(arguments: Sequence[str] | None, version: str) -> None:
    """Return when the agent is to start. SystemExit: 0 after --help or --version, 2 for anything else."""
    parser = argparse.ArgumentParser(
        prog="tortie-agent",
        description="Follows Calico's etcd and keeps this node's routes and BGP sessions as it says.\n"
        "Runs until SIGTERM or SIGINT; routes and sessions stay behind it.",
        epilog=settings_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tortie-agent {version}")
    parser.parse_args(arguments)


def settings_text() -> str:
    """The table of settings for a terminal."""
    lines = ["settings, from the environment or the file that TORTIE_CONFIG_FILE names:"]
    for setting in table():
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
