"""Times RMSProp's update of trained networks, with denormal numbers and with them flushed to 0.

    python benchmark/studies/denormals.py >benchmark/results/denormals.csv

The mean square g of a parameter whose gradient is always 0 shrinks by α with every update, and ends
among the denormal numbers, where arithmetic is slow on some processors. It needs an idle machine.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
import tyro
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmark")]

from provenance import header

import a3c


def seconds_per_update(checkpoint: dict, flush: bool) -> float:
    """The median of seven times 50 updates whose gradients are 0."""
    torch.set_flush_denormal(flush)
    shared = a3c.Shared(nn.Module(), 1)
    shared.theta = checkpoint["params"]
    shared.square_avg = {name: g.clone() for name, g in checkpoint["square_avg"].items()}
    grads = [torch.zeros_like(param) for param in shared.theta.values()]
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(50):
            shared.rmsprop_update(grads, 1e-4, 0.99, 1e-6)
        times.append((time.perf_counter() - start) / 50)
    return statistics.median(times)


def main() -> None:
    print(header("python benchmark/studies/denormals.py"), end="")
    print("run,denormal_share,ms_with_denormals,ms_flushed")
    for path in sorted((ROOT / "benchmark/results").glob("*/checkpoint.pt")):
        torch.set_flush_denormal(False)  # with it they would count as 0
        checkpoint = torch.load(path, weights_only=True)
        g = torch.cat([tensor.flatten() for tensor in checkpoint["square_avg"].values()])
        denormal = (g > 0) & (g < torch.finfo(g.dtype).smallest_normal)
        with_denormals, flushed = (seconds_per_update(checkpoint, flush) for flush in (False, True))
        print(
            f"{path.parent.name},{denormal.float().mean():.3f},"
            f"{with_denormals * 1e3:.2f},{flushed * 1e3:.2f}"
        )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
