"""A switch, phase by phase, and everything that can go wrong with it."""

import pytest

from restow.job import JobState, Phase
from restow.messages import (
    Abandon,
    Connect,
    Decide,
    OpenStore,
    Prepare,
    Propose,
    RankConnected,
    RankExited,
    RankRolledBack,
    RankSwitched,
    StepRefused,
    SwitchFailed,
    TwinParked,
)  # fmt: skip
from tests.core.obedient import Cluster, Program

NEVER = 99.0


def gang_of_three(**program: object) -> Cluster:
    """`a` on m1:0 m1:1 m2:0; m1:2 is free, and somebody wants rank 2 there."""
    cluster = Cluster("m1:2 m2:1", 25e6)
    cluster.submit("a", workers=3, program=Program(**program), recover=False)  # tests of that: test_recovery.py
    cluster.run()
    cluster.join("m1", 3)
    cluster.migrate("a", "m1:0 m1:1 m1:2")
    return cluster


def stopped_in(phase: Phase, **program: object) -> Cluster:
    cluster = gang_of_three(**program)
    holds_it_there = {Phase.STANDBY: Prepare, Phase.CONNECT: Connect, Phase.PROPOSE: Propose, Phase.COMMIT: Decide}
    cluster.agents.deaf = {holds_it_there[phase]}
    cluster.run()
    assert cluster.state.records["a"].phase is phase
    cluster.agents.deaf = set()
    return cluster


def test_a_switch_goes_through_its_phases_in_order_and_the_job_is_in_the_next_generation():
    cluster = gang_of_three()
    cluster.told.clear()
    cluster.run()
    kinds = [(node, type(command).__name__) for node, command in cluster.told]
    assert kinds == [
        ("m1", "OpenStore"), ("m1", "Guard"), ("m2", "Guard"), ("m1", "Prepare"), ("m1", "Connect"), ("m2", "Connect"),
        ("m1", "Propose"), ("m2", "Propose"), ("m1", "Decide"),
    ]  # fmt: skip
    job = cluster.job("a")
    assert (job.generation, cluster.where("a"), job.moves, job.switch) == (2, "m1:0 m1:1 m1:2", 1, None)
    assert sorted(cluster.agents.workers) == [("a", 2, 0), ("a", 2, 1), ("a", 2, 2)]


def test_small_state_is_read_from_the_replica_at_the_switch_and_big_state_is_followed_before():
    for state_bytes, fill in ((100_000_000, "replica"), (1_000_000_000, "shadow")):
        cluster = gang_of_three(state_bytes=state_bytes)
        cluster.run()
        assert {command.fill for _, command in cluster.commands_of(Connect)} == {fill}
        assert cluster.job("a").moves == 1


def test_a_gang_that_moves_as_a_whole_sends_its_state():
    cluster = Cluster("m1:2 m2:2")
    cluster.submit("a", workers=2)
    cluster.run()
    cluster.migrate("a", "m2:0 m2:1")
    cluster.run()
    assert {command.fill for _, command in cluster.commands_of(Connect)} == {"copy"}
    assert cluster.where("a") == "m2:0 m2:1"


def test_a_refused_step_is_decided_as_abort_before_a_later_one_is_proposed():
    cluster = gang_of_three()
    cluster.agents.programs["a"].step = 40  # nobody has told us yet
    cluster.run()
    decisions = [(command.step, command.go) for _, command in cluster.commands_of(Decide)]
    proposed = list(dict.fromkeys(command.step for _, command in cluster.commands_of(Propose)))
    assert decisions == [(proposed[0], False), (proposed[1], True)]
    assert proposed[0] < 40 < proposed[1]
    assert cluster.job("a").moves == 1


def test_a_proposal_covers_what_is_done_while_it_travels():
    cluster = gang_of_three(step_s=0.01)
    cluster.train("a", 100)
    cluster.run()
    assert cluster.commands_of(Propose)[0][1].step == 100 + 30


def test_ranks_that_waited_too_long_for_the_decision_get_a_later_proposal():
    cluster = stopped_in(Phase.PROPOSE)
    step = cluster.job("a").switch.step
    cluster.observe(
        RankRolledBack(time_s=1, job="a", generation=2, node="m2", rank=2, step=step, reason="no decision for 5 s")
    )
    cluster.run()
    assert cluster.job("a").moves == 1
    assert cluster.job("a").failed_moves == 0


