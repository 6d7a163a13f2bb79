"""Trains CartPole-v1 with each file's defaults and several seeds; evaluates 100 episodes of each.

python benchmark/cartpole.py >benchmark/results/cartpole.csv
"""

import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from curve import PACKAGES, machine, version

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = "onestep_q_async", "sarsa_async", "nstep_q_async", "a3c", "a2c"
SEEDS = 1, 2, 3


def run(*command: object) -> str:
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True
    ).stdout


def main() -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    print(f"# machine: {machine()}")
    print(
        f"# versions: {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    )
    print(f"# commit: {head}")
    print("# command: python benchmark/cartpole.py; python X.py --env-id CartPole-v1 --seed N")
    print("script,seed,mean_return,standard_deviation", flush=True)
    for script in SCRIPTS:
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                flags = ["--env-id", "CartPole-v1", "--seed", seed, "--log-dir", folder]
                run(f"{script}.py", *flags)
                (run_dir,) = Path(folder).iterdir()
                out = run(f"{script}.py", "--evaluate", run_dir, "--eval-episodes", 100)
            mean, deviation = re.search(r"return ([\d.]+) ± ([\d.]+)", out).groups()
            print(script, seed, mean, deviation, sep=",", flush=True)


if __name__ == "__main__":
    main()
