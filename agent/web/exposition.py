"""Prometheus' text format (version 0.0.4): families of samples, and one kind of histogram.

Own code, not prometheus-client: everything here is read from the agent's tables at the moment of the
scrape, so a registry would hold copies of it, and importing the client costs more memory than all of this.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]
"""Suffix of the family's name, labels, value."""


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    samples: tuple[Sample, ...]


def gauge(name: str, meaning: str, samples: Iterable[tuple[Labels, float]] | float) -> Family:
    return Family(name, "gauge", meaning, _samples(samples))


def counter(name: str, meaning: str, samples: Iterable[tuple[Labels, float]] | float) -> Family:
    return Family(name, "counter", meaning, _samples(samples))


def _samples(samples: Iterable[tuple[Labels, float]] | float) -> tuple[Sample, ...]:
    if isinstance(samples, int | float):
        return (("", {}, samples),)
    return tuple(("", labels, value) for labels, value in samples)


class Histogram:
    """Counts observations by size. Buckets are upper bounds, ascending."""

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self._bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, meaning: str) -> Family:
        samples: list[Sample] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            samples.append(("_bucket", {"le": number(bound)}, total))
        samples += [("_sum", {}, self._sum), ("_count", {}, total)]
        return Family(name, "histogram", meaning, tuple(samples))


def text(families: Iterable[Family]) -> str:
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += (
            f"{family.name}{suffix}{_labels(labels)} {number(value)}"
            for suffix, labels, value in family.samples
        )
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_quoted(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(value: str) -> str:
    return _escaped(value).replace('"', '\\"')