@pytest.mark.parametrize("phase", [Phase.STANDBY, Phase.CONNECT, Phase.PROPOSE])
def test_a_failure_before_the_commit_leaves_the_job_as_it_was(phase):
    cluster = stopped_in(phase)
    cluster.told.clear()
    cluster.observe(SwitchFailed(time_s=5, job="a", generation=2, node="m1", rank=2, reason="shared memory is full"))
    cluster.run(decide=False)
    if phase is Phase.STANDBY:  # twins that never were cannot say that they are gone
        cluster.clock(NEVER)
        cluster.run(decide=False)
    job = cluster.job("a")
    assert (job.state, job.generation, cluster.where("a"), job.switch) == (JobState.RUNNING, 1, "m1:0 m1:1 m2:0", None)
    assert job.intended == job.placement
    assert "shared memory is full" in job.reason
    assert {node for node, command in cluster.told if isinstance(command, Abandon)} == {"m1", "m2"}
    assert all(not command.go for _, command in cluster.commands_of(Decide))
    assert bool(cluster.commands_of(Decide)) == (phase is Phase.PROPOSE)
    assert sorted(cluster.agents.workers) == [("a", 1, 0), ("a", 1, 1), ("a", 1, 2)]


@pytest.mark.parametrize("phase", [Phase.STANDBY, Phase.CONNECT, Phase.PROPOSE])
def test_a_phase_that_hangs_is_given_up(phase):
    cluster = stopped_in(phase)
    cluster.clock(NEVER * 2)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    assert "within" in cluster.job("a").reason
    cluster.clock(NEVER)  # a twin that nobody heard of again
    cluster.run()
    assert cluster.job("a").moves == 1  # tried again after the back-off


def test_a_broken_move_is_tried_less_and_less_often_and_then_not_at_all():
    cluster = gang_of_three()
    cluster.agents.wrong_twins = True
    waits = []
    for _ in range(5):
        cluster.run()
        waits.append(cluster.job("a").not_before_s - cluster.now_s)
        cluster.clock(max(0.0, waits[-1]))
    assert waits[:3] == [30.0, 60.0, 120.0]
    assert cluster.job("a").pinned == ()
    assert "is given up" in cluster.job("a").reason
    assert cluster.job("a").generations == 4  # no number is used twice


def test_a_twin_that_dies_before_the_commit_costs_nothing():
    cluster = stopped_in(Phase.CONNECT)
    cluster.kill("a", 2, role="twin", code=1, reason="MemoryError")
    cluster.run(decide=False)
    assert cluster.job("a").state is JobState.RUNNING
    assert "the twin of rank 2 on m1 exited with code 1: MemoryError" in cluster.job("a").reason


def test_a_rolled_back_switch_leaves_the_old_generation_and_ends_the_twins():
    cluster = stopped_in(Phase.COMMIT)
    step = cluster.job("a").switch.step
    for rank, node in ((2, "m2"), (0, "m1")):
        cluster.observe(
            RankRolledBack(time_s=2, job="a", generation=2, node=node, rank=rank, step=step, reason="the link was cut")
        )
    cluster.run(decide=False)
    job = cluster.job("a")
    assert (job.generation, job.moves, job.failed_moves, job.switch) == (1, 0, 1, None)
    assert f"rolled back at step {step}: the link was cut" in job.reason
    assert sorted(cluster.agents.workers) == [("a", 1, 0), ("a", 1, 1), ("a", 1, 2)]


def test_ranks_seen_beyond_the_switch_step_in_the_old_generation_did_not_switch():
    cluster = stopped_in(Phase.COMMIT)
    cluster.agents.deaf = {Decide}
    cluster.train("a", 50)
    cluster.run(decide=False)
    assert (cluster.job("a").generation, cluster.job("a").failed_moves) == (1, 1)


def test_ranks_seen_beyond_the_switch_step_have_switched_if_a_leaver_has_left():
    """Their agent was away, and knows them by their old generation."""
    cluster = stopped_in(Phase.COMMIT)
    cluster.agents.deaf = {Decide}
    cluster.observe(exited(2, "m2", 1, "leaver", 0))
    del cluster.agents.workers["a", 1, 2]
    cluster.agents.workers["a", 2, 2].role = "rank"
    cluster.train("a", 50)
    cluster.run(decide=False)
    assert cluster.state.records["a"].phase is Phase.COMMIT
    for rank in (0, 1, 2):
        cluster.observe(switched(rank, "m1"))
    assert (cluster.job("a").generation, cluster.job("a").failed_moves) == (2, 0)


def test_after_the_commit_only_the_ranks_say_what_came_out():
    cluster = stopped_in(Phase.COMMIT)
    cluster.observe(SwitchFailed(time_s=2, job="a", generation=2, node="m1", rank=2, reason="late"))
    cluster.clock(NEVER * 10)
    cluster.run(decide=False, until=lambda: True)
    assert cluster.state.records["a"].phase is Phase.COMMIT


