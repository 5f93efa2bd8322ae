"""A training script with everything that must travel: dropout, BatchNorm, shuffling, random augmentation, a schedule."""

import argparse
import hashlib
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import restow

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument(
    "--holds", default="", help="folder:step,... wait after such a step for a file of that name"
)
parser.add_argument(
    "--stops", default="", help="rank:step:place,... wait at such a place for ever (until killed); places: see `stop`"
)
parser.add_argument("--accumulate", type=int, default=1, help="steps whose gradients are added up")
parser.add_argument("--slow", default="", help="node:seconds; a step there takes so much longer")
parser.add_argument("--plain", action="store_true", help="nothing is random but the order; the samples are printed")
options = parser.parse_args()
slow_node, _, slow_s = options.slow.partition(":")
folder, _, held = options.holds.partition(":")
holds = {int(step) for step in held.split(",") if step}
stops = {tuple(stop.split(":")) for stop in options.stops.split(",") if stop}


def stop(place):
    """Say so, and wait to be killed: `forward`, `backward` (a first gradient is given), `update` (inside the optimizer's step),
    `end` (the line is printed). Twins' rehearsals and other processes of the rank pass: only the first to come waits."""
    if (str(job.rank), str(job.step), place) not in stops or job.is_rehearsal:
        return
    try:
        Path(folder, f"stop-{job.rank}-{job.step}-{place}").touch(exist_ok=False)
    except FileExistsError:
        return
    while True:
        time.sleep(1)


class Noisy(Dataset):
    def __len__(self):
        return 96

    def __getitem__(self, index):
        if options.plain:
            return torch.full((16,), index / 96.0) + torch.arange(16) % (2 + index % 7), torch.tensor([index % 3])
        x = (
            torch.full((16,), index / 96.0)
            + 0.1 * torch.randn(16)
            + 0.01 * random.random()
            + 0.01 * float(np.random.rand())
        )
        return x, torch.tensor([index % 3])


class History:
    def __init__(self):
        self.losses = []

    def state_dict(self):
        return {"losses": list(self.losses)}

    def load_state_dict(self, state):
        self.losses = list(state["losses"])


torch.set_num_threads(1)
job = restow.init(seed=7)
w = options.width
model = torch.nn.Sequential(
    torch.nn.Linear(16, w),
    torch.nn.BatchNorm1d(w),
    torch.nn.ReLU(),
    torch.nn.Dropout(0.3),
    torch.nn.Linear(w, w),
    torch.nn.Linear(w, 3),
)
if options.plain:
    model[1] = model[3] = torch.nn.Identity()
model.to(job.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
model, optimizer, schedule = job.prepare(model, optimizer, schedule)
if stops:
    model.module[5].weight.register_post_accumulate_grad_hook(lambda _: stop("backward"))
    optimizer.register_step_pre_hook(lambda *_: stop("update"))
history = job.carry("history", History())
loader = DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=options.workers)
for x, y in job.steps(loader, total=options.steps):
    x, y = x.to(job.device), y.to(job.device)
    loss = (
        torch.nn.functional.cross_entropy(model(x), y.squeeze(1)) + 0.001 * torch.rand((), device=job.device) * x.mean()
    )
    if options.plain:
        loss = torch.nn.functional.cross_entropy(model(x), y.squeeze(1))
    stop("forward")
    if slow_node and os.environ.get("RESTOW_NODE") == slow_node:
        time.sleep(float(slow_s))
    if job.step % options.accumulate == 0:
        optimizer.zero_grad()
    loss.backward()
    if job.step % options.accumulate == options.accumulate - 1:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    history.losses.append(loss.item().hex())
    samples = [round(first * 96) for first in x[:, 0].tolist()] if options.plain else []
    print(job.step, loss.item().hex(), *samples, flush=True)
    job.report(loss=loss.item())
    stop("end")
    while job.step in holds and not job.is_rehearsal and not Path(folder, str(job.step)).exists():
        time.sleep(0.002)
digest = hashlib.sha256()
for name, tensor in model.state_dict().items():
    digest.update(name.encode() + tensor.cpu().numpy().tobytes())
for state in optimizer.state_dict()["state"].values():
    for key in sorted(state):
        digest.update(torch.as_tensor(state[key]).cpu().numpy().tobytes())
print(
    "digest",
    digest.hexdigest(),
    len(history.losses),
    hashlib.sha256(json.dumps(history.losses).encode()).hexdigest(),
    flush=True,
)
