"""What a vault holds of a job moves to the vault of another node, or stays where it is, whoever is killed meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from restow import vault
from restow.agent.loop import Agent
from restow.job import Kept
from restow.messages import Discard, Forget, OfferVault, TakeVault, VaultMoved, VaultMoveFailed, VaultOffered
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
    """Of the giver or the taker of this job."""
    return node.await_true(lambda: living(node, kind, job), f"no {kind}")[0]


def living(node: Node, kind: str, job: str) -> list[int]:
    about = {"kind": kind, "job": job}
    return [child["pid"] for child in children_of(node) if child["code"] is None and about.items() <= child["label"].items()]


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


def test_what_the_taker_has_already_does_not_cross(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    write_tensors(taker.agent.folders.vault(job, G), vault.REPLICA, STATE, job=job, generation=G, step=STEP)
    take(taker, offer(giver, job))
    assert taker.await_event(VaultMoved, job=job).bytes == 200
    assert_is_whole(taker.agent.folders.vault(job, G))


def test_what_the_taker_has_is_fetched_all_the_same_where_it_is_damaged(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    write_tensors(taker.agent.folders.vault(job, G), vault.REPLICA, STATE, job=job, generation=G, step=STEP)
    damage(taker.agent.folders.vault(job, G) / "replica.state")
    take(taker, offer(giver, job))
    assert taker.await_event(VaultMoved, job=job).bytes > 200
    assert_is_whole(taker.agent.folders.vault(job, G))


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_the_giver_takes_it_from_disk_where_memory_is_damaged_or_freed(giver: Node, taker: Node):
    for harm in (lambda memory: damage(memory / "replica.state"), shutil.rmtree):
        job = job_with_state(giver, taker)
        memory = giver.agent.folders.vault(job, G)
        vault.copy_whole(memory, giver.agent.folders.vault_on_disk(job, G))
        harm(memory)
        take(taker, offer(giver, job))
        taker.await_event(VaultMoved, job=job)
        assert_is_whole(taker.agent.folders.vault(job, G))


def test_a_state_that_is_not_whole_is_not_given_out(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    damage(giver.agent.folders.vault(job, G) / "replica.state")
    take(taker, offer(giver, job))
    assert "its checksum is not" in giver.await_event(VaultMoveFailed, job=job).reason
    taker.await_event(VaultMoveFailed, job=job)
    assert vault.names_in(taker.agent.folders.vault(job, G)) == {"rank2"}


def test_what_is_discarded_while_it_is_copied_is_not_left_on_disk(giver: Node, taker: Node, monkeypatch):
    job, copy = job_with_state(giver, taker), vault.copy_whole

    def discarded(source: Path, target: Path) -> None:
        copy(source, target)
        shutil.rmtree(source)

    monkeypatch.setattr(vault, "copy_whole", discarded)
    giver.run(giver.agent._ranks.vaults.put_on_disk(job, G))
    assert not giver.agent.folders.vault_on_disk(job, G).exists()


def test_whoever_does_not_know_the_secret_gets_nothing(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    take(taker, offer(giver, job), secret="5f" * 16)
    assert "did not accept our secret" in taker.await_event(VaultMoveFailed, job=job).reason
    assert vault.names_in(taker.agent.folders.vault(job, G)) == {"rank2"}


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_giver_that_is_killed_is_replaced_at_the_next_attempt(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    offered = offer(giver, job)
    kill(pid_of(giver, "giver", job))
    assert giver.await_event(VaultMoveFailed, job=job).attempt == 1
    take(taker, offered)
    assert taker.await_event(VaultMoveFailed, job=job).attempt == 1
    take(taker, offer(giver, job, attempt=2))
    assert taker.await_event(VaultMoved, job=job).attempt == 2
    assert_is_whole(taker.agent.folders.vault(job, G))


def test_a_taker_that_is_killed_leaves_nothing_that_could_be_taken_for_a_state(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    offered = offer(giver, job)
    stop(pid_of(giver, "giver", job))  # it accepts no connection, so the taker waits
    take(taker, offered)
    pid = pid_of(taker, "taker", job)
    kill(pid)
    assert "SIGKILL" in taker.await_event(VaultMoveFailed, job=job).reason
    assert vault.names_in(taker.agent.folders.vault(job, G)) == {"rank2"}
    os.kill(pid_of(giver, "giver", job), signal.SIGCONT)
    take(taker, offer(giver, job, attempt=2))
    taker.await_event(VaultMoved, job=job)
    assert_is_whole(taker.agent.folders.vault(job, G))


@pytest.mark.parametrize("who", ["agent", "nursery"])
def test_agents_and_nurseries_that_are_killed_meanwhile_harm_nothing(who):
    with Node("a") as giver, Node("b") as taker:
        job = job_with_state(giver, taker)
        offered = offer(giver, job)
        given_by = pid_of(giver, "giver", job)
        stop(given_by)
        take(taker, offered)
        taken_by = pid_of(taker, "taker", job)
        for node, pid in ((giver, given_by), (taker, taken_by)):
            replace(node, who)
            node.await_true(lambda node=node, pid=pid: pid in [child["pid"] for child in children_of(node)], "not found again")
        assert offer(giver, job).port == offered.port  # said again, of the same process
        os.kill(given_by, signal.SIGCONT)
        take(taker, offered)  # it is being done
        taker.await_event(VaultMoved, job=job)
        assert_is_whole(taker.agent.folders.vault_on_disk(job, G))
        giver.tell(Discard(job=job, generation=G))
        giver.await_true(lambda: is_gone(given_by), "the giver is left")


def test_a_nursery_that_is_killed_as_it_is_asked_has_a_successor_that_is(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    kill(giver.nursery_pid())
    offered = offer(giver, job)
    kill(taker.nursery_pid())
    take(taker, offered)
    assert taker.await_event(VaultMoved, job=job).attempt == 1
    assert_is_whole(taker.agent.folders.vault(job, G))


def replace(node: Node, who: str) -> None:
    if who == "agent":
        node.restart()
        return
    before = node.nursery_pid()
    kill(before)
    node.await_true(lambda: node.nursery_pid() not in (0, before), "no other nursery")


def test_what_arrived_while_no_agent_ran_is_told_by_the_next_one_until_it_is_heard(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    offered = offer(giver, job)
    stop(pid_of(giver, "giver", job))
    take(taker, offered)
    pid = pid_of(taker, "taker", job)
    taker.run(taker.agent.stop(keep_ranks=True))
    os.kill(pid_of(giver, "giver", job), signal.SIGCONT)
    taker.await_true(lambda: is_gone(pid), "the taker does not end")
    for _ in range(2):  # the first one's words are not acknowledged
        taker.agent = Agent(taker.config)
        taker.run(taker.agent.start())
        taker.after = 0
        taker.await_event(VaultMoved, job=job)
        assert_is_whole(taker.agent.folders.vault_on_disk(job, G))
        taker.run(taker.agent.stop(keep_ranks=True))
    taker.agent = Agent(taker.config)
    taker.run(taker.agent.start())


@pytest.mark.parametrize("end", [Discard, Forget])
def test_what_is_discarded_on_its_way_does_not_arrive(giver: Node, taker: Node, end):
    job = job_with_state(giver, taker)
    offered = offer(giver, job)
    stop(pid_of(giver, "giver", job))
    take(taker, offered)
    pid = pid_of(taker, "taker", job)
    taker.tell(end(job=job, generation=G))
    assert is_gone(pid)
    assert not taker.agent.folders.vault(job, G).exists()
    giver.tell(end(job=job, generation=G))
    assert not [event for event in (*taker.read(), *giver.read()) if event.job == job]


def test_a_later_attempt_takes_the_place_of_one_that_still_waits(giver: Node, taker: Node):
    job = job_with_state(giver, taker)
    first = offer(giver, job)
    stop(pid_of(giver, "giver", job))
    take(taker, first)
    pid = pid_of(taker, "taker", job)
    os.kill(pid_of(giver, "giver", job), signal.SIGCONT)
    stop(pid)
    take(taker, offer(giver, job, attempt=2))
    assert taker.await_event(VaultMoved, job=job).attempt == 2
    assert is_gone(pid)
    assert_is_whole(taker.agent.folders.vault_on_disk(job, G))