def switched(rank: int, node: str) -> RankSwitched:
    return RankSwitched(time_s=3, job="a", generation=2, node=node, rank=rank, step=3, pause_s=0.06, wire_bytes=0)


def exited(rank: int, node: str, generation: int, role: str, code: int) -> RankExited:
    return RankExited(time_s=3, job="a", generation=generation, node=node, rank=rank, role=role, code=code)


def test_a_leaver_that_is_killed_after_the_commit_does_not_matter_when_the_others_switched():
    cluster = stopped_in(Phase.COMMIT)
    cluster.observe(exited(2, "m2", 1, "rank", -9))
    for rank in (0, 1, 2):
        cluster.observe(switched(rank, "m1"))
    assert (cluster.job("a").state, cluster.job("a").generation) == (JobState.RUNNING, 2)


def test_ranks_that_switch_and_end_while_their_agent_is_away_are_counted_by_their_exits():
    cluster = stopped_in(Phase.COMMIT)
    cluster.observe(exited(2, "m2", 1, "leaver", 0))
    cluster.observe(exited(0, "m1", 1, "rank", 0))  # nobody told the agent's successor that these have switched
    cluster.observe(exited(1, "m1", 1, "rank", 0))
    assert cluster.job("a").state is JobState.RUNNING
    cluster.observe(exited(2, "m1", 2, "twin", 0))
    assert (cluster.job("a").state, cluster.job("a").generation) == (JobState.DONE, 2)


def test_a_leaver_that_is_killed_after_the_commit_fails_the_job_when_it_is_rolled_back():
    cluster = stopped_in(Phase.COMMIT)
    step = cluster.job("a").switch.step
    cluster.observe(exited(2, "m2", 1, "rank", -9))
    cluster.observe(
        RankRolledBack(time_s=2, job="a", generation=2, node="m1", rank=0, step=step, reason="its peer is gone")
    )
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.FAILED, "rank 2 on m2 was ended by signal 9")


def test_a_gang_that_falls_after_its_leaver_was_killed_names_the_leaver():
    cluster = stopped_in(Phase.COMMIT)
    cluster.observe(exited(2, "m2", 1, "rank", -9))
    cluster.observe(exited(0, "m1", 1, "rank", 1))  # its connection to the leaver broke
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.FAILED, "rank 2 on m2 was ended by signal 9")


def test_twins_that_say_nothing_after_the_whole_old_gang_was_lost_fail_the_job():
    cluster = Cluster("m1:1 m2:1")
    cluster.submit("a")
    cluster.run()
    cluster.migrate("a", "m2:0")
    cluster.agents.deaf = {Decide}
    cluster.run()
    cluster.lose("m1")
    cluster.run()
    assert cluster.state.records["a"].phase is Phase.COMMIT  # the twin may have got everything
    cluster.clock(31)
    cluster.run()
    assert cluster.job("a").state is JobState.FAILED
    assert cluster.job("a").reason == "node m1 was lost (no answer for 3 s), and rank 0 with it"
    assert cluster.agents.workers == {}


def test_a_staying_rank_that_is_killed_after_the_commit_ends_the_job():
    cluster = stopped_in(Phase.COMMIT)
    cluster.agents.deaf = {Decide}
    cluster.kill("a", 0)
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.FAILED, "rank 0 on m1 was ended by signal 9")
    assert cluster.agents.workers == {}


def test_a_new_rank_that_fails_before_its_siblings_reported_fails_the_job_in_the_new_generation():
    cluster = stopped_in(Phase.COMMIT)
    cluster.agents.deaf = {Decide}
    cluster.observe(switched(2, "m1"))
    cluster.observe(exited(2, "m1", 2, "rank", 1))
    assert cluster.job("a").state is JobState.RUNNING
    cluster.observe(switched(0, "m1"))
    cluster.observe(switched(1, "m1"))
    assert cluster.job("a").state is JobState.RUNNING  # its leaver is still there and may go on in its place
    cluster.observe(exited(2, "m2", 1, "leaver", 0))
    assert (cluster.job("a").generation, cluster.job("a").state) == (2, JobState.STOPPING)


