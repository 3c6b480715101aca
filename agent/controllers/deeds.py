"""What the controllers do, told once: a log line, a count by reason; in a dry run what they would do."""

from __future__ import annotations

import logging
from collections import Counter

from agent.logs import plain

log = logging.getLogger("tortie.controllers")


class Deeds:
    """`deed` and `word` are of small fixed sets, for counting; `subject` and `reason` are for people."""

    def __init__(self, *, dry_run: bool = False) -> None:
        self.dry_run = dry_run
        self.done: Counter[tuple[str, str]] = Counter()
        """By deed and reason, since the process started. In a dry run it stays empty."""
        self.troubles: dict[str, str] = {}
        """Controller -> why it does not do its work, or a part of it, at the moment."""
        self.gauges: dict[str, float] = {}
        """What the last look found, by the name of the metric's sample."""
        self._told: dict[tuple[str, str], str] = {}

    def may(self, deed: str, subject: str, reason: str) -> bool:
        """False in a dry run, which says what it would do, once as long as the reason is the same."""
        if self.dry_run and self._told.get((deed, subject)) != reason:
            self._told[deed, subject] = reason
            log.info("would %s: %s: %s", deed.replace("-", " "), plain(subject), plain(reason))
        return not self.dry_run

    def did(self, deed: str, word: str, subject: str, reason: str, count: int = 1) -> None:
        self.done[deed, word] += count
        log.info("%s: %s: %s", deed.replace("-", " "), plain(subject), plain(reason))

    def trouble(self, controller: str, sentence: str | None) -> None:
        """None or empty: it works. Each sentence is said once."""
        if not sentence:
            if self.troubles.pop(controller, None) is not None:
                log.info("%s: works again", controller)
        elif self.troubles.get(controller) != sentence:
            self.troubles[controller] = sentence
            log.warning("%s: %s", controller, sentence)
