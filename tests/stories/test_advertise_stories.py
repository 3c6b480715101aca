"""Stories of what node `a` (192.0.2.1, fd00::1) announces and blackholes."""

from __future__ import annotations

from felix_like.calc.snapshot import Malformed
from felix_like.model.address import Prefix
from felix_like.model.bgp import ClusterInformation, PrefixAdvertisement
from felix_like.model.block import AffinityState
from tests.support.stories import (
    CalcWorld,
    affinity,
    block,
    block_on,
    configuration,
    every_telling,
    node,
    play,
    pool,
    scene,
)

A = node("a", "192.0.2.1/24", "fd00::1/64")
POOL = pool("pods", "10.1.0.0/16")
POOL6 = pool("pods6", "fd00:10::/64")
CIDR = "10.1.0.0/26"
CIDR6 = "fd00:10::/122"
OURS = {"originated": {CIDR: "192.0.2.1"}, "blackholes": {CIDR}}

MOVE = (
    scene(A, POOL),
    scene(A, POOL, affinity("a", CIDR, AffinityState.PENDING)),
    scene(A, POOL, affinity("a", CIDR, AffinityState.PENDING), block(CIDR, "a")),
    scene(A, POOL, block_on("a"), **OURS),
    scene(A, POOL, affinity("a", CIDR, AffinityState.PENDING_DELETION), block(CIDR, "a")),
    scene(A, POOL, affinity("a", CIDR, AffinityState.PENDING_DELETION), block(CIDR, None)),
    scene(A, POOL, block_on("b")),
    scene(
        A,
        POOL,
        block_on("b"),
        affinity("a", CIDR),
        refusals=[
            (
                "IPAM block 10.1.0.0/26: this node has an affinity to it, but the block belongs to node b; "
                "it is left out"
            )
        ],
    ),
    scene(
        A,
        POOL,
        affinity("a", CIDR),
        block(CIDR, None),
        refusals=[
            (
                "IPAM block 10.1.0.0/26: this node has an affinity to it, but the block belongs to no node; "
                "it is left out"
            )
        ],
    ),
    scene(A, POOL, affinity("a", CIDR), **OURS),
)


@every_telling
def test_a_block_is_claimed_given_up_and_claimed_by_another(telling, order):
    play(telling(MOVE), order, CalcWorld())


HIDDEN = "IPAM block 10.1.0.0/26: not advertised: IPPool pods has disableBGPExport"
OUTSIDE = "it lies outside every IP pool; it is left out. Create the pool, or release the block"
EXPORT = (
    scene(A, POOL, block_on("a"), **OURS),
    scene(
        A, pool("pods", "10.1.0.0/16", disable_bgp_export=True), block_on("a"),
        blackholes={CIDR}, refusals=[HIDDEN],
    ),
    scene(A, block_on("a"), refusals=[f"IPAM block 10.1.0.0/26: {OUTSIDE}"]),
    scene(A, pool("pods", "10.1.0.0/16", disabled=True), block_on("a"), **OURS),
    scene(A, pool("pods", "10.1.0.0/16", block_size=28), block_on("a"), **OURS),
    scene(A, pool("pods", "10.1.0.32/27", block_size=28), block_on("a"),
          refusals=[f"IPAM block 10.1.0.0/26: {OUTSIDE}"]),
)  # fmt: skip


@every_telling
def test_a_pool_decides_what_leaves_the_node(telling, order):
    play(telling(EXPORT), order, CalcWorld())


def overlap(loser: str, cidr: str, winner: str, winning: str) -> str:
    return (
        f"IPPool {loser}: its CIDR {cidr} overlaps IPPool {winner} ({winning}), which counts instead. "
        "Delete one of them"
    )


