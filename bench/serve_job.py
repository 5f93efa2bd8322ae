"""A small model being served: requests arrive at random (Poisson), each takes a given device time. See protect.py."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

import torch

import restow
from bench.multiplex_job import Compute, Control, real_compute
from bench.virtual_device import VirtualDevice


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=Path)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--device", choices=("virtual", "core"), default="core")
    parser.add_argument("--page", default="")
    parser.add_argument("--request-ms", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=40.0, help="requests per second")
    options = parser.parse_args()
    torch.set_num_threads(1)
    job = restow.init(seed=1)
    if options.device == "virtual":
        node = os.environ.get("RESTOW_NODE", "here")
        compute: Compute = VirtualDevice(Path(options.page) / f"{node}.device", options.number).compute
    else:
        compute = real_compute()
    control, chance = Control(options.control, options.number), random.Random(1)
    arrives_s = time.monotonic()
    while True:
        arrives_s += chance.expovariate(options.rate)
        while (wait_s := arrives_s - time.monotonic()) > 0:
            time.sleep(wait_s)
        if control.pauses:
            arrives_s = time.monotonic()
            time.sleep(0.005)
            continue
        with job.turn():
            compute(options.request_ms / 1e3)
        end_s = time.monotonic()
        sys.stdout.write("@request " + json.dumps({"end_s": end_s, "latency_s": end_s - arrives_s}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
