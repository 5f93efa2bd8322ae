"""`restow.init()` and the object it returns: what a training script sees.

Without restow (plain python, torchrun) everything here still works and does the obvious thing, so a script is written once.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from restow.errors import ScriptError
from restow.sdk import randomness
from restow.sdk.boxes import StateTable
from restow.sdk.data import Feed
from restow.sdk.environment import read_environment, torchrun_environment
from restow.sdk.group import groups, trace_hash
from restow.sdk.worker import Worker, no_table

REHEARSAL_STEPS = 3  # the first reduces in registration order, the second rebuilds DDP's buckets, the third is typical ...
REHEARSAL_STEPS_MAX = 256  # ... or the first one after it that has an update: a script may add up gradients over several


class Job:
    """A training job as its script sees it. Made by `restow.init`."""

    def __init__(self, *, worker: Worker | None, rank: int, world_size: int, local_rank: int, seed: int | None):
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self.step = 0  # finished steps
        self.is_rehearsal = bool(worker and worker.is_twin)
        self._worker = worker
        self._seed = seed
        self._objects: dict[str, Any] = {}
        self._table: StateTable | None = None
        self._loops = 0
        self._own_signature = ""

    @property
    def device(self) -> torch.device:
        """Where this worker computes: its own GPU, else the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", min(self.local_rank, torch.cuda.device_count() - 1))

    # ------------------------------------------------------------ before the loop

    def prepare(self, *objects: Any) -> Any:
        """Register what is trained: modules, optimizers, schedulers, scalers. Returns them in the same order.

        A module is wrapped in DistributedDataParallel when there are several workers and it is not wrapped yet (a module
        without trainable parameters is not).
        """
        prepared = [self._wrap(thing) if isinstance(thing, torch.nn.Module) else thing for thing in objects]
        for thing in prepared:
            if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
                raise ScriptError(
                    f"prepare was given a {type(thing).__name__}, which has no state_dict and load_state_dict"
                )
            self._objects[self._name_for(thing)] = thing
        return prepared[0] if len(prepared) == 1 else tuple(prepared)

    def carry(self, name: str, thing: Any) -> Any:
        """Let `thing` (anything with `state_dict` and `load_state_dict`) travel with the job. Returns it."""
        if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise ScriptError(
                f"carry({name!r}) was given a {type(thing).__name__}, which has no state_dict and load_state_dict"
            )
        if name in self._objects:
            raise ScriptError(f"carry({name!r}): this name is taken; choose another")
        self._objects[name] = thing
        return thing

    def _wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        is_trained = any(parameter.requires_grad for parameter in module.parameters())
        if self.world_size == 1 or isinstance(module, DistributedDataParallel) or not is_trained:
            return module
        device_ids = [self.device.index] if next(module.parameters()).is_cuda else None
        return DistributedDataParallel(module, device_ids=device_ids)

    def _name_for(self, thing: Any) -> str:
        if isinstance(thing, torch.nn.Module):
            kind = "model"
        elif isinstance(thing, torch.optim.Optimizer):
            kind = "optimizer"
        else:
            kind = type(thing).__name__.lower()
        taken = [name for name in self._objects if name.rstrip("0123456789") == kind]
        return f"{kind}{len(taken) + 1}" if taken else kind

    # ------------------------------------------------------------ the loop

    def steps(self, loader: Iterable[Any], total: int | None = None) -> Iterator[Any]:
        """The batches to train on, one per step, over as many epochs as `total` steps take (None: until you break).

        Between two batches the job can be moved. The order of the data is a function of the seed, the epoch and the sample's
        global index; a loader that is not distributed yet is sharded over the workers.
        """
        self._loops += 1
        if self._worker is None:
            yield from self._plain_steps(loader, total)
        else:
            yield from self._moving_steps(self._worker, loader, total)

    def _plain_steps(self, loader: Iterable[Any], total: int | None) -> Iterator[Any]:
        self._seed_rank()
        first = self.step
        for batch in self._feed(loader, 0):
            if total is not None and self.step - first >= total:
                return
            yield batch
            self.step += 1

    def _feed(self, loader: Iterable[Any], start_step: int) -> Feed:
        most = self._worker.environment.workers_most if self._worker else 0
        return Feed(
            loader, seed=self._seed or 0, rank=self.rank, world_size=self.world_size, start_step=start_step, workers_most=most
        )  # fmt: skip

    def _moving_steps(self, worker: Worker, loader: Iterable[Any], total: int | None) -> Iterator[Any]:
        if worker.table is None:
            if not any(isinstance(thing, torch.optim.Optimizer) for thing in self._objects.values()):
                raise no_table()
            self._table = StateTable(self._objects)
            worker.register(self._table)
        table = self._table
        assert table
        feed = self._feed(loader, 0)
        has_arrived = worker.is_twin
        if has_arrived:
            yield from self._rehearse(worker, feed)
            feed = self._arrive(worker, loader)
        else:
            self._seed_rank()
        step = first = self.step
        worker.begin(step, total)
        if self._loops > 1:
            worker.stay(self._own_signature, self._why_not(feed))
        introduction = None if self._own_signature else _Typical(worker)
        batches = iter(feed)

        def capture() -> bytes:
            return table.capture_private(
                {
                    "step": step,
                    "left_at_s": time.time(),
                    "feed": feed.position(),
                    "optimizer_steps": worker.optimizer_steps,
                    "values": worker.values,
                }
            )

        passage, attention, sentinel = worker.passage, worker.attention, worker.sentinel
        assert attention
        if has_arrived and sentinel:
            sentinel.at_save_point(step, capture)  # it may be lost in its very first step here
        try:
            while total is None or step < total:
                batch = passage.fetch(batches, _END) if passage and not attention.is_away else next(batches, _END)
                if batch is _END:
                    return
                yield batch
                step += 1
                self.step = step
                is_new = introduction is not None and introduction.is_over(step - first)
                if is_new:
                    introduction = None
                if sentinel and introduction is None:
                    sentinel.at_save_point(step, capture)
                if attention.passes(step):
                    continue
                if worker.snapshots and worker.snapshots.is_due(step):
                    worker.snapshots.take(step, capture)
                if is_new:  # now it can say what this rank is
                    self._own_signature = self._signature()
                    worker.say_ready(self._own_signature, self._why_not(feed))
                is_near = worker.after_step(step) and self._loops == 1
                worker.save_point(step)
                if is_near:
                    if passage:
                        passage.lend()
                    worker.switches.at_switch(step, capture)
                    if not worker.sleep.is_over:
                        feed.close()
                        feed = self._arrive(worker, loader)
                        batches, step, passage = iter(feed), self.step, worker.passage
                        worker.begin(step, total)
                        if sentinel:
                            sentinel.at_save_point(step, capture)
                if introduction is None:
                    worker.turn()
        finally:
            worker.end_loop()  # also when the script breaks out of it

    def _why_not(self, feed: Feed) -> str:
        if self._loops > 1:
            return "job.steps was called a second time; use one loop with total= over all epochs"
        return feed.why_not

    def _signature(self) -> str:
        """Equal on every rank and twin of a data-parallel job: what is trained by which code, then, after a point, buckets and
        collectives of one step, which may be others in a gang of another size."""
        assert self._table
        what, parts = f"{self._table.signature()}|{_code_hash()}", list[str]()
        for group in groups:
            parts.append(trace_hash(group.trace or []))
            group.rehearsed, group.trace = group.trace or [], None
        for thing in self._objects.values():
            if isinstance(thing, DistributedDataParallel):
                layout = thing._get_ddp_logging_data()
                parts.append(str(layout.get("rebuilt_bucket_sizes", "")))
        return ".".join(hashlib.sha256(text.encode()).hexdigest()[:24] for text in (what, "|".join(parts)))

    # ------------------------------------------------------------ twins

    def _rehearse(self, worker: Worker, feed: Feed) -> Iterator[Any]:
        """A few steps on the solo group: buckets rebuilt, optimizer state made, kernels tuned, memory touched. Then park."""
        batches, typical = iter(feed), _Typical(worker)
        for step in itertools.count():
            self.step = step
            is_over = step > 0 and typical.is_over(step)
            if is_over:
                self._own_signature = self._signature()
            batch = worker.passage.fetch(batches, _END) if worker.passage else next(batches, _END)
            if batch is _END:
                raise ScriptError(f"the loader ended after {step} batches; a twin needs {REHEARSAL_STEPS + 1} to rehearse")
            began_s = time.perf_counter()
            yield batch
            rehearsal_step_s = time.perf_counter() - began_s
            if is_over:
                break
        self.step = 0
        feed.close()
        if worker.passage:
            worker.passage.lend()
        worker.park()
        worker.channel.tell(type="parked", signature=self._own_signature, rehearsal_step_s=rehearsal_step_s)

    def _arrive(self, worker: Worker, loader: Iterable[Any]) -> Feed:
        """Park until the switch; from here on this process is the rank."""
        feed = self._feed(loader, 0)
        extra = worker.switches.arrive(feed.seek)
        worker.values = dict(extra["values"])
        feed.restore(extra["feed"])
        self.step = int(extra["step"])
        self.is_rehearsal = False
        if extra["is_new_rank"]:  # what it was given is another rank's, whose random numbers it must not draw
            randomness.seed_rank(randomness.mix(self._seed or 0, self.rank, self.step))
        assert self._table
        worker.say_ready(self._own_signature, self._why_not(feed))
        return feed

    # ------------------------------------------------------------ a device that others use too

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The device is ours inside, for loops of one's own: `with job.turn(): loss = step(batch)`. Nothing where nobody shares it.
        Waits until others have made room; inside do not wait for anything else than the device."""
        passage = self._worker.open_passage(self.device) if self._worker else None
        if passage is None:
            yield
            return
        with passage.held():
            yield

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The device is lent inside: around waits that restow cannot know, such as one for another service or a lock."""
        passage = self._worker.open_passage(self.device) if self._worker else None
        if passage is None:
            yield
            return
        passage.lend()
        try:
            yield
        finally:
            passage.take()

    # ------------------------------------------------------------ reports

    def report(self, **values: float) -> None:
        """Numbers for `restow show` and the dashboard, for example `job.report(loss=loss.item())`. Cheap enough for each step."""
        if self._worker and not self.is_rehearsal:
            self._worker.values.update({name: float(value) for name, value in values.items()})

    def _seed_rank(self) -> None:
        """Ranks draw different random numbers from here on; models were made with equal ones."""
        if self._seed is not None and self._loops == 1:
            randomness.seed_all(randomness.mix(self._seed, self.rank))


