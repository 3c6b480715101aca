"""What the graph decided, for people: read from its own tables, never decided a second time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from felix_like.calc.outcome import PathView, PeerCounts, RibCounts
from felix_like.calc.routes import refuse_install
from felix_like.calc.tables import Tables
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import Desired, KernelNextHop
from felix_like.model.path import Attributes, Path
from felix_like.model.verdict import Refusal, Validity
from felix_like.rib.import_policy import is_reflection


def path_views(tables: Tables, prefix: Prefix) -> list[PathView]:
    paths = tables.paths.by_prefix.get(prefix, ())
    decision = tables.loc_rib.decision(paths)
    used = decision.multipath if decision is not None else ()
    steps = {id(path): step for path, step in decision.lost} if decision is not None else {}
    views = []
    for path in paths:
        best = decision is not None and path is decision.best
        step = tables.loc_rib.obstacle(path) or steps.get(id(path), "")
        rib = tables.paths.by_peer[path.peer]
        views.append(
            PathView(
                path=replace(path, stale=True) if prefix in rib.stale else path,
                best=best,
                used=any(path is other for other in used),
                step=step,
            )
        )
    return sorted(views, key=lambda v: (not v.best, not v.used, len(v.path.peer), bytes(v.path.peer)))


def explain(
    tables: Tables,
    desired: Desired | None,
    notes: list[str],
    prefix: Prefix,
    services: Iterable[str],
    device: Callable[[int], str],
) -> list[str]:
    """Lines from the datastore to the kernel and the peers; `notes` are the datastore's troubles, `services`
    what there is to say of services, `device` names an interface."""
    lines = [f"{prefix}: {tables.ownership.describe(prefix)}"]
    if desired is None:
        return [*lines, "nothing is calculated yet: the datastore has not been read"]
    lines += notes
    lines += services
    views = path_views(tables, prefix)
    for view in views:
        lines.extend(_path_lines(tables, view))
    if not views:
        lines.append("no peer announces it")
    lines.append(_route_line(tables, desired, prefix, any(view.used for view in views), device))
    lines.append(_advert_line(tables, prefix))
    if prefix not in desired.originated:
        lines.extend(_untold_lines(tables, prefix))
    return lines


def _path_lines(tables: Tables, view: PathView) -> Iterator[str]:
    path = view.path
    source = tables.importer.source(path.peer)
    sender = str(path.peer) if source.name == str(path.peer) else f"{source.name} ({path.peer})"
    stale = ", stale (kept until it is announced again)" if view.path.stale else ""
    yield f"path from {sender}: {_attributes(path.attributes)}{stale}"
    yield f"  origin validation: {path.origin.validity}: {path.origin.reason}"
    if view.best:
        yield "  best"
    elif view.used:
        yield f"  used beside the best (equal cost); not the best itself: {view.step}"
    elif tables.loc_rib.obstacle(path) is not None:
        yield f"  not used: {view.step}"
    else:
        yield f"  not used: another path has {view.step}"


def _attributes(attributes: Attributes) -> str:
    parts = [f"next hop {attributes.next_hop}", f"AS_PATH {as_path_text(attributes) or 'empty'}"]
    if attributes.local_pref is not None:
        parts.append(f"LOCAL_PREF {attributes.local_pref}")
    if attributes.med is not None:
        parts.append(f"MED {attributes.med}")
    if attributes.originator_id is not None:
        parts.append(f"ORIGINATOR_ID {attributes.originator_id}")
    return ", ".join(parts)


def as_path_text(attributes: Attributes) -> str:
    """AS numbers with spaces between; sets in braces, confederation segments in parentheses."""
    marks = {"sequence": "{}", "set": "{{{}}}", "confed-sequence": "({})", "confed-set": "[{}]"}
    return " ".join(marks[kind].format(" ".join(map(str, asns))) for kind, asns in attributes.as_path)


def _route_line(
    tables: Tables, desired: Desired, prefix: Prefix, selected: bool, device: Callable[[int], str]
) -> str:
    route = tables.kernel.wanted.get(prefix)
    if route is not None and route.kind == "blackhole":
        holding = tables.ownership.blocks.get(prefix)
        return f"route: blackhole, it is this node's own {holding.kind if holding is not None else 'block'}"
    if route is not None:
        return f"route: {', '.join(next_hop_text(hop, device) for hop in route.next_hops)}"
    if selected and (reason := refuse_install(prefix, desired, tables.exports.rules)):
        return f"route: none, {reason}"
    return "route: none"


def next_hop_text(hop: KernelNextHop, device: Callable[[int], str]) -> str:
    """As `ip route` writes it."""
    where = f"dev {device(hop.ifindex)}"
    return where if hop.gateway is None else f"via {hop.gateway} {where}"


def by_number(index: int) -> str:
    """An interface's name for those who know none."""
    return f"if{index}"