def rolled_back(rank: int, node: str) -> RankRolledBack:
    return RankRolledBack(time_s=4, job="a", generation=2, node=node, rank=rank, step=3, reason="the twin of rank 2 was lost")


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.PROPOSE])
def test_a_leaver_that_dies_before_the_commit_leaves_it_to_the_ranks_and_the_move_completes(phase):
    cluster = stopped_in(phase)
    if phase is Phase.CONNECT:
        cluster.observe(RankConnected(time_s=2, job="a", generation=2, node="m2", rank=2, role="rank"))
    cluster.observe(exited(2, "m2", 1, "rank", -9))
    assert (cluster.job("a").state, cluster.state.records["a"].phase) == (JobState.RUNNING, Phase.RESCUE)
    for rank in (0, 1, 2):
        cluster.observe(switched(rank, "m1"))
    job = cluster.job("a")
    assert (job.state, job.generation, cluster.where("a"), job.moves) == (JobState.RUNNING, 2, "m1:0 m1:1 m1:2", 1)


def test_a_leaver_that_dies_while_its_twin_rehearses_is_replaced_when_the_twin_has_come_as_far():
    cluster = gang_of_three()
    cluster.agents.deaf = {Prepare}
    cluster.run(until=lambda: cluster.commands_of(Prepare))
    cluster.observe(exited(2, "m2", 1, "rank", -9))
    assert (cluster.job("a").state, cluster.job("a").switch.phase) == (JobState.RUNNING, Phase.RESCUE)
    cluster.told.clear()
    cluster.observe(TwinParked(time_s=1, job="a", generation=2, node="m1", rank=2, signature="s.2", rehearsal_step_s=0.05))
    cluster.send()
    assert [(node, type(command)) for node, command in cluster.told] == [("m1", Connect), ("m2", Connect)]
    for rank, node in enumerate(("m1", "m1", "m1")):
        cluster.observe(RankSwitched(time_s=2, job="a", generation=2, node=node, rank=rank, step=7, pause_s=0.1, wire_bytes=0))
    assert (cluster.where("a"), cluster.job("a").generation) == ("m1:0 m1:1 m1:2", 2)


def test_a_leaver_that_dies_before_the_store_was_opened_ends_the_job():
    cluster = gang_of_three()
    cluster.agents.deaf = {OpenStore}
    cluster.run()
    assert cluster.job("a").switch.phase is Phase.STANDBY
    cluster.observe(exited(2, "m2", 1, "rank", -9))
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.STOPPING, "rank 2 on m2 was ended by signal 9")


def test_when_nobody_of_the_old_gang_is_left_nobody_waits_for_a_twin_to_take_over():
    cluster = gang_of_three()
    cluster.agents.deaf = {Prepare}
    cluster.run(until=lambda: cluster.commands_of(Prepare))
    for rank, node in ((2, "m2"), (0, "m1"), (1, "m1")):
        cluster.observe(exited(rank, node, 1, "rank", -9))
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.STOPPING, "rank 2 on m2 was ended by signal 9")


@pytest.mark.parametrize("what", ["its twin dies, too", "a survivor gives up", "nobody says anything", "the verdict"])
def test_a_lost_leaver_that_nobody_replaces_ends_the_job_with_its_reason(what):
    cluster = stopped_in(Phase.PROPOSE)
    cluster.observe(exited(2, "m2", 1, "rank", -9))
    step = cluster.job("a").switch.step
    if what == "its twin dies, too":
        cluster.observe(exited(2, "m1", 2, "twin", -9))
    elif what == "a survivor gives up":
        cluster.observe(exited(0, "m1", 1, "rank", 1))
    elif what == "the verdict":
        cluster.observe(
            RankRolledBack(time_s=3, job="a", generation=2, node="m1", rank=0, step=step, reason="its state is missing")
        )
    else:
        cluster.tick()
        cluster.clock(NEVER * 2)
        cluster.tick()
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.STOPPING, "rank 2 on m2 was ended by signal 9")


@pytest.mark.parametrize("twin_has_switched", [True, False])
def test_when_a_twin_dies_in_its_first_step_and_all_old_ranks_go_back_the_generation_before_is_the_job(twin_has_switched):
    cluster = stopped_in(Phase.COMMIT)
    cluster.agents.deaf = {Decide}
    ranks = (0, 1, 2) if twin_has_switched else (0, 1)
    for rank in ranks:
        cluster.observe(switched(rank, "m1"))
    cluster.observe(exited(2, "m1", 2, "rank" if twin_has_switched else "twin", -9))
    assert (cluster.job("a").state, cluster.job("a").generation) == (JobState.RUNNING, 2)
    cluster.observe(rolled_back(0, "m1"))
    cluster.observe(rolled_back(2, "m2"))
    assert cluster.job("a").generation == 2
    cluster.observe(rolled_back(1, "m1"))
    job = cluster.job("a")
    assert (job.state, job.generation, cluster.where("a")) == (JobState.RUNNING, 1, "m1:0 m1:1 m2:0")
    assert (job.moves, job.failed_moves, job.switch) == (0, 1, None)
    assert "the twin of rank 2 was lost" in job.reason
    cluster.observe(exited(2, "m2", 1, "rank", -9))  # from here on it is an ordinary gang again
    assert cluster.job("a").state is JobState.STOPPING


