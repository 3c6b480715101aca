"""The answers of agent.sock as whole documents, over a real graph with recording neighbours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.answers import Listing
from agent.calculation import Calculation
from agent.follow import StoreState
from agent.sessions import Sessions
from agent.sinks.kernel import KernelStatus
from agent.sinks.speaker import LinkState
from agent.speaker.protocol import PeerState, PeerUp
from agent.status import Status, interface_name, own_version
from felix_like.calc.snapshot import Change
from felix_like.model.address import Asn
from felix_like.model.bgp import ClusterInformation
from felix_like.model.desired import PROTO_BGP, KernelNextHop, Route, RouteKey
from felix_like.model.verdict import Refusal
from tests.support.hands import Hands, calculation, changes
from tests.support.rib_world import ip, net, path
from tests.support.stories import block_on, key_of, node, pool

A, B, C = (node(name, f"192.0.2.{i}/24") for i, name in enumerate("abc", 1))
PODS = pool("pods", "10.1.0.0/16")
X, Y, Z = "10.1.0.0/26", "10.1.0.64/26", "10.1.0.128/26"
B4, C4 = "192.0.2.2", "192.0.2.3"
UNIX = 1_800_000_000.0


@dataclass
class Kernel:
    """A kernel that has what it is told to have."""

    report: KernelStatus = KernelStatus(  # noqa: RUF009
        wanted=2, installed=2, failed=(), conflicts=(), inherited=0, repaired=0, messages=2
    )
    states: Mapping[str, str] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    wanted: Mapping[RouteKey, Route] = field(default_factory=dict)

    def status(self) -> KernelStatus:
        return self.report

    def state(self, key: RouteKey) -> str:
        return self.states.get(str(key.prefix), "not wanted")

    def installed(self, key: RouteKey) -> Route | None:
        return self.routes.get(str(key.prefix))


@dataclass
class Link:
    state: LinkState


@dataclass
class Conf:
    refusals: tuple[Refusal, ...] = ()
    settled: bool = True


@dataclass
class Store:
    state: StoreState


@dataclass
class Agent:
    calculation: Calculation
    sessions: Sessions
    kernel: Kernel
    link: Link
    conf: Conf
    store: Store
    own: tuple[Refusal, ...] = ()
    kubernetes: dict[str, Any] | None = None

    @property
    def status(self) -> Status:
        parts: dict[str, Any] = {
            "calculation": self.calculation,
            "follower": self.store,
            "sessions": self.sessions,
            "kernel": self.kernel,
            "link": self.link,
            "conf": self.conf,
        }
        return Status(
            node="a",
            started=UNIX - 100,
            endpoints=("http://e1:2379", "http://e2:2379"),
            wall=lambda: UNIX,
            own=lambda: self.own,
            kubernetes=lambda: self.kubernetes,
            **parts,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer as it arrives at the other end of the socket."""
        answer = self.status.answer(question)
        if isinstance(answer, Listing):
            answer = {answer.name: list(answer.entries)}
        return json.loads(json.dumps(answer))  # type: ignore[no-any-return]


def unicast(prefix: str, *hops: tuple[str | None, int]) -> Route:
    via = tuple(KernelNextHop(ip(gateway) if gateway else None, index) for gateway, index in hops)
    return Route(RouteKey(net(prefix)), "unicast", 186, via)


@pytest.fixture
def agent() -> Agent:
    """Node a with a block of its own, b's session up with one good and one wrong path, c's not."""
    hands = Hands()
    made = calculation(hands)
    sessions = Sessions(made, hands.clock)
    graph = made.graph
    graph.tick(hands.now)
    graph.on_datastore(changes(A, B, C, PODS, block_on("a", Z), block_on("b", X), block_on("c", Y)), True)
    for event in (
        PeerState(ip(B4), "Established", UNIX - 60),
        PeerState(ip(C4), "Connect", UNIX - 50, "Connection refused"),
        PeerUp(ip(B4), "192.0.2.2", Asn(64512), 90, (4,)),
    ):
        sessions._tell(event)
    graph.on_learned(ip(B4), path(B4, local_pref=100, communities=("65000:1",)), [net(X), net(Y)])
    graph.on_next_hops(hands.ask(graph.take().resolve))
    graph.take()
    return Agent(
        made,
        sessions,
        Kernel(
            states={X: "installed", Z: "installed"},
            routes={X: unicast(X, (B4, 1)), Z: Route(RouteKey(net(Z)), "blackhole", PROTO_BGP)},
        ),
        Link(LinkState("connected", UNIX - 80, 4711, "5.0.15", "cafe")),
        Conf(),
        Store(StoreState("in-sync", UNIX - 90)),
    )


WRONG = "10.1.0.64/26 is a block of node c"