INNER = pool("inner", "10.1.0.0/24", disable_bgp_export=True)
POOL_IN_POOL = (
    scene(A, POOL, block_on("a"), **OURS),
    scene(
        A, POOL, pool("inner", "10.1.0.0/24"), block_on("a"),
        refusals=[overlap("inner", "10.1.0.0/24", "pods", "10.1.0.0/16")], **OURS,
    ),
    scene(
        A, POOL, INNER, block_on("a"), blackholes={CIDR},
        refusals=[
            "IPAM block 10.1.0.0/26: not advertised: IPPool inner has disableBGPExport",
            overlap("inner", "10.1.0.0/24", "pods", "10.1.0.0/16"),
        ],
    ),
    scene(
        A, POOL, pool("copy", "10.1.0.0/16", disable_bgp_export=False), block_on("a"),
        refusals=[overlap("pods", "10.1.0.0/16", "copy", "10.1.0.0/16")], **OURS,
    ),
    scene(
        A, INNER, block_on("a"), blackholes={CIDR},
        refusals=["IPAM block 10.1.0.0/26: not advertised: IPPool inner has disableBGPExport"],
    ),
)  # fmt: skip


@every_telling
def test_a_pool_inside_a_pool(telling, order):
    play(telling(POOL_IN_POOL), order, CalcWorld())


LENT = "10.1.7.3/32"
BORROWED = (
    scene(A, POOL, block_on("b", "10.1.7.0/26")),
    scene(
        A, POOL, block_on("b", "10.1.7.0/26", borrowed={"10.1.7.3": "a", "10.1.7.4": "c"}),
        originated={LENT: "192.0.2.1"},
    ),
    scene(
        A, POOL, block("10.1.7.0/26", None, {"10.1.7.3": "a"}), block_on("a"),
        originated={CIDR: "192.0.2.1", LENT: "192.0.2.1"}, blackholes={CIDR},
    ),
    scene(
        A, pool("pods", "10.1.0.0/16", disable_bgp_export=True),
        block_on("b", "10.1.7.0/26", borrowed={"10.1.7.3": "a"}),
        refusals=[
            HIDDEN.replace("/26:", "/26, borrowed address 10.1.7.3:").replace("10.1.0.0", "10.1.7.0")
        ],
    ),
    scene(
        A, block_on("b", "10.1.7.0/26", borrowed={"10.1.7.3": "a"}),
        refusals=[f"IPAM block 10.1.7.0/26: borrowed addresses are not advertised: {OUTSIDE}"],
    ),
    scene(A, POOL, block_on("a", "10.1.7.0/26"), originated={"10.1.7.0/26"}, blackholes={"10.1.7.0/26"}),
)  # fmt: skip


@every_telling
def test_borrowed_addresses_go_out_as_host_routes(telling, order):
    play(telling(BORROWED), order, CalcWorld())


SINGLES = pool("singles", "10.2.0.0/24", block_size=32)
NO_IPV6 = "IPAM block fd00:10::/122: not advertised: this node has no IPv6 address to be the next hop"
FAMILIES = (
    scene(
        A, POOL, POOL6, block_on("a"), block_on("a", CIDR6),
        originated={CIDR: "192.0.2.1", CIDR6: "fd00::1"}, blackholes={CIDR, CIDR6},
    ),
    scene(
        node("a", "192.0.2.9"), POOL, POOL6, block_on("a"), block_on("a", CIDR6),
        originated={CIDR: "192.0.2.9"}, blackholes={CIDR, CIDR6}, refusals=[NO_IPV6],
    ),
    scene(A, SINGLES, block_on("a", "10.2.0.7/32"), originated={"10.2.0.7/32"}),
    scene(
        A, pool("all", "0.0.0.0/0"), affinity("a", "0.0.0.0/0"),
        refusals=["IPAM block 0.0.0.0/0: /0 is no size of a block (20 to 32); it is left out"],
    ),
    scene(
        A, pool("wide", "192.0.0.0/16"), block_on("a", "192.0.2.0/26"), originated={"192.0.2.0/26"},
        refusals=[
            ("IPAM block 192.0.2.0/26: no blackhole route: the node address 192.0.2.1 lies in it and would "
            "be cut off. Nodes' addresses must lie outside the IP pools")
        ],
    ),
)  # fmt: skip


