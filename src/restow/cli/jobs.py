"""The commands about jobs: submit, ps, show, logs, wait, cancel."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from restow import spec as specs
from restow.cli import show as out
from restow.cli.options import json_option
from restow.client import Client
from restow.errors import SpecError


@click.command()
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SPEC.yaml | -- COMMAND...]")
@click.option("-n", "--workers", metavar="N|LOW..HIGH", help="Size of the gang (default 1), or a range that it may have.")
@click.option("--devices", metavar="N|LOW..HIGH", help="It may have fewer devices than workers, which then take turns.")
@click.option("--name", help="The job's id is made from it; default: the script's name.")
@click.option("--env", multiple=True, metavar="K=V", help="Set a variable for the workers; may be repeated.")
@click.option("--cwd", type=click.Path(file_okay=False), help="Where the command runs; default: here.")
@click.option("--memory", metavar="SIZE", help="Peak device memory of one worker, for example 8GB; default: as measured.")
@click.option("--fill", help="How moved workers get their state: auto (default), replica, copy or shadow.")
@click.option("--no-migrate", is_flag=True, help="restow must not move it by itself.")
@click.option("--no-recover", is_flag=True, help="The job fails when a worker is killed or its machine lost.")
@click.option("--max-pause-s", type=float, help="The longest pause that one move may cost (default 60).")
@click.option("--priority", type=int, help="Running jobs of a lower one step aside for it, if need be (default 0).")
@click.option("--checkpoint", metavar="EVERY", help="Make checkpoints: 10min, 500steps ... (restow checkpoint --help).")
@click.option("--share", metavar="MODE", help="auto (default), exclusive, interleave, time-slice, best-effort or free.")
@click.option("--protect", is_flag=True, help="Jobs that share its devices run in its idle time only.")
@click.option("--queue", is_flag=True, help="Accept more workers than the cluster has devices; the job waits for more.")
@click.option("-f", "--follow", is_flag=True, help="Print what it prints until it has ended.")
@click.option("-w", "--wait", "wait_", is_flag=True, help="Return when it has ended.")
@json_option
def submit(
    words: tuple[str, ...], workers: str | None, devices: str | None, name: str | None, env: tuple[str, ...],
    cwd: str | None, memory: str | None, fill: str | None, no_migrate: bool, no_recover: bool, max_pause_s: float | None,
    priority: int | None, checkpoint: str | None, share: str | None, protect: bool, queue: bool, follow: bool, wait_: bool,
    json_: bool,
) -> int:  # fmt: skip
    """Hand in a job, as a YAML spec or as a command.

    \b
      restow submit train.yaml
      restow submit -n 2 -- python train.py --lr 0.1
      restow submit -n 4 --name gpt --env SEED=7 -f -- python -m my.training

    \b
    The keys of a spec: name, command (needed), workers, devices, cwd, env, memory, steps, deadline, tenant, migrate, fill,
    max_pause_s, stop_grace_s, priority, retries, hang, slow, recover, checkpoint (true, a time, or these under it: folder,
    every, keep, shared), share (true, false, a mode, or these under it: allow, mode, protect, max_slowdown, memory, quantum, link).
    Options given beside a spec win, those of share one by one. The command is started once per worker, with
    torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR ...). With -f or -w the exit code is 0 if the job ended with
    success, else 1. Ctrl-C stops the following, never the job.
    """
    written: dict[str, Any] = {
        "workers": workers, "devices": devices, "name": name, "env": pairs(env), "cwd": cwd, "memory": memory, "fill": fill,
        "max_pause_s": max_pause_s, "migrate": False if no_migrate else None,
        "recover": False if no_recover else None, "checkpoint": checkpoint, "priority": priority,
        "share": {**({"mode": share} if share else {}), **({"protect": True} if protect else {})} or None,
    }  # fmt: skip
    written = {key: value for key, value in written.items() if value is not None}
    if not words:
        raise SpecError(
            "nothing to run; give a spec (restow submit train.yaml) or a command (restow submit -- python train.py)"
        )
    is_spec = words[0].endswith((".yaml", ".yml"))
    if is_spec and len(words) > 1:
        raise SpecError(f"both a spec ({words[0]}) and a command ({' '.join(words[1:])}); give one of them")
    if is_spec:
        asked = specs.load(Path(words[0]), cwd=Path.cwd(), instead=written)
    else:
        asked = specs.build({"command": list(words), **written}, cwd=Path.cwd())
    client = Client()
    job = client.submit(dataclasses.asdict(asked), queue=queue)
    try:
        if not json_:
            click.echo(f"{job['id']}: {job['state']}, {job['workers']} worker{'s' * (job['workers'] != 1)}")
        if follow:
            print_logs(client.logs(job["id"], follow=True), prefixed=asked.workers > 1, json_=json_)
        if follow or wait_:
            job = client.wait(job["id"])
    except KeyboardInterrupt:
        click.echo(f"\n{job['id']} goes on; restow cancel {job['id']} ends it", err=True)
        raise
    if (follow or wait_) and not json_:
        say_end(job)
    if json_:
        out.as_json(job)
    return exit_code(job)


@click.command()
@click.option("-r", "--running", is_flag=True, help="Only jobs that have not ended.")
@json_option
def ps(running: bool, json_: bool) -> None:
    """List jobs: where each worker is, how far and how fast.

    \b
      restow ps            all jobs, oldest first
      restow ps -r         those that have not ended
      restow ps --json     with the measured moves of each
    """
    jobs = Client().ps(every=not running)
    if json_:
        out.as_json(jobs)
        return
    if not jobs:
        click.echo("no jobs; hand one in with restow submit")
        return
    rows = [
        [
            job["id"], _state(job), str(job["workers"]), out.places(job["placement"]), out.steps(job),
            out.seconds(job["step_s"]), str(len(job["moves"]) or "-"), job["reason"],
        ]
        for job in jobs
    ]  # fmt: skip
    out.table(["JOB", "STATE", "N", "WHERE", "STEP", "S/STEP", "MOVES", "WHY"], rows)


@click.command()
@click.argument("job")
@json_option
def show(job: str, json_: bool) -> None:
    """Show all about one job: its ranks, why it is where it is, what its moves cost and brought.

    JOB is an id, or the beginning of one if it is the only such.

    \b
      restow show digits-1
      restow show digits-1 --json
    """
    found = Client().show(job)
    if json_:
        out.as_json(found)
        return
    profile, lines = found["profile"], []
    lines.append(("state", _state(found) + (f", {found['reason']}" if found["reason"] else "")))
    lines.append(("command", " ".join(found["spec"]["command"])))
    lines.append(("cwd", found["spec"]["cwd"]))
    if found["spec"]["workers_min"]:
        lines.append(("workers", f"{found['workers']} of {found['spec']['workers_min']}..{found['spec']['workers']}"))
    lines.append(("step", f"{out.steps(found)}, {out.seconds(found['step_s'])} each"))
    if found["values"]:
        lines.append(("reports", "  ".join(f"{name}={value:.6g}" for name, value in found["values"].items())))
    lines.append(("waiting", f"{out.seconds(profile['exposed_s'])} of each step for communication"))
    lines.append(
        ("state size", f"{out.size(profile['state_bytes'])} per rank" if profile["state_bytes"] else "not known")
    )
    lines.append(("movable", _movable(found)))
    if found["checkpoint"] or found["checkpoint_why"]:
        lines.append(("checkpoint", _checkpoint(found)))
    if found["sharing"]:
        lines.append(("shares", f"{out.sharing(found['sharing'])}; restow explain {found['id']} says more"))
    if found["switch"]:
        switch = found["switch"]
        lines.append(
            (
                "moving",
                f"to {out.places(switch['placement'])}, {switch['phase']}, fill {switch['fill']}; {switch['reason']}",
            )
        )
    if found["kept"]:
        kept = found["kept"]
        memory = f" (not on disk on {' and '.join(kept['in_memory'])})" if kept["in_memory"] else ""
        lines.append(("kept", f"its state of step {kept['step']}, on {' and '.join(kept['nodes'])}{memory}"))
    for move in found["moves"]:
        lines.append(("moved", out.move_line(move) + (f"; {move['reason']}" if move["reason"] else "")))
    click.echo(click.style(found["id"], bold=True))
    for name, text in lines:
        click.echo(f"  {name:<11} {text}")
    if found["ranks"]:
        click.echo()
        rows = [
            [
                str(rank["rank"]), rank["slot"], "alive" if rank["alive"] else "-",
                "-" if rank["step"] is None else str(rank["step"]), out.seconds(rank["step_s"]), out.seconds(rank["exposed_s"]),
            ]
            for rank in found["ranks"]
        ]  # fmt: skip
        out.table(["RANK", "SLOT", "", "STEP", "S/STEP", "WAITING"], rows)


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--rank", type=int, help="Only this rank.")
@click.option("--tail", type=click.IntRange(min=0), help="Only so many of the last lines of each rank.", metavar="LINES")
@json_option
def logs(job: str, follow: bool, rank: int | None, tail: int | None, json_: bool) -> None:
    """Print what a job's workers printed, across its moves.

    Lines begin with their rank when there are several. Ctrl-C stops the following, never the job.

    \b
      restow logs digits-1 -f
      restow logs digits-1 --rank 0 --tail 20
    """
    client = Client()
    workers = client.show(job)["spec"]["workers"]
    print_logs(client.logs(job, rank=rank, follow=follow, tail=tail), prefixed=rank is None and workers > 1, json_=json_)


@click.command()
@click.argument("job")
@click.option("--limit-s", type=float, help="Give up after so many seconds (exit code 5); default: never.")
@json_option
def wait(job: str, limit_s: float | None, json_: bool) -> int:
    """Wait until a job has ended; exit code 0 if with success, else 1.

    \b
      restow wait digits-1 && python evaluate.py
    """
    from restow.errors import Unreachable

    try:
        ended = Client().wait(job, limit_s=limit_s)
    except TimeoutError:
        raise Unreachable(f"job {job} has not ended within {limit_s:g} s") from None
    if json_:
        out.as_json(ended)
    else:
        say_end(ended)
    return exit_code(ended)


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@json_option
def cancel(jobs: tuple[str, ...], json_: bool) -> None:
    """End jobs: SIGTERM to every worker, SIGKILL after the spec's stop_grace_s (10 s unless it says otherwise).

    \b
      restow cancel digits-1 gpt-2
    """
    client = Client()
    cancelled = [client.cancel(job) for job in jobs]
    if json_:
        out.as_json(cancelled)
    else:
        for job in cancelled:
            click.echo(f"{job['id']}: {job['state']}")


def pairs(env: Iterable[str]) -> dict[str, str] | None:
    pairs = {}
    for pair in env:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise SpecError(f"--env is {pair!r}; write NAME=value")
        pairs[name] = value
    return pairs or None


def _state(job: dict[str, Any]) -> str:
    return f"{job['state']} (moving)" if job["switch"] else str(job["state"])


def _checkpoint(found: dict[str, Any]) -> str:
    """The last one, and whether it should have been another."""
    last, why = found["checkpoint"], found["checkpoint_why"]
    made = time.strftime("%H:%M:%S", time.localtime(last["time_s"])) if last else ""
    there = f"step {last['step']} at {made}, {last['path']}" if last else "none"
    return f"{there}; a later one could not be made: {why}" if why and last else f"{there}: {why}" if why else there


def _movable(job: dict[str, Any]) -> str:
    """How it would move, and what that would cost."""
    if job["state"] not in ("starting", "running"):
        return "no, it does not run"
    if job["movable"]:
        return "yes, live"
    if not job["why_not"]:
        return "not yet: it has not finished its first steps under the SDK"
    return (
        f"not live: {job['why_not']}. restow migrate stops it (SIGTERM, {job['spec']['stop_grace_s']:g} s for its own"
        f" checkpoint) and starts it again: a pause of about {job['restart_s']:.0f} s and the steps since that checkpoint"
    )


def say_end(job: dict[str, Any]) -> None:
    reason = job["reason"] if job["reason"] != job["state"] else ""
    click.echo(f"{job['id']}: {job['state']}" + (f": {reason}" if reason else ""))


def exit_code(job: dict[str, Any]) -> int:
    return 1 if job["state"] in ("failed", "cancelled") else 0


def print_logs(pieces: Iterable[dict[str, Any]], *, prefixed: bool, json_: bool) -> None:
    """Whole lines only, so that ranks don't mix within one; what is left of a line comes at the end."""
    rests: dict[int, str] = {}
    for piece in pieces:
        if json_:
            out.as_json_line(piece)
            continue
        rank = piece["rank"]
        mark = f"[{rank}] " if prefixed else ""
        *lines, rests[rank] = (rests.get(rank, "") + piece["text"]).split("\n")
        for line in lines:
            click.echo(mark + line)
    for rank, rest in sorted(rests.items()):
        if rest:
            click.echo((f"[{rank}] " if prefixed else "") + rest)
