"""What the kernel is, and how it is set: forwarding, filters, tables that fill up, the pods' gateway."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.check.finding import Finding, fail, ok, unseen, warn
from agent.check.netlink import POD_GATEWAY, Link, Network
from agent.check.proc import Proc
from felix_like.model.address import Address

OLDEST = (4, 20)
"""Linux that filters route dumps itself (NETLINK_GET_STRICT_CHK), as the agent asks it to."""
GATEWAYS_OF_OTHER_FAMILY = (5, 2)
"""Linux that takes IPv4 routes with IPv6 next hops (RFC 8950)."""
NEARLY_FULL = 0.8
SPARE_NEIGHBOURS = 256


@dataclass(frozen=True, slots=True)
class Place:
    """What the kernel's settings are measured against."""

    ipv4: Address | None
    """This node's address; None: none, or unknown."""
    ipv6: Address | None
    wants_ipv6: bool | None
    """The node has an IPv6 address, or there are IPv6 pools; None: etcd did not say."""
    nodes: int | None
    """In the cluster; None: etcd did not say."""


def check(proc: Proc, network: Network, place: Place, md5: Callable[[], str]) -> Iterator[Finding]:
    """`md5` says why TCP MD5 does not work here, or nothing."""
    yield version(proc.text("sys", "kernel", "osrelease") or "")
    if why := md5():
        yield fail("TCP MD5", why, "BGP passwords need a kernel built with CONFIG_TCP_MD5SIG")
    else:
        yield ok("TCP MD5", "the kernel has it (BGP passwords)")
    if proc.sysctl("net/ipv4/fib_multipath_hash_policy") is None:
        yield warn(
            "multipath",
            "the kernel has no IPv4 multipath",
            "routes with several next hops need CONFIG_IP_ROUTE_MULTIPATH",
        )
    else:
        yield ok("multipath", "the kernel has it (ECMP)")
    yield from forwarding(proc, place)
    yield from reverse_path(proc, network, place)
    yield from pod_gateway(proc, network)
    yield from mtu(network, place)
    yield conntrack(proc)
    yield from neighbours(proc, place)


def version(text: str) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", text)
    if numbers is None:
        return unseen("kernel", "/proc/sys/kernel/osrelease cannot be read")
    found = (int(numbers[1]), int(numbers[2]))
    if found < OLDEST:
        return fail(
            "kernel", f"Linux {text}", "Tortie needs 4.20 or newer (route dumps that the kernel filters)"
        )
    if found < GATEWAYS_OF_OTHER_FAMILY:
        return warn("kernel", f"Linux {text}", "IPv4 routes with IPv6 next hops (RFC 8950) need 5.2 or newer")
    return ok("kernel", f"Linux {text}")


def tcp_md5() -> str:
    """Set a key on a socket that is thrown away. Why it did not work, or nothing."""
    # struct tcp_md5sig (linux/tcp.h): sockaddr_storage, flags, prefix length, key length, ifindex, key
    peer = struct.pack("=H2x4s", socket.AF_INET, socket.inet_aton("192.0.2.1"))
    request = struct.pack("=128sBBHi80s", peer, 0, 0, 5, 0, b"probe")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, 14, request)  # TCP_MD5SIG
        except OSError as error:
            return f"the kernel does not take a TCP MD5 key ({error.strerror})"
    return ""


def forwarding(proc: Proc, place: Place) -> Iterator[Finding]:
    if proc.sysctl("net/ipv4/ip_forward") == 1:
        yield ok("IPv4 forwarding", "on")
    else:
        yield fail(
            "IPv4 forwarding", "off: no packet of a pod leaves or enters", _set("net.ipv4.ip_forward", 1)
        )
    value = proc.sysctl("net/ipv6/conf/all/forwarding")
    if value == 1:
        yield ok("IPv6 forwarding", "on")
    elif place.wants_ipv6 is None:
        yield warn("IPv6 forwarding", "off", "needed if there is an IPv6 pool; etcd did not say")
    elif not place.wants_ipv6:
        yield ok("IPv6 forwarding", "off; not needed: no IPv6 address, no IPv6 pool")
    elif value is None:
        yield fail("IPv6 forwarding", "the kernel runs without IPv6", "start it without ipv6.disable=1")
    else:
        yield fail(
            "IPv6 forwarding",
            "off: no IPv6 packet of a pod leaves or enters",
            _set("net.ipv6.conf.all.forwarding", 1)
            + " (a host that takes its default route from router advertisements needs accept_ra=2 with it)",
        )


def uplinks(network: Network, place: Place) -> list[Link]:
    """The interfaces that other nodes are behind: with the node's addresses, or a default route."""
    found = {link.name: link for a in (place.ipv4, place.ipv6) if (link := network.holder(a)) is not None}
    by_name = {link.name: link for link in network.links}
    for route in network.routes:
        if route.prefix.is_default and route.kind == "unicast" and route.device in by_name:
            found.setdefault(route.device, by_name[route.device])
    return [link for link in found.values() if link.name != "lo"]


