"""What it brings to train N small models as one (restow.sweep) against the same N one after another, on one device.

    python bench/fuse.py --json fuse.json
    python bench/fuse.py --json fuse-gpu.json --device cuda

For each model and N, windows of both alternate; each pair of windows gives one ratio (above 1: the sweep is faster). A
separate run is plain torch: a model, torch.optim.AdamW, zero_grad, backward, step; each trains its whole window before the
next begins, with warm caches. A third column has separate runs with AdamW(fused=True), a fourth the sweep with exact=True.
Then: how far parameters are from those of the separate runs after some steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from bench.options import new_file  # noqa: E402
from restow.sdk.fuse import Sweep  # noqa: E402


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 49, 10),
    )  # fmt: skip


class Block(nn.Module):
    """One transformer block of width 64 between an embedding and a head; 16 positions, 64 words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(64, 64), nn.Parameter(torch.zeros(16, 64))
        self.block = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 64)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.block(self.words(words) + self.places)).transpose(1, 2)


def images(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))


def vectors(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 784), torch.randint(0, 10, (batch,))


def words(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 64, (batch, 16)), torch.randint(0, 64, (batch, 16))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, Tensor]], int]] = {
    "mlp 784-128-128-10, batch 8": (mlp, vectors, 8),
    "mlp 784-128-128-10, batch 32": (mlp, vectors, 32),
    "cnn 2 conv + batchnorm, batch 8": (cnn, images, 8),
    "transformer block d64 seq16, batch 8": (Block, words, 8),
}


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(model(inputs), targets)


def on(device: str, case: str) -> tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]], int]:
    make, batch_of, size = CASES[case]
    return lambda: make().to(device), lambda batch: tuple(part.to(device) for part in batch_of(batch)), size


class Separate:
    """N runs, one after another."""

    def __init__(self, make: Callable[[], nn.Module], members: list[dict[str, Any]], **how: Any):
        self.runs = []
        for settings in members:
            torch.manual_seed(settings["seed"])
            model = make()
            self.runs.append((model, torch.optim.AdamW(model.parameters(), lr=settings["lr"], **how)))

    def train(self, batches: list[tuple[Tensor, ...]]) -> None:
        for model, optimizer in self.runs:
            for inputs, targets in batches:
                loss = loss_of(model, inputs, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


class Fused:
    def __init__(self, make: Callable[[], nn.Module], members: list[dict[str, Any]], **how: Any):
        self.sweep = Sweep(make, members, optimizer="adamw", **how)

    def train(self, batches: list[tuple[Tensor, ...]]) -> None:
        for inputs, targets in batches:
            self.sweep.step(loss_of, inputs, targets)


def compared(case: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Alternating windows of all four; ratios are to the separate runs of the same round."""
    make, batch_of, size = on(options.device, case)
    members = [{"lr": 1e-4 * 1.05**number, "seed": number} for number in range(count)]
    rivals = {
        "separate": Separate(make, members),
        "sweep": Fused(make, members, together=options.together),
        "separate, fused optimizer": Separate(make, members, fused=True),
        "sweep, exact": Fused(make, members, exact=True),
    }
    torch.manual_seed(0)
    batches = [batch_of(size) for _ in range(max(2, round(options.member_steps / count)))]
    times_s: dict[str, list[float]] = {name: [] for name in rivals}
    for window in range(options.windows + 1):  # the first of each warms up
        for name in list(rivals) if window % 2 else list(rivals)[::-1]:
            begin_s = time.perf_counter()
            rivals[name].train(batches)
            if options.device == "cuda":
                torch.cuda.synchronize()
            if window:
                times_s[name].append((time.perf_counter() - begin_s) / len(batches) / count)
    ratios = {name: [a / b for a, b in zip(times_s["separate"], taken, strict=True)] for name, taken in times_s.items()}
    return {
        "case": case, "members": count, "windows": options.windows, "steps_per_window": len(batches),
        "member_step_us": {name: median(taken) * 1e6 for name, taken in times_s.items()},
        "ratio": {name: median(found) for name, found in ratios.items()},
        "ratio_quartiles": {name: [quantiles(found, n=4)[0], quantiles(found, n=4)[2]] for name, found in ratios.items()},
    }  # fmt: skip


def differences(case: str, device: str, steps: int, count: int = 8) -> dict[str, Any]:
    """Largest |difference| to the separate runs over all parameters and buffers after `steps` steps, and bit-equal members."""
    make, batch_of, size = on(device, case)
    members = [{"lr": 1e-3 * 1.5**number, "seed": number} for number in range(count)]
    torch.manual_seed(0)
    batches = [batch_of(size) for _ in range(steps)]
    alone, found = Separate(make, members), {}
    alone.train(batches)
    for name, how in (("sweep", {}), ("sweep, exact", {"exact": True})):
        fused = Fused(make, members, **how)
        fused.train(batches)
        states = [(model.state_dict(), fused.sweep.checkpoint(number)["model"]) for number, (model, _) in enumerate(alone.runs)]
        found[name] = {
            "largest_difference": max(
                float((a[key].double().cpu() - b[key].double().cpu()).abs().max()) for a, b in states for key in a
            ),
            "equal_members": sum(all(torch.equal(a[key].cpu(), b[key].cpu()) for key in a) for a, b in states),
        }
    return {"case": case, "members": count, "steps": steps, **found}


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    chosen = [case for case in CASES if any(word in case for word in options.case)] if options.case else list(CASES)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "one core"
    numbers: dict[str, Any] = {"torch": torch.__version__, "device": name, "speed": [], "equality": []}
    for case in chosen:
        numbers["equality"] += [differences(case, options.device, steps) for steps in (5, 50)]
        for row in numbers["equality"][-2:]:
            print(f"{case}: after {row['steps']} steps " + ", ".join(
                f"{name} {row[name]['largest_difference']:.1e} ({row[name]['equal_members']} of {row['members']} bit-equal)"
                for name in ("sweep", "sweep, exact")), flush=True)  # fmt: skip
    for case in chosen:
        for count in options.members:
            row = compared(case, count, options)
            numbers["speed"].append(row)
            print(f"{case:<38} N={count:<3} " + "   ".join(
                f"{name} {row['ratio'][name]:.2f} ({row['ratio_quartiles'][name][0]:.2f} to {row['ratio_quartiles'][name][1]:.2f})"
                for name in row["ratio"] if name != "separate") + f"   separate {row['member_step_us']['separate']:.0f} us",
                flush=True)  # fmt: skip
            options.json.write_text(json.dumps(numbers, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N")
    parser.add_argument("--case", nargs="+", metavar="WORD", help="only cases with one of these words")
    parser.add_argument("--windows", type=int, default=11, help="windows of each")
    parser.add_argument("--member-steps", type=int, default=256, help="steps in a window, summed over the members")
    parser.add_argument("--together", type=int, help="members per pass; default: the sweep's own choice")
    return parser.parse_args()


if __name__ == "__main__":
    main()
