"""Talking to the controller from another process: the CLI, the demo, a notebook. Standard library only, so it starts fast.

client = Client()
job = client.submit({"command": ["python", "train.py"], "workers": 2, "cwd": "/work"})
for event in client.events(follow=True): ...
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

from restow import config, errors
from restow.errors import RestowError, Unreachable


class Client:
    """One connection per request. Every method raises Unreachable when no controller answers."""

    def __init__(self, home: config.Home | None = None, *, answer_s_max: float = 60.0):
        self._home = home or config.home()
        self._answer_s_max = answer_s_max

    def ping(self) -> dict[str, Any]:
        """Who answers: cluster id, address of Ray, nodes, unfinished jobs."""
        return self._ask("ping")

    def submit(self, spec: dict[str, Any], *, queue: bool = False) -> dict[str, Any]:
        """`spec` holds the fields of JobSpec; returns the job's view. `queue`: accept more workers than there are devices."""
        return self._ask("submit", spec=spec, queue=queue)

    def ps(self, *, every: bool = True) -> list[dict[str, Any]]:
        """All jobs, or those that are not final."""
        return self._ask("ps", every=every)

    def show(self, job: str) -> dict[str, Any]:
        return self._ask("show", job=job)

    def nodes(self) -> list[dict[str, Any]]:
        return self._ask("nodes")

    def snapshot(self) -> dict[str, Any]:
        """The cluster as a policy sees it now, as `restow simulate` reads it."""
        return self._ask("snapshot")

    def events(self, *, after: int = 0, follow: bool = False) -> Iterator[dict[str, Any]]:
        """Journalled events numbered above `after`; with `follow` for ever."""
        return self._stream("events", after=after, follow=follow)

    def logs(
        self, job: str, *, rank: int | None = None, follow: bool = False, tail: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Pieces of text with their rank; with `follow` until the job is final. `tail`: only so many lines of each rank, and what
        follows."""
        return self._stream("logs", job=job, rank=rank, follow=follow, tail=tail)

    def wait(self, job: str, *, limit_s: float | None = None) -> dict[str, Any]:
        """The job's view once it is final. Raises TimeoutError after `limit_s`."""
        return self._ask("wait", job=job, limit_s=limit_s, for_ever=limit_s is None)

    def cancel(self, job: str) -> dict[str, Any]:
        return self._ask("cancel", job=job)

    def pause(self, job: str) -> dict[str, Any]:
        """Let it give its devices back; its state is kept."""
        return self._ask("pause", job=job)

    def resume(self, job: str) -> dict[str, Any]:
        return self._ask("resume", job=job)

    def cordon(self, node: str, *, on: bool = True) -> dict[str, Any]:
        """Start nothing new on this node (or start things there again)."""
        return self._ask("cordon", node=node, on=on)

    def drain(self, node: str, *, on: bool = True, deadline_s: float = 0.0, apply: bool = True) -> dict[str, Any]:
        """Empty this node (or let it be used again); what happens to each job there."""
        return self._ask("drain", node=node, on=on, deadline_s=deadline_s, apply=apply)

    def migrate(self, job: str, *, to: str | None = None, pack: bool = False) -> dict[str, Any]:
        """`to` names one slot per rank, "m1:0 m1:1"; `pack` lets restow choose the fewest nodes."""
        return self._ask("migrate", job=job, to=to, pack=pack)

    def checkpoint(self, job: str) -> dict[str, Any]:
        """Let the job make a checkpoint now."""
        return self._ask("checkpoint", job=job)

    def checkpoints(self, job: str) -> dict[str, Any]:
        """Where its checkpoints are, and which are known."""
        return self._ask("checkpoints", job=job)

    def restore(self, job: str, *, step: int = -1) -> dict[str, Any]:
        """Hand it in again as another job, which goes on from this checkpoint (-1: the newest)."""
        return self._ask("restore", job=job, step=step)

    def scale(self, job: str, devices: int) -> dict[str, Any]:
        """So many devices from now on, its ranks taking turns where these are fewer; 0: as many as its spec says."""
        return self._ask("scale", job=job, devices=devices)

    def share(self, job: str, **share: Any) -> dict[str, Any]:
        """`share` holds fields of ShareSpec: allow, mode, protect, max_slowdown, memory_bytes; the others stay as they are."""
        return self._ask("share", job=job, share=share)

    def explain(self, job: str) -> dict[str, Any]:
        """Why it is where it is and shares as it does, what was predicted and what was measured."""
        return self._ask("explain", job=job)

    def defrag(self, *, apply: bool = False) -> dict[str, Any]:
        """The moves that the policy would make now; with `apply` they are begun."""
        return self._ask("defrag", apply=apply)

    def stop(self, *, end_agents: bool) -> None:
        """End the controller, with `end_agents` also every job and agent."""
        self._ask("stop", end_agents=end_agents)

    # -------------------------------------------------------- within

    def _ask(self, verb: str, *, limit_s: float | None = None, for_ever: bool = False, **arguments: Any) -> Any:
        with self._connect(None if for_ever else limit_s or self._answer_s_max) as connection:
            for answer in self._answers(connection, verb, arguments, limit_s):
                return answer.get("answer")
        raise Unreachable(f"the controller of {self._home.path} hung up; restow up brings it back")

    def _stream(self, verb: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        with self._connect(None) as connection:
            for answer in self._answers(connection, verb, arguments, None):
                if "end" in answer:
                    return
                yield answer["item"]
        raise Unreachable(f"the controller of {self._home.path} hung up; restow up brings it back")

    def _connect(self, limit_s: float | None) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(limit_s)
        try:
            connection.connect(str(self._home.socket))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            joined = any(self._home.nodes.glob("*.json")) and not self._home.cluster.exists()
            way_out = "this machine has joined another's cluster, ask there" if joined else "start one with restow up"
            if self._home.is_being_changed():
                way_out = "restow up or down is at work there, wait until it has finished"
            raise Unreachable(f"no controller runs for {self._home.path}; {way_out} (or set RESTOW_HOME)") from None
        except OSError as error:
            connection.close()
            raise Unreachable(
                f"controller at {self._home.socket}: {error.strerror or error}; set RESTOW_HOME to the folder of restow up"
            ) from None
        return connection

    def _answers(
        self, connection: socket.socket, verb: str, arguments: dict[str, Any], limit_s: float | None
    ) -> Iterator[dict[str, Any]]:
        try:
            connection.sendall(json.dumps({"do": verb, "arguments": arguments}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if "error" in answer:
                        raise getattr(errors, answer["error"], RestowError)(answer["line"])
                    yield answer
        except TimeoutError:
            if limit_s is not None:
                raise
            raise Unreachable(
                f"the controller of {self._home.path} does not answer within {self._answer_s_max:.0f} s"
            ) from None
        except ConnectionError:
            return  # the caller says that it hung up
