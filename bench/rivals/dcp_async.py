"""Save beside the training with torch.distributed.checkpoint, then stop and start again elsewhere from what was saved.

The save has a group of its own: on the training group it can hang when steps run at the same time.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bench import workload


def main() -> None:
    options = workload.options()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    marks = workload.Marks(rank)
    model = DistributedDataParallel(workload.model(options))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = workload.loader(options, rank, world_size)
    torch.manual_seed(options.seed + rank)
    first, saving, save_group = 0, None, dist.new_group(backend="gloo")
    done = Path(options.checkpoint, ".metadata").exists()
    if done:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments, "step": 0, f"random{rank}": torch.get_rng_state()}
        dcp.load(state, checkpoint_id=options.checkpoint)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        torch.set_rng_state(state[f"random{rank}"])
        first = state["step"]
    for step, (inputs, targets) in workload.batches(loader, first, options.steps):
        if step == options.move_at and not done:
            marks.note("move")
            weights, moments = get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": moments, "step": step, f"random{rank}": torch.get_rng_state()}
            saving = dcp.async_save(state, checkpoint_id=options.checkpoint, process_group=save_group)
        if saving is not None:
            finished = torch.tensor([saving.done()], dtype=torch.int32)
            dist.all_reduce(finished, op=dist.ReduceOp.MIN)
            if finished:
                saving.result()
                marks.note("saved")
                return
        marks.begin()
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        marks.end(step, loss)
    marks.finish(model, optimizer)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