def test_the_whole_status(agent: Agent) -> None:
    whole = agent.ask(ask="status")
    [refusal] = whole.pop("refusals")
    assert refusal["subject"] == "peer b"
    assert refusal["reason"].startswith(f"{Y} refused: ")
    assert whole == {
        "version": 1,
        "node": "a",
        "time": UNIX,
        "agent": {"pid": os.getpid(), "started": UNIX - 100, "version": own_version()},
        "datastore": {
            "state": "in-sync",
            "since": UNIX - 90,
            "revision": 1,
            "endpoints": ["http://e1:2379", "http://e2:2379"],
            "reason": "",
        },
        "kubernetes": None,
        "speaker": {
            "state": "connected",
            "since": UNIX - 80,
            "pid": 4711,
            "exabgp": "5.0.15",
            "reason": "",
            "configured": True,
        },
        "peers": [
            {
                "address": B4,
                "port": 179,
                "type": "node-to-node mesh",
                "name": "Mesh_192_0_2_2",
                "asn": 64512,
                "state": "Established",
                "since": UNIX - 60,
                "info": "",
                "remote_node": "b",
                "received": 2,
                "accepted": 1,
                "rejected": 1,
                "stale": 0,
                "advertised": 1,
            },
            {
                "address": C4,
                "port": 179,
                "type": "node-to-node mesh",
                "name": "Mesh_192_0_2_3",
                "asn": 64512,
                "state": "Connect",
                "since": UNIX - 50,
                "info": "Connection refused",
                "remote_node": "c",
                "received": 0,
                "accepted": 0,
                "rejected": 0,
                "stale": 0,
                "advertised": 1,
            },
        ],
        "routes": {
            "wanted": 2,
            "installed": 2,
            "inherited": 0,
            "repaired": 0,
            "failed": [],
            "conflicts": [],
        },
        "rib": {"prefixes": 2, "paths": 2, "valid": 1, "invalid": 1, "unknown": 0},
        "origin_validation": "enforce",
    }


def test_what_the_kernel_did_not_take_is_named(agent: Agent) -> None:
    agent.kernel.report = KernelStatus(
        wanted=3,
        installed=1,
        failed=((RouteKey(net(X)), "the kernel says: Nexthop has invalid gateway"),),
        conflicts=((RouteKey(net(Y)), "a foreign route has the same prefix"),),
        shadowed=((RouteKey(net(Z)), "packets follow a route of BIRD's"),),
        inherited=4,
        repaired=5,
        messages=9,
    )
    assert agent.ask(ask="status")["routes"] == {
        "wanted": 3,
        "installed": 1,
        "inherited": 4,
        "repaired": 5,
        "failed": [{"prefix": X, "reason": "the kernel says: Nexthop has invalid gateway"}],
        "conflicts": [
            {"prefix": Y, "reason": "a foreign route has the same prefix"},
            {"prefix": Z, "reason": "packets follow a route of BIRD's"},
        ],
    }


def test_every_refusal_is_there_once(agent: Agent) -> None:
    one, other = Refusal("Node a", "not registered yet: etcd denies it"), Refusal("kernel routes", "no")
    agent.own = (one, other, one)
    agent.conf.refusals = (other, Refusal("exabgp.conf", "line 7"))
    subjects = [refusal["subject"] for refusal in agent.ask(ask="status")["refusals"]]
    assert subjects == ["Node a", "kernel routes", "peer b", "exabgp.conf"]


@pytest.mark.parametrize(
    ("kubernetes", "said"),
    [
        (None, ""),
        ({"state": "idle"}, ""),
        ({"state": "in-sync"}, "Kubernetes: in-sync; "),
        ({"state": "stale", "reason": "connection refused"}, "Kubernetes: stale; "),
    ],
)
def test_the_line_for_service_managers(agent: Agent, kubernetes: dict[str, Any] | None, said: str) -> None:
    agent.kubernetes = kubernetes
    assert agent.status.sentence().startswith(f"etcd: in-sync; {said}1 of 2 sessions established; ")


def test_a_stale_datastore_says_why(agent: Agent) -> None:
    agent.store.state = StoreState("stale", UNIX - 5, "no endpoint answers")
    datastore = agent.ask(ask="status")["datastore"]
    assert (datastore["state"], datastore["reason"]) == ("stale", "no endpoint answers")


def test_a_locked_datastore_is_frozen_while_it_answers(agent: Agent) -> None:
    locked = ClusterInformation(datastore_ready=False)
    agent.calculation.graph.on_datastore([Change(key_of(locked), locked, 2)], True)
    datastore = agent.ask(ask="status")["datastore"]
    assert datastore["state"] == "frozen"
    assert "datastoreReady is false" in datastore["reason"]
    agent.store.state = StoreState("stale", UNIX - 5, "no endpoint answers")
    assert agent.ask(ask="status")["datastore"]["state"] == "stale"


def test_before_the_datastore_answers_there_is_a_status_too(agent: Agent) -> None:
    agent.calculation = calculation(Hands())
    agent.store.state = StoreState("connecting", UNIX - 1)
    whole = agent.ask(ask="status")
    assert (whole["datastore"]["state"], whole["datastore"]["revision"], whole["peers"]) == (
        "connecting",
        0,
        [],
    )


def test_a_session_is_as_last_heard_while_the_speaker_is_away(agent: Agent) -> None:
    agent.link.state = LinkState("down", UNIX - 3, reason="the speaker closed the connection")
    b, c = agent.ask(ask="status")["peers"]
    assert b["state"] == "Established"
    assert b["info"] == c["info"] == "as last heard, the speaker is away"


