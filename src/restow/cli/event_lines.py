"""Journalled events as sentences, one line each, as they are on the wire. Knows no commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from restow.cli import show as out

Wire = dict[str, Any]


def event_line(event: Wire, job: str | None = None) -> str:
    """Time, kind, job and what happened. Of an event about several jobs only what concerns `job`, if given."""
    write = _SENTENCES.get(event["type"])
    if event["type"] == "ScheduleAdopted":
        sentence = _schedule(event, job)
    else:
        sentence = write(event) if write else _fields(event)
    about = event.get("job", "") + (f" g{event['generation']}" if event.get("generation") else "")
    return f"{out.clock(event['time_s'])}  {event['type']:<16} {about} {sentence}".rstrip()


def concerns(event: Wire, job: str) -> bool:
    """Is this event about this job, alone or among others?"""
    named = {event.get("job"), event.get("move", {}).get("job"), *event.get("jobs", ())}
    named |= {name for key in ("placements", "reasons", "sharing") for name, _ in event.get(key) or ()}
    return job in named


def slots(placement: list[Any]) -> str:
    """Slots as they are on the wire, [node, device, share], as they are written elsewhere."""
    return " ".join(f"{node}:{device}" for node, device, _ in placement) or "no device"


def _schedule(event: Wire, only: str | None) -> str:
    placements, reasons, sharing = dict(event["placements"]), dict(event["reasons"]), dict(event["sharing"])
    parts = []
    for name in sorted({*placements, *sharing}):
        if only in (None, name):
            words = [f"{name}:"] if only is None else []
            words += [slots(placements[name])] if name in placements else []
            shared = sharing.get(name)
            words += [f"with {' and '.join(shared['partners'])}, {shared['mode']}"] if shared else []
            words += [f"({reasons[name]})"] if reasons.get(name) else []
            parts.append(" ".join(words))
    return "; ".join(parts)


def _measured_together(event: Wire) -> str:
    speeds = ", ".join(f"{name} {speed:.2f}" for name, speed in zip(event["jobs"], event["speeds"], strict=True))
    kept = "kept" if event["kept"] else "parted"
    why = "" if event["reason"] in ("", kept) else f": {event['reason']}"
    return (
        f"{event['mode']}: {speeds}; together {event['total']:.2f} of one alone ({event['predicted']:.2f} predicted);"
        f" {kept}{why}"
    )


def _submitted(event: Wire) -> str:
    spec = event["spec"]
    least = f"{spec['workers_min']}.." if spec.get("workers_min") else ""
    return f"{least}{_count(spec['workers'], 'worker')}: {' '.join(spec['command'])}"


def _asked_to_share(event: Wire) -> str:
    share = event["share"]
    return f"{'allowed' if share['allow'] else 'not allowed'}, {share['mode']}{', protected' if share['protect'] else ''}"


def _predicted(event: Wire) -> str:
    move = event["move"]
    return (
        f"{move['job']}: {slots(move['now'])} → {slots(move['then'])}: step {out.seconds(move['step_now_s'])} →"
        f" {out.seconds(move['step_then_s'])}, pause {out.seconds(move['downtime_s'])} predicted; {move['reason']}"
    )


def _ready(event: Wire) -> str:
    if not event["movable"]:
        return f"{_rank(event)} cannot be moved live: {event['why_not']}"
    own = f", {out.size(event['private_bytes'])} of it its own" if event["private_bytes"] else ""
    return f"{_rank(event)} can be moved, state {out.size(event['state_bytes'])}{own}"


def _exited(event: Wire) -> str:
    code, reason = event["code"], event["reason"]
    how = "with success" if code == 0 else reason or (f"with code {code}" if code > 0 else f"by signal {-code}")
    return f"{_rank(event)} ended: {how}"


def _rank(event: Wire) -> str:
    """`rank 1 on m2`; its twin and the process that left are told apart."""
    role = event.get("role") or ""
    return {"twin": "twin of ", "leaver": "moved "}.get(role, "") + f"rank {event['rank']} on {event['node']}"


def _steps(steps: list[int]) -> str:
    return f"step {' and '.join(map(str, steps))}" if steps else "nothing"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _fields(event: Wire) -> str:
    """A kind without a sentence of its own: NAME=value of what is set."""
    told = {"type", "number", "time_s", "job", "generation"}
    return " ".join(f"{name}={value}" for name, value in event.items() if name not in told and value not in ("", None, []))


_SENTENCES: dict[str, Callable[[Wire], str]] = {
    "NodeJoined": lambda e: f"{e['node']} at {e['address']}, {_count(len(e['devices']), 'device')}",
    "NodeLost": lambda e: f"{e['node']}: {e['reason']}",
    "LeaseRanOut": lambda e: f"{e['node']}: heard nothing of the controller for too long and halted the ranks of scattered jobs",
    "NodeCordoned": lambda e: f"{e['node']}: nothing new is started there" if e["is_cordoned"] else f"{e['node']}: in use again",
    "NodeDrained": lambda e: f"{e['node']}: to be empty" if e["is_draining"] else f"{e['node']}: in use again",
    "LinkMeasured": lambda e: (f"{e['a']} – {e['b']}: " if e["a"] != e["b"] else f"within {e['a']}: ") + _fields(e["link"]),
    "JobSubmitted": _submitted,
    "CancelAsked": lambda e: "asked to end",
    "MigrateAsked": lambda e: f"asked to move to {slots(e['placement'])}",
    "PauseAsked": lambda e: "asked to pause",
    "ResumeAsked": lambda e: "asked to go on",
    "RankHung": lambda e: f"{e['job']}: rank {e['rank']} has made no step for {e['silent_s']:.0f} s; it is at " + (
        " > ".join(e["stack"]) or "a place that it does not tell"
    ),
    "JobHung": lambda e: f"{e['job']}: {e['reason']}",
    "RankSlow": lambda e: (
        f"{e['job']}: rank {e['rank']} computes {1e3 * e['own_s']:.0f} ms of each step, the others {1e3 * e['others_s']:.0f} ms"
    ),
    "WaitEnded": lambda e: f"{e['job']}: what is out of sight is not waited for any longer; it goes on from what is left",
    "CheckpointAsked": lambda e: f"{e['job']}: is to make a checkpoint",
    "CheckpointProposed": lambda e: f"{e['job']}: a checkpoint is to be made of step {e['step']}",
    "SnapshotRefused": lambda e: f"{e['job']}: rank {e['rank']} has passed step {e['step']}; the checkpoint is made of a later one",
    "CheckpointWritten": lambda e: (
        f"{e['job']}: checkpoint of step {e['step']} in {e['path']}: {e['bytes'] / 1e6:.3g} MB, written in {e['write_s']:.2g} s,"
        f" training stood still for {1e3 * e['blocked_s']:.3g} ms"
    ),
    "VaultNotOnDisk": lambda e: f"{e['node']}: the state of {e['job']} is in memory only: {e['reason']}",
    "CheckpointFailed": lambda e: f"{e['job']}: no checkpoint" + f" of step {e['step']}" * (e["step"] >= 0) + f": {e['reason']}",
    "ScaleAsked": lambda e: (
        f"{e['job']}: is to have {_count(e['devices'], 'device')}" if e["devices"]
        else f"{e['job']}: is to have {_count(e['workers'], 'worker')}" if e.get("workers")
        else f"{e['job']}: is to have as many devices as its spec says"
    ),
    "ShareAsked": _asked_to_share,
    "SharingMeasured": _measured_together,
    "MovePredicted": _predicted,
    "PolicyFailed": lambda e: f"{e['reason']}; everything stays as it is",
    "MoveMeasured": lambda e: out.move_line(e, slots) + (f"; {e['reason']}" if e["reason"] else ""),
    "StoreOpened": lambda e: f"the ranks meet at {e['host']}:{e['port']}",
    "RankStarted": lambda e: f"{_rank(e)} started, pid {e['pid']}",
    "RankReady": _ready,
    "RankExited": _exited,
    "DeviceFenced": lambda e: (
        f"{_rank(e)} held device {e['device']} for {out.seconds(e['held_s'])} while others waited"
        + (f": {e['reason']}" if not e["reason"].startswith("held it for") else "; it was stopped until its next turn")
    ),
    "TurnGivenOn": lambda e: f"{e['job']} did not use its turn on {e['node']}:{e['device']}, it is the next one's: {e['reason']}",
    "TwinParked": lambda e: f"twin of {_rank(e)} waits, a step alone took {out.seconds(e['rehearsal_step_s'])}",
    "RankConnected": lambda e: f"{_rank(e)} is connected",
    "ShadowReady": lambda e: f"twin of {_rank(e)} has the state and follows each step",
    "StepProposed": lambda e: f"switch after step {e['step']}?",
    "StepAccepted": lambda e: f"{e['node']}: yes, after step {e['step']}",
    "StepRefused": lambda e: f"{e['node']}: no, step {e['at']} is begun already",
    "RankSwitched": lambda e: (
        f"{_rank(e)} goes on after step {e['step']}, paused {out.seconds(e['pause_s'])}, received {out.size(e['wire_bytes'])}"
    ),
    "RankHalted": lambda e: (
        f"{_rank(e)} stands at step {e['step']}; there is: of its own {_steps(e['privates'])}, of all {_steps(e['holds'])}"
        f"{', copied ' + _steps(e['copied']) if e['copied'] else ''}"
    ),
    "RankKept": lambda e: (
        f"{_rank(e)} stopped after step {e['step']}, wrote {out.size(e['bytes'])} into the vault in {out.seconds(e['pause_s'])}"
    ),
    "RankRolledBack": lambda e: f"{_rank(e)} goes on as before at step {e['step']}: {e['reason']}",
    "SwitchFailed": lambda e: f"{_rank(e)}: {e['reason']}",
    "VaultMoveProposed": lambda e: f"what {e['node']} keeps of its state is to move to {e['target']}",
    "VaultOffered": lambda e: f"{e['node']} gives its state out at {e['host']}:{e['port']}",
    "VaultMoved": lambda e: (
        f"what {e['source']} kept of its state is on {e['node']}: {out.size(e['bytes'])} in {out.seconds(e['copy_s'])}"
    ),
    "VaultMoveFailed": lambda e: f"its state stays where it is{' (' + e['node'] + ')' if e['node'] else ''}: {e['reason']}",
    "LaunchFailed": lambda e: f"{_rank(e)} could not be started: {e['reason']}",
}
