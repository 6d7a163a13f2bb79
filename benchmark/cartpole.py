"""Trains CartPole-v1 with each script's defaults and several seeds.

    python benchmark/cartpole.py

It writes the learning curves to benchmark/results/cartpole/SCRIPT__SEED.csv, and evaluates 100
episodes of each trained network for benchmark/results/cartpole/evaluation.csv.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from provenance import ROOT, header

RESULTS = ROOT / "benchmark" / "results" / "cartpole"
SCRIPTS = "onestep_q_async", "sarsa_async", "nstep_q_async", "a3c", "a2c"
SEEDS = 1, 2, 3


def run(*command: object) -> str:
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def train_and_evaluate(script: str, seed: int) -> tuple[str, str, str]:
    """Writes the curve of a run; returns its minutes, and the evaluation's mean and deviation."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        run(f"{script}.py", "--env-id", "CartPole-v1", "--seed", seed, "--log-dir", folder)
        minutes = (time.monotonic() - start) / 60
        (run_dir,) = Path(folder).iterdir()
        curve = run("benchmark/curve.py", run_dir, "--bin", 5000)
        (RESULTS / f"{script}__{seed}.csv").write_text(curve)
        out = run(f"{script}.py", "--evaluate", run_dir, "--eval-episodes", 100)
    mean, deviation = re.search(r"return ([\d.]+) ± ([\d.]+)", out).groups()
    return f"{minutes:.1f}", mean, deviation


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "evaluation.csv").open("w") as file:
        command = "python SCRIPT.py --env-id CartPole-v1 --seed SEED"
        file.write(header(command, written_by="python benchmark/cartpole.py"))
        print("script,seed,minutes,mean_return,standard_deviation", file=file)
        for script in SCRIPTS:
            for seed in SEEDS:
                print(
                    script, seed, *train_and_evaluate(script, seed), sep=",", file=file, flush=True
                )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
