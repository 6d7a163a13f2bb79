"""Plays full episodes with the trained networks in benchmark/results, and writes their returns.

    python benchmark/evaluate.py >benchmark/results/evaluation.csv

Rewards are unclipped and lives do not end an episode. Actor-critics sample their actions; value
methods are ε-greedy with ε = 0.05. The last column holds the returns of the single episodes.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
import tyro
from provenance import RESULTS, ROOT, header


@dataclass
class Args:
    eval_episodes: int = 30
    """episodes of each network"""


def main(args: Args) -> None:
    print(header(f"python benchmark/evaluate.py --eval-episodes {args.eval_episodes}"), end="")
    print("run,steps,episodes,mean_return,standard_deviation,returns", flush=True)
    run_dirs = sorted(path.parent for path in RESULTS.glob("*/checkpoint.pt"))
    with ThreadPool() as pool:  # a network per core at a time
        for row in pool.imap(lambda run_dir: evaluate(run_dir, args.eval_episodes), run_dirs):
            print(*row, sep=",", flush=True)


def evaluate(run_dir: Path, eval_episodes: int) -> list:
    """The row of one network."""
    script = run_dir.name.split("__")[1]
    command = [sys.executable, f"{script}.py", "--evaluate", str(run_dir)]
    command += ["--eval-episodes", str(eval_episodes)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    returns = re.findall(r"episode \d+: return (\S+)", out)
    mean, deviation = re.search(r"return (-?[\d.]+) ± ([\d.]+)", out).groups()
    checkpoint = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    steps = int(checkpoint["steps"].sum())
    return [run_dir.name, steps, eval_episodes, mean, deviation, " ".join(returns)]


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
