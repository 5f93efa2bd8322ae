"""Ranks that would have stayed are lost after the commit of a switch, whatever its verdict: the gang goes on from what is left."""

from __future__ import annotations

from restow.job import JobState, Phase
from restow.messages import Decide, NodeLost, RankRolledBack, RankSwitched, Stop
from tests.core.obedient import Cluster

VERDICT_S = 181.0  # and the ranks have agreed, or never will


def in_commit() -> Cluster:
    """`a` on m1:0 m1:1 m2:0 goes to m1:0 m1:1 m1:2; what m1's ranks alone hold has replicas on m2."""
    cluster = Cluster("m1:2 m2:3", 25e6)
    cluster.submit("a", workers=3)
    cluster.place(a="m1:0 m1:1 m2:0")
    cluster.train("a", 10)
    cluster.run(decide=False)
    cluster.agents.buddies = {("a", rank): "m2" for rank in (0, 1)}
    cluster.join("m1", 3)
    cluster.migrate("a", "m1:0 m1:1 m1:2")
    cluster.agents.deaf = {Decide}
    cluster.run()
    assert cluster.state.records["a"].phase is Phase.COMMIT
    return cluster


def rolled_back(cluster: Cluster, rank: int, node: str) -> RankRolledBack:
    step = cluster.job("a").switch.step
    return RankRolledBack(time_s=4, job="a", generation=2, node=node, rank=rank, step=step, reason="rank 0 was lost")


def switched(cluster: Cluster, rank: int) -> RankSwitched:
    step = cluster.job("a").switch.step
    return RankSwitched(time_s=3, job="a", generation=2, node="m1", rank=rank, step=step, pause_s=0.06, wire_bytes=0)


def out_of_sight(cluster: Cluster, node: str) -> None:
    """Its processes go on, unheard."""
    cluster.agents.dead_nodes.add(node)
    cluster.observe(NodeLost(time_s=cluster.now_s, node=node, reason="no answer for 1 s"))


def test_the_old_gang_goes_on_without_it_when_the_verdict_is_to_roll_back():
    cluster = in_commit()
    step = cluster.agents.programs["a"].step
    cluster.kill("a", 0)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING  # nobody has said yet what came out
    cluster.observe(rolled_back(cluster, 1, "m1"))
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.moves, cluster.agents.programs["a"].step) == (JobState.RUNNING, 0, step)
    assert len(cluster.agents.training("a")) == 3


def test_the_new_gang_goes_on_without_it_when_the_others_have_switched():
    cluster = in_commit()
    for key in (("a", 1, 0), ("a", 1, 1)):
        cluster.agents.workers[key[0], 2, key[2]] = cluster.agents.workers.pop(key)
        cluster.agents.workers[key[0], 2, key[2]].generation = 2
    cluster.agents.workers["a", 2, 2].role, cluster.agents.workers["a", 1, 2].role = "rank", "leaver"
    cluster.agents.exit(("a", 1, 2), 0)
    cluster.kill("a", 0)
    for rank in (1, 2):
        cluster.observe(switched(cluster, rank))
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.moves) == (JobState.RUNNING, 1)
    assert len(cluster.agents.training("a")) == 3


def test_where_the_machine_of_a_leaver_is_lost_and_all_roll_back_nothing_is_started_there():
    cluster = Cluster("m1:1 m2:2 m3:1", 25e6)
    cluster.submit("a", workers=3)
    cluster.place(a="m1:0 m3:0 m2:0")
    cluster.train("a", 10)
    cluster.run(decide=False)
    cluster.agents.buddies = {("a", 2): "m1"}
    cluster.join("m1", 2)
    cluster.migrate("a", "m1:0 m3:0 m1:1")
    cluster.agents.deaf = {Decide}
    cluster.run()
    assert cluster.state.records["a"].phase is Phase.COMMIT
    cluster.lose("m2")
    cluster.run()
    cluster.observe(rolled_back(cluster, 0, "m1"))
    cluster.run(decide=False)
    assert (cluster.job("a").state, cluster.job("a").intended) == (JobState.PENDING, ())
    cluster.run()
    assert (cluster.job("a").state, sorted(cluster.where("a").split())) == (JobState.RUNNING, ["m1:0", "m1:1", "m3:0"])


def test_without_any_verdict_the_old_gang_goes_on_in_the_end():
    cluster = in_commit()
    cluster.kill("a", 0)
    cluster.run()
    cluster.clock(VERDICT_S)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    assert len(cluster.agents.training("a")) == 3


def test_a_node_that_is_out_of_sight_meanwhile_loses_nothing():
    cluster = in_commit()
    out_of_sight(cluster, "m1")
    cluster.run()
    assert (cluster.job("a").state, cluster.state.records["a"].phase) == (JobState.RUNNING, Phase.COMMIT)
    assert not cluster.commands_of(Stop)
    cluster.join("m1", 3)
    for rank in (0, 1, 2):
        cluster.observe(switched(cluster, rank))
    job = cluster.job("a")
    assert (job.state, job.generation, job.away) == (JobState.RUNNING, 2, "")


def test_one_that_moves_there_as_a_whole_is_waited_for_as_soon_as_a_leaver_says_that_it_has():
    cluster = Cluster("m1:3 m2:3", 25e6)
    cluster.submit("a", workers=3)
    cluster.place(a="m1:0 m1:1 m1:2")
    cluster.train("a", 10)
    cluster.run(decide=False)
    cluster.migrate("a", "m2:0 m2:1 m2:2")
    cluster.agents.deaf = {Decide}
    cluster.run()
    out_of_sight(cluster, "m2")
    for rank in (0, 1, 2):
        cluster.agents.workers["a", 1, rank].role, cluster.agents.workers["a", 2, rank].role = "leaver", "rank"
        cluster.agents.exit(("a", 1, rank), 0)
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.generation, job.away, cluster.where("a")) == (JobState.RUNNING, 2, "m2", "m2:0 m2:1 m2:2")
    assert not cluster.commands_of(Stop)


def test_what_is_never_seen_again_counts_as_lost_and_the_leavers_go_on():
    cluster = in_commit()
    step = cluster.agents.programs["a"].step
    cluster.lose("m1")
    cluster.run()
    assert cluster.state.records["a"].phase is Phase.COMMIT
    cluster.clock(VERDICT_S)
    cluster.run()
    job = cluster.job("a")
    assert (job.state, cluster.where("a"), cluster.agents.programs["a"].step) == (JobState.RUNNING, "m2:0 m2:1 m2:2", step)


def test_where_the_new_gang_is_known_to_be_there_it_is_waited_for():
    cluster = in_commit()
    cluster.observe(switched(cluster, 2))
    cluster.lose("m1", is_dead=False)
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.away, job.generation) == (JobState.RUNNING, "m1", 2)


def test_a_job_that_is_not_to_be_recovered_fails_at_once():
    cluster = Cluster("m1:2 m2:1", 25e6)
    cluster.submit("a", workers=3, recover=False)
    cluster.run()
    cluster.join("m1", 3)
    cluster.migrate("a", "m1:0 m1:1 m1:2")
    cluster.agents.deaf = {Decide}
    cluster.run()
    cluster.kill("a", 0)
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.FAILED, "rank 0 on m1 was ended by signal 9")
