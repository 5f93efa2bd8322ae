"""The controller as a process: `python -m restow.controller.daemon`. One per RESTOW_HOME.

SIGTERM lets go of the agents and ends; jobs go on, and the next controller finds them again. The socket's `stop` ends jobs
and agents first. Killed at any instant, it is replayed from the journal by its successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restow import config
from restow.controller.journal import Journal
from restow.controller.loop import Controller
from restow.controller.requests import Requests
from restow.controller.rpc import Server
from restow.core.config import CoreConfig
from restow.core.state import ClusterState
from restow.engine.base import Engine
from restow.engine.processes import started_of
from restow.errors import Refused, RestowError, SetupError
from restow.job import Job
from restow.messages import CancelAsked, NodeLost
from restow.own_policies import DEFAULT_POLICY, Bounded, find_policy
from restow.policies.base import Policy
from restow.policies.restow import Restow

log = logging.getLogger("restow.controller")

DECISION_S_MAX = 10.0  # nothing else is done meanwhile; a policy of one's own may loop
END_JOBS_S_MAX = 30.0  # beyond each job's own grace


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this home. Raises Refused, naming the holder, when there is one.

    The kernel drops the lock with its holder, so a stale file is no obstacle; pid and start time in it are for people.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").split()
            pid = holder[0] if holder else "unknown"
            raise Refused(f"a controller runs already for {path.parent} (process {pid}); restow down ends it") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {started_of(os.getpid())}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


async def serve(
    home: config.Home, engine: Engine, *, cluster_secret: str, about: dict[str, Any], policy: Policy | None = None,
    core: CoreConfig | None = None,
) -> None:  # fmt: skip
    """Run until SIGTERM, SIGINT or `stop`. Raises SetupError when something that it needs is missing."""
    stopping: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def shut_down(end_agents: bool) -> None:
        if not stopping.done():
            stopping.set_result(end_agents)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, shut_down, False)
    journal = Journal(home.journal)
    await engine.start()
    controller = Controller(
        state=ClusterState(cluster_secret, core), policy=policy or Restow(), journal=journal, engine=engine
    )
    server = Server(home.socket, Requests(controller, about={**about, "pid": os.getpid()}, shut_down=shut_down))
    running = asyncio.create_task(controller.run())
    await server.open()
    log.info("serving %s", home.socket)
    either: set[asyncio.Future[Any]] = {running, stopping}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    end_agents = stopping.done() and stopping.result()
    if end_agents and not running.done():
        await end_jobs(controller)
    await server.close()
    failed = running.done() and running.exception()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    controller.keep_progress()
    if end_agents:
        nodes = [node for node in controller.state.snapshot(time.time()).nodes if node.is_alive]
        journal.append([NodeLost(time_s=time.time(), node=node.name, reason="taken down") for node in nodes])
    await engine.stop(end_agents=end_agents)
    journal.close()
    log.info("ended")
    if failed:
        raise failed


async def end_jobs(controller: Controller) -> None:
    """Cancel every job and wait until each has ended, for the longest grace and a while. Suspended ones stay, their state kept."""
    unfinished = _unfinished(controller)
    await controller.take([CancelAsked(time_s=controller.now(), job=job.id) for job in unfinished])
    limit_s = END_JOBS_S_MAX + max((job.spec.stop_grace_s for job in unfinished), default=0.0)
    try:
        async with asyncio.timeout(limit_s):
            while True:
                changed = controller.changed
                if not _unfinished(controller):
                    return
                await changed.wait()
    except TimeoutError:
        log.error("not ended within %.0f s: %s", limit_s, [job.id for job in _unfinished(controller)])


def _unfinished(controller: Controller) -> list[Job]:
    return [job for job in controller.state.jobs.values() if not (job.state.is_final or job.is_suspended)]


def main() -> int:
    """Entry of the process; what goes wrong is one line in its log and in `controller.error`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    home = config.home()
    home.make()
    try:
        with locked(home.lock):
            from restow.engine.ray import RayEngine

            try:
                cluster = json.loads(home.cluster.read_text())
            except (OSError, ValueError) as error:
                raise SetupError(f"{home.cluster} cannot be read: {error}; run restow up") from None
            token = config.read_token(home.token)
            engine = RayEngine(gcs=cluster["gcs"], token_file=home.token, cluster_id=cluster["cluster_id"])
            policy = Bounded(find_policy(cluster.setdefault("policy", DEFAULT_POLICY)), DECISION_S_MAX)
            asyncio.run(serve(home, engine, cluster_secret=config.cluster_secret_of(token), about=cluster, policy=policy))
    except RestowError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
