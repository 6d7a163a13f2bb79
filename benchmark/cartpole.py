"""Trains CartPole-v1 with each script's defaults and several seeds.

    python benchmark/cartpole.py

It writes the learning curves to benchmark/results/cartpole/SCRIPT__SEED.csv, and evaluates 100
episodes of each trained network for benchmark/results/cartpole/evaluation.csv.
"""

import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from curve import PACKAGES, machine, version

ROOT = Path(__file__).resolve().parent.parent
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
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    with (RESULTS / "evaluation.csv").open("w") as file:
        print(f"# machine: {machine()}", file=file)
        versions = [f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]
        print(f"# versions: {', '.join(versions)}", file=file)
        print(f"# commit: {head}", file=file)
        print("# command: python SCRIPT.py --env-id CartPole-v1 --seed SEED", file=file)
        print("# written by: python benchmark/cartpole.py", file=file)
        print("script,seed,minutes,mean_return,standard_deviation", file=file)
        for script in SCRIPTS:
            for seed in SEEDS:
                print(
                    script, seed, *train_and_evaluate(script, seed), sep=",", file=file, flush=True
                )


if __name__ == "__main__":
    main()
