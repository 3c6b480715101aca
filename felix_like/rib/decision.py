"""The decision process of RFC 4271 section 9.1.2.2, with the additions of RFC 4456 section 9.

It works by elimination, as the RFC words it: each step removes what is not tied for best, so the
result depends neither on the order of the paths nor on their age. MED is compared inside the group of
one neighbouring AS only; because a step sees all paths at once this is what vendors call
deterministic-med. A stale path is not less preferred (RFC 4724 section 4.2 keeps it in use until it is
refreshed or swept).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from felix_like.model.address import Asn
from felix_like.model.path import Path
from felix_like.rib.session import dotted

DEFAULT_LOCAL_PREF = 100
MAX_NEXT_HOPS = 64
"""Next hops of one kernel route at most."""


class Candidate(NamedTuple):
    """A path that may be used, and what its peer adds to the comparison."""

    path: Path
    ebgp: bool
    router_id: int
    """The peer's, as a number."""
    interior_cost: int = 0
    """To the next hop: 0 on a connected network, 1 through a gateway (as BIRD sees kernel routes)."""


class Decision(NamedTuple):
    """Who won and why the others did not."""

    best: Path
    multipath: tuple[Path, ...]
    """Paths equal to the best through the interior cost: used together. The best is first."""
    lost: tuple[tuple[Path, str], ...]
    """Every other path with the step that decided against it (multipath members included: the step is
    why they are not *the* best, which is the one advertised)."""


def local_pref(candidate: Candidate) -> int:
    """LOCAL_PREF from an eBGP peer is ignored (RFC 4271 section 5.1.5)."""
    value = candidate.path.attributes.local_pref
    return DEFAULT_LOCAL_PREF if value is None or candidate.ebgp else value


def _med(candidate: Candidate) -> int:
    """A missing MED is the lowest possible (RFC 4271 section 9.1.2.2 c)."""
    return candidate.path.attributes.med or 0


def _router_id(candidate: Candidate) -> int:
    originator = candidate.path.attributes.originator_id
    return dotted(originator) if originator and not candidate.ebgp else candidate.router_id


def _cluster_length(candidate: Candidate) -> int:
    return 0 if candidate.ebgp else len(candidate.path.attributes.cluster_list)


Survivors = Callable[[Sequence[Candidate]], list[Candidate]]


def _lowest(key: Callable[[Candidate], int | tuple[int, bytes]]) -> Survivors:
    def survivors(candidates: Sequence[Candidate]) -> list[Candidate]:
        keys = [key(c) for c in candidates]
        least = min(keys)
        return [c for c, k in zip(candidates, keys, strict=True) if k == least]

    return survivors


def _lowest_med(candidates: Sequence[Candidate]) -> list[Candidate]:
    least: dict[Asn | None, int] = {}
    for candidate in candidates:
        group, med = candidate.path.attributes.neighbor_as, _med(candidate)
        least[group] = min(med, least.get(group, med))
    return [c for c in candidates if _med(c) == least[c.path.attributes.neighbor_as]]


STEPS: tuple[tuple[str, Survivors], ...] = (
    ("higher LOCAL_PREF", _lowest(lambda c: -local_pref(c))),
    ("shorter AS_PATH", _lowest(lambda c: c.path.attributes.as_path_length)),
    ("lower ORIGIN", _lowest(lambda c: int(c.path.attributes.origin))),
    ("lower MED", _lowest_med),
    ("eBGP over iBGP", _lowest(lambda c: 0 if c.ebgp else 1)),
    ("lower interior cost", _lowest(lambda c: c.interior_cost)),
)
"""What makes a path better. Paths that tie on all of these share the traffic."""

TIE_BREAKERS: tuple[tuple[str, Survivors], ...] = (
    ("lower router ID", _lowest(_router_id)),
    ("shorter CLUSTER_LIST", _lowest(_cluster_length)),
    ("lower peer address", _lowest(lambda c: (len(c.path.peer), bytes(c.path.peer)))),
)
"""Which of equally good paths is the one that is advertised."""


def decide(candidates: Iterable[Candidate]) -> Decision:
    """Choose among at least one candidate. Raises ValueError when there is none."""
    survivors = list(candidates)
    if not survivors:
        raise ValueError("no candidate to decide on")
    lost: list[tuple[Path, str]] = []
    survivors = _eliminate(survivors, STEPS, lost)
    equal = [c.path for c in survivors]
    best = _eliminate(survivors, TIE_BREAKERS, lost)[0].path
    others = sorted((p for p in equal if p is not best), key=lambda p: (len(p.peer), bytes(p.peer)))
    return Decision(best, (best, *others), tuple(lost))


def _eliminate(
    survivors: list[Candidate],
    steps: tuple[tuple[str, Survivors], ...],
    lost: list[tuple[Path, str]],
) -> list[Candidate]:
    for name, step in steps:
        if len(survivors) == 1:
            break
        left = step(survivors)
        if len(left) < len(survivors):
            kept = {id(c.path) for c in left}
            lost.extend((c.path, name) for c in survivors if id(c.path) not in kept)
            survivors = left
    return survivors
