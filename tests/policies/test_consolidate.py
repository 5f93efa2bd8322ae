"""The default policy: what is placed where, what moves, and what is said about it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from restow.cluster import Device
from restow.job import JobState
from restow.messages import Connect, NodeJoined
from restow.placement import is_scattered
from tests.core.obedient import Cluster, Program, scattered


def two_machines(*gone: str, **program: object) -> Cluster:
    """x on m1:0, y on m1:1, z on m2:0, one worker each, and the gang g on m1:2 m2:1. Those in `gone` have ended since."""
    cluster = Cluster("m1:3 m2:2", 25e6)
    for job in ("x", "y", "z"):
        cluster.submit(job, program=Program(step_s=0.05))
    cluster.submit("g", workers=2, program=scattered(**program))
    cluster.place(x="m1:0", y="m1:1", z="m2:0", g="m1:2 m2:1")
    for job in ("x", "y", "z", "g"):
        cluster.train(job, 100)
    for job in gone:
        cluster.end(job)
    cluster.run(decide=False)
    return cluster


def test_a_gang_starts_on_the_machine_where_it_fits_most_tightly():
    cluster = Cluster("m1:4 m2:2 m3:3")
    cluster.submit("a", workers=2)
    cluster.run()
    assert cluster.where("a") == "m2:0 m2:1"
    assert cluster.job("a").reason == "starts on m2, which has room for all of it"


def test_a_gang_that_fits_nowhere_starts_scattered_and_says_so():
    cluster = Cluster("m1:2 m2:2")
    cluster.submit("a", workers=3)
    cluster.run()
    assert cluster.where("a") == "m1:0 m1:1 m2:0"
    assert cluster.job("a").reason == "starts scattered over m1 and m2: no machine has 3 free slots"


def test_a_job_that_needs_more_than_there_is_is_told_so_and_others_go_on():
    cluster = Cluster("m1:2 m2:2")
    cluster.submit("big", workers=5)
    cluster.submit("small")
    cluster.run()
    assert cluster.job("big").reason == "needs 5 slots, the cluster has 4"
    assert cluster.job("small").state is JobState.RUNNING


def test_a_worker_that_needs_more_memory_than_any_device_has_is_told_so():
    cluster = Cluster()
    cluster.observe(
        NodeJoined(time_s=0, node="m1", address="x", devices=(Device(index=0, kind="H200", memory_bytes=10**9),))
    )
    cluster.submit("a", memory_bytes=4 * 10**9)
    cluster.run()
    assert cluster.job("a").reason == "needs 1 slot with 4 GB of memory each, the cluster has 0"


def test_later_jobs_fill_what_an_earlier_one_cannot_use_until_it_has_waited_for_long():
    cluster = Cluster("m1:2")
    cluster.submit("one")
    cluster.run()
    cluster.submit("two", workers=2)
    cluster.submit("three")
    cluster.run()
    assert cluster.job("two").reason == "needs 2 slots, 0 are free"
    assert cluster.job("three").state is JobState.RUNNING
    cluster.end("three")
    cluster.clock(1900)
    cluster.submit("four")
    cluster.run()
    assert cluster.job("four").reason == "waits behind two, which has waited for 2 slots for long"
    cluster.end("one")
    cluster.run()
    assert (cluster.job("two").state, cluster.job("four").state) == (JobState.RUNNING, JobState.PENDING)


def test_a_scattered_gang_comes_together_when_a_neighbour_leaves():
    cluster = two_machines("y")
    cluster.run()
    assert cluster.where("g") == "m1:2 m1:1"
    assert {command.fill for _, command in cluster.commands_of(Connect) if command.job == "g"} == {"replica"}
    assert cluster.job("g").reason.startswith(
        "moves rank 1 from m2:1 to m1:1 so that it trains on m1 alone: 0.3 → 0.05"
    )


def test_the_move_carries_what_is_predicted_of_it():
    cluster = two_machines("y")
    move = cluster.policy.decide(cluster.state.snapshot(cluster.now_s)).moves["g"]
    assert (move.ranks, move.step_now_s, round(move.step_then_s, 5)) == ((1,), 0.3, 0.05625)
    assert round(move.downtime_s, 3) == 0.1
    assert move.saves_s > 2000
    assert move.wire_bytes < 20_000


def test_another_job_is_moved_out_of_the_way_when_that_is_worth_it():
    cluster = two_machines()
    cluster.join("m3", 1)
    plan = cluster.policy.plan(cluster.state.snapshot(cluster.now_s))
    assert len(plan.moves) == 2
    cluster.run()
    assert not is_scattered(cluster.job("g").placement)
    assert sum(cluster.job(job).moves for job in ("x", "y", "z")) == 1
    assert "to make room for g" in "".join(cluster.job(job).reason for job in ("x", "y", "z"))


def test_when_making_room_fails_the_gang_stays_where_it_is():
    cluster = two_machines()
    cluster.join("m3", 1)
    cluster.agents.wrong_twins = True
    cluster.run()
    assert cluster.where("g") == "m1:2 m2:1"
    assert cluster.job("g").intended == cluster.job("g").placement
    assert all(cluster.job(job).moves == 0 for job in ("x", "y", "z", "g"))


def test_a_move_that_saves_less_than_it_costs_is_not_made_and_the_plan_says_why():
    cluster = two_machines("y", steps_total=105)
    cluster.run()
    assert is_scattered(cluster.job("g").placement)
    reason = cluster.policy.plan(cluster.state.snapshot(cluster.now_s)).reasons["g"]
    assert reason.startswith("stays scattered over m1 and m2: moving would save about 2.")
    assert "worth it from 2 times the cost on" in reason


def test_a_gang_that_hardly_waits_for_the_link_stays_scattered():
    cluster = two_machines("y", exposed_s=0.005)
    cluster.run()
    assert is_scattered(cluster.job("g").placement)
    assert "a step is predicted to take" in cluster.policy.plan(cluster.state.snapshot(cluster.now_s)).reasons["g"]


def test_a_job_whose_spec_says_no_is_never_moved_and_never_moved_out_of_the_way():
    cluster = Cluster("m1:2 m2:2", 25e6)
    cluster.submit("x", migrate=False, program=Program(step_s=0.05))
    cluster.submit("g", workers=3, migrate=False, program=scattered())
    cluster.run()
    cluster.join("m3", 3)
    for job in ("x", "g"):
        cluster.train(job, 100)
    cluster.run()
    plan = cluster.policy.plan(cluster.state.snapshot(cluster.now_s))
    assert plan.moves == {}
    assert plan.reasons["g"].endswith("its spec says migrate: false")


def test_a_job_that_has_just_moved_rests():
    cluster = two_machines("y")
    cluster.run()
    cluster.migrate("g", "m1:1 m2:1")
    cluster.run()
    cluster.migrate("g", "")
    cluster.train("g", 100)
    cluster.run()
    assert cluster.where("g") == "m2:1 m1:1"  # rank 1 was on one of these slots and stayed
    assert "may again after 60 s" in cluster.policy.plan(cluster.state.snapshot(cluster.now_s)).reasons["g"]
    cluster.clock(61)
    cluster.run()
    assert not is_scattered(cluster.job("g").placement)


def test_where_a_person_put_a_job_it_stays():
    cluster = two_machines("y")
    cluster.migrate("g", "m1:2 m2:1")
    cluster.clock(1000)
    cluster.run()
    assert cluster.where("g") == "m1:2 m2:1"


def test_a_wish_for_a_slot_that_is_held_says_by_whom():
    cluster = two_machines()
    cluster.migrate("g", "m1:2 m1:1")
    cluster.run()
    assert cluster.where("g") == "m1:2 m2:1"
    assert cluster.job("g").reason == "asked to be on m1:2 m1:1, but m1:1 is held by y"


def test_the_budget_of_moves_holds():
    cluster = two_machines("y")
    cluster.state._moves_s.extend([cluster.now_s] * 60)
    cluster.run()
    assert is_scattered(cluster.job("g").placement)
    assert "60 moves per hour is used up" in cluster.policy.plan(cluster.state.snapshot(cluster.now_s)).reasons["g"]
    cluster.clock(3601)
    cluster.train("g", 10)  # it goes on as before, and is not done yet
    cluster.run()
    assert not is_scattered(cluster.job("g").placement)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(0.0, 0.29), st.booleans()), max_size=6),
    st.lists(st.integers(0, 5), max_size=3),
)
def test_no_slot_is_promised_twice_no_gang_is_half_and_with_nothing_new_nothing_moves(jobs, ends):
    cluster = Cluster("m1:3 m2:2 m3:2", 25e6)
    for index, (workers, exposed_s, movable) in enumerate(jobs):
        cluster.submit(f"j{index}", workers, scattered(exposed_s=exposed_s, uses_sdk=movable))
    for _ in range(3):
        cluster.run()
        for job in list(cluster.state.jobs):
            cluster.train(job, 100)
        cluster.clock(100)
    for index in ends:
        if index < len(jobs):
            cluster.end(f"j{index}")
    cluster.run()  # the invariants are checked after every event
    moves = {id: job.moves for id, job in cluster.state.jobs.items()}
    for _ in range(3):
        for job in list(cluster.state.jobs):
            cluster.train(job, 1)
        cluster.clock(100)
        cluster.run()
        settled, moves = moves, {id: job.moves for id, job in cluster.state.jobs.items()}
    assert moves == settled