class _Typical:
    """Waits for a typical step, and records its collectives: the third, or the first after it that has an update."""

    def __init__(self, worker: Worker):
        self._worker, self._updates = worker, worker.optimizer_steps

    def is_over(self, steps: int) -> bool:
        """At the end of each step, `steps` since the beginning: was it the one?"""
        has_update, self._updates = self._worker.optimizer_steps > self._updates, self._worker.optimizer_steps
        if steps >= REHEARSAL_STEPS and (has_update or steps >= REHEARSAL_STEPS_MAX):
            return True
        if steps >= REHEARSAL_STEPS - 1:
            for group in groups:
                group.trace = []
        return False


_END = object()


def _code_hash() -> str:
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if not path or not Path(path).is_file():
        return ""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _leave_group(job: Job) -> None:
    """End the group that `init` made while Python can still run other threads: a thread of gloo that frees its last work later
    aborts the process (SIGABRT after the last line). What wraps a model holds the group, too, and lets go of it first. After an
    error peers may be gone, and ending it could wait for them."""
    if dist.is_initialized() and getattr(sys, "last_value", None) is None:
        for thing in job._objects.values():
            if isinstance(thing, DistributedDataParallel):
                for name in ("reducer", "logger", "process_group"):
                    setattr(thing, name, None)
        gc.collect()
        dist.destroy_process_group()


