"""A job's life, without switches."""

import pytest

from restow.core.reconcile import secret_of
from restow.errors import IllegalTransition
from restow.job import CheckpointSpec, JobState
from restow.messages import (
    CheckpointAsked,
    Forget,
    Launch,
    LaunchFailed,
    LetGo,
    OpenStore,
    RankExited,
    RankStarted,
    Snapshot,
    Stop,
    StoreOpened,
)
from restow.placement import Schedule, parse_placement
from tests.core.obedient import SECRET, Cluster, Program
from tests.core.test_suspending import running


def test_a_job_opens_its_store_where_most_ranks_are_and_then_launches_everywhere():
    cluster = Cluster("m1:1 m2:2")
    cluster.submit("a", workers=3)
    cluster.decide()
    ((node, command),) = cluster.state.commands()
    assert (node, command) == ("m2", OpenStore(job="a", generation=1))
    assert cluster.state.commands() == []  # asked once is enough
    cluster.observe(StoreOpened(time_s=1, job="a", generation=1, node="m2", host="10.0.0.2", port=4001))
    placement = cluster.job("a").placement
    launch = Launch(job="a", generation=1, spec=cluster.job("a").spec, placement=placement, store=("10.0.0.2", 4001),
                    secret=secret_of(SECRET, "a"))  # fmt: skip
    assert sorted(cluster.state.commands()) == [("m1", launch), ("m2", launch)]


def test_a_job_runs_when_every_rank_is_alive_and_is_done_when_all_left_with_0():
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    cluster.end("a")
    cluster.run()
    assert cluster.job("a").state is JobState.DONE
    assert cluster.told[-1] == ("m1", Forget(job="a", generation=1))


def test_a_failing_rank_ends_the_gang_with_its_last_words_as_the_reason():
    cluster = Cluster("m1:2 m2:2")
    cluster.submit("a", workers=4)
    cluster.run()
    cluster.kill("a", 2, code=1, reason="ValueError: x")
    cluster.run()
    assert cluster.job("a").state is JobState.FAILED
    assert cluster.job("a").reason == "rank 2 on m2 exited with code 1: ValueError: x"
    assert cluster.job("a").exit_code == 1
    assert cluster.agents.workers == {}
    assert {node for node, _ in cluster.commands_of(Stop)} == {"m1", "m2"}


def test_when_a_rank_ended_by_itself_the_others_need_not_wait_for_a_word():
    cluster = running()
    cluster.agents.exit(("a", 1, 1), 0)
    cluster.run()
    assert sorted(node for node, _ in cluster.commands_of(LetGo)) == ["m1", "m2"]
    cluster.agents.exit(("a", 1, 0), 1, "RuntimeError: connection closed")
    cluster.run()
    job = cluster.job("a")
    assert job.state is JobState.FAILED
    assert job.reason.startswith("rank 1 ended by itself while others trained; then rank 0 on ")


def test_a_job_that_lies_on_a_lost_node_as_a_whole_is_waited_for():
    cluster = Cluster("m1:1 m2:2")
    cluster.submit("a", workers=2)
    cluster.submit("b")
    cluster.run()
    assert (cluster.where("a"), cluster.where("b")) == ("m2:0 m2:1", "m1:0")
    cluster.lose("m2", is_dead=False)
    cluster.clock(1000.0)
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").away) == (JobState.RUNNING, "m2")
    assert cluster.job("a").reason == "node m2 is lost (no answer for 3 s); the whole job is there and is waited for"
    assert cluster.job("b").state is JobState.RUNNING
    cluster.join("m2", 2)
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").generation, cluster.job("a").away) == (JobState.RUNNING, 1, "")
    cluster.end("a")
    cluster.run()
    assert cluster.job("a").state is JobState.DONE


def test_a_job_whose_node_comes_back_without_it_ends_with_the_reason():
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2)
    cluster.run()
    cluster.lose("m1")
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    cluster.join("m1", 2)
    cluster.run()
    assert cluster.job("a").state is JobState.FAILED
    assert "ended while the agent of m1 was away" in cluster.job("a").reason


def test_a_job_that_is_away_can_be_cancelled_and_ends_when_its_node_is_back():
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2)
    cluster.run()
    cluster.lose("m1", is_dead=False)
    cluster.cancel("a")
    cluster.run()
    assert cluster.job("a").state is JobState.CANCELLED
    cluster.join("m1", 2)
    cluster.run()
    assert cluster.agents.workers == {}


