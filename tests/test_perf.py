"""Predictions, with numbers that can be checked by hand."""

from dataclasses import replace

import pytest

from restow.cluster import Device, Link, Node, Snapshot
from restow.job import Job, JobSpec, JobState, Profile
from restow.perf import choose_fill, communication_s, move_cost, predict_step_s, ring_bytes, steps_left
from restow.placement import parse_placement as at

MB = 1_000_000


def machines(link_bytes_per_s: float = 25e6, delay_s: float = 0.0, share: float = 1.0) -> Snapshot:
    nodes = tuple(
        Node(
            name=name,
            address=name,
            devices=tuple(Device(index=i, share=share if name == "m2" else 1.0) for i in range(4)),
        )
        for name in ("m1", "m2", "m3")
    )
    link = Link(bytes_per_s=link_bytes_per_s, delay_s=delay_s)
    return Snapshot(now_s=100.0, nodes=nodes, jobs=(), links={("m1", "m2"): link})


def job(workers: int = 3, movable: bool = True, fill: str = "auto", **profile: float) -> Job:
    spec = JobSpec(command=("x",), workers=workers, fill=fill)
    return Job(id="a", spec=spec, state=JobState.RUNNING, movable=movable, profile=Profile(**profile), started_s=0.0)


def test_a_ring_sends_almost_twice_the_payload_over_each_hop():
    assert ring_bytes(2, 10 * MB) == 10 * MB
    assert ring_bytes(4, 10 * MB) == 15 * MB
    assert communication_s(at("m1:0 m2:0"), 10 * MB, machines()) == pytest.approx(0.4)
    assert communication_s(at("m1:0"), 10 * MB, machines()) == 0


def test_hops_the_same_way_share_a_link_so_the_order_of_ranks_matters():
    grouped = communication_s(at("m1:0 m1:1 m2:0 m2:1"), 10 * MB, machines())
    mixed = communication_s(at("m1:0 m2:0 m1:1 m2:1"), 10 * MB, machines())
    assert grouped == pytest.approx(0.6)
    assert mixed == pytest.approx(2 * grouped)


def test_delay_is_paid_in_every_round_of_the_ring():
    assert communication_s(at("m1:0 m2:0"), 10 * MB, machines(delay_s=0.01)) == pytest.approx(0.42)


def test_a_gang_that_comes_together_keeps_computing_and_loses_the_link():
    measured = Profile(step_s=0.45, exposed_s=0.4, wire_bytes=10 * MB)
    assert predict_step_s(measured, at("m1:0 m2:0"), at("m1:0 m1:1"), machines()) == pytest.approx(0.05 + 0.01)


def test_what_computing_hides_today_it_is_taken_to_hide_there():
    measured = Profile(step_s=0.3, exposed_s=0.2, wire_bytes=10 * MB)  # 0.4 s of communication, half of it hidden
    assert predict_step_s(measured, at("m1:0 m2:0"), at("m1:0 m1:1"), machines()) == pytest.approx(0.1 + 0.005)


def test_a_link_that_is_slower_than_declared_says_nothing_about_memory():
    measured = Profile(step_s=0.9, exposed_s=0.8, wire_bytes=10 * MB)
    assert predict_step_s(measured, at("m1:0 m2:0"), at("m1:0 m1:1"), machines()) == pytest.approx(0.1 + 0.01)
    same_link = predict_step_s(measured, at("m1:0 m2:0"), at("m1:1 m2:1"), machines())
    assert same_link == pytest.approx(0.9)


def test_a_rate_that_was_learned_on_one_machine_is_used_again():
    measured = Profile(step_s=0.45, exposed_s=0.4, wire_bytes=10 * MB, local_bytes_per_s=200e6)
    assert predict_step_s(measured, at("m1:0 m2:0"), at("m1:0 m1:1"), machines()) == pytest.approx(0.05 + 0.05)


