"""Terminal text on standard input -> an SVG picture of it, for the README.

tortiectl lab up | python deploy/lab/picture.py '$ make lab' > deploy/lab/lab.svg
"""

from __future__ import annotations

import sys
from html import escape

CHARACTER, LINE, MARGIN = 7.8, 18, 16
"""Pixels; the font is monospaced and 13 pixels high."""


def picture(lines: list[str]) -> str:
    """One <text> per line, light on dark."""
    width = round(max(len(line) for line in lines) * CHARACTER + 2 * MARGIN)
    height = len(lines) * LINE + 2 * MARGIN
    rows = "\n".join(
        f'<text x="{MARGIN}" y="{MARGIN + LINE * number - 4}" fill="{colour(line)}">{escape(line)}</text>'
        for number, line in enumerate(lines, 1)
        if line
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n'
        f'<rect width="100%" height="100%" rx="8" fill="#16191f"/>\n'
        f'<g font-family="ui-monospace,Menlo,Consolas,monospace" font-size="13" xml:space="preserve">\n'
        f"{rows}\n</g>\n</svg>\n"
    )


def colour(line: str) -> str:
    if line.startswith("$"):
        return "#8fd0ff"
    if line.startswith("✓"):
        return "#9be49b"
    return "#d8dce3"


if __name__ == "__main__":
    sys.stdout.write(picture([*sys.argv[1:], *sys.stdin.read().rstrip("\n").split("\n")]))