def init(seed: int | None = None) -> Job:
    """Join the job that this process belongs to; the process group is ready afterwards if there are several workers.

    `seed` seeds Python, NumPy and torch equally on every rank now, and by rank when the loop starts; it also fixes the order of
    the data (0 if not given). Raises ScriptError when the process group exists already under restow.
    """
    if seed is not None:
        randomness.seed_all(seed)
        torch.manual_seed(seed)  # CUDA's generators too
    environment = read_environment()
    if environment is None:
        rank, world_size, local_rank = torchrun_environment()
        job = Job(worker=None, rank=rank, world_size=world_size, local_rank=local_rank, seed=seed)
        if world_size > 1 and not dist.is_initialized():
            cuda = torch.cuda.is_available()
            if cuda:
                torch.cuda.set_device(min(local_rank, torch.cuda.device_count() - 1))
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
            atexit.register(_leave_group, job)
        return job
    if dist.is_initialized():
        raise ScriptError(
            "init_process_group was called before restow.init(); call restow.init() first, it makes the group"
        )
    worker = Worker(environment)
    worker.join_gang()
    local_rank = 0 if torch.cuda.is_available() and torch.cuda.device_count() == 1 else torchrun_environment()[2]
    return Job(
        worker=worker, rank=environment.rank, world_size=environment.world_size, local_rank=local_rank, seed=seed
    )