@every_telling
def test_both_families_single_addresses_and_what_must_never_be_blackholed(telling, order):
    play(telling(FAMILIES), order, CalcWorld())


def advertised(cidr: str, *communities: str) -> PrefixAdvertisement:
    return PrefixAdvertisement(cidr=Prefix.parse(cidr), communities=communities)


COMMUNITIES = (
    scene(A, POOL, block_on("a"), **OURS),
    scene(
        A, POOL, block_on("a"), block_on("a", "10.1.200.0/26"),
        configuration(prefix_advertisements=(
            advertised("10.1.0.0/17", "64512:100", "64512:20", "64512:1:2"),
            advertised("10.1.0.0/16", "64512:100", "64512:3"),
            advertised("10.9.0.0/16", "64512:9"),
        )),
        originated={
            CIDR: "192.0.2.1 64512:3 64512:20 64512:100 64512:1:2",
            "10.1.200.0/26": "192.0.2.1 64512:3 64512:100",
        },
        blackholes={CIDR, "10.1.200.0/26"},
    ),
    scene(
        A, POOL, block_on("a"),
        configuration(prefix_advertisements=(advertised("10.1.0.0/16", "64512:100"),)),
        configuration("node.a", prefix_advertisements=(advertised("10.1.0.0/16", "64512:7", "a'; no"),)),
        configuration("node.b", prefix_advertisements=(advertised("10.1.0.0/16", "64512:8"),)),
        originated={CIDR: "192.0.2.1 64512:7"}, blackholes={CIDR},
        refusals=[
            ("BGPConfiguration node.a: prefixAdvertisement 10.1.0.0/16: \"a'; no\" is no community and left "
            "out. Use a:b with numbers to 65535, a:b:c with numbers to 4294967295, or a community's name")
        ],
    ),
)  # fmt: skip


@every_telling
def test_communities_of_prefix_advertisements(telling, order):
    play(telling(COMMUNITIES), order, CalcWorld())


LOCKED = (
    "the datastore is locked (ClusterInformation default: datastoreReady is false); "
    "what was right before stays until it is unlocked"
)
READY = (
    scene(A, POOL, block_on("a"), **OURS),
    scene(A, POOL, block_on("a"), ClusterInformation(), **OURS),
    scene(A, POOL, block_on("a"), ClusterInformation(datastore_ready=False), frozen=LOCKED, **OURS),
    scene(A, POOL, ClusterInformation(datastore_ready=False), frozen=LOCKED),
    scene(A, POOL, block_on("a"), ClusterInformation(datastore_ready=True), **OURS),
)


@every_telling
def test_the_datastore_is_locked_and_unlocked(telling, order):
    play(telling(READY), order, CalcWorld())


ABSENT = "Node a: this node has no (usable) Node resource in the datastore: no session is made"
BAD_POOL = Malformed("IPPool pods", "spec.cidr is missing")
BROKEN = (
    scene(A, POOL, block_on("a"), **OURS),
    scene(POOL, block_on("a"), blackholes={CIDR}, refusals=[ABSENT]),
    scene(
        A, BAD_POOL, block_on("a"),
        refusals=[f"IPAM block 10.1.0.0/26: {OUTSIDE}", "IPPool pods: spec.cidr is missing"],
    ),
    scene(A, POOL, block_on("a"), **OURS),
)  # fmt: skip


@every_telling
def test_broken_values_are_repaired(telling, order):
    play(telling(BROKEN), order, CalcWorld())


FOREIGN = tuple(
    scene(A, POOL, block_on("a"), block_on(owner, "10.1.8.0/26", in_use=used), **OURS)
    for owner, used in (("b", 1), ("b", 2), ("c", 0))
)


@every_telling
def test_other_nodes_blocks_change_nothing_here(telling, order):
    play(telling(FOREIGN), order, CalcWorld())
