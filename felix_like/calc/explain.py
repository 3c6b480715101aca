"""What the graph decided, for people: read from its own tables, never decided a second time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from felix_like.calc.outcome import PathView, PeerCounts, RibCounts
from felix_like.calc.routes import refuse_install
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import KernelNextHop
from felix_like.model.path import Attributes, Path
from felix_like.model.verdict import Refusal, Validity

if TYPE_CHECKING:
    from felix_like.calc.graph import CalcGraph


def path_views(graph: CalcGraph, prefix: Prefix) -> list[PathView]:
    paths = graph.paths_table.by_prefix.get(prefix, ())
    decision = graph.loc_rib.decision(paths)
    used = decision.multipath if decision is not None else ()
    steps = {id(path): step for path, step in decision.lost} if decision is not None else {}
    views = []
    for path in paths:
        best = decision is not None and path is decision.best
        step = graph.loc_rib.obstacle(path) or steps.get(id(path), "")
        rib = graph.paths_table.by_peer[path.peer]
        views.append(
            PathView(
                path=replace(path, stale=True) if prefix in rib.stale else path,
                best=best,
                used=any(path is other for other in used),
                step=step,
            )
        )
    return sorted(views, key=lambda v: (not v.best, not v.used, len(v.path.peer), bytes(v.path.peer)))


def explain(graph: CalcGraph, prefix: Prefix) -> list[str]:
    """Lines from the datastore to the kernel and the peers."""
    lines = [f"{prefix}: {graph.ownership.describe(prefix)}"]
    if graph.desired is None:
        return [*lines, "nothing is calculated yet: the datastore has not been read"]
    for state, reason in (("locked", graph.frozen), ("stale", graph.stale)):
        if reason is not None:
            lines.append(f"the datastore is {state}: {reason}")
    views = path_views(graph, prefix)
    for view in views:
        lines.extend(_path_lines(graph, view))
    if not views:
        lines.append("no peer announces it")
    lines.append(_route_line(graph, prefix, any(view.used for view in views)))
    lines.append(_advert_line(graph, prefix))
    return lines


def _path_lines(graph: CalcGraph, view: PathView) -> Iterator[str]:
    path = view.path
    source = graph.importer.source(path.peer)
    sender = str(path.peer) if source.name == str(path.peer) else f"{source.name} ({path.peer})"
    stale = ", stale (kept over the peer's restart)" if view.path.stale else ""
    yield f"path from {sender}: {_attributes(path.attributes)}{stale}"
    yield f"  origin validation: {path.origin.validity}: {path.origin.reason}"
    if view.best:
        yield "  best"
    elif view.used:
        yield f"  used beside the best (equal cost); not the best itself: {view.step}"
    elif graph.loc_rib.obstacle(path) is not None:
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


def _route_line(graph: CalcGraph, prefix: Prefix, selected: bool) -> str:
    assert graph.desired is not None
    route = graph.kernel.wanted.get(prefix)
    if route is not None and route.kind == "blackhole":
        return "route: blackhole, it is this node's own block"
    if route is not None:
        return f"route: via {', '.join(map(next_hop_text, route.next_hops))}"
    if selected and (reason := refuse_install(prefix, graph.desired, graph.exports.rules)):
        return f"route: none, {reason}"
    return "route: none"


def next_hop_text(hop: KernelNextHop) -> str:
    where = f"interface {hop.ifindex}"
    return where if hop.gateway is None else f"{hop.gateway} {where}"


def _advert_line(graph: CalcGraph, prefix: Prefix) -> str:
    told = graph.adj_rib_out.told(prefix)
    if not told:
        selected = graph.loc_rib.selected.get(prefix)
        reason = graph.exports.rules.refuse(prefix) if selected else None
        return f"advertised to nobody{': ' + reason if reason else ''}"
    names = sorted(graph.importer.source(peer).name for peer in told)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"advertised to {', '.join(names[:10])}{more}"


def kept_out(graph: CalcGraph, path: Path) -> str | None:
    """Why a path is rejected; waiting for the datastore or a next hop is no rejection."""
    if path.rejection is not None:
        return path.rejection
    if not graph.paths_table.observing and path.origin.validity is Validity.INVALID:
        return path.origin.reason
    return None


def peer_counts(graph: CalcGraph, peer: Address) -> PeerCounts:
    rib = graph.paths_table.by_peer.get(peer)
    advertised = graph.adj_rib_out.count(peer)
    if rib is None:
        return PeerCounts(advertised=advertised)
    paths = rib.paths.values()
    return PeerCounts(
        received=len(paths),
        accepted=sum(map(graph.paths_table.accepts, paths)),
        rejected=sum(kept_out(graph, path) is not None for path in paths),
        stale=len(rib.stale),
        advertised=advertised,
    )


def rib_counts(graph: CalcGraph) -> RibCounts:
    by_validity = dict.fromkeys(Validity, 0)
    for rib in graph.paths_table.by_peer.values():
        for path in rib.paths.values():
            by_validity[path.origin.validity] += 1
    return RibCounts(
        prefixes=len(graph.paths_table.by_prefix),
        paths=sum(by_validity.values()),
        valid=by_validity[Validity.VALID],
        invalid=by_validity[Validity.INVALID],
        unknown=by_validity[Validity.UNKNOWN],
    )


def rejections(graph: CalcGraph, limit: int) -> list[Path]:
    every = (path for rib in graph.paths_table.by_peer.values() for path in rib.paths.values())
    return list(islice((path for path in every if kept_out(graph, path) is not None), limit))


def peer_refusals(graph: CalcGraph) -> Iterator[Refusal]:
    """What an operator should know of each peer: one sentence each, however much it sends."""
    for address, rib in sorted(graph.paths_table.by_peer.items()):
        source = graph.importer.source(address)
        if rib.over_limit:
            yield Refusal(
                f"peer {source.name}",
                f"it announces more than its {graph.importer.limit(source)} prefixes; {rib.over_limit} "
                "were left out. Correct the peer, or raise its limit "
                "(annotation tortie/prefix-limit on its BGPPeer)",
            )
        bad = [path for path in rib.paths.values() if kept_out(graph, path) is not None]
        if bad and source.peer is not None:
            first = min(bad, key=lambda path: path.prefix)
            more = f" (and {len(bad) - 1} more prefixes refused)" if len(bad) > 1 else ""
            yield Refusal(f"peer {source.name}", f"{first.prefix} refused: {kept_out(graph, first)}{more}")