def test_a_job_that_has_not_begun_when_its_node_is_lost_starts_elsewhere():
    cluster = Cluster("m1:2 m2:1")
    cluster.submit("a", workers=2)
    cluster.decide(), cluster.send(), cluster.hear(), cluster.send()  # its store is open
    assert cluster.job("a").state is JobState.STARTING
    cluster.lose("m1")
    cluster.join("m3", 2)
    cluster.run()
    assert (cluster.job("a").state, cluster.where("a")) == (JobState.RUNNING, "m3:0 m3:1")


def test_a_cancelled_job_holds_its_slots_until_its_last_worker_is_gone():
    cluster = Cluster("m1:1")
    cluster.submit("a")
    cluster.submit("b")
    cluster.run()
    cluster.agents.deaf = {Stop}
    cluster.cancel("a")
    cluster.run()
    assert cluster.job("a").state is JobState.STOPPING
    assert cluster.job("b").state is JobState.PENDING
    cluster.kill("a", 0)
    cluster.run()
    assert cluster.job("a").state is JobState.CANCELLED
    assert cluster.job("b").state is JobState.RUNNING


def test_a_pending_job_is_cancelled_at_once():
    cluster = Cluster("m1:1")
    cluster.submit("a", workers=2)
    cluster.run()
    cluster.cancel("a")
    assert cluster.job("a").state is JobState.CANCELLED


def test_a_rank_that_cannot_be_launched_fails_the_job():
    cluster = Cluster("m1:2")
    cluster.agents.deaf = {Launch}
    cluster.submit("a", workers=2)
    cluster.run()
    cluster.clock(200)
    cluster.run()
    assert cluster.job("a").reason.startswith(
        "the gang could not be started: not ready after 120 s: rank 0 on m1, rank 1"
    )
    cluster.clock(200)  # nobody ever heard of these processes: they are taken for gone
    cluster.run()
    assert cluster.job("a").state is JobState.FAILED


def test_a_job_that_waits_for_a_store_on_a_node_that_is_lost_starts_elsewhere():
    cluster = Cluster("m1:1 m2:1")
    cluster.agents.deaf = {OpenStore}
    cluster.submit("a")
    cluster.run()
    cluster.agents.deaf = set()
    cluster.lose("m1")
    cluster.run()
    assert (cluster.job("a").state, cluster.where("a"), cluster.job("a").generation) == (JobState.RUNNING, "m2:0", 2)


def test_the_same_event_twice_and_late_words_of_an_old_generation_change_nothing():
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2)
    cluster.run()
    before = cluster.job("a")
    for event in list(cluster.journal):
        cluster.observe(event)
    cluster.observe(RankStarted(time_s=9, job="a", generation=7, node="m1", rank=0, pid=1))
    cluster.observe(RankExited(time_s=9, job="a", generation=0, node="m1", rank=0, role="rank", code=1))
    assert cluster.job("a") == before
    assert cluster.state.commands() == []


def test_after_a_restart_what_was_not_confirmed_is_asked_again():
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2)
    cluster.decide()
    (first,) = cluster.state.commands()
    cluster.restart()
    assert cluster.state.commands() == [first]


def test_a_replayed_journal_gives_the_same_state():
    cluster = Cluster("m1:2 m2:2")
    cluster.submit("a", workers=3, program=Program(step_s=0.1))
    cluster.submit("b", workers=2)
    cluster.run()
    cluster.migrate("a", "m2:0 m1:1 m1:0")
    cluster.end("a")
    cluster.run()
    records = cluster.state.records
    cluster.restart()
    assert cluster.state.records == records


@pytest.mark.parametrize(
    ("placements", "complaint"),
    [
        ({"a": "m1:0"}, "its gang has 2"),
        ({"a": "m1:0 m1:0"}, "fewer than it may have"),
        ({"a": "m1:0 m1:1", "b": "m1:1"}, "twice"),
        ({"a": "m1:0 m9:1"}, "not there"),
        ({"a": "m1:0 m1:7"}, "not there"),
        ({"nobody": "m1:0"}, "not there any more"),
    ],
)
def test_a_schedule_that_no_policy_may_give_is_our_own_mistake(placements, complaint):
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2)
    cluster.submit("b")
    with pytest.raises(IllegalTransition, match=complaint):
        cluster.state.adopt(Schedule({job: parse_placement(text) for job, text in placements.items()}), 1.0)


