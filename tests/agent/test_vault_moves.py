"""What a vault holds of a job moves to the vault of another node, or stays where it is, whoever is killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from restow import vault
from restow.job import Kept
from restow.messages import Discard, OfferVault, TakeVault, VaultMoved, VaultMoveFailed, VaultOffered
from restow.placement import parse_placement
from restow.sdk.vault import map_state, tensors_of, write_tensors
from tests.agent.node import SECRET, Node, is_gone

pytestmark = pytest.mark.live

G, STEP = 3, 7
KEPT = Kept(generation=G, step=STEP, placement=parse_placement("a:0 a:1 b:0"), replicas=("a",))
STATE = {"weights": torch.arange(100_000.0), "count": torch.tensor(7)}


@pytest.fixture(scope="module")
def giver() -> Iterator[Node]:
    with Node("a") as node:
        yield node


@pytest.fixture(scope="module")
def taker() -> Iterator[Node]:
    with Node("b") as node:
        yield node


def job_with_state(giver: Node, taker: Node) -> str:
    """Ranks 0 and 1 and what all hold alike lie on a, rank 2 on b."""
    job = giver.job()
    about = {"job": job, "generation": G, "step": STEP}
    write_tensors(giver.agent.folders.vault(job, G), vault.REPLICA, STATE, **about)
    for node, rank, blob in ((giver, 0, b"zero" * 50), (giver, 1, b""), (taker, 2, b"two")):
        vault.write_blob(node.agent.folders.vault(job, G), vault.of_rank(rank), blob, **about)
    return job


def offer(giver: Node, job: str, attempt: int = 1) -> VaultOffered:
    giver.tell(OfferVault(job=job, generation=G, attempt=attempt, kept=KEPT, secret=SECRET))
    return giver.await_event(VaultOffered, job=job, attempt=attempt)


def take(taker: Node, offered: VaultOffered, secret: str = SECRET) -> None:
    taker.tell(TakeVault(
        job=offered.job, generation=G, attempt=offered.attempt, kept=KEPT, source="a", address=(offered.host, offered.port),
        secret=secret,
    ))  # fmt: skip


def assert_is_whole(folder: Path) -> None:
    assert vault.names_in(folder) == {"replica", "rank0", "rank1", "rank2"}
    found = tensors_of(*map_state(folder, vault.REPLICA))
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())
    assert [bytes(vault.map_bytes(folder, vault.of_rank(rank))[1]) for rank in range(3)] == [b"zero" * 50, b"", b"two"]


def pid_of(node: Node, kind: str, job: str) -> int:
    children = [vault_child for vault_child in children_of(node) if vault_child["label"]["kind"] == kind]
    return next(child["pid"] for child in children if child["label"]["job"] == job and child["code"] is None)


def children_of(node: Node) -> list[dict]:
    return node.run(node.agent._ranks.nursery._ask("list"))


def test_all_of_it_arrives_unharmed_in_memory_and_on_disk(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    take(taker, offer(giver, job))
    moved = taker.await_event(VaultMoved, job=job)
    folders = taker.agent.folders
    assert (moved.node, moved.source, moved.generation, moved.attempt) == ("b", "a", G, 1)
    assert moved.bytes == vault.read_manifest(folders.vault(job, G), vault.REPLICA).bytes + 200
    assert_is_whole(folders.vault(job, G))
    assert_is_whole(folders.vault_on_disk(job, G))
    pid = pid_of(giver, "giver", job)
    giver.tell(Discard(job=job, generation=G))
    assert is_gone(pid)
    assert not giver.agent.folders.vault(job, G).exists()
    assert not [event for event in giver.read() if isinstance(event, VaultMoveFailed)]
