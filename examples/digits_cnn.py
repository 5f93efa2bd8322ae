"""A convolutional net with BatchNorm and dropout learns to read the handwritten digits that come with scikit-learn.

    python examples/digits_cnn.py                                       alone
    torchrun --nproc-per-node 2 examples/digits_cnn.py                  data-parallel
    restow submit -n 2 -- python examples/digits_cnn.py                 under restow, may be moved while it trains

The 1,797 images (8x8, 16 greys) need no download. Every fifth is kept for the test at the end.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import restow
from digest import History, plain, write_digest


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps in all")
    parser.add_argument("--batch", type=int, default=32, help="images per rank and step")
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--lr", type=float, default=0.1, help="highest learning rate of the schedule")
    parser.add_argument("--loader-workers", type=int, default=0, help="processes that load images, per rank")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long (a job of one worker only)")
    parser.add_argument("--log-every", type=int, default=50, metavar="N", help="print the loss every N steps; 0: never")
    parser.add_argument("--digest", default="", metavar="FILE", help="write all losses and a fingerprint of the end")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.steps < 1 or chosen.batch < 2 or chosen.width < 1:
        parser.error("--steps and --width must be at least 1, --batch at least 2 (BatchNorm)")
    return chosen


def digits() -> tuple[TensorDataset, TensorDataset]:
    """(for training, for the test); images as (1, 8, 8) from -1 to 1."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    targets = torch.tensor(labels, dtype=torch.long)
    is_test = torch.arange(len(targets)) % 5 == 0
    return TensorDataset(inputs[~is_test], targets[~is_test]), TensorDataset(inputs[is_test], targets[is_test])


def net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(2 * width * 16, 10),
    )


def accuracy(model: nn.Module, dataset: TensorDataset, device: torch.device) -> float:
    """Share of the images that are read rightly."""
    model.eval()
    inputs, targets = dataset.tensors
    with torch.no_grad():
        guesses: Tensor = model(inputs.to(device)).argmax(1).cpu()
    return float((guesses == targets).float().mean())


def main() -> None:
    chosen = options()
    job = restow.init(seed=chosen.seed)
    if chosen.seconds and job.world_size > 1:
        raise SystemExit("--seconds: ranks would stop at different steps; use --steps for a gang")

    train_set, test_set = digits()
    loader = DataLoader(train_set, chosen.batch, shuffle=True, drop_last=True, num_workers=chosen.loader_workers)
    model = net(chosen.width).to(job.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=chosen.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=chosen.lr, total_steps=chosen.steps)
    model, optimizer, schedule = job.prepare(model, optimizer, schedule)
    history = History()
    job.carry("history", history)

    started_s = time.monotonic()
    for images, labels in job.steps(loader, total=chosen.steps):
        loss = functional.cross_entropy(model(images.to(job.device)), labels.to(job.device))
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        value = loss.item()
        history.losses.append(value)
        job.report(loss=value)
        made = len(history.losses)
        if job.rank == 0 and chosen.log_every and made % chosen.log_every == 0:
            print(f"step {made} loss {value:.4f} {value.hex()}", flush=True)
        if chosen.seconds and time.monotonic() - started_s > chosen.seconds:
            break

    if job.rank == 0:
        print(f"test accuracy {accuracy(plain(model), test_set, job.device):.3f}", flush=True)
    if chosen.digest:
        write_digest(chosen.digest, job.rank, history, model, optimizer)


if __name__ == "__main__":
    main()
