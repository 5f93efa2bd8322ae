"""From the controller's answers (JSON) to moments and happenings. Only this module knows their shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from restow.demo.timeline import Happening, JobSeen, Moment
from restow.placement import Slot, parse_slot


def moment(
    time_s: float, jobs: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]], link_bytes: int | None
) -> Moment:
    """What `ps` and `nodes` answered at that time."""
    devices = tuple(Slot(node["name"], device["index"]) for node in nodes for device in node["devices"])
    return Moment(time_s=time_s, devices=devices, jobs=tuple(_job(job) for job in jobs), link_bytes=link_bytes)


def _job(view: Mapping[str, Any]) -> JobSeen:
    switch = view["switch"]
    coming = [text for text in switch["placement"] if text not in view["placement"]] if switch else []
    return JobSeen(
        name=view["name"] or view["id"],
        id=view["id"],
        state=view["state"],
        slots=tuple(parse_slot(text) for text in view["placement"]),
        step=view["step"],
        steps_total=view["steps_total"],
        generation=view["generation"],
        phase=switch["phase"] if switch else "",
        coming=tuple(parse_slot(text) for text in coming),
        reason=(switch["reason"] if switch else "") or view["reason"],
        loss=view["values"].get("loss"),
        sharing=_sharing(view.get("sharing")),
    )


def _sharing(sharing: Mapping[str, Any] | None) -> str:
    """How it shares its devices now, in a word or two."""
    if not sharing:
        return ""
    if sharing["level"] == 0:
        return "protected"
    return f"best effort, {sharing['part']:.0%}" if sharing["level"] == 2 else str(sharing["mode"])


def happening(event: Mapping[str, Any], origin_s: float) -> Happening | None:
    """A sentence for those events that an audience wants to hear of; None for the rest."""
    kind, job = event["type"], str(event.get("job", ""))
    text = ""
    match kind:
        case "NodeJoined":
            count = len(event["devices"])
            text = f"{event['node']} joined with {count} device{'s' * (count != 1)}"
        case "NodeLost":
            text = f"{event['node']} is lost: {event['reason']}"
        case "RankKept":
            text = f"what rank {event['rank']} held at step {event['step']} is safe on {event['node']}"
        case "JobSubmitted":
            workers = event["spec"]["workers"]
            text = f"submitted, {workers} worker{'s' * (workers != 1)}"
        case "MovePredicted":
            text = f"restow decides: {event['move']['reason']}"
        case "TwinParked":
            text = f"the twin of rank {event['rank']} is ready on {event['node']}"
        case "RankSwitched":
            text = f"rank {event['rank']} goes on at step {event['step']} on {event['node']}"
        case "RankRolledBack":
            text = f"rank {event['rank']} goes on where it was, from step {event['step']}: {event['reason']}"
        case "SwitchFailed" | "LaunchFailed":
            text = f"rank {event['rank']} on {event['node']}: {event['reason']}"
        case "MoveMeasured":
            text = f"measured: step {event['step_before_s'] * 1e3:.0f} → {event['step_after_s'] * 1e3:.0f} ms"
        case "ShareAsked":
            share = event["share"]
            text = f"restow share {job}: " + ("protected" if share["protect"] else str(share["mode"]))
            job = ""
        case "SharingMeasured":
            text = f"restow measured {' and '.join(event['jobs'])}: {event['mode']}, together {event['total']:.2f}"
        case "RankExited" if event["role"] == "rank":
            reason = f": {event['reason']}" if event["code"] else ""
            text = f"rank {event['rank']} ended with {event['code']}{reason}"
    return Happening(time_s=event["time_s"] - origin_s, text=text, job=job) if text else None