def test_a_smaller_share_of_a_core_computes_longer():
    measured = Profile(step_s=0.1)
    assert predict_step_s(measured, at("m1:0"), at("m2:0"), machines(share=0.5)) == pytest.approx(0.2)


def test_nothing_is_predicted_from_nothing():
    assert predict_step_s(Profile(), at("m1:0 m2:0"), at("m1:0 m1:1"), machines()) == 0


def test_the_fill_depends_on_where_replicas_are_and_how_big_the_state_is():
    spec, now = JobSpec(command=("x",), workers=3), at("m1:0 m1:1 m2:0")
    assert choose_fill(spec, Profile(state_bytes=100 * MB), now, at("m1:0 m1:1 m1:2")) == "replica"
    assert choose_fill(spec, Profile(state_bytes=1000 * MB), now, at("m1:0 m1:1 m1:2")) == "shadow"
    assert choose_fill(spec, Profile(state_bytes=100 * MB), now, at("m3:0 m3:1 m3:2")) == "copy"
    asked = JobSpec(command=("x",), workers=3, fill="replica")
    assert choose_fill(asked, Profile(state_bytes=1000 * MB), now, at("m1:0 m1:1 m1:2")) == "replica"
    assert choose_fill(asked, Profile(), now, at("m3:0 m3:1 m3:2")) == "copy"


def test_a_replica_costs_a_memory_copy_and_kilobytes_on_the_link():
    cost = move_cost(job(state_bytes=100 * MB), at("m1:0 m1:1 m2:0"), at("m1:0 m1:1 m1:2"), machines())
    assert (cost.fill, cost.wire_bytes) == ("replica", 16_384)
    assert cost.downtime_s == pytest.approx(0.1)


def test_state_that_all_ranks_share_crosses_to_a_fresh_machine_once():
    cost = move_cost(job(2, state_bytes=100 * MB), at("m1:0 m1:1"), at("m2:0 m2:1"), machines())
    assert cost.fill == "copy"
    assert cost.wire_bytes == 100 * MB + 2 * 16_384
    assert cost.downtime_s == pytest.approx(4.0 + 0.05 + 0.05, rel=0.01)


def test_private_state_crosses_for_each_rank():
    cost = move_cost(job(2, state_bytes=100 * MB, private_bytes=100 * MB), at("m1:0 m1:1"), at("m2:0 m2:1"), machines())
    assert cost.wire_bytes == 200 * MB + 2 * 16_384


def test_a_job_that_cannot_switch_pays_a_restart():
    assert move_cost(job(movable=False), at("m1:0 m1:1 m2:0"), at("m1:0 m1:1 m1:2"), machines()).fill == "restart"


def test_without_a_total_a_job_is_taken_to_live_as_long_again():
    assert steps_left(job(step_s=0.5), now_s=100.0) == 200


def test_a_total_in_the_spec_holds_until_it_is_seen_to_be_wrong():
    plain = job(step_s=0.5)
    declared = replace(plain, spec=replace(plain.spec, steps=1000))
    assert steps_left(replace(declared, steps_done=600), now_s=100.0) == 400
    assert steps_left(replace(declared, steps_done=1001), now_s=100.0) == 200


def test_more_or_fewer_workers_share_out_what_grows_with_the_batch():
    """The batch of all together stays. Half of computing is taken to grow with it until two sizes are known."""
    four, two, one = at("m1:0 m1:1 m1:2 m1:3"), at("m1:0 m1:1"), at("m1:0")
    alone = Profile(step_s=0.4)
    assert predict_step_s(alone, four, two, machines()) == pytest.approx(0.4 * 1.5)
    assert predict_step_s(alone, two, four, machines()) == pytest.approx(0.4 * 0.75)
    known = Profile(step_s=0.4, by_size=((2, 0.6), (4, 0.4)))  # 0.2 + 0.8 / workers
    assert predict_step_s(known, four, one, machines()) == pytest.approx(1.0)
    assert predict_step_s(known, four, two, machines()) == pytest.approx(0.6)  # as it was