def _advert_line(tables: Tables, prefix: Prefix) -> str:
    told = tables.adj_rib_out.told(prefix)
    if not told:
        selected = tables.loc_rib.selected.get(prefix)
        reason = tables.exports.rules.refuse(prefix) if selected else None
        return f"advertised to nobody{': ' + reason if reason else ''}"
    return f"advertised to {_some(tables.importer.source(peer).name for peer in told)}"


def _untold_lines(tables: Tables, prefix: Prefix) -> Iterator[str]:
    """Who of those that might hear of a learned route does not, and why: a line for each reason."""
    best = next(iter(tables.loc_rib.selected.get(prefix, ())), None)
    if best is None or tables.exports.rules.refuse(prefix) is not None:
        return
    peers: dict[str, list[str]] = {}
    for peer, reason in tables.exports.untold(best):
        peers.setdefault(reason, []).append(tables.importer.source(peer).name)
    for reason, names in peers.items():
        yield f"not advertised to {_some(names)}: {reason}"


def _some(names: Iterable[str]) -> str:
    every = sorted(names)
    return ", ".join(every[:10]) + (f" and {len(every) - 10} more" if len(every) > 10 else "")


def kept_out(tables: Tables, path: Path) -> str | None:
    """Why a path is rejected; waiting for the datastore or a next hop is no rejection."""
    if path.rejection is not None:
        return path.rejection
    if not tables.paths.observing and path.origin.validity is Validity.INVALID:
        return path.origin.reason
    return None


def _passes_by(tables: Tables, path: Path) -> bool:
    """Whether a refused path is what reflectors send everybody all day, and nothing is lacking without it:
    our own route come back, or one that is in use by another path."""
    return is_reflection(path.rejection or "") and (
        path.attributes.next_hop in tables.importer.us.addresses or path.prefix in tables.loc_rib.selected
    )


def peer_counts(tables: Tables, peer: Address) -> PeerCounts:
    rib = tables.paths.by_peer.get(peer)
    advertised = tables.adj_rib_out.count(peer)
    if rib is None:
        return PeerCounts(advertised=advertised)
    paths = rib.paths.values()
    return PeerCounts(
        received=len(paths),
        accepted=sum(map(tables.paths.accepts, paths)),
        rejected=sum(kept_out(tables, path) is not None for path in paths),
        stale=len(rib.stale),
        advertised=advertised,
    )


def rib_counts(tables: Tables) -> RibCounts:
    by_validity = dict.fromkeys(Validity, 0)
    for rib in tables.paths.by_peer.values():
        for path in rib.paths.values():
            by_validity[path.origin.validity] += 1
    return RibCounts(
        prefixes=len(tables.paths.by_prefix),
        paths=sum(by_validity.values()),
        valid=by_validity[Validity.VALID],
        invalid=by_validity[Validity.INVALID],
        unknown=by_validity[Validity.UNKNOWN],
    )


def rejections(tables: Tables, limit: int) -> list[Path]:
    every = (path for rib in tables.paths.by_peer.values() for path in rib.paths.values())
    return list(islice((path for path in every if kept_out(tables, path) is not None), limit))


def peer_refusals(tables: Tables) -> Iterator[Refusal]:
    """What an operator should know of each peer: one sentence each, however much it sends."""
    for address, rib in sorted(tables.paths.by_peer.items()):
        source = tables.importer.source(address)
        if rib.over_limit:
            yield Refusal(
                f"peer {source.name}",
                f"it announces more than its {tables.importer.limit(source)} prefixes; {rib.over_limit} "
                "were left out. Correct the peer, or raise its limit "
                "(annotation tortie/prefix-limit on its BGPPeer)",
            )
        bad = [path for path in rib.paths.values() if kept_out(tables, path) and not _passes_by(tables, path)]
        if bad and source.peer is not None:
            first = min(bad, key=lambda path: path.prefix)
            more = f" (and {len(bad) - 1} more prefixes refused)" if len(bad) > 1 else ""
            yield Refusal(f"peer {source.name}", f"{first.prefix} refused: {kept_out(tables, first)}{more}")