def test_a_twin_that_dies_in_its_first_step_ends_the_job_when_nobody_goes_back():
    cluster = stopped_in(Phase.COMMIT)
    cluster.agents.deaf = {Decide}
    for rank in (0, 1, 2):
        cluster.observe(switched(rank, "m1"))
    cluster.observe(exited(2, "m1", 2, "rank", -9))
    cluster.tick()
    assert cluster.job("a").state is JobState.RUNNING
    cluster.clock(NEVER * 2)
    cluster.tick()
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.STOPPING, "rank 2 on m1 was ended by signal 9")


def test_a_job_that_ends_by_itself_during_a_switch_is_done():
    for phase in (Phase.STANDBY, Phase.CONNECT, Phase.PROPOSE, Phase.COMMIT):
        cluster = stopped_in(phase)
        cluster.agents.deaf = {Decide}
        cluster.end("a")
        cluster.run()
        assert cluster.job("a").state is JobState.DONE, phase
        assert cluster.agents.workers == {}


def test_a_cancel_ends_ranks_and_twins_in_every_phase():
    for phase in (Phase.STANDBY, Phase.CONNECT, Phase.PROPOSE, Phase.COMMIT):
        cluster = stopped_in(phase)
        cluster.agents.deaf = {Decide}
        cluster.cancel("a")
        cluster.run()
        cluster.clock(NEVER)
        cluster.run()
        assert cluster.job("a").state is JobState.CANCELLED, phase
        assert cluster.agents.workers == {}


def test_the_destination_that_is_lost_before_the_commit_leaves_the_job_as_it_was():
    cluster = Cluster("m1:2 m2:1 m3:1")
    cluster.submit("a", workers=3)
    cluster.run()
    cluster.migrate("a", "m1:0 m1:1 m3:0")
    cluster.agents.deaf = {Connect}
    cluster.run()
    cluster.lose("m3")
    cluster.run()
    assert (cluster.job("a").state, cluster.where("a")) == (JobState.RUNNING, "m1:0 m1:1 m2:0")


def test_slots_of_a_leaver_are_not_given_away_before_it_is_gone():
    cluster = stopped_in(Phase.COMMIT)
    cluster.submit("b")
    for rank in (0, 1, 2):
        cluster.observe(switched(rank, "m1"))
    cluster.run()
    assert cluster.job("b").state is JobState.PENDING
    cluster.observe(exited(2, "m2", 1, "leaver", 0))
    cluster.run()
    assert cluster.where("b") == "m2:0"


def test_a_twin_and_a_leaver_on_one_node_are_told_apart_by_their_role():
    cluster = Cluster("m1:2")
    cluster.submit("a")
    cluster.run()
    cluster.migrate("a", "m1:1")
    cluster.agents.deaf = {Connect}
    cluster.run()
    twin = RankConnected(time_s=1, job="a", generation=2, node="m1", rank=0, role="twin")
    cluster.observe(twin)
    cluster.observe(twin)
    assert cluster.state.records["a"].phase is Phase.CONNECT
    cluster.observe(RankConnected(time_s=1, job="a", generation=2, node="m1", rank=0, role="rank"))
    assert cluster.state.records["a"].phase is Phase.PROPOSE


def test_the_controller_may_die_in_every_phase():
    for phase in (Phase.STANDBY, Phase.CONNECT, Phase.PROPOSE, Phase.COMMIT):
        cluster = stopped_in(phase)
        cluster.restart()
        cluster.run()
        assert (cluster.job("a").state, cluster.job("a").generation, cluster.job("a").moves) == (
            JobState.RUNNING,
            2,
            1,
        ), phase


def test_steps_that_are_refused_again_and_again_end_the_attempt():
    cluster = stopped_in(Phase.PROPOSE)
    for _ in range(8):
        cluster.tick()
        step = cluster.job("a").switch.step
        cluster.observe(StepRefused(time_s=1, job="a", generation=2, node="m2", step=step, at=step))
    cluster.run(decide=False)
    assert "8 switch steps were refused" in cluster.job("a").reason


def test_a_job_that_is_nearly_over_is_not_moved():
    cluster = gang_of_three(step_s=0.3, steps_total=12)
    cluster.train("a", 10)
    cluster.run()
    assert "2 steps are left" in cluster.job("a").reason
    cluster.train("a", 2)
    cluster.run()
    assert cluster.job("a").state is JobState.DONE
