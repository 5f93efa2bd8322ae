"""The truth about the cluster, as a state machine: events in, snapshots and commands out.

    state = ClusterState(cluster_secret)
    state.observe(event)                     what happened; journalled by the driver before
    state.adopt(policy.decide(state.snapshot(now_s)), now_s)
    for event in state.tick(now_s): ...      what is due by the clock: journal it, then observe it
    for node, command in state.commands(): ...

The state is a function of the events observed (`adopt` is the event ScheduleAdopted), so replaying a journal rebuilds it;
Progressed alone may be missing from a journal, and nothing but predictions and `tick` reads it. An event about another
generation than the present one, or one that was seen before, changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, ClassVar

from restow.cluster import Link, Node, Snapshot
from restow.core import (
    adopting,
    checkpoints,
    evacuating,
    gang,
    hangs,
    learning,
    lost_nodes,
    reconcile,
    recovery,
    suspending,
    switching,
)
from restow.core.config import CoreConfig
from restow.core.deadlines import Watch
from restow.core.occupancy import Occupancy
from restow.core.record import Record
from restow.job import Job, JobState
from restow.messages import (
    CancelAsked,
    CheckpointAsked,
    CheckpointFailed,
    CheckpointProposed,
    CheckpointWritten,
    Command,
    DeviceFenced,
    Event,
    GangEvent,
    JobHung,
    JobSubmitted,
    LaunchFailed,
    LeaseRanOut,
    LinkMeasured,
    MigrateAsked,
    NodeCordoned,
    NodeDrained,
    NodeJoined,
    NodeLost,
    PauseAsked,
    Progressed,
    RankConnected,
    RankExited,
    RankHalted,
    RankHung,
    RankKept,
    RankReady,
    RankRolledBack,
    RankSlow,
    RankStarted,
    RankSwitched,
    ResumeAsked,
    ScaleAsked,
    ScheduleAdopted,
    ShadowReady,
    ShareAsked,
    SharingMeasured,
    SnapshotRefused,
    StepAccepted,
    StepProposed,
    StepRefused,
    StoreOpened,
    SwitchFailed,
    TurnGivenOn,
    TwinParked,
    VaultMoved,
    VaultMoveFailed,
    VaultMoveProposed,
    VaultNotOnDisk,
    VaultOffered,
    WaitEnded,
)
from restow.placement import Placement, Schedule, devices_of, nodes_of, rearranged

FRIENDLINESS_RATE = 0.5  # from each measured pair: the last two or three count
HOUR_S = 3600.0


class ClusterState:
    """All jobs, nodes and links. Not thread-safe: one driver owns it."""

    def __init__(self, cluster_secret: str, config: CoreConfig | None = None):
        self.nodes: dict[str, Node] = {}
        self.links: dict[tuple[str, str], Link] = {}
        self.records: dict[str, Record] = {}
        self.config = config or CoreConfig()
        self.time_s = 0.0  # of the latest event
        self.touched: frozenset[str] = frozenset()  # jobs that the latest event may have changed
        self._secret = cluster_secret
        self._occupancy = Occupancy()
        self._again: frozenset[str] = frozenset()  # jobs that changed without an event of their own, see reconcile.Settled
        self._stale: set[str] = set()  # jobs of which other commands may be wanted than those that were asked
        self._asked: dict[str, set[tuple[str, Command]]] = {}  # job → what was asked and is still wanted
        self._heard: set[str] = set()  # jobs that have made progress since the last tick
        self._watch = Watch(self.config)
        self._moves_s: deque[float] = deque()  # when switches of the last hour began

    @property
    def jobs(self) -> dict[str, Job]:
        """Every job ever submitted, final ones included, in the order of submission."""
        return {id: record.job for id, record in self.records.items()}

    @property
    def active_ids(self) -> Collection[str]:
        """Of the jobs that are not final."""
        return self._occupancy.active.keys()

    @property
    def active_jobs(self) -> dict[str, Job]:
        """Those that are not final."""
        return {id: self.records[id].job for id in self._occupancy.active}

    # ------------------------------------------------------------ what happened

    def observe(self, event: Event) -> None:
        """Take in one event. Raises IllegalTransition on our own mistake, never because of what the world did."""
        self.time_s = max(self.time_s, event.time_s)
        self.touched = frozenset()
        if isinstance(event, GangEvent):
            record = self.records.get(event.job)
            if record is None or not self._is_known(event.node):
                return
            self._handlers[type(event)](self, record, event)
            if isinstance(event, Progressed):
                self._heard.add(event.job)
                if node := learning.within(self.nodes, record):
                    self.nodes[node.name] = node
                return  # progress begins nothing
            dirty = {event.job}
        elif type(event) in self._handlers:
            found = self._handlers[type(event)](self, event)  # the jobs that it touched; None: whichever there are
            dirty = self._occupancy.known() if found is None else found
        else:
            return  # MovePredicted, MoveMeasured and the like are for people
        for id in dirty:
            lost_nodes.look_again(self.records[id], event.time_s, self.config)
            evacuating.catch_up(self.records[id], self.nodes)
        settled = reconcile.settle(self.records, dirty | self._again, self._occupancy, event.time_s)
        for id in settled.changed:
            self.records[id].count_service(event.time_s)
        self.touched, self._again = settled.changed, settled.again
        self._stale |= settled.changed
        self._moves_s.extend([event.time_s] * settled.switches)

    def tick(self, now_s: float) -> list[Event]:
        """Events that are due by the clock: time-outs, and the choice of the next switch step. Changes nothing itself: the
        driver journals each and gives it to `observe`. Call it after every batch of events and about twice a second."""
        ids, self._heard = self._occupancy.timed | self._heard, set()
        records = sorted((self.records[id] for id in ids), key=lambda record: (record.job.submitted_s, record.job.id))
        making = [event for record in records if not record.job.away for event in checkpoints.due(record, now_s, self.config)]
        active = (self.records[id] for id in self._occupancy.active)
        return self._watch.due(records, now_s) + making + evacuating.due(active, self.nodes, now_s, self.config)

    # ------------------------------------------------------------ what should be

    def snapshot(self, now_s: float) -> Snapshot:
        """The frozen cluster for a policy: every job that is not final, but for those that are away with their node."""
        active = (self.records[id].job for id in self._occupancy.active)
        jobs = sorted((job for job in active if not job.away), key=lambda job: (job.submitted_s, job.id))
        leaving = sorted(self._occupancy.leaving)
        residue = {process.slot: id for id in leaving for _, process in self.records[id].residue()}
        while self._moves_s and self._moves_s[0] <= now_s - HOUR_S:
            self._moves_s.popleft()
        recent = len(self._moves_s)
        return Snapshot(
            now_s=now_s, nodes=tuple(node for _, node in sorted(self.nodes.items())), jobs=tuple(jobs),
            links=dict(self.links), moves_last_hour=recent, residue=residue,
        )  # fmt: skip

    def adopt(self, schedule: Schedule, now_s: float) -> ScheduleAdopted | None:
        """Make `schedule` what is intended. Returns the event to journal, None when nothing changes.

        Raises IllegalTransition for a schedule that no policy may give: half a gang, a slot twice, a node or device that is
        not there, jobs that wait for each other's slots in a circle.
        """
        adopted = self.adoption(schedule, now_s)
        if adopted:
            self.observe(adopted)
        return adopted

    def adoption(self, schedule: Schedule, now_s: float) -> ScheduleAdopted | None:
        """The event that `adopt` would observe, checked, for drivers that journal before they act."""
        found = adopting.difference(schedule, [self.records[id] for id in self._occupancy.active])
        adopting.check(schedule, found.moves, self.records, self._occupancy, self.nodes)
        if not found.is_any:
            return None
        return ScheduleAdopted(
            time_s=now_s,
            placements=tuple(sorted(schedule.placements.items())),
            reasons=tuple(sorted(schedule.reasons.items())),
            sharing=tuple(sorted(schedule.sharing.items())),
        )

    def commands(self) -> list[tuple[str, Command]]:
        """What the agents are to be told now: (node, command), each asked once until the state no longer wants it."""
        fresh: list[tuple[str, Command]] = []
        for id in sorted(self._stale):
            wanted = reconcile.wanted(self.records[id], self.nodes, self._secret, self.time_s)
            asked = self._asked.pop(id, set())
            fresh += [item for item in wanted if item not in asked]
            if wanted:
                self._asked[id] = set(wanted)
        self._stale = set()
        return fresh

    def ask_again(self, node: str) -> None:
        """Let `commands` repeat what this node has not answered: its agent was started anew or did not get it."""
        for id, asked in self._asked.items():
            if any(item[0] == node for item in asked):
                self._asked[id] = {item for item in asked if item[0] != node}
                self._stale.add(id)

    # ------------------------------------------------------------ events about the cluster

    def _node_joined(self, event: NodeJoined) -> None:
        before = self.nodes.get(event.node)
        if before is None or not before.is_alive:
            self.ask_again(event.node)
            self._stale |= set(self.records)  # what final jobs left there is to be removed
            for record in self.records.values():
                lost_nodes.is_back(record, event.node)
        known = before or Node(name=event.node, address=event.address, devices=event.devices)
        self.nodes[event.node] = replace(
            known, address=event.address, devices=event.devices, cores=event.cores, host_bytes=event.host_bytes, is_alive=True
        )

    def _node_lost(self, event: NodeLost) -> None:
        node = self.nodes.get(event.node)
        if node is None or not node.is_alive:
            return
        for record in self.records.values():
            lost_nodes.lose(record, event.node, event.reason, event.time_s, self.config)
        self.nodes[event.node] = replace(node, is_alive=False)

    def _lease_ran_out(self, event: LeaseRanOut) -> None:
        for record in self.records.values():
            recovery.halted_on(record, event.node, event.time_s)

    def _node_cordoned(self, event: NodeCordoned) -> None:
        node = self.nodes.get(event.node)
        if node:
            self.nodes[event.node] = replace(node, is_cordoned=event.is_cordoned)

    def _node_drained(self, event: NodeDrained) -> None:
        node = self.nodes.get(event.node)
        if node:
            self.nodes[event.node] = replace(
                node, is_draining=event.is_draining, is_cordoned=event.is_draining, drain_by_s=event.by_s
            )
            for record in self.records.values():
                evacuating.asked(record)
                if event.is_draining and event.node in nodes_of(record.job.pinned):
                    record.change(pinned=())  # the later of two wishes counts

    def _link_measured(self, event: LinkMeasured) -> None:
        node = self.nodes.get(event.a)
        if event.a == event.b and node:
            self.nodes[event.a] = replace(node, local_bytes_per_s=event.link.bytes_per_s)
        self.links[min(event.a, event.b), max(event.a, event.b)] = event.link

    def _job_submitted(self, event: JobSubmitted) -> set[str]:
        if event.job not in self.records:
            job = Job(id=event.job, spec=event.spec, submitted_s=event.time_s, saved=event.saved)
            if event.saved:
                kept = checkpoints.kept_of(event.saved[-1], 1)
                job = replace(job, kept=kept, generations=1, steps_done=kept.step)
            self.records[event.job] = Record(job, losses_max=self.config.losses_max)
        return {event.job} & self.records.keys()

    def _cancel_asked(self, event: CancelAsked) -> set[str]:
        record = self.records.get(event.job)
        if record and not record.job.state.is_final and not record.job.cancel_asked:
            record.change(cancel_asked=True)
            gang.end(record, JobState.CANCELLED, "cancelled", event.time_s)
            if record.job.away:
                lost_nodes.stop_waiting(record, event.time_s, self.config)
        return {event.job} & self.records.keys()

    def _pause_asked(self, event: PauseAsked) -> set[str]:
        record = self.records.get(event.job)
        if record and not record.job.state.is_final:
            record.change(paused=True, failed_moves=0, not_before_s=0.0)
        return {event.job} & self.records.keys()

    def _resume_asked(self, event: ResumeAsked) -> set[str]:
        record = self.records.get(event.job)
        if record and not record.job.state.is_final:
            record.change(paused=False, failed_moves=0, not_before_s=0.0, reason="")
        return {event.job} & self.records.keys()

    def _migrate_asked(self, event: MigrateAsked) -> set[str]:
        """The policy moves it. A new wish is not held up by the failures of an earlier one; an empty placement ends it."""
        record = self.records.get(event.job)
        if record is None or record.job.state.is_final or len(event.placement) not in (0, record.job.workers):
            return set()
        wish: Placement = event.placement
        if wish and record.job.placement:
            wish = rearranged(record.job.placement, wish)
        if wish != record.job.pinned:
            record.change(pinned=wish, failed_moves=0, not_before_s=0.0)
        if wish and record.job.workers_asked:  # the later of two wishes counts
            record.change(workers_asked=len(wish))
        if wish and record.job.devices_asked:
            record.change(devices_asked=len(devices_of(wish)))
        if record.job.state is JobState.PENDING and len(record.job.intended) not in (0, len(wish)):
            record.change(intended=())
        return {event.job} & self.records.keys()

    def _wait_ended(self, event: WaitEnded) -> set[str]:
        record = self.records.get(event.job)
        if record and record.job.away:
            lost_nodes.stop_waiting(record, event.time_s, self.config)
        elif record:
            lost_nodes.give_up_unseen(record, event.time_s, self.config)
        return {event.job} & self.records.keys()

    def _checkpoint_asked(self, event: CheckpointAsked) -> set[str]:
        record = self.records.get(event.job)
        if record:
            checkpoints.ask(record, event.time_s)
        return {event.job} & self.records.keys()

    def _scale_asked(self, event: ScaleAsked) -> set[str]:
        """The policy does it. Earlier failures do not hold it up, and a wish to be somewhere is void."""
        record = self.records.get(event.job)
        if record and not record.job.state.is_final:
            record.change(
                devices_asked=event.devices, workers_asked=event.workers, pinned=(), failed_moves=0, not_before_s=0.0
            )  # fmt: skip
            if record.job.state is JobState.PENDING:
                record.change(intended=())  # what it was promised was for another number
        return {event.job} & self.records.keys()

    def _share_asked(self, event: ShareAsked) -> set[str]:
        """Instead of what the spec says, from now on; what was learned of it and its partners under other terms is forgotten."""
        record = self.records.get(event.job)
        if record and not record.job.state.is_final:
            record.change(share_asked=event.share, tried=(), friendliness=1.0)
            for other in self.records.values():
                other.change(tried=tuple(pair for pair in other.job.tried if pair[0] != event.job))
        return {event.job} & self.records.keys()

    def _sharing_measured(self, event: SharingMeasured) -> set[str]:
        """Time slices that go as expected say nothing of how these jobs get on inside a step; nor does computing freely, which is
        kept only where it brings more."""
        is_sliced = event.mode == "time-slice"
        if is_sliced and event.kept:
            return set()
        for id in event.jobs:
            record = self.records.get(id)
            if record and not record.job.state.is_final:
                tried = {(other, mode): total for other, mode, total in record.job.tried}
                tried |= {(other, event.mode): event.total for other in event.jobs if other != id}
                record.change(tried=tuple((*pair, total) for pair, total in sorted(tried.items())))
                if event.predicted > 0 and event.mode == "interleave":
                    before = record.job.friendliness
                    reached = min(1.0, event.total / event.predicted)
                    record.change(friendliness=round(before + FRIENDLINESS_RATE * (reached - before), 4))
        return set(event.jobs) & self.records.keys()

    def _schedule_adopted(self, event: ScheduleAdopted) -> set[str]:
        placements, reasons, sharing = dict(event.placements), dict(event.reasons), dict(event.sharing)
        changed: set[str] = set()
        for id in self._occupancy.active:
            record, before = self.records[id], self.records[id].job
            if before.away:
                continue
            then, reason, shares = placements.get(id, ()), reasons.get(id, before.reason), sharing.get(id)
            if before.state is JobState.STOPPING:
                reason = before.reason  # why it stops is what counts
            if then == before.intended and reason == before.reason and shares == before.sharing:
                continue
            record.change(reason=reason, sharing=shares, intended=before.intended if adopting.is_bound(record) else then)
            if record.job is not before:
                changed.add(id)
        return changed

    # ------------------------------------------------------------ help

    def _is_known(self, node: str) -> bool:
        """Late words of a lost node change nothing; its ranks are counted as gone. Ours carry no node."""
        return not node or (node in self.nodes and self.nodes[node].is_alive)

    def _switch_failed(self, record: Record, event: SwitchFailed) -> None:
        if record.rescue and record.rescue.vault == event.generation:
            recovery.give_up(record, event.reason, event.time_s)
        elif record.before and record.job.generation == event.generation:  # nobody went back: its leavers count as gone
            record.before = None
        elif suspending.is_resuming(record, event.generation):
            who = f"rank {event.rank} on {event.node}: " if event.rank >= 0 else f"{event.node}: " if event.node else ""
            is_source = bool(event.node) and event.rank < 0
            suspending.fail(record, who + event.reason, event.time_s, self.config, is_source=is_source)
        elif record.job.switch and record.job.switch.generation == event.generation:
            who = f"rank {event.rank} on {event.node}: " if event.rank >= 0 else ""
            switching.fail(record, who + event.reason, event.time_s, self.config)

    def _store_opened(self, record: Record, event: StoreOpened) -> None:
        gang.store_opened(record, event)
        switching.store_opened(record, event)

    def _twin_parked(self, record: Record, event: TwinParked) -> None:
        if suspending.is_resuming(record, event.generation):
            suspending.twin_parked(record, event, self.config)
        else:
            switching.twin_parked(record, event, self.config)

    def _rank_connected(self, record: Record, event: RankConnected) -> None:
        if suspending.is_resuming(record, event.generation):
            suspending.rank_connected(record, event)
        else:
            switching.rank_connected(record, event)

    def _rank_kept(self, record: Record, event: RankKept) -> None:
        suspending.rank_kept(record, event)
        recovery.rank_kept(record, event)

    def _rank_switched(self, record: Record, event: RankSwitched) -> None:
        if learned := learning.between(self.links, record, event):
            self.links[learned[0]] = learned[1]
        if suspending.is_resuming(record, event.generation):
            suspending.rank_switched(record, event)
        else:
            switching.rank_switched(record, event, self.config)

    _handlers: ClassVar[dict[type, Callable[..., Any]]] = {
        NodeJoined: _node_joined,
        NodeLost: _node_lost,
        LinkMeasured: _link_measured,
        LeaseRanOut: _lease_ran_out,
        NodeCordoned: _node_cordoned,
        NodeDrained: _node_drained,
        JobSubmitted: _job_submitted,
        CancelAsked: _cancel_asked,
        MigrateAsked: _migrate_asked,
        PauseAsked: _pause_asked,
        ResumeAsked: _resume_asked,
        ScheduleAdopted: _schedule_adopted,
        WaitEnded: _wait_ended,
        CheckpointAsked: _checkpoint_asked,
        ScaleAsked: _scale_asked,
        ShareAsked: _share_asked,
        SharingMeasured: _sharing_measured,
        StoreOpened: _store_opened,
        RankStarted: lambda self, record, event: gang.rank_started(record, event),
        RankReady: lambda self, record, event: gang.rank_ready(record, event),
        RankExited: lambda self, record, event: gang.rank_exited(record, event, self.config),
        Progressed: lambda self, record, event: gang.progressed(record, event),
        TwinParked: _twin_parked,
        RankConnected: _rank_connected,
        ShadowReady: lambda self, record, event: switching.shadow_ready(record, event),
        StepProposed: lambda self, record, event: switching.step_proposed(record, event),
        StepAccepted: lambda self, record, event: switching.step_accepted(record, event),
        StepRefused: lambda self, record, event: switching.step_refused(record, event),
        RankSwitched: _rank_switched,
        RankKept: _rank_kept,
        RankHalted: lambda self, record, event: recovery.rank_halted(record, event),
        RankRolledBack: lambda self, record, event: switching.rank_rolled_back(record, event, self.config),
        SwitchFailed: _switch_failed,
        DeviceFenced: lambda self, record, event: None,  # for people; the gate has dealt with it
        TurnGivenOn: lambda self, record, event: None,  # likewise
        RankHung: lambda self, record, event: hangs.rank_hung(record, event),
        JobHung: lambda self, record, event: hangs.job_hung(record, event),
        RankSlow: lambda self, record, event: hangs.rank_slow(record, event),
        CheckpointProposed: lambda self, record, event: checkpoints.proposed(record, event),
        SnapshotRefused: lambda self, record, event: checkpoints.refused(record, event),
        CheckpointWritten: lambda self, record, event: checkpoints.written(record, event),
        CheckpointFailed: lambda self, record, event: checkpoints.failed(record, event),
        VaultNotOnDisk: lambda self, record, event: suspending.not_on_disk(record, event),
        VaultMoveProposed: lambda self, record, event: evacuating.proposed(record, event),
        VaultOffered: lambda self, record, event: evacuating.offered(record, event),
        VaultMoved: lambda self, record, event: evacuating.moved(record, event),
        VaultMoveFailed: lambda self, record, event: evacuating.failed(record, event, self.config),
        LaunchFailed: lambda self, record, event: gang.launch_failed(record, event, self.config),
    }