def test_jobs_that_would_wait_for_each_other_are_our_own_mistake():
    cluster = Cluster("m1:2")
    cluster.submit("a")
    cluster.submit("b")
    cluster.run()
    swapped = {"a": parse_placement(cluster.where("b")), "b": parse_placement(cluster.where("a"))}
    with pytest.raises(IllegalTransition, match="wait for each other"):
        cluster.state.adopt(Schedule(swapped), 1.0)


def test_a_job_without_slots_in_the_schedule_is_preempted_and_starts_again_later():
    cluster = Cluster("m1:1")
    cluster.submit("a")
    cluster.run()
    cluster.state.adopt(Schedule(), 1.0)
    cluster.run(decide=False)
    assert cluster.job("a").state is JobState.PENDING
    assert cluster.job("a").kept
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").generation) == (JobState.RUNNING, 3)  # 2: its state was kept


def test_a_script_without_the_sdk_moves_by_a_restart_when_a_person_asks():
    cluster = Cluster("m1:1 m2:1")
    cluster.submit("a", program=Program(uses_sdk=False))
    cluster.run()
    assert cluster.where("a") == "m1:0"
    cluster.migrate("a", "m2:0")
    cluster.run()
    assert cluster.where("a") == "m1:0"  # perhaps its SDK has not spoken yet
    cluster.clock(31)
    cluster.run()
    assert (cluster.job("a").state, cluster.where("a"), cluster.job("a").generation) == (JobState.RUNNING, "m2:0", 2)
    assert cluster.job("a").moves == 0


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_job_that_is_away_goes_on_elsewhere_from_a_checkpoint_that_others_see(is_shared):
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2, checkpoint=CheckpointSpec(shared=is_shared))
    cluster.run()
    cluster.train("a", 20)
    cluster.run()
    cluster.observe(CheckpointAsked(time_s=cluster.now_s, job="a"))
    cluster.run()
    (saved,) = cluster.job("a").saved
    cluster.join("m2", 2)
    cluster.lose("m1")
    cluster.run()
    cluster.clock(30.0)
    cluster.run()
    assert cluster.job("a").away == "m1"
    cluster.clock(60.0)
    cluster.run()
    if is_shared:
        assert (cluster.job("a").state, cluster.where("a")) == (JobState.RUNNING, "m2:0 m2:1")
        assert cluster.job("a").steps_done >= saved.step
    else:
        assert cluster.job("a").away == "m1"


def test_a_checkpoint_that_is_never_written_is_given_up_and_the_next_is_made():
    cluster = Cluster("m1:2")
    cluster.agents.deaf = {Snapshot}  # its folder hangs
    cluster.submit("a", workers=2, checkpoint=CheckpointSpec(every_s=600.0))
    cluster.run()
    cluster.clock(700.0)
    cluster.run()
    assert cluster.state.records["a"].checkpointing
    cluster.agents.deaf = set()
    cluster.clock(3601.0)
    cluster.tick()
    assert "not written within 3600 s" in str(cluster.journal[-1])
    assert cluster.state.records["a"].checkpointing is None
    cluster.clock(700.0)
    cluster.run()
    assert cluster.job("a").saved


def test_a_gang_whose_store_could_not_be_opened_starts_again_a_few_times():
    cluster = Cluster("m1:2")
    cluster.agents.deaf = {OpenStore}
    cluster.submit("a", workers=2)
    for generation in range(1, 5):
        cluster.run()
        assert (cluster.job("a").state, cluster.job("a").generation) == (JobState.STARTING, generation)
        reason = "store: the nursery was killed while it was asked"
        cluster.observe(LaunchFailed(time_s=1.0, job="a", generation=generation, node="m1", rank=-1, reason=reason))
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.FAILED, f"the gang could not be started: {reason}")


def test_one_of_which_nothing_is_left_is_tried_again_where_its_spec_says_so():
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2, retries=1)
    cluster.run()
    cluster.train("a", 30)
    cluster.run()
    for state in (JobState.RUNNING, JobState.FAILED):
        for rank in (0, 1):
            cluster.kill("a", rank)
        cluster.agents.left.clear()  # nothing of what they alone held is found
        cluster.run()
        assert cluster.job("a").state is state
        if state is JobState.RUNNING:
            assert cluster.job("a").retried == 1
            cluster.train("a", 30)
            cluster.run()


def test_checkpoints_every_so_many_steps_are_of_multiples_of_it():
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2, checkpoint=CheckpointSpec(every_steps=20, keep=0))
    cluster.run()
    for _ in range(30):
        cluster.train("a", 3)
        cluster.run()
    assert [saved.step for saved in cluster.job("a").saved] == [20, 40, 60, 80]
