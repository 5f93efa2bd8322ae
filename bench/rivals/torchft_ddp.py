"""torchft: every rank is a replica group of one; a member that joins is healed by another, one that leaves is dropped.

The one that joins is a spare at first: it follows, without a say in the gradients, until another leaves.
"""

# no `from __future__ import annotations`: DDP checks the annotations of its hook, and strings fail it
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo
from torchft.checkpointing.pg_transport import PGTransport
from torchft.manager import WorldSizeMode

from bench import workload


class Network(DistributedDataParallel):
    """torchft 0.2's own hook fails an assertion when a collective fails, so a member that dies would take all others along."""

    @staticmethod
    def _comm_hook(manager: Manager, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        manager.allreduce(bucket.buffer()).wait()
        averaged: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        averaged.set_result(bucket.buffer())
        return averaged


def main() -> None:
    options = workload.options()
    member, world_size, address = int(os.environ["MEMBER"]), int(os.environ["MEMBERS"]), os.environ["MEMBER_ADDRESS"]
    rank = member % world_size  # a successor takes the part of the data of the member that leaves
    store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
    marks = workload.Marks(member)
    model = workload.model(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = workload.loader(options, rank, world_size)

    def load(state: dict[str, dict[str, object]]) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    patience = timedelta(seconds=10 + options.state_mb / 10)  # a state must cross the link twice within it
    group = ProcessGroupGloo(timeout=patience)
    manager = Manager(
        pg=group,
        min_replica_size=world_size,
        world_size_mode=WorldSizeMode.FIXED_WITH_SPARES,
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        replica_id=f"member{member}",
        store_addr=address,
        store_port=store.port,
        rank=0,
        world_size=1,
        hostname=address,
        timeout=patience,
        checkpoint_transport=PGTransport(group, timeout=patience, device=torch.device("cpu")),
    )
    network = Network(manager, model)
    managed = Optimizer(manager, optimizer)
    torch.manual_seed(options.seed + rank)
    feed, position = iter(()), -1
    while (step := manager.current_step()) < options.steps:
        if step != position + 1 or position < 0:  # healed, or the step was discarded
            feed = workload.batches(loader, step, options.steps)
        position, (inputs, targets) = next(feed)
        marks.begin()
        managed.zero_grad()
        loss = cross_entropy(network(inputs), targets)
        loss.backward()
        managed.step()
        if manager.current_step() > step:
            marks.end(manager.current_step() - 1, loss)
    marks.finish(model, optimizer)
    manager.shutdown(wait=False)


if __name__ == "__main__":
    main()
