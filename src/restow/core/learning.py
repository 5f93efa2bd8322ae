"""What nodes and links can carry, learned from what jobs do anyway. Links as they are declared count until then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from restow.cluster import Link, Node
from restow.core.record import Record
from restow.messages import RankSwitched
from restow.placement import is_scattered, moved_ranks, nodes_of

RATE = 0.2  # of a node's local rate, from each report: the last ten reports or so count
LINK_RATE = 0.5  # of a link's, from each transfer: they are few, and each is long
BYTES_MIN = 4_000_000  # a transfer of less is latency and says nothing about a rate


def within(nodes: Mapping[str, Node], record: Record) -> Node | None:
    """The node on which a whole gang lies, with what two ranks there exchange per second."""
    rate, placement = record.job.profile.local_bytes_per_s, record.job.placement
    if rate <= 0 or not placement or is_scattered(placement):
        return None
    node = nodes[placement[0].node]
    return replace(node, local_bytes_per_s=node.local_bytes_per_s + RATE * (rate - node.local_bytes_per_s))


def between(links: Mapping[tuple[str, str], Link], record: Record, event: RankSwitched) -> tuple[tuple[str, str], Link] | None:
    """The link over which the state of a rank has come while its gang stood still: its nodes, sorted, and what it carried. Only
    where there was one node that could give, and one rank that got: of several on a node one gets what all hold alike, and the
    others theirs of it, unless what each alone holds is much as well."""
    job, switch = record.job, record.job.switch
    fill_s = dict(event.phases).get("fill", 0.0)
    if not switch or not switch.placement or event.rank in switch.finished or event.wire_bytes < BYTES_MIN or fill_s <= 0:
        return None
    here = event.node
    getting = [rank for rank in moved_ranks(job.placement, switch.placement) if switch.placement[rank].node == here]
    others = [node for node in nodes_of(job.placement) if node != here]
    is_only = getting == [event.rank] or (event.rank in getting and job.profile.private_bytes < BYTES_MIN)
    if not is_only or len(others) != 1:
        return None
    pair = (min(here, others[0]), max(here, others[0]))
    rate, before = event.wire_bytes / fill_s, links.get(pair)
    if before is None:
        return pair, Link(bytes_per_s=rate)
    return pair, replace(before, bytes_per_s=before.bytes_per_s + LINK_RATE * (rate - before.bytes_per_s))
