"""Log lines: one event, one line, whatever a peer or a datastore value put into it."""

from __future__ import annotations

import logging
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LONGEST = 2000
"""Characters of a message at most."""


class OneLine(logging.Formatter):
    """Control characters in a message are written as escapes; only our own tracebacks take more lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = plain(record.message)
        return super().formatMessage(record)


def plain(text: str) -> str:
    """The text on one line, bounded, with nothing in it that could move a terminal's cursor."""
    if len(text) > LONGEST:
        text = text[:LONGEST] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def set_up_logging(level: int) -> None:
    """To stderr, where systemd and container runtimes look."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    # A line for each request to the Kubernetes API is for who looks for something.
    logging.getLogger("httpx").setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))