def reverse_path(proc: Proc, network: Network, place: Place) -> Iterator[Finding]:
    links = uplinks(network, place)
    if not links:
        yield warn(
            "uplink",
            "no interface has the node's address, and there is no default route",
            "other nodes cannot be reached: look at 'ip address' and 'ip route'",
        )
    everywhere = proc.sysctl("net/ipv4/conf/all/rp_filter") or 0
    for link in links:
        mode = max(everywhere, proc.sysctl(f"net/ipv4/conf/{link.name}/rp_filter") or 0)
        words = {0: "off", 1: "strict", 2: "loose"}.get(mode, str(mode))
        if mode == 1:
            yield warn(
                "rp_filter",
                f"{link.name} is strict (1): what comes by another way (two routers, ECMP) is dropped",
                "if there is another way, set it to 2 (loose): net.ipv4.conf.{all,INTERFACE}.rp_filter",
            )
        else:
            yield ok("rp_filter", f"{link.name} is {words} ({mode})")
        if not link.up:
            yield fail("uplink", f"{link.name} is down or has no carrier", "look at the cable and 'ip link'")


def pod_gateway(proc: Proc, network: Network) -> Iterator[Finding]:
    """The kernel answers a pod's ARP for 169.254.1.1 only with a unicast route to it by another device."""
    pods = [
        link.name for link in network.pod_links if proc.sysctl(f"net/ipv4/conf/{link.name}/proxy_arp") == 1
    ]
    if network.to_pod_gateway and network.to_pod_gateway not in pods:
        yield ok("pods' gateway", f"{POD_GATEWAY} is routed by {network.to_pod_gateway}: proxy ARP answers")
        return
    found = f"no unicast route towards {POD_GATEWAY}, so the kernel's proxy ARP stays silent"
    todo = "give this host an IPv4 default route (any router will do; 'unreachable' will not)"
    if pods:
        yield fail("pods' gateway", f"{found}: {len(pods)} pods have no gateway", todo)
    else:
        yield warn("pods' gateway", f"{found}; there are no pods yet", todo)


def mtu(network: Network, place: Place) -> Iterator[Finding]:
    links, pods = uplinks(network, place), network.pod_links
    if not links or not pods:
        return
    least = min(links, key=lambda link: link.mtu)
    larger = [link for link in pods if link.mtu > least.mtu]
    if larger:
        yield warn(
            "MTU",
            f"{len(larger)} of {len(pods)} pod interfaces (first {larger[0].name}: {larger[0].mtu}) have "
            f"more than uplink {least.name} ({least.mtu})",
            'large packets vanish where ICMP is filtered: set the pods\' MTU (CNI configuration, "mtu")',
        )
    else:
        yield ok("MTU", f"uplink {least.name} {least.mtu}, pods at most {max(link.mtu for link in pods)}")


def conntrack(proc: Proc) -> Finding:
    count = proc.sysctl("net/netfilter/nf_conntrack_count")
    most = proc.sysctl("net/netfilter/nf_conntrack_max")
    if count is None or not most:
        return ok("conntrack", "not in use")
    found = f"{count} of {most} entries"
    if count >= NEARLY_FULL * most:
        return warn(
            "conntrack",
            f"{found}: when it is full, new connections are dropped",
            "raise net.netfilter.nf_conntrack_max, or find who opens them ('conntrack -S')",
        )
    return ok("conntrack", found)


def neighbours(proc: Proc, place: Place) -> Iterator[Finding]:
    """One limit for all namespaces of the machine; a full table looks like hosts that do not answer."""
    for version, table in ((4, "arp_cache"), (6, "ndisc_cache")):
        if version == 6 and place.wants_ipv6 is False:
            continue
        name = f"net/ipv{version}/neigh/default/gc_thresh3"
        most = proc.sysctl(name)
        check = f"IPv{version} neighbours"
        if most is None:
            yield unseen(check, "gc_thresh3 is shown in the machine's own network namespace only")
            continue
        entries, overflows = _cache(proc.text("net", "stat", table))
        found = f"{entries} entries, {most} at most"
        dotted = name.replace("/", ".")
        if overflows:
            yield warn(
                check,
                f"{found}; the table has overflowed {overflows} times since the start",
                f"raise {dotted}",
            )
        elif place.nodes is not None and most < 2 * place.nodes + SPARE_NEIGHBOURS:
            yield warn(
                check,
                f"{found}, little for {place.nodes} nodes",
                f"raise {dotted} to {2 * place.nodes + SPARE_NEIGHBOURS} or more",
            )
        elif entries >= NEARLY_FULL * most:
            yield warn(check, f"{found}: nearly full", f"raise {dotted}")
        else:
            yield ok(check, found)


def _cache(text: str | None) -> tuple[int, int]:
    """Entries and overflows of /proc/net/stat/*_cache: a line per CPU, the entries the same in each."""
    lines = (text or "").splitlines()
    if len(lines) < 2:
        return 0, 0
    column = {name: i for i, name in enumerate(lines[0].split())}
    rows = [[int(word, 16) for word in line.split()] for line in lines[1:]]
    full = column.get("table_fulls")
    return rows[0][column["entries"]], sum(row[full] for row in rows) if full is not None else 0


def _set(name: str, value: int) -> str:
    return f"sysctl -w {name}={value}, and a file in /etc/sysctl.d so that it stays"
