"""Many nets with BatchNorm and dropout learn to read the handwritten digits of scikit-learn at once, each at its own rate.

    python examples/sweep_digits.py                                                          alone, 6 members
    restow sweep --set lr=0.003,0.03,0.3 --set seed=1,2 -- python examples/sweep_digits.py   under restow, may be moved

All members see the same batches. A quarter of the way, and again half-way, the worse half of them is stopped; the rest
train on, faster. Every member ends with the model that its separate run would have. Under restow the sweep is one job with
one worker.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import restow
from digits_cnn import digits, net


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a member that is never stopped")
    parser.add_argument("--batch", type=int, default=32, help="images per step, the same for all members")
    parser.add_argument("--width", type=int, default=8, help="channels of the first layer")
    parser.add_argument("--exact", action="store_true", help="one member after the other, bit-equal to separate runs")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write a checkpoint per member: FOLDER/member0.pt ...")
    chosen = parser.parse_args()
    if chosen.steps < 8 or chosen.batch < 2 or chosen.width < 1:
        parser.error("--steps must be at least 8, --batch at least 2 (BatchNorm), --width at least 1")
    return chosen


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(images), labels)


def accuracy_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return (model(images).argmax(1) == labels).float().mean()


def warm_up(step: int, settings: dict[str, float]) -> float:
    """A factor of the learning rate: up in ten steps, then constant."""
    return min(1.0, (step + 1) / 10)


def main() -> None:
    chosen = options()
    job = restow.init(seed=1)
    train_set, test_set = digits()
    loader = DataLoader(train_set, chosen.batch, shuffle=True, drop_last=True)
    asked = restow.sweep_members(default=[{"lr": lr, "seed": 1} for lr in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)])
    members = [{"momentum": 0.9, "weight_decay": 1e-4, **settings} for settings in asked]
    sweep = restow.sweep(
        lambda: net(chosen.width), members, optimizer="sgd", schedule=warm_up, device=job.device, exact=chosen.exact
    )
    job.prepare(sweep)

    made = 0
    for images, labels in job.steps(loader, total=chosen.steps):
        losses = sweep.step(loss_of, images.to(job.device), labels.to(job.device))
        job.report(best_loss=losses.min().item(), members=len(losses))
        made = job.step + 1
        if made in (chosen.steps // 4, chosen.steps // 2):
            stop_the_worse_half(sweep, losses, made)

    images, labels = (tensor.to(job.device) for tensor in test_set.tensors)
    for member, accuracy in zip(sweep.running, sweep.evaluate(accuracy_of, images, labels).tolist(), strict=True):
        print(f"member {member} {spelt(sweep.settings(member))} test accuracy {accuracy:.3f}", flush=True)
    if chosen.save:
        chosen.save.mkdir(parents=True, exist_ok=True)
        for member in (*sweep.running, *sweep.stopped):
            torch.save(sweep.checkpoint(member), chosen.save / f"member{member}.pt")


def stop_the_worse_half(sweep: restow.Sweep, losses: Tensor, made: int) -> None:
    losses = losses.nan_to_num(nan=float("inf"))  # who diverged is the worst
    ranked = sorted(zip(losses.tolist(), sweep.running, strict=True))
    for loss, member in ranked[(len(ranked) + 1) // 2 :]:
        sweep.stop(member)
        print(f"step {made}: member {member} {spelt(sweep.settings(member))} stopped at loss {loss:.3f}", flush=True)


def spelt(settings: dict[str, float]) -> str:
    return " ".join(f"{key}={value:g}" for key, value in settings.items() if key in ("lr", "seed"))


if __name__ == "__main__":
    main()