def test_a_peer_of_which_the_speaker_never_spoke(agent: Agent) -> None:
    agent.sessions._states.clear()
    b, _ = agent.ask(ask="status")["peers"]
    assert (b["state"], b["since"], b["info"]) == ("Idle", UNIX - 80, "the speaker has not been told yet")
    agent.link.state = LinkState("down", UNIX - 3, reason="cannot reach it")
    b, _ = agent.ask(ask="status")["peers"]
    assert (b["since"], b["info"]) == (UNIX - 3, "the speaker is away")


def test_a_learned_route_with_all_that_is_known_of_it(agent: Agent) -> None:
    [entry] = agent.ask(ask="routes", prefix=X)["routes"]
    [found] = entry.pop("paths")
    reason = found.pop("reason")
    assert "b" in reason
    assert entry == {"prefix": X, "kind": "learned", "kernel": "installed", "via": [f"via {B4} dev lo"]}
    assert found == {
        "peer": B4,
        "peer_name": "b",
        "next_hop": B4,
        "as_path": "",
        "local_pref": 100,
        "med": None,
        "origin": "IGP",
        "communities": ["65000:1"],
        "validity": "valid",
        "rejection": None,
        "stale": False,
        "best": True,
        "step": "",
    }


def test_a_route_that_is_kept_out_says_why(agent: Agent) -> None:
    [entry] = agent.ask(ask="routes", prefix=Y)["routes"]
    [found] = entry["paths"]
    assert (entry["kernel"], entry["via"]) == ("not wanted", [])
    assert (found["validity"], found["best"]) == ("invalid", False)
    assert found["reason"]
    assert found["step"]


def test_an_own_block_is_local(agent: Agent) -> None:
    assert agent.ask(ask="routes", prefix=Z) == {
        "routes": [{"prefix": Z, "kind": "local", "kernel": "installed", "via": ["blackhole"], "paths": []}]
    }


def test_all_routes_in_order_and_none_that_is_unknown(agent: Agent) -> None:
    assert [entry["prefix"] for entry in agent.ask(ask="routes")["routes"]] == [X, Y, Z]
    assert agent.ask(ask="routes", prefix="10.9.0.0/16") == {"routes": []}


def test_several_next_hops_and_interfaces_that_went_away(agent: Agent) -> None:
    agent.kernel.routes = {X: unicast(X, (B4, 1), (None, 999_999))}
    [entry] = agent.ask(ask="routes", prefix=X)["routes"]
    assert entry["via"] == [f"via {B4} dev lo", "dev if999999"]


def test_who_compares_gets_the_wanted_kernel_routes_in_the_kernels_own_terms(agent: Agent) -> None:
    one, two = unicast(X, (B4, 1), (None, 7)), Route(RouteKey(net(Z)), "blackhole", 186)
    agent.kernel.wanted, agent.kernel.routes = {one.key: one, two.key: two}, {Z: two}
    assert agent.ask(ask="kernel")["kernel"] == [
        {
            "prefix": X,
            "metric": 1024,
            "table": 254,
            "protocol": 186,
            "kind": "unicast",
            "next_hops": [{"gateway": B4, "interface": 1}, {"gateway": None, "interface": 7}],
            "installed": False,
        },
        {
            "prefix": Z,
            "metric": 1024,
            "table": 254,
            "protocol": 186,
            "kind": "blackhole",
            "next_hops": [],
            "installed": True,
        },
    ]


def test_an_explanation_ends_with_the_kernel(agent: Agent) -> None:
    told = agent.ask(ask="explain", prefix=X)
    assert told["prefix"] == X
    assert told["lines"][0].startswith(f"{X}: ")
    assert told["lines"][-1] == f"kernel: installed, via {B4} dev lo"
    assert f"route: via {B4} dev {interface_name(2)}" in told["lines"], "a name, not a number"
    assert agent.ask(ask="explain", prefix="10.9.0.0/16")["lines"][-1] == "kernel: not wanted"
    pod = X.partition("/")[0]
    assert agent.ask(ask="explain", prefix=pod)["lines"][-1].startswith(f"covered by {X} (")


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"ask": None},
        {"ask": "everything"},
        {"ask": ["status"]},
        {"ask": "explain"},
        {"ask": "explain", "prefix": 7},
        {"ask": "routes", "prefix": 7},
        {"ask": "routes", "prefix": None},
        {"prefix": X},
    ],
)
def test_a_question_nobody_can_answer_names_those_one_can(agent: Agent, question: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r'^ask "status", "routes" .* or "kernel"'):
        agent.status.answer(question)


@pytest.mark.parametrize(
    "text", ["", "10.1.0.0/33", "::/129", "node-1", "10.1.0.0/26; rm", "\ud800", "1" * 4000], ids=ascii
)
@pytest.mark.parametrize("ask", ["routes", "explain"])
def test_what_is_no_prefix_gets_a_sentence(agent: Agent, ask: str, text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        agent.status.answer({"ask": ask, "prefix": text})
